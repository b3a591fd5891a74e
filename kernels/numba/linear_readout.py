"""Sum, maximum or last value over time of a linear layer's membranes, from spikes."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from .arguments import Events, Layer, Part, ReadoutOutputs, Scratch
from .block import given
from .compiling import LAST, MAX, SUM, helper, part_of_caller
from .tile import (
    JUMP,
    TILE,
    clear_row,
    copy_row,
    gather,
    gather_split,
    jump,
    jump_slope,
    power_slopes,
    power_tables,
    tables_of,
    tile_values,
    width,
)


class _Rows(NamedTuple):
    """Parameters, state and results of one tile."""

    b: np.ndarray
    drive: np.ndarray
    x: np.ndarray
    v: np.ndarray
    p: np.ndarray
    """The derivative of ``v`` by beta."""
    result: np.ndarray
    slope: np.ndarray
    """The derivative of ``result`` by beta."""
    constant: np.ndarray
    """The result of a constant current of 1."""
    d_constant: np.ndarray
    v_before: np.ndarray
    p_before: np.ndarray
    v_later: np.ndarray
    """The weight of a current of the next step in the value; of a maximum, this current itself."""
    p_later: np.ndarray
    step: np.ndarray


@part_of_caller
def _rows_of(scratch):
    # Rows of one array: the compiler can prove that they do not overlap, and vectorizes.
    r = scratch.rows
    return _Rows(
        r[0], r[1], r[2], r[3], r[4], r[5], r[6], r[7], r[8], r[9], r[10], r[11], r[12],
        scratch.marks[0],
    )  # fmt: skip


@helper
def _settled(last, gap, rows):
    """Find the first step of a maximum inside a jump to step ``last``.

    ``v_before`` is the membrane before the jump, and ``v`` the membrane at the end of the jump. The
    end is the only maximum, unless the membrane came to rest before, by rounding.
    """
    b, current, now = rows.b, rows.drive, rows.v
    for j in range(TILE):
        if rows.step[j] == last and b[j] * now[j] + current[j] <= now[j]:
            u, q = rows.v_before[j], rows.p_before[j]
            for t in range(last - gap + 1, last + 1):
                q = u + b[j] * q
                u = b[j] * u + current[j]
                if u >= now[j] or b[j] * u + current[j] <= u:
                    rows.step[j], rows.slope[j] = t, q
                    break


@part_of_caller
def _of_constant_current(num_steps, reduction, rows):
    """The value of a constant current of 1, for the bias."""
    b, v, p, constant, d_constant = rows.b, rows.v, rows.p, rows.constant, rows.d_constant
    zero, one = v.dtype.type(0), v.dtype.type(1)
    for j in range(TILE):
        v[j], p[j], constant[j], d_constant[j] = zero, zero, zero, zero
    for _ in range(num_steps):
        for j in range(TILE):
            p[j] = v[j] + b[j] * p[j]
            v[j] = b[j] * v[j] + one
            constant[j] = v[j] + (constant[j] if reduction == SUM else zero)
            d_constant[j] = p[j] + (d_constant[j] if reduction == SUM else zero)


@part_of_caller
def _keep_maximum(step, rows):
    v, p, result, slope = rows.v, rows.p, rows.result, rows.slope
    for j in range(TILE):
        nan = (v[j] != v[j]) & (result[j] == result[j])  # as in torch.max
        better = (v[j] > result[j]) | nan
        result[j] = v[j] if better else result[j]
        slope[j] = p[j] if better else slope[j]
        rows.step[j] = step if better else rows.step[j]


@part_of_caller
def _maximum(begin, end, num_steps, forgets, events, weights, rows, tables):
    """The maximum of one sample, forwards from spike to spike."""
    b, x, v, p = rows.b, rows.x, rows.v, rows.p
    zero = v.dtype.type(0)
    for j in range(TILE):
        v[j], p[j], rows.slope[j], rows.step[j], rows.result[j] = zero, zero, zero, 0, -np.inf
    clear_row(rows.v_later)
    e, t, alone, shared = begin, 0, True, False
    while t < num_steps:
        now = events.times[e] if e < end else num_steps
        if shared:
            now = t  # a part of the last spikes arrives
        if t < now:
            # Between spikes the membrane is monotonic, so the maximum is at an end of the jump. The
            # first step of a sample is such an end.
            gap = 1 if alone else min(now - t, JUMP)
            alone = False
            copy_row(v, rows.v_before)
            copy_row(p, rows.p_before)
            jump_slope(gap, p, v, rows.drive, tables)
            jump(gap, v, rows.drive, tables)
            t += gap
        else:
            copy_row(rows.drive, x)
            before = e
            if given(events.late):
                e = gather_split(e, end, now, True, events, weights, x, rows.v_later)
                shared = e > before
            else:
                e = gather(e, end, now, events, weights, x)
            for j in range(TILE):
                p[j] = v[j] + b[j] * p[j]
                v[j] = b[j] * v[j] + x[j]
            gap = 1
            t += 1
            alone = forgets
        _keep_maximum(t - 1, rows)
        if gap > 1:
            _settled(t - 1, gap, rows)


@part_of_caller
def _carry_back(gap, last, every, rows, tables):
    """The weight of a current in the value, ``gap`` steps earlier. ``last`` starts "last"."""
    power, geometric = tables.power, tables.geometric
    d_power, d_geometric = tables.d_power, tables.d_geometric
    v, p = rows.v, rows.p
    one = v.dtype.type(1)
    for j in range(TILE):
        p[j] = power[gap, j] * p[j] + d_power[gap, j] * v[j] + d_geometric[gap, j] * every
        v[j] = power[gap, j] * v[j] + geometric[gap, j] * every
        v[j] = one if last else v[j]


@part_of_caller
def _add_spikes(e, begin, now, events, weights, rows):
    """Add the spikes of one step to the value. Returns the spike before them."""
    v, p, result, slope = rows.v, rows.p, rows.result, rows.slope
    one = v.dtype.type(1)
    while given(events.late) and e >= begin and events.times[e] == now:
        unit, height, rest = events.units[e], events.values[e], events.late[e]
        for j in range(TILE):
            w = weights[unit, j]
            result[j] += (height * v[j] + rest * rows.v_later[j]) * w
            slope[j] += (height * p[j] + rest * rows.p_later[j]) * w
        e -= 1
    while e >= begin and events.times[e] == now:
        unit, height = events.units[e], one if events.values.shape[0] == 0 else events.values[e]
        for j in range(TILE):
            result[j] += v[j] * (height * weights[unit, j])
            slope[j] += p[j] * (height * weights[unit, j])
        e -= 1
    return e


@part_of_caller
def _linear_value(begin, end, num_steps, reduction, events, weights, rows, tables):
    """The sum or the last value of one sample, backwards from spike to spike."""
    dtype = rows.v.dtype
    every = dtype.type(1) if reduction == SUM else dtype.type(0)
    clear_row(rows.v)
    clear_row(rows.p)
    for j in range(TILE):
        rows.result[j] = rows.constant[j] * rows.drive[j]
        rows.slope[j] = rows.d_constant[j] * rows.drive[j]
    e, t = end - 1, num_steps
    while e >= begin:
        now = events.times[e]
        while t > now:
            stop = now
            if given(events.late):
                if t > now + 1:
                    stop = now + 1  # where the later part of the spikes arrives
                else:
                    copy_row(rows.v, rows.v_later)
                    copy_row(rows.p, rows.p_later)
            gap = min(t - stop, JUMP)
            last = t == num_steps and reduction == LAST
            if last:
                gap = 1
            _carry_back(gap, last, every, rows, tables)
            t -= gap
        e = _add_spikes(e, begin, now, events, weights, rows)
    for j in range(TILE):
        rows.step[j] = num_steps - 1


@part_of_caller
def _write(sample, tile, n, rows, out):
    for j in range(n):
        neuron = tile * TILE + j
        out.value[sample, neuron] = rows.result[j]
        if given(out.sensitivity):
            out.sensitivity[sample, neuron] = rows.slope[j]
        if given(out.step):
            out.step[sample, neuron] = rows.step[j]


@helper
def linear_readout_loop(scratch, part, events, layer, num_steps, reduction, out):
    """Sum, maximum or last value over time of a membrane that never fires, (B, O) each."""
    scratch, part, events = Scratch(*scratch), Part(*part), Events(*events)
    layer, out = Layer(*layer), ReadoutOutputs(*out)
    zero = layer.weight.dtype.type(0)
    rows, tables = _rows_of(scratch), tables_of(scratch)
    for tile in range(part.tile_low, part.tile_high):
        weights, n = layer.weight[tile], width(tile, layer.beta.shape[0])
        tile_values(layer.beta, tile, zero, rows.b)
        tile_values(layer.bias, tile, zero, rows.drive)
        power_tables(rows.b, tables)
        power_slopes(tables)
        if reduction != MAX:
            _of_constant_current(num_steps, reduction, rows)
        # With beta = 0, all steps between spikes are equal, and the first one is the maximum.
        forgets = False
        for j in range(n):
            forgets |= rows.b[j] == zero
        for sample in range(part.low, part.high):
            begin, end = events.offsets[sample], events.offsets[sample + 1]
            if reduction == MAX:
                _maximum(begin, end, num_steps, forgets, events, weights, rows, tables)
            else:
                _linear_value(begin, end, num_steps, reduction, events, weights, rows, tables)
            _write(sample, tile, n, rows, out)
