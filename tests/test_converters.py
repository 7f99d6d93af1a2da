"""Converters for matrices of other libraries: the library and the operator give the same picture.

A library that is not installed is skipped. torchvision and DALI are not among the test dependencies, because
torchvision brings its own PyTorch and DALI takes half a gigabyte. Install both by `python -m pip install
torchvision nvidia-dali-cuda130`.
"""

import itertools
import math
from collections.abc import Callable
from fractions import Fraction
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F

from stn_triton import affine_grid_sample, launch, perspective_grid_sample, transforms
from stn_triton.options import Options
from stn_triton.transforms import horizon

DOUBLE = torch.float64
try:
    import cv2
except ImportError:
    cv2 = None
# OpenCV 4 rounds positions to 1/32 of a pixel, which changes a picture in [0, 1] by up to 1/32.
OPENCV = 1 / 32 if cv2 is None or cv2.__version__.startswith("4") else 1e-5


def randn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE)


def picture(size):
    return torch.rand(size, generator=torch.Generator().manual_seed(5), dtype=DOUBLE)


def warp_cv2(image, matrix, size, inverse_map=True):
    pytest.importorskip("cv2", reason="opencv-python-headless is not installed")
    function = cv2.warpAffine if matrix.shape == (2, 3) else cv2.warpPerspective
    flags = cv2.INTER_LINEAR | (cv2.WARP_INVERSE_MAP if inverse_map else 0)
    return torch.from_numpy(function(image.float().numpy(), matrix.numpy(), size[::-1], flags=flags)).double()


def warp_cv2_forward(image, matrix, size):
    return warp_cv2(image, matrix, size, inverse_map=False)


def warp_scipy(image, matrix, size):
    ndimage = pytest.importorskip("scipy.ndimage", reason="scipy is not installed")
    warped = ndimage.affine_transform(image.numpy(), matrix.numpy(), output_shape=size, order=1)
    return torch.from_numpy(warped)


def warp_kornia(image, matrix, size, align_corners=True):
    kornia = pytest.importorskip("kornia", minversion="0.9", reason="kornia 0.9 is not installed")
    geometry = kornia.geometry.transform
    function = {
        (2, 3): geometry.warp_affine,
        (3, 3): geometry.warp_perspective,
        (3, 4): geometry.warp_affine3d,
    }[tuple(matrix.shape)]
    return function(image[None, None], matrix[None], size, align_corners=align_corners)[0, 0]


def warp_kornia_without_corners(image, matrix, size):
    return warp_kornia(image, matrix, size, align_corners=False)


def torchvision():
    try:
        return pytest.importorskip(
            "torchvision.transforms.v2.functional", reason="torchvision is not installed"
        )
    except RuntimeError as error:  # torchvision was built for another PyTorch
        pytest.skip(f"torchvision cannot be imported: {error}")


def warp_torchvision(image, coefficients, size):
    functional = torchvision()
    assert size == tuple(image.shape)
    return functional.perspective(image[None], None, None, coefficients=coefficients.tolist())[0]


def warp_monai(image, matrix, size, align_corners=True):
    monai = pytest.importorskip("monai", minversion="1.6", reason="monai 1.6 is not installed")
    layer = monai.networks.layers.AffineTransform(size, align_corners=align_corners)
    return layer(image[None, None], matrix)[0, 0]


def warp_monai_without_corners(image, matrix, size):
    return warp_monai(image, matrix, size, align_corners=False)


def warp_monai_about_the_centre(image, matrix, size):
    monai = pytest.importorskip("monai", minversion="1.6", reason="monai 1.6 is not installed")
    affine = monai.transforms.Affine(
        affine=matrix, spatial_size=size, padding_mode="zeros", dtype=DOUBLE, image_only=True
    )
    return torch.as_tensor(affine(image[None])[0]).double()


def warp_dali(image, matrix, size, inverse_map=True):
    fn = pytest.importorskip("nvidia.dali.fn", reason="nvidia-dali is not installed")
    from nvidia.dali import pipeline_def

    @pipeline_def(batch_size=1, num_threads=1, device_id=None)  # the CPU
    def pipeline():
        data = fn.external_source(
            lambda: [image.float().unsqueeze(-1).numpy()], layout="HWC" if image.ndim == 2 else "DHWC"
        )
        return fn.warp_affine(
            data, matrix=matrix.float().flatten().tolist(), size=size, inverse_map=inverse_map, fill_value=0
        )

    built = pipeline()
    built.build()
    return torch.from_numpy(built.run()[0].as_array()[0, ..., 0].copy()).double()


def warp_dali_forward(image, matrix, size):
    return warp_dali(image, matrix, size, inverse_map=False)


class Convention(NamedTuple):
    warp: Callable
    convert: Callable  # from the library's matrix to theta
    back: Callable
    options: dict = {}  # noqa: RUF012
    tolerance: float = 1e-9
    shape: tuple[int, ...] = (2, 3)  # of theta
    resizes: bool = True

    @property
    def size_in(self):
        return (13, 10, 12) if self.shape == (3, 4) else (14, 19)

    @property
    def size_out(self):
        return (11, 13, 10) if self.shape == (3, 4) else (17, 12)


T = transforms
CV2, SCIPY, KORNIA = (T.from_cv2, T.to_cv2), (T.from_scipy, T.to_scipy), (T.from_kornia, T.to_kornia)
MONAI, DALI, VISION = (
    (T.from_monai, T.to_monai),
    (T.from_dali, T.to_dali),
    (T.from_torchvision, T.to_torchvision),
)
INVERSE, FORWARD, CENTERED = {"inverse_map": True}, {"inverse_map": False}, {"zero_centered": True}
VOLUME, PERSPECTIVE = {"shape": (3, 4)}, {"shape": (3, 3)}
CONVENTIONS = {
    "cv2, WARP_INVERSE_MAP": Convention(warp_cv2, *CV2, INVERSE, OPENCV),
    "cv2": Convention(warp_cv2_forward, *CV2, FORWARD, OPENCV),
    "cv2, perspective": Convention(warp_cv2_forward, *CV2, tolerance=OPENCV, **PERSPECTIVE),
    "scipy": Convention(warp_scipy, *SCIPY),
    "scipy, volumes": Convention(warp_scipy, *SCIPY, **VOLUME),
    "kornia": Convention(warp_kornia, *KORNIA),
    "kornia, align_corners=False": Convention(warp_kornia_without_corners, *KORNIA),
    "kornia, perspective": Convention(warp_kornia, *KORNIA, **PERSPECTIVE),
    "kornia, volumes": Convention(warp_kornia, *KORNIA, **VOLUME),
    "monai, AffineTransform": Convention(warp_monai, *MONAI),
    "monai, AffineTransform, align_corners=False": Convention(warp_monai_without_corners, *MONAI),
    "monai, AffineTransform, volumes": Convention(warp_monai, *MONAI, **VOLUME),
    "monai, Affine": Convention(warp_monai_about_the_centre, *MONAI, CENTERED, 1e-6),
    "monai, Affine, volumes": Convention(warp_monai_about_the_centre, *MONAI, CENTERED, 1e-6, **VOLUME),
    "dali": Convention(warp_dali, *DALI, INVERSE, 1e-4),
    "dali, inverse_map=False": Convention(warp_dali_forward, *DALI, FORWARD, 1e-4),
    "dali, volumes": Convention(warp_dali, *DALI, INVERSE, 1e-4, **VOLUME),
    "torchvision, perspective": Convention(
        warp_torchvision, *VISION, tolerance=1e-9, shape=(3, 3), resizes=False
    ),
}


def cases():
    """List each convention with equal sizes and, if its library can resize, with unequal sizes."""
    for name, convention in CONVENTIONS.items():
        yield pytest.param(convention, convention.size_in, id=f"{name}-equal sizes")
        if convention.resizes:
            yield pytest.param(convention, convention.size_out, id=f"{name}-unequal sizes")


def pixels_near_identity(convention, seed=0):
    """Make a matrix from output to input pixels that turns, stretches and shears a little."""
    dim = convention.shape[-1] - 1
    matrix = torch.eye(*convention.shape, dtype=DOUBLE) + 0.08 * randn(*convention.shape, seed=seed)
    matrix[:dim, dim] = 1.3 + randn(dim, seed=seed + 1).clamp(-0.8, 0.8)
    if convention.shape == (3, 3):
        matrix[2] = torch.tensor([0.004, -0.006, 1.0])
    return matrix


def operator(image, theta, size, align_corners):
    sample = perspective_grid_sample if theta.shape == (3, 3) else affine_grid_sample
    return sample(image[None, None], theta[None], size, align_corners=align_corners)[0, 0]


def inside(matrix, size_in, size_out):
    """Mask of output pixels whose taps all lie in the input; elsewhere libraries pad differently."""
    indices = torch.meshgrid([torch.arange(extent, dtype=DOUBLE) for extent in size_out], indexing="ij")
    points = torch.stack((*reversed(indices), torch.ones_like(indices[0])), -1) @ matrix.mT
    if matrix.shape == (3, 3):
        points = points[..., :2] / points[..., 2:]
    last = torch.tensor([extent - 1.1 for extent in reversed(size_in)])
    return ((points > 0.1) & (points < last)).all(-1)


def compare(actual, expected, where, tolerance):
    assert actual.shape == expected.shape == where.shape
    assert where.double().mean() > 0.25, "too little of the picture is compared"
    torch.testing.assert_close(actual[where], expected[where], rtol=0, atol=tolerance)


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize(("convention", "size_out"), list(cases()))
class TestConventions:
    def test_the_same_picture(self, convention, size_out, align_corners):
        """Convert theta to a library's matrix and back; compare both pictures with the library's."""
        sizes = (convention.size_in, size_out)
        image = picture(convention.size_in)
        pixels = pixels_near_identity(convention)
        theta = transforms.from_pixels(pixels, *sizes, align_corners=align_corners)
        matrix = convention.back(theta, *sizes, align_corners=align_corners, **convention.options)
        theirs = convention.warp(image, matrix, size_out)
        where = inside(pixels, *sizes)
        compare(operator(image, theta, size_out, align_corners), theirs, where, convention.tolerance)
        converted = convention.convert(matrix, *sizes, align_corners=align_corners, **convention.options)
        compare(operator(image, converted, size_out, align_corners), theirs, where, convention.tolerance)

    def test_there_and_back(self, convention, size_out, align_corners):
        sizes, options = (
            (convention.size_in, size_out),
            {"align_corners": align_corners, **convention.options},
        )
        pixels = torch.stack([pixels_near_identity(convention, seed) for seed in range(6)]).unflatten(
            0, (2, 3)
        )
        theta = transforms.from_pixels(pixels, *sizes, align_corners=align_corners)
        if convention.warp is warp_torchvision:  # its matrices end in 1
            theta = theta / transforms.to_pixels(theta, *sizes, align_corners=align_corners)[..., 2:, 2:]
        matrix = convention.back(theta, *sizes, **options)
        again = convention.convert(matrix, *sizes, **options)
        if convention.warp is warp_torchvision:
            theta, again = theta / theta[..., 2:, 2:], again / again[..., 2:, 2:]
        torch.testing.assert_close(again, theta, rtol=0, atol=1e-13)
        torch.testing.assert_close(convention.back(again, *sizes, **options), matrix, rtol=0, atol=1e-12)
        one = convention.back(theta[1, 2], *sizes, **options)
        torch.testing.assert_close(one, matrix[1, 2], rtol=0, atol=1e-13)

    def test_whole_pixels(self, convention, size_out, align_corners):
        """After a shift by whole pixels, the library and the operator give exactly the same pixels."""
        sizes, options = (
            (convention.size_in, size_out),
            {"align_corners": align_corners, **convention.options},
        )
        image = picture(convention.size_in)
        dim = image.ndim
        pixels = torch.eye(*convention.shape, dtype=DOUBLE)
        pixels[:dim, dim] = torch.tensor([2.0, -1.0, 3.0])[:dim]
        padded = F.pad(image, (4, 12) * dim)
        starts = [4 + int(shift) for shift in reversed(pixels[:dim, dim].tolist())]
        expected = padded[tuple(slice(a, a + extent) for a, extent in zip(starts, size_out, strict=True))]
        theta = transforms.from_pixels(pixels, *sizes, align_corners=align_corners)
        torch.testing.assert_close(
            operator(image, theta, size_out, align_corners), expected, rtol=0, atol=1e-12
        )
        matrix = convention.back(theta, *sizes, **options)
        # Entries are whole, or halves if positions count from the centres of images of odd and even size.
        torch.testing.assert_close(matrix, (2 * matrix).round() / 2, rtol=0, atol=1e-12)
        theirs = convention.warp(image, matrix, size_out)
        compare(theirs, expected, inside(pixels, *sizes), min(convention.tolerance, 1e-4))


def test_everything_is_differentiable():
    for name, convention in CONVENTIONS.items():
        matrix = pixels_near_identity(convention).requires_grad_()
        sizes = (convention.size_in, convention.size_out)
        theta = transforms.from_pixels(matrix.detach(), *sizes).requires_grad_()

        def back(theta, convention=convention, sizes=sizes):
            return convention.back(theta, *sizes, **convention.options)

        def there(matrix, convention=convention, sizes=sizes):
            return convention.convert(matrix, *sizes, **convention.options)

        assert torch.autograd.gradcheck(back, theta), name
        assert torch.autograd.gradcheck(there, back(theta).detach().requires_grad_()), name


@pytest.mark.parametrize("name", ["dali", "dali, volumes", "torchvision, perspective"])
def test_zero_is_the_corner_of_the_first_pixel(name):
    """Checked without the library: -1 is position 0, the corner, and 1 is the image's extent."""
    convention = CONVENTIONS[name]
    convert, size_in, size_out = convention.convert, convention.size_in, convention.size_out
    matrix = pixels_near_identity(convention)
    given = matrix.flatten()[:8] if convention.shape == (3, 3) else matrix
    theta = convert(given, size_in, size_out)
    extent_in, extent_out = (torch.tensor(size[::-1], dtype=DOUBLE) for size in (size_in, size_out))
    dim = len(size_in)
    one = torch.ones(1, dtype=DOUBLE)
    for position in (torch.full((dim,), 0.5, dtype=DOUBLE), extent_out - 0.5, torch.arange(dim) + 2.25):
        theirs = matrix @ torch.cat((position, one))
        ours = theta @ torch.cat((2 * position / extent_out - 1, one))
        theirs, ours = (
            point[:dim] / (point[dim] if convention.shape == (3, 3) else 1) for point in (theirs, ours)
        )
        torch.testing.assert_close((ours + 1) / 2 * extent_in, theirs, rtol=0, atol=1e-12)


@pytest.mark.parametrize("size_in", [(14, 19), (14, 18)], ids=str)
@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize(
    "parameters",
    [
        {"angle": 30.0, "translate": (3, -2), "scale": 1.2, "shear": (10.0, -5.0)},
        {"angle": -110.0, "translate": (0, 0), "scale": 0.8, "shear": (0.0, 20.0), "center": [4.0, 7.5]},
        {"angle": 0.0, "translate": (2, -1), "scale": 1.0, "shear": (0.0, 0.0)},
    ],
    ids=["everything", "about a point", "whole pixels"],
)
def test_parameters_of_torchvision(size_in, align_corners, parameters):
    functional = torchvision()
    image = picture(size_in)
    bilinear = functional.InterpolationMode.BILINEAR
    theirs = functional.affine(image[None], interpolation=bilinear, **parameters)[0]
    given = {**parameters, "angle": torch.tensor(parameters["angle"], dtype=DOUBLE)}
    theta = transforms.from_torchvision_affine(size_in, align_corners=align_corners, **given)
    where = inside(transforms.to_pixels(theta, size_in, align_corners=align_corners), size_in, size_in)
    compare(operator(image, theta, size_in, align_corners), theirs, where, 1e-9)


def test_parameters_of_torchvision_are_a_product():
    """torchvision documents T C R SHy SHx scale C^-1, in pixels from the corner. Runs without torchvision."""
    angle, (tx, ty), scale, (sx, sy), (cx, cy) = 30.0, (3.0, -2.0), 1.2, (10.0, -5.0), (4.0, 7.5)
    c, s = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    slant_x, slant_y = math.tan(math.radians(sx)), math.tan(math.radians(sy))
    factors = [
        [[1, 0, tx + cx], [0, 1, ty + cy], [0, 0, 1]],
        [[c, -s, 0], [s, c, 0], [0, 0, 1]],
        [[1, 0, 0], [-slant_y, 1, 0], [0, 0, 1]],
        [[1, -slant_x, 0], [0, 1, 0], [0, 0, 1]],
        [[scale, 0, 0], [0, scale, 0], [0, 0, 1]],
        [[1, 0, -cx], [0, 1, -cy], [0, 0, 1]],
    ]
    forward = torch.linalg.multi_dot([torch.tensor(factor, dtype=DOUBLE) for factor in factors])
    theta = transforms.from_torchvision_affine(
        (14, 19),
        angle=torch.tensor(angle).double(),
        translate=(tx, ty),
        scale=scale,
        shear=(sx, sy),
        center=(cx, cy),
    )
    # DALI's positions count from the corner too.
    expected = transforms.from_dali(forward[:2], (14, 19), inverse_map=False)
    torch.testing.assert_close(theta, expected, rtol=0, atol=1e-13)


def test_parameters_of_torchvision_are_batched_and_differentiable():
    def convert(angle, translate, scale, shear, center):
        return transforms.from_torchvision_affine(
            (14, 19), angle=angle, translate=translate, scale=scale, shear=shear, center=center
        )

    arguments = [20 * randn(2, 3), randn(2, 3, 2), 1 + randn(3).abs(), 10 * randn(2, 1, 2), randn(3, 2)]
    arguments = [argument.requires_grad_() for argument in arguments]
    theta = convert(*arguments)
    assert theta.shape == (2, 3, 2, 3)
    one = convert(*[a[i] for a, i in zip(arguments, ((1, 2), (1, 2), 2, (1, 0), 2), strict=True)])
    torch.testing.assert_close(theta[1, 2], one)
    assert torch.autograd.gradcheck(convert, arguments)


def test_drawn_parameters_of_torchvision_are_keywords():
    v2 = torchvision() and pytest.importorskip("torchvision.transforms.v2")
    image = picture((14, 19))
    drawn = v2.RandomAffine(20, (0.1, 0.1), (0.8, 1.2), 10).make_params([image[None]])
    theta = transforms.from_torchvision_affine((14, 19), **drawn)
    theirs = v2.functional.affine(image[None], interpolation=v2.InterpolationMode.BILINEAR, **drawn)[0]
    where = inside(transforms.to_pixels(theta.double(), (14, 19)), (14, 19), (14, 19))
    compare(operator(image, theta, (14, 19), False), theirs, where, 1e-5)


def test_scipy_takes_the_offset_apart():
    ndimage = pytest.importorskip("scipy.ndimage", reason="scipy is not installed")
    image = picture((14, 19))
    matrix, offset = torch.eye(2, dtype=DOUBLE) + 0.1 * randn(2, 2), torch.tensor([1.7, 0.6], dtype=DOUBLE)
    theirs = ndimage.affine_transform(image.numpy(), matrix.numpy(), offset.numpy(), order=1)
    theta = transforms.from_scipy(matrix.numpy(), image.shape, offset=offset.numpy())
    where = inside(transforms.to_pixels(theta, image.shape), image.shape, image.shape)
    compare(operator(image, theta, image.shape, False), torch.from_numpy(theirs), where, 1e-9)
    square = torch.eye(3, dtype=DOUBLE)
    square[:2, :2], square[:2, 2] = matrix, offset
    assert torch.equal(transforms.from_scipy(square, image.shape), theta)
    assert torch.equal(
        transforms.from_scipy(torch.stack((matrix, matrix)), image.shape, offset=offset),
        theta.expand(2, 2, 3),
    )


def test_volumes_of_kornia_without_align_corners():
    """Here kornia normalises as with align_corners=True; the docstring says how to get the same."""
    image = picture((13, 10, 12))
    convention = CONVENTIONS["kornia, volumes"]
    matrix = transforms.invert(pixels_near_identity(convention))
    theirs = warp_kornia(image, matrix, convention.size_out, align_corners=False)
    theta = transforms.from_kornia(matrix, convention.size_in, convention.size_out, align_corners=True)
    ours = operator(image, theta, convention.size_out, False)
    as_true = transforms.to_pixels(theta, convention.size_in, convention.size_out)
    compare(ours, theirs, inside(as_true, convention.size_in, convention.size_out), 1e-9)


def test_boxes_are_what_roi_align_samples():
    torchvision()
    from torchvision.ops import roi_align

    features, boxes = (
        randn(2, 3, 14, 19),
        torch.tensor([[3.0, 2.0, 9.5, 11.0], [1.2, 1.7, 17.3, 12.9]], dtype=DOUBLE),
    )
    index = torch.tensor([1, 0])
    rois = torch.cat((index[:, None], boxes), dim=1)
    theirs = roi_align(features, rois, (5, 7), sampling_ratio=1, aligned=True)
    ours = affine_grid_sample(features, transforms.boxes(boxes, (14, 19)), (5, 7), image_index=index)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)


def homography(source, target):
    """Find matrices (..., 3, 3) that map four points (x, y), (..., 4, 2), to four others."""
    source, target = torch.broadcast_tensors(source, target)
    x, y = source.unbind(-1)
    zero, one = torch.zeros_like(x), torch.ones_like(x)
    rows = []
    for u, first in zip(target.unbind(-1), (True, False), strict=True):
        own, rest = [x, y, one], [zero, zero, zero]
        rows.append(torch.stack([*(own + rest if first else rest + own), -u * x, -u * y], -1))
    entries = torch.linalg.solve(torch.cat(rows, -2), target.mT.flatten(-2).unsqueeze(-1)).squeeze(-1)
    return torch.cat((entries, torch.ones_like(entries[..., :1])), -1).unflatten(-1, (3, 3))


def corners_of(size):
    height, width = (extent - 1.0 for extent in size)
    return torch.tensor([[0, 0], [width, 0], [width, height], [0, height]], dtype=DOUBLE)


def seen_pixels(theta, size_out):
    """Count the output pixels of homographies (N, 3, 3) that show the input, with Z > 0 and with Z < 0."""
    y, x = torch.meshgrid(*[(2 * torch.arange(n, dtype=DOUBLE) + 1) / n - 1 for n in size_out], indexing="ij")
    points = torch.stack((x, y, torch.ones_like(x)), -1).flatten(0, 1) @ theta.mT
    inside = (points[..., :2].abs() < points[..., 2:].abs()).all(-1)
    return [(inside & (sign * points[..., 2] > 0)).sum(-1) for sign in (1, -1)]


def exact_area(matrix, sign):
    """Area of the output, [-1, 1] x [-1, 1], that shows the input under a sign, clipped edge by edge."""
    x, y, z = [[sign * Fraction(number) for number in row] for row in matrix]
    corners = [(Fraction(u), Fraction(v)) for u, v in ((-1, -1), (1, -1), (1, 1), (-1, 1))]
    for row, side in itertools.product((x, y), (-1, 1)):
        bound = [a + side * b for a, b in zip(z, row, strict=True)]
        kept = []
        for a, b in zip(corners, corners[1:] + corners[:1], strict=True):
            at_a, at_b = (bound[0] * p[0] + bound[1] * p[1] + bound[2] for p in (a, b))
            if at_a >= 0:
                kept.append(a)
            if at_a * at_b < 0:
                t = at_a / (at_a - at_b)
                kept.append(tuple(p + t * (q - p) for p, q in zip(a, b, strict=True)))
        corners = kept
    edges = zip(corners, corners[1:] + corners[:1], strict=True)
    return sum(p[0] * q[1] - p[1] * q[0] for p, q in edges) / 2


def last_is_one(matrix):
    return matrix / matrix[..., 2:, 2:]


def same_side(theirs, theta, size_in, size_out, tolerance):
    """Compare a library's picture before the horizon; return the share of pixels compared."""
    ours = operator(picture(size_in), theta, size_out, False)
    pixels = transforms.to_pixels(theta, size_in, size_out)
    y, x = torch.meshgrid(*[torch.arange(n, dtype=DOUBLE) for n in size_out], indexing="ij")
    where = inside(pixels, size_in, size_out) & ((pixels[2, 0] * x + pixels[2, 1] * y + pixels[2, 2]) > 0)
    torch.testing.assert_close(ours[where], theirs[where], rtol=0, atol=tolerance)
    return where.double().mean()


# A road from above, and planes so steep that pixel (0, 0) lies beyond their horizon.
ROAD = torch.tensor([[64, 70], [96, 70], [150, 119], [10, 119]], dtype=DOUBLE)
STEEP = torch.tensor([[140, 60], [180, 60], [300, 200], [20, 200]], dtype=DOUBLE)
BEYOND = {  # matrix from input to output pixels that ends in 1; both sizes
    "a road from above": (homography(ROAD, corners_of((80, 100))), (120, 160), (80, 100)),
    "a picture on the road": (last_is_one(homography(corners_of((100, 100)), STEEP)), (100, 100), (240, 320)),
    "its inverse": (homography(STEEP, corners_of((100, 100))), (240, 320), (100, 100)),
}
ROUTES = {
    "cv2": lambda m, *sizes: transforms.from_cv2(m, *sizes),
    "cv2, inverse_map": lambda m, *sizes: transforms.from_cv2(
        last_is_one(torch.linalg.inv(m)), *sizes, inverse_map=True
    ),
    "cv2, there and back": lambda m, *sizes: transforms.from_cv2(
        last_is_one(transforms.to_cv2(transforms.from_cv2(m, *sizes), *sizes)), *sizes
    ),
    "kornia": lambda m, *sizes: transforms.from_kornia(m, *sizes),
    "torchvision": lambda m, *sizes: transforms.from_torchvision(
        transforms.to_torchvision(transforms.from_cv2(m, *sizes), *sizes), *sizes
    ),
    "align_corners": lambda m, *sizes: transforms.from_pixels(
        transforms.to_pixels(transforms.from_cv2(m, *sizes, align_corners=True), *sizes, align_corners=True),
        *sizes,
    ),
}


class TestHorizon:
    @pytest.mark.parametrize("route", ROUTES)
    @pytest.mark.parametrize("name", BEYOND)
    @pytest.mark.sample(6)
    def test_what_lies_beyond_the_horizon_of_the_first_pixel_is_seen(self, name, route):
        matrix, *sizes = BEYOND[name]
        theta = ROUTES[route](matrix, *sizes)
        before, behind = seen_pixels(theta, sizes[1])
        assert before > 0.2 * math.prod(sizes[1])
        assert behind == 0
        shown = operator(torch.ones(sizes[0], dtype=DOUBLE), theta, sizes[1], False)
        assert shown.sum() > 0.9 * before

    @pytest.mark.parametrize("warp", [warp_cv2_forward, warp_kornia])
    @pytest.mark.parametrize("name", BEYOND)
    def test_as_the_library_shows_it(self, name, warp):
        matrix, *sizes = BEYOND[name]
        convert = transforms.from_kornia if warp is warp_kornia else transforms.from_cv2
        theirs = warp(picture(sizes[0]), matrix, sizes[1])
        # A step of one output pixel is up to ten input pixels, which enlarges cv2's rounding error.
        assert same_side(theirs, convert(matrix, *sizes), *sizes, max(1e-3, OPENCV)) > 0.2

    def test_random_quadrilaterals_show_the_larger_side(self):
        """The horizon lies in the output of one in ten; sides are counted pixel by pixel."""
        sizes, n = ((24, 32), (30, 26)), 1500
        extent = torch.tensor([sizes[1][1], sizes[1][0]], dtype=DOUBLE)
        target = corners_of(sizes[1]) + 1.2 * extent * (2 * picture((n, 4, 2)) - 1)
        matrix = homography(corners_of(sizes[0]), target)
        for given, inverse_map in ((matrix, False), (last_is_one(torch.linalg.inv(matrix)), True)):
            for align_corners in (False, True):
                theta = transforms.from_cv2(
                    given, *sizes, inverse_map=inverse_map, align_corners=align_corners
                )
                pixels = transforms.to_pixels(theta, *sizes, align_corners=align_corners)
                before, behind = seen_pixels(transforms.from_pixels(pixels, *sizes), sizes[1])
                slack = 0.02 * math.prod(sizes[1])  # pixels cut by the border of a side
                assert ((before >= behind - slack) | (before + behind < slack)).all()
                assert ((before > slack) & (behind > slack)).sum() > n / 50
                kept = transforms.from_pixels(pixels_of(given, inverse_map), *sizes)
                before, behind = seen_pixels(kept, sizes[1])
                assert (behind > before).sum() > n / 50, "no sign had to be turned"

    def test_random_quadrilaterals_of_cv2(self):
        sizes = ((24, 32), (30, 26))
        extent = torch.tensor([sizes[1][1], sizes[1][0]], dtype=DOUBLE)
        target = corners_of(sizes[1]) + 0.8 * extent * (2 * picture((40, 4, 2)) - 1)
        matrices = homography(corners_of(sizes[0]), target)
        compared = 0
        for matrix in matrices:
            theirs = warp_cv2(picture(sizes[0]), matrix, sizes[1], inverse_map=False)
            compared += (
                same_side(theirs, transforms.from_cv2(matrix, *sizes), *sizes, max(1e-3, 2 * OPENCV)) > 0
            )
        assert compared > 30

    def test_drawn_perspectives_of_torchvision(self):
        functional = torchvision()
        v2 = pytest.importorskip("torchvision.transforms.v2")
        torch.manual_seed(0)
        size, turned = (40, 56), 0
        image = picture(size)
        for _ in range(60):
            coefficients = v2.RandomPerspective(1.0, p=1.0).make_params([image[None]])["coefficients"]
            theirs = functional.perspective(image[None], None, None, coefficients=coefficients)[0]
            theta = transforms.from_torchvision(torch.tensor(coefficients, dtype=DOUBLE), size)
            same_side(theirs, theta, size, size, 1e-9)
            turned += theta[2] @ torch.tensor([-1.0, -1.0, 1.0], dtype=DOUBLE) < 0
            before, behind = seen_pixels(theta, size)
            assert before + 20 >= behind
        assert turned > 5

    def test_edges_of_the_input_on_edges_of_the_output(self):
        """Lines coincide or are parallel up to rounding; the expected areas are exact fractions."""
        numbers = torch.arange(-5, 6, dtype=DOUBLE) / 2
        picks = torch.randint(11, (400, 3, 3), generator=torch.Generator().manual_seed(0))
        found = torch.tensor([[[1.5, -2, -2.5], [-2, -1, 1], [1, -2, -2]]], dtype=DOUBLE)
        matrices = torch.cat((found, numbers[picks]))
        matrices = matrices[torch.linalg.det(matrices).abs() > 1e-9]
        differences = [exact_area(m.tolist(), 1) - exact_area(m.tolist(), -1) for m in matrices]
        assert sum(d == 0 for d in differences) < len(differences) / 2
        for dtype in (DOUBLE, torch.float32):
            signs = horizon.sign(matrices.to(dtype)).flatten().tolist()
            wrong = [m for m, d, s in zip(matrices, differences, signs, strict=True) if d * s < 0]
            assert not wrong

    def test_fp32_homographies_of_any_scale(self):
        sizes = ((400, 500), (400, 500))
        matrix = torch.tensor([[1.1, 0.1, 3], [0.05, 0.9, 2], [0.001, 0.002, 1]], dtype=DOUBLE)
        expected = last_is_one(transforms.from_cv2(matrix, *sizes))
        for scale in (1e-6, 1e-3, 1.0, 1e4):
            theta = last_is_one(transforms.from_cv2((scale * matrix).float(), *sizes).double())
            torch.testing.assert_close(theta, expected, rtol=0, atol=2e-6)

    def test_the_sign_stays_where_nothing_is_seen_and_in_from_pixels(self):
        far = torch.eye(3, dtype=DOUBLE)
        far[0, 2] = 1000.0
        for matrix in (far, -far):
            theta = transforms.from_cv2(matrix, (5, 7), inverse_map=True)
            assert torch.equal(theta, transforms.from_pixels(matrix, (5, 7)))
        nowhere = torch.full((3, 3), math.nan)
        assert transforms.from_cv2(nowhere, (5, 7), inverse_map=True).isnan().all()
        negative = -torch.eye(3, dtype=DOUBLE)
        assert torch.equal(transforms.from_pixels(negative, (5, 7)), negative)
        assert torch.equal(transforms.from_cv2(negative, (5, 7), inverse_map=True), -negative)


def pixels_of(matrix, inverse_map):
    return matrix if inverse_map else transforms.invert(matrix)


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize(
    ("mode", "padding_mode", "only"),
    [
        ("grid-constant", "zeros", None),
        ("nearest", "border", None),
        ("reflect", "reflection", False),
        ("mirror", "reflection", True),
        ("grid-wrap", "wrap", None),
        ("constant", None, None),
        ("wrap", None, None),
    ],
)
def test_modes_of_scipy(mode, padding_mode, only, align_corners):
    ndimage = pytest.importorskip("scipy.ndimage", reason="scipy is not installed")
    sizes = ((9, 7), (30, 25))
    matrix = torch.tensor([[0.9, 0.2, -6.3], [-0.15, 1.1, -5.2]], dtype=DOUBLE)
    theirs = ndimage.affine_transform(
        picture(sizes[0]).numpy(), matrix.numpy(), output_shape=sizes[1], order=1, mode=mode
    )
    theta = transforms.from_scipy(matrix, *sizes, align_corners=align_corners)
    for padding in ("zeros", "border", "reflection", "wrap"):
        ours = affine_grid_sample(
            picture(sizes[0])[None, None],
            theta[None],
            sizes[1],
            padding_mode=padding,
            align_corners=align_corners,
        )
        is_equal = (ours[0, 0] - torch.from_numpy(theirs)).abs().max() < 1e-9
        assert is_equal == (padding == padding_mode and only in (None, align_corners)), padding


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize(
    ("mode", "padding_mode", "only"),
    [
        ("BORDER_CONSTANT", "zeros", None),
        ("BORDER_REPLICATE", "border", None),
        ("BORDER_REFLECT", "reflection", False),
        ("BORDER_REFLECT_101", "reflection", True),
        ("BORDER_WRAP", "wrap", None),
    ],
)
def test_border_modes_of_cv2(mode, padding_mode, only, align_corners):
    pytest.importorskip("cv2", reason="opencv-python-headless is not installed")
    sizes = ((9, 7), (30, 25))
    matrix = torch.tensor([[0.9, 0.2, -6.3], [-0.15, 1.1, -5.2]], dtype=DOUBLE)
    theirs = cv2.warpAffine(
        picture(sizes[0]).float().numpy(),
        matrix.numpy(),
        sizes[1][::-1],
        flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
        borderMode=getattr(cv2, mode),
    )
    theta = transforms.from_cv2(matrix, *sizes, inverse_map=True, align_corners=align_corners)
    options = {"padding_mode": padding_mode, "align_corners": align_corners}
    ours = affine_grid_sample(picture(sizes[0])[None, None], theta[None], sizes[1], **options)[0, 0]
    is_equal = (ours - torch.from_numpy(theirs)).abs().max() < 2 * OPENCV
    assert is_equal == (only in (None, align_corners))


@pytest.mark.parametrize("name", CONVENTIONS)
def test_16_bit_matrices_are_computed_in_fp32(name):
    """Half a pixel's sum in bf16 put a picture of 203 pixels off by 0.003 pixels."""
    convention = CONVENTIONS[name]
    sizes = ((203, 203),) * 2 if convention.shape != (3, 4) else ((20, 203, 203),) * 2
    pixels = pixels_near_identity(convention).bfloat16()
    for convert in (convention.convert, convention.back):
        given = pixels.flatten()[:8] if convert is transforms.from_torchvision else pixels
        result = convert(given, *sizes, **convention.options)
        assert result.dtype == torch.float32
        assert torch.equal(result, convert(given.float(), *sizes, **convention.options))


def test_torchvision_weighs_the_picture_twice_beside_a_fill_value():
    functional = torchvision()
    image = torch.full((1, 1, 16, 16), 255.0, dtype=DOUBLE)
    half_a_pixel = [1.0, 0.0, 0.5, 0.0, 1.0, 0.0, 0.0, 0.0]
    theta = transforms.from_torchvision(torch.tensor(half_a_pixel, dtype=DOUBLE), (16, 16))[None]
    ours = perspective_grid_sample(image, theta, padding_mode="fill", fill_value=0.0)
    bilinear = functional.InterpolationMode.BILINEAR
    for fill, share in ((None, 0.5), ([0.0], 0.25)):
        arguments = {"coefficients": half_a_pixel, "interpolation": bilinear, "fill": fill}
        theirs = functional.perspective(image, None, None, **arguments)
        torch.testing.assert_close(theirs[..., :-1], ours[..., :-1])
        torch.testing.assert_close(theirs[..., -1], share * image[..., -1])
    torch.testing.assert_close(ours[..., -1], 0.5 * image[..., -1])


def test_boxes_without_area_sample_a_point_and_roi_align_nothing():
    torchvision()
    from torchvision.ops import roi_align

    features = 1 + picture((1, 2, 9, 9))
    box = torch.tensor([[3.2, 2.1, 3.2, 2.1]], dtype=DOUBLE)
    rois = torch.cat((torch.zeros(1, 1, dtype=DOUBLE), box), 1)
    assert not roi_align(features, rois, (2, 2), aligned=True).any()
    ours = affine_grid_sample(features, transforms.boxes(box, (9, 9)), (2, 2))
    torch.testing.assert_close(ours, roi_align(features, rois, (2, 2), sampling_ratio=1, aligned=True))
    assert ours.min() >= 1


@pytest.mark.parametrize("angle", [0.0, 30.0, -75.0])
def test_boxes_turn_as_those_of_cv2(angle):
    """cv2 orders corners as bottom left, top left, top right, bottom right."""
    pytest.importorskip("cv2", reason="opencv-python-headless is not installed")
    points = torch.from_numpy(cv2.boxPoints(((9.0, 6.0), (8.0, 5.0), angle))).double()
    box = torch.tensor([5.0, 3.5, 13.0, 8.5], dtype=DOUBLE)
    theta = transforms.boxes(box, (14, 19), angle=torch.tensor(math.radians(angle), dtype=DOUBLE))
    corners = torch.tensor([[-1, 1, 1], [-1, -1, 1], [1, -1, 1], [1, 1, 1]], dtype=DOUBLE)
    ours = (corners @ theta.mT + 1) * torch.tensor([19, 14]) / 2
    torch.testing.assert_close(ours, points, rtol=0, atol=1e-5)


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("name", [name for name, c in CONVENTIONS.items() if c.shape == (2, 3)])
def test_whole_pixels_are_exact_in_the_kernels(name, align_corners, device, poisoned):
    """Sizes are powers of two, or one more between corners, whose pixels are exact in fp32."""
    convention = CONVENTIONS[name]
    size = (9, 17) if align_corners else (8, 16)
    pixels = torch.tensor([[1.0, 0.0, 3.0], [0.0, 1.0, -2.0]])
    options = {"align_corners": align_corners, **convention.options}
    theta = transforms.from_pixels(pixels, size, align_corners=align_corners)
    theta = convention.convert(convention.back(theta, size, **options), size, **options)
    image = picture(size).float()[None, None].to(device)
    output = launch.forward(
        image, theta[None].to(device), size=size, options=Options(align_corners=align_corners)
    )
    expected = F.pad(image, (0, 3, 2, 0))[:, :, : size[0], 3:]
    assert torch.equal(output, expected)


ERRORS = {
    "cv2, volumes": (
        lambda: transforms.from_cv2(torch.ones(3, 4), (5, 6, 7)),
        ValueError,
        r"size_in must be a sequence of ints \(H, W\), got \(5, 6, 7\)",
    ),
    "cv2, a flag": (
        lambda: transforms.from_cv2(torch.ones(2, 3), (5, 6), inverse_map=16),
        TypeError,
        "inverse_map must be a bool, got 16 of type int",
    ),
    "homographies of DALI": (
        lambda: transforms.from_dali(torch.ones(3, 3), (5, 6)),
        ValueError,
        r"matrix must have shape \(\.\.\., 2, 3\), got \(3, 3\)",
    ),
    "homographies to scipy": (
        lambda: transforms.to_scipy(torch.ones(3, 3), (5, 6)),
        ValueError,
        r"theta must have shape \(\.\.\., 2, 3\), got \(3, 3\)",
    ),
    "an offset twice": (
        lambda: transforms.from_scipy(torch.ones(2, 3), (5, 6), offset=(0.0, 1.0)),
        ValueError,
        r"offset must be None for a matrix of shape \(2, 3\), got \(0.0, 1.0\) of type tuple",
    ),
    "coefficients": (
        lambda: transforms.from_torchvision(torch.ones(9), (5, 6)),
        ValueError,
        r"coefficients must have shape \(\.\.\., 8\), got \(9,\)",
    ),
    "bools": (
        lambda: transforms.from_monai(torch.ones(2, 3, dtype=torch.bool), (5, 6)),
        TypeError,
        "matrix must have a floating dtype",
    ),
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors_name_the_argument_its_value_and_what_was_expected(name):
    function, error, words = ERRORS[name]
    with pytest.raises(error, match=words):
        function()
