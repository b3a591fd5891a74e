"""Backward pass of a layer of neurons in explicit vectors; see ``neuron_forward.py``.

The parts are those of ``backends/torch/_scan.py``.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from .arguments import InputGradients, Neuron, OutputGradients, Saved, SpikeGradient
from .block import (
    BLOCK,
    STEPS,
    State,
    copy,
    fill,
    first_step,
    given,
    kind_of,
    load_block,
    load_history,
    load_times,
    new_parameters,
    new_state,
    past_the_cache,
    row_of,
    write_vector,
)
from .compiling import (
    FREE,
    MASKED,
    NO_RULE,
    PRE_SPIKE,
    RESET_NOW,
    SPIKED,
    STRAIGHT_THROUGH,
    SUBTRACT,
    ZERO_AFTER,
    ZERO_BEFORE,
    compiled,
    inlined_helper,
    part_of_caller,
)
from .integration import integrate, lanes_at
from .simd import LANES, any_lane, fence, full_like, load, prefetch, store, where
from .surrogate import ATAN, surrogate_slope

_KEPT = 1 << 16  # membranes that stay in the second-level cache


class _Scan(NamedTuple):
    """The state of the reverse scan over one block."""

    first: np.ndarray
    adjoint: State
    """The gradients to the membrane and to the synaptic currents, one step later."""
    tail: np.ndarray
    ramp: np.ndarray
    d_beta: np.ndarray
    d_threshold: np.ndarray
    d_alpha: np.ndarray
    d_gain: np.ndarray
    d_feedback: np.ndarray


class _Path(NamedTuple):
    """The inputs that are read and the outputs that are written."""

    closes: bool
    """Whether no gradient enters after the spike. The loop then reads nothing there."""
    rule: int
    surrogate: int
    recompute: bool
    """Whether the membranes are in work space, integrated again."""
    has_spikes: bool
    has_mem: bool
    has_syn: bool
    has_inh: bool
    has_crossing: bool
    want_current: bool
    want_beta: bool
    want_threshold: bool
    want_alpha: bool
    want_gain: bool


class _Marks(NamedTuple):
    """Masks of one step of one vector."""

    free: object
    """A gradient passes the spikes."""
    spiked: object
    resets: object
    """The neuron spiked one step before."""


@inlined_helper
def _rows_again(
    count, early, start, n, current, membranes, state, first, parameters, kind, closes
):  # fmt: skip
    """The membrane at ``count`` steps of a block from ``early`` on, into work space."""
    ahead = min(early + count, current.shape[0] - count)
    for j in range(0, n, LANES):
        at = load(first, j)
        if closes and not any_lane(at >= early):
            continue
        neuron = start + j
        lanes = lanes_at(parameters, j)
        mem, syn, inh = load(state.mem, j), load(state.syn, j), load(state.inh, j)
        for k in range(count):
            t = early + k
            prefetch(current, (ahead + k, neuron))
            x = load(current, (t, neuron))
            mem, syn, inh = integrate(x, at == t - 1, mem, syn, inh, lanes, kind)
            store(membranes, (t, j), mem)
            if not kind.once:
                fires = (mem > lanes.threshold) & (at < t - kind.silent)
                at = where(fires, t, at)
        store(state.mem, j, mem)
        if kind.synaptic:
            store(state.syn, j, syn)
        if kind.inhibitory:
            store(state.inh, j, inh)
        if not kind.once:
            store(first, j, at)


@part_of_caller
def _marks(t, at, neuron, mem, threshold, phase, kind):
    """The masks of step ``t`` of neurons whose only spike is ``at``, or that have a phase.

    Without a refractory period the membrane says which neurons spike.
    """
    if kind.once:
        return _Marks(t <= at, at == t, at == t - 1)
    if given(phase):
        row = load(phase, (t, neuron))
        return _Marks((row & FREE) > 0, (row & SPIKED) > 0, (row & RESET_NOW) > 0)
    spiked = mem > threshold
    return _Marks(at >= at, spiked, at > at)  # always, and never


@part_of_caller
def _gated(t, g, j, marks, rule, at, scan):
    """The gradient g to the spikes at step ``t``, as the rule lets it pass."""
    if rule == MASKED:
        return where(marks.free, g, 0.0)
    total = load(scan.tail, j) + (where(t < at, g, 0.0) if rule == PRE_SPIKE else g)
    store(scan.tail, j, total)
    ramp = load(scan.ramp, j) + total
    store(scan.ramp, j, ramp)
    return ramp


@inlined_helper
def _add(array, j, value):
    store(array, j, load(array, j) + value)


@part_of_caller
def _through_membrane(t, after, mem, lam_i, j, neuron, marks, saved, path, lanes, kind, scan):
    """The gradient to the membrane at ``t`` from step t+1, and those of the parameters there.

    The states of the last step carry nothing on, also where they are infinite or NaN.
    """
    carries = t < saved.num_steps - 1
    if kind.inhibitory:  # the membrane of Alpha does not depend on the step before
        if path.want_beta and carries:
            _add(scan.d_beta, j, lam_i * load(saved.inh, (t, neuron)))
        if path.want_gain and carries:
            # The gain multiplies this sum at t+1. The input current cancels there.
            both = lanes.alpha * load(saved.syn, (t, neuron))
            both = both + lanes.decay * load(saved.inh, (t, neuron))
            _add(scan.d_gain, j, after * both)
        return full_like(after, 0.0)
    if path.want_threshold and kind.reset == SUBTRACT:
        _add(scan.d_threshold, j, 0.0 - where(marks.spiked, after, 0.0))
    carried = where(marks.spiked, 0.0, after) if kind.reset == ZERO_BEFORE else after
    if path.want_beta and carries:
        _add(scan.d_beta, j, carried * mem)
    return lanes.decay * carried


@part_of_caller
def _through_spikes(
    t, after, mem, at, j, neuron, ahead, marks, grads, path, slope, lanes, kind, scan
):
    """The gradient to the membrane at ``t`` through the spikes and their feedback."""
    if path.has_spikes:
        rows = grads.grad_spikes
        prefetch(rows, (row_of(rows, ahead), neuron))
        g = load(rows, (row_of(rows, t), neuron))
    else:
        g = full_like(after, 0.0)
    if kind.feedback:
        g = g + lanes.feedback * after  # the height follows below, for both
    g = _gated(t, g, j, marks, path.rule, at, scan)
    derivative = surrogate_slope(mem - lanes.threshold, path.surrogate, slope[0], slope[1])
    direct = derivative * (g * lanes.height)
    if path.want_threshold:
        _add(scan.d_threshold, j, 0.0 - direct)
    return direct


@part_of_caller
def _through_synapses(t, row, after, lam_s, lam_i, j, neuron, marks, saved, grads, path, lanes,
                      kind, scan):  # fmt: skip
    """The gradients to the synaptic currents at ``t``."""
    if path.want_alpha and t < saved.num_steps - 1:
        _add(scan.d_alpha, j, lam_s * load(saved.syn, (t, neuron)))
    lam_s = lanes.alpha * lam_s
    if path.has_syn:
        lam_s = lam_s + load(grads.grad_syn, (row_of(grads.grad_syn, t), neuron))
    if not kind.inhibitory:
        return lam_s + row, lam_i
    lam_i = lanes.decay * lam_i
    if path.has_inh:
        lam_i = lam_i + load(grads.grad_inh, (row_of(grads.grad_inh, t), neuron))
    if kind.reset == SUBTRACT:
        lam_i = where(marks.resets, 0.0, lam_i + where(marks.spiked, after, 0.0))
        if path.want_threshold:
            _add(scan.d_threshold, j, 0.0 - where(marks.resets, lam_s, 0.0))
    shared = lanes.gain * row
    lam_s, lam_i = lam_s + shared, lam_i + shared
    if kind.reset == ZERO_AFTER:
        lam_s = where(marks.resets, 0.0, lam_s)
        lam_i = where(marks.resets, 0.0, lam_i)
    return lam_s, lam_i


@inlined_helper
def _rows_back(
    count, early, start, n, membranes, saved, grads, grad_current, parameters, scan, kind, slope,
    streams, path,
):  # fmt: skip
    """``count`` steps of a block backwards down to ``early``."""
    behind = max(early - count, 0)
    for j in range(0, n, LANES):
        neuron = start + j
        at = load(scan.first, j)
        if path.closes and not any_lane(at >= early):
            if path.want_current:
                for k in range(count):
                    write_vector(grad_current, (early + k, neuron), 0.0, streams)
            continue
        lanes = lanes_at(parameters, j)
        after = load(scan.adjoint.mem, j)
        lam_s, lam_i = load(scan.adjoint.syn, j), load(scan.adjoint.inh, j)
        for k in range(count - 1, -1, -1):
            t = early + k
            mem = after
            reads = path.rule != NO_RULE or path.want_beta or not kind.once
            if reads and path.recompute:
                mem = load(membranes, (t, j))
            elif reads:
                mem = load(saved.mem, (t, neuron))
            marks = _marks(t, at, neuron, mem, lanes.threshold, saved.phase, kind)
            row = _through_membrane(
                t, after, mem, lam_i, j, neuron, marks, saved, path, lanes, kind, scan
            )
            if path.rule != NO_RULE:
                row = row + _through_spikes(
                    t, after, mem, at, j, neuron, behind + k, marks, grads, path, slope, lanes,
                    kind, scan,
                )  # fmt: skip
            if path.has_mem:
                row = row + load(grads.grad_mem, (row_of(grads.grad_mem, t), neuron))
            if path.has_crossing:
                row = row + where(marks.spiked, load(grads.grad_at, neuron), 0.0)
                row = row + where(at == t + 1, load(grads.grad_before, neuron), 0.0)
            if kind.feedback:
                spent = load(scan.d_feedback, j)
                store(scan.d_feedback, j, where(marks.spiked, after, spent))
            if kind.reset == ZERO_AFTER:
                row = where(marks.resets, 0.0, row)
            into_current = row
            if kind.synaptic:
                lam_s, lam_i = _through_synapses(
                    t, row, after, lam_s, lam_i, j, neuron, marks, saved, grads, path, lanes,
                    kind, scan,
                )  # fmt: skip
                into_current = lam_s - lam_i if kind.inhibitory else lam_s
            if path.want_current:
                write_vector(grad_current, (t, neuron), into_current, streams)
            after = row
        store(scan.adjoint.mem, j, after)
        if kind.synaptic:
            store(scan.adjoint.syn, j, lam_s)
        if kind.inhibitory:
            store(scan.adjoint.inh, j, lam_i)


@part_of_caller
def _clear(scan, n):
    zero = scan.tail.dtype.type(0)
    fill(scan.adjoint.mem, n, zero)
    fill(scan.adjoint.syn, n, zero)
    fill(scan.adjoint.inh, n, zero)
    fill(scan.tail, n, zero)
    fill(scan.ramp, n, zero)
    fill(scan.d_beta, n, zero)
    fill(scan.d_threshold, n, zero)
    fill(scan.d_alpha, n, zero)
    fill(scan.d_gain, n, zero)
    fill(scan.d_feedback, n, zero)


@part_of_caller
def _finish(start, n, into, initial, parameters, scan, kind):
    """The gradients to parameters and to the states before the first step."""
    zero = scan.tail.dtype.type(0)
    lam, lam_s, lam_i = scan.adjoint
    decay, alpha, d_threshold = parameters.decay, parameters.alpha, scan.d_threshold
    if not kind.once:  # a spike one step before the first
        for j in range(n):
            if scan.first[j] == -1:
                if kind.reset == SUBTRACT:
                    d_threshold[j] -= lam[j]
                if kind.reset == ZERO_BEFORE:
                    lam[j] = zero
    if given(into.beta):
        for j in range(n):
            rest = lam_i[j] * initial.inh[j] if kind.inhibitory else lam[j] * initial.mem[j]
            total = scan.d_beta[j] + rest
            into.beta[start + j] = total if parameters.decay_passes[j] else zero
    if given(into.threshold):
        copy(d_threshold, n, into.threshold[start : start + n])
    if given(into.alpha):
        for j in range(n):
            total = scan.d_alpha[j] + lam_s[j] * initial.syn[j]
            into.alpha[start + j] = total if parameters.alpha_passes[j] else zero
    if given(into.gain):
        for j in range(n):
            both = alpha[j] * initial.syn[j] + decay[j] * initial.inh[j]
            into.gain[start + j] = scan.d_gain[j] + lam[j] * both
    if given(into.feedback):
        copy(scan.d_feedback, n, into.feedback[start : start + n])
    if given(into.mem_0):
        for j in range(n):
            into.mem_0[start + j] = zero if kind.inhibitory else decay[j] * lam[j]
    if given(into.syn_0):
        for j in range(n):
            into.syn_0[start + j] = alpha[j] * lam_s[j]
    if given(into.inh_0):
        for j in range(n):
            into.inh_0[start + j] = decay[j] * lam_i[j]


@part_of_caller
def _path_of(saved, grads, into, spike_gradient, kind):
    has_spikes = given(grads.grad_spikes)
    rule = spike_gradient.rule if has_spikes or kind.feedback else NO_RULE
    has_states = given(grads.grad_mem) or given(grads.grad_syn) or given(grads.grad_inh)
    return _Path(
        kind.once and not has_states and rule != STRAIGHT_THROUGH,
        rule,
        spike_gradient.surrogate,
        given(saved.current),
        has_spikes,
        given(grads.grad_mem),
        given(grads.grad_syn),
        given(grads.grad_inh),
        given(grads.grad_at),
        given(into.current),
        given(into.beta),
        given(into.threshold),
        given(into.alpha),
        given(into.gain),
    )


@part_of_caller
def _usual_path(recompute, once):
    """The default surrogate, and a gradient from the spikes to the current only."""
    return _Path(
        once, MASKED, ATAN, recompute, True,
        False, False, False, False, True, False, False, False, False,
    )  # fmt: skip


@part_of_caller
def _is_usual(path):
    states = path.has_mem or path.has_syn or path.has_inh or path.has_crossing
    wanted = path.want_beta or path.want_threshold or path.want_alpha or path.want_gain
    given_all = path.has_spikes and path.want_current
    return path.surrogate == ATAN and path.rule == MASKED and given_all and not (states or wanted)


@compiled
def _layer(low, high, saved, neuron, times, grads, into, spike_gradient):
    dtype = neuron.beta.dtype
    steps = saved.num_steps
    kind = kind_of(neuron)
    path = _path_of(saved, grads, into, spike_gradient, kind)
    usual = _is_usual(path)
    streams = past_the_cache(into.current, low)
    tiles = steps // STEPS + steps % STEPS
    size = BLOCK
    if path.recompute:
        size = max(LANES, min(BLOCK, _KEPT // steps // LANES * LANES))
    initial, state, parameters = (
        new_state(size, dtype),
        new_state(size, dtype),
        new_parameters(size, dtype),
    )
    scan = _Scan(
        np.empty(size, np.int32),
        new_state(size, dtype),
        np.empty(size, dtype),
        np.empty(size, dtype),
        np.empty(size, dtype),
        np.empty(size, dtype),
        np.empty(size, dtype),
        np.empty(size, dtype),
        np.empty(size, dtype),
    )
    membranes = np.empty((steps if path.recompute else 0, size), dtype)
    for start in range(low, high, size):
        n = min(size, high - start)
        load_block(neuron, start, n, parameters, initial)
        last_0 = neuron.last_0, neuron.refractory, start, n, np.int32(steps), scan.first
        if kind.once:
            load_times(times, start, n, steps, scan.first)
        else:
            load_history(*last_0)
        _clear(scan, n)
        if path.recompute:
            copy(initial.mem, n, state.mem)
            copy(initial.syn, n, state.syn)
            copy(initial.inh, n, state.inh)
            again = start, n, saved.current, membranes, state, scan.first, parameters, kind
            for tile in range(tiles):
                early = first_step(tile, steps)
                if tile < steps // STEPS:
                    _rows_again(STEPS, early, *again, path.closes)
                else:
                    _rows_again(1, early, *again, path.closes)
        slope = spike_gradient.a, spike_gradient.b
        block = start, n, membranes, saved, grads, into.current, parameters, scan, kind, slope
        for tile in range(tiles - 1, -1, -1):
            early = first_step(tile, steps)
            # A separate call for the default surrogate: a fifth faster.
            if tile < steps // STEPS and usual:
                _rows_back(STEPS, early, *block, streams, _usual_path(path.recompute, kind.once))
            elif tile < steps // STEPS:
                _rows_back(STEPS, early, *block, streams, path)
            else:
                _rows_back(1, early, *block, streams, path)
        if not kind.once:
            load_history(*last_0)
        _finish(start, n, into, initial, parameters, scan, kind)
    fence()


@compiled
def neuron_backward_loop(low, high, saved, neuron, times, grads, into, spike_gradient):
    """Gradients of the neurons from ``low`` to ``high``, whole vectors of neurons.

    This wrapper makes numba cache the loop together with its callees, and LLVM optimize them once
    more. The backward pass becomes a fifth faster.
    """
    _layer(
        low,
        high,
        Saved(*saved),
        Neuron(*neuron),
        times,
        OutputGradients(*grads),
        InputGradients(*into),
        SpikeGradient(*spike_gradient),
    )
