"""Forward pass of a layer of neurons, once over all time steps.

``neuron_forward_vectors.py`` computes Leaky for neurons that fill whole vectors. The loops in this
file compute every other neuron, and the remaining neurons of a Leaky layer.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from .arguments import ForwardOutputs, Neuron
from .block import (
    BLOCK,
    all_fired,
    copy,
    given,
    integrate,
    kind_of,
    load_block,
    load_history,
    new_parameters,
    new_state,
    store_times,
)
from .compiling import FREE, RESET_NOW, SPIKED, compiled, helper, inlined_helper, part_of_caller


class _Work(NamedTuple):
    first: np.ndarray
    before: np.ndarray
    """The membrane one step before, if the crossing is requested."""
    unwanted: np.ndarray
    """Takes the spikes if they are not requested."""
    no_phase: np.ndarray
    peaks: np.ndarray
    """The step of the highest membrane up to the spike."""


@part_of_caller
def _write_state(t, start, n, state, out):
    if given(out.mem):
        copy(state.mem, n, out.mem[t, start : start + n])
    if given(out.syn):
        copy(state.syn, n, out.syn[t, start : start + n])
    if given(out.inh):
        copy(state.inh, n, out.inh[t, start : start + n])


@part_of_caller
def _fire(now, n, never, v, threshold, first, spikes):
    """Find the neurons that fire at step ``now``, and write the spikes as zeros and ones."""
    zero, one = v.dtype.type(0), v.dtype.type(1)
    for j in range(n):
        first[j] = now if (v[j] > threshold[j]) & (first[j] == never) else first[j]
        spikes[j] = one if first[j] == now else zero


@inlined_helper
def advance(now, n, v, threshold, last, refractory):
    """Update the last spikes of neurons with a refractory period, after the integration."""
    if refractory is not None:
        for j in range(n):
            fires = (v[j] > threshold[j]) & (now - last[j] > refractory)
            last[j] = now if fires else last[j]


@inlined_helper
def _fire_again(now, n, v, parameters, last, refractory, spikes, phase):
    """:func:`_fire` of neurons with a refractory period; also writes the phases."""
    if refractory is None:
        return
    zero, height = v.dtype.type(0), parameters.height
    if given(phase):
        for j in range(n):
            free = FREE if now - last[j] > refractory else 0
            phase[j] = free | (RESET_NOW if last[j] == now - 1 else 0)
    advance(now, n, v, parameters.threshold, last, refractory)
    if given(phase):
        for j in range(n):
            phase[j] |= SPIKED if last[j] == now else 0
    for j in range(n):
        spikes[j] = height[j] if last[j] == now else zero


@part_of_caller
def _write_crossing(now, start, n, before, v, first, crossing, peaks):
    """Keep the membrane around a spike, and before it the highest one."""
    above = crossing[1, start : start + n]
    for j in range(n):
        if first[j] == now:
            crossing[0, start + j] = before[j]
        if (first[j] >= now) & (v[j] > above[j]):
            above[j] = v[j]
            peaks[j] = now


@part_of_caller
def _finish(start, n, never, graded, kind, state, parameters, first, peaks, out):
    """The outputs that are complete after the last step."""
    store_times(first, start, n, never, out.times)
    if graded:  # only of neurons that spike once
        for j in range(n):
            if first[j] < never:
                out.spikes[first[j], start + j] = parameters.height[j]
    if given(out.final):
        copy(state.mem, n, out.final[0, start : start + n])
        if kind.synaptic:
            copy(state.syn, n, out.final[1, start : start + n])
        if kind.inhibitory:
            copy(state.inh, n, out.final[2, start : start + n])
    if given(out.crossing):
        copy(peaks, n, out.when[start : start + n])


@helper
def _block(start, n, current, neuron, out, graded, state, parameters, work):
    steps = current.shape[0]
    never = np.int32(steps)
    kind = kind_of(neuron)
    first = work.first
    once = neuron.refractory is None
    times_only = not (given(out.spikes) or given(out.mem) or given(out.syn) or given(out.final))
    load_block(neuron, start, n, parameters, state)
    load_history(neuron.last_0, neuron.refractory, start, n, never, first)
    if given(out.crossing):
        out.crossing[0, start : start + n] = 0
        out.crossing[1, start : start + n] = -np.inf
        work.peaks[:n] = 0
    for t in range(steps):
        now = np.int32(t)
        if given(out.crossing):
            copy(state.mem, n, work.before)
        integrate(current[t, start : start + n], t, n, kind, state, parameters, first)
        _write_state(t, start, n, state, out)
        spikes = out.spikes[t, start : start + n] if given(out.spikes) else work.unwanted[:n]
        if once:
            _fire(now, n, never, state.mem, parameters.threshold, first, spikes)
        else:
            phase = out.phase[t, start : start + n] if given(out.phase) else work.no_phase
            _fire_again(now, n, state.mem, parameters, first, neuron.refractory, spikes, phase)
        if given(out.crossing):
            _write_crossing(now, start, n, work.before, state.mem, first, out.crossing, work.peaks)
        if once and times_only and t % 8 == 7 and all_fired(first, n, never):
            break
    _finish(start, n, never, graded, kind, state, parameters, first, work.peaks, out)


@compiled
def neuron_forward_loop(low, high, current, neuron, out):
    neuron, out = Neuron(*neuron), ForwardOutputs(*out)
    dtype = current.dtype
    state, parameters = new_state(BLOCK, dtype), new_parameters(BLOCK, dtype)
    work = _Work(
        np.empty(BLOCK, np.int32),
        np.empty(BLOCK, dtype),
        np.empty(BLOCK, dtype),
        np.empty(0, np.uint8),
        np.empty(BLOCK, np.int32),
    )
    graded = given(out.spikes) and (neuron.graded_spikes_factor != dtype.type(1)).any()
    graded = graded and neuron.refractory is None
    for start in range(low, high, BLOCK):
        n = min(BLOCK, high - start)
        _block(start, n, current, neuron, out, graded, state, parameters, work)
