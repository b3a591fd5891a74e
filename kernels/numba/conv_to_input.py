"""The gradient to the inputs of a convolution whose neurons read the maximum of windows.

One position of each window has a gradient, by channel. Its patch of weights is added to maps of the
input with channels last and a border, which hold whole patches in few rows side by side.
"""

from __future__ import annotations

import numpy as np

from .arguments import ConvStep, Events, Patches, TransposedConv
from .block import given
from .compiling import helper, inlined_helper
from .conv_patch import (
    add_patch,
    clear_rows,
    list_reached,
    place_of,
    reset_current,
    route,
    set_currents,
)
from .simd import LANES, load, store

VECTORS = 5  # of patches, which are summed in registers side by side


@inlined_helper
def _add_currents(start, end, now, events, patches, step, marked, weight):
    """Add spikes to the current of a step. Returns how many cells of neurons they reach."""
    one, count = weight.dtype.type(1), 0
    for e in range(start, end):
        channel, y, x = place_of(events.units[e], patches)
        value = events.values[e] if given(events.values) else one
        add_patch(channel, y, x, value, patches, weight, step.current)
        count = list_reached(channel, y, x, now, patches, marked[0], marked[1], count)
    return count


@inlined_helper
def _route(owner, now, row, channels, patches, step, rows, marked):
    """Give a row of the adjoint to the first maxima of one window."""
    n = patches.neurons
    group = owner // n
    window = owner - group * n
    for lane in range(channels):
        rows[0, lane] = row[(group * channels + lane) * n + window]
    if marked[0, owner] == now:
        route(owner, patches, step.current, rows, 0, step.routed)
        return
    for m in range(patches.members.shape[1]):  # the same current everywhere
        cell = group * patches.positions + patches.members[window, m]
        for lane in range(channels):
            step.routed[cell, lane] = rows[0, lane] if m == 0 else 0


@inlined_helper
def _list_positions(group, channels, patches, routed, layer):
    """List the channels with a gradient at each position of a group."""
    start = group * patches.positions
    for position in range(patches.positions):
        count = 0
        for lane in range(channels):  # without branches, which no processor could predict
            value = routed[start + position, lane]
            layer.values[position, count] = value
            layer.lanes[position, count] = group * channels + lane
            count += np.int64(value != 0)
        layer.counts[position] = count


@inlined_helper
def _write_parts(at, k, layer):
    """Write the first numbers of the vectors. The numbers behind them belong to other patches."""
    for v in range(VECTORS):
        for j in range(layer.part):
            layer.maps[at + layer.vectors[k, v] + j] = layer.totals[v, j]


@inlined_helper
def _add_vectors(k, layer):
    """Add ``VECTORS`` vectors of all patches, in registers. Their weights stay in the cache."""
    weight, maps, lanes, values = layer.weight, layer.maps, layer.lanes, layer.values
    for position in range(layer.counts.shape[0]):
        at = layer.patches[position]
        a, b, c = at + layer.vectors[k, 0], at + layer.vectors[k, 1], at + layer.vectors[k, 2]
        d, e = at + layer.vectors[k, 3], at + layer.vectors[k, 4]
        one, two, three = load(maps, a), load(maps, b), load(maps, c)
        four, five = load(maps, d), load(maps, e)
        for i in range(layer.counts[position]):
            value, lane = values[position, i], lanes[position, i]
            one = one + value * load(weight, (k, lane, 0))
            two = two + value * load(weight, (k, lane, LANES))
            three = three + value * load(weight, (k, lane, 2 * LANES))
            four = four + value * load(weight, (k, lane, 3 * LANES))
            five = five + value * load(weight, (k, lane, 4 * LANES))
        if k < layer.whole:
            store(maps, a, one)
            store(maps, b, two)
            store(maps, c, three)
            store(maps, d, four)
            store(maps, e, five)
        else:
            store(layer.totals, (0, 0), one)
            store(layer.totals, (1, 0), two)
            store(layer.totals, (2, 0), three)
            store(layer.totals, (3, 0), four)
            store(layer.totals, (4, 0), five)
            _write_parts(at, k, layer)


@inlined_helper
def _add_patches(layer):
    """Add the patches of all positions and channels with a gradient to the maps of a group."""
    for k in range(layer.weight.shape[0]):
        _add_vectors(k, layer)


@inlined_helper
def _write(group, groups, layer, into):
    """Copy the maps of a group to (height, width, channels of all groups)."""
    channels, height, width = layer.size
    covered = min(width, layer.covered)
    # What lies side by side in both: a row, or a pixel if there are several groups
    n, pieces = (covered * channels, 1) if groups == 1 else (channels, covered)
    for y in range(height):
        first, start = layer.inside[y], y * width * channels * groups + group * channels
        rest = start
        if first >= 0:
            for piece in range(pieces):
                # Slices, since their indices need no check for negative numbers
                at, source = start + piece * channels * groups, first + piece * channels
                target, pixels = into[at : at + n], layer.maps[source : source + n]
                for i in range(n):
                    target[i] = pixels[i]
            rest = start + covered * channels * groups
        for at in range(rest, start + width * channels * groups, channels * groups):
            into[at : at + channels] = 0


@helper
def conv_to_input_loop(part, offset, step, rows, marked, events, patches, packed, bias, layer, out):
    """Write the gradient to the inputs (T, n, units), channels last, for some samples and steps.

    ``part`` is the first and last sample and the first and last step. The samples of ``out`` count
    from ``offset``.
    """
    low, high, begin, stop = part
    step, events, patches = ConvStep(*step), Events(*events), Patches(*patches)
    layer = TransposedConv(*layer)
    channels = layer.weight.shape[1] // bias.shape[0]
    clear_rows(step.routed)
    for sample in range(low, high):
        e, end = events.offsets[sample], events.offsets[sample + 1]
        set_currents(patches, bias, step.current)
        marked[0, :] = -1
        for t in range(begin, stop):
            while e < end and events.times[e] < t:
                e += 1
            start = e
            while e < end and events.times[e] == t:
                e += 1
            count = _add_currents(start, e, t, events, patches, step, marked, packed)
            for owner in range(marked.shape[1]):
                _route(
                    owner, t, layer.lam[t, sample - offset], channels, patches, step, rows, marked
                )
            for i in range(count):
                reset_current(marked[1, i], patches, bias, step.current)
            for group in range(bias.shape[0]):
                layer.maps[: layer.end] = 0
                _list_positions(group, channels, patches, step.routed, layer)
                _add_patches(layer)
                _write(group, bias.shape[0], layer, out[t, sample - offset])
