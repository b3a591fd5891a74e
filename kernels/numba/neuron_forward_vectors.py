"""Forward pass of Leaky in explicit vectors, with the state in registers for a few steps."""

import numpy as np

from .block import (
    BLOCK,
    STEPS,
    clamp_decay,
    first_step,
    initial_state,
    lane_values,
    past_the_cache,
    write_lanes,
)
from .compiling import SUBTRACT, ZERO_BEFORE, compiled, inlined
from .simd import LANES, any_lane, fence, full_like, load, prefetch, store, where


@inlined
def _leaky_rows(
    count,
    early,
    start,
    n,
    current,
    spikes,
    mem,
    crossing,
    v,
    first,
    b,
    th,
    peak,
    reset,
    stream_spikes,
    stream_mem,
    want_spikes,
    want_mem,
    want_crossing,
    read_all,
):
    """``count`` steps of a block from ``early`` on, each vector with its state in registers."""
    steps = current.shape[0]
    ahead = min(early + count, steps - count)
    for j in range(0, n, LANES):
        lane = start + j
        at = load(first, j)
        if not (read_all or any_lane(at == steps)):
            if want_spikes:
                for k in range(count):
                    write_lanes(spikes, (early + k, lane), 0.0, stream_spikes)
            continue
        u, decay, threshold, height = load(v, j), load(b, j), load(th, j), load(peak, j)
        # A neuron that has fired has an infinite threshold.
        level = where(at == steps, threshold, np.inf)
        fall = threshold if reset == SUBTRACT else full_like(threshold, 0.0)
        fires = at == early - 1
        for k in range(count):
            t = early + k
            prefetch(current, (ahead + k, lane))
            before = u
            held = where(fires, 0.0, u) if reset == ZERO_BEFORE else u
            u = decay * held + load(current, (t, lane)) - where(fires, fall, 0.0)
            fires = u > level
            level = where(fires, np.inf, level)
            at = where(fires, t, at)
            if want_spikes:
                write_lanes(spikes, (t, lane), where(fires, height, 0.0), stream_spikes)
            if want_mem:
                write_lanes(mem, (t, lane), u, stream_mem)
            if want_crossing:
                below, above = load(crossing, (0, lane)), load(crossing, (1, lane))
                store(crossing, (0, lane), where(fires, before, below))
                store(crossing, (1, lane), where(fires, u, above))
        store(v, j, u)
        store(first, j, at)


@compiled
def _vectors(
    low,
    high,
    current,
    beta,
    theta,
    height,
    mem_0,
    clamp,
    reset,
    spikes,
    mem,
    times,
    crossing,
    final,
):
    steps = current.shape[0]
    never = np.int32(steps)
    dtype = current.dtype
    zero = dtype.type(0)
    want_spikes, want_mem = spikes.shape[0] > 0, mem.shape[0] > 0
    want_crossing, want_final = crossing.shape[0] > 0, final.shape[0] > 0
    read_all = want_mem or want_final
    stream_spikes, stream_mem = past_the_cache(spikes, low), past_the_cache(mem, low)
    v, b, th, peak = np.empty((4, BLOCK), dtype)
    first = np.empty(BLOCK, np.int32)
    active = np.empty(BLOCK, np.bool_)
    tiles = steps // STEPS + steps % STEPS
    for start in range(low, high, BLOCK):
        stop = min(start + BLOCK, high)
        n = stop - start
        lane_values(beta, start, n, b)
        if clamp:
            clamp_decay(b, n, active)
        lane_values(theta, start, n, th)
        lane_values(height, start, n, peak)
        initial_state(mem_0, start, n, v)
        first[:] = never
        if want_crossing:
            crossing[:, start:stop] = zero
        rows = start, n, current, spikes, mem, crossing, v, first, b, th, peak
        wanted = stream_spikes, stream_mem, want_spikes, want_mem, want_crossing, read_all
        for tile in range(tiles):
            early = first_step(tile, steps)
            # Two calls, because a number that is written out is compiled in.
            if tile < steps // STEPS:
                _leaky_rows(STEPS, early, *rows, reset, *wanted)
            else:
                _leaky_rows(1, early, *rows, reset, *wanted)
            if not (read_all or want_spikes) and first[:n].max() < never:
                break
        for j in range(n):
            times[start + j] = first[j] if first[j] < never else -1
        if want_final:
            final[0, start:stop] = v[:n]
    fence()


@compiled
def neuron_forward_vectors(low, high, *arguments):
    """:func:`neuron_forward_loop` of Leaky, for lanes that are whole vectors.

    A loop around the loop: numba's cache holds it with all that it calls, optimised once more, and
    backwards a fifth faster.
    """
    _vectors(low, high, *arguments)
