"""The launches that calls are made of: the kernel of each, the images that it accesses, and what it sums."""

from __future__ import annotations

from types import ModuleType
from typing import NamedTuple

import triton

from stn_triton.kernels import backward, fill_gradient, forward, scatter


class Spec(NamedTuple):
    """A kind of launch. Its name begins the names of its buckets."""

    module: ModuleType
    """Which has the kernel."""
    kernel_name: str
    images: tuple[str, ...]
    """The images that it accesses; the first is the one in tiles."""
    adds: int = scatter.NOTHING.value
    """What a scatter adds to grad_input, see ``kernels/scatter.py``."""
    needs_theta: bool = False
    """Whether its programs leave shares of the gradient of the matrix."""
    needs_fill: bool = False
    """Whether they leave shares of the gradient of the fill values."""

    def kernel(self) -> triton.JITFunction:
        """The kernel, which tests replace in its module."""
        return getattr(self.module, self.kernel_name)

    def tiles_input(self) -> bool:
        """Whether programs own pixels of the input, else of the output."""
        return self.images[0] == "grad_input"


_GATHER = (backward, "backward_kernel", ("grad_input", "grad_output", "input"))
_SCATTER = (scatter, "scatter_kernel")
_READ = ("grad_output", "input", "input_tangent")
_FLOATS, _LARGEST, _WHOLE = scatter.FLOATS.value, scatter.LARGEST.value, scatter.WHOLE.value
SPECS = {
    "forward": Spec(forward, "forward_kernel", ("output", "input", "input_tangent")),
    "backward": Spec(*_GATHER, needs_theta=True),
    "backward_input": Spec(*_GATHER),
    "scatter": Spec(*_SCATTER, (*_READ, "grad_input"), _FLOATS, needs_theta=True),
    "scatter_input": Spec(*_SCATTER, ("grad_output", "grad_input"), _FLOATS),
    "theta": Spec(*_SCATTER, _READ, needs_theta=True),
    "largest": Spec(*_SCATTER, ("grad_output",), _LARGEST),
    "exact": Spec(*_SCATTER, (*_READ, "grad_input"), _WHOLE, needs_theta=True),
    "exact_input": Spec(*_SCATTER, ("grad_output", "grad_input"), _WHOLE),
    "fill": Spec(fill_gradient, "fill_kernel", ("grad_output",), needs_fill=True),
}
"""By name: a gather or a scatter of both gradients or of the input's alone; theta's alone; a scatter in whole
numbers, after the pass that finds the largest; the fill values'."""
