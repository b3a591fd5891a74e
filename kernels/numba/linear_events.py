"""Spikes in the order of time, and weights in tiles."""

import numpy as np

from .compiling import compiled
from .tile import TILE


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
