"""What the spikes of one step do in a convolution; see :class:`.arguments.ConvLayer`.

A spike reaches outputs in rows. The outputs of a row that lie side by side are a *run*, and so are
their weights, whose taps lie in this order. So a spike adds a few runs of vectors.
"""

from __future__ import annotations

from .block import given
from .compiling import inlined_helper, part_of_caller
from .simd import LANES, full_like, load, store, where


@inlined_helper
def place_of(unit, patches):
    """The channel, row and column of an input."""
    width = patches.columns.shape[0]
    area = patches.rows.shape[0] * width
    channel = unit // area
    pixel = unit - channel * area
    y = pixel // width
    return channel, y, pixel - y * width


@part_of_caller
def parameters_of(cell, cells, parameters):
    """The row of parameters (Q, L) of a cell of neurons."""
    rows = parameters.shape[0]
    return cell // (cells // rows) if rows > 1 else 0


@part_of_caller
def group_of(cell, patches):
    """The group of a cell of neurons, without a division if there is one group."""
    return cell // patches.neurons if cell >= patches.neurons else 0


@part_of_caller
def neuron_of(cell, lane, patches, out_channels):
    """The index of a neuron in the flattened features (O, neurons of a channel)."""
    group = group_of(cell, patches)
    return (group * out_channels + lane) * patches.neurons + cell - group * patches.neurons


@inlined_helper
def clear_rows(array):
    """Zeros in an array (n, L)."""
    for i in range(array.shape[0]):
        for j in range(array.shape[1]):
            array[i, j] = 0


@inlined_helper
def set_currents(patches, bias, current):
    """The current of all cells at a step without spikes, which is the bias."""
    for cell in range(current.shape[0]):
        for j in range(0, current.shape[1], LANES):
            store(current, (cell, j), load(bias, (cell // patches.positions, j)))


@inlined_helper
def add_patch(channel, y, x, value, patches, weight, current):
    """Add ``value`` times the weights of an input to the current of the cells that it reaches."""
    rows, columns, lanes = patches.rows, patches.columns, current.shape[1]
    start = channel // patches.group * patches.positions
    for i in range(rows.shape[1]):
        row = rows[y, i, 0]
        if row >= 0:
            for r in range(columns.shape[1]):
                cell = start + row * patches.width + columns[x, r, 0]
                tap = i * patches.taps + columns[x, r, 1]
                for j in range(0, columns[x, r, 2] * lanes, LANES):
                    added = value * load(weight, (channel, tap, j))
                    store(current, (cell, j), load(current, (cell, j)) + added)


@inlined_helper
def add_to_taps(channel, y, x, value, patches, source, gradient):
    """Add ``value`` times the reached cells of ``source`` to the gradient of the weights."""
    rows, columns, lanes = patches.rows, patches.columns, source.shape[1]
    start = channel // patches.group * patches.positions
    for i in range(rows.shape[1]):
        row = rows[y, i, 0]
        if row >= 0:
            for r in range(columns.shape[1]):
                cell = start + row * patches.width + columns[x, r, 0]
                tap = i * patches.taps + columns[x, r, 1]
                for j in range(0, columns[x, r, 2] * lanes, LANES):
                    here = (channel, tap, j)
                    added = value * load(source, (cell, j))
                    store(gradient, here, load(gradient, here) + added)


@inlined_helper
def patch_product(channel, y, x, patches, weight, source, total):
    """The sum over the reached cells and their channels of the weights times ``source``."""
    rows, columns, lanes = patches.rows, patches.columns, source.shape[1]
    start = channel // patches.group * patches.positions
    zero = full_like(load(source, (0, 0)), source.dtype.type(0))
    even, odd = zero, zero  # two sums, since each addition waits for the one before
    for i in range(rows.shape[1]):
        row = rows[y, i, 0]
        if row >= 0:
            for r in range(columns.shape[1]):
                cell = start + row * patches.width + columns[x, r, 0]
                tap = i * patches.taps + columns[x, r, 1]
                size = columns[x, r, 2] * lanes
                for j in range(0, size - LANES, 2 * LANES):
                    even = even + load(weight, (channel, tap, j)) * load(source, (cell, j))
                    product = load(weight, (channel, tap, j + LANES))
                    odd = odd + product * load(source, (cell, j + LANES))
                if size % (2 * LANES):
                    j = size - LANES
                    even = even + load(weight, (channel, tap, j)) * load(source, (cell, j))
    store(total, 0, even + odd)
    quarter = LANES // 4
    summed = source.dtype.type(0)
    for j in range(quarter):
        summed += (total[j] + total[j + quarter]) + (
            total[j + 2 * quarter] + total[j + 3 * quarter]
        )
    return summed


@inlined_helper
def list_reached(channel, y, x, now, patches, marked, listed, count):
    """List the cells of neurons that an input reaches, and that are not yet marked with ``now``.

    Returns how many cells are listed.
    """
    if count == listed.shape[0]:
        return count
    rows, columns = patches.rows, patches.columns
    start, before = channel // patches.group * patches.neurons, -1
    for i in range(rows.shape[1]):
        row = rows[y, i, 1]
        if row >= 0 and row != before:
            before = row
            for r in range(columns.shape[1]):
                first = start + row * patches.across
                for cell in range(first + columns[x, r, 3], first + columns[x, r, 4]):
                    if marked[cell] != now:
                        marked[cell] = now
                        listed[count] = cell
                        count += 1
    return count


@inlined_helper
def add_currents(start, end, now, events, patches, weight, current, marked, listed):
    """Add the spikes from ``start`` to ``end`` - 1 to the current of a step.

    Returns how many cells of neurons they reach. These are listed.
    """
    one, count = weight.dtype.type(1), 0
    for e in range(start, end):
        channel, y, x = place_of(events.units[e], patches)
        value = events.values[e] if given(events.values) else one
        add_patch(channel, y, x, value, patches, weight, current)
        count = list_reached(channel, y, x, now, patches, marked, listed, count)
    return count


@inlined_helper
def reset_current(owner, patches, bias, current):
    """The bias as the current of the cells that a cell of neurons reads."""
    group = group_of(owner, patches)
    if given(patches.members):
        window, start = owner - group * patches.neurons, group * patches.positions
        for m in range(patches.members.shape[1]):
            cell = start + patches.members[window, m]
            for j in range(0, bias.shape[1], LANES):
                store(current, (cell, j), load(bias, (group, j)))
    else:
        for j in range(0, bias.shape[1], LANES):
            store(current, (owner, j), load(bias, (group, j)))


@inlined_helper
def peak(owner, patches, current, rows, index):
    """Write the maximum of the cells of a window into a row."""
    group = group_of(owner, patches)
    window, start = owner - group * patches.neurons, group * patches.positions
    members = patches.members
    for j in range(0, current.shape[1], LANES):
        most = load(current, (start + members[window, 0], j))
        for m in range(1, members.shape[1]):
            x = load(current, (start + members[window, m], j))
            larger = where(x <= most, most, x)
            most = where(most == most, larger, most)  # NaN stays, as in torch
        store(rows, (index, j), most)


@inlined_helper
def first_maxima(owner, patches, current, rows, index, winner):
    """:func:`peak`, and the cells that have it: the first ones, or the last NaN, as in torch."""
    group = group_of(owner, patches)
    window, start = owner - group * patches.neurons, group * patches.positions
    members = patches.members
    for j in range(0, current.shape[1], LANES):
        cell = start + members[window, 0]
        most, has = load(current, (cell, j)), full_like(load(winner, j), cell)
        for m in range(1, members.shape[1]):
            cell = start + members[window, m]
            x = load(current, (cell, j))
            higher, taken = where(x <= most, most, x), where(x <= most, has, cell)
            has = where(most == most, taken, where(x == x, has, cell))
            most = where(most == most, higher, most)
        store(rows, (index, j), most)
        store(winner, j, has)


@inlined_helper
def first_members(patches, winner):
    """The first cell of every window, which has its maximum at a step without spikes."""
    for owner in range(winner.shape[0]):
        group = group_of(owner, patches)
        window = owner - group * patches.neurons
        cell = group * patches.positions + patches.members[window, 0]
        for lane in range(winner.shape[1]):
            winner[owner, lane] = cell


@inlined_helper
def keep_positions(patches, winner, positions):
    """Write the positions of the cells that have the maxima, without the padding of channels."""
    for owner in range(winner.shape[0]):
        start = group_of(owner, patches) * patches.positions
        # Slices, since their indices need no check for negative numbers
        cells, kept = winner[owner], positions[owner]
        for lane in range(kept.shape[0]):
            kept[lane] = cells[lane] - start


@inlined_helper
def route(owner, patches, lam, winner, routed):
    """Give the adjoint of a window, by channel, to the cell that has its maximum."""
    group = group_of(owner, patches)
    window, start = owner - group * patches.neurons, group * patches.positions
    members, zero = patches.members, lam.dtype.type(0)
    for j in range(0, lam.shape[0], LANES):
        has, given_ = load(winner, j), load(lam, j)
        for m in range(members.shape[1]):
            cell = start + members[window, m]
            store(routed, (cell, j), where(has == cell, given_, zero))
