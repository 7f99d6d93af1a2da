"""Second derivatives, forward mode and torch.func: each is right or raises an error."""

import copy
import math
from functools import partial

import pytest
import torch
from test_features import call
from test_functional import maps, randn
from torch.autograd import forward_ad, gradcheck, gradgradcheck
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, vjp, vmap
from torch.utils._pytree import tree_flatten
from torch.utils.checkpoint import checkpoint
from variants import CELLS, EXISTING, Variant, case, tangents_of

from stn_triton import affine_grid_sample, launch, ops, reference_tangent
from stn_triton.options import DEFAULT, PADDING_MODES, Options, Tangents

SMOOTH = [v for v in CELLS if v.mode != "nearest"]
# A sample of all variants, and every mode and padding of projective maps.
KERNELS = [v for v in EXISTING[::7] if v.mode != "nearest" and v.kind != "projective"]
KERNELS += [v for v in SMOOTH if v.kind == "projective"]
SIZES = {2: ((3, 4), (4, 3)), 3: ((2, 3, 2), (2, 2, 3))}


@pytest.fixture(autouse=True)
def fresh_dynamo():
    torch._dynamo.reset()


def leaves_of(args):
    """Return the tensors of a case that have derivatives, by name."""
    return {n: t for n in ("input", "theta", "fill") if (t := getattr(args, n)) is not None}


@pytest.mark.parametrize("variant", SMOOTH, ids=Variant.name)
@pytest.mark.sample(16)
def test_gradgradcheck(variant):
    args = case(variant, 1, *SIZES[variant.dim])
    leaves = leaves_of(args)
    function = lambda *t: call(args._replace(**dict(zip(leaves, t, strict=True))), variant)  # noqa: E731
    tensors = tuple(t.requires_grad_() for t in leaves.values())
    assert gradcheck(function, tensors, check_forward_ad=True, check_backward_ad=False, fast_mode=True)
    assert gradgradcheck(function, tensors, check_fwd_over_rev=True, fast_mode=True)


def test_every_entry_of_every_second_derivative():
    args = case(Variant(2, "bilinear", "zeros", "plain", False), 1)
    function = partial(affine_grid_sample, size=args.size)
    tensors = (args.input.requires_grad_(), args.theta.requires_grad_())
    checks = {"check_batched_grad": True, "check_batched_forward_grad": True}
    assert gradcheck(function, tensors, check_forward_ad=True, **checks)
    assert gradgradcheck(function, tensors, check_fwd_over_rev=True, check_batched_grad=True)


@pytest.mark.parametrize(
    ("moving", "variant"),
    [*(("all", v) for v in KERNELS), *(("theta", v) for v in KERNELS[::2])],
    ids=lambda value: value.name() if isinstance(value, Variant) else value,
)
@pytest.mark.sample(10)
def test_the_kernels_equal_plain_pytorch(device, variant, moving):
    args = case(variant).to(device, torch.float64)
    tangents = tangents_of(args)
    if moving == "theta":
        tangents = Tangents(None, tangents.theta, None)
    mask = (True, True, args.fill is not None)
    results = []
    for module, place in ((launch, device), (reference_tangent, torch.device("cpu"))):
        here, along = (
            case(variant).to(place, torch.float64),
            [None if t is None else t.to(place) for t in tangents],
        )
        tensors = (here.input, here.theta, here.fill, here.image_index, Tangents(*along))
        tangent = module.forward(*tensors, size=here.size, options=variant.options())
        grads = module.backward(here.grad, *tensors, options=variant.options(), output_mask=mask)
        results.append([tangent, *(g for g in grads if g is not None)])
    for actual, expected in zip(*results, strict=True):
        torch.testing.assert_close(actual.cpu(), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.sample(2)
def test_the_kernels_in_every_layout(device, dtype, memory_format):
    """Several tiles and blocks of channels, against fp64 on fp32 numbers."""
    variant = Variant(2, "bilinear", "zeros", "plain", False)
    args = case(variant, 20, (9, 17), (8, 11)).to(device, dtype, memory_format)
    tangents = tangents_of(args)
    tensors = (args.input, args.theta, None, None, tangents)
    tangent = launch.forward(*tensors, size=args.size)
    assert tangent.is_contiguous(memory_format=memory_format)
    grads = launch.backward(args.grad, *tensors)
    assert grads[0].is_contiguous(memory_format=memory_format)
    grad, *wide = (t.cpu().double() for t in (args.grad, args.input, args.theta))
    wide += None, None, Tangents(tangents.input.cpu().double(), tangents.theta.cpu().double(), None)
    expected = reference_tangent.forward(*wide, size=args.size)
    expected_grads = reference_tangent.backward(grad, *wide)
    rounding = {torch.float32: 1e-4, torch.bfloat16: 2e-2}[dtype]
    for a, e in zip((tangent, *grads[:2]), (expected, *expected_grads[:2]), strict=True):
        assert (a.cpu().double() - e).abs().max() <= rounding * e.abs().max()


def plain(input, theta):
    """Sample bilinearly to 3 x 4 pixels, by PyTorch operators that have all derivatives."""
    n, c, h, w = input.shape
    rows, columns = 3, 4
    x = (2 * torch.arange(columns) - (columns - 1)).to(theta) / columns
    y = (2 * torch.arange(rows) - (rows - 1)).to(theta) / rows
    ones = torch.ones(rows, columns).to(theta)
    base = torch.stack((x.expand(rows, columns), y[:, None].expand(rows, columns), ones), -1)
    position = torch.einsum("nij,hwj->nhwi", theta, base)
    ix, iy = ((position[..., 0] + 1) * w - 1) / 2, ((position[..., 1] + 1) * h - 1) / 2
    left, top = ix.floor().detach(), iy.floor().detach()
    output = 0
    for right in (0, 1):
        for below in (0, 1):
            px, py = (left + right).long(), (top + below).long()
            weight = (1 - (ix - px).abs()) * (1 - (iy - py).abs())
            inside = (px >= 0) & (px < w) & (py >= 0) & (py < h)
            index = (py.clamp(0, h - 1) * w + px.clamp(0, w - 1)).flatten(1)
            tap = input.flatten(2).gather(2, index[:, None].expand(-1, c, -1)).view(n, c, rows, columns)
            output = output + tap * torch.where(inside, weight, 0)[:, None]
    return output


X, T = randn(2, 2, 4, 5).double(), maps(2).double()
XS, TS = torch.stack((X, 0.9 * X, 1.1 * X)), torch.stack((T, 0.9 * T, 1.1 * T))
WEIGHT = randn(2, 2, 3, 4, seed=1).double()
ALONG = (randn(2, 2, 4, 5, seed=2).double(), maps(2).double())


def loss(function):
    return lambda x, t: (function(x, t).square() * WEIGHT).sum()


TRANSFORMS = {
    "jvp": lambda f: jvp(f, (X, T), ALONG),
    "jvp by theta": lambda f: jvp(partial(f, X), (T,), ALONG[1:]),
    "jvp by input": lambda f: jvp(lambda x: f(x, T), (X,), ALONG[:1]),
    "grad": lambda f: grad(loss(f), (0, 1))(X, T),
    "vjp": lambda f: vjp(f, X, T)[1](WEIGHT),
    "jacrev": lambda f: jacrev(f, (0, 1))(X, T),
    "jacfwd": lambda f: jacfwd(f, (0, 1))(X, T),
    "hessian": lambda f: hessian(loss(f), (0, 1))(X, T),
    "jacrev(jacrev)": lambda f: jacrev(jacrev(loss(f), (0, 1)), (0, 1))(X, T),
    "jacrev(jacfwd)": lambda f: jacrev(jacfwd(loss(f), (0, 1)), (0, 1))(X, T),
    "vmap over theta": lambda f: vmap(partial(f, X))(TS),
    "vmap over input": lambda f: vmap(lambda x: f(x, T))(XS),
    "vmap over both": lambda f: vmap(f, (1, 0))(XS.transpose(0, 1), TS),
    "vmap(grad) over theta": lambda f: vmap(grad(loss(f), (0, 1)), (None, 0))(X, TS),
    "vmap(grad) over input": lambda f: vmap(grad(loss(f), (0, 1)), (0, None))(XS, T),
    "vmap(hessian)": lambda f: vmap(hessian(partial(loss(f), X)))(TS),
    "grad of vmap": lambda f: grad(lambda x, t: vmap(f, (None, 0))(x, t).square().sum(), (0, 1))(X, TS),
    "grad of jvp": lambda f: grad(lambda x, t: jvp(f, (x, t), ALONG)[1].square().sum(), (0, 1))(X, T),
    "jvp of grad": lambda f: jvp(grad(loss(f), (0, 1)), (X, T), ALONG),
}


def ours(x, t):
    return affine_grid_sample(x, t, (3, 4))


@pytest.mark.parametrize("name", TRANSFORMS)
def test_torch_func(name):
    actual, expected = (tree_flatten(TRANSFORMS[name](function))[0] for function in (ours, plain))
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ["vmap over theta", "vmap over input", "vmap over both"])
def test_torch_func_compiles(name):
    actual = torch.compile(lambda: TRANSFORMS[name](ours), backend="aot_eager", fullgraph=True)()
    torch.testing.assert_close(actual, TRANSFORMS[name](plain))


@pytest.mark.parametrize("name", [name for name in TRANSFORMS if not name.startswith("vmap over")])
@pytest.mark.sample(4)
def test_what_torch_func_cannot_compile_raises(name):
    """PyTorch has no rule here for custom operators, and wrong results for autograd Functions."""
    compiled = torch.compile(lambda: TRANSFORMS[name](ours), backend="aot_eager", fullgraph=True)
    with pytest.raises(Exception, match=r"forward-mode derivative|setup_context|functorch"):
        compiled()


def test_dual_tensors():
    with forward_ad.dual_level():
        dual = forward_ad.unpack_dual(ours(*map(forward_ad.make_dual, (X, T), ALONG)))
    expected = jvp(plain, (X, T), ALONG)
    torch.testing.assert_close((dual.primal, dual.tangent), expected)


def test_a_dual_gradient_passes_through_the_backward():
    theta = T.clone().requires_grad_()
    output = ours(X, theta)
    with forward_ad.dual_level():
        gradient = forward_ad.make_dual(WEIGHT, ALONG[0][:, :, :3, :4])
        dual = forward_ad.unpack_dual(torch.autograd.grad(output, theta, gradient, retain_graph=True)[0])
    for part, weight in ((dual.primal, WEIGHT), (dual.tangent, ALONG[0][:, :, :3, :4])):
        torch.testing.assert_close(part, torch.autograd.grad(output, theta, weight, retain_graph=True)[0])


def test_what_nearest_tells_theta_is_zero():
    function = lambda t: affine_grid_sample(X, t, mode="nearest")  # noqa: E731
    assert not jvp(function, (T,), (ALONG[1],))[1].any()
    assert not hessian(lambda t: function(t).square().sum())(T).any()


@pytest.mark.parametrize("mode", ["eager", "compiled"])
def test_bytes_refuse_tangents(mode):
    images = torch.zeros(2, 1, 4, 5, dtype=torch.uint8)
    function = lambda t: jvp(partial(affine_grid_sample, images), (t,), (t,))  # noqa: E731
    if mode == "compiled":
        function = torch.compile(function, backend="aot_eager")
    with pytest.raises(Exception, match=r"theta must not have a tangent for a uint8 input|forward-mode"):
        function(T)


THIRD = {
    "reverse three times": lambda f: jacrev(jacrev(jacrev(f))),
    "forward over two reverse": lambda f: jacfwd(jacrev(jacrev(f))),
    "forward twice": lambda f: jacfwd(jacfwd(f)),
}


@pytest.mark.parametrize("name", THIRD)
def test_derivatives_that_do_not_exist_raise(name):
    with pytest.raises(NotImplementedError, match=r"no third derivative"):
        THIRD[name](lambda t: ours(X, t).square().sum())(T)


class Warp(torch.nn.Module):
    """A spatial transformer that learns one matrix for all."""

    def __init__(self):
        super().__init__()
        self.theta = torch.nn.Parameter(T[:1].clone())

    def forward(self, input):
        return ours(input, self.theta.expand(len(input), 2, 3))


def test_a_gradient_penalty_trains():
    """The penalty of a discriminator behind an augmentation, for which grid_sample needs a workaround."""
    torch.manual_seed(0)
    head = torch.nn.Sequential(torch.nn.Conv2d(2, 4, 2), torch.nn.Softplus(), torch.nn.Flatten()).double()
    losses = []
    for function in (ours, plain):
        model = copy.deepcopy(head)
        optimizer = torch.optim.SGD(model.parameters(), 0.05)
        for _ in range(3):
            images = X.clone().requires_grad_()
            score = model(function(images, T)).sum()
            (slope,) = torch.autograd.grad(score, images, create_graph=True)
            penalty = slope.square().sum()
            optimizer.zero_grad()
            penalty.backward()
            optimizer.step()
            losses.append(penalty.item())
    assert losses[:3] == pytest.approx(losses[3:], rel=1e-9)
    assert losses[2] < losses[0]


def test_functional_call_and_hooks():
    model, seen = Warp(), []
    model.register_forward_hook(lambda module, args, output: seen.append(output.shape))
    model.theta.register_hook(lambda gradient: seen.append(gradient.shape))
    parameters = {"theta": 0.9 * T[:1]}
    expected = ours(X, parameters["theta"].expand(2, 2, 3))
    torch.testing.assert_close(functional_call(model, parameters, X), expected)
    model(X).sum().backward()
    assert seen == [(2, 2, 3, 4), (2, 2, 3, 4), (1, 2, 3)]


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_checkpointing(use_reentrant):
    grads = []
    for function in (ours, lambda *a: checkpoint(ours, *a, use_reentrant=use_reentrant)):
        leaves = X.clone().requires_grad_(), T.clone().requires_grad_()
        grads.append(
            torch.autograd.grad((function(*leaves) * WEIGHT).sum(), leaves) if not use_reentrant else None
        )
        if use_reentrant:  # unsupported by torch.autograd.grad
            (function(*leaves) * WEIGHT).sum().backward()
            grads[-1] = tuple(leaf.grad for leaf in leaves)
    torch.testing.assert_close(*grads, rtol=0, atol=0)


@pytest.mark.parametrize("variant", EXISTING[::9], ids=Variant.name)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.sample(6)
def test_opcheck(variant):
    args = case(variant)
    tangents = tangents_of(args)
    fill = None if args.fill is None else args.fill.requires_grad_()
    tensors = (args.input.requires_grad_(), args.theta.requires_grad_(), fill, args.image_index)
    options = tuple(variant.options())
    along = [None if t is None else t.requires_grad_() for t in tangents]
    torch.library.opcheck(ops.affine_grid_sample_tangent, (*tensors, *along, args.size, *options))
    arguments = [t.detach() if t is not None else None for t in (args.grad, *tensors, *along)]
    mask = [True, True, fill is not None]
    torch.library.opcheck(ops.affine_grid_sample_tangent_backward, (*arguments, *options, mask))


class Fixed(torch.nn.Module):
    def forward(self, x, t):
        return ours(x, t)


@pytest.mark.parametrize("way", ["exported", "operator"])
def test_programs_that_call_the_operator_keep_tangents(way):
    """PyTorch's own registration of derivatives would drop tangents silently."""
    function = {
        "exported": lambda: torch.export.export(Fixed(), (X, T)).module(),
        "operator": lambda: lambda x, t: ops.affine_grid_sample(x, t, None, None, [3, 4], *DEFAULT),
    }[way]()
    with forward_ad.dual_level():
        dual = forward_ad.unpack_dual(function(*map(forward_ad.make_dual, (X, T), ALONG)))
    torch.testing.assert_close((dual.primal, dual.tangent), jvp(plain, (X, T), ALONG))
    with pytest.raises(RuntimeError, match="setup_context"):
        jvp(function, (X, T), ALONG)


def test_a_compiled_call_of_dual_tensors_is_right_or_raises():
    compiled = torch.compile(ours, backend="aot_eager")
    with forward_ad.dual_level():
        try:
            tangent = forward_ad.unpack_dual(compiled(*map(forward_ad.make_dual, (X, T), ALONG))).tangent
        except (RuntimeError, NotImplementedError):
            return
    torch.testing.assert_close(tangent, jvp(plain, (X, T), ALONG)[1])


@pytest.mark.parametrize("align_corners", [False, True])
def test_beyond_the_border_nothing_moves(device, align_corners):
    """All four bicubic taps are the same pixel there, also for fast positions close to the horizon."""
    theta = torch.tensor([[[1.0, 0.1, 0], [0, 1, 0.2], [0, 0, 1e-3]]], device=device)
    theta[:, :2, 2] += 0.5
    input, grad = randn(1, 2, 4, 5).to(device), randn(1, 2, 2, 2).to(device)
    options = Options("bicubic", "border", align_corners)
    tangents = Tangents(None, randn(1, 3, 3, seed=4).to(device), None)
    for module in (launch, reference_tangent):
        tensors = (input, theta, None, None, tangents)
        assert not module.forward(*tensors, size=(2, 2), options=options).any()
        grads = module.backward(grad, *tensors, options=options)
        assert not grads[0].any()
        assert not grads[1].any()


@pytest.mark.parametrize("padding_mode", ["zeros", "border"])
def test_just_before_the_horizon_nothing_is_nan(device, padding_mode):
    theta = torch.tensor([[[1.0, 0.1, 0], [0, 1, 0.2], [1, 0, 1e-20]]], device=device)
    input, grad = randn(1, 2, 4, 5).to(device), randn(1, 2, 3, 3).to(device)
    tangents = Tangents(None, randn(1, 3, 3, seed=4).to(device), None)
    options = Options("bilinear", padding_mode)
    results = []
    for module in (launch, reference_tangent):
        tensors = (input, theta, None, None, tangents)
        grads = module.backward(grad, *tensors, options=options)
        results.append([module.forward(*tensors, size=(3, 3), options=options), *grads[:2]])
    # The derivative at a visible point just before the horizon overflows fp32: infinite, as on a CPU.
    for actual, expected in zip(*results, strict=True):
        assert not actual.isnan().any()
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("padding_mode", PADDING_MODES)
@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
def test_of_a_map_that_is_not_finite_second_derivatives_are(device, mode, padding_mode):
    variant = Variant(2, mode, padding_mode, "plain", False)
    args = case(variant, 1, (4, 6), (5, 3)).to(device, torch.float32)
    tangents = tangents_of(args)
    for number in (math.inf, math.nan):
        args.theta[0, 0, 0] = number
        tensors = (args.grad, args.input, args.theta, args.fill, None, tangents)
        mask = (True, True, args.fill is not None)
        for gradient in launch.backward(*tensors, options=variant.options(), output_mask=mask):
            assert gradient is None or gradient.isfinite().all(), number


def test_bytes_refuse_derivatives_through_vmap():
    images = torch.zeros(2, 1, 4, 5, dtype=torch.uint8)
    mapped = vmap(lambda t: affine_grid_sample(images, t).float().sum())
    with pytest.raises(ValueError, match="theta must not require gradients for a uint8 input"):
        grad(lambda t: mapped(t).sum())(T[None])
    with pytest.raises(ValueError, match="theta must not have a tangent for a uint8 input"):
        jvp(mapped, (T[None],), (T[None],))


def test_functionalize():
    assert torch.equal(torch.func.functionalize(ours)(X, T), ours(X, T))


def test_tangents_take_the_dtype_of_what_moves():
    fill = torch.zeros(2)
    function = grad(
        lambda x, t, f: affine_grid_sample(x, t, padding_mode="fill", fill_value=f).sum(), (0, 1, 2)
    )
    moved = jvp(lambda x: function(x, T, fill), (X.float(),), (X.float(),))[1]
    assert [t.dtype for t in moved] == [torch.float32, torch.float64, torch.float32]
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(X, X.float())
        assert forward_ad.unpack_dual(ours(dual, T)).tangent.dtype == torch.float64
