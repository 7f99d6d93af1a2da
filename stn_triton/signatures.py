"""The arguments of the operators, in one order for all code below the public functions.

    [grad_output,] input, theta, fill, image_index, [their tangents,] [size,] options[, output_mask]

The operator of a gradient has ``grad_output`` and ``output_mask``, and no ``size``: it is that of
``grad_output``. A schema has each field of ``Options`` as an argument; all other code has one ``Options``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import get_type_hints

from stn_triton.options import Options

_TENSORS = {"input": "Tensor", "theta": "Tensor", "fill": "Tensor?", "image_index": "Tensor?"}
_TANGENTS = {"input_tangent": "Tensor?", "theta_tangent": "Tensor", "fill_tangent": "Tensor?"}
_TYPES = {str: "str", bool: "bool", tuple[float, ...]: "float[]"}
_OPTIONS = {name: _TYPES[kind] for name, kind in get_type_hints(Options).items()}


class Signature:
    """The arguments and results of one operator: names, order and schema."""

    def __init__(self, *, is_gradient: bool, has_tangents: bool) -> None:
        self.is_gradient, self.has_tangents = is_gradient, has_tangents
        self.name = f"affine_grid_sample{'_tangent' * has_tangents}{'_backward' * is_gradient}"
        first = {"grad_output": "Tensor"} if is_gradient else {}
        tensors = {**first, **_TENSORS, **(_TANGENTS if has_tangents else {})}
        size = {} if is_gradient else {"size": "SymInt[]"}
        mask = {"output_mask": "bool[3]"} if is_gradient else {}
        self.tensors = tuple(tensors)
        """Names of the tensor arguments, which are the first ones."""
        self.arguments = (*tensors, *size, "options", *mask)
        self.outputs = ("grad_input", "grad_theta", "grad_fill") if is_gradient else ("output",)
        given = ", ".join(f"{t} {name}" for name, t in {**tensors, **size, **_OPTIONS, **mask}.items())
        returned = ", ".join(["Tensor"] * len(self.outputs))
        self.schema = f"{self.name}({given}) -> ({returned})"
        start = len(tensors) + len(size)
        self._options = start, start + len(_OPTIONS) - 1

    def packed(self, values: Sequence[object]) -> tuple[object, ...]:
        """Convert ``values`` in the order of the schema into ``arguments``, whose options are one tuple."""
        first, last = self._options
        return (*values[:first], Options(*values[first:last], tuple(values[last])), *values[last + 1 :])


def flat(arguments: Sequence[object]) -> list[object]:
    """The values for a schema from the ``arguments`` of its signature."""
    if isinstance(arguments[-1], Options):
        return [*arguments[:-1], *arguments[-1]]
    return [*arguments[:-2], *arguments[-2], arguments[-1]]
