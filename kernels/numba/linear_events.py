"""Spikes in the order of time, and weights in tiles."""

import numpy as np

from .compiling import compiled
from .simd import LANES, count_bits, lowest_bit, nonzero_bits


@compiled
def sort_loop(low, high, times, steps, offsets, out_times, out_units):
    """Counting sort of the spikes of each sample.

    A branch on whether a neuron spikes is mispredicted for every second one. So every neuron is
    written to the list of those that spike, and those that do not are written over.
    """
    where = np.empty(steps + 1, np.int64)
    spiking = np.empty(times.shape[1], np.int32)
    for sample in range(low, high):
        row, found = times[sample], 0
        for i in range(row.shape[0]):
            spiking[found] = i
            found += row[i] >= 0
        where[:] = 0
        for k in range(found):
            where[row[spiking[k]] + 1] += 1
        where[0] = offsets[sample]
        for t in range(steps):
            where[t + 1] += where[t]
        for k in range(found):
            i = spiking[k]
            place = where[row[i]]
            where[row[i]] = place + 1
            out_times[place] = row[i]
            out_units[place] = i


@compiled
def count_events_loop(low, high, spikes, strides, shape, counts):
    """The number of entries of each sample that are not 0.

    ``spikes`` is the memory of a tensor of ``shape`` (T, B, N). ``strides`` (2,) are those of T and
    B, and the entries of a row follow one another.
    """
    whole = shape[2] // LANES * LANES
    counts[low:high] = 0
    for t in range(shape[0]):
        for sample in range(low, high):
            row = t * strides[0] + sample * strides[1]
            count = 0
            for i in range(0, whole, LANES):
                count += count_bits(nonzero_bits(spikes, row + i))
            for i in range(whole, shape[2]):
                count += spikes[row + i] != 0
            counts[sample] += count


@compiled
def collect_events_loop(low, high, spikes, strides, shape, offsets, times, units, heights, ones):
    """The entries of each sample that are not 0, by time and unit; whether all of them are 1.

    ``spikes``, ``strides`` and ``shape`` as in :func:`count_events_loop`.
    """
    whole = shape[2] // LANES * LANES
    place = offsets[low:high].copy()
    ones[low:high] = True
    for t in range(shape[0]):
        for sample in range(low, high):
            row, at, one = t * strides[0] + sample * strides[1], place[sample - low], True
            for start in range(0, whole, LANES):
                bits = nonzero_bits(spikes, row + start)
                while bits:
                    unit = start + lowest_bit(bits)
                    bits &= bits - 1
                    height = spikes[row + unit]
                    times[at], units[at], heights[at] = t, unit, height
                    one &= height == 1
                    at += 1
            for unit in range(whole, shape[2]):
                height = spikes[row + unit]
                if height != 0:
                    times[at], units[at], heights[at] = t, unit, height
                    one &= height == 1
                    at += 1
            place[sample - low] = at
            ones[sample] &= one


@compiled
def pack_loop(low, high, weight, packed):
    """(O, N) to (tiles, N, size of a tile), zeros past the last neuron."""
    (out_features, units), size = weight.shape, packed.shape[2]
    for tile in range(low, high):
        neuron = tile * size
        n = min(size, out_features - neuron)
        for i in range(units):  # a column of weights fits in the first-level cache
            for j in range(n):
                packed[tile, i, j] = weight[neuron + j, i]
            for j in range(n, size):
                packed[tile, i, j] = 0


@compiled
def unpack_loop(low, high, packed, weight):
    """The sum over splits of (splits, tiles, N, size of a tile), as (O, N)."""
    (out_features, units), size = weight.shape, packed.shape[3]
    for tile in range(low, high):
        neuron = tile * size
        for i in range(units):
            for j in range(min(size, out_features - neuron)):
                total = packed[0, tile, i, j]
                for split in range(1, packed.shape[0]):
                    total += packed[split, tile, i, j]
                weight[neuron + j, i] = total
