"""The cells of a convolution that an input unit reaches; see :class:`.arguments.ConvLayer`."""

from __future__ import annotations

from .compiling import inlined_helper, part_of_caller
from .simd import LANES, load, store


@inlined_helper
def reach(unit, patches, reached):
    """Write the cells that a unit reaches and the taps of the kernel. Returns channel and count."""
    rows, columns = patches.rows, patches.columns
    width = columns.shape[0]
    area = rows.shape[0] * width
    channel = unit // area
    pixel = unit - channel * area
    y = pixel // width
    x = pixel - y * width
    start = channel // patches.group * patches.positions
    count = 0
    for i in range(rows.shape[1]):
        row = rows[y, i]
        if row >= 0:
            for j in range(columns.shape[1]):
                column = columns[x, j]
                if column >= 0:
                    reached[0, count] = start + row * patches.width + column
                    reached[1, count] = i * columns.shape[1] + j
                    count += 1
    return channel, count


@part_of_caller
def parameters_of(cell, cells, parameters):
    """The row of parameters (Q, L) of a cell."""
    return cell // (cells // parameters.shape[0])


@part_of_caller
def neuron_of(cell, lane, patches, out_channels):
    """The index of a neuron in the flattened features (O, positions)."""
    group = cell // patches.positions
    position = cell - group * patches.positions
    return (group * out_channels + lane) * patches.positions + position


@inlined_helper
def clear_rows(array):
    """Zeros in an array (n, L)."""
    for i in range(array.shape[0]):
        for j in range(array.shape[1]):
            array[i, j] = 0


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
