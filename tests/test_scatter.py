"""Scattered gradients in PyTorch's deterministic mode: sums are exact in any order."""

import itertools
import math

import pytest
import torch
from variants import Variant, case, tangents_of

from stn_triton import launch, policy, splines, tuning
from stn_triton.kernel_launch import Settle
from stn_triton.kernels.coordinates import MAX_SAMPLES
from stn_triton.options import Options

POINTS = tuple(splines.regular_points(2, 2))
LAST, LAST_3D = torch.channels_last, torch.channels_last_3d
PLAIN = torch.contiguous_format
SIZES = {2: ((5, 7), (9, 11)), 3: ((2, 3, 4), (2, 5, 9))}
CASES = {
    "image": (Variant(2, "bilinear", "zeros", "plain", False), torch.float32, PLAIN),
    "volume": (Variant(3, "bilinear", "border", "plain", True), torch.float32, PLAIN),
    "volume, channels_last": (Variant(3, "nearest", "zeros", "plain", False), torch.bfloat16, LAST_3D),
    "volume, antialias": (Variant(3, "bilinear", "zeros", "antialias", False), torch.float32, PLAIN),
    "spline": (Variant(2, "bilinear", "border", "plain", False), torch.float32, PLAIN),
    "spline, tangent": (Variant(2, "bilinear", "zeros", "plain", False), torch.float32, PLAIN),
    "homography": (Variant(2, "bilinear", "fill", "projective", False), torch.bfloat16, PLAIN),
    "homography, fp64": (Variant(2, "bilinear", "zeros", "projective", True), torch.float64, PLAIN),
    "bicubic": (Variant(2, "bicubic", "reflection", "plain", False), torch.float64, LAST),
    "crops": (Variant(2, "bilinear", "reflection", "index", True), torch.float32, LAST),
    "antialias": (Variant(2, "bilinear", "reflection", "antialias", False), torch.float32, PLAIN),
}
BLOCKS = [(1, 1, 1, 4, 8), (2, 2, 1, 8, 8), (2, 1, 2, 2, 16), (4, 1, 4, 4, 4)]
"""BLOCK_C, STEPS_C, RUN_C, BLOCK_H, BLOCK_W; a run longer than 1 needs channels that lie side by side."""


@pytest.fixture
def exact():
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def arguments(name, device):
    variant, dtype, layout = CASES[name]
    args = case(variant, 3, *SIZES[variant.dim]).to(device, dtype, layout)
    options = variant.options()
    if "spline" in name:
        options = options._replace(points=POINTS)
        offsets = 0.3 * torch.randn(2, 4, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        args = args._replace(theta=splines.coefficients(offsets, POINTS, torch.float64).to(args.theta))
    return args, options, tangents_of(args) if "tangent" in name else None


def gradients(args, options=None, tangents=None, exact=True, blocks=None):
    """Return the gradient of the image, by scattering; except in fp32, theta's is computed too."""
    options = Options() if options is None else options
    was = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(exact)
    tensors = (args.grad, args.input, args.theta, args.fill, args.image_index, tangents)
    mask = (True, args.input.dtype != torch.float32, False)

    def choose(bucket, run):
        if blocks is None:
            return policy.default(bucket)
        block_c, steps, run_c, *tile = blocks
        run_c = run_c if args.input.stride(1) == args.grad.stride(1) == 1 else 1
        steps = steps if bucket.has_steps() else 1
        return policy.blocks(block_c, steps, run_c, *tile, 1)

    try:
        with tuning.choosing(choose):
            return launch.backward(*tensors, options=options, output_mask=mask, gathers=False)[0]
    finally:
        torch.use_deterministic_algorithms(was)


def is_same(first, other):
    """Compare bits, because as numbers NaN differs from itself and -0 equals 0."""
    number = {2: torch.int16, 4: torch.int32, 8: torch.int64}[first.itemsize]
    return torch.equal(first.view(number), other.view(number))


@pytest.mark.parametrize("name", CASES)
@pytest.mark.sample(2)
def test_neither_blocks_nor_the_order_of_programs_matter(device, shuffled, name):
    args, options, tangents = arguments(name, device)
    first = gradients(args, options, tangents)
    assert first.isfinite().all()
    assert first.any()
    for blocks in (None, *BLOCKS[list(CASES).index(name) % 2 :: 2]):
        assert is_same(first, gradients(args, options, tangents, blocks=blocks)), blocks
    approximate = gradients(args, options, tangents, exact=False).double()
    eps = torch.finfo(args.input.dtype).eps
    torch.testing.assert_close(first.double(), approximate, rtol=4 * eps, atol=64 * eps)


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU has an order of its own")
@pytest.mark.parametrize("name", ["image", "volume", "crops"])
@pytest.mark.full
def test_to_floating_point_numbers_the_order_matters(device, shuffled, name):
    """Shows that the test above can fail."""
    args, options, _ = arguments(name, device)
    first, *others = (gradients(args, options, exact=False, blocks=BLOCKS[0]) for _ in range(3))
    assert not all(is_same(first, other) for other in others)


FEW = {2: ((4, 5), (6, 7)), 3: ((2, 3, 2), (2, 3, 7))}
"""Input and output sizes of tests that sum up each output pixel alone."""


def small(kind, dim=2, grad=None):
    """Make one image of one channel, each pixel sampled by several output pixels."""
    args = case(Variant(dim, "bilinear", "zeros", kind, False), 1, *FEW[dim]).to("cpu", torch.float32)
    return args._replace(
        input=args.input[:1], theta=args.theta[:1], grad=args.grad[:1] if grad is None else grad
    )


def shares(args, options):
    """Return the addends of each output pixel, (P, *input.shape[1:]) in fp64, for padding by zeros."""
    pixels = args.grad[0, 0].numel()
    alone = torch.diag(args.grad.flatten()).view(pixels, 1, *args.grad.shape[2:])
    many = args._replace(
        input=args.input.expand(pixels, *args.input.shape[1:]),
        theta=args.theta.expand(pixels, *args.theta.shape[1:]),
        grad=alone,
    )
    return gradients(many, options, exact=False).double()


@pytest.mark.parametrize(("kind", "dim"), [("plain", 2), ("projective", 2), ("plain", 3)])
def test_sums_are_exact_and_rounded_once(device, kind, dim):
    args = small(kind, dim)
    expected = shares(args.to(device, torch.float32), Options()).sum(0)
    found = gradients(args.to(device, torch.float32))[0]
    assert torch.equal(found, expected.float())


def spanning(shape, least, most):
    """Draw numbers whose exponents are spread evenly."""
    generator = torch.Generator().manual_seed(4)
    exponents = torch.empty(shape, dtype=torch.float64).uniform_(least, most, generator=generator)
    return (torch.randn(shape, generator=generator, dtype=torch.float64) * 2**exponents).float()


def test_a_wide_range_in_one_image(device):
    """Sums 2**50 times smaller than the largest are exact; addends below 2**-(head + low) are lost."""
    shape = (1, 1, *FEW[2][1])
    for least, is_equal in ((-25, True), (-60, False)):
        args = small("plain", grad=spanning(shape, least, -least)).to(device, torch.float32)
        every = shares(args, Options())
        expected, found = every.sum(0), gradients(args)[0].double()
        head = 61 - (args.grad.numel() - 1).bit_length()
        cut = every.abs().flatten(1).sum(1).max() * 2.0 ** (1 - head - (head - 2)) * (every != 0).sum(0)
        assert ((found - expected).abs() <= 2.0**-24 * expected.abs() + cut).all()
        if is_equal:
            assert torch.equal(found, expected.float().double())
        else:
            assert (found[every.abs().sum(0) > 0] != 0).any()


def test_each_image_has_its_own_scale(device):
    args = case(Variant(3, "bilinear", "border", "plain", False), 1, *SIZES[3]).to(device, torch.float32)
    args.grad[1] *= 1e30
    together = gradients(args)
    for n in range(2):
        own = args._replace(**{k: getattr(args, k)[n : n + 1] for k in ("input", "theta", "grad")})
        assert is_same(together[n : n + 1], gradients(own))


LARGEST = torch.finfo(torch.float32).max


def onto_one_pixel(grad, images=1):
    """Sample the middle of 3 x 3 pixels by all output pixels, so that its gradient is a plain sum."""
    theta = torch.zeros(len(grad), 2, 3, device=grad.device)
    image = torch.zeros(images, 1, 3, 3, device=grad.device)
    index = torch.zeros(len(grad), dtype=torch.int64, device=grad.device)
    args = case(Variant(2, "nearest", "border", "plain", False))
    return args._replace(input=image, theta=theta, grad=grad, image_index=index)


@pytest.mark.parametrize("maps", [1, 5])
@pytest.mark.parametrize("value", [1.0, 1 - 2**-24, -1e-3, LARGEST / 2**22])
@pytest.mark.sample(4)
def test_very_many_onto_one_pixel(device, maps, value):
    """The worst case for the range of sums: all addends equal, and almost a power of two."""
    grad = torch.full((maps, 1, 512, 512), value, device=device)
    found = gradients(onto_one_pixel(grad), Options("nearest", "border"), blocks=(1, 1, 1, 256, 512))
    assert found[0, 0, 1, 1] == grad.double().sum().float()
    assert found.count_nonzero() == 1


@pytest.mark.parametrize(
    "values",
    [
        [LARGEST, LARGEST, -LARGEST, -1.0],
        [LARGEST, LARGEST],
        [1e-45, 1e-45, -3e-45, 1e-40],
        [1.0, 2.0**-24, -(2.0**-50), 2.0**-60, -1.0],
        [2.0**60, 2.0**-40, -(2.0**60)],
        [2.0**60, -(2.0**-40), -(2.0**60)],
        [0.0, -0.0],
    ],
    ids=str,
)
def test_extremes_are_added_exactly(device, values):
    """A sum that passes through infinity in some orders is finite; one that is too large is infinite."""
    grad = torch.tensor(values).view(1, 1, 1, -1).to(device)
    found = gradients(onto_one_pixel(grad), Options("nearest", "border"))
    assert found[0, 0, 1, 1] == torch.tensor(math.fsum(grad.flatten().tolist()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.sample(1)
def test_what_is_not_finite_comes_out_where_it_should(device, dtype):
    inf, nan = float("inf"), float("nan")
    args = case(Variant(2, "bilinear", "reflection", "plain", False), 2, *SIZES[2]).to(device, dtype)
    options = Options(padding_mode="reflection")
    clean, spoilt = args.grad.clone(), args.grad.clone()
    for i, value in enumerate((inf, -inf, nan, inf)):
        place = (i % 2, i // 2, 4, 5)
        spoilt[place], clean[place] = value, 0
    spoilt[0, 0, 4, 6] = -inf
    clean[0, 0, 4, 6] = 0
    found = gradients(args._replace(grad=spoilt), options)
    floats = gradients(args._replace(grad=spoilt), options, exact=False)
    expected = gradients(args._replace(grad=clean), options)
    finite = floats.isfinite()
    assert all((test(floats)).any() for test in (torch.isnan, torch.isposinf, torch.isneginf))
    torch.testing.assert_close(found[~finite], floats[~finite], rtol=0, atol=0, equal_nan=True)
    assert torch.equal(found[finite], expected[finite])


@pytest.mark.parametrize("dim", [2, 3])
@pytest.mark.parametrize("mode", ["nearest", "bilinear", "bicubic"])
@pytest.mark.parametrize("antialias", [False, True])
def test_no_sum_can_overflow(dim, mode, antialias):
    """Both sums fit into 63 bits: an output pixel adds at most 2**head, and rests below 2**low."""
    options = Options(mode, antialias=antialias)
    most = options.taps() ** dim * (MAX_SAMPLES.value**dim if antialias else 1)  # additions of a pixel
    sides = (1, 2, 3, 2**12, 2**12 + 1, 2**15)
    for maps, width, height, is_indexed in itertools.product((2, 6, 2**16), sides, sides, (False, True)):
        size = (height, width) if dim == 2 else (3, height, width)
        tensors = {
            "input_ptr": torch.empty(2, 1, *size, device="meta"),
            "theta_ptr": torch.empty(maps, dim, dim + 1, device="meta"),
            "grad_output_ptr": torch.empty(maps, 1, *size, device="meta"),
            "image_index_ptr": torch.empty(maps, device="meta", dtype=torch.int64) if is_indexed else None,
        }
        numbers = Settle(tensors, options).numbers
        pixels = (maps if is_indexed else maps // 2) * torch.Size(size).numel()
        head, low = numbers["head"], numbers["low"]
        assert 2**60 < pixels * 2**head <= 2**61  # totals are below 2**head (1 + 1/8): see LARGEST
        assert head >= 1
        assert pixels * most * 2.0**low <= 2**61
        assert low >= 0 or pixels > 2**38
