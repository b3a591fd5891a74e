"""First spikes of a linear layer's neurons, from the spikes of its inputs."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from .arguments import Events, FirstSpikes, Layer, Part, Scratch
from .block import given
from .compiling import helper, inlined_helper, part_of_caller
from .simd import LANES, any_lane, load, store, where
from .tile import (
    JUMP,
    TILE,
    clear_row,
    copy_row,
    gather,
    gather_split,
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
    """The current of a step, or the membrane before a jump."""
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
    when: np.ndarray
    """The step of the highest membrane up to the spike, which is the step of a spike."""


@part_of_caller
def _rows_of(scratch):
    # Rows of one array: the compiler can prove that they do not overlap, and vectorizes.
    r, m = scratch.rows, scratch.marks
    return _Rows(
        r[0], r[1], r[2], r[3], r[4], r[5], r[6], r[7], r[8], r[9], r[10], m[0], m[1], m[2]
    )  # fmt: skip


@inlined_helper
def _jump_keeping(gap, never, rows, tables):
    """Jump, and keep the membrane before in ``x``.

    Returns whether a neuron that has not fired is above its threshold after the jump.
    """
    hit = False
    for j in range(0, TILE, LANES):
        held = load(rows.v, j)
        power, geometric = load(tables.power, (gap, j)), load(tables.geometric, (gap, j))
        u = power * held + geometric * load(rows.drive, j)
        store(rows.x, j, held)
        store(rows.v, j, u)
        hit |= any_lane((u > load(rows.threshold, j)) & (load(rows.first, j) == never))
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
def _cross(step, u, held, threshold, never, first, below, above, when):
    """The state of some neurons after a step from the membrane ``held`` to ``u``.

    Returns the masks of neurons that fire, and of those whose membrane is higher than any before.
    """
    silent = first == never
    fires, higher = (u > threshold) & silent, (u > above) & silent
    return (
        fires,
        higher,
        where(fires, step, first),
        where(fires, held, below),
        where(higher, u, above),
        where(higher, step, when),
    )


@inlined_helper
def _step_crossing(step, both, never, want_slope, rows):
    """As :func:`_step`; keeps the membrane around a spike, and the highest one.

    ``both`` adds the next step, whose current is ``later``. Between two spikes the membrane is
    monotonic, so its maximum is at one of the two ends.
    """
    last, following = np.int32(step - 1), np.int32(step + 1)
    for j in range(0, TILE, LANES):
        held, b, threshold = load(rows.v, j), load(rows.b, j), load(rows.threshold, j)
        first, below = load(rows.first, j), load(rows.below, j)
        when, above = load(rows.when, j), load(rows.above, j)
        risen = (held > above) & (first == never)
        above, when = where(risen, held, above), where(risen, last, when)
        u = b * held + load(rows.x, j)
        fires, higher, first, below, above, when = _cross(
            step, u, held, threshold, never, first, below, above, when
        )
        if want_slope:
            p, slope_below = load(rows.p, j), load(rows.slope_below, j)
            slope_above = where(risen, p, load(rows.slope_above, j))
            slope = held + b * p
            slope_below = where(fires, p, slope_below)
            slope_above = where(higher, slope, slope_above)
        if both:
            held = u
            u = b * held + (load(rows.drive, j) + load(rows.later, j))
            fires, higher, first, below, above, when = _cross(
                following, u, held, threshold, never, first, below, above, when
            )
            if want_slope:
                p, slope = slope, held + b * slope
                slope_below = where(fires, p, slope_below)
                slope_above = where(higher, slope, slope_above)
        store(rows.v, j, u)
        store(rows.first, j, first)
        store(rows.below, j, below)
        store(rows.above, j, above)
        store(rows.when, j, when)
        if want_slope:
            store(rows.p, j, slope)
            store(rows.slope_below, j, slope_below)
            store(rows.slope_above, j, slope_above)


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
def _search(start, stop, never, rows):
    """Find the step between two spikes at which the membrane of a neuron crosses the threshold.

    ``x`` is the membrane before ``start``, and ``v`` after a jump to ``stop``. If the membrane
    stays below step by step, the jump was above by rounding only: the neuron does not fire, and
    ``v`` becomes the membrane of the steps.
    """
    b, current, threshold = rows.b, rows.drive, rows.threshold
    for j in range(TILE):
        if (rows.v[j] > threshold[j]) & (rows.first[j] == never):
            u, q = rows.x[j], rows.p[j]
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
                rows.v[j] = u


@part_of_caller
def _jump(t, gap, never, may_cross, want_slope, rows, tables):
    """The membrane ``gap`` steps without spikes later."""
    if _jump_keeping(gap, never, rows, tables) and may_cross:
        _search(t, t + gap, never, rows)
    if want_slope:
        jump_slope(gap, rows.p, rows.x, rows.drive, tables)


@part_of_caller
def _spikes_of(e, end, t, last, carried, never, want_crossing, want_slope, events, weights, rows):
    """One step with spikes, or two. Returns the next spike, and the steps.

    A part of spikes that are shared arrives at the next step. If this step has no other spikes, it
    is computed too.
    """
    step, before = np.int32(t), e
    copy_row(rows.drive, rows.x)
    both = False
    if given(events.late):
        e = gather_split(e, end, t, carried, events, weights, rows.x, rows.later)
        busy = e < end and events.times[e] == t + 1
        both = want_crossing and 0 < t < last and e > before and not busy
    else:
        e = gather(e, end, t, events, weights, rows.x)
    if not want_crossing:
        _step(step, never, rows)
    elif both:
        if want_slope:
            _step_crossing(step, True, never, True, rows)
        else:
            _step_crossing(step, True, never, False, rows)
    elif want_slope:
        _step_crossing(step, False, never, True, rows)
    else:
        _step_crossing(step, False, never, False, rows)
    return e, 2 if both else 1


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
                e, steps = _spikes_of(
                    e, end, t, num_steps - 1, shared, never, want_crossing, want_slope, events,
                    weights, rows,
                )  # fmt: skip
                shared = given(events.late) and e > before and steps == 1
                if want_crossing and t == 0:
                    _begin_peak(want_slope, rows)
                t += steps
                stops += 1
                if stops % 8 == 0 and _all_fired(rows.first, never):
                    break
            if want_crossing:
                _end_peak(num_steps - 1, never, want_slope, rows)
            _write(sample, tile, n, never, rows, out)
