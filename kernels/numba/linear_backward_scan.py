"""Gradients of a linear layer by a surrogate rule, which look at every step."""

import numpy as np

from .compiling import MASKED, PRE_SPIKE, SUBTRACT, ZERO_BEFORE, helper, inlined_helper
from .simd import LANES, load, store
from .surrogate import surrogate_slope
from .tile import TILE, copy_row, gather, scatter, tile_values


@inlined_helper
def _product(adjoint, weights, g):
    """One row of a matrix product, four factors at a time."""
    for j in range(TILE):
        g[j] = 0
    p = 0
    while p + 3 < adjoint.shape[0]:
        one, two, three, four = adjoint[p], adjoint[p + 1], adjoint[p + 2], adjoint[p + 3]
        for j in range(TILE):
            u = g[j] + one * weights[p, j]
            u = u + two * weights[p + 1, j]
            u = u + three * weights[p + 2, j]
            g[j] = u + four * weights[p + 3, j]
        p += 4
    while p < adjoint.shape[0]:
        one = adjoint[p]
        for j in range(TILE):
            g[j] += one * weights[p, j]
        p += 1


@inlined_helper
def _clear(v, first, step):
    spike = np.int32(step)
    for j in range(TILE):
        u = v[j]
        v[j] = v.dtype.type(0) if first[j] == spike else u


@inlined_helper
def _subtract(v, amount, first, step):
    spike = np.int32(step)
    for j in range(TILE):
        down = amount[j]
        v[j] -= down if first[j] == spike else v.dtype.type(0)


@inlined_helper
def _accumulate(g, limit, now, tail, ramp):
    """The doubly cumulated gradient takes the place of ``g``."""
    for j in range(TILE):
        given = g[j]
        t = tail[j] + (given if now <= limit[j] else g.dtype.type(0))
        r = ramp[j] + t
        tail[j] = t
        ramp[j] = r
        g[j] = r


@inlined_helper
def _integrate(t, v, b, x, mem):
    for j in range(TILE):
        u = b[j] * v[j] + x[j]
        v[j] = u
        mem[t, j] = u


@inlined_helper
def _slopes_at(k, mem, th, surrogate, a, b, out):
    """s'(V[k] - theta)."""
    for j in range(0, TILE, LANES):
        store(out, j, surrogate_slope(load(mem, (k, j)) - load(th, j), surrogate, a, b))


@inlined_helper
def _adjoint(k, now, mem, slope, g, limit, b, lam, d_beta, d_theta, d_bias):
    """lam[k] from lam[k+1], and what it adds to the gradients of the parameters."""
    for j in range(TILE):
        d_beta[j] += lam[j] * mem[k, j]
    for j in range(TILE):
        through = slope[j] * g[j] if now <= limit[j] else g.dtype.type(0)
        d_theta[j] -= through
        lam[j] = b[j] * lam[j] + through
    for j in range(TILE):
        d_bias[j] += lam[j]


@helper
def linear_backward_scan_loop(
    work,
    marked,
    tables,
    tile_low,
    tile_high,
    low,
    high,
    offset,
    offsets,
    times,
    units,
    values,
    packed,
    bias,
    beta,
    theta,
    reset,
    steps,
    spiked,
    grad_spikes,
    through,
    rule,
    surrogate,
    a,
    slope_b,
    grad_packed,
    grad_bias,
    grad_beta,
    grad_theta,
    grad_current,
    mem,
):
    """Gradients of the weights and parameters by a surrogate rule.

    grad_spikes (T or 1, samples from ``offset`` on, O) is the gradient to dense spikes of this
    layer; or, where the packed ``through`` (tiles, P, TILE) is given, its first factor, with P in
    the place of O. The membrane is integrated again and the adjoint takes its place, row by row.
    grad_current (T, B, O) is filled where it is wanted.
    """
    dtype = packed.dtype
    zero = dtype.type(0)
    lanes = beta.shape[0]
    want_current = grad_current.shape[0] > 0
    b, th, drive, x, v, g = work[0], work[1], work[2], work[3], work[4], work[5]
    slope, tail, ramp = work[6], work[7], work[8]
    d_bias, d_beta, d_theta = work[9], work[10], work[11]
    lam = work[12]
    causal = rule in (MASKED, PRE_SPIKE)
    zeroes, subtracts = reset == ZERO_BEFORE and not causal, reset == SUBTRACT and not causal
    first, limit = marked[0], marked[1]
    for tile in range(tile_low, tile_high):
        weights, gradient = packed[tile], grad_packed[tile]
        n = min(TILE, lanes - tile * TILE)
        lane = tile * TILE
        tile_values(beta, tile, zero, b)
        tile_values(bias, tile, zero, drive)
        tile_values(theta, tile, zero, th)
        for j in range(TILE):
            d_bias[j], d_beta[j], d_theta[j] = zero, zero, zero
        for sample in range(low, high):
            begin, end = offsets[sample], offsets[sample + 1]
            last = np.int32(0)
            for j in range(TILE):
                first[j] = -2  # the padding never fires
            fired = spiked[sample, lane : lane + n]
            for j in range(n):
                step = fired[j]
                first[j] = step if step >= 0 else steps
                last = max(last, first[j])
            # Later than the last spike nothing comes back, and no membrane is looked at.
            last = min(last, steps - 1) if causal else steps - 1
            for j in range(TILE):
                limit[j] = first[j] - np.int32(rule == PRE_SPIKE) if causal else steps
                v[j], lam[j], tail[j], ramp[j] = zero, zero, zero, zero
            e = begin
            for t in range(last + 1):
                copy_row(drive, x)
                if zeroes:
                    _clear(v, first, t - 1)
                elif subtracts:
                    _subtract(x, th, first, t - 1)
                e = gather(e, end, t, times, units, values, weights, x)
                _integrate(t, v, b, x, mem)
            e -= 1
            if want_current:
                for k in range(last + 1, steps):
                    grad_current[k, sample, lane : lane + n] = zero
            for k in range(last, -1, -1):
                now = np.int32(k)
                row = k if grad_spikes.shape[0] > 1 else 0
                if through.shape[0] > 0:
                    _product(grad_spikes[row, sample - offset], through[tile], g)
                else:
                    given = grad_spikes[row, sample - offset, lane : lane + n]
                    for j in range(n):
                        g[j] = given[j]
                if rule != MASKED:
                    _accumulate(g, limit, now, tail, ramp)
                _slopes_at(k, mem, th, surrogate, a, slope_b, slope)
                if zeroes:
                    _clear(lam, first, now)
                elif subtracts:
                    _subtract(d_theta, lam, first, now)
                _adjoint(k, now, mem, slope, g, limit, b, lam, d_beta, d_theta, d_bias)
                e = scatter(e, begin, now, times, units, values, lam, gradient)
                if want_current:
                    kept = grad_current[k, sample, lane : lane + n]
                    for j in range(n):
                        kept[j] = lam[j]
        for j in range(n):
            grad_bias[lane + j] += d_bias[j]
            grad_beta[lane + j] += d_beta[j]
            grad_theta[lane + j] += d_theta[j]
