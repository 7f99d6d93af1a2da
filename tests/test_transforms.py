"""Builders, products and inverses of theta: effects on an image, derivatives, batches and errors."""

import doctest
import importlib
import math
import pkgutil

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from stn_triton import affine_grid_sample, perspective_grid_sample, transforms

DOUBLE = torch.float64
QUARTER = math.pi / 2


def randn(*shape, seed=0, dtype=DOUBLE):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE).to(dtype)


def near_identity(*batch, shape=(2, 3), seed=0):
    return torch.eye(*shape, dtype=DOUBLE) + 0.1 * randn(*batch, *shape, seed=seed)


def warp(image, theta, size=None, **options):
    """Warp one image (H, W) or volume in fp64, where the CPU path is exact to about 1e-14."""
    sample = perspective_grid_sample if theta.shape[-2:] == (3, 3) else affine_grid_sample
    return sample(image[None, None].double(), theta[None].double(), size, **options)[0, 0]


def shifted(image, *pixels):
    """Move each pixel p + ``pixels`` to p, with zero outside; ``pixels`` are (x, y[, z])."""
    room = 8
    image = F.pad(image, (room, room) * image.ndim)
    for axis, (shift, extent) in enumerate(zip(reversed(pixels), image.shape, strict=True)):
        image = image.narrow(axis, room + shift, extent - 2 * room)
    return image


def close(actual, expected, tolerance=1e-12):
    torch.testing.assert_close(actual, expected, rtol=0, atol=tolerance)


def pixel_unit(extent, align_corners):
    return 2 / (extent - 1 if align_corners else extent)


# Functions of tensors, with the shapes of their arguments without leading dimensions.
BUILDERS = {
    "translation, images": (transforms.translation, [(2,)]),
    "translation, volumes": (transforms.translation, [(3,)]),
    "scale, one for both axes": (transforms.scale, [(1,)]),
    "scale, one for three axes": (lambda f: transforms.scale(f, dim=3), [(1,)]),
    "scale, volumes": (transforms.scale, [(3,)]),
    "rotation": (transforms.rotation, [()]),
    "rotation, an aspect for each": (lambda a, b: transforms.rotation(a, aspect=b.exp()), [(), ()]),
    "rotation_3d": (transforms.rotation_3d, [(3,)]),
    "rotation_3d, large": (lambda v: transforms.rotation_3d(5 * v, aspect=(3.0, 2.0, 1.0)), [(3,)]),
    "rotation_3d, small": (lambda v: transforms.rotation_3d(0.3 * v, aspect=(3.0, 2.0, 1.0)), [(3,)]),
    "shear, images": (lambda f: transforms.shear(f, aspect=1.5), [(2,)]),
    "shear, volumes": (transforms.shear, [(6,)]),
    "affine, images": (
        lambda a, s, h, t: transforms.affine(angle=a, scale=s, shear=h, translation=t, aspect=0.7),
        [(), (2,), (2,), (2,)],
    ),
    "affine, volumes": (
        lambda a, s, h, t: transforms.affine(angle=a, scale=s, shear=h, translation=t, dim=3),
        [(3,), (1,), (6,), (3,)],
    ),
    "boxes": (lambda b: transforms.boxes(b, (5, 7)), [(4,)]),
    "boxes with an angle": (lambda b, a: transforms.boxes(b, (5, 7), angle=a), [(4,), ()]),
    "boxes of volumes": (lambda b: transforms.boxes(b, (5, 7, 9), align_corners=True), [(6,)]),
    "compose, images": (transforms.compose, [(2, 3), (2, 3), (2, 3)]),
    "compose, volumes": (transforms.compose, [(3, 4), (3, 4)]),
    "compose, a homography and an affine map": (transforms.compose, [(2, 3), (3, 3)]),
    "invert, images": (transforms.invert, [(2, 3)]),
    "invert, volumes": (transforms.invert, [(3, 4)]),
    "invert, homographies": (transforms.invert, [(3, 3)]),
    "from_pixels": (lambda m: transforms.from_pixels(m, (5, 7), (4, 9)), [(3, 3)]),
    "from_cv2, a picture beyond the horizon of pixel (0, 0)": (
        lambda m: transforms.from_cv2(-m, (5, 7), (4, 9), inverse_map=True, align_corners=True),
        [(3, 3)],
    ),
    "to_pixels": (lambda m: transforms.to_pixels(m, (5, 7, 3), (4, 9, 8), align_corners=True), [(3, 4)]),
}


def inputs(shapes, batch, seed=1):
    """Make random arguments; matrices are near the identity, so that they can be inverted."""
    return [
        near_identity(*batch, shape=shape, seed=seed + i)
        if len(shape) == 2
        else randn(*batch, *shape, seed=seed + i)
        for i, shape in enumerate(shapes)
    ]


@pytest.mark.parametrize("name", BUILDERS)
class TestEvery:
    def test_derivatives(self, name):
        function, shapes = BUILDERS[name]
        arguments = [argument.requires_grad_() for argument in inputs(shapes, (2,))]
        torch.autograd.gradcheck(function, arguments)
        torch.autograd.gradgradcheck(function, arguments)

    def test_batches(self, name):
        function, shapes = BUILDERS[name]
        arguments = inputs(shapes, (2, 3))
        result = function(*arguments)
        single = function(*[argument[1, 2] for argument in arguments])
        assert result.shape == (2, 3, *single.shape)
        assert single.shape in [(2, 3), (3, 4), (3, 3)]
        close(result[1, 2], single)

    def test_values_are_not_looked_at(self, name):
        """Reading values would stall a GPU, and would fail on meta tensors, which have none."""
        function, shapes = BUILDERS[name]
        arguments = inputs(shapes, (2,))
        result = function(*[argument.to("meta") for argument in arguments])
        assert result.device.type == "meta"
        assert result.shape == function(*arguments).shape

    @pytest.mark.sample(8)
    def test_vmap_and_compile(self, name):
        function, shapes = BUILDERS[name]
        arguments = inputs(shapes, (3,))
        close(torch.func.vmap(function)(*arguments), function(*arguments))
        compiled = torch.compile(function, fullgraph=True, backend="eager")
        close(compiled(*arguments), function(*arguments))

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
    def test_16_bits_are_computed_in_fp32_under_autocast_too(self, name, dtype):
        function, shapes = BUILDERS[name]
        arguments = [argument.to(dtype) for argument in inputs(shapes, (2,))]
        plain = function(*arguments)
        assert plain.dtype == torch.float32
        # PyTorch's autocast on a CPU can concatenate only the 16-bit dtype that it is set to.
        with torch.autocast("cpu", torch.float16 if dtype == torch.float16 else torch.bfloat16):
            automatic = function(*arguments)
        assert automatic.dtype == torch.float32
        assert torch.equal(automatic, plain)
        # Some functions of the table compute something before they call the package.
        exact = function(*[argument.double() for argument in arguments])
        close(plain.double(), exact, 64 * torch.finfo(dtype).eps * max(1, exact.abs().max().item()))


@pytest.mark.parametrize("name", [name for name, (_, shapes) in BUILDERS.items() if len(shapes) > 1])
def test_leading_dimensions_broadcast(name):
    function, shapes = BUILDERS[name]
    first, *others = inputs(shapes, (2, 3))
    others = [other[:, :1] for other in others]
    expected = function(first, *[other.expand(2, 3, *other.shape[2:]) for other in others])
    close(function(first, *others), expected)


@pytest.mark.parametrize("align_corners", [False, True])
class TestOnImages:
    def test_translation_moves_by_whole_pixels(self, align_corners):
        image = randn(5, 7)
        unit = torch.tensor([pixel_unit(7, align_corners), pixel_unit(5, align_corners)], dtype=DOUBLE)
        theta = transforms.translation(torch.tensor([2, -1]) * unit)
        close(warp(image, theta, align_corners=align_corners), shifted(image, 2, -1))

    def test_scale_crops(self, align_corners):
        image = randn(9, 9) if align_corners else randn(8, 8)
        size, crop = (5, image[2:7, 2:7]) if align_corners else (4, image[2:6, 2:6])
        close(warp(image, transforms.scale([0.5]), size, align_corners=align_corners), crop)

    def test_rotation_by_a_quarter_is_counter_clockwise(self, align_corners):
        image = randn(6, 6)
        close(
            warp(image, transforms.rotation(QUARTER).double(), align_corners=align_corners),
            image.rot90(),
            1e-6,
        )

    def test_rotation_of_an_image_that_is_not_square(self, align_corners):
        """The square in the middle of the image turns as a square image does."""
        image = randn(6, 10)
        aspect = 9 / 5 if align_corners else 10 / 6
        theta = transforms.rotation(torch.tensor(QUARTER, dtype=DOUBLE), aspect=aspect)
        result = warp(image, theta, align_corners=align_corners)
        close(result[:, 2:8], image[:, 2:8].rot90())
        without = warp(image, transforms.rotation(QUARTER), align_corners=align_corners)
        assert (without[:, 2:8] - image[:, 2:8].rot90()).abs().max() > 0.1

    def test_rotations_are_rotations_of_pixels(self, align_corners):
        size = (6, 10, 7)
        inset = 1 if align_corners else 0
        aspect = [extent - inset for extent in reversed(size)]
        theta = transforms.rotation_3d(randn(5, 3), aspect=aspect)
        pixels = transforms.to_pixels(theta, size, align_corners=align_corners)[..., :3]
        close(pixels @ pixels.mT, torch.eye(3, dtype=DOUBLE).expand(5, 3, 3))
        close(torch.linalg.det(pixels), torch.ones(5, dtype=DOUBLE))
        flat = transforms.rotation(randn(5), aspect=(size[2] - inset) / (size[1] - inset))
        pixels = transforms.to_pixels(flat, size[1:], align_corners=align_corners)[..., :2]
        close(pixels @ pixels.mT, torch.eye(2, dtype=DOUBLE).expand(5, 2, 2))

    @pytest.mark.parametrize(("axis", "planes"), [(0, (0, 1)), (1, (2, 0)), (2, (1, 2))], ids=["x", "y", "z"])
    def test_quarter_turns_of_volumes(self, align_corners, axis, planes):
        volume = randn(5, 5, 5)
        vector = QUARTER * torch.eye(3, dtype=DOUBLE)[axis]
        result = warp(volume, transforms.rotation_3d(vector), align_corners=align_corners)
        close(result, volume.rot90(1, planes))

    def test_shear_by_whole_pixels_a_row(self, align_corners):
        image = randn(5, 9)
        aspect = 8 / 4 if align_corners else 9 / 5
        result = warp(
            image,
            transforms.shear(torch.tensor([1.0, 0.0], dtype=DOUBLE), aspect=aspect),
            align_corners=align_corners,
        )
        for y in range(5):
            close(result[y], shifted(image[y : y + 1], y - 2, 0)[0])

    def test_shear_of_volumes_has_its_factors_in_order(self, align_corners):
        factors = torch.tensor([2.0, 3.0, 4.0, 5.0, 6.0, 7.0])
        linear = [[1, 2, 3], [4, 1, 5], [6, 7, 1]]
        assert transforms.shear(factors)[:, :3].tolist() == linear
        unit = [pixel_unit(extent, align_corners) for extent in (7, 6, 5)]
        theta = transforms.shear(factors.double(), aspect=[1 / u for u in unit])
        close(
            transforms.to_pixels(theta, (5, 6, 7), align_corners=align_corners)[:, :3],
            torch.tensor(linear).double(),
        )

    def test_affine_is_its_parts_one_after_the_other(self, align_corners):
        angle, scale, shear, shift = randn(2), randn(2, 2, seed=1), randn(2, 2, seed=2), randn(2, 2, seed=3)
        theta = transforms.affine(angle=angle, scale=scale, shear=shear, translation=shift, aspect=1.4)
        c, s, (kx, ky), zero = angle.cos(), angle.sin(), shear.unbind(-1), torch.zeros(2, dtype=DOUBLE)
        side = torch.tensor([1.4, 1.0], dtype=DOUBLE)

        def matrix(a, b, c, d):
            return torch.stack((a, b, c, d), -1).view(2, 2, 2)

        turn, slant = matrix(c, -s, s, c), matrix(zero + 1, kx, ky, zero + 1)
        stretch = matrix(scale[:, 0], zero, zero, scale[:, 1])
        close(theta[..., :2], (1 / side).diag() @ turn @ slant @ side.diag() @ stretch)
        close(theta[..., 2], shift)

    def test_boxes_of_whole_pixels_are_copied(self, align_corners):
        image, volume = randn(6, 9), randn(6, 9, 7)
        theta = transforms.boxes([2.0, 1.0, 7.0, 4.0], (6, 9), align_corners=align_corners)
        close(warp(image, theta, (3, 5), align_corners=align_corners), image[1:4, 2:7], 1e-6)
        theta = transforms.boxes([1.0, 2.0, 3.0, 5.0, 8.0, 6.0], (6, 9, 7), align_corners=align_corners)
        close(warp(volume, theta, (3, 6, 4), align_corners=align_corners), volume[3:6, 2:8, 1:5], 1e-5)

    @pytest.mark.parametrize("size", [(4, 6), (4, 6, 5)], ids=str)
    def test_the_box_of_everything_is_the_identity(self, align_corners, size):
        edges = [0.0] * len(size) + [float(extent) for extent in reversed(size)]
        theta = transforms.boxes(edges, size, align_corners=align_corners)
        assert torch.equal(theta, transforms.identity(len(size)))

    def test_boxes_turn_clockwise_so_crops_turn_back(self, align_corners):
        image = randn(9, 11)
        box = torch.tensor([2.0, 3.0, 8.0, 7.0], dtype=DOUBLE)  # after a quarter turn: (3, 2, 7, 8)
        theta = transforms.boxes(box, (9, 11), angle=QUARTER, align_corners=align_corners)
        close(warp(image, theta, (4, 6), align_corners=align_corners), image[2:8, 3:7].rot90(), 1e-12)

    def test_composing_is_warping_twice(self, align_corners):
        """Shifts by whole pixels and quarter turns do not interpolate, so that results are equal."""
        image = F.pad(randn(3, 3), (4, 4, 4, 4))
        unit = pixel_unit(11, align_corners)
        first = transforms.translation(torch.tensor([2.0, 1.0], dtype=DOUBLE) * unit)
        second = transforms.rotation(torch.tensor(QUARTER, dtype=DOUBLE))
        third = transforms.scale(torch.tensor([-1.0, 1.0], dtype=DOUBLE))
        twice = image
        for theta in (first, second, third):
            twice = warp(twice, theta, align_corners=align_corners)
        once = warp(image, transforms.compose(first, second, third), align_corners=align_corners)
        close(once, twice)
        other_order = warp(image, transforms.compose(third, second, first), align_corners=align_corners)
        assert (other_order - twice).abs().max() > 0.1

    def test_inverting_undoes_a_warp(self, align_corners):
        y, x = torch.meshgrid(torch.arange(32.0), torch.arange(32.0), indexing="ij")
        image = (0.2 * x).sin() * (0.15 * y).cos()  # smooth, because the test interpolates twice
        theta = transforms.affine(angle=0.3, scale=[0.9, 1.1], translation=[0.05, -0.1])
        there = warp(image, theta, align_corners=align_corners)
        back = warp(there, transforms.invert(theta), align_corners=align_corners)
        inside = slice(9, 23)
        assert (there - image)[inside, inside].abs().max() > 0.1
        close(back[inside, inside], image[inside, inside].double(), 0.02)


def test_identity():
    image = randn(5, 7)
    close(warp(image, transforms.identity()), image)
    assert torch.equal(transforms.identity(3, dtype=torch.float16), torch.eye(3, 4, dtype=torch.float16))
    assert transforms.identity(device="meta").device.type == "meta"


def test_rotation_3d_is_the_exponential_map():
    for length in (1e-9, 1e-3, 0.99, 1.01, 3.0, 7.0):
        vectors = length * F.normalize(randn(20, 3), dim=-1)
        columns = torch.eye(3, dtype=DOUBLE).expand(20, 3, 3)
        cross = torch.linalg.cross(vectors.unsqueeze(-2).expand(20, 3, 3), columns).mT  # v cross each column
        close(transforms.rotation_3d(vectors)[..., :3], torch.linalg.matrix_exp(cross), 1e-14)


def test_rotation_3d_is_smooth_at_zero():
    zero = torch.zeros(3, dtype=DOUBLE, requires_grad=True)
    torch.autograd.gradcheck(transforms.rotation_3d, zero)
    torch.autograd.gradgradcheck(transforms.rotation_3d, zero)
    assert torch.equal(transforms.rotation_3d(zero), transforms.identity(3, dtype=DOUBLE))


def test_rotation_3d_about_z_is_rotation():
    angles = randn(4)
    vectors = torch.stack((torch.zeros(4), torch.zeros(4), angles), -1).double()
    theta = transforms.rotation_3d(vectors, aspect=(1.7, 1.0, 3.0))
    close(theta[:, :2, :2], transforms.rotation(angles, aspect=1.7)[:, :, :2])
    close(theta[:, 2], torch.tensor([0.0, 0.0, 1.0, 0.0], dtype=DOUBLE).expand(4, 4))


@pytest.mark.parametrize("shape", [(2, 3), (3, 4), (3, 3)], ids=str)
def test_a_map_and_its_inverse_are_the_identity(shape):
    theta = near_identity(4, shape=shape)
    identity = torch.eye(*shape, dtype=DOUBLE).expand(4, *shape)
    close(transforms.compose(theta, transforms.invert(theta)), identity)
    close(transforms.compose(transforms.invert(theta), theta), identity)


def test_homographies_keep_their_sign():
    """A point before the horizon stays before it: Z of a point is 1 / Z of its image."""
    theta = near_identity(shape=(3, 3))
    for sign in (1, -1):
        point = torch.tensor([0.3, -0.2, 1.0], dtype=DOUBLE)
        image = (sign * theta) @ point
        back = transforms.invert(sign * theta) @ (image / image[2])
        close(back[2], 1 / image[2])


def test_composing_an_affine_map_and_a_homography():
    image = randn(16, 16)
    tilt = torch.tensor([[1.0, 0.1, 0.0], [0.0, 1.0, 0.0], [0.1, 0.3, 1.0]], dtype=DOUBLE)
    turn = transforms.rotation(torch.tensor(QUARTER, dtype=DOUBLE))
    close(warp(image, transforms.compose(turn, tilt)), warp(image.rot90(), tilt))
    close(warp(image, transforms.compose(tilt, turn)), warp(image, tilt).rot90())


def test_boxes_are_what_the_formula_says():
    x1, y1, x2, y2, width, height = 3.0, 5.0, 21.5, 40.0, 76, 50
    expected = [
        [(x2 - x1) / width, 0, (x1 + x2) / width - 1],
        [0, (y2 - y1) / height, (y1 + y2) / height - 1],
    ]
    close(
        transforms.boxes(torch.tensor([x1, y1, x2, y2]).double(), (height, width)),
        torch.tensor(expected, dtype=DOUBLE),
    )


def test_singular_matrices_give_no_finite_inverse():
    assert not transforms.invert(torch.zeros(2, 3)).isfinite().any()
    assert not transforms.invert(torch.ones(3, 3)).isfinite().any()


def test_arrays_keep_their_dtype_and_numbers_follow_tensors():
    assert transforms.translation(np.zeros(2)).dtype == torch.float64
    assert transforms.translation(np.zeros(2, np.float32)).dtype == torch.float32
    assert transforms.translation(np.zeros(2, ">f8")).dtype == torch.float64
    assert transforms.rotation(np.float16(1)).dtype == transforms.rotation(np.int64(1)).dtype == torch.float32
    theta = transforms.affine(angle=np.array(1), scale=torch.ones(1, dtype=DOUBLE), aspect=np.float32(2))
    assert theta.dtype == torch.float64
    assert transforms.translation(np.zeros(2, np.float16)).dtype == torch.float32
    half = torch.ones(5, 1, dtype=torch.bfloat16)
    assert torch.equal(
        transforms.affine(angle=0.1, scale=half), transforms.affine(angle=0.1, scale=half.float())
    )
    assert transforms.compose(half.new_ones(2, 3), torch.ones(2, 3)).dtype == torch.float32
    assert transforms.rotation(1).dtype == torch.get_default_dtype()
    theta = transforms.affine(angle=1, scale=torch.ones(5, 1, dtype=DOUBLE), translation=[0.1, 0])
    assert theta.dtype == torch.float64
    assert theta.shape == (5, 2, 3)
    assert transforms.boxes([[0, 0, 2, 2]], (4, 4)).tolist() == [[[0.5, 0, -0.5], [0, 0.5, -0.5]]]


class TestExpandedRotation:
    # (h, w), degrees, and Image.new("F", (w, h)).rotate(angle, expand=True).size of Pillow 11.3.
    PILLOW = (
        ((10, 10), 0, (10, 10)),
        ((7, 10), 90, (10, 7)),
        ((7, 10), 180, (7, 10)),
        ((10, 10), 45, (16, 16)),
        ((7, 10), 45, (13, 14)),
        ((7, 10), -30, (13, 14)),
        ((11, 5), 60, (11, 13)),
        ((9, 9), 1, (11, 11)),
        ((1, 9), 89, (11, 3)),
    )

    @pytest.mark.parametrize(("size_in", "degrees", "expected"), PILLOW)
    def test_the_canvas_is_that_of_pillow(self, size_in, degrees, expected):
        angle = math.radians(degrees)
        for given in (angle, torch.tensor(angle), np.array([angle], np.float32)):
            theta, size = transforms.expanded_rotation(given, np.array(size_in))
            assert size == expected
            assert theta.shape[-2:] == (2, 3)

    @pytest.mark.parametrize("align_corners", [False, True])
    def test_quarter_turns_move_pixels(self, align_corners):
        image = randn(4, 7)
        for quarters in range(-3, 6):
            angle = torch.tensor(quarters * QUARTER, dtype=DOUBLE)
            theta, size = transforms.expanded_rotation(angle, (4, 7), align_corners=align_corners)
            close(warp(image, theta, size, align_corners=align_corners), image.rot90(quarters))

    @pytest.mark.parametrize("align_corners", [False, True])
    def test_nothing_is_cut_off_and_pixels_keep_their_size(self, align_corners):
        angles = torch.linspace(-4, 4, 50, dtype=DOUBLE)
        theta, size = transforms.expanded_rotation(angles, (5, 8), align_corners=align_corners)
        matrix = transforms.to_pixels(theta, (5, 8), size, align_corners=align_corners)
        close(torch.linalg.det(matrix[..., :2]), torch.ones(50, dtype=DOUBLE))
        corners = torch.tensor([[-0.5, -0.5, 1], [7.5, -0.5, 1], [-0.5, 4.5, 1], [7.5, 4.5, 1]], dtype=DOUBLE)
        x, y = (transforms.invert(matrix) @ corners.T).unbind(-2)
        assert x.min() > -0.501
        assert y.min() > -0.501
        assert x.max() < size[1] - 0.499
        assert y.max() < size[0] - 0.499

    def test_a_batch_shares_the_largest_canvas(self):
        angles = torch.tensor([[0.0, 0.3], [QUARTER, 1.2]], dtype=DOUBLE, requires_grad=True)
        theta, size = transforms.expanded_rotation(angles, (4, 7))
        alone = [transforms.expanded_rotation(angle, (4, 7))[1] for angle in angles.flatten()]
        assert size == tuple(map(max, zip(*alone, strict=True)))
        assert theta.shape == (2, 2, 2, 3)
        torch.autograd.gradcheck(lambda a: transforms.expanded_rotation(a, (4, 7))[0], angles)
        assert transforms.expanded_rotation(angles[:0], (4, 7))[1] == (4, 7)

    def test_a_number_goes_into_compiled_and_exported_programs(self):
        def turned(image):
            theta, size = transforms.expanded_rotation(0.3, image.shape[2:])
            return affine_grid_sample(image, theta[None], size)

        class Turned(torch.nn.Module):
            def forward(self, image):
                return turned(image)

        image = randn(1, 1, 4, 7)
        compiled = torch.compile(turned, backend="eager", fullgraph=True)
        exported = torch.export.export(Turned(), (image,)).module()
        close(compiled(image), turned(image))
        close(exported(image), turned(image))


ROWS = np.array([[1.0, 2.0], [3.0, 4.0]])
FROZEN = np.broadcast_to(np.float64(2), (2, 2))
VECTOR = [0.1, 0.2, 0.3]


def turned(aspect):
    return transforms.rotation(torch.ones(2), aspect=aspect)


def turned_3d(aspect):
    return transforms.rotation_3d(VECTOR, aspect=aspect)


def of_sizes(size_in, size_out):
    return transforms.from_pixels(torch.ones(2, 3), size_in, size_out)


def of_corners(align_corners):
    theta = transforms.boxes([0, 0, 2, 2], (4, 4), align_corners=align_corners)
    return transforms.to_pixels(theta, (3, 4), (5, 6), align_corners=align_corners)


# Function, arguments in types of NumPy and PyTorch, and equal arguments in Python types.
SAME = [
    (transforms.translation, [ROWS[:, ::-1]], [[[2, 1], [4, 3]]]),
    (transforms.translation, [np.array([1, 2])], [[1, 2]]),
    (transforms.scale, [FROZEN], [[[2, 2], [2, 2]]]),
    (transforms.shear, [list(ROWS)], [ROWS.tolist()]),
    (transforms.rotation, [np.float32(0.5)], [0.5]),
    (transforms.rotation, [np.int64(1)], [1]),
    (transforms.rotation, [torch.tensor(1)], [1]),
    (transforms.identity, [np.int64(3)], [3]),
    (transforms.identity, [torch.tensor(3)], [3]),
    *[
        (turned, [two], [2])
        for two in (np.float32(2), np.float64(2), np.int64(2), np.array(2), torch.tensor(2))
    ],
    (turned, [np.array([2.0, 3.0])], [torch.tensor([2.0, 3.0])]),
    *[
        (turned_3d, [sides], [(1, 2, 3)])
        for sides in (np.array([1, 2, 3]), torch.tensor([1.0, 2, 3]), (np.float32(1), torch.tensor(2), 3))
    ],
    (of_sizes, [np.array([3, 4]), torch.tensor([5, 6])], [(3, 4), (5, 6)]),
    (of_sizes, [(np.int64(3), torch.tensor(4)), torch.Size((5, 6))], [(3, 4), (5, 6)]),
    (of_corners, [np.True_], [True]),
    (of_corners, [None], [False]),
]


@pytest.mark.parametrize(("function", "given", "plain"), SAME)
def test_numbers_of_numpy_and_tensors_are_numbers(function, given, plain):
    expected = function(*plain)
    assert torch.equal(function(*given).to(expected.dtype), expected)


@pytest.mark.parametrize("layout", [torch.strided, torch.jagged], ids=str)
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_nested_tensors_are_named(layout):
    nested = torch.nested.nested_tensor([torch.ones(2, 3), torch.ones(1, 3)], layout=layout)
    calls = {
        "vector": lambda: transforms.rotation_3d(nested),
        "aspect": lambda: transforms.rotation(torch.ones(2), aspect=nested),
        "theta": lambda: transforms.to_pixels(nested, (4, 4)),
    }
    for name, call in calls.items():
        with pytest.raises(TypeError, match=f"{name} must be one tensor.*got a nested tensor"):
            call()
    with pytest.raises(TypeError, match=r"aspect must be one tensor.*got a nested tensor"):
        transforms.rotation_3d(VECTOR, aspect=nested)


def test_16_bits_lose_nothing_on_the_way_to_theta():
    numbers = randn(6, dtype=torch.bfloat16)
    corners = torch.tensor([3.0, 5.0, 201.0, 154.0], dtype=torch.bfloat16)
    for function, argument in (
        (transforms.rotation, numbers),
        (transforms.rotation_3d, numbers[:3]),
        (lambda m: transforms.invert(m.unflatten(0, (2, 3))), numbers),
        (lambda box: transforms.boxes(box, (203, 207), angle=0.1), corners),
        (lambda shift: transforms.affine(angle=0.3, translation=shift), numbers[:2]),
    ):
        close(function(argument).double(), function(argument.double()), 1e-5)


IMAGE, VOLUME = (5, 7), (5, 7, 9)
ONE = torch.ones(())
ERRORS = {  # call, error and message
    "dim": (lambda: transforms.identity(4), ValueError, r"dim must be 2 \(images\) or 3 \(volumes\), got 4"),
    "a tensor of bools": (
        lambda: transforms.translation(torch.ones(2, dtype=torch.bool)),
        TypeError,
        "shift must have a floating dtype.*got torch.bool",
    ),
    "a text": (
        lambda: transforms.rotation("90"),
        TypeError,
        "angle must be a tensor, a number.*got '90' of type str",
    ),
    "a list of tensors": (
        lambda: transforms.translation([ONE, ONE]),
        TypeError,
        "shift must be one tensor or hold only numbers, got a sequence of tensors: stack it",
    ),
    "shift": (
        lambda: transforms.translation(torch.ones(4)),
        ValueError,
        r"shift must .* \(\.\.\., 2\) .*got \(4,\)",
    ),
    "factors of scale": (
        lambda: transforms.scale(torch.ones(4)),
        ValueError,
        r"factors must have shape .*, got \(4,\)",
    ),
    "factors of shear": (
        lambda: transforms.shear(torch.ones(3)),
        ValueError,
        r"factors must .*\(\.\.\., 6\)",
    ),
    "vector": (lambda: transforms.rotation_3d(torch.ones(2)), ValueError, r"vector must .*, got \(2,\)"),
    "aspect": (
        lambda: transforms.rotation(0.1, aspect=-1.0),
        ValueError,
        "aspect must be positive, got -1.0",
    ),
    "aspects": (
        lambda: transforms.rotation(0.1, aspect=np.array([1.0, 0.0])),
        ValueError,
        r"aspect must be positive, got array\(\[1., 0.\]\)",
    ),
    "aspect of an image": (
        lambda: transforms.rotation(0.1, aspect=(2, 1)),
        TypeError,
        "aspect must be a number",
    ),
    "aspect of a volume": (
        lambda: transforms.rotation_3d([0.0, 0.0, 1.0], aspect=2.0),
        ValueError,
        r"aspect must be three numbers \(W, H, D\)",
    ),
    "expanded by no angle": (
        lambda: transforms.expanded_rotation(torch.tensor([0.0, math.nan]), IMAGE),
        ValueError,
        r"angle must be finite, got \[0.0, nan\]",
    ),
    "expanded volume": (
        lambda: transforms.expanded_rotation(0.1, VOLUME),
        ValueError,
        r"size_in must be a sequence of ints \(H, W\), got \(5, 7, 9\)",
    ),
    "affine of nothing": (lambda: transforms.affine(), ValueError, "affine needs at least one of angle"),
    "affine of the other dimension": (
        lambda: transforms.affine(translation=torch.ones(2), dim=3),
        ValueError,
        r"translation must have shape \(\.\.\., 3\) for dim=3, got \(2,\)",
    ),
    "affine of two dtypes": (
        lambda: transforms.affine(angle=ONE, scale=torch.ones(1, dtype=DOUBLE)),
        TypeError,
        "scale must have the dtype of angle, torch.float32, got torch.float64",
    ),
    "boxes": (
        lambda: transforms.boxes(torch.ones(4), VOLUME),
        ValueError,
        r"boxes .*\(\.\.\., 6\) for size_in",
    ),
    "boxes with an angle in volumes": (
        lambda: transforms.boxes(torch.ones(6), VOLUME, angle=0.1),
        ValueError,
        "angle must be None for volumes",
    ),
    "size_in as a number": (
        lambda: transforms.boxes(torch.ones(4), 5),
        TypeError,
        "size_in must be a sequence of ints",
    ),
    "size_in with N and C": (
        lambda: transforms.boxes(torch.ones(4), (1, 3, 5, 7)),
        ValueError,
        r"size_in must be a sequence of ints \(H, W\) or \(D, H, W\), got \(1, 3, 5, 7\)",
    ),
    "size_in of floats": (
        lambda: transforms.boxes(torch.ones(4), (5.0, 7)),
        TypeError,
        r"size_in must be a sequence of ints .* got \(5.0, 7\) with 5.0 of type float",
    ),
    "size_in of nothing": (
        lambda: transforms.boxes(torch.ones(4), (5, 0)),
        ValueError,
        "size_in must be positive",
    ),
    "align_corners": (
        lambda: transforms.boxes(torch.ones(4), IMAGE, align_corners=1),
        TypeError,
        "align_corners must be a bool, got 1 of type int",
    ),
    "theta of no shape": (
        lambda: transforms.invert(torch.ones(2, 2)),
        ValueError,
        r"theta must .* got \(2, 2\)",
    ),
    "theta of no tensor": (lambda: transforms.invert(None), TypeError, "theta must be a tensor"),
    "two dtypes": (
        lambda: transforms.compose(torch.ones(2, 3), torch.ones(2, 3, dtype=DOUBLE)),
        TypeError,
        r"others\[0\] must have the dtype of first, torch.float32, got torch.float64",
    ),
    "two dimensions": (
        lambda: transforms.compose(torch.ones(2, 3), torch.ones(2, 3), torch.ones(3, 4)),
        ValueError,
        r"others\[1\] must have shape \(\.\.\., 2, 3\) or \(\.\.\., 3, 3\) .*got \(3, 4\)",
    ),
    "sizes of two dimensions": (
        lambda: transforms.from_pixels(torch.ones(2, 3), IMAGE, VOLUME),
        ValueError,
        r"size_out must be a sequence of ints \(H, W\), got \(5, 7, 9\)",
    ),
    "a matrix of the other dimension": (
        lambda: transforms.from_pixels(torch.ones(2, 3), VOLUME),
        ValueError,
        r"matrix must have shape \(\.\.\., 3, 4\), got \(2, 3\)",
    ),
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors_name_the_argument_its_value_and_what_was_expected(name):
    function, error, words = ERRORS[name]
    with pytest.raises(error, match=words):
        function()


@pytest.mark.parametrize("module", [m.name for m in pkgutil.iter_modules(transforms.__path__)])
def test_examples_in_docstrings_run(module):
    result = doctest.testmod(importlib.import_module(f"stn_triton.transforms.{module}"))
    assert result.failed == 0
    assert result.attempted > 0 or module == "inputs"


def test_every_public_function_is_documented():
    for name in transforms.__all__:
        assert "Returns:" in getattr(transforms, name).__doc__, name


def test_one_number_scales_all_axes():
    expected = torch.tensor([[0.5, 0, 0], [0, 0.5, 0]])
    for half in (0.5, np.float32(0.5), torch.tensor(0.5)):
        assert torch.equal(transforms.scale(half), expected)
        assert torch.equal(transforms.affine(scale=half), expected)
    assert torch.equal(transforms.scale(0.5, dim=3), torch.eye(3, 4) / 2)
