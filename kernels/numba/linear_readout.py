"""Sum, maximum or last value over time of a linear layer's membranes, from spikes."""

import numpy as np

from .compiling import LAST, MAX, SUM, helper
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


@helper
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


@helper
def linear_readout_loop(
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
    every = one if reduction == SUM else zero
    for tile in range(tile_low, tile_high):
        weights = packed[tile]
        tile_values(beta, tile, zero, b)
        tile_values(bias, tile, zero, drive)
        power_tables(b, power, geometric, rising)
        power_slopes(power, d_power, d_geometric)
        if reduction != MAX:
            # The value of a constant current of 1, for the bias
            for j in range(TILE):
                v[j], p[j], constant[j], d_constant[j] = zero, zero, zero, zero
            for _ in range(steps):
                for j in range(TILE):
                    p[j] = v[j] + b[j] * p[j]
                    v[j] = b[j] * v[j] + one
                    constant[j] = v[j] + (constant[j] if reduction == SUM else zero)
                    d_constant[j] = p[j] + (d_constant[j] if reduction == SUM else zero)
        # Without memory, the first step after spikes is like all that follow, and is the maximum.
        forgets = False
        for j in range(min(TILE, lanes - tile * TILE)):
            forgets |= b[j] == zero
        for sample in range(low, high):
            begin, end = offsets[sample], offsets[sample + 1]
            if reduction == MAX:
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
                        copy_row(v, v_before)
                        copy_row(p, p_before)
                        jump_slope(gap, p, v, drive, power, d_power, d_geometric)
                        jump(gap, v, drive, power, geometric)
                        t += gap
                    else:
                        copy_row(drive, x)
                        e = gather(e, end, now, times, units, values, weights, x)
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
                        last = t == steps and reduction == LAST
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
