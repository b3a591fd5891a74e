"""A linear layer and its neurons from spike times, as compiled CPU loops.

Each spike adds its column of weights to the current of its step, once; between two steps with
spikes the membrane is jumped over with tables of powers of beta, so that cost and memory follow
the number of spikes and not T. Only the surrogate rules look at every step when they go back.

Neurons come in tiles of ``TILE`` lanes, whose weights, state and tables stay in the second-level
cache while all samples go by. The width is a constant, so that the compiler unrolls the loops
over a tile; a narrower layer is padded. A thread owns a range of tiles, and where tiles are few
a range of samples as well, with gradients of its own: no result depends on timing.
"""

from __future__ import annotations

import functools

import numpy as np
import torch
from torch import Tensor

from ..surrogate import Surrogate
from .buffers import (
    Events,
    Impulses,
    LinearGradients,
    LinearNeurons,
    SpikeRows,
    offsets_of,
)
from .memory import empty
from .numba_common import (
    REDUCTIONS,
    RESETS,
    RULES,
    SURROGATES,
    as_array,
    compiled,
    in_threads,
    surrogate_slope,
)
from .simd import LANES, load, store

TILE = 128
JUMP = 64  # steps that the tables of powers reach
_FEW = 64  # rows of weights that the product is taken with inside the loop
_ROWS_BYTES = 4 << 20  # of a piece of the gradient to dense spikes, made and read in turns

_ZERO, _SUBTRACT = RESETS["zero"], RESETS["subtract"]
_MASKED, _PRE_SPIKE = RULES["masked"], RULES["pre_spike"]
_SUM, _MAX, _LAST = REDUCTIONS["sum"], REDUCTIONS["max"], REDUCTIONS["last"]


# Numba counts references to the arrays that a function is given, with atomic instructions that
# take longer than a row; functions that make no arrays of their own can do without.
_helper = functools.partial(compiled, _nrt=False)
_inlined = functools.partial(compiled, _nrt=False, forceinline=True)


@compiled
def _sort(low, high, times, steps, offsets, out_times, out_units):
    """Counting sort of the spikes of each sample."""
    where = np.empty(steps + 1, np.int64)
    for sample in range(low, high):
        row = times[sample]
        where[:] = 0
        for i in range(row.shape[0]):
            if row[i] >= 0:
                where[row[i] + 1] += 1
        where[0] = offsets[sample]
        for t in range(steps):
            where[t + 1] += where[t]
        for i in range(row.shape[0]):
            if row[i] >= 0:
                place = where[row[i]]
                where[row[i]] = place + 1
                out_times[place] = row[i]
                out_units[place] = i


@compiled
def _pack(low, high, weight, packed):
    """(O, N) to (tiles, N, TILE), zeros past the last lane."""
    lanes, units = weight.shape
    for tile in range(low, high):
        lane = tile * TILE
        n = min(TILE, lanes - lane)
        for i in range(units):  # a column of weights fits in the first-level cache
            for j in range(n):
                packed[tile, i, j] = weight[lane + j, i]
            for j in range(n, TILE):
                packed[tile, i, j] = 0


@compiled
def _unpack(low, high, packed, weight):
    """The sum over splits of (splits, tiles, N, TILE), as (O, N)."""
    lanes, units = weight.shape
    for tile in range(low, high):
        lane = tile * TILE
        for i in range(units):
            for j in range(min(TILE, lanes - lane)):
                total = packed[0, tile, i, j]
                for split in range(1, packed.shape[0]):
                    total += packed[split, tile, i, j]
                weight[lane + j, i] = total


@_helper
def _tile(parameter, tile, other, out):
    """The lanes of one tile, ``other`` past the last."""
    for j in range(TILE):
        lane = tile * TILE + j
        out[j] = parameter[lane] if lane < parameter.shape[0] else other


@_helper
def _tables(b, power, geometric, rising):
    """beta^n, 1 + beta + ... + beta^(n-1), and the sum of those from 1 to n; n = 0 ... JUMP."""
    for j in range(TILE):
        power[0, j] = 1
        geometric[0, j] = 0
        rising[0, j] = 0
    for n in range(1, JUMP + 1):
        for j in range(TILE):
            power[n, j] = power[n - 1, j] * b[j]
            geometric[n, j] = geometric[n - 1, j] + power[n - 1, j]
            rising[n, j] = rising[n - 1, j] + geometric[n, j]


@_helper
def _slopes(power, d_power, d_geometric):
    """Derivatives of the first two tables by beta."""
    for j in range(TILE):
        d_power[0, j] = 0
        d_geometric[0, j] = 0
    for n in range(1, JUMP + 1):
        for j in range(TILE):
            d_power[n, j] = power.dtype.type(n) * power[n - 1, j]
            d_geometric[n, j] = d_geometric[n - 1, j] + d_power[n - 1, j]


@_inlined
def _gather(e, end, now, times, units, values, weights, x):
    """Add the weights of all spikes of one step to the current; returns the next spike."""
    if values.shape[0] > 0:
        while e < end and times[e] == now:
            unit, value = units[e], values[e]
            for j in range(TILE):
                x[j] += value * weights[unit, j]
            e += 1
        return e
    while e + 3 < end and times[e + 3] == now:  # four at a time: x is read and written once
        one, two, three, four = units[e], units[e + 1], units[e + 2], units[e + 3]
        for j in range(TILE):
            u = x[j] + weights[one, j]
            u = u + weights[two, j]
            u = u + weights[three, j]
            x[j] = u + weights[four, j]
        e += 4
    while e < end and times[e] == now:
        unit = units[e]
        for j in range(TILE):
            x[j] += weights[unit, j]
        e += 1
    return e


@_inlined
def _scatter(e, begin, now, times, units, values, lam, gradient):
    """Add the adjoint to the gradient of the weights of all spikes of one step, going back."""
    while e >= begin and times[e] == now:
        unit = units[e]
        if values.shape[0] > 0:
            value = values[e]
            for j in range(TILE):
                gradient[unit, j] += value * lam[j]
        else:
            for j in range(TILE):
                gradient[unit, j] += lam[j]
        e -= 1
    return e


@_inlined
def _jump(gap, v, drive, power, geometric):
    """The membrane ``gap`` steps of constant current later."""
    for j in range(TILE):
        v[j] = power[gap, j] * v[j] + geometric[gap, j] * drive[j]


@_inlined
def _jump_marked(gap, v, drive, power, geometric, th, first, never, later, marks):
    """The same, kept apart in ``later``; marks neurons that are over threshold by then."""
    hit = np.int32(0)
    for j in range(TILE):
        u = power[gap, j] * v[j] + geometric[gap, j] * drive[j]
        later[j] = u
        mark = np.int32((u > th[j]) & (first[j] == never))
        marks[j] = mark
        hit |= mark
    return hit


@_inlined
def _jump_slope(gap, p, v, drive, power, d_power, d_geometric):
    """Its derivative by beta; before :func:`_jump`, whose ``v`` it reads."""
    for j in range(TILE):
        p[j] = power[gap, j] * p[j] + d_power[gap, j] * v[j] + d_geometric[gap, j] * drive[j]


@_inlined
def _step(step, v, b, x, th, first, never):
    """One step of current ``x``."""
    for j in range(TILE):
        u = b[j] * v[j] + x[j]
        v[j] = u
        first[j] = step if (u > th[j]) & (first[j] == never) else first[j]


@_inlined
def _step_marked(step, v, b, x, th, first, never, before):
    """The same; keeps the membrane before it, and tells whether a neuron fires."""
    hit = np.int32(0)
    for j in range(TILE):
        held = v[j]
        u = b[j] * held + x[j]
        before[j] = held
        v[j] = u
        fire = (u > th[j]) & (first[j] == never)
        first[j] = step if fire else first[j]
        hit |= np.int32(fire)
    return hit


@_inlined
def _step_slope(p, b, before, p_before):
    for j in range(TILE):
        held = p[j]
        p_before[j] = held
        p[j] = before[j] + b[j] * held


@_inlined
def _copy(source, target):
    for j in range(TILE):
        target[j] = source[j]


@_helper
def _search(
    v, p, start, stop, b, current, th, first, below, above, slope_below, slope_above, now, after
):
    """Find the step between two spikes at which a constant current took neurons over threshold.

    ``v`` is the membrane before ``start``, and ``now`` marks those for which a jump to ``stop``
    came to a membrane ``after`` it that is above. Where that was its rounding, and step by step
    they stay below, they do not fire, and that is their membrane.
    """
    for j in range(TILE):
        if now[j]:
            u, q = v[j], p[j]
            for t in range(start, stop):
                before, q_before = u, q
                q = u + b[j] * q
                u = b[j] * u + current[j]
                if u > th[j]:
                    first[j] = t
                    below[j], above[j] = before, u
                    slope_below[j], slope_above[j] = q_before, q
                    break
            if u <= th[j]:
                after[j] = u


@_helper
def _first_spikes(
    work,
    marked,
    tables,
    tile_low,
    tile_high,
    low,
    high,
    offsets,
    times,
    units,
    values,
    packed,
    bias,
    beta,
    theta,
    steps,
    out,
    crossing,
    sensitivity,
):
    """First spikes (B, O), V[t*-1] and V[t*] (2, B, O), and their derivatives by beta."""
    dtype = packed.dtype
    zero = dtype.type(0)
    never = np.int32(steps)
    lanes = beta.shape[0]
    want_crossing, want_slope = crossing.shape[0] > 0, sensitivity.shape[0] > 0
    # Rows of one array: the compiler can prove them apart, and vectorises.
    b, th, drive, v, x, before = work[0], work[1], work[2], work[3], work[4], work[5]
    p, p_before = work[6], work[11]
    below, above, slope_below, slope_above = work[7], work[8], work[9], work[10]
    unfired, first, marks = marked[0], marked[1], marked[2]
    power, geometric, rising = tables[0], tables[1], tables[2]
    d_power, d_geometric = tables[3], tables[4]
    for tile in range(tile_low, tile_high):
        weights = packed[tile]
        _tile(beta, tile, zero, b)
        _tile(bias, tile, zero, drive)
        _tile(theta, tile, dtype.type(np.inf), th)
        _tables(b, power, geometric, rising)
        if want_slope:
            _slopes(power, d_power, d_geometric)
        # Between spikes the membrane moves towards bias / (1 - beta): without a bias, to zero.
        may_cross, may_fall = False, False
        for j in range(TILE):
            may_cross |= (drive[j] != zero) | (th[j] < zero)
            # From 0, which is not looked at, a membrane can fall below a negative threshold.
            may_fall |= (drive[j] < zero) & (th[j] < zero)
            unfired[j] = never if tile * TILE + j < lanes else 0  # the padding does not count
        for sample in range(low, high):
            for j in range(TILE):
                v[j], p[j] = zero, zero
                first[j] = unfired[j]
            e, end = offsets[sample], offsets[sample + 1]
            t, stops = 0, 0
            while t < steps:
                now = times[e] if e < end else steps
                while t < now:
                    gap = 1 if may_fall and t == 0 else min(now - t, JUMP)
                    if may_cross and _jump_marked(
                        gap, v, drive, power, geometric, th, first, never, x, marks
                    ):
                        _search(
                            v, p, t, t + gap, b, drive, th, first, below, above,
                            slope_below, slope_above, marks, x,
                        )  # fmt: skip
                    if want_slope:
                        _jump_slope(gap, p, v, drive, power, d_power, d_geometric)
                    if may_cross:
                        _copy(x, v)
                    else:
                        _jump(gap, v, drive, power, geometric)
                    t += gap
                if t == steps:
                    break
                _copy(drive, x)
                e = _gather(e, end, now, times, units, values, weights, x)
                step = np.int32(t)
                if want_crossing:
                    hit = _step_marked(step, v, b, x, th, first, never, before)
                    if want_slope:
                        _step_slope(p, b, before, p_before)
                    if hit:
                        for j in range(TILE):
                            if first[j] == step:
                                below[j], above[j] = before[j], v[j]
                                slope_below[j], slope_above[j] = p_before[j], p[j]
                else:
                    _step(step, v, b, x, th, first, never)
                t += 1
                stops += 1
                if stops % 8 == 0:
                    latest = np.int32(0)
                    for j in range(TILE):
                        latest = max(latest, first[j])
                    if latest < never:
                        break
            for j in range(min(TILE, lanes - tile * TILE)):
                lane = tile * TILE + j
                fired = first[j] < never
                out[sample, lane] = first[j] if fired else -1
                if want_crossing:
                    crossing[0, sample, lane] = below[j] if fired else zero
                    crossing[1, sample, lane] = above[j] if fired else zero
                if want_slope:
                    sensitivity[0, sample, lane] = slope_below[j] if fired else zero
                    sensitivity[1, sample, lane] = slope_above[j] if fired else zero


@_helper
def _settled(v, p, gap, b, current, now, last, slope, step):
    """Of a maximum that was reached during a jump to step ``last``, the first step.

    ``v`` is the membrane before the jump, and ``now`` that at its end, which is the only maximum
    unless rounding has brought it to rest before.
    """
    for j in range(TILE):
        if step[j] == last and b[j] * now[j] + current[j] <= now[j]:
            u, q = v[j], p[j]
            for t in range(last - gap + 1, last + 1):
                q = u + b[j] * q
                u = b[j] * u + current[j]
                if u >= now[j] or b[j] * u + current[j] <= u:
                    step[j], slope[j] = t, q
                    break


@_helper
def _readout(
    work,
    marked,
    tables,
    tile_low,
    tile_high,
    low,
    high,
    offsets,
    times,
    units,
    values,
    packed,
    bias,
    beta,
    steps,
    reduction,
    value,
    sensitivity,
    taken,
):
    """Sum, maximum or last value over time of a membrane that never fires, (B, O) each."""
    dtype = packed.dtype
    zero, one = dtype.type(0), dtype.type(1)
    lanes = beta.shape[0]
    want_slope, want_step = sensitivity.shape[0] > 0, taken.shape[0] > 0
    b, drive, x, v, p = work[0], work[1], work[2], work[3], work[4]
    result, slope = work[5], work[6]
    constant, d_constant, step = work[7], work[8], marked[0]
    v_before, p_before = work[9], work[10]
    power, geometric, rising = tables[0], tables[1], tables[2]
    d_power, d_geometric = tables[3], tables[4]
    every = one if reduction == _SUM else zero
    for tile in range(tile_low, tile_high):
        weights = packed[tile]
        _tile(beta, tile, zero, b)
        _tile(bias, tile, zero, drive)
        _tables(b, power, geometric, rising)
        _slopes(power, d_power, d_geometric)
        if reduction != _MAX:
            # The value of a constant current of 1, for the bias
            for j in range(TILE):
                v[j], p[j], constant[j], d_constant[j] = zero, zero, zero, zero
            for _ in range(steps):
                for j in range(TILE):
                    p[j] = v[j] + b[j] * p[j]
                    v[j] = b[j] * v[j] + one
                    constant[j] = v[j] + (constant[j] if reduction == _SUM else zero)
                    d_constant[j] = p[j] + (d_constant[j] if reduction == _SUM else zero)
        # Without memory, the first step after spikes is like all that follow, and is the maximum.
        forgets = False
        for j in range(min(TILE, lanes - tile * TILE)):
            forgets |= b[j] == zero
        for sample in range(low, high):
            begin, end = offsets[sample], offsets[sample + 1]
            if reduction == _MAX:
                for j in range(TILE):
                    v[j], p[j], slope[j], step[j], result[j] = zero, zero, zero, 0, -np.inf
                e, t, alone = begin, 0, True
                while t < steps:
                    now = times[e] if e < end else steps
                    if t < now:
                        # Between spikes it moves one way only: its maximum is at an end of the
                        # jump, of which the first step of all is one.
                        gap = 1 if alone else min(now - t, JUMP)
                        alone = False
                        _copy(v, v_before)
                        _copy(p, p_before)
                        _jump_slope(gap, p, v, drive, power, d_power, d_geometric)
                        _jump(gap, v, drive, power, geometric)
                        t += gap
                    else:
                        _copy(drive, x)
                        e = _gather(e, end, now, times, units, values, weights, x)
                        for j in range(TILE):
                            p[j] = v[j] + b[j] * p[j]
                            v[j] = b[j] * v[j] + x[j]
                        gap = 1
                        t += 1
                        alone = forgets
                    for j in range(TILE):
                        nan = (v[j] != v[j]) & (result[j] == result[j])  # as in torch.max
                        better = (v[j] > result[j]) | nan
                        result[j] = v[j] if better else result[j]
                        slope[j] = p[j] if better else slope[j]
                        step[j] = t - 1 if better else step[j]
                    if gap > 1:
                        _settled(v_before, p_before, gap, b, drive, v, t - 1, slope, step)
            else:
                # v is what a current at step t adds to the value, carried back from the end.
                for j in range(TILE):
                    v[j], p[j] = zero, zero
                for j in range(TILE):
                    result[j], slope[j] = constant[j] * drive[j], d_constant[j] * drive[j]
                e, t = end - 1, steps
                while e >= begin:
                    now = times[e]
                    while t > now:
                        gap = min(t - now, JUMP)
                        last = t == steps and reduction == _LAST
                        if last:
                            gap = 1
                        for j in range(TILE):
                            p[j] = (
                                power[gap, j] * p[j]
                                + d_power[gap, j] * v[j]
                                + d_geometric[gap, j] * every
                            )
                            v[j] = power[gap, j] * v[j] + geometric[gap, j] * every
                            v[j] = one if last else v[j]
                        t -= gap
                    while e >= begin and times[e] == now:
                        unit, height = units[e], one if values.shape[0] == 0 else values[e]
                        for j in range(TILE):
                            result[j] += v[j] * (height * weights[unit, j])
                            slope[j] += p[j] * (height * weights[unit, j])
                        e -= 1
                for j in range(TILE):
                    step[j] = steps - 1
            for j in range(min(TILE, lanes - tile * TILE)):
                lane = tile * TILE + j
                value[sample, lane] = result[j]
                if want_slope:
                    sensitivity[sample, lane] = slope[j]
                if want_step:
                    taken[sample, lane] = step[j]


@functools.partial(_helper, fastmath={"reassoc", "contract"})
def _dot(weights, unit, lam):
    total = lam.dtype.type(0)
    for j in range(TILE):
        total += weights[unit, j] * lam[j]
    return total


@_helper
def _backward_impulses(
    work,
    marked,
    tables,
    tile_low,
    tile_high,
    low,
    high,
    offsets,
    times,
    units,
    values,
    packed,
    beta,
    steps,
    every,
    at,
    before,
    when,
    grad_packed,
    grad_bias,
    grad_inputs,
    heads,
):
    """Gradients of the weights where the adjoint has a closed form (:class:`Impulses`).

    grad_inputs (2, B, N): gradient to a spike of each input at the step of its spike, and at the
    step before it; of inputs that spike once.
    """
    dtype = packed.dtype
    zero = dtype.type(0)
    lanes = beta.shape[0]
    has_every, has_at, has_before = every.shape[0] > 0, at.shape[0] > 0, before.shape[0] > 0
    want_inputs = grad_inputs.shape[0] > 0
    b, h, lam, total = work[0], work[1], work[2], work[3]
    power, geometric, rising = tables[0], tables[1], tables[2]
    # Lanes by the step of their impulse: the first of each step, and the next one of a lane
    following = marked[0]
    for t in range(steps + 1):
        heads[t] = -1
    for j in range(TILE):
        h[j] = zero
    for tile in range(tile_low, tile_high):
        weights, gradient = packed[tile], grad_packed[tile]
        n = min(TILE, lanes - tile * TILE)
        lane = tile * TILE
        _tile(beta, tile, zero, b)
        _tables(b, power, geometric, rising)
        for j in range(TILE):
            total[j] = zero
        for sample in range(low, high):
            begin, end = offsets[sample], offsets[sample + 1]
            if has_every:
                for j in range(n):
                    h[j] = every[sample, lane + j]
            if has_at:
                for j in range(n):
                    step = when[sample, lane + j]
                    if step >= 0:
                        following[j] = heads[step]
                        heads[step] = j
            for j in range(TILE):
                lam[j] = zero
            e, t = end - 1, steps
            previous = steps  # where the last spikes were, if the step before them is wanted
            while t > 0:
                now = times[e] if e >= begin else 0
                stop = now
                if want_inputs and previous < steps and previous > 0 and t == previous:
                    stop = previous - 1
                stop = max(stop, t - JUMP)
                gap = t - stop
                if has_every:
                    for j in range(TILE):
                        total[j] += b[j] * geometric[gap, j] * lam[j] + rising[gap, j] * h[j]
                    _jump(gap, lam, h, power, geometric)
                else:
                    for j in range(TILE):
                        held = lam[j]
                        total[j] += b[j] * geometric[gap, j] * held
                        lam[j] = power[gap, j] * held
                if has_at:
                    for m in range(stop, t):
                        j = heads[m]
                        while j >= 0:
                            lam[j] += at[sample, lane + j] * power[m - stop, j]
                            total[j] += at[sample, lane + j] * geometric[m - stop + 1, j]
                            j = following[j]
                        if has_before:
                            j = heads[m + 1]
                            while j >= 0:
                                lam[j] += before[sample, lane + j] * power[m - stop, j]
                                total[j] += before[sample, lane + j] * geometric[m - stop + 1, j]
                                j = following[j]
                if want_inputs and previous == t and stop == t - 1:
                    # The spikes of step t, seen from the step before it
                    i = e + 1
                    while i < end and times[i] == previous:
                        unit = units[i]
                        grad_inputs[1, sample, unit] += _dot(weights, unit, lam)
                        i += 1
                t = stop
                if e >= begin and t == now:
                    previous = now
                    if want_inputs:
                        i = e
                        while i >= begin and times[i] == now:
                            unit = units[i]
                            grad_inputs[0, sample, unit] += _dot(weights, unit, lam)
                            i -= 1
                    e = _scatter(e, begin, now, times, units, values, lam, gradient)
                    if t == 0:
                        break
            if has_at:
                for j in range(n):
                    if when[sample, lane + j] >= 0:
                        heads[when[sample, lane + j]] = -1
        for j in range(n):
            grad_bias[lane + j] += total[j]


@_inlined
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


@_inlined
def _clear(v, first, step):
    spike = np.int32(step)
    for j in range(TILE):
        u = v[j]
        v[j] = v.dtype.type(0) if first[j] == spike else u


@_inlined
def _subtract(v, amount, first, step):
    spike = np.int32(step)
    for j in range(TILE):
        down = amount[j]
        v[j] -= down if first[j] == spike else v.dtype.type(0)


@_inlined
def _accumulate(g, limit, now, tail, ramp):
    """The doubly cumulated gradient takes the place of ``g``."""
    for j in range(TILE):
        given = g[j]
        t = tail[j] + (given if now <= limit[j] else g.dtype.type(0))
        r = ramp[j] + t
        tail[j] = t
        ramp[j] = r
        g[j] = r


@_inlined
def _integrate(t, v, b, x, mem):
    for j in range(TILE):
        u = b[j] * v[j] + x[j]
        v[j] = u
        mem[t, j] = u


@_inlined
def _slopes_at(k, mem, th, surrogate, a, b, out):
    """s'(V[k] - theta)."""
    for j in range(0, TILE, LANES):
        store(out, j, surrogate_slope(load(mem, (k, j)) - load(th, j), surrogate, a, b))


@_inlined
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


@_helper
def _backward_rows(
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
    causal = rule in (_MASKED, _PRE_SPIKE)
    zeroes, subtracts = reset == _ZERO and not causal, reset == _SUBTRACT and not causal
    first, limit = marked[0], marked[1]
    for tile in range(tile_low, tile_high):
        weights, gradient = packed[tile], grad_packed[tile]
        n = min(TILE, lanes - tile * TILE)
        lane = tile * TILE
        _tile(beta, tile, zero, b)
        _tile(bias, tile, zero, drive)
        _tile(theta, tile, zero, th)
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
                limit[j] = first[j] - np.int32(rule == _PRE_SPIKE) if causal else steps
                v[j], lam[j], tail[j], ramp[j] = zero, zero, zero, zero
            e = begin
            for t in range(last + 1):
                _copy(drive, x)
                if zeroes:
                    _clear(v, first, t - 1)
                elif subtracts:
                    _subtract(x, th, first, t - 1)
                e = _gather(e, end, t, times, units, values, weights, x)
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
                if rule != _MASKED:
                    _accumulate(g, limit, now, tail, ramp)
                _slopes_at(k, mem, th, surrogate, a, slope_b, slope)
                if zeroes:
                    _clear(lam, first, now)
                elif subtracts:
                    _subtract(d_theta, lam, first, now)
                _adjoint(k, now, mem, slope, g, limit, b, lam, d_beta, d_theta, d_bias)
                e = _scatter(e, begin, now, times, units, values, lam, gradient)
                if want_current:
                    kept = grad_current[k, sample, lane : lane + n]
                    for j in range(n):
                        kept[j] = lam[j]
        for j in range(n):
            grad_bias[lane + j] += d_bias[j]
            grad_beta[lane + j] += d_beta[j]
            grad_theta[lane + j] += d_theta[j]


def _parts(tiles: int, samples: int) -> int:
    """How many ranges the samples are split into, because there are fewer tiles than threads."""
    return max(min(torch.get_num_threads() // max(tiles, 1), samples), 1)


def _splits(tiles: int, samples: int) -> list[tuple[int, tuple[int, int, int, int]]]:
    """Ranges of tiles and samples, some for each thread, after the number of the latter."""
    by_tile = max(min(4 * torch.get_num_threads(), tiles), 1)
    by_sample = _parts(tiles, samples)
    return [
        (
            k,
            (
                tiles * i // by_tile,
                tiles * (i + 1) // by_tile,
                samples * k // by_sample,
                samples * (k + 1) // by_sample,
            ),
        )
        for k in range(by_sample)
        for i in range(by_tile)
    ]


def _ranges(total: int) -> list[tuple[int, int]]:
    threads = max(min(torch.get_num_threads(), total), 1)
    return [(total * i // threads, total * (i + 1) // threads) for i in range(threads)]


def _scratch(dtype: np.dtype) -> tuple[np.ndarray, ...]:
    """State of one tile: rows of lanes, rows of steps or marks, and tables of powers."""
    return (
        np.zeros((13, TILE), dtype),
        np.zeros((3, TILE), np.int32),
        np.empty((5, JUMP + 1, TILE), dtype),
    )


def _packed(weight: Tensor) -> np.ndarray:
    lanes, units = weight.shape
    tiles = -(-lanes // TILE)
    packed = empty((tiles, units, TILE), dtype=weight.dtype, device=weight.device).numpy()
    in_threads(_pack, [(*r, weight.detach().numpy(), packed) for r in _ranges(tiles)])
    return packed


def _events(events: Events, dtype: torch.dtype) -> tuple[np.ndarray, ...]:
    arrays = (events.offsets, events.times, events.units)
    return *(x.numpy() for x in arrays), as_array(events.values, 1, dtype)


def sort_spikes(times: Tensor, steps: int) -> Events:
    rows = times.numpy()
    offsets = offsets_of(torch.from_numpy(np.count_nonzero(rows >= 0, axis=1)))
    ordered, units = (
        torch.empty(int(offsets[-1]), dtype=torch.int32, device=times.device) for _ in range(2)
    )
    filled = (offsets.numpy(), ordered.numpy(), units.numpy())
    in_threads(_sort, [(*r, rows, steps, *filled) for r in _ranges(len(rows))])
    return Events(offsets, ordered, units, None, once=True)


def linear_first_spikes(
    events: Events,
    steps: int,
    layer: LinearNeurons,
    times: Tensor,
    crossing: Tensor | None,
    sensitivity: Tensor | None,
) -> None:
    dtype = layer.weight.dtype
    packed = _packed(layer.weight)
    arguments = (
        *_events(events, dtype),
        packed,
        as_array(layer.bias, 1, dtype),
        as_array(layer.beta, 1, dtype),
        as_array(layer.threshold, 1, dtype),
        steps,
        times.numpy(),
        as_array(crossing, 3, dtype),
        as_array(sensitivity, 3, dtype),
    )
    splits = _splits(len(packed), times.shape[0])
    in_threads(
        _first_spikes, [(*_scratch(packed.dtype), *split, *arguments) for _, split in splits]
    )


def linear_readout(
    events: Events,
    steps: int,
    weight: Tensor,
    bias: Tensor,
    beta: Tensor,
    reduction: str,
    value: Tensor,
    sensitivity: Tensor | None,
    step: Tensor | None,
) -> None:
    dtype = weight.dtype
    packed = _packed(weight)
    arguments = (
        *_events(events, dtype),
        packed,
        as_array(bias, 1, dtype),
        as_array(beta, 1, dtype),
        steps,
        REDUCTIONS[reduction],
        value.numpy(),
        as_array(sensitivity, 2, dtype),
        as_array(step, 2, torch.int64),
    )
    splits = _splits(len(packed), value.shape[0])
    in_threads(_readout, [(*_scratch(packed.dtype), *split, *arguments) for _, split in splits])


def linear_backward_impulses(
    events: Events,
    steps: int,
    weight: Tensor,
    beta: Tensor,
    adjoint: Impulses,
    grad_weight: Tensor,
    grad_bias: Tensor,
    grad_inputs: Tensor | None,
) -> None:
    dtype = weight.dtype
    packed = _packed(weight)
    tiles, units, _ = packed.shape
    batch = len(events.offsets) - 1
    splits, parts = _splits(tiles, batch), _parts(tiles, batch)
    ours = np.zeros((parts, tiles, units, TILE), packed.dtype)
    bias = np.zeros((parts, len(beta)), packed.dtype)
    shape = (0, 0, 0) if grad_inputs is None else tuple(grad_inputs.shape)
    inputs = np.zeros((len(splits), *shape), packed.dtype)
    calls = []
    for number, (part, split) in enumerate(splits):
        calls.append(
            (
                *_scratch(packed.dtype),
                *split,
                *_events(events, dtype),
                packed,
                as_array(beta, 1, dtype),
                steps,
                *(as_array(x, 2, dtype) for x in adjoint[:3]),
                as_array(adjoint.when, 2, torch.int64),
                ours[part],
                bias[part],
                inputs[number],
                np.empty(steps + 1, np.int32),
            )
        )
    in_threads(_backward_impulses, calls)
    in_threads(_unpack, [(*r, ours, grad_weight.numpy()) for r in _ranges(tiles)])
    grad_bias.copy_(torch.from_numpy(bias).sum(0))
    if grad_inputs is not None:
        grad_inputs.copy_(torch.from_numpy(inputs).sum(0))


def linear_backward_rows(
    events: Events,
    steps: int,
    layer: LinearNeurons,
    times: Tensor,
    grad_spikes: SpikeRows,
    rule: str,
    surrogate: Surrogate,
    out: LinearGradients,
) -> None:
    dtype = layer.weight.dtype
    scalar = np.float64 if dtype == torch.float64 else np.float32
    packed = _packed(layer.weight)
    tiles, units, _ = packed.shape
    batch, lanes = times.shape
    factor = grad_spikes.weight
    few = factor is not None and len(factor) <= _FEW
    through = np.empty((0, 0, 0), packed.dtype)
    width = lanes
    if few:
        assert factor is not None
        through, width = _packed(factor.T), len(factor)
    piece = max(_ROWS_BYTES // (steps * width * dtype.itemsize), 1)
    parts = _parts(tiles, min(piece, batch))
    ours = np.zeros((parts, tiles, units, TILE), packed.dtype)
    parameters = np.zeros((3, parts, lanes), packed.dtype)
    for low in range(0, batch, piece):
        high = min(low + piece, batch)
        some = slice(low, high)
        rows = grad_spikes.rows(some) if few else grad_spikes.dense(some)
        calls = []
        for part, (first, last, start, stop) in _splits(tiles, high - low):
            calls.append(
                (
                    *_scratch(packed.dtype),
                    first,
                    last,
                    low + start,
                    low + stop,
                    low,
                    *_events(events, dtype),
                    packed,
                    as_array(layer.bias, 1, dtype),
                    as_array(layer.beta, 1, dtype),
                    as_array(layer.threshold, 1, dtype),
                    RESETS[layer.reset],
                    steps,
                    times.numpy(),
                    as_array(rows, 3, dtype),
                    through,
                    RULES[rule],
                    SURROGATES[surrogate.name],
                    scalar(surrogate.a),
                    scalar(surrogate.b),
                    ours[part],
                    *(gradient[part] for gradient in parameters),
                    as_array(out.current, 3, dtype),
                    np.empty((steps, TILE), packed.dtype),
                )
            )
        in_threads(_backward_rows, calls)
    in_threads(_unpack, [(*r, ours, out.weight.numpy()) for r in _ranges(tiles)])
    for target, gradient in zip((out.bias, out.beta, out.threshold), parameters, strict=True):
        target.copy_(torch.from_numpy(gradient).sum(0))
