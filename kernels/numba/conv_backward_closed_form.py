"""Gradients of a convolution whose adjoint is an impulse at t* and one at t*-1 of each neuron.

The walk goes back from spike to spike. The adjoint of a cell is computed only at the steps of the
input spikes that reach the cell, and for the gradient to the inputs at the steps before them. A
cell whose neurons have no impulse has no gradient, and neither has an input spike after the last
impulse of a cell.
"""

from __future__ import annotations

import numpy as np

from .arguments import (
    ClosedFormAdjoint,
    ConvGradients,
    ConvImpulses,
    ConvLayer,
    ConvStep,
    Events,
    Patches,
)
from .block import given
from .compiling import helper, inlined_helper, part_of_caller
from .conv_patch import (
    add_patch,
    add_to_taps,
    clear_rows,
    first_maxima,
    group_of,
    list_reached,
    neuron_of,
    parameters_of,
    patch_product,
    place_of,
    reset_current,
    route,
    set_currents,
)
from .simd import LANES, any_lane, load, store, where


@part_of_caller
def _geometric(steps, q, lane, tables):
    """1 + beta + ... + beta^(steps-1)."""
    most = tables.shape[1] - 1
    total = tables.dtype.type(0)
    while steps > most:
        total = total * tables[0, most, q, lane] + tables[1, most, q, lane]
        steps -= most
    return total * tables[0, steps, q, lane] + tables[1, steps, q, lane]


@helper
def _load_impulses(sample, adjoint, patches, layer, state, gradients):
    """The impulses of a sample by cell, and their sum over time for the bias."""
    latest, last, prepared = state.counters[0], state.counters[1], state.counters[2]
    zero = layer.beta.dtype.type(0)
    clear_rows(state.lam)
    for cell in range(state.lam.shape[0]):
        q = parameters_of(cell, state.lam.shape[0], layer.beta)
        group = group_of(cell, patches)
        newest = -1
        for j in range(layer.out_channels):
            neuron = neuron_of(cell, j, patches, layer.out_channels)
            when = adjoint.when[sample, neuron]
            state.when[cell, j] = when
            if when >= 0:
                at, before = adjoint.at[sample, neuron], adjoint.before[sample, neuron]
                state.at[cell, j], state.before[cell, j] = at, before
                newest = max(newest, when)
                gradients.bias[group, j] += at * _geometric(when + 1, q, j, layer.tables)
                gradients.bias[group, j] += before * _geometric(when, q, j, layer.tables)
        for j in range(layer.out_channels, state.lam.shape[1]):
            state.when[cell, j] = -1
            state.at[cell, j], state.before[cell, j] = zero, zero
        latest[cell] = newest
        last[cell] = newest + 1
        prepared[cell] = -1


@inlined_helper
def _add_impulses(cell, start, q, now, then, state, tables):
    """Add the impulses at the steps ``now`` to ``then`` - 1 of one vector, carried back."""
    for j in range(start, start + LANES):
        when = state.when[cell, j]
        if now <= when <= then:
            impulses = state.lam.dtype.type(0)
            if when < then:
                impulses += state.at[cell, j] * tables[0, when - now, q, j]
            if when > now:
                impulses += state.before[cell, j] * tables[0, when - 1 - now, q, j]
            state.lam[cell, j] += impulses


@inlined_helper
def _go_back_one(cell, q, stop, state, layer):
    """The adjoint of a cell at the step ``stop``, from that of the next step."""
    lam, zero = state.lam, layer.beta.dtype.type(0)
    for j in range(0, lam.shape[1], LANES):
        when = load(state.when, (cell, j))
        impulse = where(when == stop, load(state.at, (cell, j)), zero)
        impulse = impulse + where(when == stop + 1, load(state.before, (cell, j)), zero)
        store(lam, (cell, j), load(layer.beta, (q, j)) * load(lam, (cell, j)) + impulse)


@inlined_helper
def _go_back(cell, stop, state, layer):
    """The adjoint of a cell at the step ``stop``."""
    lam, last = state.lam, state.counters[1]
    q = parameters_of(cell, lam.shape[0], layer.beta)
    most = layer.tables.shape[1] - 1
    t = last[cell]
    if t == stop + 1:
        _go_back_one(cell, q, stop, state, layer)
        t = stop
    while t > stop:
        now = max(stop, t - most)
        for j in range(0, lam.shape[1], LANES):
            store(lam, (cell, j), load(layer.tables, (0, t - now, q, j)) * load(lam, (cell, j)))
            when = load(state.when, (cell, j))
            if any_lane((when >= now) & (when <= t)):
                _add_impulses(cell, j, q, now, t, state, layer.tables)
        t = now
    last[cell] = stop


@inlined_helper
def _add_currents(begin, end, step, events, patches, current, state, layer):
    """Add the spikes among the events from ``begin`` to ``end`` - 1 to the current of a step.

    Returns how many cells of neurons they reach. These are listed.
    """
    marked, listed = state.counters[3], state.counters[4]
    one, count = layer.weight.dtype.type(1), 0
    for e in range(begin, end):
        value = events.values[e] if given(events.values) else one
        if value != 0:  # an event with the value 0 is no spike
            channel, y, x = place_of(events.units[e], patches)
            add_patch(channel, y, x, value, patches, layer.weight, current)
            count = list_reached(channel, y, x, step, patches, marked, listed, count)
    return count


@inlined_helper
def _prepare(first, end, stop, step, events, patches, at_step, state, layer):
    """The adjoint at a step, of the cells that its events reach, given to maxima of windows.

    The events from ``first`` are those of the step, and the spikes among those from ``end`` to
    ``stop`` - 1 read the adjoint, too. The current of the step must be known if the neurons read
    maxima.
    """
    latest, last = state.counters[0], state.counters[1]
    prepared, listed = state.counters[2], state.counters[5]
    count = 0
    for e in range(first, stop):
        if e < end or not given(events.values) or events.values[e] != 0:
            channel, y, x = place_of(events.units[e], patches)
            count = list_reached(channel, y, x, step, patches, prepared, listed, count)
    for i in range(count):
        owner = listed[i]
        if latest[owner] >= step:
            if last[owner] > step:
                _go_back(owner, step, state, layer)
            if given(patches.members):
                first_maxima(owner, patches, at_step.current, state.rows, 0, state.winner)
                route(owner, patches, state.lam[owner], state.winner, at_step.routed)


@inlined_helper
def _at_step(first, end, stop, step, events, patches, at_step, state, layer):
    """:func:`_prepare`, with the current of the step where it is read."""
    count = 0
    if given(patches.members):
        count = _add_currents(first, end, step, events, patches, at_step.current, state, layer)
    _prepare(first, end, stop, step, events, patches, at_step, state, layer)
    for i in range(count):
        reset_current(state.counters[4, i], patches, layer.bias, at_step.current)


@helper
def conv_backward_closed_form_loop(low, high, state, events, patches, layer, adjoint, gradients):
    """Gradients of the weights and the bias, or to the inputs around their events."""
    state, events, patches = ConvImpulses(*state), Events(*events), Patches(*patches)
    layer, adjoint = ConvLayer(*layer), ClosedFormAdjoint(*adjoint)
    gradients, at_step = ConvGradients(*gradients), ConvStep(*state.step)
    inputs, weight = gradients.inputs, layer.weight
    source = at_step.routed if given(patches.members) else state.lam
    one = weight.dtype.type(1)
    for sample in range(low, high):
        _load_impulses(sample, adjoint, patches, layer, state, gradients)
        clear_rows(at_step.routed)
        set_currents(patches, layer.bias, at_step.current)
        state.counters[3][:] = -1
        begin, end = events.offsets[sample], events.offsets[sample + 1]
        stop = end
        step = events.times[end - 1] if end > begin else np.int32(-1)
        while step >= 0:
            first = end
            while first > begin and events.times[first - 1] == step:
                first -= 1
            # The events from first to end - 1 are of this step, those up to stop - 1 of the next.
            _at_step(first, end, stop, step, events, patches, at_step, state, layer)
            for i in range(first, end):
                channel, y, x = place_of(events.units[i], patches)
                if given(gradients.weight):
                    value = events.values[i] if given(events.values) else one
                    add_to_taps(channel, y, x, value, patches, source, gradients.weight)
                if given(inputs):
                    inputs[0, sample, events.units[i]] = patch_product(
                        channel, y, x, patches, weight, source, state.total
                    )
            for i in range(end, stop):
                if not given(events.values) or events.values[i] != 0:
                    channel, y, x = place_of(events.units[i], patches)
                    inputs[1, sample, events.units[i]] = patch_product(
                        channel, y, x, patches, weight, source, state.total
                    )
            if given(inputs) and first < end:
                step, stop, end = step - np.int32(1), end, first
            else:
                step = events.times[first - 1] if first > begin else np.int32(-1)
                stop = end = first
