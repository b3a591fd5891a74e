"""Spikes in the order of time, and weights in tiles."""

import numpy as np

from .compiling import compiled
from .simd import LANES, WORD, count_bits, lowest_bit, unequal_bits


@compiled
def sort_loop(low, high, times, steps, offsets, out_times, out_units):
    """Counting sort of the spikes of each sample.

    A branch on whether a neuron spikes would be mispredicted for every second neuron. So the loop
    writes every neuron to the end of a list. The end moves on only behind a neuron that spikes.
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
def count_events_loop(low, high, spikes, strides, shape, counts, ones):
    """The number of entries of each sample that are not 0, and whether all of these are 1.

    ``spikes`` is the memory of a tensor of ``shape`` (T, B, N). ``strides`` (2,) are those of T and
    B, and the entries of a row follow one another.
    """
    whole = shape[2] // LANES * LANES
    counts[low:high] = 0
    ones[low:high] = True
    for t in range(shape[0]):
        for sample in range(low, high):
            row = t * strides[0] + sample * strides[1]
            count = others = 0
            for i in range(0, whole, LANES):
                found = unequal_bits(spikes, row + i, 0)
                count += count_bits(found)
                others |= found & unequal_bits(spikes, row + i, 1)
            for i in range(whole, shape[2]):
                found = np.int64(spikes[row + i] != 0)
                count += found
                others |= found & np.int64(spikes[row + i] != 1)
            counts[sample] += count
            ones[sample] &= others == 0


@compiled
def collect_events_loop(low, high, spikes, strides, shape, offsets, times, units, heights):
    """The entries of each sample that are not 0, by time and unit.

    ``spikes``, ``strides`` and ``shape`` as in :func:`count_events_loop`. ``heights`` is empty if
    all of these entries are 1. The end of a loop over bits is mispredicted, so it has WORD of them.
    """
    place = offsets[low:high].copy()
    for t in range(shape[0]):
        for sample in range(low, high):
            row, first = t * strides[0] + sample * strides[1], place[sample - low]
            at = first
            for start in range(0, shape[2], WORD):
                end, bits = min(start + WORD, shape[2]), 0
                whole = start + (end - start) // LANES * LANES
                for i in range(start, whole, LANES):
                    bits |= unequal_bits(spikes, row + i, 0) << (i - start)
                for i in range(whole, end):
                    bits |= np.int64(spikes[row + i] != 0) << (i - start)
                while bits:
                    units[at] = start + lowest_bit(bits)
                    bits &= bits - 1
                    at += 1
            times[first:at] = t
            if heights.shape[0] > 0:
                for i in range(first, at):
                    heights[i] = spikes[row + units[i]]
            place[sample - low] = at


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
