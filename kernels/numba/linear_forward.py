"""First spikes of a linear layer's neurons, from the spikes of its inputs."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from .arguments import Events, FirstSpikes, Layer, Part, Scratch
from .block import given
from .compiling import helper, inlined_helper, part_of_caller
from .tile import (
    JUMP,
    TILE,
    clear_row,
    copy_row,
    gather,
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
    before: np.ndarray
    p: np.ndarray
    """The derivative of ``v`` by beta."""
    below: np.ndarray
    """The membrane before the spike. ``above`` is the membrane at the spike."""
    above: np.ndarray
    slope_below: np.ndarray
    slope_above: np.ndarray
    p_before: np.ndarray
    unfired: np.ndarray
    first: np.ndarray
    marks: np.ndarray


@part_of_caller
def _rows_of(scratch):
    # Rows of one array: the compiler can prove that they do not overlap, and vectorizes.
    r, m = scratch.rows, scratch.marks
    return _Rows(
        r[0], r[1], r[2], r[3], r[4], r[5], r[6], r[7], r[8], r[9], r[10], r[11], m[0], m[1], m[2]
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
def _step_marked(step, never, rows):
    """One step of current ``x`` that keeps the membrane before. Returns whether a neuron fires."""
    v, b, x, threshold, first = rows.v, rows.b, rows.x, rows.threshold, rows.first
    before = rows.before
    hit = np.int32(0)
    for j in range(TILE):
        held = v[j]
        u = b[j] * held + x[j]
        before[j] = held
        v[j] = u
        fire = (u > threshold[j]) & (first[j] == never)
        first[j] = step if fire else first[j]
        hit |= np.int32(fire)
    return hit


@inlined_helper
def _step_slope(p, b, before, p_before):
    for j in range(TILE):
        held = p[j]
        p_before[j] = held
        p[j] = before[j] + b[j] * held


@part_of_caller
def _keep_crossing(step, rows):
    for j in range(TILE):
        if rows.first[j] == step:
            rows.below[j], rows.above[j] = rows.before[j], rows.v[j]
            rows.slope_below[j], rows.slope_above[j] = rows.p_before[j], rows.p[j]


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
                    rows.first[j] = t
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
    e = gather(e, end, t, events, weights, rows.x)
    step = np.int32(t)
    if want_crossing:
        hit = _step_marked(step, never, rows)
        if want_slope:
            _step_slope(rows.p, rows.b, rows.before, rows.p_before)
        if hit:
            _keep_crossing(step, rows)
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
            out.crossing[0, sample, neuron] = rows.below[j] if fired else zero
            out.crossing[1, sample, neuron] = rows.above[j] if fired else zero
        if given(out.sensitivity):
            out.sensitivity[0, sample, neuron] = rows.slope_below[j] if fired else zero
            out.sensitivity[1, sample, neuron] = rows.slope_above[j] if fired else zero


@helper
def linear_first_spikes_loop(scratch, part, events, layer, num_steps, out):
    """First spikes, the membrane around them and its derivatives by beta."""
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
            copy_row(rows.unfired, rows.first)
            e, end = events.offsets[sample], events.offsets[sample + 1]
            t, stops = 0, 0
            while t < num_steps:
                now = events.times[e] if e < end else num_steps
                while t < now:
                    gap = 1 if may_fall and t == 0 else min(now - t, JUMP)
                    _jump(t, gap, never, may_cross, want_slope, rows, tables)
                    t += gap
                if t == num_steps:
                    break
                e = _spikes_of(e, end, t, never, want_crossing, want_slope, events, weights, rows)
                t += 1
                stops += 1
                if stops % 8 == 0 and _all_fired(rows.first, never):
                    break
            _write(sample, tile, n, never, rows, out)
