"""Several spatial transformers in a row that sample the original input only once."""

from __future__ import annotations

import inspect

from torch import Tensor, nn

from stn_triton import tracing, transforms, validation
from stn_triton.nn.transformer import SpatialTransformer

# Modules that do not pass their arguments on to a child.
_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


class SpatialTransformerSeries(nn.Module):
    """Alignment in several steps, each of which corrects the steps before it.

    Each stage finds a theta from the output so far, and the product of all thetas so far warps the original
    input. If each stage warped the last output instead, every step would blur the image, and a part cut off
    once would be lost. Here a later stage can bring it back. This is the inverse compositional spatial
    transformer of Lin and Lucey 2017 (arXiv 1612.03897).

    Args:
        stages: layers with equal ``in_channels`` and ``dim``, each with ``transformers=1``, of any transform
            but ``"tps"``, because splines have no product. The same layer several times,
            ``SpatialTransformerSeries(*[layer] * 4)``, makes a recurrent series with the parameters of one
            layer, as in the paper. A stage may be wrapped by a module that passes all arguments on, keywords
            included, such as ``checkpoint_wrapper`` or ``torch.compile``. Forward hooks of a stage get the
            stage's own theta as its output.
        return_theta: whether ``forward`` returns (output, theta).

    Shape:
        Input and output are those of ``SpatialTransformer``, with the size and the options of the last stage.
        Theta is the product of all stages: (N, 2, 3), (N, 3, 4), or (N, 3, 3) if a stage is projective.

    Raises:
        TypeError: a stage is not a ``SpatialTransformer`` and does not wrap one.
        ValueError: there is no stage, or a stage cannot be in a series; the message says which and why.

    Example:
        >>> import torch, stn_triton
        >>> turn = stn_triton.SpatialTransformer(1, transform="rotation")
        >>> crop = stn_triton.SpatialTransformer(1, transform="attention", bounded=True, size=24)
        >>> series = stn_triton.nn.SpatialTransformerSeries(turn, turn, crop, return_theta=True)
        >>> output, theta = series(torch.rand(2, 1, 40, 40))
        >>> output.shape, theta.shape
        (torch.Size([2, 1, 24, 24]), torch.Size([2, 2, 3]))
    """

    def __init__(self, *stages: SpatialTransformer, return_theta: bool = False) -> None:
        super().__init__()
        if not stages:
            raise ValueError("stages must be at least one SpatialTransformer, got none")
        layers, projective = [], False
        for index, stage in enumerate(stages):
            name = f"stages[{index}]"
            layer = spatial_transformer(stage)
            if layer is None:
                raise TypeError(f"{name} must be a SpatialTransformer, {validation.got(stage)}")
            if not _takes_keywords(stage):
                raise TypeError(
                    f"{name} must have a forward that passes keywords on to SpatialTransformer.forward, got "
                    f"{type(stage).__name__}.forward{inspect.signature(stage.forward)}"
                )
            layers.append(layer)
            transform = layer.parametrization.transform
            if transform == "tps":
                raise ValueError(f"{name} must have a matrix for theta, to be composed, got transform='tps'")
            if layer.transformers != 1:
                raise ValueError(f"{name} must have transformers=1, got {layer.transformers}")
            for option in ("dim", "in_channels"):
                first, own = getattr(layers[0], option), getattr(layer, option)
                if own != first:
                    raise ValueError(f"{name} must have {option}={first}, as the first stage has, got {own}")
            projective |= transform == "projective"
            if projective and layer.antialias:
                raise ValueError(
                    f"{name} must have antialias=False, because the map up to it is projective, got True"
                )
        self.stages = nn.ModuleList(stages)
        self.return_theta = validation.flag("return_theta", return_theta)

    @tracing.without_annotations
    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """Warp ``x`` once, by the product of the thetas of all stages."""
        warped, theta = x, None
        for stage in self.stages:
            step = stage(warped, locate_only=True)
            theta = step if theta is None else transforms.compose(theta, step)
            warped = spatial_transformer(stage).warp(x, theta)
        return (warped, theta) if self.return_theta else warped


def _takes_keywords(stage: nn.Module) -> bool:
    """Whether a stage can be called with ``locate_only``."""
    given = inspect.signature(stage.forward).parameters
    return "locate_only" in given or any(p.kind == p.VAR_KEYWORD for p in given.values())


def spatial_transformer(stage: object) -> SpatialTransformer | None:
    """The layer that a stage is or wraps (as checkpointing and compilers wrap modules); else None."""
    while isinstance(stage, nn.Module) and not isinstance(stage, (SpatialTransformer, *_CONTAINERS)):
        inside = list(stage.children())
        stage = inside[0] if len(inside) == 1 else None
    return stage if isinstance(stage, SpatialTransformer) else None
