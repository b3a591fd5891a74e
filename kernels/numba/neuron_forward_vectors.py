"""Forward pass of Leaky in explicit vectors, with the state in registers for a few steps.

Neurons spike once, or at every crossing of the threshold (``refractory`` is 0).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from .arguments import ForwardOutputs, Neuron
from .block import (
    BLOCK,
    STEPS,
    all_fired,
    copy,
    first_step,
    given,
    load_block,
    load_history,
    new_parameters,
    new_state,
    past_the_cache,
    store_times,
    write_vector,
)
from .compiling import SUBTRACT, ZERO_BEFORE, compiled, inlined_helper
from .simd import LANES, any_lane, fence, full_like, load, prefetch, store, where


class _Writes(NamedTuple):
    """How results are written; constant over a call."""

    spikes_past_the_cache: bool
    mem_past_the_cache: bool
    read_all: bool
    """Whether a result needs the current after the spike."""
    once: bool
    """Whether a neuron spikes once. The type of ``refractory`` determines it, so the compiler
    removes the other branch."""


@inlined_helper
def _rows(count, early, start, n, current, out, mem, first, peaks, parameters, reset, writes):
    """``count`` steps of a block from ``early`` on, each vector with its state in registers."""
    steps = current.shape[0]
    ahead = min(early + count, steps - count)
    for j in range(0, n, LANES):
        neuron = start + j
        at = load(first, j)
        if writes.once and not (writes.read_all or any_lane(at == steps)):
            if given(out.spikes):
                for k in range(count):
                    index = early + k, neuron
                    write_vector(out.spikes, index, 0.0, writes.spikes_past_the_cache)
            continue
        u, decay = load(mem, j), load(parameters.decay, j)
        threshold, height = load(parameters.threshold, j), load(parameters.height, j)
        # A neuron that has fired its only spike has an infinite threshold.
        level = where(at == steps, threshold, np.inf) if writes.once else threshold
        fall = threshold if reset == SUBTRACT else full_like(threshold, 0.0)
        fires = at == early - 1
        for k in range(count):
            t = early + k
            prefetch(current, (ahead + k, neuron))
            before = u
            held = where(fires, 0.0, u) if reset == ZERO_BEFORE else u
            u = decay * held + load(current, (t, neuron)) - where(fires, fall, 0.0)
            fires = u > level
            if writes.once:
                level = where(fires, np.inf, level)
            at = where(fires, t, at)
            if given(out.spikes):
                spikes = where(fires, height, 0.0)
                write_vector(out.spikes, (t, neuron), spikes, writes.spikes_past_the_cache)
            if given(out.mem):
                write_vector(out.mem, (t, neuron), u, writes.mem_past_the_cache)
            if given(out.crossing):
                below, above = load(out.crossing, (0, neuron)), load(out.crossing, (1, neuron))
                kept = (u > above) & (at >= t)  # a spike is the highest step so far, too
                store(out.crossing, (0, neuron), where(fires, before, below))
                store(out.crossing, (1, neuron), where(kept, u, above))
                store(peaks, j, where(kept, t, load(peaks, j)))
        store(mem, j, u)
        store(first, j, at)


@compiled
def _vectors(low, high, current, neuron, out):
    steps = current.shape[0]
    never = np.int32(steps)
    state, parameters = new_state(BLOCK, current.dtype), new_parameters(BLOCK, current.dtype)
    first = np.empty(BLOCK, np.int32)
    writes = _Writes(
        past_the_cache(out.spikes, low),
        past_the_cache(out.mem, low),
        given(out.mem) or given(out.final),
        neuron.refractory is None,
    )
    tiles = steps // STEPS + steps % STEPS
    peaks = np.empty(BLOCK, np.int32)
    for start in range(low, high, BLOCK):
        n = min(BLOCK, high - start)
        load_block(neuron, start, n, parameters, state)
        load_history(neuron.last_0, neuron.refractory, start, n, never, first)
        if given(out.crossing):
            out.crossing[0, start : start + n] = 0
            out.crossing[1, start : start + n] = -np.inf
            peaks[:n] = 0
        block = start, n, current, out, state.mem, first, peaks, parameters, neuron.reset, writes
        for tile in range(tiles):
            early = first_step(tile, steps)
            # Two calls, because numba compiles literal numbers in.
            if tile < steps // STEPS:
                _rows(STEPS, early, *block)
            else:
                _rows(1, early, *block)
            skips = writes.once and not (writes.read_all or given(out.spikes))
            if skips and all_fired(first, n, never):
                break
        store_times(first, start, n, never, out.times)
        if given(out.crossing):
            copy(peaks, n, out.when[start : start + n])
        if given(out.final):
            copy(state.mem, n, out.final[0, start : start + n])
    fence()


@compiled
def neuron_forward_vectors(low, high, current, neuron, out):
    """:func:`neuron_forward_loop` of Leaky, for neurons that fill whole vectors.

    This wrapper makes numba cache the loop together with its callees, and LLVM optimize them once
    more. The backward pass becomes a fifth faster.
    """
    _vectors(low, high, current, Neuron(*neuron), ForwardOutputs(*out))
