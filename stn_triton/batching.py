"""Rules of ``torch.vmap`` for the operators: the calls of a vmap become one call with more matrices.

Images that all calls share are not copied in the forward: an index names the image of each matrix.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from stn_triton.signatures import Signature


def rule(call: Callable[..., object], signature: Signature) -> Callable[..., tuple[object, object]]:
    """The vmap rule of an operator: a function of (info, in_dims, *arguments)."""
    names = signature.tensors

    def vmap(info, in_dims, *arguments):
        size = info.batch_size
        tensors = dict(zip(names, arguments, strict=False))
        dims = dict(zip(names, in_dims, strict=False))
        rest = arguments[len(names) :]
        wanted = rest[-1] if signature.is_gradient else ()
        separate = [dims["fill"], dims.get("fill_tangent")]
        if signature.is_gradient:
            # Gradients of shared fill values, and of images with an index, are separate for each call.
            separate += [dims["image_index"], 0 if wanted[2] else None]
        if any(dim is not None for dim in separate):
            return _one_by_one(call, size, in_dims[: len(names)], arguments, wanted)

        is_shared = not signature.is_gradient and dims["input"] is None and dims.get("input_tangent") is None
        for name, tensor in tensors.items():
            is_image = name in ("input", "input_tangent")
            if tensor is not None and name not in ("fill", "image_index", "fill_tangent"):
                keeps = is_image and is_shared
                tensors[name] = tensor[None] if keeps else _batched(tensor, dims[name], size)
        tensors["image_index"] = _image_index(tensors, dims["image_index"], size, is_shared)
        shapes = (tensors["input"].shape[:2], tensors["theta"].shape[:2], None)
        for name in ("grad_output", "input", "theta", "input_tangent", "theta_tangent"):
            if tensors.get(name) is not None:
                tensors[name] = tensors[name].flatten(0, 1)
        result = call(*tensors.values(), *rest)
        if not signature.is_gradient:
            return result.unflatten(0, shapes[1]), 0
        grads = tuple(g.unflatten(0, s) if w else g for g, s, w in zip(result, shapes, wanted, strict=True))
        return grads, tuple(0 if w else None for w in wanted)

    return vmap


def _batched(tensor: Tensor, dim: int | None, size: int) -> Tensor:
    """Move the vmapped dimension to the front, or repeat the tensor ``size`` times if it has none."""
    return tensor.expand(size, *tensor.shape) if dim is None else tensor.movedim(dim, 0)


def _image_index(
    tensors: dict[str, Tensor | None], dim: int | None, size: int, is_shared: bool
) -> Tensor | None:
    """The image of each matrix of all calls; None if all images have equally many matrices, in order."""
    input, theta, image_index = (tensors[name] for name in ("input", "theta", "image_index"))
    if image_index is None and not is_shared:
        return None
    images, matrices = input.shape[1], theta.shape[1]
    if image_index is None:
        image_index = torch.arange(matrices, device=theta.device) // (matrices // max(images, 1))
        return image_index.expand(size, -1).flatten()
    image_index = _batched(image_index, dim, size)
    if is_shared:
        return image_index.flatten()
    # An index out of range must not become the index of another call's image.
    first = torch.arange(size, device=theta.device)[:, None] * images
    is_valid = (image_index >= 0) & (image_index < images)
    return torch.where(is_valid, image_index + first, -1).flatten()


def _one_by_one(call, size, dims, arguments, wanted):
    """Run the calls in a loop, where one call cannot replace them."""
    tensors, rest = arguments[: len(dims)], arguments[len(dims) :]
    results = []
    for i in range(size):
        chosen = (t if d is None else t.select(d, i) for t, d in zip(tensors, dims, strict=True))
        results.append(call(*chosen, *rest))
    if not wanted:
        return torch.stack(results), 0
    grads = tuple(
        torch.stack(g) if w else g[0] for g, w in zip(zip(*results, strict=True), wanted, strict=True)
    )
    return grads, tuple(0 if w else None for w in wanted)
