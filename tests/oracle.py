"""The operator written out: positions in a chosen precision, everything after them in fp64.

With fp32 positions it shares the kernels' cells, at kinks too; with fp64 positions it is the truth away from
them. Gradients are written out as sums over taps, not taken by autograd.
"""

import functools
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor


class Truth(NamedTuple):
    output: Tensor
    grad_input: Tensor
    grad_theta: Tensor


@triton.jit
def _fma_kernel(out_ptr, x_ptr):
    x = tl.load(x_ptr)
    tl.store(out_ptr, tl.fma(x, x, -x * x))


@functools.cache
def _is_fused(device):
    """Whether an FMA of the kernels rounds once: on a GPU and in newer interpreters."""
    x = torch.full((1,), 1 + 2**-12, device=device)
    out = torch.zeros_like(x)
    _fma_kernel[(1,)](out, x)
    return bool(out.item())


def _fma(a, b, c, fused):
    """a * b + c, rounded once or twice."""
    if not fused:
        return a * b + c
    if a.dtype == torch.float32:
        return (a.double() * b.double() + c.double()).float()
    # Dekker and Knuth: the product and the sum with their errors.
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


def _scales(size_in, size_out, align_corners):
    """The factor of each entry of theta, as (2, 3): rows x, y; columns x, y, 1. Division in fp64."""
    s_in = [n - align_corners for n in reversed(size_in)]
    s_out = [n - align_corners for n in reversed(size_out)]
    rows = [[(s / so if so else 0.0) for so in s_out] + [s / 2] for s in s_in]
    return torch.tensor(rows, dtype=torch.float64)


def solve(input, theta, size_out, grad_output, align_corners, dtype=torch.float64) -> Truth:
    """Output and gradients in fp64, with positions computed in ``dtype`` as the kernels would, on the CPU."""
    device, fused = input.device, _is_fused(input.device)
    input, theta, grad_output = input.cpu(), theta.cpu(), grad_output.cpu()
    size_in = input.shape[2:]
    x, g = input.double(), grad_output.double()
    scales = _scales(size_in, size_out, align_corners)
    a = theta.to(dtype) * scales.to(dtype)
    v, u = (torch.arange(n, dtype=dtype) - (n - 1) / 2 for n in size_out)
    u, v = u.expand(len(x), size_out[0], -1), v[:, None].expand(len(x), -1, size_out[1])
    cells, fractions = [], []
    for axis, n in ((0, size_in[1]), (1, size_in[0])):
        a_u, a_v, a_1 = (a[:, axis, k, None, None].expand_as(u) for k in range(3))
        centred = _fma(a_u, u, _fma(a_v, v, a_1, fused), fused) + (0.5 if n % 2 == 0 else 0.0)
        centred = torch.nan_to_num(centred, nan=-n - 2.0).clamp(-n - 2, n + 2)
        cells.append(centred.floor().long() + (n - 1) // 2)
        fractions.append((centred - centred.floor()).double())
    output = torch.zeros(g.shape, dtype=torch.float64)
    grad_input = torch.zeros(x.shape, dtype=torch.float64).flatten(2)
    along = [torch.zeros_like(fractions[0]) for _ in range(2)]
    for second_x in (0, 1):
        for second_y in (0, 1):
            column, row = cells[0] + second_x, cells[1] + second_y
            inside = (column >= 0) & (column < size_in[1]) & (row >= 0) & (row < size_in[0])
            index = (
                (row * size_in[1] + column).where(inside, 0).flatten(1)[:, None].expand(-1, x.shape[1], -1)
            )
            weight_x = fractions[0] if second_x else 1 - fractions[0]
            weight_y = fractions[1] if second_y else 1 - fractions[1]
            weight = (weight_x * weight_y * inside)[:, None]
            tap = x.flatten(2).gather(2, index).view(g.shape)
            output += torch.where(weight != 0, tap, 0) * weight
            grad_input.scatter_add_(2, index, (torch.where(weight != 0, g, 0) * weight).flatten(2))
            product = (torch.where(inside[:, None], tap, 0) * g).sum(1)
            along[0] += product * weight_y * (1 if second_x else -1)
            along[1] += product * weight_x * (1 if second_y else -1)
    base = torch.stack((u, v, torch.ones_like(u))).double()
    grad_theta = torch.stack([(d * base).sum((2, 3)) for d in along]).permute(2, 0, 1) * scales
    return Truth(*(t.to(device) for t in (output, grad_input.view(x.shape), grad_theta)))
