"""Gradients of a convolution and its neurons by a surrogate rule, which read every step.

A thread owns samples. The membranes of one sample are integrated again, into (T, cells, L), and the
reverse scan replaces them by their adjoint. The adjoint is added to the gradient of the weights at
the spikes of each step, and only written out if a caller wants it.
"""

from __future__ import annotations

import numpy as np

from .arguments import (
    ConvGradientRows,
    ConvLayer,
    ConvScan,
    ConvScanGradients,
    ConvStep,
    Events,
    Patches,
    SpikeGradient,
)
from .block import given
from .compiling import (
    MASKED,
    PRE_SPIKE,
    SUBTRACT,
    ZERO_BEFORE,
    helper,
    inlined_helper,
    part_of_caller,
)
from .conv_patch import (
    add_currents,
    add_to_taps,
    clear_rows,
    first_maxima,
    first_members,
    group_of,
    keep_positions,
    list_reached,
    neuron_of,
    parameters_of,
    place_of,
    reset_current,
    route,
    set_currents,
)
from .simd import LANES, full_like, load, prefetch, store, where
from .surrogate import surrogate_slope


@part_of_caller
def _limits(sample, spiked, steps, rule, causal, patches, out_channels, state):
    """The first spike, and the last step with a gradient, of each neuron of a sample.

    Returns the last step with a gradient of all neurons.
    """
    first, limit, stop = state.first, state.limit, state.counters[0]
    latest = np.int32(-1)
    for cell in range(first.shape[0]):
        stop[cell] = -1
        for j in range(first.shape[1]):
            first[cell, j], limit[cell, j] = -2, -1  # the padding has no gradient
        for j in range(out_channels):
            step = spiked[sample, neuron_of(cell, j, patches, out_channels)]
            first[cell, j] = step if step >= 0 else steps
            limit[cell, j] = first[cell, j] - np.int32(rule == PRE_SPIKE) if causal else steps
            stop[cell] = max(stop[cell], min(limit[cell, j], steps - 1))
        latest = max(latest, stop[cell])
    return latest


@inlined_helper
def _reset_currents(count, patches, step, state, layer):
    """Undo :func:`add_currents`."""
    for i in range(count):
        reset_current(state.counters[2, i], patches, layer.bias, step.current)


@inlined_helper
def _integrate(cell, t, q, currents, index, zeroes, subtracts, state, layer):
    """One step of the membranes of a cell."""
    mem = state.mem
    for j in range(0, mem.shape[2], LANES):
        u = load(currents, (index, j))
        if t > 0:
            held = load(mem, (t - 1, cell, j))
            fired = load(state.first, (cell, j)) == t - 1
            if zeroes:
                held = where(fired, mem.dtype.type(0), held)
            elif subtracts:
                u = where(fired, u - load(layer.threshold, (q, j)), u)
            u = load(layer.beta, (q, j)) * held + u
        store(mem, (t, cell, j), u)


@inlined_helper
def _integrate_again(begin, end, latest, zeroes, subtracts, events, patches, state, step, layer):
    """Integrate the membranes of a sample up to the step ``latest``.

    Returns the first spike of a later step.
    """
    stop, marked, listed = state.counters[0], state.counters[1], state.counters[2]
    cells, e = state.first.shape[0], begin
    for t in range(latest + 1):
        now, start = np.int32(t), e
        if given(patches.members):
            first_members(patches, state.winner[t])
        while e < end and events.times[e] == now:
            e += 1
        count = add_currents(
            start, e, now, events, patches, layer.weight, step.current, marked, listed
        )
        for cell in range(cells):
            if stop[cell] < now:
                continue
            currents, index = layer.bias, group_of(cell, patches)
            if marked[cell] == now:
                currents, index = step.current, cell
                if given(patches.members):
                    winner = state.winner[t, cell]
                    first_maxima(cell, patches, step.current, state.rows, 0, winner)
                    currents, index = state.rows, 0
            q = parameters_of(cell, cells, layer.beta)
            _integrate(cell, t, q, currents, index, zeroes, subtracts, state, layer)
        _reset_currents(count, patches, step, state, layer)
    return e


@inlined_helper
def _load_gradient(row, patches, out_channels, g):
    """A row of features, (groups * channels * neurons,), in the order of cells."""
    n = patches.neurons
    for group in range(g.shape[0] // n):
        for lane in range(out_channels):
            start = (group * out_channels + lane) * n
            # Slices, since their indices need no check for negative numbers
            features, cells = row[start : start + n], g[group * n : group * n + n, lane]
            for position in range(n):
                cells[position] = features[position]


@inlined_helper
def _load_last(row, patches, out_channels, g):
    """The same for features with channels last, (neurons, groups * channels)."""
    n = patches.neurons
    groups = g.shape[0] // n
    for position in range(n):
        for group in range(groups):
            start = (position * groups + group) * out_channels
            features, cell = row[start : start + out_channels], g[group * n + position]
            for lane in range(out_channels):
                cell[lane] = features[lane]


@inlined_helper
def _load(row, last, patches, out_channels, g):
    if last:
        _load_last(row, patches, out_channels, g)
    else:
        _load_gradient(row, patches, out_channels, g)


@inlined_helper
def _write_adjoint(lam, patches, out_channels, row):
    """The inverse of :func:`_load_gradient`."""
    n = patches.neurons
    for group in range(lam.shape[0] // n):
        for lane in range(out_channels):
            start = (group * out_channels + lane) * n
            features, cells = row[start : start + n], lam[group * n : group * n + n, lane]
            for position in range(n):
                features[position] = cells[position]


@inlined_helper
def _scan(
    cell, j, q, start, latest, sample, rule, zeroes, subtracts, dense, state, layer,
    spike_gradient, gradients,
):  # fmt: skip
    """Replace the membranes of one vector by their adjoint, back from the step ``start``.

    The state stays in registers. Adds to the gradients of the parameters.
    """
    _, surrogate, a, b = spike_gradient
    mem, zero = state.mem, layer.beta.dtype.type(0)
    here, theta, beta = (cell, j), load(layer.threshold, (q, j)), load(layer.beta, (q, j))
    first, limit = load(state.first, here), load(state.limit, here)
    lam = full_like(beta, zero)
    to_threshold, to_beta, to_bias, tail, ramp = lam, lam, lam, lam, lam
    for k in range(start + 1, latest + 1):
        store(mem, (k, cell, j), lam)
    for k in range(start, -1, -1):
        now = np.int32(k)
        u = load(mem, (k, cell, j))
        enters = limit >= now
        step = min(k, dense.rows.shape[0] - 1)
        if given(dense.cells):
            g = load(dense.cells, (step, cell, j))
        else:
            row, at = sample - dense.offset, cell * mem.shape[2] + j
            g = load(dense.rows, (step, row, at))
            prefetch(dense.rows, (step, row, at + LANES))  # a scan goes across lines
        g = where(enters, g, zero)
        if rule != MASKED:
            tail = tail + g
            ramp = ramp + tail
            g = ramp
        through = where(enters, surrogate_slope(u - theta, surrogate, a, b) * g, zero)
        to_threshold = to_threshold - through
        if zeroes or subtracts:
            fired = first == now
            if zeroes:
                lam = where(fired, zero, lam)
            else:
                to_threshold = to_threshold - where(fired, lam, zero)
        if k < start:  # the last membrane carries nothing on, also where it is infinite or NaN
            to_beta = to_beta + lam * u
        lam = beta * lam + through
        to_bias = to_bias + lam
        store(mem, (k, cell, j), lam)
    store(gradients.threshold, here, load(gradients.threshold, here) + to_threshold)
    store(gradients.beta, here, load(gradients.beta, here) + to_beta)
    store(gradients.bias, here, load(gradients.bias, here) + to_bias)


@inlined_helper
def _to_weights(start, end, now, events, patches, state, step, gradient):
    """Add the adjoint of a step to the gradient of the weights, at its spikes."""
    stop, marked, listed = state.counters[0], state.counters[1], state.counters[2]
    pools, one = given(patches.members), gradient.dtype.type(1)
    cells = step.routed if pools else state.mem[now]
    if pools:
        count = 0
        for e in range(start, end):
            channel, y, x = place_of(events.units[e], patches)
            count = list_reached(channel, y, x, now, patches, marked, listed, count)
        for i in range(count):
            owner = listed[i]
            if stop[owner] >= now:
                route(owner, patches, state.mem[now, owner], state.winner[now, owner], step.routed)
    for e in range(start, end):
        channel, y, x = place_of(events.units[e], patches)
        value = events.values[e] if given(events.values) else one
        add_to_taps(channel, y, x, value, patches, cells, gradient)


@helper
def conv_backward_scan_loop(
    low, high, state, events, patches, layer, reset, num_steps, spiked, dense, spike_gradient,
    gradients,
):  # fmt: skip
    """Gradients of the weights and parameters, or the adjoint, of the samples from ``low`` on."""
    state, events, patches = ConvScan(*state), Events(*events), Patches(*patches)
    layer, dense, step = ConvLayer(*layer), ConvGradientRows(*dense), ConvStep(*state.step)
    spike_gradient, gradients = SpikeGradient(*spike_gradient), ConvScanGradients(*gradients)
    rule = spike_gradient.rule
    causal = rule in (MASKED, PRE_SPIKE)
    zeroes, subtracts = reset == ZERO_BEFORE and not causal, reset == SUBTRACT and not causal
    stop, (_, cells, lanes), channels = state.counters[0], state.mem.shape, layer.out_channels
    for sample in range(low, high):
        latest = _limits(sample, spiked, num_steps, rule, causal, patches, channels, state)
        clear_rows(step.routed)
        set_currents(patches, layer.bias, step.current)
        state.counters[1][:] = -1
        begin, end = events.offsets[sample], events.offsets[sample + 1]
        e = _integrate_again(
            begin, end, latest, zeroes, subtracts, events, patches, state, step, layer
        )
        for k in range(min(latest + 1, dense.cells.shape[0])):
            row = dense.rows[k, sample - dense.offset]
            _load(row, dense.last, patches, channels, dense.cells[k])
        for cell in range(cells):
            q = parameters_of(cell, cells, layer.beta)
            for j in range(0, lanes, LANES):
                _scan(
                    cell, j, q, stop[cell], latest, sample, rule, zeroes, subtracts, dense, state,
                    layer, spike_gradient, gradients,
                )  # fmt: skip
        if given(gradients.weight):
            state.counters[1][:] = -1
            for k in range(latest, -1, -1):
                now, stop_at = np.int32(k), e
                while e > begin and events.times[e - 1] == now:
                    e -= 1
                _to_weights(e, stop_at, now, events, patches, state, step, gradients.weight)
        for k in range(num_steps):
            # After the last step with a gradient the adjoint is 0, and any position has the maximum
            if given(gradients.current):
                row = gradients.current[k, sample]
                if k <= latest:
                    _write_adjoint(state.mem[k], patches, channels, row)
                else:
                    row[:] = 0
            if given(gradients.winner):
                positions = gradients.winner[k, sample]
                if k <= latest:
                    keep_positions(patches, state.winner[k], positions)
                else:
                    positions[:] = 0
