"""First spikes of a linear layer's neurons, from the spikes of its inputs."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from .arguments import Events, FirstSpikes, Layer, Part, Scratch
from .block import given
from .compiling import helper, inlined_helper, part_of_caller
from .simd import LANES, load, store, where
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
    """Parameters and state of one tile."""

    b: np.ndarray
    threshold: np.ndarray
    drive: np.ndarray
    v: np.ndarray
    x: np.ndarray
    p: np.ndarray
    """The derivative of ``v`` by beta."""
    below: np.ndarray
    """The membrane before the spike. ``above`` is the membrane at the step ``when``."""
    above: np.ndarray
    slope_below: np.ndarray
    slope_above: np.ndarray
    later: np.ndarray
    """The current of the next step, of spikes that are shared with it."""
    unfired: np.ndarray
    first: np.ndarray
    marks: np.ndarray
    when: np.ndarray
    """The step of the highest membrane up to the spike, which is the step of a spike."""


@part_of_caller
def _rows_of(scratch):
    # Rows of one array: the compiler can prove that they do not overlap, and vectorizes.
    r, m = scratch.rows, scratch.marks
    return _Rows(
        r[0], r[1], r[2], r[3], r[4], r[5], r[6], r[7], r[8], r[9], r[10], m[0], m[1], m[2], m[3]
    )  # fmt: skip


@inlined_helper
def _jump_marked(gap, never, rows, tables):
    """Jump, write the membrane into ``x``, and mark neurons that are above the threshold there."""
    power, geometric = tables.power, tables.geometric
    v, drive, threshold = rows.v, rows.drive, rows.threshold
    first, later, marks = rows.first, rows.x, rows.marks
    hit = np.int32(0)
    for j in range(TILE):
        u = power[gap, j] * v[j] + geometric[gap, j] * drive[j]
        later[j] = u
        mark = np.int32((u > threshold[j]) & (first[j] == never))
        marks[j] = mark
        hit |= mark
    return hit


@inlined_helper
def _step(step, never, rows):
    """One step of current ``x``."""
    v, b, x, threshold, first = rows.v, rows.b, rows.x, rows.threshold, rows.first
    for j in range(TILE):
        u = b[j] * v[j] + x[j]
        v[j] = u
        first[j] = step if (u > threshold[j]) & (first[j] == never) else first[j]


@inlined_helper
def _step_crossing(step, never, want_slope, rows):
    """As :func:`_step`; keeps the membrane around a spike, and the highest one.

    Between two spikes the membrane is monotonic, so its maximum is at one of the two ends.
    """
    last = np.int32(step - 1)
    for j in range(0, TILE, LANES):
        held, b, at, top = load(rows.v, j), load(rows.b, j), load(rows.when, j), load(rows.above, j)
        u = b * held + load(rows.x, j)
        store(rows.v, j, u)
        first = load(rows.first, j)
        silent = first == never
        fires = (u > load(rows.threshold, j)) & silent
        store(rows.first, j, where(fires, step, first))
        store(rows.below, j, where(fires, held, load(rows.below, j)))
        risen = (held > top) & silent
        top = where(risen, held, top)
        higher = (u > top) & silent
        store(rows.above, j, where(higher, u, top))
        store(rows.when, j, where(higher, step, where(risen, last, at)))
        if want_slope:
            p = load(rows.p, j)
            slope = held + b * p
            store(rows.p, j, slope)
            store(rows.slope_below, j, where(fires, p, load(rows.slope_below, j)))
            kept = where(risen, p, load(rows.slope_above, j))
            store(rows.slope_above, j, where(higher, slope, kept))


@part_of_caller
def _end_peak(step, never, want_slope, rows):
    """Keep the membrane of one step if it is the highest."""
    for j in range(TILE):
        if (rows.v[j] > rows.above[j]) & (rows.first[j] == never):
            rows.above[j], rows.when[j] = rows.v[j], step
            if want_slope:
                rows.slope_above[j] = rows.p[j]


@part_of_caller
def _begin_peak(want_slope, rows):
    """Keep the membrane of step 0, before which no membrane counts."""
    copy_row(rows.v, rows.above)
    clear_row(rows.when)
    if want_slope:
        copy_row(rows.p, rows.slope_above)


@helper
def _search(start, stop, rows):
    """Find the step between two spikes at which the membrane of a neuron crosses the threshold.

    ``v`` is the membrane before ``start``. ``marks`` are the neurons whose membrane ``x`` after a
    jump to ``stop`` is above the threshold. If the membrane stays below step by step, the jump was
    above by rounding only: the neuron does not fire, and ``x`` becomes the membrane of the steps.
    """
    b, current, threshold = rows.b, rows.drive, rows.threshold
    for j in range(TILE):
        if rows.marks[j]:
            u, q = rows.v[j], rows.p[j]
            for t in range(start, stop):
                before, q_before = u, q
                q = u + b[j] * q
                u = b[j] * u + current[j]
                if u > threshold[j]:
                    rows.first[j], rows.when[j] = t, t
                    rows.below[j], rows.above[j] = before, u
                    rows.slope_below[j], rows.slope_above[j] = q_before, q
                    break
            if u <= threshold[j]:
                rows.x[j] = u


@part_of_caller
def _jump(t, gap, never, may_cross, want_slope, rows, tables):
    """The membrane ``gap`` steps without spikes later."""
    if may_cross and _jump_marked(gap, never, rows, tables):
        _search(t, t + gap, rows)
    if want_slope:
        jump_slope(gap, rows.p, rows.v, rows.drive, tables)
    if may_cross:
        copy_row(rows.x, rows.v)
    else:
        jump(gap, rows.v, rows.drive, tables)


@part_of_caller
def _spikes_of(e, end, t, never, want_crossing, want_slope, events, weights, rows):
    """One step with spikes. Returns the next spike."""
    copy_row(rows.drive, rows.x)
    if given(events.late):
        e = gather_split(e, end, t, events, weights, rows.x, rows.later)
    else:
        e = gather(e, end, t, events, weights, rows.x)
    step = np.int32(t)
    if want_crossing:
        _step_crossing(step, never, want_slope, rows)
    else:
        _step(step, never, rows)
    return e


@part_of_caller
def _all_fired(first, never):
    latest = np.int32(0)
    for j in range(TILE):
        latest = max(latest, first[j])
    return latest < never


@part_of_caller
def _write(sample, tile, n, never, rows, out):
    zero = rows.v.dtype.type(0)
    for j in range(n):
        neuron = tile * TILE + j
        fired = rows.first[j] < never
        out.times[sample, neuron] = rows.first[j] if fired else -1
        if given(out.crossing):
            out.when[sample, neuron] = rows.when[j]
            out.crossing[0, sample, neuron] = rows.below[j] if fired else zero
            out.crossing[1, sample, neuron] = rows.above[j]
        if given(out.sensitivity):
            out.sensitivity[0, sample, neuron] = rows.slope_below[j] if fired else zero
            out.sensitivity[1, sample, neuron] = rows.slope_above[j]


@helper
def linear_first_spikes_loop(scratch, part, events, layer, num_steps, out):
    """First spikes, the membrane around them and its derivatives by beta.

    A silent neuron has the maximum of its membrane in place of a spike.
    """
    scratch, part, events = Scratch(*scratch), Part(*part), Events(*events)
    layer, out = Layer(*layer), FirstSpikes(*out)
    dtype = layer.weight.dtype
    zero, never = dtype.type(0), np.int32(num_steps)
    out_features = layer.beta.shape[0]
    want_crossing, want_slope = given(out.crossing), given(out.sensitivity)
    rows, tables = _rows_of(scratch), tables_of(scratch)
    for tile in range(part.tile_low, part.tile_high):
        weights, n = layer.weight[tile], width(tile, out_features)
        tile_values(layer.beta, tile, zero, rows.b)
        tile_values(layer.bias, tile, zero, rows.drive)
        tile_values(layer.threshold, tile, dtype.type(np.inf), rows.threshold)
        power_tables(rows.b, tables)
        if want_slope:
            power_slopes(tables)
        # Between spikes the membrane moves towards bias / (1 - beta), which is 0 without a bias.
        may_cross, may_fall = False, False
        for j in range(TILE):
            may_cross |= (rows.drive[j] != zero) | (rows.threshold[j] < zero)
            # Initially 0, which is not checked, a membrane can fall below a negative threshold.
            may_fall |= (rows.drive[j] < zero) & (rows.threshold[j] < zero)
            rows.unfired[j] = never if j < n else 0  # the padding does not count
        for sample in range(part.low, part.high):
            clear_row(rows.v)
            clear_row(rows.p)
            clear_row(rows.later)
            copy_row(rows.unfired, rows.first)
            e, end = events.offsets[sample], events.offsets[sample + 1]
            t, stops, shared = 0, 0, False
            while t < num_steps:
                now = events.times[e] if e < end else num_steps
                if shared:
                    now = t  # a part of the last spikes arrives
                while t < now:
                    alone = t == 0 and (may_fall or want_crossing)
                    gap = 1 if alone else min(now - t, JUMP)
                    _jump(t, gap, never, may_cross, want_slope, rows, tables)
                    if want_crossing and t == 0:
                        _begin_peak(want_slope, rows)
                    t += gap
                if t == num_steps:
                    break
                before = e
                e = _spikes_of(e, end, t, never, want_crossing, want_slope, events, weights, rows)
                shared = given(events.late) and e > before
                if want_crossing and t == 0:
                    _begin_peak(want_slope, rows)
                t += 1
                stops += 1
                if stops % 8 == 0 and _all_fired(rows.first, never):
                    break
            if want_crossing:
                _end_peak(num_steps - 1, never, want_slope, rows)
            _write(sample, tile, n, never, rows, out)
