"""Random arguments of the operator in any layout, with the results that the oracle expects.

The oracle rounds positions as the kernels do, so that positions exactly at kinks are compared. Within a few
units in the last place of a kink one rounding decides about the derivatives. Such output pixels are `loose`:
their incoming gradients are set to zero. Where a rounding decides about the output too, they are `lost`.
"""

import contextlib
import math
from typing import NamedTuple

import hypothesis.strategies as st
import torch
from memory import Layout
from torch import Tensor
from variants import Case

from stn_triton import contract, reference_parts, splines
from stn_triton.check import oracle
from stn_triton.options import MODES, PADDING_MODES, THETA_DTYPES, Options

KINDS = (
    *("plain", "many", "index", "projective", "projective index", "spline", "spline index"),
    *("antialias", "antialias index", "volume", "volume many", "volume antialias"),
)
MANY = 512  # roundings of a position, if not computed as in the oracle
MOST_SAMPLES = 6  # of an antialiased pixel: the oracle computes one at a time
KINKS = (0.0, 1.0, -1.0, 0.5, -0.5, 2.0, 0.25, 1 / 3, 1 + 2**-23, 1 - 2**-24, 1e-7, 1e-3)
WILD = (1e4, 1e30, -1e30, 3e38, math.nan, math.inf, -math.inf, 1e-40, -1e-45, -1e-30)
MILD = st.one_of(st.floats(-2, 2, width=32), st.sampled_from(KINKS))
POINTS = (tuple(splines.regular_points(2, 2)), (-0.9, -0.7, 0.8, -0.6, 0.1, 0.2, -0.5, 0.9))


class Example(NamedTuple):
    args: Case
    options: Options
    layouts: dict[str, Layout]
    """Layouts of input, theta, grad, fill and image_index, by name."""
    needs: tuple[bool, bool]
    """Whether the gradients of input and theta are computed."""
    choice: int
    """Number of the kernel configuration; 0 is the default."""
    pattern: int
    """Poison pattern of `memory.Storage`."""
    is_deterministic: bool


@st.composite
def layouts(draw, dims):
    """Draw a layout: half are contiguous or channels_last, half permuted, sliced, with gaps or expanded."""
    if draw(st.booleans()):
        return Layout.of((1,) * dims, draw(st.booleans()), offset=draw(st.integers(0, 3)))
    return Layout(
        tuple(draw(st.permutations(range(dims)))),
        tuple(draw(st.lists(st.sampled_from((1, 1, 1, 2, 3, 0)), min_size=dims, max_size=dims))),
        tuple(draw(st.lists(st.sampled_from((0, 0, 1, 5)), min_size=dims, max_size=dims))),
        draw(st.integers(0, 3)),
    )


def named_matrices(dim, size_in):
    """Matrices with positions at kinks, and singular ones."""
    eye = torch.eye(dim, dim + 1, dtype=torch.float64)
    flip, shift, half, zoom, ones = (eye.clone() for _ in range(5))
    flip[0, 0] = -1
    for axis, n in enumerate(reversed(size_in)):
        shift[axis, dim] = 2 / n * (axis + 1)
        half[axis, dim] = 1 / n
    zoom[:, :dim] *= 2
    ones[:, :dim] = 1
    nearly = ones.clone()
    nearly[1, 1] += 1e-6
    return (eye, flip, eye.flip(0), shift, half, zoom, ones, nearly, -eye, 0 * eye)


@st.composite
def matrices(draw, dim, size_in, is_projective):
    """Draw a matrix: random, or one of `named_matrices`; some have one extreme entry."""
    if draw(st.booleans()):
        matrix = draw(st.sampled_from(named_matrices(dim, size_in))).clone()
    else:
        entries = st.lists(MILD, min_size=dim * (dim + 1), max_size=dim * (dim + 1))
        matrix = torch.tensor(draw(entries), dtype=torch.float64).view(dim, dim + 1)
    if is_projective:
        tilt = st.sampled_from((0.0, 0.25, -0.25, 0.5, 1.0)) | st.floats(-0.5, 0.5, width=32)
        last = [draw(tilt), draw(tilt), draw(st.sampled_from((1.0, 1.0, 0.5, 0.0, -1.0)))]
        matrix = torch.cat((matrix, torch.tensor([last], dtype=torch.float64)))
    if draw(st.integers(0, 5)) == 5:
        entry = draw(st.integers(0, matrix.numel() - 1))
        matrix.view(-1)[entry] = draw(st.sampled_from(WILD))
    return matrix


@st.composite
def examples(draw, kind, dtypes, is_public=False):
    """Draw valid arguments; for the kernels (not ``is_public``), an image index may be out of range."""
    dim = 3 if "volume" in kind else 2
    mode = draw(st.sampled_from(MODES if dim == 2 else MODES[:2]))
    points = draw(st.sampled_from(POINTS)) if "spline" in kind else ()
    padding_mode = draw(st.sampled_from(PADDING_MODES))
    options = Options(mode, padding_mode, draw(st.booleans()), "antialias" in kind, points)
    dtype = draw(st.sampled_from(dtypes))
    # Small, because the interpreter is slow; 17 is more than one tile.
    sizes = st.sampled_from((1, 2, 3, 4, 5, 2, 3, 7, 17) if dim == 2 else (1, 2, 3))
    size_in = tuple(draw(sizes) for _ in range(dim))
    smaller = st.sampled_from((1, 2, 3, 4, 2, 3, 9) if dim == 2 else (1, 2, 3))
    size = tuple(min(n, 4) for n in size_in) if draw(st.booleans()) else tuple(draw(smaller) for _ in size_in)
    # Rarely 0, because there is nothing to compare then.
    images = draw(st.sampled_from((1,) * 14 + ((2,) * 5 if dim == 2 else (1,)) + (0,)))
    channels = draw(st.sampled_from((1, 2) * 7 + ((3, 3, 5) if dim == 2 else (1,)) + (0,)))
    index, count = None, images
    if "index" in kind:
        images = draw(st.sampled_from((1, 2, 3) if is_public else (2, 3) * 9 + (0,)))
        numbers = st.integers(0, images - 1) if is_public else st.integers(-1, images)
        least = draw(st.sampled_from((1,) * 15 + (0,)))
        index = torch.tensor(draw(st.lists(numbers, min_size=least, max_size=2)), dtype=torch.int64)
        count = len(index)
    elif "many" in kind:
        count = 2 * images
    is_projective = "projective" in kind
    if points:
        numbers = st.lists(MILD, min_size=len(points), max_size=len(points))
        strength = draw(st.sampled_from((0.3, 0.0, 1.0)))
        offsets = strength * torch.tensor([draw(numbers) for _ in range(count)], dtype=torch.float64)
        theta = splines.coefficients(offsets.view(count, len(points) // 2, 2), points, torch.float64)
    else:
        drawn = [draw(matrices(dim, size_in, is_projective)) for _ in range(count)]
        theta = torch.stack(drawn) if drawn else torch.zeros(0, dim + is_projective, dim + 1).double()
    theta = theta.to(draw(st.sampled_from(THETA_DTYPES)) if draw(st.booleans()) else torch.float32)
    if options.antialias:
        theta = _tamed(theta, size_in, size, options)
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**16)))
    randn = lambda *shape: torch.randn(shape, generator=generator, dtype=torch.float64)  # noqa: E731
    input, grad = randn(images, channels, *size_in), randn(count, channels, *size)
    if dtype == torch.uint8:
        input = (input * 80 + 128).clamp(0, 255)
    else:
        for tensor in (input, grad):
            for place in draw(st.lists(st.floats(0, 0.999), max_size=2)) if draw(st.booleans()) else ():
                if tensor.numel():
                    tensor.view(-1)[int(place * tensor.numel())] = draw(
                        st.sampled_from((math.nan, math.inf, -math.inf))
                    )
    fill = None
    if padding_mode == "fill":
        fill = randn(channels).to(draw(st.sampled_from((torch.float32, torch.float64, torch.float16))))
    grad_dtype = torch.float32 if dtype == torch.uint8 else dtype
    args = Case(input.to(dtype), theta, size, grad.to(grad_dtype), fill, index)
    tensors = {n: t for n, t in args._asdict().items() if isinstance(t, Tensor)}
    return Example(
        args,
        options,
        {name: draw(layouts(tensor.ndim)) for name, tensor in tensors.items()},
        draw(st.sampled_from(((True, True), (True, False), (False, True)))),
        draw(st.integers(0, 99)) if draw(st.booleans()) else 0,
        draw(st.integers(0, 1)),
        draw(st.booleans()),
    )


def _tamed(theta, size_in, size, options):
    """Halve theta until each pixel takes at most `MOST_SAMPLES` samples."""
    while len(theta):
        samples = reference_parts.samples_per_pixel(theta.float(), size_in, size, options.align_corners)
        if samples.prod(1).max() <= MOST_SAMPLES:
            break
        theta = theta * 0.5
    return theta


@contextlib.contextmanager
def _positions():
    """Record every position that the oracle interpolates at, with the size of its axis."""
    found, original = [], oracle._taps

    def taps(position, n, options):
        found.append((position, n))
        return original(position, n, options)

    oracle._taps = taps
    try:
        yield found
    finally:
        oracle._taps = original


def _near_and_far(position, n, options, eps, rounding):
    """Find positions where a rounding decides about a kink, and those too far out to know the repeat."""
    inside = (position > -10) & (position < n + 10)
    far = torch.zeros_like(inside)
    if options.padding.repeats:  # a position that is not finite samples the first edge
        inside = position.isfinite()
        far = inside & (position.abs() > 0.25 / eps**0.75)
    distance = (2 * position - (2 * position).round()).abs() / 2
    near = inside & (distance < rounding * eps * position.abs().clamp(min=n))
    return near & (distance > 0) if rounding < MANY else near, far


def _depths(theta, size_in, size, options):
    """Return the divisor of a projective map at each output pixel."""
    scales = oracle._scales(size_in[::-1], size[::-1], options.align_corners, 3)[2] * theta[2].double()
    v, u = (torch.arange(n, dtype=torch.float64) - (n - 1) / 2 for n in size)
    return scales[0] * u + scales[1] * v[:, None] + scales[2]


class Expected(NamedTuple):
    truth: oracle.Truth
    grad: Tensor
    """Incoming gradient, zero at loose pixels."""
    loose: Tensor
    """(M, 1, *size): pixels where a rounding decides about derivatives."""
    lost: Tensor
    """(M, 1, *size): pixels where a rounding decides about the output."""
    stretch: Tensor
    """(M,): factor by which derivatives can exceed those of an affine map."""


def expected_of(args: Case, options: Options, is_shared: bool, device: torch.device) -> Expected:
    """Compute the oracle's results and where they count. ``is_shared``: positions agree to the last bit."""
    dtype = contract.coordinate_dtype(args.input.dtype)
    eps = torch.finfo(dtype).eps
    count, images = len(args.theta), len(args.input)
    owners = args.image_index
    if owners is None:
        owners = torch.arange(count) // max(count // max(images, 1), 1)
    exists = (owners >= 0) & (owners < images)
    grad = args.grad.clone()
    loose, lost = torch.zeros(2, count, 1, *args.size, dtype=torch.bool)
    stretch = torch.ones(count, dtype=torch.float64)
    output = torch.full(grad.shape, math.nan, dtype=torch.float64)
    grad_input = torch.zeros(args.input.shape, dtype=torch.float64)
    grad_theta = torch.zeros(args.theta.shape, dtype=torch.float64)
    grad_fill = None if args.fill is None else torch.zeros(len(args.fill), dtype=torch.float64)
    jumps = options.mode == "nearest" or not args.input.isfinite().all()
    for m in torch.nonzero(exists).flatten().tolist() if grad.numel() else ():
        owner = int(owners[m])

        def solve(m=m, owner=owner):
            one = args.input[owner : owner + 1].to(device), args.theta[m : m + 1], args.size, grad[m : m + 1]
            truth = oracle.solve(*one, options, dtype, args.fill)  # it rounds as kernels do on the device
            return oracle.Truth(*(None if t is None else t.cpu() for t in truth))

        with _positions() as found:
            truth = solve()
        if args.theta.shape[1] == 3 and len(args.size) == 2:
            depth = _depths(args.theta[m], args.input.shape[2:], args.size, options)
            lost[m, 0] |= (depth.abs() < 1e-3) | (depth.abs() > 1e30)
            for position, _ in found:
                if options.padding.repeats:
                    lost[m, 0] |= position.abs() > 1e3
                loose[m, 0] |= ~position.isfinite()  # times a change of rounding
            kept = depth[~lost[m, 0] & depth.isfinite()].abs()
            stretch[m] = (1 / kept).max().clamp(min=1) ** 2 if kept.numel() else 1
        rounding = 8
        if not is_shared:
            largest = args.theta[m].double().abs().nan_to_num(0, posinf=0).max()
            lost[m] |= bool(largest > 100)
            rounding = MANY * stretch[m] * (1 + largest)
        for position, n in found:
            near, far = _near_and_far(position, n, options, eps, rounding)
            loose[m, 0] |= near
            lost[m, 0] |= far | (near & jumps)
        loose[m] |= lost[m]
        if loose[m].any():
            grad[m] = grad[m].masked_fill(loose[m], 0)
            truth = solve()
        output[m] = truth.output[0]
        if options.mode != "nearest":  # nearest has no gradient of theta, even for infinite values
            grad_theta[m] = truth.grad_theta[0]
        grad_input[owner] += truth.grad_input[0]
        if grad_fill is not None:
            grad_fill += truth.grad_fill
    return Expected(oracle.Truth(output, grad_input, grad_theta, grad_fill), grad, loose, lost, stretch)
