"""How taps change along a tangent of theta, for forward mode and second derivatives.

A tangent of theta, folded like theta itself (`coordinates.fold_theta`), moves positions with a velocity v.
The weight w of a tap, a product over axes, changes by the sum of v_k dw/dx_k (`change_of`). Its derivatives
dw/dx_k change by the sum over j of v_j d2w/dx_j dx_k (`slope_changes_of`).

A projective map c_k = h_k/h_w moves by v_k = (g_k - c_k g_w)/h_w, with g from the rows of the tangent.
"""

import triton
import triton.language as tl

from stn_triton.kernels.coordinates import fold_theta, is_visible, row_constant
from stn_triton.kernels.displacement import displaced, displacement
from stn_triton.kernels.structs import Motion
from stn_triton.kernels.taps import near, padded


@triton.jit
def finite(number):
    """The number, or 0 if it is not finite: velocities overflow near the horizon, where taps are masked."""
    return tl.where(tl.abs(number) < float("inf"), number, 0)


@triton.jit
def motion_of(theta_tangent, window, points, sizes_out, K: tl.constexpr):
    """How the map of a window moves along a tangent of its matrix; empty unless TANGENT."""
    b, bends = (), ()
    if K.TANGENT:
        b = fold_theta(theta_tangent, window.m, window.map.scales, K)
        bends = displacement(theta_tangent, window.m, window.pixels, window.map.scales, points, sizes_out, K)
    return Motion(b, bends)


@triton.jit
def velocities_at(motion, sample, halves, K: tl.constexpr):
    """Velocity of positions along each axis, and the growth rate of the divisor divided by the divisor."""
    b, base = motion.b, sample.base
    growth = 0.0
    if K.PROJECTIVE:
        inverse = 1 / tl.where(is_visible(sample.divisor), sample.divisor, 1)
        growth = finite((b[K.DIM * (K.DIM + 1)] * base[0] + row_constant(b, base, K.DIM, K)) * inverse)
    velocities = ()
    for k in tl.static_range(K.DIM):
        velocity = b[k * (K.DIM + 1)] * base[0] + row_constant(b, base, k, K)
        if K.PROJECTIVE:
            mapped = tl.where(is_visible(sample.divisor), sample.positions[k] - halves[k], 0)
            velocity = finite(velocity * inverse - growth * mapped)
        velocities = velocities + (velocity,)
    return displaced(velocities, motion.bends, K), growth


@triton.jit
def slopes_of(weight, slope, K: tl.constexpr):
    """The derivatives of a product of weights along each axis."""
    if K.DIM == 3:
        result = (
            slope[0] * weight[1] * weight[2],
            slope[1] * weight[0] * weight[2],
            slope[2] * weight[0] * weight[1],
        )
    else:
        result = (slope[0] * weight[1], slope[1] * weight[0])
    return result


@triton.jit
def change_of(velocities, weight, slope, K: tl.constexpr):
    """How fast a product of weights changes."""
    slopes = slopes_of(weight, slope, K)
    change = velocities[0] * slopes[0] + velocities[1] * slopes[1]
    if K.DIM == 3:
        change += velocities[2] * slopes[2]
    return change


@triton.jit
def slope_changes_of(velocities, weight, slope, curve, K: tl.constexpr):
    """How fast each of `slopes_of` changes."""
    if K.DIM == 3:
        result = (
            velocities[0] * curve[0] * weight[1] * weight[2]
            + slope[0] * (velocities[1] * slope[1] * weight[2] + velocities[2] * slope[2] * weight[1]),
            velocities[1] * curve[1] * weight[0] * weight[2]
            + slope[1] * (velocities[0] * slope[0] * weight[2] + velocities[2] * slope[2] * weight[0]),
            velocities[2] * curve[2] * weight[0] * weight[1]
            + slope[2] * (velocities[0] * slope[0] * weight[1] + velocities[1] * slope[1] * weight[0]),
        )
    else:
        cross = slope[0] * slope[1]
        result = (
            velocities[0] * curve[0] * weight[1] + velocities[1] * cross,
            velocities[1] * curve[1] * weight[0] + velocities[0] * cross,
        )
    return result


@triton.jit
def all_curves(positions, lows, highs, K: tl.constexpr):
    """Second derivatives of the weights of `all_taps` by the position, axis after axis."""
    curves = ()
    for k in tl.static_range(K.DIM):
        if K.TAPS == 4:
            position = near(positions[k], lows[k], highs[k], K)
            position, direction = padded(position, lows[k], highs[k], K)
            fraction = position - tl.floor(position)
            rest = 1 - fraction
            # Second derivatives of the weights of `cubic`; a direction is 1, -1 or 0.
            moves = direction * direction
            curves = curves + (
                moves * (3 - 4.5 * fraction),
                moves * (7.5 * fraction - 4.5),
                moves * (7.5 * rest - 4.5),
                moves * (3 - 4.5 * rest),
            )
        else:
            for _i in tl.static_range(K.TAPS):
                curves = curves + (tl.zeros(positions[k].shape, positions[k].dtype),)
    return curves
