"""Gradients of a linear layer whose adjoint has a closed form: no step without spikes is seen."""

import functools

from .compiling import helper
from .tile import JUMP, TILE, jump, power_tables, scatter, tile_values


@functools.partial(helper, fastmath={"reassoc", "contract"})
def _dot(weights, unit, lam):
    total = lam.dtype.type(0)
    for j in range(TILE):
        total += weights[unit, j] * lam[j]
    return total


@helper
def linear_backward_closed_form_loop(
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
    """Gradients of the weights where the adjoint has a closed form (:class:`ClosedFormAdjoint`).

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
        tile_values(beta, tile, zero, b)
        power_tables(b, power, geometric, rising)
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
                    jump(gap, lam, h, power, geometric)
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
                    e = scatter(e, begin, now, times, units, values, lam, gradient)
                    if t == 0:
                        break
            if has_at:
                for j in range(n):
                    if when[sample, lane + j] >= 0:
                        heads[when[sample, lane + j]] = -1
        for j in range(n):
            grad_bias[lane + j] += total[j]
