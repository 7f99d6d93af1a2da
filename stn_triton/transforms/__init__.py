"""Builders of theta, converters from and to other libraries' matrices, products and inverses.

theta maps output positions to input positions, normalised as in ``F.affine_grid``, coordinates ordered
(x, y[, z]). Everything is batched over leading dimensions and differentiable. 16-bit tensors and arrays give
a theta in fp32, because in 16 bits a picture of 256 pixels would be off by half a pixel.
"""

from stn_triton.transforms.algebra import compose, invert
from stn_triton.transforms.arrays import from_cv2, from_dali, from_scipy, to_cv2, to_dali, to_scipy
from stn_triton.transforms.builders import identity, rotation, rotation_3d, scale, shear, translation
from stn_triton.transforms.canvas import expanded_rotation
from stn_triton.transforms.combined import affine, boxes
from stn_triton.transforms.pixels import from_pixels, to_pixels
from stn_triton.transforms.tensors import (
    from_kornia,
    from_monai,
    from_torchvision,
    from_torchvision_affine,
    to_kornia,
    to_monai,
    to_torchvision,
)

__all__ = [
    "affine",
    "boxes",
    "compose",
    "expanded_rotation",
    "from_cv2",
    "from_dali",
    "from_kornia",
    "from_monai",
    "from_pixels",
    "from_scipy",
    "from_torchvision",
    "from_torchvision_affine",
    "identity",
    "invert",
    "rotation",
    "rotation_3d",
    "scale",
    "shear",
    "to_cv2",
    "to_dali",
    "to_kornia",
    "to_monai",
    "to_pixels",
    "to_scipy",
    "to_torchvision",
    "translation",
]
