"""Tests that need a GPU: agreement with PyTorch's CUDA sampler, sizes, streams, graphs, no waiting."""

import functools

import pytest
import torch
import torch.nn.functional as F

import stn_triton
from stn_triton import splines

pytestmark = pytest.mark.gpu
CUDA = "cuda"


def data(shape, dtype=torch.float32, channels_last=False, requires_grad=True):
    torch.manual_seed(0)
    form = torch.channels_last if channels_last else torch.contiguous_format
    input = torch.randn(shape, device=CUDA).to(dtype).contiguous(memory_format=form)
    eye = torch.eye(2, 3, device=CUDA)
    theta = eye + 0.2 * torch.randn(shape[0], 2, 3, device=CUDA)
    return input.requires_grad_(requires_grad), theta.requires_grad_(requires_grad)


def pair(input, theta, size, align_corners):
    grid = F.affine_grid(theta, [*input.shape[:2], *size], align_corners)
    return F.grid_sample(input, grid, align_corners=align_corners)


def results(function, input, theta, grad):
    output = function(input, theta)
    return [output.detach(), *torch.autograd.grad(output, (input, theta), grad.to(output.dtype))]


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("channels_last", [False, True], ids=["nchw", "channels_last"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize("shape", [(4, 3, 65, 47), (2, 64, 28, 28), (3, 33, 17, 40)], ids=str)
def test_error_is_within_twice_that_of_the_pair_on_cuda(shape, dtype, channels_last, align_corners):
    size = (37, 50)
    input, theta = data(shape, dtype, channels_last)
    grad = torch.randn(*shape[:2], *size, device=CUDA)
    # Maps avoid kinks, where the derivative for theta jumps by whole pixel differences.
    with torch.no_grad():
        grid = F.affine_grid(theta.double(), [*shape[:2], *size], align_corners)
        extent = torch.tensor([shape[3], shape[2]], device=CUDA)
        pixels = (grid + 1) / 2 * (extent - 1) if align_corners else ((grid + 1) * extent - 1) / 2
        grad *= ((pixels - pixels.round()).abs() > 1e-3).all(-1)[:, None]
    grad = grad.to(dtype)
    exact = [t.detach().double().requires_grad_() for t in (input, theta)]
    truth = results(lambda x, t: pair(x, t, size, align_corners), *exact, grad)
    wide = [t.detach().to(torch.promote_types(dtype, torch.float32)).requires_grad_() for t in (input, theta)]
    theirs = results(lambda x, t: pair(x, t, size, align_corners), *wide, grad)
    ours = results(
        lambda x, t: stn_triton.affine_grid_sample(x, t, size, align_corners=align_corners),
        input,
        theta,
        grad,
    )
    for i, (actual, other, expected) in enumerate(zip(ours, theirs, truth, strict=True)):
        # grad_theta has few numbers, so that its largest error varies a lot.
        size = (lambda t: t.square().mean().sqrt()) if i == 2 else (lambda t: t.abs().max())
        rounding = torch.finfo(actual.dtype).eps / 2 * size(expected)
        if dtype == torch.float64:  # the pair is the truth: allow the rounding of a coordinate times a slope
            budget = 8 * torch.finfo(dtype).eps * max(shape) * expected.abs().max()
        else:
            budget = 2 * size(other.double() - expected)
        assert size(actual.double() - expected) <= budget + rounding


def test_more_images_than_a_grid_axis_counts():
    input, theta = data((70_000, 2, 3, 5))
    grad = torch.randn(70_000, 2, 4, 4, device=CUDA)
    ours = results(lambda x, t: stn_triton.affine_grid_sample(x, t, 4), input, theta, grad)
    cpu = [t.detach().cpu().requires_grad_() for t in (input, theta)]
    theirs = results(lambda x, t: stn_triton.affine_grid_sample(x, t, 4), *cpu, grad.cpu())
    torch.testing.assert_close(ours[0].cpu(), theirs[0], atol=1e-4, rtol=0)
    torch.testing.assert_close(ours[1].cpu(), theirs[1], atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    "shape", [(3, 1, 2**15, 2**15), (1, 3, 2**15, 2**15), (2**11 + 1, 1024, 32, 32)], ids=str
)
@pytest.mark.parametrize("channels_last", [False, True], ids=["nchw", "channels_last"])
def test_tensors_of_more_than_2_31_elements(shape, channels_last):
    needed = 6 * 2 * torch.Size(shape).numel()
    if torch.cuda.mem_get_info()[0] < needed:
        pytest.skip(f"needs {needed / 2**30:.0f} GiB of GPU memory")
    form = torch.channels_last if channels_last else torch.contiguous_format
    input = torch.empty(shape, dtype=torch.float16, device=CUDA, memory_format=form).normal_()
    theta = torch.eye(2, 3, device=CUDA).repeat(shape[0], 1, 1)
    input.requires_grad_(), theta.requires_grad_()
    output = stn_triton.affine_grid_sample(input, theta)
    assert torch.equal(output, input)
    (grad_input,) = torch.autograd.grad(output, input, input.detach())
    assert torch.equal(grad_input, input)


CALLS = ["plain", "fill number", "fill list", "border", "antialias", "many thetas", "spline"]


def case(name):
    """Return input, theta, a gradient of the output, and a function of input and theta, for a call."""
    input, theta = data((2, 3, 20, 30))
    index = torch.tensor([0, 1, 1, 0, 1], device=CUDA)
    options = {
        "fill number": {"padding_mode": "fill", "fill_value": 0.5},
        "fill list": {"padding_mode": "fill", "fill_value": [0.25, 0.5, 0.75]},
        "border": {"padding_mode": "border"},
        "antialias": {"antialias": True},
        "many thetas": {"image_index": index},
        "spline": {"points": [(-1.0, -1.0), (1.0, -1.0), (0.25, 0.125), (-1.0, 1.0), (1.0, 1.0)]},
    }.get(name, {})
    function = stn_triton.affine_grid_sample
    if name == "antialias":  # where the map shrinks
        theta = (2 * theta.detach()).requires_grad_()
    if name == "many thetas":
        theta = theta.detach()[index].requires_grad_()
    if name == "spline":
        theta = (0.1 * torch.randn(2, 5, 2, device=CUDA)).requires_grad_()
        function = stn_triton.thin_plate_spline_grid_sample
    grad = torch.randn(len(theta), 3, 20, 30, device=CUDA)
    return input, theta, grad, functools.partial(function, **options)


def assert_same(actual, expected, name):
    """Check for equal bits, except that splines add up the gradient of the input in any order."""
    most = 1e-4 if name == "spline" else 0
    for a, e in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, e, rtol=most, atol=most)


@pytest.mark.parametrize("name", CALLS)
def test_nothing_waits_for_the_gpu(name):
    input, theta, grad, function = case(name)
    results(function, input, theta, grad)  # compiles, and copies numbers
    torch.cuda.set_sync_debug_mode("error")
    try:
        results(function, input, theta, grad)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("name", ["plain", "fill list", "spline"])
def test_a_training_step_in_a_cuda_graph(name):
    input, theta, grad, function = case(name)
    results(function, input, theta, grad)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        static = results(function, input, theta, grad)
    with torch.no_grad():
        input.normal_()
        theta += 0.01
    graph.replay()
    assert_same(static, results(function, input, theta, grad), name)


@pytest.mark.parametrize("name", ["fill_value", "points"])
def test_new_numbers_are_refused_in_a_capture_which_goes_on(name):
    input, theta = data((2, 3, 20, 30), requires_grad=False)
    offsets = torch.zeros(2, 4, 2, device=CUDA)
    if name == "fill_value":
        call = functools.partial(
            stn_triton.affine_grid_sample, input, theta, padding_mode="fill", fill_value=[0.123, 0.456, 0.789]
        )
    else:
        points = [(-1.0, -1.0), (1.0, -1.0), (-1.0, 1.0), (0.123, 0.456)]
        call = functools.partial(
            stn_triton.thin_plate_spline_grid_sample, input, offsets, points=points, padding_mode="border"
        )
    doubled = 2 * input
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        with pytest.raises(RuntimeError, match=f"the numbers of {name} must be on {input.device} before"):
            call()
        doubled = 2 * input
    input += 1
    graph.replay()
    assert torch.equal(doubled, 2 * input)
    assert call().isfinite().all()


def test_graphed_callables_train():
    input, theta = data((2, 3, 20, 30))
    graphed = torch.cuda.make_graphed_callables(stn_triton.affine_grid_sample, (input, theta))
    grad = torch.randn(2, 3, 20, 30, device=CUDA)
    with torch.no_grad():
        theta += 0.01
    expected = results(stn_triton.affine_grid_sample, input, theta, grad)
    for actual, e in zip(results(graphed, input, theta, grad), expected, strict=True):
        torch.testing.assert_close(actual, e, rtol=0, atol=0)


@pytest.mark.parametrize("name", ["plain", "spline"])
def test_reduce_overhead_keeps_values(name):
    """A spline's first call for its points: constants must not lie in the memory of the graphs."""
    torch._dynamo.reset()
    splines._solution.cache_clear()
    input, theta, grad, function = case(name)
    compiled = torch.compile(lambda x, t: function(x, t), mode="reduce-overhead", fullgraph=True)
    for _ in range(3):  # warm up, record, replay
        torch.compiler.cudagraph_mark_step_begin()
        actual = [t.clone() for t in results(compiled, input, theta, grad)]
    assert_same(actual, results(function, input, theta, grad), name)


def test_second_derivatives_and_forward_mode_equal_the_cpu():
    torch.manual_seed(0)
    input = torch.randn(2, 3, 9, 11, dtype=torch.float64)
    theta = torch.eye(2, 3, dtype=torch.float64) + 0.2 * torch.randn(2, 2, 3, dtype=torch.float64)
    found = []
    for device in ("cpu", CUDA):
        here = input.to(device), theta.to(device)
        function = lambda x, t: stn_triton.affine_grid_sample(x, t, (7, 8))  # noqa: E731
        tangent = torch.func.jvp(function, here, here)[1]
        hessian = torch.func.hessian(lambda t, x=here[0]: function(x, t).square().sum())(here[1])  # noqa: B023
        leaves = tuple(t.requires_grad_() for t in here)
        first = torch.autograd.grad(function(*leaves).square().sum(), leaves, create_graph=True)
        second = torch.autograd.grad(sum(g.square().sum() for g in first), leaves)
        found.append([tangent, hessian, *second])
    for cpu, gpu in zip(*found, strict=True):
        torch.testing.assert_close(gpu.cpu(), cpu, rtol=1e-9, atol=1e-9)


def test_a_side_stream_gives_the_same():
    input, theta = data((2, 3, 20, 30))
    grad = torch.randn(2, 3, 20, 30, device=CUDA)
    expected = results(stn_triton.affine_grid_sample, input, theta, grad)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        actual = results(stn_triton.affine_grid_sample, input, theta, grad)
    torch.cuda.current_stream().wait_stream(stream)
    for a, b in zip(actual, expected, strict=True):
        assert torch.equal(a, b)


def test_tensors_on_another_gpu_than_the_current_one():
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    input, theta = (t.to("cuda:1") for t in data((2, 3, 20, 30), requires_grad=False))
    with torch.cuda.device(0):
        output = stn_triton.affine_grid_sample(input, theta)
    assert output.device == input.device
    expected = stn_triton.affine_grid_sample(input.cpu(), theta.cpu())
    torch.testing.assert_close(output.cpu(), expected, atol=1e-4, rtol=0)


def test_a_search_runs_and_its_choice_is_right(monkeypatch):
    from stn_triton import autotuner, tuning

    found = []
    fastest = autotuner.fastest

    def choose(default, timed):
        found.append([config for config, _ in timed])
        return fastest(default, timed)

    monkeypatch.setattr(autotuner, "fastest", choose)
    monkeypatch.setattr(tuning, "shipped", lambda device: {})
    monkeypatch.setattr(tuning, "_found", {})
    input, theta = data((8, 3, 32, 32))
    grad = torch.randn(8, 3, 32, 32, device=CUDA)
    expected = results(stn_triton.affine_grid_sample, input, theta, grad)
    assert not found
    with stn_triton.autotune():
        for actual, e in zip(
            results(stn_triton.affine_grid_sample, input, theta, grad), expected, strict=True
        ):
            torch.testing.assert_close(actual, e, rtol=1e-5, atol=1e-4)
    assert [bucket.kernel for _, bucket in tuning._found] == ["forward", "backward"]
    for (_, bucket), timed in zip(tuning._found, found, strict=True):
        assert timed == tuning.candidates(bucket, tuning.MOST_CANDIDATES)  # all candidates compiled and ran


def test_a_capture_takes_the_default_and_a_later_call_searches(monkeypatch):
    from stn_triton import tuning

    monkeypatch.setattr(tuning, "shipped", lambda device: {})
    monkeypatch.setattr(tuning, "_found", {})
    input, theta = data((8, 3, 32, 32), requires_grad=False)
    expected = stn_triton.affine_grid_sample(input, theta)  # compiles the default
    graph = torch.cuda.CUDAGraph()
    with stn_triton.autotune():
        with torch.cuda.graph(graph):
            static = stn_triton.affine_grid_sample(input, theta)
        assert not tuning._found
        found = stn_triton.affine_grid_sample(input, theta)
        assert len(tuning._found) == 1
    graph.replay()
    for actual in (static, found):
        torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)
