"""The positions whose current is the maximum of a window, at every step."""

from __future__ import annotations

from .arguments import ConvWinners, Events, Patches
from .compiling import helper
from .conv_patch import (
    add_currents,
    first_maxima,
    first_members,
    keep_positions,
    reset_current,
    set_currents,
)


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
            count = add_currents(start, e, t, events, patches, weight, work.current, marked, listed)
            for i in range(count):
                owner = listed[i]
                first_maxima(owner, patches, work.current, work.rows, 0, work.winner[owner])
                reset_current(owner, patches, bias, work.current)
            keep_positions(patches, work.winner, winners[t, sample])
