"""The current of a linear layer at every step, from the spikes of its inputs; and its transpose.

A layer of at most LANES neurons has one tile of LANES neurons, and other layers have tiles of TILE.
"""

from .arguments import CurrentGradients, Events, Part
from .block import copy, fill, given
from .compiling import helper, inlined_helper
from .simd import LANES, load, prefetch, store
from .tile import TILE, tile_values, width

assert TILE == 8 * LANES


@inlined_helper
def _load_row(row):
    """A row of a tile, in registers."""
    return (
        load(row, 0), load(row, LANES), load(row, 2 * LANES), load(row, 3 * LANES),
        load(row, 4 * LANES), load(row, 5 * LANES), load(row, 6 * LANES), load(row, 7 * LANES),
    )  # fmt: skip


@inlined_helper
def _store_row(target, row):
    a, b, c, d, e, f, g, h = row
    store(target, 0, a)
    store(target, LANES, b)
    store(target, 2 * LANES, c)
    store(target, 3 * LANES, d)
    store(target, 4 * LANES, e)
    store(target, 5 * LANES, f)
    store(target, 6 * LANES, g)
    store(target, 7 * LANES, h)


@inlined_helper
def _plus(row, other):
    a, b, c, d, e, f, g, h = row
    i, j, k, l, m, n, o, p = other
    return a + i, b + j, c + k, d + l, e + m, f + n, g + o, h + p


@inlined_helper
def _times(value, row):
    a, b, c, d, e, f, g, h = row
    return (
        value * a, value * b, value * c, value * d, value * e, value * f, value * g, value * h
    )  # fmt: skip


@inlined_helper
def _gather(e, end, now, events, weights, drive, current):
    """Write ``drive`` and the weights of all spikes of one step; returns the next spike."""
    times, units, values = events.times, events.units, events.values
    row = _load_row(drive)
    if given(values):
        while e < end and times[e] == now:
            row = _plus(row, _times(values[e], _load_row(weights[units[e]])))
            e += 1
    else:
        while e < end and times[e] == now:
            row = _plus(row, _load_row(weights[units[e]]))
            e += 1
    _store_row(current, row)
    return e


@inlined_helper
def _gather_few(e, end, now, events, weights, drive, current):
    """As :func:`_gather`, for a tile of LANES neurons."""
    times, units, values = events.times, events.units, events.values
    row = load(drive, 0)
    if given(values):
        while e < end and times[e] == now:
            row = row + values[e] * load(weights[units[e]], 0)
            e += 1
    else:
        while e < end and times[e] == now:
            row = row + load(weights[units[e]], 0)
            e += 1
    store(current, 0, row)
    return e


@helper
def linear_current_loop(row, drive, part, events, weight, bias, current):
    """Write the current (T, B, O). ``row`` and ``drive`` are work space (TILE,)."""
    part, events = Part(*part), Events(*events)
    num_steps, _, out_features = current.shape
    zero, few = weight.dtype.type(0), weight.shape[2] == LANES
    for tile in range(part.tile_low, part.tile_high):
        weights, neuron, n = weight[tile], tile * TILE, width(tile, out_features)
        tile_values(bias, tile, zero, drive)
        for sample in range(part.low, part.high):
            e, end = events.offsets[sample], events.offsets[sample + 1]
            for t in range(num_steps):
                if n == TILE:
                    e = _gather(e, end, t, events, weights, drive, current[t, sample, neuron:])
                else:
                    if few:
                        e = _gather_few(e, end, t, events, weights, drive, row)
                    else:
                        e = _gather(e, end, t, events, weights, drive, row)
                    copy(row, n, current[t, sample, neuron : neuron + n])


@inlined_helper
def _scatter(e, end, now, events, grad, total, gradient):
    """Add a row to the gradients of all spikes of one step, and to ``total``."""
    times, units, values = events.times, events.units, events.values
    row = _load_row(grad)
    _store_row(total, _plus(_load_row(total), row))
    while e < end and times[e] == now:
        target = gradient[units[e]]
        added = _times(values[e], row) if given(values) else row
        _store_row(target, _plus(_load_row(target), added))
        e += 1
    return e


@inlined_helper
def _scatter_few(e, end, now, events, grad, total, gradient):
    """As :func:`_scatter`, for a tile of LANES neurons."""
    times, units, values = events.times, events.units, events.values
    row = load(grad, 0)
    store(total, 0, load(total, 0) + row)
    while e < end and times[e] == now:
        target = gradient[units[e]]
        added = values[e] * row if given(values) else row
        store(target, 0, load(target, 0) + added)
        e += 1
    return e


@helper
def linear_current_backward_loop(row, total, part, events, grad, gradients):
    """Gradients of the weights and the bias from that of the current (T, B, O).

    ``row`` and ``total`` are work space (TILE,). The bias is summed sample by sample, which rounds
    less than one sum over all steps.
    """
    part, events, gradients = Part(*part), Events(*events), CurrentGradients(*gradients)
    num_steps, _, out_features = grad.shape
    zero, columns = row.dtype.type(0), gradients.weight.shape[2]
    for tile in range(part.tile_low, part.tile_high):
        gradient, neuron, n = gradients.weight[tile], tile * TILE, width(tile, out_features)
        fill(row, TILE, zero)
        for unit in range(gradient.shape[0]):
            fill(gradient[unit], columns, zero)
        for j in range(n):
            gradients.bias[neuron + j] = zero
        for sample in range(part.low, part.high):
            e, end = events.offsets[sample], events.offsets[sample + 1]
            fill(total, TILE, zero)
            for t in range(num_steps):
                if t + 1 < num_steps:
                    for j in range(0, n, LANES):
                        prefetch(grad, (t + 1, sample, neuron + j))
                if n == TILE:
                    e = _scatter(e, end, t, events, grad[t, sample, neuron:], total, gradient)
                else:
                    copy(grad[t, sample, neuron : neuron + n], n, row)
                    if columns == LANES:
                        e = _scatter_few(e, end, t, events, row, total, gradient)
                    else:
                        e = _scatter(e, end, t, events, row, total, gradient)
            for j in range(n):
                gradients.bias[neuron + j] += total[j]
