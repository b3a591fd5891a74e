"""Gradients of a convolution whose adjoint is an impulse at t* and one at t*-1 of each neuron.

The walk goes back from spike to spike. The adjoint of a cell is computed only at the
steps of the spikes that reach the cell. Cells without a spike of their own, and spikes after the
last impulse of a cell, have no gradient.
"""

from __future__ import annotations

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
    add_cell_to_tap,
    add_current,
    clear_rows,
    neuron_of,
    parameters_of,
    reach,
    route,
)
from .simd import LANES, any_lane, full_like, load, store


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
    latest, last, routed = state.counters[0], state.counters[1], state.counters[2]
    zero = layer.beta.dtype.type(0)
    clear_rows(state.lam)
    for cell in range(state.lam.shape[0]):
        q = parameters_of(cell, state.lam.shape[0], layer.beta)
        group = cell // patches.neurons
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
        routed[cell] = -1


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
def _go_back(cell, stop, state, layer):
    """The adjoint of a cell at the step ``stop``."""
    lam, last = state.lam, state.counters[1]
    q = parameters_of(cell, lam.shape[0], layer.beta)
    most = layer.tables.shape[1] - 1
    t = last[cell]
    while t > stop:
        now = max(stop, t - most)
        for j in range(0, lam.shape[1], LANES):
            store(lam, (cell, j), load(layer.tables, (0, t - now, q, j)) * load(lam, (cell, j)))
            when = load(state.when, (cell, j))
            if any_lane((when >= now) & (when <= t)):
                _add_impulses(cell, j, q, now, t, state, layer.tables)
        t = now
    last[cell] = t


@inlined_helper
def _product(channel, count, step, source, reached, state, layer):
    """The sum over the reached cells and their channels of the weights times the adjoint."""
    latest = state.counters[0]
    total = full_like(load(source, (0, 0)), source.dtype.type(0))
    for i in range(count):
        cell, tap, owner = reached[0, i], reached[1, i], reached[2, i]
        if latest[owner] >= step:
            for j in range(0, source.shape[1], LANES):
                product = load(layer.weight, (channel, tap, j)) * load(source, (cell, j))
                total = total + product
    store(state.total, 0, total)
    summed = source.dtype.type(0)
    for j in range(LANES):
        summed += state.total[j]
    return summed


@inlined_helper
def _to_weights(value, channel, count, step, source, reached, state, gradient):
    latest = state.counters[0]
    for i in range(count):
        if latest[reached[2, i]] >= step:
            add_cell_to_tap(source, reached[0, i], value, gradient, channel, reached[1, i])


@inlined_helper
def _prepare(count, step, patches, at_step, state, layer):
    """The adjoint of the reached cells at a step, given to the maxima of their windows."""
    latest, last, routed = state.counters[0], state.counters[1], state.counters[2]
    for i in range(count):
        owner = at_step.reached[2, i]
        if latest[owner] >= step:
            if last[owner] > step:
                _go_back(owner, step, state, layer)
            if given(patches.windows) and routed[owner] != step:
                routed[owner] = step
                route(owner, step, patches, at_step, layer.bias, state.lam, owner, state.rows)


@inlined_helper
def _add_currents(e, begin, step, events, patches, at_step, layer):
    """The current of a step without the bias, from the spikes up to ``e``."""
    one = layer.weight.dtype.type(1)
    while e >= begin and events.times[e] == step:
        channel, count = reach(events.units[e], patches, at_step.reached)
        value = events.values[e] if given(events.values) else one
        for i in range(count):
            cell, tap = at_step.reached[0, i], at_step.reached[1, i]
            add_current(
                cell, channel // patches.group, channel, tap, value, step, at_step,
                layer.weight, layer.bias,
            )  # fmt: skip
        e -= 1


@helper
def conv_backward_closed_form_loop(low, high, state, events, patches, layer, adjoint, gradients):
    """Gradients of the weights and the bias, or to the inputs around their events."""
    state, events, patches = ConvImpulses(*state), Events(*events), Patches(*patches)
    layer, adjoint = ConvLayer(*layer), ClosedFormAdjoint(*adjoint)
    gradients, at_step = ConvGradients(*gradients), ConvStep(*state.step)
    inputs, reached = gradients.inputs, at_step.reached
    want_inputs, pools = given(inputs), given(patches.windows)
    source = at_step.routed if pools else state.lam
    one = layer.weight.dtype.type(1)
    for sample in range(low, high):
        _load_impulses(sample, adjoint, patches, layer, state, gradients)
        at_step.seen[:] = -1
        begin, e = events.offsets[sample], events.offsets[sample + 1] - 1
        known = -1  # the step whose current is known
        while e >= begin:
            now = events.times[e]
            if pools and known != now:
                _add_currents(e, begin, now, events, patches, at_step, layer)
            start = e
            while start >= begin and events.times[start] == now:
                unit = events.units[start]
                channel, count = reach(unit, patches, reached)
                _prepare(count, now, patches, at_step, state, layer)
                if given(gradients.weight):
                    value = events.values[start] if given(events.values) else one
                    _to_weights(
                        value, channel, count, now, source, reached, state, gradients.weight
                    )
                if want_inputs:
                    found = _product(channel, count, now, source, reached, state, layer)
                    inputs[0, sample, unit] = found
                start -= 1
            if want_inputs and now > 0:
                known = now - 1
                if pools:
                    _add_currents(start, begin, known, events, patches, at_step, layer)
                for i in range(start + 1, e + 1):
                    if given(events.values) and events.values[i] == 0:
                        continue  # no spike: the gradient at its step alone
                    unit = events.units[i]
                    channel, count = reach(unit, patches, reached)
                    _prepare(count, known, patches, at_step, state, layer)
                    found = _product(channel, count, known, source, reached, state, layer)
                    inputs[1, sample, unit] = found
            e = start
