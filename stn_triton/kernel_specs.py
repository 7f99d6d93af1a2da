"""The kinds of launches: the kernel of each, the images that it accesses, and the sums that it leaves."""

from __future__ import annotations

from types import ModuleType
from typing import NamedTuple

import triton

from stn_triton.kernels import backward, fill_gradient, forward, scatter


class Spec(NamedTuple):
    """A kind of launch. The names of its buckets begin with its name in `SPECS`."""

    module: ModuleType
    """The module of the kernel."""
    kernel_name: str
    images: tuple[str, ...]
    """The images that the kernel accesses. Programs own tiles of the first."""
    adds: int = scatter.NOTHING.value
    """Code of the numbers that a scatter adds to grad_input, see ``kernels/scatter.py``."""
    needs_theta: bool = False
    """Whether programs store shares of the gradient of the matrix."""
    needs_fill: bool = False
    """Whether programs store shares of the gradient of the fill values."""

    def kernel(self) -> triton.JITFunction:
        """Look up the kernel in its module, where tests replace it."""
        return getattr(self.module, self.kernel_name)

    def tiles_input(self) -> bool:
        """Whether programs own pixels of the input, not of the output."""
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
"""The kinds by name. "backward" gathers, "scatter" adds in memory; "_input" means grad_input alone, "theta"
grad_theta alone. "largest" comes before "exact", a scatter in whole numbers. "fill" is for fill values."""
