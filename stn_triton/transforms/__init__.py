"""Builders of theta, products and inverses.

theta maps output positions to input positions, normalised as in ``F.affine_grid``, coordinates ordered
(x, y[, z]). Everything is batched over leading dimensions and differentiable.
"""

from stn_triton.transforms.algebra import compose, invert
from stn_triton.transforms.builders import identity, rotation, rotation_3d, scale, shear, translation
from stn_triton.transforms.combined import affine, boxes

__all__ = [
    "affine",
    "boxes",
    "compose",
    "identity",
    "invert",
    "rotation",
    "rotation_3d",
    "scale",
    "shear",
    "translation",
]
