"""The kernels against the oracle, compiled if there is a GPU, else interpreted."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F

from stn_triton import buckets, contract, kernel_launch, launch, policy, tuning
from stn_triton.check import oracle
from stn_triton.options import Options

pytestmark = pytest.mark.usefixtures("poisoned")


def parts(*results):
    """Yield name and parts (output, gradients) of several results, unless None."""
    for name, *tensors in zip(oracle.Truth._fields, *results, strict=True):
        if tensors[0] is not None:
            yield name, *tensors


def rotation(degrees, scale=1.0, x=0.0, y=0.0):
    c, s = scale * math.cos(math.radians(degrees)), scale * math.sin(math.radians(degrees))
    return [[c, -s, x], [s, c, y]]


SMOOTH = {  # no coordinate of these, at the sizes below, is an integer
    "rotate 20": rotation(20, 1, 0.013, -0.041),
    "rotate 45": rotation(45, 1, 0.017, 0.033),
    "rotate 98 and zoom in": rotation(98, 0.31, 0.21, 0.007),
    "shrink": [[2.03, 0.11, 0.013], [0.07, 1.97, 0.031]],
    "anisotropic": [[0.213, 0.017, 0.011], [0.023, 2.91, 0.029]],
    "shear": [[1.013, 1.917, 0.023], [0.011, 0.983, 0.047]],
}
KINKED = {
    "identity": [[1, 0, 0], [0, 1, 0]],
    "near identity": [[1, 2.5e-6, 0], [1e-7, 1, 0]],
    "half a turn": [[-1, 0, 0], [0, -1, 0]],
    "axis swap": [[0, 1, 0], [1, 0, 0]],
    "zoom": [[0.5, 0, 0], [0, 0.5, 0]],
    "shift": [[1, 0, 0.5], [0, 1, -0.25]],
    "singular": [[1, 1, 0], [1, 1, 0]],
    "nearly singular": [[1, 1, 0], [1, 1 + 1e-6, 0]],
    "row only": [[1, 0, 0], [0, 0, 0.1]],
    "zero": [[0, 0, 0.13], [0, 0, 0.21]],
    "outside": [[1, 0, 5], [0, 1, 0]],
    "huge": [[1e30, 0, 0], [0, 1, 0]],
}
ALL = {**SMOOTH, **KINKED}
# Sizes a little larger than a tile, odd and even; and sizes that tiles divide.
SIZES = [((7, 17), (9, 14)), ((8, 16), (8, 16))]


def case(device, thetas, size_in, size_out, dtype=torch.float32, channels=2, channels_last=False):
    generator = torch.Generator().manual_seed(0)
    n = len(thetas)
    form = torch.channels_last if channels_last else torch.contiguous_format
    input = torch.randn(n, channels, *size_in, generator=generator, dtype=torch.float64)
    grad = torch.randn(n, channels, *size_out, generator=generator, dtype=torch.float64)
    input, grad = (t.to(device, dtype).contiguous(memory_format=form) for t in (input, grad))
    theta = torch.tensor(thetas, device=device, dtype=torch.promote_types(dtype, torch.float32))
    return input, theta, grad


def run(input, theta, grad, align_corners=False, mask=(True, True)):
    options = Options(align_corners=align_corners)
    output = launch.forward(input, theta, size=grad.shape[2:], options=options)
    return oracle.Truth(
        output, *launch.backward(grad, input, theta, options=options, output_mask=(*mask, False))
    )


def solve(input, theta, grad, align_corners=False, dtype=torch.float64):
    return oracle.solve(input, theta, grad.shape[2:], grad, Options(align_corners=align_corners), dtype)


def eager(input, theta, grad, align_corners):
    """Compute with PyTorch's pair in the dtype of the arguments."""
    torch.use_deterministic_algorithms(False)  # the pair has no deterministic backward on a GPU
    input, theta = input.clone().requires_grad_(), theta.clone().requires_grad_()
    grid = F.affine_grid(theta, [*input.shape[:2], *grad.shape[2:]], align_corners)
    output = F.grid_sample(input, grid, align_corners=align_corners)
    gradients = torch.autograd.grad(output, (input, theta), grad)
    torch.use_deterministic_algorithms(True)
    return oracle.Truth(output.detach(), *gradients, None)


def assert_close(actual, truth, budget, what):
    """Check each element within ``budget`` plus the rounding of its dtype."""
    error = (actual.double() - truth).abs()
    # The interpreter truncates to bf16, a GPU rounds to nearest.
    truncates = actual.dtype == torch.bfloat16 and not actual.is_cuda
    rounding = torch.finfo(actual.dtype).eps * (1 if truncates else 0.5) * truth.abs()
    rounding += torch.finfo(actual.dtype).tiny
    excess = (error - rounding).max().item() if error.numel() else 0.0
    assert excess <= budget, f"{what}: error {excess:.2e} over the budget of {budget:.2e}"


# Other dtypes differ in loads and stores only.
GRID = [(torch.float32, sizes, align, ALL) for sizes in SIZES for align in (False, True)]
GRID += [(dtype, SIZES[0], False, SMOOTH) for dtype in (torch.bfloat16, torch.float16, torch.float64)]


@pytest.mark.parametrize("channels_last", [False, True], ids=["nchw", "channels_last"])
@pytest.mark.parametrize(
    ("dtype", "sizes", "align_corners", "maps"), GRID, ids=lambda v: "" if isinstance(v, dict) else str(v)
)
@pytest.mark.sample(5)
def test_every_map_agrees_with_the_oracle_that_shares_positions(
    device, sizes, dtype, channels_last, align_corners, maps
):
    args = case(device, list(maps.values()), *sizes, dtype, channels_last=channels_last)
    position = torch.float64 if dtype == torch.float64 else torch.float32
    truth = solve(*args, align_corners, position)
    result = run(*args, align_corners)
    eps = torch.finfo(position).eps
    for i, name in enumerate(maps):
        for part, actual, expected in parts(result, truth):
            # Sums round in proportion to their terms; 512 terms in trees of pairs lose a few eps.
            budget = 16 * eps * max(expected[i].abs().max().item(), 1)
            if part == "grad_input" and name in ("zero", "singular", "nearly singular", "row only"):
                budget *= 8  # hundreds of output pixels are added to one input pixel in sequence
            assert_close(actual[i], expected[i], budget, f"{part} of {name}")


@pytest.mark.parametrize(
    ("name", "align_corners"), [*zip(SMOOTH, itertools.cycle((False, True)), strict=False)]
)
@pytest.mark.sample(2)
def test_error_is_within_twice_pytorch_s_own(device, name, align_corners):
    args = case(device, [SMOOTH[name]], (33, 47), (41, 29), channels=3)
    truth = solve(*args, align_corners)
    theirs = eager(*args, align_corners)
    ours = run(*args, align_corners)
    for part, actual, other, expected in parts(ours, theirs, truth):
        assert_close(actual, expected, 2 * (other.double() - expected).abs().max().item(), part)


@pytest.mark.parametrize(("channels_last", "align_corners"), [(False, True), (True, False)])
@pytest.mark.full
def test_gradcheck_through_the_kernels(device, channels_last, align_corners):
    options = Options(align_corners=align_corners)

    class Sample(torch.autograd.Function):
        @staticmethod
        def forward(ctx, input, theta):
            ctx.save_for_backward(input, theta)
            return launch.forward(input, theta, size=(4, 3), options=options)

        @staticmethod
        def backward(ctx, grad):
            mask = (*ctx.needs_input_grad, False)
            return launch.backward(grad, *ctx.saved_tensors, options=options, output_mask=mask)[:2]

    thetas = [rotation(31, 0.9, 0.05, 0.02)]
    input, theta, _ = case(device, thetas, (3, 4), (4, 3), torch.float64, 2, channels_last)
    input.requires_grad_(), theta.requires_grad_()
    torch.autograd.gradcheck(Sample.apply, (input, theta))
    torch.autograd.gradcheck(lambda t: Sample.apply(input.detach(), t), (theta,))


@pytest.mark.parametrize("size", [(8, 16), (16, 8), (32, 4)], ids=str)
@pytest.mark.parametrize(("dx", "dy"), [(1, 0), (0, -1), (-3, 2), (5, 3)])
def test_whole_pixel_shifts_are_exact(device, size, dx, dy):
    theta = [[1, 0, 2 * dx / size[1]], [0, 1, 2 * dy / size[0]]]
    input, theta, grad = case(device, [theta], size, size)
    result = run(input, theta, grad, False, (True, False))
    padded = F.pad(input, (8, 8, 8, 8))
    assert torch.equal(result.output, padded[:, :, 8 + dy :, 8 + dx :][:, :, : size[0], : size[1]])
    padded = F.pad(grad, (8, 8, 8, 8))
    assert torch.equal(result.grad_input, padded[:, :, 8 - dy :, 8 - dx :][:, :, : size[0], : size[1]])


@pytest.mark.parametrize("align_corners", [False, True])
def test_quarter_turns_are_exact(device, align_corners):
    input, theta, grad = case(device, [[[0, 1, 0], [-1, 0, 0]]], (9, 9), (9, 9))
    result = run(input, theta, grad, align_corners, (True, False))
    assert torch.equal(result.output, input.rot90(-1, (2, 3)))
    assert torch.equal(result.grad_input, grad.rot90(1, (2, 3)))


def test_kinks_take_the_derivative_of_the_cell_to_the_right(device):
    """The identity samples the row 0 1 4 9 16; slopes to the right are 1 3 5 7, and -16 at the edge."""
    input = torch.tensor([0.0, 1.0, 4.0, 9.0, 16.0], device=device).view(1, 1, 1, 5)
    theta = torch.tensor([KINKED["identity"]], device=device, dtype=torch.float32)
    for column, slope in enumerate((1.0, 3.0, 5.0, 7.0, -16.0)):
        grad = torch.zeros_like(input)
        grad[..., column] = 1
        for mask in ((True, True), (False, True)):
            grad_theta = run(input, theta, grad, False, mask).grad_theta
            # t02 moves by half the width per unit, t00 by that times the centred normalised column.
            assert grad_theta[0, 0].tolist() == [slope * (column - 2), 0.0, slope * 2.5]
            assert grad_theta[0, 1, 2] == -0.5 * input[..., column]  # below the only row is zero


@pytest.mark.parametrize("name", SMOOTH)
def test_backward_is_the_adjoint_of_forward(device, name):
    input, theta, grad = case(device, [SMOOTH[name]], (9, 17), (7, 19), torch.float64)
    result = run(input, theta, grad, mask=(True, False))
    torch.testing.assert_close(
        (result.output * grad).sum(), (result.grad_input * input).sum(), rtol=1e-12, atol=0
    )


EDGE = [n + d for n in (8, 16) for d in (-1, 0, 1)]


@pytest.mark.parametrize("height", [1, *EDGE[:3]])
@pytest.mark.parametrize("width", [1, *EDGE[3:]])
@pytest.mark.sample(6)
def test_sizes_around_the_block_edges(device, height, width):
    """Input and output swap sizes, so that both meet every edge of an 8 x 16 tile, and single pixels."""
    for sizes in (((height, width), (width, height)), ((width, height), (height, width))):
        args = case(device, [rotation(33, 0.8, 0.1, 0.05)], *sizes, channels=1)
        truth = solve(*args, False, torch.float32)
        for part, actual, expected in parts(run(*args), truth):
            assert_close(actual, expected, 2e-6 * max(expected.abs().max().item(), 1), part)


@pytest.mark.parametrize("channels", [1, 3, 16, 17, 48])
@pytest.mark.parametrize("channels_last", [False, True], ids=["nchw", "channels_last"])
@pytest.mark.sample(6)
def test_channel_counts_around_the_blocks(device, channels, channels_last):
    args = case(
        device, [rotation(33, 0.8, 0.1, 0.05)], (6, 7), (7, 6), torch.float32, channels, channels_last
    )
    truth = solve(*args, False, torch.float32)
    result = run(*args)
    layouts = [contract.memory_format(t, t.shape[2:]) for t in (result.output, args[0])]
    assert layouts[0] == layouts[1]
    assert result.grad_input.stride() == args[0].stride()
    for part, actual, expected in parts(result, truth):
        assert_close(actual, expected, 2e-6 * max(expected.abs().max().item(), 1), part)


VIEWS = {
    "every second row": lambda t: t.repeat_interleave(2, 2)[:, :, ::2],
    "every second column": lambda t: t.repeat_interleave(2, 3)[..., ::2],
    "every second channel": lambda t: t.repeat_interleave(2, 1)[:, ::2],
    "transposed": lambda t: t.transpose(2, 3).contiguous().transpose(2, 3),
    "one image expanded": lambda t: t[:1].expand_as(t),
    "one pixel expanded": lambda t: t[..., :1, :1].expand_as(t),
    "at an odd offset": lambda t: F.pad(t, (3, 0))[..., 3:],
    "channels_last": lambda t: t.contiguous(memory_format=torch.channels_last),
}


@pytest.mark.parametrize(
    ("name", "channels"),
    [*((name, 3) for name in VIEWS), ("channels_last", 16), ("every second channel", 16)],
)
@pytest.mark.sample(5)
def test_any_strides_of_every_tensor(device, name, channels):
    view = VIEWS[name]
    thetas = [rotation(33, 0.8, 0.1, 0.05), rotation(-12, 1.1)]
    input, theta, grad = case(device, thetas, (6, 9), (7, 6), channels=channels)
    for args in ((view(input), theta, grad), (input, theta, view(grad))):
        truth = solve(*args, False, torch.float32)
        for part, actual, expected in parts(run(*args), truth):
            assert_close(actual, expected, 2e-6 * max(expected.abs().max().item(), 1), part)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.sample(1)
def test_theta_has_its_own_dtype_and_strides(device, dtype):
    input, theta, grad = case(device, [rotation(45, 0.5), rotation(90, 0.25)], (6, 9), (7, 6))
    theta = theta.to(dtype)
    expected = run(input, theta.float(), grad)
    transposed = theta.transpose(1, 2).contiguous().transpose(1, 2)
    for variant in (theta, transposed):
        actual = run(input, variant, grad)
        assert torch.equal(actual.output, expected.output)
        assert actual.grad_theta.dtype == dtype
        torch.testing.assert_close(actual.grad_theta, expected.grad_theta.to(dtype))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 1e38, -3e38])
@pytest.mark.parametrize("entry", range(6))
@pytest.mark.sample(6)
def test_non_finite_and_huge_theta_sample_zero_and_leave_finite_gradients(device, bad, entry):
    input, theta, grad = case(device, [rotation(20), rotation(20)], (6, 10), (8, 8))
    theta[0].view(-1)[entry] = bad  # with an even output size no centred coordinate is zero
    result = run(input, theta, grad)
    theta_only = run(input, theta, grad, mask=(False, True))
    for tensor in (result.output, result.grad_input, result.grad_theta, theta_only.grad_theta):
        assert not tensor[0].any()
        assert tensor[1].any()
        assert tensor.isfinite().all()


def test_a_huge_matrix_still_samples_where_its_terms_cancel(device):
    input, _, grad = case(device, [KINKED["identity"]], (5, 5), (5, 5), channels=1)
    theta = torch.tensor([[[3e38, -3e38, 0], [0, 0, 0]]], device=device)
    result = run(input, theta, grad)
    centre = slice(1, 4)  # further out a term alone overflows
    diagonal, grads = (t.diagonal(dim1=2, dim2=3)[..., centre] for t in (result.output, grad))
    assert torch.equal(diagonal, input[..., 2:3, 2].expand_as(diagonal))
    assert result.output.count_nonzero() == 3
    torch.testing.assert_close(result.grad_input[0, 0, 2, 2], grads.sum())


@pytest.mark.parametrize("mask", [(True, True), (False, True)])
def test_a_nan_gradient_of_a_pixel_that_samples_outside_is_not_seen(device, mask):
    input, _, grad = case(device, [KINKED["identity"]], (6, 6), (6, 6))
    theta = torch.tensor([[[1, 0, 1.5], [0, 1, 0]]], device=device)
    grad[..., 5] = math.nan
    assert run(input, theta, grad, mask=mask).grad_theta.isfinite().all()


def test_a_nan_in_a_pixel_that_nobody_samples_does_not_reach_theta(device):
    """Columns 1 to 4 are sampled; a thread of the gather owns columns 0 and 1, another 4 and 5."""
    input, theta, grad = case(device, [[[0.3, 0, 0.013], [0, 0.3, 0.021]]], (6, 6), (6, 6))
    input[..., [0, 5]] = math.nan
    assert run(input, theta, grad).grad_theta.isfinite().all()


@pytest.mark.parametrize("mask", [(True, True), (True, False)])
def test_an_infinite_gradient_reaches_the_pixels_that_it_samples(device, mask):
    input, theta, grad = case(device, [[[1, 0, 0.1], [0, 1, 0.1]]], (6, 6), (6, 6))
    grad[0, 0, 3, 1] = math.inf
    found = ~run(input, theta, grad, mask=mask).grad_input.isfinite()
    assert found[0, 0, 3:5, 1:3].all()
    assert found.sum() == 4


def test_offsets_are_as_wide_as_the_widest_tensor_even_if_only_written(monkeypatch):
    """The input is expanded, while its gradient is dense and larger."""
    flags = []
    real = kernel_launch.constants_of
    monkeypatch.setattr(kernel_launch, "constants_of", lambda *args: flags.append(real(*args)) or flags[-1])
    for size, width in ((40_000, "int32"), (50_000, "int64")):
        input = torch.empty(1, 1, 1, 1, device="meta").expand(1, 1, size, size)
        grad = torch.empty(1, 1, 8, 8, device="meta")
        theta = torch.empty(1, 2, 3, device="meta")
        launch.backward(grad, input, theta, output_mask=(True, False, False))
        assert width in str(flags.pop()["INDEX"])


@pytest.mark.parametrize(("n", "channels", "size"), [(0, 3, (4, 5)), (2, 0, (4, 5))])
def test_empty_tensors_launch_nothing(device, n, channels, size):
    input = torch.ones(n, channels, 6, 7, device=device)
    theta = torch.ones(n, 2, 3, device=device)
    grad = torch.ones(n, channels, *size, device=device)
    result = run(input, theta, grad)
    assert result.output.shape == grad.shape
    assert result.grad_input.shape == input.shape
    assert torch.equal(result.grad_theta, torch.zeros_like(theta))


def test_offsets_beyond_31_bits(device):
    """Rows 2**30 elements apart: within an image, the last one starts beyond 2**31."""
    if device.type == "cuda" and torch.cuda.mem_get_info()[0] < 2**33:
        pytest.skip("needs 8 GiB of GPU memory")
    near, theta, grad = case(device, [rotation(20, 0.9)], (4, 5), (4, 5), torch.float16, 1)
    flag = torch.utils.deterministic.fill_uninitialized_memory
    torch.utils.deterministic.fill_uninitialized_memory = False  # 6 GiB that are never touched
    try:
        far = torch.empty(3 * 2**30 + 5, dtype=torch.float16, device=device)
    finally:
        torch.utils.deterministic.fill_uninitialized_memory = flag
    far = far.as_strided((1, 1, 4, 5), (2**32, 2**32, 2**30, 1))
    far.copy_(near)
    for expected, actual in zip(run(near, theta, grad)[:3], run(far, theta, grad)[:3], strict=True):
        assert torch.equal(expected, actual)


PLAIN = buckets.variant_of(2, False, False, False, Options())
BUCKETS = [
    buckets.bucket_of(kernel, PLAIN, channels_last, torch.float32, 2, channels, 300)
    for kernel in ("forward", "backward", "backward_input", "theta")
    for channels_last, channels in ((False, 3), (False, 32), (True, 3), (True, 32), (True, 33))
]


# Ordinary runs take the fastest bucket of each kernel.
BUCKETS = [
    b if (b.layout, b.channels) == ("nchw", 3) else pytest.param(b, marks=pytest.mark.full) for b in BUCKETS
]


@pytest.mark.parametrize("bucket", BUCKETS, ids=buckets.Bucket.name)
def test_every_configuration_gives_the_same(device, bucket):
    """Bits are equal, except in grad_theta, whose sums are split differently."""
    channels = {64: 33}.get(bucket.channels, bucket.channels)
    channels_last = bucket.layout != "nchw"
    args = case(device, [rotation(33, 0.8, 0.1)], (9, 17), (12, 10), torch.float32, channels, channels_last)
    mask = {"backward_input": (True, False), "theta": (False, True)}.get(bucket.kernel, (True, True))
    expected = run(*args, mask=mask)
    configs = policy.space(bucket)
    # The interpreter is slow: it runs a few configurations, spread evenly.
    for config in configs if device.type == "cuda" else configs[:: 1 + len(configs) // 4]:
        chosen = []

        def choose(other, _, config=config, chosen=chosen):
            chosen.append(other.kernel)
            return config if other.kernel == bucket.kernel else policy.default(other)

        with tuning.choosing(choose):
            actual = run(*args, mask=mask)
        assert bucket.kernel in chosen
        assert torch.equal(actual.output, expected.output), config
        if mask[0]:
            assert torch.equal(actual.grad_input, expected.grad_input), config
        if mask[1]:
            error = (actual.grad_theta - expected.grad_theta).abs().max()
            assert error <= 2e-6 * expected.grad_theta.abs().max(), config


@pytest.fixture
def steps():
    """Return a switch that makes kernels go through channels in two steps; gathers then list pixels."""
    taken = []
    is_on = False

    def choose(bucket, _):
        config = policy.default(bucket)
        if is_on and bucket.has_steps():
            taken.append(bucket.kernel)
            config = {**config, "BLOCK_C": 2, "STEPS_C": 2}
        return config

    def switch(to):
        nonlocal is_on
        is_on = to
        return taken

    with tuning.choosing(choose):
        yield switch


# Maps for which few or many output pixels reach a tile, so that some lists are too short.
STEPPED = ("row only", "shrink", "identity", "outside", "rotate 20", "huge", "nearly singular", "zoom")


@pytest.mark.parametrize(
    ("name", "padding_mode"), [*zip(STEPPED, itertools.cycle(["zeros", "fill"]), strict=False)]
)
@pytest.mark.sample(3)
def test_a_program_of_several_steps_gives_the_same(device, steps, name, padding_mode):
    """Five channels take two programs, the second with one block of two channels."""
    input, theta, grad = case(device, [ALL[name]], *SIZES[0], channels=5)
    options = Options("bilinear", padding_mode)
    fill = torch.linspace(-1, 1, 5, device=device) if padding_mode == "fill" else None
    results = []
    for is_on in (False, True):
        taken = steps(is_on)
        output = launch.forward(input, theta, fill, size=grad.shape[2:], options=options)
        both = launch.backward(grad, input, theta, fill, options=options)
        alone = launch.backward(grad, input, theta, fill, options=options, output_mask=(True, False, False))
        theta_alone = launch.backward(
            grad, input, theta, fill, options=options, output_mask=(False, True, False)
        )
        results.append((output, both[0], alone[0], both[1], theta_alone[1]))
    assert taken == ["forward", "backward", "backward_input", "theta"]
    for i, (expected, actual) in enumerate(zip(*results, strict=True)):
        if i < 3:
            assert torch.equal(actual, expected)
        else:
            assert_close(actual, expected, 2e-6 * max(expected.abs().max().item(), 1), "grad_theta")


@pytest.mark.parametrize("options", [Options("nearest"), Options(padding_mode="border")], ids=str)
@pytest.mark.sample(1)
def test_steps_of_other_options(device, steps, options):
    thetas = [ALL["rotate 20"], ALL["shift"], ALL["shrink"]]
    input, theta, grad = case(device, thetas, *SIZES[0], channels=5)
    results = []
    for is_on in (False, True):
        steps(is_on)
        results.append(launch.backward(grad, input, theta, options=options)[:2])
    (grad_input, grad_theta), (same, close) = results
    assert torch.equal(same, grad_input)
    assert_close(close, grad_theta, 2e-6 * max(grad_theta.abs().max().item(), 1), "grad_theta")
