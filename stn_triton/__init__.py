"""The spatial transformer operator for PyTorch, fused in Triton kernels."""

from stn_triton import sharding
from stn_triton.functional import (
    affine_grid_sample,
    perspective_grid_sample,
    thin_plate_spline_grid_sample,
)

__all__ = ["affine_grid_sample", "perspective_grid_sample", "thin_plate_spline_grid_sample"]
__version__ = "0.1.0"

sharding.register_when_imported()
