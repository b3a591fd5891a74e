"""The positions whose current is the maximum of a window, at every step."""

from __future__ import annotations

from .arguments import ConvWinners, Events, Patches
from .block import given
from .compiling import helper, inlined_helper
from .conv_patch import (
    add_patch,
    first_maxima,
    first_members,
    keep_positions,
    list_reached,
    place_of,
    reset_current,
    set_currents,
)


@inlined_helper
def _add_currents(start, end, now, events, patches, work, weight):
    """Add spikes to the current of a step. Returns how many cells of neurons they reach."""
    one, count = weight.dtype.type(1), 0
    for e in range(start, end):
        channel, y, x = place_of(events.units[e], patches)
        value = events.values[e] if given(events.values) else one
        add_patch(channel, y, x, value, patches, weight, work.current)
        count = list_reached(channel, y, x, now, patches, work.counters[0], work.counters[1], count)
    return count


@helper
def conv_winners_loop(low, high, work, events, patches, weight, bias, winners):
    """Write the winners (T, n, cells of neurons, O / groups) of some samples."""
    work, events, patches = ConvWinners(*work), Events(*events), Patches(*patches)
    marked, listed = work.counters[0], work.counters[1]
    set_currents(patches, bias, work.current)
    for sample in range(low, high):
        marked[:] = -1
        e, end = events.offsets[sample], events.offsets[sample + 1]
        for t in range(winners.shape[0]):
            start = e
            while e < end and events.times[e] == t:
                e += 1
            first_members(patches, work.winner)
            count = _add_currents(start, e, t, events, patches, work, weight)
            for i in range(count):
                owner = listed[i]
                first_maxima(owner, patches, work.current, work.rows, 0, work.winner[owner])
                reset_current(owner, patches, bias, work.current)
            keep_positions(patches, work.winner, winners[t, sample])
