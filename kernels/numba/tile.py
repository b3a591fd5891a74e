"""A tile of neighboring neurons of a linear layer, and what its spikes do in one step.

The width is a constant, so that the compiler unrolls the loops over a tile; a narrower layer is
padded. Between two steps with spikes the membrane is jumped over with tables of powers of beta.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import numpy as np

from .compiling import helper, inlined_helper, part_of_caller
from .simd import LANES, prefetch

TILE = 128
JUMP = 64  # steps that the tables of powers reach
AHEAD = 8  # spikes between the one that is added and the one whose row is loaded


class Tables(NamedTuple):
    """Sums of powers of beta for n = 0 ... JUMP steps, (JUMP + 1, TILE) each."""

    power: np.ndarray
    """beta^n."""
    geometric: np.ndarray
    """1 + beta + ... + beta^(n-1)."""
    rising: np.ndarray
    """The sum of ``geometric`` from 1 to n."""
    d_power: np.ndarray
    """The derivative of ``power`` by beta."""
    d_geometric: np.ndarray


@part_of_caller
def tables_of(scratch):
    # Parts of one array: the compiler can prove that they do not overlap, and vectorizes.
    tables = scratch.tables
    return Tables(tables[0], tables[1], tables[2], tables[3], tables[4])


@part_of_caller
def width(tile, out_features):
    """Neurons of a tile that are not padding."""
    return min(TILE, out_features - tile * TILE)


@helper
def tile_values(parameter, tile, other, out):
    """The values of one tile, ``other`` past the last neuron."""
    for j in range(TILE):
        neuron = tile * TILE + j
        out[j] = parameter[neuron] if neuron < parameter.shape[0] else other


@helper
def power_tables(b, tables):
    power, geometric, rising = tables.power, tables.geometric, tables.rising
    for j in range(TILE):
        power[0, j] = 1
        geometric[0, j] = 0
        rising[0, j] = 0
    for n in range(1, JUMP + 1):
        for j in range(TILE):
            power[n, j] = power[n - 1, j] * b[j]
            geometric[n, j] = geometric[n - 1, j] + power[n - 1, j]
            rising[n, j] = rising[n - 1, j] + geometric[n, j]


@helper
def power_slopes(tables):
    """The derivatives by beta, after :func:`power_tables`."""
    power, d_power, d_geometric = tables.power, tables.d_power, tables.d_geometric
    for j in range(TILE):
        d_power[0, j] = 0
        d_geometric[0, j] = 0
    for n in range(1, JUMP + 1):
        for j in range(TILE):
            d_power[n, j] = power.dtype.type(n) * power[n - 1, j]
            d_geometric[n, j] = d_geometric[n - 1, j] + d_power[n - 1, j]


@inlined_helper
def _fetch(e, units, rows):
    """Begin to load the row of a spike, in float64 half of its lines, before its turn."""
    unit = units[e]
    for j in range(0, TILE, LANES):
        prefetch(rows, (unit, j))


@inlined_helper
def gather(e, end, now, events, weights, x):
    """Add the weights of all spikes of one step to the current; returns the next spike."""
    times, units, values = events.times, events.units, events.values
    if values.shape[0] > 0:
        while e < end and times[e] == now:
            unit, value = units[e], values[e]
            for j in range(TILE):
                x[j] += value * weights[unit, j]
            e += 1
        return e
    while e + 3 < end and times[e + 3] == now:  # four at a time: x is read and written once
        for ahead in range(e + AHEAD, e + AHEAD + 4):
            _fetch(min(ahead, end - 1), units, weights)
        one, two, three, four = units[e], units[e + 1], units[e + 2], units[e + 3]
        for j in range(TILE):
            u = x[j] + weights[one, j]
            u = u + weights[two, j]
            u = u + weights[three, j]
            x[j] = u + weights[four, j]
        e += 4
    while e < end and times[e] == now:
        _fetch(min(e + AHEAD, end - 1), units, weights)
        unit = units[e]
        for j in range(TILE):
            x[j] += weights[unit, j]
        e += 1
    return e


@inlined_helper
def gather_split(e, end, now, carried, events, weights, x, later):
    """As :func:`gather`, of spikes that are shared with the next step, whose current is ``later``.

    The function adds ``later`` to ``x`` if the step before has left a current in it (``carried``).
    """
    times, units, values, late = events.times, events.units, events.values, events.late
    if carried:
        for j in range(TILE):
            x[j] += later[j]
    for j in range(TILE):
        later[j] = 0
    while e + 3 < end and times[e + 3] == now:  # as in gather
        for ahead in range(e + AHEAD, e + AHEAD + 4):
            _fetch(min(ahead, end - 1), units, weights)
        one, two, three, four = units[e], units[e + 1], units[e + 2], units[e + 3]
        a, b, c, d = values[e], values[e + 1], values[e + 2], values[e + 3]
        p, q, r, s = late[e], late[e + 1], late[e + 2], late[e + 3]
        for j in range(TILE):
            w, rest = weights[one, j], weights[two, j]
            u = x[j] + a * w
            v = later[j] + p * w
            u = u + b * rest
            v = v + q * rest
            w, rest = weights[three, j], weights[four, j]
            u = u + c * w
            v = v + r * w
            x[j] = u + d * rest
            later[j] = v + s * rest
        e += 4
    while e < end and times[e] == now:
        _fetch(min(e + AHEAD, end - 1), units, weights)
        unit, value, rest = units[e], values[e], late[e]
        for j in range(TILE):
            w = weights[unit, j]
            x[j] += value * w
            later[j] += rest * w
        e += 1
    return e


@inlined_helper
def scatter(e, begin, now, events, lam, gradient):
    """Add the adjoint to the gradient of the weights of all spikes of one step, going back."""
    times, units, values = events.times, events.units, events.values
    while e >= begin and times[e] == now:
        _fetch(max(e - AHEAD, begin), units, gradient)
        unit = units[e]
        if values.shape[0] > 0:
            value = values[e]
            for j in range(TILE):
                gradient[unit, j] += value * lam[j]
        else:
            for j in range(TILE):
                gradient[unit, j] += lam[j]
        e -= 1
    return e


@functools.partial(helper, fastmath={"reassoc", "contract"})
def dot(weights, unit, row, size):
    """The product of the first ``size`` numbers of two rows, a multiple of LANES."""
    total = row.dtype.type(0)
    for j in range(size):
        total += weights[unit, j] * row[j]
    return total


@functools.partial(inlined_helper, fastmath={"reassoc", "contract"})
def _add_split(unit, value, rest, weights, lam, later, gradient):
    """Add to the gradient of one row of weights; returns its product with ``later`` - ``lam``."""
    total = lam.dtype.type(0)
    for j in range(TILE):
        now, then = lam[j], later[j]
        gradient[unit, j] += value * now + rest * then
        total += weights[unit, j] * (then - now)
    return total


@inlined_helper
def scatter_split(e, begin, now, events, weights, lam, later, gradient, shares):
    """As :func:`scatter`, of spikes that are shared with the next step, whose adjoint is ``later``.

    The gradient of the share of the next step is the product of the weights with the difference.
    """
    times, units, values, late = events.times, events.units, events.values, events.late
    while e >= begin and times[e] == now:
        _fetch(max(e - AHEAD, begin), units, gradient)
        _fetch(max(e - AHEAD, begin), units, weights)
        unit, value, rest = units[e], values[e], late[e]
        total = _add_split(unit, value, rest, weights, lam, later, gradient)
        shares[unit] += (value + rest) * total
        e -= 1
    return e


@inlined_helper
def jump(gap, v, drive, tables):
    """The membrane ``gap`` steps of constant current later."""
    power, geometric = tables.power, tables.geometric
    for j in range(TILE):
        v[j] = power[gap, j] * v[j] + geometric[gap, j] * drive[j]


@inlined_helper
def jump_slope(gap, p, v, drive, tables):
    """Its derivative by beta; before :func:`jump`, whose ``v`` it reads."""
    power, d_power, d_geometric = tables.power, tables.d_power, tables.d_geometric
    for j in range(TILE):
        p[j] = power[gap, j] * p[j] + d_power[gap, j] * v[j] + d_geometric[gap, j] * drive[j]


@inlined_helper
def copy_row(source, target):
    for j in range(TILE):
        target[j] = source[j]


@inlined_helper
def clear_row(target):
    for j in range(TILE):
        target[j] = 0
