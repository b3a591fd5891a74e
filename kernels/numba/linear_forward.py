"""First spikes of a linear layer's neurons, from the spikes of its inputs."""

import numpy as np

from .compiling import helper, inlined_helper
from .tile import (
    JUMP,
    TILE,
    copy_row,
    gather,
    jump,
    jump_slope,
    power_slopes,
    power_tables,
    tile_values,
)


@inlined_helper
def _jump_marked(gap, v, drive, power, geometric, th, first, never, later, marks):
    """A jump, kept apart in ``later``; marks neurons that are over threshold by then."""
    hit = np.int32(0)
    for j in range(TILE):
        u = power[gap, j] * v[j] + geometric[gap, j] * drive[j]
        later[j] = u
        mark = np.int32((u > th[j]) & (first[j] == never))
        marks[j] = mark
        hit |= mark
    return hit


@inlined_helper
def _step(step, v, b, x, th, first, never):
    """One step of current ``x``."""
    for j in range(TILE):
        u = b[j] * v[j] + x[j]
        v[j] = u
        first[j] = step if (u > th[j]) & (first[j] == never) else first[j]


@inlined_helper
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


@inlined_helper
def _step_slope(p, b, before, p_before):
    for j in range(TILE):
        held = p[j]
        p_before[j] = held
        p[j] = before[j] + b[j] * held


@helper
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


@helper
def linear_first_spikes_loop(
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
        tile_values(beta, tile, zero, b)
        tile_values(bias, tile, zero, drive)
        tile_values(theta, tile, dtype.type(np.inf), th)
        power_tables(b, power, geometric, rising)
        if want_slope:
            power_slopes(power, d_power, d_geometric)
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
                        jump_slope(gap, p, v, drive, power, d_power, d_geometric)
                    if may_cross:
                        copy_row(x, v)
                    else:
                        jump(gap, v, drive, power, geometric)
                    t += gap
                if t == steps:
                    break
                copy_row(drive, x)
                e = gather(e, end, now, times, units, values, weights, x)
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
