"""Every mode, padding, dimension and kind of map through the kernels, against the oracle."""

import itertools
import math

import pytest
import torch
from test_kernels import assert_close, parts
from variants import CELLS, EXISTING, LIGHT, Variant, case

from stn_triton import launch, policy, reference, tuning
from stn_triton.check import oracle
from stn_triton.options import LABEL_DTYPES, MODES, PADDING_MODES, Options

pytestmark = pytest.mark.usefixtures("poisoned")
CHANNELS_LAST = {2: torch.channels_last, 3: torch.channels_last_3d}


def run(args, options, mask=(True, True, True)):
    mask = (*mask[:2], mask[2] and args.fill is not None)
    output = launch.forward(
        args.input, args.theta, args.fill, args.image_index, size=args.size, options=options
    )
    grads = launch.backward(
        args.grad, args.input, args.theta, args.fill, args.image_index, options=options, output_mask=mask
    )
    return oracle.Truth(output, *grads)


def solve(args, options, dtype):
    return oracle.solve(
        args.input, args.theta, args.size, args.grad, options, dtype, args.fill, args.image_index
    )


def budget(part, expected, dtype):
    """Return the error allowed; sums round in proportion to their terms."""
    return 32 * torch.finfo(dtype).eps * max(expected.abs().max().item(), 1)


@pytest.mark.parametrize("variant", CELLS, ids=Variant.name)
@pytest.mark.sample(34)
def test_agrees_with_the_oracle_that_shares_positions(device, variant):
    """Every second variant is in channels_last; tensors are fp32."""
    is_last = EXISTING.index(variant) % 2
    layout = CHANNELS_LAST[variant.dim] if is_last else torch.contiguous_format
    args = case(variant).to(device, torch.float32, layout)
    truth = solve(args, variant.options(), torch.float32)
    result = run(args, variant.options())
    assert result.output.is_contiguous(memory_format=layout)
    for part, actual, expected in parts(result, truth):
        assert_close(actual, expected, budget(part, expected, torch.float32), part)


@pytest.mark.parametrize("variant", LIGHT[::7], ids=Variant.name)
@pytest.mark.sample(7)
def test_agrees_with_the_exact_truth_in_fp64(device, variant):
    """Away from kinks the oracle's gradients are exact, so that this replaces gradcheck."""
    args = case(variant, channels=1).to(device, torch.float64)
    truth = solve(args, variant.options(), torch.float64)
    for part, actual, expected in parts(run(args, variant.options()), truth):
        assert_close(actual, expected, 1e-12 * max(expected.abs().max().item(), 1), part)


TINY = [
    Variant(dim, mode, padding_mode, kind, align_corners)
    for i, (dim, mode, padding_mode, kind) in enumerate(
        itertools.product((2, 3), MODES, PADDING_MODES, ("plain", "projective", "antialias"))
    )
    for align_corners in (i % 2 == 0,)
]


@pytest.mark.parametrize(
    "variant", [v for v in TINY if v in LIGHT and (v.dim, v.kind) != (3, "antialias")], ids=Variant.name
)
@pytest.mark.sample(14)
def test_gradients_are_the_derivative(device, variant):
    """Compare with central differences along one random direction of all arguments."""
    size_in, size = ((3, 4), (4, 3)) if variant.dim == 2 else ((2, 3, 2), (2, 2, 3))
    args = case(variant, 1, size_in, size).to(device, torch.float64)
    result = run(args, variant.options())
    generator = torch.Generator().manual_seed(1)
    leaves = {"input": result.grad_input, "theta": result.grad_theta, "fill": result.grad_fill}
    step, slope, ends = 1e-6, 0.0, []
    directions = {
        name: torch.randn(g.shape, generator=generator, dtype=torch.float64).to(device)
        for name, g in leaves.items()
        if g is not None and not (variant.mode == "nearest" and name == "theta")
    }
    for name, direction in directions.items():
        slope += (leaves[name] * direction).sum()
    for sign in (1, -1):
        moved = {n: getattr(args, n) + sign * step * d for n, d in directions.items()}
        moved = args._replace(**moved)
        output = launch.forward(
            moved.input, moved.theta, moved.fill, moved.image_index, size=args.size, options=variant.options()
        )
        ends.append((output * args.grad).sum())
    difference = (ends[0] - ends[1]) / (2 * step)
    assert abs(difference - slope) <= 1e-6 * max(abs(slope), 1), (difference, slope)


# Maps to integer positions: in the image, at its edges, outside, and in each period of a reflection.
KINKED = {
    "identity": [[1, 0, 0], [0, 1, 0]],
    "shift": [[1, 0, 1], [0, 1, -0.5]],
    "half a turn": [[-1, 0, 0], [0, -1, 0]],
    "axis swap": [[0, 1, 0], [1, 0, 0]],
    "shrink": [[2, 0, 0], [0, 2, 0]],
    "far": [[1, 0, 8], [0, 1, -8]],
    "zoom": [[0.5, 0, 0], [0, 0.5, 0]],
    "singular": [[1, 1, 0], [1, 1, 0]],
    "zero": [[0, 0, 0.25], [0, 0, 0]],
}


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("padding_mode", PADDING_MODES)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.sample(10)
def test_kinks_agree_with_the_oracle(device, mode, padding_mode, align_corners):
    """These sizes make positions whole or half numbers under both conventions."""
    options = Options(mode, padding_mode, align_corners)
    size = (3, 5) if align_corners else (4, 6)
    args = case(Variant(2, mode, padding_mode, "plain", align_corners), 1, size, size)
    theta = torch.tensor(list(KINKED.values()), dtype=torch.float64)
    n = len(theta)
    expanded = [t[:1].expand(n, *t.shape[1:]).clone() for t in (args.input, args.grad)]
    args = args._replace(input=expanded[0], theta=theta, grad=expanded[1]).to(device, torch.float32)
    truth = solve(args, options, torch.float32)
    result = run(args, options)
    for i, name in enumerate(KINKED):
        for part, actual, expected in parts(result._replace(grad_fill=None), truth):
            limit = 4 * budget(part, expected[i], torch.float32)
            assert_close(actual[i], expected[i], limit, f"{part} of {name}")


@pytest.mark.parametrize("variant", LIGHT[2::26], ids=Variant.name)
@pytest.mark.sample(3)
def test_one_gradient_alone_equals_all(device, variant):
    args = case(variant).to(device, torch.float32)
    options = variant.options()
    every = run(args, options)
    alone = [run(args, options, tuple(i == j for j in range(3)))[1 + i] for i in range(3)]
    assert torch.equal(alone[0], every.grad_input)
    assert_close(alone[1], every.grad_theta.double(), budget("", every.grad_theta, torch.float32), "theta")
    if args.fill is not None:
        assert torch.equal(alone[2], every.grad_fill)


PLAIN = [v for v in EXISTING if v.kind == "plain" and not v.align_corners]
COPIED = [(torch.float32, v) for v in PLAIN]
COPIED += [(torch.bfloat16, v) for v in PLAIN if v.padding_mode == "zeros"]


@pytest.mark.parametrize(
    ("dtype", "variant", "channels_last"),
    [(*case, i % 2 == 1) for i, case in enumerate(COPIED)],
    ids=lambda value: value.name() if isinstance(value, Variant) else str(value),
)
@pytest.mark.sample(12)
def test_the_identity_copies_bit_for_bit(device, dtype, variant, channels_last):
    """NaN and Inf are copied too, and antialiasing changes nothing because nothing shrinks."""
    dim, mode, padding_mode = variant[:3]
    size = (4, 5) if dim == 2 else (3, 3, 4)
    layout = CHANNELS_LAST[dim] if channels_last else torch.contiguous_format
    args = case(variant, 2, size, size).to(device, dtype, layout)
    args = args._replace(theta=torch.eye(dim, dim + 1, device=device).expand(2, -1, -1))
    for tensor in (args.input, args.grad):
        tensor[0, 0, 1, 2] = math.nan
        tensor[1, :, 2, 1] = math.inf
    for align_corners in (False, True):
        options = Options(mode, padding_mode, align_corners, antialias=align_corners)
        result = run(args, options, (True, False, False))
        assert torch.equal(result.output.nan_to_num(7, 8, 9), args.input.nan_to_num(7, 8, 9))
        if result.grad_input is not None:
            assert torch.equal(result.grad_input.nan_to_num(7, 8, 9), args.grad.nan_to_num(7, 8, 9))


def test_a_shrink_of_up_to_a_64th_is_none(device):
    """The matrix of a rotation may be rounded, and then seems to shrink a little."""
    args = case(Variant(2, "bilinear", "zeros", "plain", False), 2, (9, 9), (9, 9)).to(device, torch.float32)
    for scale, is_shrunk in ((1.015, False), (1.018, True)):
        args = args._replace(theta=torch.eye(2, 3, device=device).repeat(len(args.theta), 1, 1) * scale)
        results = run(args, Options()), run(args, Options(antialias=True))
        for part, without, with_it in parts(*results):
            assert torch.equal(without, with_it) is not is_shrunk, part


def test_a_gradient_that_is_not_finite_reaches_fill_values_from_where_they_count(device):
    args = case(Variant(2, "bilinear", "fill", "plain", False), 2, (5, 6), (5, 6)).to(device, torch.float32)
    args = args._replace(theta=torch.eye(2, 3, device=device).repeat(len(args.theta), 1, 1))
    args.theta[:, 0, 2] = 0.5  # one and a half pixels
    args.grad[:, :, :, :2] = float("nan")
    assert run(args, Options(padding_mode="fill")).grad_fill.isfinite().all()
    args.grad[:, 0, 2, 4] = float("nan")
    assert run(args, Options(padding_mode="fill")).grad_fill.isnan().tolist() == [True, False]


INF = math.inf
MAPS = {  # variant, sizes, and maps whose entries all affect the result
    "dense, of volumes": (
        (3, "bilinear", "zeros", "plain", False),
        ((6, 7, 8), (7, 6, 8)),
        [[[0.8, -0.5, 0.4, 0.1], [0.4, 0.9, -0.3, -0.1], [-0.5, 0.3, 0.7, 0.05]]],
    ),
    "horizons beyond each corner": (
        (2, "bilinear", "reflection", "projective", False),
        ((5, 6), (6, 5)),
        [[[1.5, 0.2, 0.1], [-0.3, 1.4, 0], [g, h, 1]] for g in (-0.4, 0.4) for h in (-0.4, 0.4)],
    ),
    "long in one axis": (
        (2, "bilinear", "reflection", "plain", True),
        ((5, 6), (6, 5)),
        [[[0.3, 0.2, 0], [2.5, -0.4, 0.1]], [[0.2, -2.5, 0.1], [0.1, 0.3, 0]]],
    ),
    "of one column": (
        (2, "bilinear", "reflection", "plain", True),
        ((4, 1), (3, 3)),
        [[[1, 0, 0], [0.1, 0.8, 0.3]], [[0, 2, 0.5], [1.5, 0, 0]]],
    ),
    "of two columns": (
        (2, "bilinear", "reflection", "plain", True),
        ((4, 2), (5, 7)),
        [[[3.1, 0.2, 0.3], [0.1, 0.8, 0.3]]],
    ),
    "nearly singular": (
        (2, "bicubic", "zeros", "plain", False),
        ((9, 7), (6, 8)),
        [[[1, 1, 0], [1, 1 + 2**-20, 0.1]], [[1e-7, 0.9, 0], [1, -1e-7, 0]]],
    ),
    "infinite and antialiased": (
        (2, "bilinear", "border", "antialias", False),
        ((4, 5), (3, 3)),
        [[[INF, 0, 0], [0, 1.5, 0]]],
    ),
}


@pytest.mark.parametrize("name", MAPS)
def test_maps_of_which_each_entry_counts(device, name):
    variant, sizes, theta = MAPS[name]
    variant, theta = Variant(*variant), torch.tensor(theta, device=device)
    args = case(variant, 1, *sizes).to(device, torch.float32)
    for matrix in theta:
        one = args._replace(input=args.input[:1], theta=matrix[None].float(), grad=args.grad[:1])
        truth = solve(one, variant.options(), torch.float32)
        for part, actual, expected in parts(run(one, variant.options()), truth):
            assert_close(actual, expected, budget(part, expected, torch.float32), part)


@pytest.mark.full
def test_lists_of_tiles_that_are_not_square(device):
    """A program that goes through channels in steps lists its pixels, also under an infinite map."""
    variant = Variant(2, "bilinear", "border", "plain", False)
    args = case(variant, 5, (9, 30), (10, 9)).to(device, torch.float32)
    args.theta[0, 0, 0] = INF

    def choose(bucket, run):
        sizes = {"BLOCK_C": 2, "STEPS_C": 2, "RUN_C": 1, "BLOCK_H": 8, "BLOCK_W": 16}
        return {**policy.default(bucket), **sizes}

    with tuning.choosing(choose):
        results = run(args, variant.options())
    for part, actual, expected in parts(results, solve(args, variant.options(), torch.float32)):
        assert_close(actual, expected, budget(part, expected, torch.float32), part)


def test_antialias_changes_nothing_where_a_map_does_not_shrink(device):
    """A rotation and a zoom: the bits of output and gradients are equal."""
    args = case(Variant(2, "bilinear", "zeros", "plain", False), 2, (9, 9), (9, 9))
    angle = math.radians(33)
    turn = [[math.cos(angle), -math.sin(angle), 0.1], [math.sin(angle), math.cos(angle), 0]]
    theta = torch.tensor([turn, [[0.4, 0.1, 0], [0, 0.9, 0]]])
    args = args._replace(theta=theta).to(device, torch.float32)
    for _, without, with_it in parts(run(args, Options()), run(args, Options(antialias=True))):
        assert torch.equal(without, with_it)


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("dim", [2, 3])
def test_antialias_is_sampling_at_a_multiple_of_the_size_and_averaging(device, dim, align_corners):
    """The matrix shrinks by 3 along x and by 2 along y."""
    size_in, size = ((8, 12), (4, 4)) if dim == 2 else ((2, 8, 12), (2, 4, 4))
    factors = [2, 3] if dim == 2 else [1, 2, 3]
    args = case(Variant(dim, "bilinear", "zeros", "antialias", align_corners), 2, size_in, size)
    theta = torch.eye(dim, dim + 1, dtype=torch.float64).repeat(2, 1, 1)
    extents = [[n - align_corners for n in s] for s in (size_in, size)]
    for row, (factor, n_in, n_out) in enumerate(zip(reversed(factors), *map(reversed, extents), strict=True)):
        theta[:, row, row] = (factor - 0.3) * n_out / n_in
    args = args._replace(theta=theta).to(device, torch.float64)
    actual = launch.forward(
        args.input, args.theta, size=size, options=Options(align_corners=align_corners, antialias=True)
    )
    large = [n * f for n, f in zip(size, factors, strict=True)]
    fine = launch.forward(args.input, args.theta, size=large, options=Options(align_corners=align_corners))
    pool = torch.nn.functional.avg_pool2d if dim == 2 else torch.nn.functional.avg_pool3d
    torch.testing.assert_close(actual, pool(fine, factors))


@pytest.mark.parametrize("kind", ["plain", "many"])
@pytest.mark.parametrize("padding_mode", PADDING_MODES)
@pytest.mark.sample(6)
def test_images_of_several_tiles(device, padding_mode, kind):
    """Each map reaches some of the tiles; one samples only a mirror image."""
    variant = Variant(2, "bilinear", padding_mode, kind, False)
    args = case(variant, 1, (9, 34), (4, 5)).to(device, torch.float32)
    args.theta[:, :, :2] *= 0.4
    args.theta[1::2, 0, 2] += 3
    truth = solve(args, variant.options(), torch.float32)
    for part, actual, expected in parts(run(args, variant.options()), truth):
        assert_close(actual, expected, budget(part, expected, torch.float32), part)


@pytest.mark.parametrize("entry", [(0, 1), (1, 0)])
@pytest.mark.parametrize("value", [1e-32, -1e-32, -1e-44])
def test_slopes_too_small_to_divide_by(device, value, entry):
    args = case(Variant(2, "bilinear", "zeros", "plain", False), 1).to(device, torch.float32)
    theta = torch.tensor([[1, 0, 0.1], [0, 1, 0.1]], device=device).repeat(2, 1, 1)
    theta[(slice(None), *entry)] = value
    args = args._replace(theta=theta)
    truth = solve(args, Options(), torch.float32)
    for part, actual, expected in parts(run(args, Options()), truth):
        assert_close(actual, expected, budget(part, expected, torch.float32), part)


def test_a_far_reflection_counts_each_pixel_once(device):
    """Positions are too large to distinguish neighbouring mirror images."""
    theta = torch.tensor([[[0.5, 0, 2 * 2.0**24 * 1.01], [0, 0.5, 0]]], device=device)
    grad = torch.ones(1, 1, 1, 72, device=device)
    image = torch.zeros(1, 1, 1, 2, device=device)
    grads = launch.backward(
        grad, image, theta, options=Options("nearest", "reflection"), output_mask=(True, False, False)
    )
    assert grads[0].sum() == 72


def test_a_steep_projective_reflection_loses_nothing(device):
    """Far from the image, the search for candidates needs slack in proportion to the distance."""
    a = (2.06524062, 2.25865197, -5.11763620, 0.00306969625, 0.130263641, 1.01860142)
    row = [a[0] * 2, a[1] * 2, a[2] / 4]
    theta = torch.tensor([[row, [0, 0, 0], [a[3] * 8, a[4] * 8, a[5]]]], device=device)
    grad, image = torch.ones(1, 1, 16, 16, device=device), torch.ones(1, 1, 1, 8, device=device)
    grads = launch.backward(
        grad, image, theta, options=Options("bilinear", "reflection"), output_mask=(True, False, False)
    )
    assert abs(grads[0].sum() - 256) < 1e-3


@pytest.mark.parametrize("fill", [math.nan, math.inf])
def test_fill_values_that_are_not_finite_stay_outside(device, fill):
    images = torch.rand(1, 1, 6, 6, device=device)
    theta = torch.tensor([[[0.6, 0.13, 0], [0, 0.6, 0]]], device=device)
    values = torch.tensor([fill], device=device)
    given = {"size": (8, 8), "options": Options("bilinear", "fill")}
    assert launch.forward(images, theta, values, **given).isfinite().all()
    assert reference.forward(images, theta, values, **given).isfinite().all()
    outside = launch.forward(images, 9 * theta, values, **given)
    assert outside[..., 0, 0].item() == fill or math.isnan(fill)


@pytest.mark.parametrize(
    "count", [0, 1, pytest.param(128, marks=pytest.mark.full), 129, pytest.param(200, marks=pytest.mark.full)]
)
def test_any_number_of_matrices_for_one_image(device, count):
    """Counts lie around the number culled at once; many matrices do not reach the only tile."""
    generator = torch.Generator().manual_seed(count)
    index = torch.randint(0, 2, (count,), generator=generator)
    theta = torch.tensor([[0.2, 0.05, 0], [-0.05, 0.2, 0]]).repeat(count, 1, 1)
    theta[:, :, 2] = 3 * torch.randn(count, 2, generator=generator)
    args = case(Variant(2, "bilinear", "zeros", "index", False), 1, (12, 20), (2, 2))
    grad = torch.randn(count, 1, 2, 2, generator=generator)
    args = args._replace(theta=theta.double(), image_index=index, grad=grad.double()).to(
        device, torch.float32
    )
    truth = solve(args, Options(), torch.float32)
    for part, actual, expected in parts(run(args, Options()), truth):
        limit = budget(part, expected, torch.float32) if expected.numel() else 0
        assert_close(actual, expected, limit, part)


def test_the_index_may_have_any_strides(device):
    args = case(Variant(2, "bilinear", "zeros", "index", False)).to(device, torch.float32)
    spread = torch.stack((args.image_index, torch.zeros_like(args.image_index)), 1)[:, 0]
    assert not spread.is_contiguous()
    strided = run(args._replace(image_index=spread), Options())
    for _, first, second in parts(run(args, Options()), strided):
        assert torch.equal(first, second)


@pytest.mark.parametrize("dtype", [torch.float32, torch.uint8, torch.int64], ids=str)
def test_an_index_out_of_range_reads_and_writes_nothing_of_others(device, dtype):
    """Calls on a GPU cannot check an index: the output is NaN, or 0 for integers, with zero gradients."""
    args = case(Variant(2, "bilinear", "zeros", "index", False)).to(device, torch.float32)
    good = torch.tensor([2, 0, 2], device=device)
    for bad in (-1, 3, 2**40):
        index = torch.tensor([2, bad, 2], device=device)
        if not dtype.is_floating_point:
            images, fill = (args.input * 99).to(dtype), None
            options = Options()
            if dtype in LABEL_DTYPES:
                options, fill = Options("nearest", "fill"), images.new_full(images.shape[1:2], 7)
            output = launch.forward(images, args.theta, fill, index, size=args.size, options=options)
            assert not output[1].any()
            continue
        result = run(args._replace(image_index=index), Options())
        kept = args._replace(image_index=good, grad=args.grad.clone())
        kept.grad[1] = 0
        expected = run(kept, Options())
        assert result.output[1].isnan().all()
        assert torch.equal(result.output[[0, 2]], expected.output[[0, 2]])
        assert torch.equal(result.grad_input, expected.grad_input)
        assert torch.equal(result.grad_theta, expected.grad_theta)


@pytest.mark.parametrize("kind", ["plain", "many", "projective", "index"])
@pytest.mark.parametrize("dtype", LABEL_DTYPES, ids=str)
@pytest.mark.sample(8)
def test_labels_are_copied(device, dtype, kind):
    """Compare with plain PyTorch, for 2 or 16 channels; one map is NaN."""
    for padding_mode, channels in zip(PADDING_MODES, (16, 2, 2, 2, 16), strict=True):
        args = case(Variant(2, "nearest", padding_mode, kind, False), channels).to("cpu", torch.float32)
        labels = torch.randint(-(2**62), 2**62, args.input.shape).to(dtype)
        if channels == 16:
            labels = labels.contiguous(memory_format=torch.channels_last)
        fill = labels[0, :, 0, 0] if padding_mode == "fill" else None
        theta = args.theta.clone()
        theta[0, 0, 0] = math.nan
        options = Options("nearest", padding_mode)
        expected = reference.forward(labels, theta, fill, args.image_index, size=args.size, options=options)
        moved = [None if t is None else t.to(device) for t in (labels, theta, fill, args.image_index)]
        actual = launch.forward(*moved, size=args.size, options=options)
        assert actual.dtype == dtype
        assert actual.stride() == expected.stride()
        assert torch.equal(actual.cpu(), expected)


@pytest.mark.parametrize("mode", MODES)
def test_bytes_are_rounded_half_to_even_and_saturate(device, mode):
    args = case(Variant(2, mode, "fill", "plain", False), 3)
    images = torch.randint(0, 256, args.input.shape, generator=torch.Generator().manual_seed(0))
    images[:, 1] = 255 * (images[:, 1] > 128)  # bicubic leaves the range here
    args = args._replace(input=images.double(), fill=torch.tensor([-20.0, 300.5, 99.5])).to(
        device, torch.float32
    )
    options = Options(mode, "fill")
    expected = launch.forward(args.input, args.theta, args.fill, size=args.size, options=options)
    actual = launch.forward(args.input.byte(), args.theta, args.fill, size=args.size, options=options)
    assert actual.dtype == torch.uint8
    assert torch.equal(actual, expected.round().clamp(0, 255).byte())
    halves = torch.tensor([0, 1, 2, 3, 255, 254], dtype=torch.uint8, device=device).view(1, 1, 1, 6)
    between = torch.tensor([[[5 / 6, 0, 0], [0, 1.0, 0]]], device=device)
    output = launch.forward(halves, between, size=(1, 5))
    assert output.flatten().tolist() == [0, 2, 2, 129, 254]


@pytest.mark.parametrize("padding_mode", PADDING_MODES)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("entry", "bad"), [(0, math.nan), (2, math.inf), (4, -math.inf)])
@pytest.mark.sample(24)
def test_non_finite_maps_follow_one_rule(device, entry, bad, mode, padding_mode):
    """NaN samples nothing under zeros and fill, else the first pixel; infinity samples as padding says."""
    options = Options(mode, padding_mode)
    args = case(Variant(2, mode, padding_mode, "plain", False), 1, (4, 6), (5, 3)).to(device, torch.float32)
    args.theta[0].view(-1)[entry] = bad
    truth = solve(args, options, torch.float32)
    for part, actual, expected in parts(run(args, options), truth):
        if part in ("output", "grad_input"):
            assert_close(actual, expected, budget(part, expected, torch.float32), part)
        assert actual.isfinite().all(), part
        assert torch.equal(actual[1:].isnan(), expected[1:].isnan())


@pytest.mark.parametrize("variant", [v for v in LIGHT if v.dim == 2][5::13], ids=Variant.name)
@pytest.mark.sample(4)
def test_huge_maps_end(device, variant):
    """Covers millions of mirror images, footprints of 1e30 pixels, and overflow."""
    for scale in (1e30,) if variant.options().antialias else (1e4, 1e30, 3e38):
        args = case(variant, 1, (3, 3), (2, 2)).to(device, torch.float32)
        args.theta[0, 0, 0] *= scale
        for _, result in parts(run(args, variant.options())):
            assert not result[1:].isnan().any()
