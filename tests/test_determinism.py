"""Equal bits over repeated calls, for any order of programs and, where promised, any block sizes."""

import itertools

import pytest
import test_splines
import test_variants
import torch
from test_kernels import assert_close, parts
from variants import EXISTING, LIGHT, Variant, case, tangents_of

import stn_triton
from stn_triton import launch, policy, splines, tuning
from stn_triton.options import MODES, PADDING_MODES, Options

ON_GPU = torch.cuda.is_available()
REPEATS = 100 if ON_GPU else 5  # a CPU runs plain PyTorch, which has threads but no atomics
interpreted = pytest.mark.skipif(ON_GPU, reason="a GPU has an order of its own")
GRID = tuple(splines.regular_points(3, 3))
SPLINES = [Options(*choice, points=GRID) for choice in itertools.product(MODES, PADDING_MODES)]
# On a CPU each dimension, mode and padding has one kind of map, in turns.
SAMPLE = [
    next(v for v in group[5 * i % len(group) :] + group if v.kind != "antialias index")
    for i, group in enumerate(
        list(cells) for _, cells in itertools.groupby(EXISTING, lambda v: (v.dim, v.mode, v.padding_mode))
    )
]
LARGE = (19, 37), (21, 34)
SMALL = {2: ((9, 15), (10, 13)), 3: ((2, 6, 11), (2, 7, 9))}  # for small blocks


@pytest.fixture(autouse=True)
def _deterministic():
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def gradients_and_tangents(function, *leaves):
    """Compute the output, all gradients of a random loss, and the tangent along a random direction."""
    generator = torch.Generator(leaves[0].device).manual_seed(5)
    directions = [torch.randn(t.shape, generator=generator, device=t.device) for t in leaves]
    leaves = [t.detach().requires_grad_() for t in leaves]
    output = function(*leaves)
    weights = torch.randn(output.shape, generator=generator, device=output.device)
    gradients = torch.autograd.grad(output, leaves, weights)
    with torch.no_grad():
        tangent = torch.func.jvp(function, tuple(leaves), tuple(directions))[1]
    return [output.detach(), *gradients, tangent]


def assert_same_bits(results, again):
    for first, other in zip(results, again, strict=True):
        # As integers: NaN differs from itself.
        assert torch.equal(first.view(torch.int32), other.view(torch.int32))


def sampler(args, options):
    """Return the public function of a case, with the arguments input, theta and fill."""
    is_projective = args.theta.shape[-2:] == (3, 3)
    public = stn_triton.perspective_grid_sample if is_projective else stn_triton.affine_grid_sample
    more = {} if is_projective else {"antialias": options.antialias}

    def function(input, theta, fill=None):
        choice = {"mode": options.mode, "padding_mode": options.padding_mode}
        choice |= {"align_corners": options.align_corners, "image_index": args.image_index, **more}
        if theta.shape[0] > input.shape[0] and args.image_index is None:
            theta = theta.unflatten(0, (input.shape[0], -1))
        return public(input, theta, args.size, fill_value=fill, **choice)

    return function


def leaves_of(args):
    return [t for t in (args.input, args.theta, args.fill) if t is not None]


@pytest.mark.parametrize("variant", EXISTING if ON_GPU else SAMPLE, ids=Variant.name)
def test_many_calls_give_the_same_bits(device, variant):
    args = case(variant).to(device, torch.float32)
    function = sampler(args, variant.options())
    first = gradients_and_tangents(function, *leaves_of(args))
    for _ in range(REPEATS - 1):
        assert_same_bits(first, gradients_and_tangents(function, *leaves_of(args)))


@pytest.mark.parametrize("options", SPLINES, ids=lambda o: f"{o.mode}-{o.padding_mode}")
@pytest.mark.sample(5)
def test_many_splines_give_the_same_bits(device, options):
    generator = torch.Generator().manual_seed(0)
    fill = torch.randn(2, generator=generator) if options.padding_mode == "fill" else None
    leaves = [torch.randn(2, 2, 6, 7, generator=generator), 0.3 * torch.randn(2, 9, 2, generator=generator)]
    leaves = [t.to(device) for t in (*leaves, fill) if t is not None]

    def function(input, offsets, fill=None):
        choice = {"mode": options.mode, "padding_mode": options.padding_mode, "fill_value": fill}
        return stn_triton.thin_plate_spline_grid_sample(input, offsets, (5, 6), **choice)

    first = gradients_and_tangents(function, *leaves)
    for _ in range(REPEATS - 1):
        assert_same_bits(first, gradients_and_tangents(function, *leaves))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_many_calls_of_a_whole_batch(device, dtype, layout):
    """Large enough for several threads of a CPU, or all multiprocessors of a GPU."""
    generator = torch.Generator().manual_seed(0)
    input = torch.randn(8, 16, 60, 60, generator=generator).to(device, dtype).contiguous(memory_format=layout)
    theta = torch.eye(2, 3).repeat(8, 1, 1) + 0.2 * torch.randn(8, 2, 3, generator=generator)
    leaves = [input.requires_grad_(), theta.to(device).requires_grad_()]
    first = None
    for _ in range(REPEATS):
        output = stn_triton.affine_grid_sample(*leaves)
        results = [output, *torch.autograd.grad(output, leaves, output.detach())]
        first = first or results
        assert all(torch.equal(a, b) for a, b in zip(first, results, strict=True))


def everything(args, options):
    """Compute the output and the gradients, without and with tangents."""
    mask = (True, True, args.fill is not None)
    results = []
    for tangents in (None, tangents_of(args)):
        tensors = (args.input, args.theta, args.fill, args.image_index, tangents)
        results.append(launch.forward(*tensors, size=args.size, options=options))
        results += launch.backward(args.grad, *tensors, options=options, output_mask=mask)
    return [t for t in results if t is not None]


# Deterministic sums of antialiased volumes and cubic samples take a minute to interpret.
FEW = [v for v in LIGHT if "antialias" not in v.kind or (v.dim == 2 and v.mode == "bilinear")]
FILLED = [Variant(2, "bilinear", "fill", "antialias", False), Variant(3, "bilinear", "fill", "plain", True)]


@interpreted
@pytest.mark.parametrize("variant", [*FEW[2::58], *FILLED], ids=Variant.name)
@pytest.mark.sample(1)
def test_the_order_of_programs_does_not_matter(device, shuffled, variant):
    size_in, size = SMALL[variant.dim]
    args = case(variant, 1, size_in, size).to(device, torch.float32)
    with tuning.choosing(lambda bucket, run: {**policy.default(bucket), "BLOCK_H": 4, "BLOCK_W": 8}):
        assert_same_bits(everything(args, variant.options()), everything(args, variant.options()))
    assert all(order != sorted(order) for order in shuffled if len(order) > 4)
    assert max(map(len, shuffled)) >= 8


def spline_case(device, options):
    args = test_splines.case(options, size_in=(13, 25), size=(14, 23), channels=1)
    return [t.to(device, torch.float32) if isinstance(t, torch.Tensor) else t for t in args]


@interpreted
@pytest.mark.parametrize("options", SPLINES[::4], ids=lambda o: f"{o.mode}-{o.padding_mode}")
@pytest.mark.sample(1)
def test_the_order_of_programs_does_not_matter_to_splines(device, shuffled, options):
    args = spline_case(device, options)
    pairs = parts(test_splines.run(*args, options), test_splines.run(*args, options))
    assert all(torch.equal(first, other) for _, first, other in pairs)
    assert max(map(len, shuffled)) >= 8


@interpreted
def test_the_order_of_atomics_matters(device, shuffled):
    """Shows that the tests above see the order, and why deterministic algorithms add integers."""
    torch.use_deterministic_algorithms(False)
    args = spline_case(device, Options(points=GRID))
    first, other = (test_splines.run(*args, Options(points=GRID)) for _ in range(2))
    assert not torch.equal(first.grad_input, other.grad_input)
    torch.testing.assert_close(first.grad_input, other.grad_input, rtol=1e-4, atol=1e-5)
    assert torch.equal(first.output, other.output)


CHOICES = [v for v in LIGHT if v.align_corners and v.dim == 2]


@pytest.mark.parametrize(
    "variant", CHOICES if ON_GPU else [v for v in FEW if v in CHOICES][1::26], ids=Variant.name
)
@pytest.mark.full
def test_block_sizes_change_the_last_bits_of_sums_over_pixels_alone(device, monkeypatch, variant):
    """Programs share the sums of theta and fill values. test_kernels.py tries all configurations."""
    args = case(variant, 5, *(LARGE if ON_GPU else ((5, 9), (6, 10)))).to(device, torch.float32)
    expected = test_variants.run(args, variant.options())
    original, tried = policy.default, set()
    for i in range(len(CHOICES) if ON_GPU else 2):

        def choose(bucket, run, i=i):
            space = [config for config in policy.space(bucket) if config != original(bucket)]
            config = space[(i * len(space)) // 3 % len(space)]
            tried.add((bucket.kernel, tuple(config.values())))
            return config

        with tuning.choosing(choose):
            actual = test_variants.run(args, variant.options())
        for part, result, truth in parts(actual, expected):
            if part in ("output", "grad_input"):
                assert torch.equal(result, truth), part
            else:
                assert_close(result, truth, 2e-6 * max(truth.abs().max().item(), 1), part)
    assert len(tried) > len({kernel for kernel, _ in tried})
