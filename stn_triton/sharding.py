"""Rules for ``DTensor``: which shardings the operators accept, and how their results are sharded.

Each image is warped by its own matrix, channel by channel. So the batch can be sharded, or the channels, or
the matrices if every shard has all images. A tensor that every shard holds whole gets a ``Partial`` gradient:
the sum over the shards. Nothing else can be sharded: DTensor then gathers.

``torch.distributed.tensor`` takes more than a second to import, and most programs never need it. So the fakes
in ``ops`` register the rules: DTensor calls the fake of an operator before it looks for a rule.
"""

from __future__ import annotations

import functools
import sys
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING

from torch import Tensor
from torch._ops import OpOverload

from stn_triton import ops

if TYPE_CHECKING:
    from torch.distributed.tensor import Placement

# One dict for each way to shard: the axis of every tensor, None if every shard has all of it. Gradients and
# tangents are sharded like their tensors.
_REPLICATED = {"input": None, "theta": None, "fill": None, "image_index": None, "output": None}
_CHANNELS = {"input": 1, "theta": None, "fill": 0, "image_index": None, "output": 1}
_BATCH = {"input": 0, "theta": 0, "fill": None, "output": 0}
_MATRICES = {"input": None, "theta": 0, "fill": None, "image_index": 0, "output": 0}


def register() -> None:
    """Register the rules of all operators. Imports ``torch.distributed.tensor``."""
    try:
        from torch.distributed.tensor import DTensor
        from torch.distributed.tensor.experimental import register_sharding

        schema_infos = DTensor._op_dispatcher.sharding_propagator.op_to_schema_info
    except (ImportError, AttributeError) as error:
        warnings.warn(f"stn_triton has no sharding rules for this version of PyTorch: {error}", stacklevel=2)
        return
    for op in ops.OPERATORS:
        register_sharding(op)(functools.partial(_shardings, op))
        # By default lists are not in the key of DTensor's cache: a call could get the shape of another size.
        schema_infos[op].static_argnum = 0


_register_once = functools.cache(register)


def register_on_first_use() -> None:
    """Register the rules once. While DTensor's module is not imported, no DTensor exists."""
    if "torch.distributed.tensor" in sys.modules:
        _register_once()


def replicated(tensor: Tensor, like: Tensor) -> Tensor:
    """A replicated DTensor of a tensor that all processes have, if ``like`` is a DTensor."""
    mesh = getattr(like, "device_mesh", None)
    if mesh is None:
        return tensor
    from torch.distributed.tensor import DTensor

    return DTensor.from_local(tensor, mesh, run_check=False)


def _shardings(op: OpOverload, *values: object) -> list[tuple[list[Placement], list[Placement | None]]]:
    """The placements of outputs and arguments along one axis of the mesh, for each way to shard a call."""
    from torch.distributed.tensor import Partial, Replicate, Shard

    arguments = dict(zip((argument.name for argument in op._schema.arguments), values, strict=True))
    outputs = ops.SIGNATURES[op].outputs
    is_wanted = arguments.get("output_mask", [True] * len(outputs))

    def place(name: str, whole: Placement) -> Placement:
        # Without grad_ and _tangent, the name of a gradient or tangent is the name of its tensor.
        axis = rule[name.removeprefix("grad_").removesuffix("_tangent")]
        return whole if axis is None else Shard(axis)

    result = []
    for rule in _rules(arguments):
        of_sum = Replicate() if rule is _REPLICATED else Partial()
        result.append(
            (
                [
                    place(name, of_sum) if wanted else Replicate()
                    for name, wanted in zip(outputs, is_wanted, strict=True)
                ],
                [
                    place(name, Replicate()) if hasattr(value, "placements") else None
                    for name, value in arguments.items()
                ],
            )
        )
    return result


def _rules(arguments: dict[str, object]) -> Iterator[dict[str, int | None]]:
    """The ways to shard that give right results for a call."""
    yield _REPLICATED
    yield _CHANNELS
    images, matrices = arguments["input"].shape[0], arguments["theta"].shape[0]
    has_index = arguments["image_index"] is not None
    # Several matrices per image must be in the shard of their image, which only an even split ensures.
    if not has_index and (images == matrices or images % arguments["input"].mesh.size() == 0):
        yield _BATCH
    if has_index or images == 1:
        yield _MATRICES
