"""Spikes in the order of time, and weights in tiles."""

import numpy as np

from .compiling import compiled
from .tile import TILE

SCANNED = 16  # entries of a dense input that are compared at once


@compiled
def sort_loop(low, high, times, steps, offsets, out_times, out_units):
    """Counting sort of the spikes of each sample."""
    where = np.empty(steps + 1, np.int64)
    for sample in range(low, high):
        row = times[sample]
        where[:] = 0
        for i in range(row.shape[0]):
            if row[i] >= 0:
                where[row[i] + 1] += 1
        where[0] = offsets[sample]
        for t in range(steps):
            where[t + 1] += where[t]
        for i in range(row.shape[0]):
            if row[i] >= 0:
                place = where[row[i]]
                where[row[i]] = place + 1
                out_times[place] = row[i]
                out_units[place] = i


@compiled
def count_events_loop(low, high, spikes, counts):
    """The number of entries of each sample that are not 0."""
    counts[low:high] = 0
    for t in range(spikes.shape[0]):  # in the order of memory
        for sample in range(low, high):
            row = spikes[t, sample]
            count = 0
            for i in range(row.shape[0]):
                count += row[i] != 0
            counts[sample] += count


@compiled
def collect_events_loop(low, high, spikes, offsets, times, units, heights, ones):
    """The entries of each sample that are not 0, by time and unit; whether all of them are 1."""
    num_units = spikes.shape[2]
    whole = num_units // SCANNED * SCANNED
    place = offsets[low:high].copy()
    ones[low:high] = True
    fired = np.empty(num_units + 1, np.int32)
    for t in range(spikes.shape[0]):
        for sample in range(low, high):
            row = spikes[t, sample]
            count = 0
            for start in range(0, whole, SCANNED):
                any_fired = np.int32(0)
                for i in range(SCANNED):  # in vectors
                    any_fired += np.int32(row[start + i] != 0)
                if any_fired:
                    for i in range(start, start + SCANNED):  # a branch would be mispredicted
                        fired[count] = i
                        count += row[i] != 0
            for i in range(whole, num_units):
                fired[count] = i
                count += row[i] != 0
            first, one = place[sample - low], True
            for k in range(count):
                height = row[fired[k]]
                times[first + k], units[first + k], heights[first + k] = t, fired[k], height
                one &= height == 1
            place[sample - low] = first + count
            ones[sample] &= one


@compiled
def pack_loop(low, high, weight, packed):
    """(O, N) to (tiles, N, TILE), zeros past the last neuron."""
    out_features, units = weight.shape
    for tile in range(low, high):
        neuron = tile * TILE
        n = min(TILE, out_features - neuron)
        for i in range(units):  # a column of weights fits in the first-level cache
            for j in range(n):
                packed[tile, i, j] = weight[neuron + j, i]
            for j in range(n, TILE):
                packed[tile, i, j] = 0


@compiled
def unpack_loop(low, high, packed, weight):
    """The sum over splits of (splits, tiles, N, TILE), as (O, N)."""
    out_features, units = weight.shape
    for tile in range(low, high):
        neuron = tile * TILE
        for i in range(units):
            for j in range(min(TILE, out_features - neuron)):
                total = packed[0, tile, i, j]
                for split in range(1, packed.shape[0]):
                    total += packed[split, tile, i, j]
                weight[neuron + j, i] = total
