"""What the operators take, in the one order that everything below the public functions keeps.

    [grad_output,] input, theta, fill, image_index, [their tangents,] [size,] options[, output_mask]

A gradient's operator has the first and the last, and knows the size by ``grad_output``. A schema has every
field of ``Options`` for itself; all else has them in one.
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
    """The arguments of one operator, of which all that depends on their number or order is made."""

    def __init__(self, *, is_gradient: bool, has_tangents: bool) -> None:
        tensors = {**_TENSORS, **(_TANGENTS if has_tangents else {})}
        before, after = {}, {"size": "SymInt[]"}
        if is_gradient:
            before, after = {"grad_output": "Tensor"}, {}
        last = {"output_mask": "bool[3]"} if is_gradient else {}
        self.is_gradient, self.has_tangents = is_gradient, has_tangents
        self.tensors = (*before, *tensors)
        """Their names; they come first."""
        self.arguments = (*self.tensors, *after, "options", *last)
        first = self.arguments.index("options")
        self._options = first, first + len(Options._fields) - 1
        types = {**before, **tensors, **after, **_OPTIONS, **last}
        name = f"affine_grid_sample{'_tangent' * has_tangents}{'_backward' * is_gradient}"
        given = ", ".join(f"{kind} {argument}" for argument, kind in types.items())
        self.schema = f"{name}({given}) -> {'(Tensor, Tensor, Tensor)' if is_gradient else 'Tensor'}"

    def packed(self, values: Sequence[object]) -> tuple[object, ...]:
        """``arguments`` from what the schema takes."""
        first, last = self._options
        return (*values[:first], Options(*values[first:last], tuple(values[last])), *values[last + 1 :])


def flat(arguments: Sequence[object]) -> list[object]:
    """What a schema takes, from the ``arguments`` of its signature."""
    if isinstance(arguments[-1], Options):
        return [*arguments[:-1], *arguments[-1]]
    return [*arguments[:-2], *arguments[-2], arguments[-1]]
