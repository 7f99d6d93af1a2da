"""The spatial transformer operator for PyTorch, fused in Triton kernels, and the layer on it."""

from stn_triton import nn, transforms
from stn_triton.functional import (
    affine_grid_sample,
    perspective_grid_sample,
    thin_plate_spline_grid_sample,
)
from stn_triton.nn import SpatialTransformer
from stn_triton.tuning import autotune

__all__ = [
    "SpatialTransformer",
    "affine_grid_sample",
    "autotune",
    "nn",
    "perspective_grid_sample",
    "thin_plate_spline_grid_sample",
    "transforms",
]
__version__ = "0.2.0"
