"""Random arguments: interpreted kernels (compiled on a GPU) and plain PyTorch against the oracle.

`python -m pytest tests/test_fuzz.py` runs 130 examples of kernels and 480 of plain PyTorch, the same in each
run, so that only a change can make them fail. `-m full` runs 480 more of kernels. `--examples 10000` or
`--long` (100,000) draw new examples in each run. Examples that fail are kept in `.hypothesis` and tried first
in the next run. Each fault found becomes a named test at the end of this file.
"""

import contextlib
import math

import hypothesis
import hypothesis.strategies as st
import pytest
import torch
from fuzzing import KINDS, examples, expected_of, oracle
from memory import Storage, Watch
from variants import Case

from stn_triton import (
    affine_grid_sample,
    contract,
    launch,
    perspective_grid_sample,
    policy,
    reference,
    tuning,
)
from stn_triton.options import INPUT_DTYPES, Options

EVERY = hypothesis.settings(hypothesis.settings.get_profile("fuzz"))
SHORT = hypothesis.settings(hypothesis.settings.get_profile("short"))
FLOATING = (torch.float32, torch.float32, torch.float64, *INPUT_DTYPES[:2])
TERMS = 16  # error allowed for every term of a sum, in eps
OWN_ROUNDING = 8  # factor on it where positions are not rounded as in the oracle


def magnitude(tensor):
    """Return the largest finite absolute value, at least 1."""
    finite = tensor[tensor.isfinite()]
    return max(finite.abs().max().item() if finite.numel() else 0, 1)


def close(what, actual, expected, budget, where=True, is_strict=True):
    """Check elements within a budget plus the dtype's rounding. ``is_strict``: NaN and Inf must agree."""
    info = torch.finfo(actual.dtype)
    truncates = actual.dtype == torch.bfloat16 and not actual.is_cuda  # as the interpreter does
    found, expected = actual.double(), expected.double()
    same = (found == expected) | (found.isnan() & expected.isnan())
    if not is_strict:  # NaN and Inf may spread to neighbours
        same |= ~found.isfinite()
    # Rounding to a dtype of small range may overflow.
    same |= expected.isfinite() & (expected.abs() > 0.99 * info.max)
    rounding = info.eps * (1 if truncates else 0.5) * expected.abs() + info.tiny
    wrong = ~(same | ((found - expected).abs() <= budget + rounding)) & where
    if wrong.any():
        at = tuple(torch.nonzero(wrong)[0].tolist())
        raise AssertionError(
            f"{what}{list(at)} is {found[at].item()}, not {expected[at].item()}: off by "
            f"{(found - expected)[at].abs().item():.2e}; {int(wrong.sum())} of {wrong.numel()} are wrong"
        )


def compare(result, expected, args, options, eps, leaks=False):
    """Check output and gradients, within the rounding of all terms of their sums.

    Args:
        result: output, grad_input, grad_theta, grad_fill; None if not computed.
        expected: results of the oracle.
        args: arguments of the operator.
        options: options of the operator.
        eps: rounding of coordinates; larger than the dtype's if positions differ from the oracle's.
        leaks: whether NaN and Inf may reach neighbours at weight zero.
    """
    truth, grad, loose, lost, stretch = expected
    x, g = magnitude(args.input.double()), magnitude(grad.double())
    if args.fill is not None:
        x += magnitude(args.fill.double())
    count, channels = grad.shape[:2]
    pixels = max(math.prod(args.size) * count, 1)
    worst = stretch.max().item() if count else 1
    is_tame = bool(args.input.isfinite().all() and grad.isfinite().all())
    # For several taps on one pixel, infinity may be multiplied before or after adding the weights.
    is_strict = is_tame or not (leaks or options.mode == "bicubic")
    close("output", result[0], truth.output, TERMS * eps * x * worst, ~lost, is_strict)
    if result[1] is not None:
        close("grad_input", result[1], truth.grad_input, TERMS * eps * g * pixels * worst, True, is_strict)
    if result[2] is not None:
        terms = TERMS * eps * g * x * max(channels, 1) * pixels * max(args.input.shape[2:])
        # At loose pixels the oracle's slope is that of one side, and may be NaN.
        is_sided = is_tame | ~loose.flatten(1).any(1).view(-1, 1, 1) | truth.grad_theta.isfinite()
        close("grad_theta", result[2], truth.grad_theta, terms * stretch.view(-1, 1, 1), is_sided, is_tame)
    if result[3] is not None and grad.isfinite().all():
        close("grad_fill", result[3], truth.grad_fill, TERMS * eps * g * pixels * worst)


def chooser(choice):
    """Choose a configuration by number; compiled kernels use the default, to save compilations."""

    def choose(bucket, run):
        configs = policy.space(bucket)[: 1 if torch.cuda.is_available() else None]
        return configs[choice % len(configs)]

    return tuning.choosing(choose)


@contextlib.contextmanager
def deterministic(is_on):
    torch.use_deterministic_algorithms(is_on)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


def run_kernels(example, expected, device):
    """Run the kernels on tensors in poisoned storage, with every access watched."""
    args, options = example.args, example.options
    storage = Storage(example.pattern)
    tensors = {**args._asdict(), "grad": expected.grad}
    layouts = dict(example.layouts)
    if expected.loose.any():  # gradients set to zero at loose pixels differ along expanded dimensions
        layouts["grad"] = layouts["grad"].unexpanded()
    placed = {n: storage.place(tensors[n].to(device), layout) for n, layout in layouts.items()}
    here = [placed.get(name) for name in ("input", "theta", "fill", "image_index")]
    grads = (None, None, None)
    modes = deterministic(example.is_deterministic), chooser(example.choice), storage
    with contextlib.ExitStack() as stack:
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        for mode in modes:
            stack.enter_context(mode)
        if Watch.missing() is None:
            Watch().start(patch)
        output = launch.forward(*here, size=args.size, options=options)
        if args.input.dtype != torch.uint8:
            mask = (*example.needs, args.fill is not None)
            grads = launch.backward(placed["grad"], *here, options=options, output_mask=mask)
    storage.check()
    return [None if t is None else t.cpu() for t in (output, *grads)]


def expanded(example):
    """Return the arguments as laid out: an expanded dimension repeats its first element."""
    storage = Storage()
    args = example.args
    placed = {n: storage.place(getattr(args, n), layout) for n, layout in example.layouts.items()}
    return args._replace(**{n: t.contiguous() for n, t in placed.items()})


def check_kernels(example, device):
    args, options = expanded(example), example.options
    expected = expected_of(args, options, not options.points, device)
    is_compared = bool((~expected.lost).any()) and args.grad.numel() > 0
    hypothesis.event("numbers are compared" if is_compared else "empty, or no position is certain")
    result = run_kernels(example, expected, device)
    eps = torch.finfo(contract.coordinate_dtype(args.input.dtype)).eps
    is_alone = args.image_index is None and len(args.theta) == len(args.input)
    # With grad_theta, pairs of weight zero are loaded; see kernels/backward.py.
    leaks = all(example.needs) and is_alone and not options.points and options.mode != "nearest"
    compare(result, expected, args, options, eps * (OWN_ROUNDING if options.points else 1), leaks)


def public_function(args, options):
    """Call the public function as a user would."""
    arguments = {"mode": options.mode, "padding_mode": options.padding_mode, "fill_value": args.fill}
    arguments |= {"align_corners": options.align_corners, "image_index": args.image_index}
    theta, images = args.theta, len(args.input)
    is_many = args.image_index is None and len(theta) > images
    if is_many:
        theta = theta.unflatten(0, (images, -1))
    if theta.shape[-2:] == (3, 3):
        output = perspective_grid_sample(args.input, theta, args.size, **arguments)
    else:
        arguments["antialias"] = options.antialias
        output = affine_grid_sample(args.input, theta, args.size, **arguments)
    return output.flatten(0, 1) if is_many else output


def run_plain_pytorch(example, grad):
    """Run the public function and autograd; for splines, the plain PyTorch functions below it."""
    storage, options = Storage(example.pattern), example.options
    tensors = {**example.args._asdict(), "grad": grad}
    placed = {n: storage.place(tensors[n], layout.unexpanded()) for n, layout in example.layouts.items()}
    args = example.args._replace(**placed)
    if options.points:
        tensors = args.input, args.theta, args.fill, args.image_index
        mask = (True, True, args.fill is not None)
        grads = reference.backward(args.grad, *tensors, options=options, output_mask=mask)
        return reference.forward(*tensors, size=args.size, options=options), *grads
    leaves = {name: placed[name].requires_grad_() for name in ("input", "theta", "fill") if name in placed}
    output = public_function(args, options)
    grads = torch.autograd.grad(output, list(leaves.values()), args.grad)
    storage.check()
    found = dict(zip(leaves, grads, strict=True))
    return output.detach(), *(found.get(name) for name in ("input", "theta", "fill"))


def check_plain_pytorch(example, device):
    """Compare plain PyTorch, except for derivatives at kinks, because it rounds positions differently."""
    args, options = expanded(example), example.options
    expected = expected_of(args, options, False, device)
    result = run_plain_pytorch(example._replace(args=args), expected.grad)
    eps = torch.finfo(contract.coordinate_dtype(args.input.dtype)).eps
    compare(result, expected, args, options, OWN_ROUNDING * eps, leaks=True)


def check_bytes(example, device):
    """Compare rounded outputs; a tie may round to either side."""
    args, options = expanded(example), example.options
    expected = expected_of(args, options, not options.points, device)
    result = run_kernels(example, expected, device)[0]
    exact = expected.truth.output.nan_to_num(0).clamp(0, 255)
    wrong = ((result.double() - exact).abs() > 0.5 + 1e-3) & ~expected.lost
    assert not wrong.any(), (result, exact)


@pytest.mark.parametrize("kind", KINDS)
@SHORT
@hypothesis.given(st.data())
def test_kernels(device, kind, data):
    check_kernels(data.draw(examples(kind, FLOATING)), device)


@pytest.mark.full
@pytest.mark.parametrize("kind", KINDS)
@EVERY
@hypothesis.given(st.data())
def test_kernels_on_more_examples(device, kind, data):
    """Hypothesis derives examples from the test's name, so that these differ from those above."""
    check_kernels(data.draw(examples(kind, FLOATING)), device)


@pytest.mark.parametrize("kind", KINDS)
@EVERY
@hypothesis.given(st.data())
def test_plain_pytorch(device, kind, data):
    check_plain_pytorch(data.draw(examples(kind, (torch.float64, torch.float32), is_public=True)), device)


@SHORT
@hypothesis.given(st.data())
def test_bytes(device, data):
    check_bytes(
        data.draw(st.sampled_from(KINDS).flatmap(lambda kind: examples(kind, (torch.uint8,)))), device
    )


@pytest.mark.parametrize("part", range(3), ids=["output", "grad_input", "grad_theta"])
@pytest.mark.parametrize("check", [check_kernels, check_plain_pytorch])
def test_a_hundredth_too_much_is_found(device, monkeypatch, check, part):
    name = check.__name__.replace("check", "run")
    run = globals()[name]

    def wrong(*args):
        result = list(run(*args))
        if result[part] is not None:
            result[part] = result[part] * 1.01
        return result

    monkeypatch.setitem(globals(), name, wrong)

    @hypothesis.settings(EVERY, max_examples=50, derandomize=True, phases=[hypothesis.Phase.generate])
    @hypothesis.given(examples("plain", (torch.float32,), is_public=True))
    def some(example):
        check(example, device)

    with pytest.raises(AssertionError, match=("output", "grad_input", "grad_theta")[part]):
        some()


def gradients(device, input, theta, grad, options):
    """Return theta's gradient by the kernels (with and without grad_input), plain PyTorch and oracle."""
    args = [torch.tensor(t, dtype=torch.float32) for t in (grad, input, theta)]
    here = [t.to(device) for t in args]
    masks = [(needs, True, False) for needs in (True, False)]
    found = [launch.backward(*here, options=options, output_mask=mask)[1].cpu() for mask in masks]
    found.append(reference.backward(*args, options=options)[1])
    truth = oracle.solve(here[1], here[2], args[0].shape[2:], here[0], options, torch.float32)
    return [*found, truth.grad_theta.float().cpu()]


def test_a_nan_gradient_of_a_pixel_without_a_position_is_not_seen(device):
    """Once a fault of the oracle, which multiplied zero by NaN."""
    theta = [[[0.0, 0.0, 0.0], [math.nan, 0.0, 0.0]]]
    for found in gradients(device, [[[[1.0]]]], theta, [[[[math.nan]]]], Options()):
        assert torch.equal(found, torch.zeros(1, 2, 3))


@pytest.mark.parametrize("padding_mode", ["zeros", "border"])
def test_an_infinite_position_of_a_homography_has_no_gradient(device, padding_mode):
    """A fault of the oracle: zero times infinity, in the row of the divisor."""
    theta = [[[math.inf, 1.0, 0.0], [1.0, 1.0, 0.0], [0.0, 0.25, 1.0]]]
    image, grad = [[[[1.0, 2.0, 3.0]]]], [[[[1.0, -2.0]]]]
    for found in gradients(device, image, theta, grad, Options("bilinear", padding_mode)):
        assert torch.equal(found[:, 0], torch.zeros(1, 3))
        assert found.isfinite().all()


def test_a_derivative_that_is_left_out_beside_nan(device):
    """A fault of the comparison: at a kink, the oracle and PyTorch may take different sides."""
    args = Case(
        input=torch.tensor([[[[0.0, 1.0, math.nan, 3.0, 4.0]]]]),
        theta=torch.tensor([[[0.5, 0.0, 0.0], [0.0, 1.0, 0.0]]]),  # at pixels 1 and 3
        size=(1, 2),
        grad=torch.ones(1, 1, 1, 2),
        fill=None,
        image_index=None,
    )
    expected = expected_of(args, Options(align_corners=True), False, device)
    assert expected.truth.grad_theta[0, 0].isnan().any()
    result = [expected.truth.output, expected.truth.grad_input, torch.zeros(1, 2, 3), None]
    compare(result, expected, args, Options(align_corners=True), 1e-6, leaks=True)
    result[2][0, 1] = 1
    with pytest.raises(AssertionError, match=r"grad_theta\[0, 1, 0\] is 1.0, not 0.0"):
        compare(result, expected, args, Options(align_corners=True), 1e-6, leaks=True)


@pytest.mark.parametrize("end", [1e-40, -1e-40])
def test_a_position_below_a_pixel_by_next_to_nothing_is_in_the_cell_below(device, end):
    """A fault of the oracle: the kernels count from the image's centre, where 1e-40 is not lost."""
    theta = [[[1.0, 0.0, 0.0], [0.0, end, 0.0]]]
    image, grad = [[[[1.0], [3.0], [9.0]]]], [[[[1.0], [0.0], [0.0]]]]
    kernels, alone, _, truth = gradients(device, image, theta, grad, Options())
    # Below the middle pixel the slope is 2, above it 6. Its factors: row -1, half of 3 pixels.
    slope = 2 if end > 0 else 6
    assert truth[0, 1].tolist() == [0, pytest.approx(-slope), 1.5 * slope]
    assert torch.equal(kernels[:, 1], truth[:, 1])
    assert torch.equal(alone[:, 1], truth[:, 1])


def test_the_gradient_of_a_homography_of_an_image_one_pixel_wide(device):
    """A fault of the kernels: degenerate lines have no intersection, but were given one in row 0."""
    theta = torch.eye(3)[None].tolist()
    options = Options(align_corners=True)
    for size_in, size in (((2, 1), (2, 1)), ((1, 1), (3, 5)), ((1, 2), (2, 1))):
        input, grad = (
            torch.randn(1, 2, *s, generator=torch.Generator().manual_seed(1)) for s in (size_in, size)
        )
        found = launch.backward(
            grad.to(device), input.to(device), torch.tensor(theta, device=device), options=options
        )[0]
        truth = oracle.solve(input, torch.tensor(theta), size, grad, options, torch.float32).grad_input
        assert truth.abs().max() > 0.1
        torch.testing.assert_close(found.cpu(), truth.float())


def test_a_shrink_whose_square_overflows_takes_all_samples(device):
    """A fault of kernels and plain PyTorch: a single sample hit the middle of the image."""
    options = Options(antialias=True)
    for scale in (1e18, 1e30):
        theta = torch.tensor([[[scale, 0.0, 0.0], [0.0, 1.0, 0.0]]])
        one, given = torch.ones(1, 1, 1, 1), {"size": (1, 1), "options": options}
        found = launch.forward(one.to(device), theta.to(device), **given)
        assert found.item() == reference.forward(one, theta, **given).item() == 0


def test_an_infinite_map_of_a_single_pixel_under_reflection(device):
    """A fault of the kernels: zero times infinity has no mirror image and must sample the first edge."""
    theta = torch.tensor([[[math.inf, 0.0, 0.0], [0.0, 1.0, 0.0]]], device=device)
    options = Options(padding_mode="reflection", align_corners=True)
    one = torch.ones(1, 1, 1, 1, device=device)
    assert launch.forward(one, theta, size=(1, 1), options=options).item() == 1
    assert launch.backward(one, one, theta, options=options)[0].item() == 1


def test_a_bicubic_weight_next_to_zero_is_not_lost(device):
    """A fault of the kernels: a weight of -3e-9 was rounded to zero, and hid a NaN."""
    options = Options(mode="bicubic", align_corners=True)
    for end in (1 - 2.0**-14, 1 + 2.0**-14):  # next to the last of three rows; the first is the farthest tap
        theta = torch.tensor([[[1.0, 0.0, 0.0], [0.0, 0.0, end]]])
        image = torch.ones(1, 1, 3, 3)
        image[0, 0, 0 if end < 1 else 1, 0] = math.nan
        given = {"size": (1, 3), "options": options}
        kernels = launch.forward(image.to(device), theta.to(device), **given).cpu()
        for found in (kernels, reference.forward(image, theta, **given)):
            assert found[0, 0, 0, [0, 2]].isnan().tolist() == [True, False]
