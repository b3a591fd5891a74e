"""First spikes of a convolution's neurons, from the spikes of its inputs.

The state of a sample is (cells, L): all channels of a position and group side by side. A spike adds
one row of weights to each cell that it reaches. A cell is integrated only at the steps of its
spikes; in between it jumps, as the tiles of ``linear_forward.py`` do.
"""

from __future__ import annotations

import numpy as np

from .arguments import ConvLayer, ConvState, ConvStep, Events, FirstSpikes, Patches
from .block import given
from .compiling import helper, inlined_helper, part_of_caller
from .conv_patch import (
    add_patch,
    clear_rows,
    group_of,
    list_reached,
    neuron_of,
    parameters_of,
    peak,
    place_of,
    reset_current,
    set_currents,
)
from .simd import LANES, any_lane, load, store, where


@inlined_helper
def _record(sample, neuron, below, above, slope_below, slope_above, out):
    if given(out.crossing):
        out.crossing[0, sample, neuron] = below
        out.crossing[1, sample, neuron] = above
    if given(out.sensitivity):
        out.sensitivity[0, sample, neuron] = slope_below
        out.sensitivity[1, sample, neuron] = slope_above


@inlined_helper
def _jump_marked(cell, group, q, gap, never, state, layer):
    """Write the membrane ``gap`` steps later into a row. Returns whether it crosses there."""
    mem, later, tables = state.mem, state.rows, layer.tables
    hit = False
    for j in range(0, mem.shape[1], LANES):
        u = load(tables, (0, gap, q, j)) * load(mem, (cell, j)) + load(
            tables, (1, gap, q, j)
        ) * load(layer.bias, (group, j))
        store(later, (0, j), u)
        silent = load(state.first, (cell, j)) == never
        hit |= any_lane((u > load(layer.threshold, (q, j))) & silent)
    return hit


@helper
def _search(sample, cell, group, q, start, stop, never, patches, state, layer, out):
    """Find the crossings between two spikes, as in ``linear_forward.py``."""
    later = state.rows[0]
    for j in range(layer.out_channels):
        theta = layer.threshold[q, j]
        if later[j] > theta and state.first[cell, j] == never:
            b, drive = layer.beta[q, j], layer.bias[group, j]
            u, p = state.mem[cell, j], state.slope[cell, j] if given(state.slope) else theta
            for t in range(start, stop):
                before, p_before = u, p
                p = u + b * p
                u = b * u + drive
                if u > theta:
                    state.first[cell, j] = t
                    if given(state.when):
                        state.when[cell, j] = t
                    neuron = neuron_of(cell, j, patches, layer.out_channels)
                    _record(sample, neuron, before, u, p_before, p, out)
                    break
            if u <= theta:
                later[j] = u


@inlined_helper
def _jump_slope(cell, group, q, gap, state, layer):
    mem, slope, tables = state.mem, state.slope, layer.tables
    for j in range(0, mem.shape[1], LANES):
        moved = load(tables, (0, gap, q, j)) * load(slope, (cell, j))
        moved = moved + load(tables, (2, gap, q, j)) * load(mem, (cell, j))
        moved = moved + load(tables, (3, gap, q, j)) * load(layer.bias, (group, j))
        store(slope, (cell, j), moved)


@inlined_helper
def _jump(cell, group, q, gap, state, layer):
    mem, tables = state.mem, layer.tables
    for j in range(0, mem.shape[1], LANES):
        u = load(tables, (0, gap, q, j)) * load(mem, (cell, j))
        store(mem, (cell, j), u + load(tables, (1, gap, q, j)) * load(layer.bias, (group, j)))


@inlined_helper
def _begin_peak(cell, state):
    """Keep the membrane of step 0, before which no membrane counts."""
    for j in range(0, state.mem.shape[1], LANES):
        store(state.peaks, (0, cell, j), load(state.mem, (cell, j)))
        if given(state.slope):
            store(state.peaks, (1, cell, j), load(state.slope, (cell, j)))
        for i in range(j, j + LANES):
            state.when[cell, i] = 0


@inlined_helper
def _end_peak(cell, never, state):
    """Keep the membrane of the last step if it is the highest."""
    for j in range(0, state.mem.shape[1], LANES):
        u, top = load(state.mem, (cell, j)), load(state.peaks, (0, cell, j))
        higher = (u > top) & (load(state.first, (cell, j)) == never)
        store(state.peaks, (0, cell, j), where(higher, u, top))
        store(state.when, (cell, j), where(higher, never - 1, load(state.when, (cell, j))))
        if given(state.slope):
            kept = load(state.peaks, (1, cell, j))
            store(state.peaks, (1, cell, j), where(higher, load(state.slope, (cell, j)), kept))


@inlined_helper
def _rises(cell, never, first, peaks):
    """Whether the membrane of a silent neuron has been below 0 from the start."""
    below = False
    for j in range(0, first.shape[1], LANES):
        low = load(peaks, (0, cell, j)) < 0.0
        below |= any_lane(low & (load(first, (cell, j)) == never))
    return below


@inlined_helper
def _advance(sample, cell, stop, never, may_cross, may_fall, patches, state, layer, out):
    """Integrate a cell up to the step ``stop``, without spikes."""
    last = state.counters[0]
    q = parameters_of(cell, state.mem.shape[0], layer.beta)
    group = group_of(cell, patches)
    most = layer.tables.shape[1] - 1
    t = last[cell]
    while t < stop:
        alone = t == 0 and (may_fall or given(state.when))
        gap = 1 if alone else min(stop - t, most)
        if may_cross and _jump_marked(cell, group, q, gap, never, state, layer):
            _search(sample, cell, group, q, t, t + gap, never, patches, state, layer, out)
        if given(state.slope):
            _jump_slope(cell, group, q, gap, state, layer)
        if may_cross:
            for j in range(0, state.mem.shape[1], LANES):
                store(state.mem, (cell, j), load(state.rows, (0, j)))
        else:
            _jump(cell, group, q, gap, state, layer)
        if given(state.when) and t == 0:
            _begin_peak(cell, state)
        t += gap
    last[cell] = stop


@inlined_helper
def _step(cell, q, step, never, currents, index, state, layer):
    """One step with spikes, which keeps the state before it. Returns whether a neuron fires."""
    mem, first, slope = state.mem, state.first, state.slope
    hit = False
    for j in range(0, mem.shape[1], LANES):
        held, b = load(mem, (cell, j)), load(layer.beta, (q, j))
        u = b * held + load(currents, (index, j))
        silent = load(first, (cell, j)) == never
        store(state.rows, (1, j), held)
        store(mem, (cell, j), u)
        if given(slope):
            p = load(slope, (cell, j))
            store(state.rows, (2, j), p)
            store(slope, (cell, j), held + b * p)
        if given(state.when) and step > 0:
            # Between two spikes the membrane is monotonous: its maximum is at one of the ends.
            top, at = load(state.peaks, (0, cell, j)), load(state.when, (cell, j))
            risen = (held > top) & silent
            top = where(risen, held, top)
            higher = (u > top) & silent
            store(state.peaks, (0, cell, j), where(higher, u, top))
            store(state.when, (cell, j), where(higher, step, where(risen, step - 1, at)))
            if given(slope):
                kept = where(risen, load(state.rows, (2, j)), load(state.peaks, (1, cell, j)))
                kept = where(higher, load(slope, (cell, j)), kept)
                store(state.peaks, (1, cell, j), kept)
        fires = (u > load(layer.threshold, (q, j))) & silent
        if any_lane(fires):
            store(first, (cell, j), where(fires, step, load(first, (cell, j))))
            hit = True
    if given(state.when) and step == 0:
        _begin_peak(cell, state)
    return hit


@inlined_helper
def _keep_crossing(sample, cell, step, patches, state, layer, out):
    """Write the membrane around the spikes of one step of a cell."""
    before, p_before = state.rows[1], state.rows[2]
    for j in range(layer.out_channels):
        if state.first[cell, j] == step:
            neuron = neuron_of(cell, j, patches, layer.out_channels)
            p = state.slope[cell, j] if given(state.slope) else before[j]
            _record(sample, neuron, before[j], state.mem[cell, j], p_before[j], p, out)


@inlined_helper
def _write(sample, never, patches, state, out_channels, out):
    """The spikes and peaks of a sample, from the order of cells to that of features."""
    n, first = patches.neurons, state.first
    for group in range(first.shape[0] // n):
        for lane in range(out_channels):
            start = (group * out_channels + lane) * n
            for position in range(n):
                cell, neuron = group * n + position, start + position
                step = first[cell, lane]
                out.times[sample, neuron] = step if step < never else -1
                if given(out.when):
                    out.when[sample, neuron] = state.when[cell, lane]
                    if step == never:
                        out.crossing[1, sample, neuron] = state.peaks[0, cell, lane]
                        if given(out.sensitivity):
                            out.sensitivity[1, sample, neuron] = state.peaks[1, cell, lane]


@inlined_helper
def _all_fired(cell, first, never):
    silent = False
    for j in range(0, first.shape[1], LANES):
        silent |= any_lane(load(first, (cell, j)) == never)
    return not silent


@part_of_caller
def _moves_alone(layer):
    """Whether a membrane may cross between spikes, and whether it may fall to the threshold."""
    zero = layer.bias.dtype.type(0)
    may_cross, may_fall = False, False
    share = layer.beta.shape[0] // layer.bias.shape[0]
    for q in range(layer.beta.shape[0]):
        for j in range(layer.out_channels):
            drive, theta = layer.bias[q // share, j], layer.threshold[q, j]
            may_cross |= (drive != zero) | (theta < zero)
            may_fall |= (drive < zero) & (theta < zero)
    return may_cross, may_fall


@helper
def conv_first_spikes_loop(low, high, state, events, patches, layer, num_steps, out):
    """First spikes, the membrane around them and its derivatives by beta.

    The loop writes the membrane and its derivatives where a neuron fires.
    """
    state, events, patches = ConvState(*state), Events(*events), Patches(*patches)
    layer, out, at_now = ConvLayer(*layer), FirstSpikes(*out), ConvStep(*state.step)
    never, finished = np.int32(num_steps), np.int32(num_steps + 1)
    last, marked, touched = state.counters[0], state.counters[1], state.counters[2]
    cells, current = state.mem.shape[0], at_now.current
    one = layer.weight.dtype.type(1)
    may_cross, may_fall = _moves_alone(layer)
    for sample in range(low, high):
        clear_rows(state.mem)
        clear_rows(state.slope)
        if given(state.when):
            state.peaks[:] = 0
            state.when[:] = 0
        set_currents(patches, layer.bias, current)
        for cell in range(cells):
            last[cell], marked[cell] = 0, -1
            for j in range(state.first.shape[1]):
                state.first[cell, j] = never if j < layer.out_channels else 0
        e, end = events.offsets[sample], events.offsets[sample + 1]
        now = np.int32(0)
        while now < never:
            now = events.times[e] if e < end else never
            count = 0
            while e < end and events.times[e] == now:
                value = events.values[e] if given(events.values) else one
                channel, y, x = place_of(events.units[e], patches)
                add_patch(channel, y, x, value, patches, layer.weight, current)
                count = list_reached(channel, y, x, now, patches, marked, touched, count)
                e += 1
            if now == never and may_cross:  # every cell, up to the end
                count = cells
                for cell in range(cells):
                    touched[cell] = cell
            elif now == never and given(state.when):
                for cell in range(cells):
                    if _rises(cell, never, state.first, state.peaks):
                        touched[count] = cell
                        count += 1
            for i in range(count):
                cell = touched[i]
                if now < never and last[cell] == finished:
                    continue
                if last[cell] < now:
                    _advance(
                        sample, cell, now, never, may_cross, may_fall, patches, state, layer, out
                    )
                if now == never:
                    if given(state.when):
                        _end_peak(cell, never, state)
                    continue
                currents, index = current, cell
                if given(patches.members):
                    peak(cell, patches, current, state.rows, 3)
                    currents, index = state.rows, np.int32(3)
                q = parameters_of(cell, cells, layer.beta)
                last[cell] = now + 1
                fires = _step(cell, q, now, never, currents, index, state, layer)
                reset_current(cell, patches, layer.bias, current)
                if fires:
                    if given(out.crossing):
                        _keep_crossing(sample, cell, now, patches, state, layer, out)
                    if _all_fired(cell, state.first, never):
                        last[cell] = finished
        _write(sample, never, patches, state, layer.out_channels, out)
