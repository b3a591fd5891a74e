"""What the spikes of one step do in a convolution; see :class:`.arguments.ConvLayer`."""

from __future__ import annotations

from .block import given
from .compiling import inlined_helper, part_of_caller
from .simd import LANES, load, store, where


@inlined_helper
def reach(unit, patches, reached):
    """Write the cells that a unit reaches, the taps of the kernel, and the cells of the neurons.

    Returns the channel of the unit and the number of cells.
    """
    rows, columns, windows = patches.rows, patches.columns, patches.windows
    width = columns.shape[0]
    area = rows.shape[0] * width
    channel = unit // area
    pixel = unit - channel * area
    y = pixel // width
    x = pixel - y * width
    group = channel // patches.group
    start, start_of_neurons = group * patches.positions, group * patches.neurons
    count = 0
    for i in range(rows.shape[1]):
        row = rows[y, i]
        if row >= 0:
            for j in range(columns.shape[1]):
                column = columns[x, j]
                if column >= 0:
                    position = row * patches.width + column
                    window = windows[position] if given(windows) else position
                    if window >= 0:
                        reached[0, count] = start + position
                        reached[1, count] = i * columns.shape[1] + j
                        reached[2, count] = start_of_neurons + window
                        count += 1
    return channel, count


@part_of_caller
def parameters_of(cell, cells, parameters):
    """The row of parameters (Q, L) of a cell of neurons."""
    return cell // (cells // parameters.shape[0])


@part_of_caller
def neuron_of(cell, lane, patches, out_channels):
    """The index of a neuron in the flattened features (O, neurons of a channel)."""
    group = cell // patches.neurons
    return (group * out_channels + lane) * patches.neurons + cell - group * patches.neurons


@inlined_helper
def clear_rows(array):
    """Zeros in an array (n, L)."""
    for i in range(array.shape[0]):
        for j in range(array.shape[1]):
            array[i, j] = 0


@inlined_helper
def add_current(cell, group, channel, tap, value, now, step, weight, bias):
    """Add one tap to the current of a cell. Returns whether this is its first in this step."""
    current, seen = step.current, step.seen
    if seen[cell] == now:
        for j in range(0, current.shape[1], LANES):
            added = value * load(weight, (channel, tap, j))
            store(current, (cell, j), load(current, (cell, j)) + added)
        return False
    seen[cell] = now
    for j in range(0, current.shape[1], LANES):
        added = value * load(weight, (channel, tap, j))
        store(current, (cell, j), load(bias, (group, j)) + added)
    return True


@inlined_helper
def peak(owner, now, patches, step, bias, rows, index):
    """Write the maximum of the cells of a window into a row. Cells without spikes have the bias."""
    group = owner // patches.neurons
    window, start = owner - group * patches.neurons, group * patches.positions
    members = patches.members
    for j in range(0, bias.shape[1], LANES):
        most = load(bias, (group, j))
        cell = start + members[window, 0]
        if step.seen[cell] == now:
            most = load(step.current, (cell, j))
        for m in range(1, members.shape[1]):
            cell = start + members[window, m]
            x = load(bias, (group, j))
            if step.seen[cell] == now:
                x = load(step.current, (cell, j))
            larger = where(x <= most, most, x)
            most = where(most == most, larger, most)  # NaN stays, as in torch
        store(rows, (index, j), most)


@inlined_helper
def route(owner, now, patches, step, bias, lam, index, rows):
    """Give the adjoint of a window to its first maximum. ``rows`` (4, L) is work space."""
    peak(owner, now, patches, step, bias, rows, 3)
    group = owner // patches.neurons
    window, start = owner - group * patches.neurons, group * patches.positions
    for j in range(0, bias.shape[1], LANES):
        left = load(lam, (index, j))
        most = load(rows, (3, j))
        for m in range(patches.members.shape[1]):
            cell = start + patches.members[window, m]
            x = load(bias, (group, j))
            if step.seen[cell] == now:
                x = load(step.current, (cell, j))
            largest = x == most
            zero = bias.dtype.type(0)
            store(step.routed, (cell, j), where(largest, left, zero))
            left = where(largest, zero, left)


@inlined_helper
def add_row(weight, channel, tap, value, row, start, n):
    """Add ``value`` times the weights of one tap to ``n`` numbers of a row."""
    whole = n // LANES * LANES
    for j in range(0, whole, LANES):
        store(row, start + j, load(row, start + j) + value * load(weight, (channel, tap, j)))
    for j in range(whole, n):
        row[start + j] += value * weight[channel, tap, j]


@inlined_helper
def add_to_tap(row, start, n, value, gradient, channel, tap):
    """Add ``value`` times ``n`` numbers of a row to the gradient of one tap."""
    whole = n // LANES * LANES
    for j in range(0, whole, LANES):
        here = (channel, tap, j)
        store(gradient, here, load(gradient, here) + value * load(row, start + j))
    for j in range(whole, n):
        gradient[channel, tap, j] += value * row[start + j]


@inlined_helper
def add_cell_to_tap(cells, cell, value, gradient, channel, tap):
    """Add ``value`` times a row of lanes to the gradient of one tap."""
    for j in range(0, cells.shape[1], LANES):
        here = (channel, tap, j)
        store(gradient, here, load(gradient, here) + value * load(cells, (cell, j)))
