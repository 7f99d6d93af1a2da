"""The oracle: the operator again, with positions in a chosen precision and everything else in fp64.

With fp32 positions it finds the same input pixels as the kernels, at kinks too. With fp64 positions it is the
truth except at kinks. Gradients are sums over taps, not computed by autograd. Axes are in the order x, y, z.

The oracle shares no code with the operator. It is slow: a loop over images, samples and taps.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from stn_triton.options import DEFAULT, Options


class Truth(NamedTuple):
    """The output of a call, and its gradients."""

    output: Tensor
    grad_input: Tensor
    grad_theta: Tensor
    grad_fill: Tensor | None


class Place(NamedTuple):
    """Positions at which the output pixels of one matrix sample the input."""

    base: tuple[Tensor, ...]
    """Output positions, in output pixels from the centre."""
    phis: list[Tensor]
    """Factors of a spline's weights."""
    scales: Tensor
    """The factor of each entry of theta, (rows, D + 1)."""
    rows: list[Tensor]
    """Products of the matrix's rows, divided: input pixels from the centre, in the chosen precision."""
    divisor: Tensor
    seen: Tensor
    """False behind the horizon of a projective map."""
    positions: list[Tensor]
    """Input pixels from the centre of the first pixel, fp64."""
    terms: list[Tensor]
    """The sum of the absolute values of a position's terms: its rounding error is proportional to it."""


def _fma(a, b, c, fused):
    """Compute a * b + c, rounded once if fused, else twice."""
    if not fused:
        return a * b + c
    if a.dtype == torch.float32:
        return (a.double() * b.double() + c.double()).float()
    # Dekker's product and Knuth's sum, each with its rounding error.
    split = 2.0**27 + 1
    high_a, high_b = (t * split - (t * split - t) for t in (a, b))
    low_a, low_b = a - high_a, b - high_b
    product = a * b
    product_error = ((high_a * high_b - product) + high_a * low_b + low_a * high_b) + low_a * low_b
    total = product + c
    back = total - product
    total_error = (product - (total - back)) + (c - back)
    corrected = total + (product_error + total_error)
    return torch.where(corrected.isfinite(), corrected, total)


def _scales(size_in, size_out, align_corners, rows):
    """The factor of each entry of theta, (rows, D + 1), divided in fp64."""
    s_in = [n - align_corners for n in size_in] + [2] * (rows - len(size_in))
    s_out = [n - align_corners for n in size_out]
    table = [[(s / so if so else 0.0) for so in s_out] + [s / 2] for s in s_in]
    return torch.tensor(table, dtype=torch.float64)


def _samples(theta, size_in, size_out, align_corners):
    """Count antialiasing's samples along each output axis: a step's length in input pixels, rounded up.

    A length too large by up to 1/64 adds no sample. One sample if the matrix is not finite.
    """
    dim = len(size_in)
    steps = (theta * _scales(size_in, size_out, align_corners, len(theta)).to(theta.dtype))[:dim, :dim]
    lengths = torch.where(steps.isfinite().all(0), steps.double().square().sum(0).sqrt(), 1).tolist()
    return [math.ceil(min(max(n * 63 / 64, 1), 64)) for n in lengths]


def _reflect(position, n, align_corners):
    """Mirror positions at the centres (or outer edges) of the end pixels; return their directions too."""
    first, span = (0.0, n - 1) if align_corners else (-0.5, n)
    if span == 0:
        return torch.zeros_like(position), torch.ones_like(position)
    fold = torch.floor((position - first) / span)
    rest = position - first - fold * span
    odd = fold.remainder(2) == 1
    mirrored = first + torch.where(odd, span - rest, rest)
    return torch.where(mirrored.isfinite(), mirrored, first), 1.0 - 2.0 * odd


def _cubic(x, a=-0.75):
    """Keys' cubic kernel at distances x, and its derivative."""
    x, sign = x.abs(), x.sign()
    near = (a + 2) * x**3 - (a + 3) * x**2 + 1
    far = a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a
    near_slope = 3 * (a + 2) * x**2 - 2 * (a + 3) * x
    far_slope = 3 * a * x**2 - 10 * a * x + 8 * a
    return torch.where(x <= 1, near, far), sign * torch.where(x <= 1, near_slope, far_slope)


def _pixel(pixel, n, options):
    """Find the pixel that a tap reads."""
    if options.padding_mode == "wrap":
        return pixel.remainder(n)
    if options.mode == "bicubic":
        if options.padding_mode == "reflection":
            pixel, _ = _reflect(pixel, n, options.align_corners)
        if options.padding_mode in ("border", "reflection"):
            pixel = pixel.clamp(0, n - 1)
    return pixel


def _taps(position, n, options):
    """Taps along an axis: pixels, their weights, and the weights' derivatives by the position."""
    direction = torch.ones_like(position)
    is_cubic = options.mode == "bicubic"
    if options.padding_mode == "reflection":
        position, direction = _reflect(position, n, options.align_corners)
    if options.padding_mode in ("border", "reflection") and not is_cubic:
        direction = direction * ((position > 0) & (position < n - 1))
        position = torch.where(position > 0, position, 0.0).clamp(max=n - 1)
    period = 0.0
    if options.padding_mode == "wrap":  # keeps cells and fractions, and subtracts whole periods from pixels
        direction = direction * position.isfinite()
        position = position.where(position.isfinite(), 0)
        period = torch.floor(position / n) * n
    else:
        position = torch.where(position > -9, position, -9.0).clamp(max=n + 9)
    if options.mode == "nearest":
        return [
            (
                _pixel(torch.round(position - period), n, options),
                torch.ones_like(position),
                torch.zeros_like(position),
            )
        ]
    cell = position.floor()
    fraction = position - cell
    if options.mode == "bilinear":
        weights = (1 - fraction, -direction), (fraction, direction)
        return [(_pixel(cell + i, n, options), *w) for i, w in enumerate(weights)]
    taps = []
    for offset in (-1, 0, 1, 2):
        weight, slope = _cubic(fraction - offset)
        taps.append((_pixel(cell + offset, n, options), weight, slope * direction))
    return taps


def solve(
    input: Tensor,
    theta: Tensor,
    size_out: Sequence[int],
    grad_output: Tensor,
    options: Options = DEFAULT,
    dtype: torch.dtype = torch.float64,
    fill: Tensor | None = None,
    image_index: Tensor | None = None,
    shares_rounding: bool = True,
) -> Truth:
    """Compute output and gradients of matrices (M, ...) on the CPU: positions in ``dtype``, the rest in fp64.

    With ``shares_rounding`` positions are rounded as by kernels on the device of ``input``.
    """
    device, fused = input.device, False
    if shares_rounding:
        from stn_triton.check.fused import is_fused

        fused = is_fused(device)
    x, g = input.cpu().double(), grad_output.cpu().double()
    theta = theta.cpu().to(dtype)
    fills = None if fill is None else fill.cpu().double()
    owners = [m * len(x) // len(theta) for m in range(len(theta))]
    owners = owners if image_index is None else image_index.tolist()
    output = torch.zeros(g.shape, dtype=torch.float64)
    grad_input, grad_theta = torch.zeros_like(x), torch.zeros(theta.shape, dtype=torch.float64)
    grad_fill = None if fill is None else torch.zeros_like(fills)
    size_in, size_out = tuple(reversed(x.shape[2:])), tuple(reversed(size_out))
    for m, owner in enumerate(owners):
        samples = [1] * len(size_in)
        if options.antialias:
            samples = _samples(theta[m], size_in, size_out, options.align_corners)
        for offsets in itertools.product(*map(range, samples)):
            share = g[m] / math.prod(samples)
            how = (options, fills, samples, offsets, fused)
            one = _solve_one(x[owner], theta[m], size_out, share, *how)
            output[m] += one.output / math.prod(samples)
            grad_input[owner] += one.grad_input
            grad_theta[m] += one.grad_theta
            if fill is not None:
                grad_fill += one.grad_fill
    return Truth(*(None if t is None else t.to(device) for t in (output, grad_input, grad_theta, grad_fill)))


def _phis(base, size_out, options, dtype):
    """Terms r^2 log2 r^2 of a thin plate spline, where r is the distance from each control point."""
    phis = []
    x, y = (b * (2 / max(n - options.align_corners, 1)) for b, n in zip(base[:2], size_out[:2], strict=True))
    for px, py in zip(options.points[::2], options.points[1::2], strict=True):
        square = (x - torch.tensor(px, dtype=dtype)) ** 2 + (y - torch.tensor(py, dtype=dtype)) ** 2
        phis.append(torch.where(square > 0, square * torch.log2(square), 0))
    return phis


def places(
    theta: Tensor, size_in: Sequence[int], size_out: Sequence[int], options: Options
) -> Iterator[Place]:
    """Find the positions of each sample of the output pixels of one matrix, in fp64."""
    theta = theta.cpu().double()
    size_in, size_out = tuple(reversed(size_in)), tuple(reversed(size_out))
    samples = [1] * len(size_in)
    if options.antialias:
        samples = _samples(theta, size_in, size_out, options.align_corners)
    for offsets in itertools.product(*map(range, samples)):
        yield _place(theta, size_in, size_out, options, samples, offsets, False)


def _place(theta, size_in, size_out, options, samples, offsets, fused) -> Place:
    dim, dtype = len(size_out), theta.dtype
    fine = [n * s for n, s in zip(size_out, samples, strict=True)]
    scales = _scales(size_in, fine, options.align_corners, len(theta))
    a = theta[:, : dim + 1] * scales.to(dtype)
    axes = [
        torch.arange(n, dtype=dtype) * s + i - (n * s - 1) / 2
        for n, s, i in zip(size_out, samples, offsets, strict=True)
    ]
    base = tuple(reversed(torch.meshgrid(*reversed(axes), indexing="ij")))
    rows, terms = [], []
    for row in a:
        total = row[dim].expand_as(base[0])
        for j in reversed(range(dim)):
            total = _fma(row[j].expand_as(total), base[j], total, fused)
        rows.append(total)
        terms.append(row[dim].abs() + sum(row[j].abs() * base[j].abs() for j in range(dim)))
    phis = _phis(base, size_out, options, dtype)
    for k, row in enumerate(theta if phis else ()):
        scale = scales[k, dim].to(dtype)
        bends = list(zip(row[dim + 1 :], phis, strict=True))
        rows[k] = rows[k] + scale * sum(w * phi for w, phi in bends)
        terms[k] = terms[k] + scale * sum((w * phi).abs() for w, phi in bends)
    seen = torch.ones_like(base[0], dtype=torch.bool)
    divisor = torch.ones_like(base[0])
    if len(rows) > dim:
        divisor = rows.pop()
        seen = (divisor > 0) & divisor.isfinite()
        rows = [row / divisor for row in rows]
        depth = terms.pop()
        terms = [(t + r.abs() * depth) / divisor.abs() for t, r in zip(terms, rows, strict=True)]
    # From here in fp64. The whole part of the centre is added after rounding, as in the kernels.
    positions = [
        _plus_whole((row + (0.5 if n % 2 == 0 else 0.0)).double(), (n - 1) // 2)
        for row, n in zip(rows, size_in, strict=True)
    ]
    return Place(base, phis, scales, rows, divisor, seen, positions, terms)


def _plus_whole(position, whole):
    """Add a whole number without leaving the cell: a position just below 0 stays below ``whole``."""
    total = position + whole
    is_lost = (total == total.floor()) & (position != position.floor()) & position.isfinite()
    return torch.where(is_lost, torch.nextafter(total, total + position.sign()), total)


def _solve_one(x, theta, size_out, g, options, fill, samples, offsets, fused) -> Truth:
    """Solve for one sample of each output pixel of one matrix."""
    dim = len(size_out)
    size_in = tuple(reversed(x.shape[1:]))
    place = _place(theta, size_in, size_out, options, samples, offsets, fused)
    base, phis, scales, rows, divisor, seen, positions, _ = place
    taps = [_taps(p, n, options) for p, n in zip(positions, size_in, strict=True)]
    output, coverage = torch.zeros_like(g), torch.zeros_like(g[0])
    grad_input = torch.zeros_like(x).flatten(1)
    along = [torch.zeros_like(coverage) for _ in range(dim)]
    for chosen in itertools.product(*taps):
        pixels = [pixel.long() for pixel, _, _ in chosen]
        inside = seen.clone()
        index = torch.zeros_like(pixels[0])
        for pixel, n in reversed(tuple(zip(pixels, size_in, strict=True))):
            inside &= (pixel >= 0) & (pixel < n)
            index = index * n + pixel
        index = index.where(inside, 0).flatten().expand(len(x), -1)
        weight = math.prod(w for _, w, _ in chosen) * inside
        tap = x.flatten(1).gather(1, index).view(g.shape)
        output += torch.where(weight != 0, tap, 0) * weight
        coverage += weight
        grad_input.scatter_add_(1, index, (torch.where(weight != 0, g, 0) * weight).flatten(1))
        content = tap if fill is None else tap - fill.view(-1, *[1] * dim)
        product = torch.where(inside, content * g, 0).sum(0)
        for k in range(dim):
            factor = math.prod(s if i == k else w for i, (_, w, s) in enumerate(chosen))
            along[k] += torch.where(factor != 0, product, 0) * factor
    grad_fill = None
    if fill is not None:
        output += fill.view(-1, *[1] * dim) * (1 - coverage)
        grad_fill = ((1 - coverage) * g).flatten(1).sum(1)
    by_row = along
    if len(theta) > dim:
        depth = divisor.double().where(seen, 1)
        by_row = [d / depth for d in along]
        # Rows may be infinite: if nothing changes with the position, nothing changes with the divisor.
        by_row.append(-sum(d * row.double().where(d != 0, 0) for d, row in zip(by_row, rows, strict=True)))
    columns = [b.double() for b in base] + [torch.ones_like(base[0], dtype=torch.float64)]
    columns += [phi.double() for phi in phis]
    scales = torch.cat((scales, scales[:, dim:].expand(-1, len(phis))), 1)
    grad_theta = torch.stack([torch.stack([(d * c).sum() for c in columns]) for d in by_row]) * scales
    return Truth(output, grad_input.view(x.shape), grad_theta, grad_fill)


def spline_matrices(offsets: Tensor, points: Sequence[float]) -> Tensor:
    """Compute thin plate splines' matrices (M, 2, 3 + P) from offsets (M, P, 2), in fp64, with gradients."""
    at = torch.tensor(points, dtype=torch.float64, device=offsets.device).view(-1, 2)
    square = (at[:, None] - at).square().sum(2)
    affine = torch.cat((at, torch.ones_like(at[:, :1])), 1)
    bends = torch.where(square > 0, square * torch.log2(square), 0)
    upper, lower = torch.cat((bends, affine), 1), torch.cat((affine.T, affine.new_zeros(3, 3)), 1)
    wanted = torch.cat((offsets, offsets.new_zeros(len(offsets), 3, 2)), 1)
    weights, plane = torch.linalg.solve(torch.cat((upper, lower)), wanted).split([len(at), 3], 1)
    identity = torch.eye(2, 3, dtype=torch.float64, device=offsets.device)
    return torch.cat((plane.transpose(1, 2) + identity, weights.transpose(1, 2)), 2)
