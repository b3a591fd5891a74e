"""The dense current of a convolution from the spikes of its inputs, and the gradient back.

The backward pass of the surrogate rules reads every step. It writes the current of a few samples
out, (T, samples, cells * channels), and reads the adjoint in the same order.
"""

from __future__ import annotations

import numpy as np

from .arguments import Events, Patches
from .block import given
from .compiling import helper
from .conv_patch import add_row, add_to_tap, reach


@helper
def conv_current_loop(low, high, first, reached, events, patches, weight, bias, current):
    """Current of the samples from ``low`` on; ``first`` is the sample of the first row."""
    events, patches = Events(*events), Patches(*patches)
    channels = bias.shape[1]
    one = weight.dtype.type(1)
    for sample in range(low, high):
        for t in range(current.shape[0]):
            row = current[t, sample - first]
            for cell in range(row.shape[0] // channels):
                group = cell // patches.positions
                for j in range(channels):
                    row[cell * channels + j] = bias[group, j]
        for e in range(events.offsets[sample], events.offsets[sample + 1]):
            channel, taps = reach(events.units[e], patches, reached)
            value = events.values[e] if given(events.values) else one
            row = current[events.times[e], sample - first]
            for i in range(taps):
                start = np.int64(reached[0, i]) * channels
                add_row(weight, channel, reached[1, i], value, row, start, channels)


@helper
def conv_gather_loop(low, high, first, reached, events, patches, lam, gradient, channels):
    """Add the adjoint at the spikes to the gradient of the weights."""
    events, patches = Events(*events), Patches(*patches)
    one = gradient.dtype.type(1)
    for sample in range(low, high):
        for e in range(events.offsets[sample], events.offsets[sample + 1]):
            channel, taps = reach(events.units[e], patches, reached)
            value = events.values[e] if given(events.values) else one
            row = lam[events.times[e], sample - first]
            for i in range(taps):
                start = np.int64(reached[0, i]) * channels
                add_to_tap(row, start, channels, value, gradient, channel, reached[1, i])
