"""Layers that use the operator: spatial transformers, localisation networks, and aids for training."""

from stn_triton.nn.gradients import scale_gradient
from stn_triton.nn.groups import parameter_groups
from stn_triton.nn.localization import ConvolutionalLocalization, FullyConnectedLocalization
from stn_triton.nn.penalty import outside_penalty
from stn_triton.nn.series import SpatialTransformerSeries
from stn_triton.nn.transformer import SpatialTransformer

__all__ = [
    "ConvolutionalLocalization",
    "FullyConnectedLocalization",
    "SpatialTransformer",
    "SpatialTransformerSeries",
    "outside_penalty",
    "parameter_groups",
    "scale_gradient",
]
