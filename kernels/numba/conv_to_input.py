"""The gradient to the inputs of a convolution whose neurons read the maximum of windows.

One position of each window has a gradient, by channel. Its patch of weights is added to maps of the
input with channels last and a border, which hold whole patches in few rows side by side.
"""

from __future__ import annotations

from .arguments import ConvStep, Events, Patches, TransposedConv
from .block import given
from .compiling import helper, inlined_helper
from .conv_patch import add_current, clear_rows, reach, route
from .simd import LANES, load, store


@inlined_helper
def _current(start, end, now, events, patches, step, marked, weight, bias):
    one = weight.dtype.type(1)
    for e in range(start, end):
        channel, count = reach(events.units[e], patches, step.reached)
        value = events.values[e] if given(events.values) else one
        for i in range(count):
            cell, tap = step.reached[0, i], step.reached[1, i]
            add_current(
                cell, channel // patches.group, channel, tap, value, now, step, weight, bias
            )
            marked[step.reached[2, i]] = now


@inlined_helper
def _route(owner, now, row, channels, patches, step, rows, marked, bias):
    """Give a row of the adjoint to the first maxima of one window."""
    n = patches.neurons
    group = owner // n
    window = owner - group * n
    for lane in range(channels):
        rows[0, lane] = row[(group * channels + lane) * n + window]
    if marked[owner] == now:
        route(owner, now, patches, step, bias, rows, 0, rows)
        return
    for m in range(patches.members.shape[1]):  # the same current everywhere
        cell = group * patches.positions + patches.members[window, m]
        for lane in range(channels):
            step.routed[cell, lane] = rows[0, lane] if m == 0 else 0


@inlined_helper
def _add_patch(value, channel, start, layer):
    weight, maps = layer.weight, layer.maps
    size = weight.shape[2]
    whole = size // LANES * LANES
    for k in range(weight.shape[1]):
        at = start + layer.rows[k]
        for i in range(0, whole, LANES):
            store(maps, at + i, load(maps, at + i) + value * load(weight, (channel, k, i)))
        for i in range(whole, size):
            maps[at + i] += value * weight[channel, k, i]


@helper
def conv_to_input_loop(part, offset, step, rows, marked, events, patches, packed, bias, layer, out):
    """Write the gradient to the inputs (T, n, units) for some samples and steps.

    ``part`` is the first and last sample and the first and last step. The samples of ``out`` count
    from ``offset``.
    """
    low, high, begin, stop = part
    step, events, patches = ConvStep(*step), Events(*events), Patches(*patches)
    layer = TransposedConv(*layer)
    channels = layer.weight.shape[0] // bias.shape[0]
    units = layer.inside.shape[0]
    clear_rows(step.routed)
    for sample in range(low, high):
        e, end = events.offsets[sample], events.offsets[sample + 1]
        step.seen[:] = -1
        marked[:] = -1
        for t in range(begin, stop):
            while e < end and events.times[e] < t:
                e += 1
            start = e
            while e < end and events.times[e] == t:
                e += 1
            _current(start, e, t, events, patches, step, marked, packed, bias)
            for owner in range(marked.shape[0]):
                _route(
                    owner, t, layer.lam[t, sample - offset], channels, patches, step, rows, marked,
                    bias,
                )  # fmt: skip
            for group in range(bias.shape[0]):
                layer.maps[:] = 0
                for lane in range(channels):
                    for position in range(patches.positions):
                        value = step.routed[group * patches.positions + position, lane]
                        if value != 0:
                            _add_patch(
                                value, group * channels + lane, layer.patches[position], layer
                            )
                into = out[t, sample - offset]
                for unit in range(units):
                    at = layer.inside[unit]
                    into[group * units + unit] = layer.maps[at] if at >= 0 else 0
