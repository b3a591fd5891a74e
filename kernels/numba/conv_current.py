"""The dense current of a convolution from the spikes of its inputs, and the gradient back.

The backward pass of the surrogate rules reads every step. It writes the current of a few samples
out, (T, samples, cells of neurons * channels), and reads the adjoint in the same order.
"""

from __future__ import annotations

import numpy as np

from .arguments import ConvStep, Events, Patches
from .block import given
from .compiling import helper, inlined_helper
from .conv_patch import (
    add_cell_to_tap,
    add_current,
    add_row,
    add_to_tap,
    peak,
    reach,
    route,
)


@inlined_helper
def _fill(sample, current, neurons, bias, channels):
    for t in range(current.shape[0]):
        row = current[t, sample]
        for cell in range(row.shape[0] // channels):
            for j in range(channels):
                row[cell * channels + j] = bias[cell // neurons, j]


@inlined_helper
def _step_of(e, end, events, patches, step, weight, bias):
    """The current of one step in ``step``. Returns the first spike of a later step."""
    now, one = events.times[e], weight.dtype.type(1)
    while e < end and events.times[e] == now:
        channel, count = reach(events.units[e], patches, step.reached)
        value = events.values[e] if given(events.values) else one
        for i in range(count):
            cell, tap = step.reached[0, i], step.reached[1, i]
            add_current(
                cell, channel // patches.group, channel, tap, value, now, step, weight, bias
            )
        e += 1
    return e


@helper
def conv_current_loop(
    low, high, first, step, rows, marked, events, patches, weight, bias, channels, current
):
    """Current of the samples from ``low`` on; ``first`` is the sample of the first row."""
    step, events, patches = ConvStep(*step), Events(*events), Patches(*patches)
    one = weight.dtype.type(1)
    for sample in range(low, high):
        _fill(sample - first, current, patches.neurons, bias, channels)
        begin, end = events.offsets[sample], events.offsets[sample + 1]
        if not given(patches.windows):
            for e in range(begin, end):
                channel, taps = reach(events.units[e], patches, step.reached)
                value = events.values[e] if given(events.values) else one
                row = current[events.times[e], sample - first]
                for i in range(taps):
                    start = np.int64(step.reached[0, i]) * channels
                    add_row(weight, channel, step.reached[1, i], value, row, start, channels)
            continue
        step.seen[:] = -1
        marked[:] = -1
        e = begin
        while e < end:
            now, stop = events.times[e], _step_of(e, end, events, patches, step, weight, bias)
            row = current[now, sample - first]
            for i in range(e, stop):
                _, count = reach(events.units[i], patches, step.reached)
                for k in range(count):
                    owner = step.reached[2, k]
                    if marked[owner] != now:
                        marked[owner] = now
                        peak(owner, now, patches, step, bias, rows, 3)
                        for j in range(channels):
                            row[np.int64(owner) * channels + j] = rows[3, j]
            e = stop


@helper
def conv_gather_loop(
    low, high, first, step, rows, marked, events, patches, weight, bias, channels, lam, gradient
):
    """Add the adjoint at the spikes to the gradient of the weights."""
    step, events, patches = ConvStep(*step), Events(*events), Patches(*patches)
    one = gradient.dtype.type(1)
    for sample in range(low, high):
        begin, end = events.offsets[sample], events.offsets[sample + 1]
        if not given(patches.windows):
            for e in range(begin, end):
                channel, taps = reach(events.units[e], patches, step.reached)
                value = events.values[e] if given(events.values) else one
                row = lam[events.times[e], sample - first]
                for i in range(taps):
                    start = np.int64(step.reached[0, i]) * channels
                    tap = step.reached[1, i]
                    add_to_tap(row, start, channels, value, gradient, channel, tap)
            continue
        step.seen[:] = -1
        marked[:] = -1
        e = begin
        while e < end:
            now, stop = events.times[e], _step_of(e, end, events, patches, step, weight, bias)
            row = lam[now, sample - first]
            for i in range(e, stop):
                channel, count = reach(events.units[i], patches, step.reached)
                value = events.values[i] if given(events.values) else one
                for k in range(count):
                    owner = step.reached[2, k]
                    if marked[owner] != now:
                        marked[owner] = now
                        for j in range(channels):
                            rows[0, j] = row[np.int64(owner) * channels + j]
                        route(owner, now, patches, step, bias, rows, 0, rows)
                    cell, tap = step.reached[0, k], step.reached[1, k]
                    add_cell_to_tap(step.routed, cell, value, gradient, channel, tap)
            e = stop


@helper
def conv_unpool_loop(
    low, high, first, step, rows, marked, events, patches, weight, bias, channels, lam, unpooled
):
    """Give the adjoint of each window to its first maximum, for samples from ``low`` on.

    ``lam`` is (T, samples, features), and ``unpooled`` (T, samples, cells * channels) in zeros.
    """
    step, events, patches = ConvStep(*step), Events(*events), Patches(*patches)
    n = patches.neurons
    for sample in range(low, high):
        e, end = events.offsets[sample], events.offsets[sample + 1]
        step.seen[:] = -1
        marked[:] = -1
        for t in range(lam.shape[0]):
            given_, out = lam[t, sample - first], unpooled[t, sample - first]
            begin = e
            if e < end and events.times[e] == t:
                e = _step_of(e, end, events, patches, step, weight, bias)
            for i in range(begin, e):
                _, count = reach(events.units[i], patches, step.reached)
                for k in range(count):
                    marked[step.reached[2, k]] = t
            for owner in range(marked.shape[0]):
                group = owner // n
                window, start = owner - group * n, group * patches.positions
                features = group * channels * n + window
                if marked[owner] != t:  # the same current everywhere
                    cell = np.int64(start + patches.members[window, 0]) * channels
                    for j in range(channels):
                        out[cell + j] = given_[features + j * n]
                    continue
                for j in range(channels):
                    rows[0, j] = given_[features + j * n]
                route(owner, t, patches, step, bias, rows, 0, rows)
                for m in range(patches.members.shape[1]):
                    cell = np.int64(start + patches.members[window, m])
                    for j in range(channels):
                        out[cell * channels + j] = step.routed[cell, j]
