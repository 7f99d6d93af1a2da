"""Thin plate splines: kernels against the oracle, public function against the definition of a spline."""

import itertools
import math

import pytest
import torch
from test_kernels import assert_close, parts
from torch.autograd import gradcheck, gradgradcheck

from stn_triton import (
    launch,
    policy,
    reference,
    reference_tangent,
    splines,
    thin_plate_spline_grid_sample,
    tuning,
)
from stn_triton.check import oracle
from stn_triton.kernel_specs import SPECS
from stn_triton.kernels import scatter
from stn_triton.nn import SpatialTransformer
from stn_triton.options import MODES, PADDING_MODES, Options, Tangents

pytestmark = pytest.mark.usefixtures("poisoned")  # deterministic, except where a test changes it
GRID = tuple(splines.regular_points(2, 3))
SCATTERED = (-0.9, -0.7, 0.8, -0.6, 0.1, 0.2, -0.5, 0.9)


def face():
    """Make 68 landmarks, in the order of iBUG, of a face with closed lips: inner ones are 0.001 apart."""

    def arc(count, x, y, width, height, first, last):
        angles = [math.pi * (first + (last - first) * i / (count - 1)) for i in range(count)]
        return [(x + width * math.cos(a), y + height * math.sin(a)) for a in angles]

    jaw = arc(17, 0, -0.1, 0.8, 0.95, 1, 0)
    brows = arc(5, -0.4, -0.3, 0.25, 0.15, 1, 2) + arc(5, 0.4, -0.3, 0.25, 0.15, 1, 2)
    nose = [(0.0, -0.2 + 0.12 * i) for i in range(4)] + arc(5, 0, 0.2, 0.15, 0.06, 1, 0)
    eyes = [point for x in (-0.4, 0.4) for point in arc(7, x, -0.15, 0.12, 0.05, 1, 3)[:6]]
    outer = arc(13, 0, 0.5, 0.3, 0.12, 1, 3)[:12]
    upper = [(x, 0.5) for x in (-0.25, -0.1, 0.0, 0.1, 0.25)]
    lower = [(x, 0.501) for x in (0.1, 0.0, -0.1)]
    return tuple(n for point in jaw + brows + nose + eyes + outer + upper + lower for n in point)


FACE = face()
PRODUCT = list(itertools.product(MODES, PADDING_MODES, (False, True)))


def randn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def face_offsets(count):
    """Draw smooth offsets (count, 68, 2) of a face, with noise of some thousandths as of a detector."""
    at = torch.tensor(FACE, dtype=torch.float64).view(68, 2)
    return 0.15 * torch.sin(3 * at.flip(1)) + 0.001 * randn(count, 68, 2, seed=1)


def case(options, images=2, matrices=2, size_in=(5, 7), size=(6, 5), channels=2, strength=0.3):
    """Make images, matrices of splines, gradients and fill values in fp64; some splines fold."""
    offsets = strength * randn(matrices, len(options.points) // 2, 2, seed=1)
    if options.points == FACE:
        offsets = face_offsets(matrices)
    if options.points:
        theta = splines.coefficients(offsets, options.points, torch.float64)
    else:
        theta = torch.eye(2, 3, dtype=torch.float64).repeat(matrices, 1, 1)
    fill = randn(channels, seed=2) if options.padding_mode == "fill" else None
    return randn(images, channels, *size_in), theta, size, randn(matrices, channels, *size, seed=3), fill


def _budget(points, budget=32):
    """Return the error budget. Weights of landmarks 0.001 apart cancel, which costs three digits."""
    return 2**13 if points == FACE else budget


def run(input, theta, size, grad, fill, options, image_index=None, mask=(True, True)):
    output = launch.forward(input, theta, fill, image_index, size=size, options=options)
    mask = (*mask, fill is not None)
    return oracle.Truth(
        output, *launch.backward(grad, input, theta, fill, image_index, options=options, output_mask=mask)
    )


def check(device, options, dtype, args, image_index=None, layout=torch.contiguous_format, budget=32):
    """Compare the kernels of a dtype with the oracle, whose positions have that dtype."""
    input, theta, size, grad, fill = args
    input, grad = (t.to(device, dtype).contiguous(memory_format=layout) for t in (input, grad))
    wide = torch.promote_types(dtype, torch.float32)
    theta = theta.to(device, wide)
    fill = None if fill is None else fill.to(device, wide)
    index = None if image_index is None else image_index.to(device)
    truth = oracle.solve(input, theta, size, grad, options, wide, fill, image_index)
    result = run(input, theta, size, grad, fill, options, index)
    for part, actual, expected in parts(result, truth):
        limit = budget * torch.finfo(wide).eps * max(expected.abs().max().item(), 1)
        assert_close(actual, expected, limit, part)
    return result


@pytest.mark.parametrize(("mode", "padding_mode", "align_corners"), PRODUCT)
@pytest.mark.sample(12)
def test_agrees_with_the_oracle(device, mode, padding_mode, align_corners):
    options = Options(mode, padding_mode, align_corners, points=GRID)
    layout = torch.channels_last if align_corners else torch.contiguous_format
    check(device, options, torch.float32, case(options), layout=layout)


@pytest.fixture
def launched(monkeypatch):
    """Launch each kernel three times, as tuning would, and return the names of kernels."""
    names = []

    def choose(bucket, run):
        config = policy.default(bucket)
        names.append(bucket.kernel)
        for _ in range(2):
            run(config)
        return config

    with tuning.choosing(choose):
        yield names


@pytest.fixture
def atomics(poisoned):
    """Switch the deterministic mode off, so that gradients are scattered by atomics."""
    torch.use_deterministic_algorithms(False)


@pytest.mark.usefixtures("atomics")
@pytest.mark.parametrize(("mode", "padding_mode"), [p[:2] for p in PRODUCT[::2]])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.sample(6)
def test_scattering_agrees_with_the_oracle(device, launched, mode, padding_mode, layout):
    """Repeated launches must not add to results, although scattering adds to memory."""
    options = Options(mode, padding_mode, points=GRID)
    check(device, options, torch.float32, case(options, channels=3), layout=layout)
    assert launched[-1].startswith("fill" if padding_mode == "fill" else "scatter")
    assert not any(kernel.startswith("backward") for kernel in launched)


@pytest.mark.usefixtures("atomics")
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_scattering_in_several_steps_of_channels(device, layout):
    """The last step has few channels: 21 are two steps of 8 and one of 5."""
    options, stepped = Options(points=GRID), []

    def choose(bucket, run):
        if bucket.kernel != "scatter":
            return policy.default(bucket)
        stepped.append({**policy.default(bucket), "BLOCK_C": 8, "STEPS_C": 2})
        assert tuning.checked(bucket.name(), stepped[0])
        return stepped[0]

    with tuning.choosing(choose):
        check(device, options, torch.float32, case(options, channels=21), layout=layout)
    assert len(stepped) == 1


def test_launches_pass_only_what_kernels_take(device, monkeypatch):
    """A compiled kernel refuses unknown arguments, while the interpreter ignores them."""
    seen = set()
    known = {"num_warps", "maxnreg", "enable_fp_fusion"}

    class Recorded:
        def __init__(self, kernel):
            self.kernel, self.arg_names = kernel, kernel.arg_names

        def __getitem__(self, grid):
            def call(**arguments):
                unknown = arguments.keys() - set(self.arg_names) - known
                assert not unknown, unknown
                assert not set(self.arg_names) - arguments.keys()
                seen.add(self.kernel.__name__)
                return self.kernel[grid](**arguments)

            return call

    kernels = {(spec.module, spec.kernel_name) for spec in SPECS.values()} | {(scatter, "settle_kernel")}
    for module, name in kernels:
        monkeypatch.setattr(module, name, Recorded(getattr(module, name)))
    for deterministic, points in ((True, GRID), (False, GRID), (True, ())):
        torch.use_deterministic_algorithms(deterministic)
        options = Options("bilinear", "fill", points=points)
        args = case(options)
        run(*(t.to(device) if isinstance(t, torch.Tensor) else t for t in args), options)
    assert len(seen) == 5


@pytest.mark.usefixtures("atomics")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
@pytest.mark.sample(1)
def test_scattering_by_index_and_in_other_dtypes(device, launched, dtype):
    options = Options(points=GRID)
    input, theta, size, grad, _ = case(options, 3, 4)
    wide = torch.promote_types(dtype, torch.float32)
    args = (input.to(device, dtype), theta.to(device, wide), size, grad.to(device, dtype), None, options)
    index = torch.tensor([2, 0, -1, 2], device=device)
    scattered = run(*args, index)
    torch.use_deterministic_algorithms(True)
    summed = run(*args, index)
    assert launched == ["forward", "scatter", "forward", "largest", "exact"]
    assert scattered.grad_input.dtype == dtype
    assert not scattered.grad_input[1].any()
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(scattered.grad_input, summed.grad_input, rtol=4 * eps, atol=32 * eps)


@pytest.mark.parametrize("points", [GRID, SCATTERED, FACE], ids=["grid", "scattered", "face"])
def test_agrees_with_the_exact_truth_in_fp64(device, points):
    options = Options("bicubic", "border", points=points)
    check(device, options, torch.float64, case(options), budget=_budget(points, 256))


@pytest.mark.parametrize(("mode", "padding_mode"), [("bilinear", "zeros"), ("bicubic", "fill")])
def test_landmarks_agree_with_the_oracle(device, mode, padding_mode):
    options = Options(mode, padding_mode, points=FACE)
    args = case(options, 1, 1)
    kernels = check(device, options, torch.float32, args, budget=_budget(FACE))
    input, theta, size, grad, fill = (t.float() if isinstance(t, torch.Tensor) else t for t in args)
    mask = (True, True, fill is not None)
    plain = (
        reference.forward(input, theta, fill, size=size, options=options),
        *reference.backward(grad, input, theta, fill, options=options, output_mask=mask),
    )
    for part, actual, expected in parts(oracle.Truth(*plain), kernels):
        limit = _budget(FACE) * 2**-23 * max(expected.abs().max().item(), 1)
        assert_close(actual, expected.cpu(), limit, part)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_images_have_coordinates_in_fp32(device, dtype):
    options = Options(points=GRID)
    input, theta, size, grad, fill = case(options)
    half = (input.to(device, dtype), theta.to(device, torch.float32), size, grad.to(device, dtype), fill)
    wide = (half[0].float(), half[1], size, half[3].float(), fill)
    for _, actual, expected in parts(run(*half, options), run(*wide, options)):
        eps = max(torch.finfo(actual.dtype).eps, 1e-5)  # rounded once, or summed in another order
        torch.testing.assert_close(actual.float(), expected, rtol=eps, atol=1e-5)


@pytest.mark.parametrize(
    ("images", "matrices", "index"), [(2, 4, None), (3, 4, [2, 0, 2, 2]), (3, 2, [-1, 1])]
)
def test_many_splines_for_an_image(device, images, matrices, index):
    """Covers splines in order, by index, and by an index out of range."""
    options = Options(points=GRID)
    args = case(options, images, matrices)
    index = None if index is None else torch.tensor(index)
    if index is not None and index.min() < 0:
        input, theta, size, grad, fill = (t.to(device) if isinstance(t, torch.Tensor) else t for t in args)
        result = run(input, theta, size, grad, fill, options, index.to(device))
        assert result.output[0].isnan().all()
        assert result.output[1].isfinite().all()
        assert not result.grad_theta[0].any()
        assert result.grad_theta[1].any()
        assert not result.grad_input[[0, 2]].any()
    else:
        check(device, options, torch.float32, args, index)


def test_outputs_of_several_chunks_onto_a_few_pixels(device):
    options = Options("bilinear", "border", points=GRID)
    check(device, options, torch.float64, case(options, 1, 1, (5, 4), (35, 34), 1, 1.0), budget=1024)


def test_images_of_several_tiles(device):
    options = Options("bilinear", "reflection", points=GRID)
    check(device, options, torch.float64, case(options, 1, 1, (17, 19), (9, 10), 1), budget=1024)


@pytest.mark.parametrize(("mode", "padding_mode"), [("bilinear", "zeros"), ("bicubic", "fill")])
@pytest.mark.parametrize("index", [None, [2, 0, 2]])
@pytest.mark.parametrize("is_deterministic", [True, False])
@pytest.mark.sample(2)
def test_tangents_and_second_derivatives_equal_plain_pytorch(
    device, mode, padding_mode, index, is_deterministic
):
    torch.use_deterministic_algorithms(is_deterministic)
    points = FACE if index is None and is_deterministic else GRID
    options = Options(mode, padding_mode, points=points)
    input, theta, size, grad, fill = case(options, 3, 3)
    moved = Tangents(randn(*input.shape, seed=4), randn(*theta.shape, seed=5), fill)
    index = None if index is None else torch.tensor(index)
    mask = (True, True, fill is not None)

    def results(module, device):
        to = lambda t: None if t is None else t.to(device)  # noqa: E731
        tensors = (*map(to, (input, theta, fill, index)), Tangents(*map(to, moved)))
        return (
            module.forward(*tensors, size=size, options=options),
            *module.backward(to(grad), *tensors, options=options, output_mask=mask),
        )

    pairs = zip(results(launch, device), results(reference_tangent, "cpu"), strict=True)
    for actual, expected in pairs:
        if expected is not None:
            tolerance = 1e-8 * max(expected.abs().max().item(), 1) if points == FACE else 1e-9
            torch.testing.assert_close(actual.cpu(), expected, rtol=1e-9, atol=tolerance)


def test_offsets_of_zero_copy_the_image_bit_for_bit(device):
    options = Options(points=GRID)
    theta = splines.coefficients(torch.zeros(2, 6, 2), GRID, torch.float32).to(device)
    image = torch.randn(2, 3, 9, 8).to(device)
    image[0, 0, 3, 3] = float("nan")
    assert torch.equal(
        launch.forward(image, theta, size=(9, 8), options=options).nan_to_num(7), image.nan_to_num(7)
    )


def test_gradients_are_the_same_every_time_and_nan_stays_where_it_is(device):
    """NaN in a gradient reaches only the pixels that its output pixel samples."""
    options = Options(points=GRID)
    input, theta, size, grad, _ = case(options)
    grad[0, 0, 2, 2] = float("nan")
    args = (input.float().to(device), theta.float().to(device), size, grad.float().to(device), None)
    first, second = (run(*args, options) for _ in range(2))
    for _, a, b in parts(first, second):
        assert torch.equal(a.nan_to_num(7), b.nan_to_num(7))
    assert 1 <= first.grad_input.isnan().sum() <= 4


@pytest.mark.parametrize("number", [float("nan"), float("inf"), 1e30])
@pytest.mark.parametrize("padding_mode", PADDING_MODES)
@pytest.mark.sample(8)
def test_offsets_that_are_not_finite_or_huge(device, number, padding_mode):
    """Kernels and plain PyTorch agree on the samples, which lie outside or at an edge."""
    options = Options("bilinear", padding_mode, points=GRID)
    input, _, size, grad, fill = case(options, 1, 1)
    offsets = torch.zeros(1, 6, 2, dtype=torch.float64)
    offsets[0, 0, 0] = number
    theta = splines.coefficients(offsets, GRID, torch.float64).to(device)
    on_device = [None if t is None else t.to(device) for t in (input, grad, fill)]
    result = run(on_device[0], theta, size, on_device[1], on_device[2], options)
    assert result.output.isfinite().all()
    assert result.grad_input.isfinite().all()
    if padding_mode in ("zeros", "fill") and number != 1e30:
        torch.testing.assert_close(
            result.output.cpu(), reference.forward(input, theta.cpu(), fill, size=size, options=options)
        )


@pytest.mark.parametrize("op", ["", "_backward", "_tangent", "_tangent_backward"])
def test_opcheck(device, op):
    options = Options(points=GRID)
    input, _, size, grad, _ = (t.to(device) if isinstance(t, torch.Tensor) else t for t in case(options))
    offsets = randn(2, 6, 2).to(device)
    arguments = [input, offsets, None, None]
    if "tangent" in op:
        arguments += [None, randn(2, 6, 2, seed=1).to(device), None]
    arguments = [grad, *arguments] if "backward" in op else [*arguments, list(size)]
    arguments += [*options[:4], list(GRID)] + [[True, True, False]] * ("backward" in op)
    torch.library.opcheck(getattr(torch.ops.stn_triton, f"affine_grid_sample{op}").default, tuple(arguments))


class TestFunction:
    def ramp(self, h, w):
        """Make an image whose pixels are their normalised positions."""
        y, x = torch.meshgrid(
            (2 * torch.arange(h, dtype=torch.float64) + 1) / h - 1,
            (2 * torch.arange(w, dtype=torch.float64) + 1) / w - 1,
            indexing="ij",
        )
        return torch.stack((x, y))[None]

    def test_control_points_go_where_they_are_sent(self):
        """At control points, here centres of output pixels, the spline equals the offset."""
        points = [(-0.75, -0.5), (0.25, -0.75), (0.0, 0.0), (-0.5, 0.5), (0.75, 0.75)]
        offsets = 0.1 * randn(1, 5, 2)
        output = thin_plate_spline_grid_sample(
            self.ramp(64, 64), offsets, (17, 17), points=points, align_corners=True, padding_mode="border"
        )
        for (x, y), offset in zip(points, offsets[0], strict=True):
            sampled = output[0, :, round((y + 1) * 8), round((x + 1) * 8)]
            # Under align_corners a position p in [-1, 1] sees the ramp's (1 - 1/64) p.
            expected = (torch.tensor([x, y], dtype=torch.float64) + offset) * (1 - 1 / 64)
            torch.testing.assert_close(sampled, expected, rtol=0, atol=1e-9)

    @pytest.mark.parametrize("kind", ["random", "face"])
    def test_is_the_spline_of_scipy(self, kind):
        interpolate = pytest.importorskip("scipy.interpolate")
        points = randn(9, 2, seed=6).clamp(-1, 1)
        offsets = 0.1 * randn(9, 2, seed=7)
        if kind == "face":
            points, offsets = torch.tensor(FACE, dtype=torch.float64).view(68, 2), face_offsets(1)[0]
        ramp = self.ramp(40, 50)
        output = thin_plate_spline_grid_sample(
            ramp, offsets[None], (9, 7), points=points.tolist(), padding_mode="border"
        )
        at = self.ramp(9, 7)[0].flatten(1).T
        spline = interpolate.RBFInterpolator(points, points + offsets, kernel="thin_plate_spline", degree=1)
        expected = torch.from_numpy(spline(at)).T.view(2, 9, 7)
        inside = (expected.abs() < 0.95).all(0)
        assert inside.sum() > 20
        torch.testing.assert_close(output[0][:, inside], expected[:, inside], rtol=0, atol=1e-9)

    @pytest.mark.parametrize("points", [None, (3, 3), [(-1, -1), (1, -1), (0, 0), (-1, 1)], FACE])
    def test_derivatives(self, points):
        count = 4 if isinstance(points, list) else 9
        offsets = 0.3 * randn(2, count, 2)
        if points == FACE:
            points, offsets = list(zip(FACE[::2], FACE[1::2], strict=True)), face_offsets(2)
        tensors = (randn(2, 2, 5, 6).requires_grad_(), offsets.requires_grad_())
        function = lambda x, o: thin_plate_spline_grid_sample(x, o, (4, 5), points=points)  # noqa: E731
        assert gradcheck(function, tensors, check_forward_ad=True, fast_mode=True)
        assert gradgradcheck(function, tensors, fast_mode=True)

    def test_compiles(self):
        function = torch.compile(thin_plate_spline_grid_sample, fullgraph=True)
        image, offsets = randn(2, 2, 5, 6), (0.3 * randn(2, 9, 2)).requires_grad_()
        expected = thin_plate_spline_grid_sample(image, offsets)
        actual = function(image, offsets)
        torch.testing.assert_close(actual, expected)
        grads = [torch.autograd.grad(out.square().sum(), offsets)[0] for out in (actual, expected)]
        torch.testing.assert_close(*grads)

    def test_compiles_with_sizes_that_vary(self):
        function = torch.compile(thin_plate_spline_grid_sample, fullgraph=True)
        for n, side, count in ((2, 6, 9), (3, 7, 16), (4, 9, 25)):
            image, offsets = randn(n, 2, side, side), 0.3 * randn(n, count, 2)
            torch.testing.assert_close(
                function(image, offsets), thin_plate_spline_grid_sample(image, offsets)
            )

    def test_vmap_and_many(self):
        image, offsets = randn(2, 2, 5, 6), 0.3 * randn(2, 3, 9, 2)
        many = thin_plate_spline_grid_sample(image, offsets, 4)
        one_by_one = torch.vmap(lambda o: thin_plate_spline_grid_sample(image, o, 4), 1, 1)(offsets)
        assert many.shape == (2, 3, 2, 4, 4)
        torch.testing.assert_close(many, one_by_one)

    def test_under_autocast_coordinates_stay_exact(self):
        image, offsets = randn(1, 1, 64, 64).float(), 0.1 * randn(1, 16, 2).float()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            inside = thin_plate_spline_grid_sample(image, offsets)
        assert torch.equal(inside, thin_plate_spline_grid_sample(image, offsets))


IMAGE = torch.rand(2, 1, 4, 4)
WRONG = {
    "a volume": ((torch.rand(1, 1, 4, 4, 4), torch.zeros(1, 4, 2)), {}, ValueError, ["input", "4 dim"]),
    "offsets of matrices": ((IMAGE, torch.zeros(2, 2, 3)), {}, ValueError, ["offsets", "(N, P, 2)"]),
    "offsets are a list": ((IMAGE, [[0, 0]]), {}, TypeError, ["offsets", "list"]),
    "offsets of ints": ((IMAGE, torch.zeros(2, 4, 2).long()), {}, TypeError, ["offsets", "int64"]),
    "not a square": ((IMAGE, torch.zeros(2, 5, 2)), {}, ValueError, ["points", "square", "5"]),
    "one point": ((IMAGE, torch.zeros(2, 1, 2)), {}, ValueError, ["points", "1"]),
    "other points": ((IMAGE, torch.zeros(2, 4, 2)), {"points": (2, 3)}, ValueError, ["offsets", "6", "4"]),
    "one row": ((IMAGE, torch.zeros(2, 4, 2)), {"points": (1, 4)}, ValueError, ["points", "(1, 4)"]),
    "triples": ((IMAGE, torch.zeros(2, 1, 2)), {"points": [(1, 2, 3)]}, TypeError, ["points", "(1, 2, 3)"]),
    "NaN": ((IMAGE, torch.zeros(2, 1, 2)), {"points": [(1, float("nan"))]}, TypeError, ["points", "nan"]),
    "a string": ((IMAGE, torch.zeros(2, 4, 2)), {"points": "regular"}, TypeError, ["points", "regular"]),
    "on a line": (
        (IMAGE, torch.zeros(2, 4, 2)),
        {"points": [(0, 0), (0.5, 0.5), (1, 1), (-1, -1)]},
        ValueError,
        ["points", "line", "0.5"],
    ),
    "on top of each other": (
        (IMAGE, torch.zeros(2, 4, 2)),
        {"points": [(0, 0), (0, 0), (1, 0), (0, 1)]},
        ValueError,
        ["points", "apart"],
    ),
    "nearly on top of each other": (
        (IMAGE, torch.zeros(2, 4, 2)),
        {"points": [(0.5, 0), (1, 0), (0.5, 1e-7), (0, 1)]},
        ValueError,
        ["points", "number 0 at (0.5, 0.0)", "number 2 at (0.5, 1e-07)", "1e-07 apart"],
    ),
    "two of many": (
        (IMAGE, torch.zeros(2, 200, 2)),
        {"points": [(math.sin(i % 199), math.cos(7 * (i % 199))) for i in range(200)]},
        ValueError,
        ["points", "number 0 at (0.0, 1.0)", "number 199 at (0.0, 1.0)"],
    ),
    "on a line but for rounding": (
        (IMAGE, torch.zeros(2, 3, 2)),
        {"points": [(0.1, 0.3), (0.2, 0.6), (0.3, 0.9)]},
        ValueError,
        ["points", "line", "(0.1, 0.3)"],
    ),
    "a size of many": ((IMAGE, torch.zeros(2, 4, 2), [4] * 1000), {}, ValueError, ["size", "(4, 4"]),
    "a size of many texts": ((IMAGE, torch.zeros(2, 4, 2), ["4" * 999] * 2), {}, TypeError, ["size", "'44"]),
    "a mode of many letters": (
        (IMAGE, torch.zeros(2, 4, 2)),
        {"mode": "b" * 999},
        ValueError,
        ["mode", "'bb"],
    ),
    "offsets for other images": ((IMAGE, torch.zeros(3, 4, 2)), {}, ValueError, ["offsets", "(2, ...)", "3"]),
}


@pytest.mark.parametrize(("args", "options", "error", "words"), WRONG.values(), ids=WRONG.keys())
def test_wrong_arguments(args, options, error, words):
    with pytest.raises(error) as caught:
        thin_plate_spline_grid_sample(*args, **options)
    assert all(word in str(caught.value) for word in words), caught.value
    assert len(str(caught.value)) < 400


def test_a_layer_names_its_points():
    points = [(0, 0), (1, 0), (0, 1), (0, 0)]
    with pytest.raises(
        ValueError, match=r"^control_points must be apart, got number 0 at .* and number 3 at "
    ):
        SpatialTransformer(1, transform="tps", control_points=points)
    with torch.device("meta"):  # meta tensors have no numbers
        SpatialTransformer(1, transform="tps", control_points=(2, 3))


@pytest.mark.parametrize("distance", [1e-2, 1e-3, 1e-4, 1e-5])
def test_two_points_that_are_close(distance):
    """A tenth of the distance has ten times the error in fp32 and a hundred times in fp64."""
    from mpmath import mp, mpf

    points = [
        (-0.8, -0.7),
        (0.85, -0.75),
        (-0.7, 0.9),
        (0.1, 0.2),
        (0.1 + 0.6 * distance, 0.2 + 0.8 * distance),
    ]
    offsets = 0.1 * randn(5, 2)
    offsets[4] = offsets[3] + distance
    phi = lambda a, b: sum((p - q) ** 2 for p, q in zip(a, b, strict=True))  # noqa: E731
    log = lambda square: square * mp.log(square, 2) if square else mpf(0)  # noqa: E731
    with mp.workdps(50):
        exact = [(mpf(x), mpf(y)) for x, y in points]
        rows = [[log(phi(p, q)) for q in exact] + [*p, 1] for p in exact]
        rows += [[p[k] for p in exact] + [0] * 3 for k in (0, 1)] + [[1] * 5 + [0] * 3]
        solved = [
            mp.lu_solve(mp.matrix(rows), mp.matrix([*column, 0, 0, 0])) for column in offsets.T.tolist()
        ]
        axis = [-0.9, 0.1, 0.5]
        expected = []
        for y, x in itertools.product(axis, axis):
            terms = [log(phi((mpf(x), mpf(y)), q)) for q in exact] + [x, y, 1]
            expected += [float(sum(a * b for a, b in zip(terms, row, strict=True))) for row in solved]
    expected = torch.tensor(expected, dtype=torch.float64).view(3, 3, 2)
    flat = tuple(number for point in points for number in point)
    for dtype, limit in ((torch.float64, 1e-16 / distance**2), (torch.float32, 2e-7 / distance)):
        along = torch.tensor(axis, dtype=dtype)
        grids = torch.meshgrid(along, along, indexing="xy")
        terms = torch.stack((*grids, torch.ones(3, 3, dtype=dtype)), -1)
        terms = torch.cat((terms, splines.basis((along, along), flat)), -1)
        actual = terms @ splines.directions(offsets[None], flat, dtype)[0].T
        torch.testing.assert_close(actual.double(), expected, rtol=0, atol=limit)
