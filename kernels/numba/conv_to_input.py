"""The gradient to the inputs of a convolution whose neurons read the maximum of windows.

One position of each window has a gradient, by channel. Its patch of weights is added to maps of the
input with channels last and a border, which hold whole patches in few rows side by side.
"""

from __future__ import annotations

import numpy as np

from .arguments import TransposedConv
from .compiling import helper, inlined_helper
from .simd import LANES, load, store

VECTORS = 5  # of patches, which are summed in registers side by side


@inlined_helper
def _list_channels(group, row, channels, winner, layer):
    """List the channels with a gradient at each position of a group."""
    n = row.shape[0] // layer.weight.shape[1]
    layer.counts[:] = 0
    for window in range(n):
        for lane in range(channels):  # without branches, which no processor could predict
            channel = group * channels + lane
            value = row[channel * n + window]
            # Unsigned indices need no check for negative numbers
            position = np.uintp(winner[group * n + window, lane])
            count = np.uintp(layer.counts[position])
            layer.values[position, count] = value
            layer.lanes[position, count] = channel
            layer.counts[position] = count + np.uintp(value != 0)


@inlined_helper
def _write_parts(at, k, layer):
    """Write the first numbers of the vectors. The numbers behind them belong to other patches."""
    for v in range(VECTORS):
        for j in range(layer.part):
            layer.maps[at + layer.vectors[k, v] + j] = layer.totals[v, j]


@inlined_helper
def _add_vectors(k, layer):
    """Add ``VECTORS`` vectors of all patches, in registers. Their weights stay in the cache."""
    weight, maps, lanes, values = layer.weight, layer.maps, layer.lanes, layer.values
    for position in range(layer.counts.shape[0]):
        at = layer.patches[position]
        a, b, c = at + layer.vectors[k, 0], at + layer.vectors[k, 1], at + layer.vectors[k, 2]
        d, e = at + layer.vectors[k, 3], at + layer.vectors[k, 4]
        one, two, three = load(maps, a), load(maps, b), load(maps, c)
        four, five = load(maps, d), load(maps, e)
        for i in range(layer.counts[position]):
            value, lane = values[position, i], lanes[position, i]
            one = one + value * load(weight, (k, lane, 0))
            two = two + value * load(weight, (k, lane, LANES))
            three = three + value * load(weight, (k, lane, 2 * LANES))
            four = four + value * load(weight, (k, lane, 3 * LANES))
            five = five + value * load(weight, (k, lane, 4 * LANES))
        if k < layer.whole:
            store(maps, a, one)
            store(maps, b, two)
            store(maps, c, three)
            store(maps, d, four)
            store(maps, e, five)
        else:
            store(layer.totals, (0, 0), one)
            store(layer.totals, (1, 0), two)
            store(layer.totals, (2, 0), three)
            store(layer.totals, (3, 0), four)
            store(layer.totals, (4, 0), five)
            _write_parts(at, k, layer)


@inlined_helper
def _add_patches(layer):
    """Add the patches of all positions and channels with a gradient to the maps of a group."""
    for k in range(layer.weight.shape[0]):
        _add_vectors(k, layer)


@inlined_helper
def _write(group, groups, layer, into):
    """Copy the maps of a group to (height, width, channels of all groups)."""
    channels, height, width = layer.size
    covered = min(width, layer.covered)
    # What lies side by side in both: a row, or a pixel if there are several groups
    n, pieces = (covered * channels, 1) if groups == 1 else (channels, covered)
    for y in range(height):
        first, start = layer.inside[y], y * width * channels * groups + group * channels
        rest = start
        if first >= 0:
            for piece in range(pieces):
                # Slices, since their indices need no check for negative numbers
                at, source = start + piece * channels * groups, first + piece * channels
                target, pixels = into[at : at + n], layer.maps[source : source + n]
                for i in range(n):
                    target[i] = pixels[i]
            rest = start + covered * channels * groups
        for at in range(rest, start + width * channels * groups, channels * groups):
            into[at : at + channels] = 0


@helper
def conv_to_input_loop(low, high, begin, stop, layer, lam, lam_apart, winner, winner_apart, out):
    """Write the gradient to the inputs (T, n, units), channels last, for some samples and steps.

    The adjoint ``lam`` is (rows, O * neurons of a channel), and ``winner`` is (rows, cells of
    neurons, O / groups), the positions with the maxima. Their row of a step and sample is step *
    apart + sample.
    """
    layer = TransposedConv(*layer)
    channels = layer.lanes.shape[1]
    groups = layer.weight.shape[1] // channels
    for sample in range(low, high):
        for t in range(begin, stop):
            row, positions = lam[t * lam_apart + sample], winner[t * winner_apart + sample]
            for group in range(groups):
                layer.maps[: layer.end] = 0
                _list_channels(group, row, channels, positions, layer)
                _add_patches(layer)
                _write(group, groups, layer, out[t, sample])
