"""Backward pass of a layer of neurons, once over all time steps; see ``neuron_forward.py``.

The parts are those of ``backends/torch/_scan.py``.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from .arguments import InputGradients, Neuron, OutputGradients, Saved, SpikeGradient
from .block import (
    BLOCK,
    copy,
    given,
    integrate,
    kind_of,
    load_block,
    load_history,
    load_times,
    new_parameters,
    new_state,
    reset_steps,
    row_of,
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
    compiled,
    helper,
    part_of_caller,
)
from .neuron_forward import advance
from .simd import LANES, load, store
from .surrogate import surrogate_slope


class _Scan(NamedTuple):
    """The state of the reverse scan over one block."""

    lam: np.ndarray
    """The adjoint of the membrane, in rows: those of the gradient of the current, or two."""
    first: np.ndarray
    limit: np.ndarray
    """The last step at which a gradient passes the spikes."""
    zeros: np.ndarray
    mem: np.ndarray
    """A copy of the membrane: its vectors may read past the last neuron."""
    slope: np.ndarray
    total: np.ndarray
    tail: np.ndarray
    ramp: np.ndarray
    lam_s: np.ndarray
    lam_i: np.ndarray
    d_beta: np.ndarray
    d_threshold: np.ndarray
    d_alpha: np.ndarray
    d_gain: np.ndarray


@part_of_caller
def _clear(scan, n):
    zero = scan.slope.dtype.type(0)
    for j in range(n):
        scan.tail[j], scan.ramp[j], scan.lam_s[j], scan.lam_i[j] = zero, zero, zero, zero
    for j in range(n):
        scan.d_beta[j], scan.d_threshold[j], scan.d_alpha[j], scan.d_gain[j] = (
            zero,
            zero,
            zero,
            zero,
        )


@part_of_caller
def _integrate_again(
    start, n, current, membranes, kind, initial, state, parameters, first, refractory
):
    """The membrane of every step, into the rows that its gradient will overwrite."""
    copy(initial.mem, n, state.mem)
    copy(initial.syn, n, state.syn)
    copy(initial.inh, n, state.inh)
    for t in range(current.shape[0]):
        integrate(current[t, start : start + n], t, n, kind, state, parameters, first)
        copy(state.mem, n, membranes[t, start : start + n])
        advance(np.int32(t), n, state.mem, parameters.threshold, first, refractory)


@part_of_caller
def _mark_spikes(k, n, start, mem, phase, reset, threshold, scan):
    """The neurons that spike at step ``k``, in the terms of a neuron that spikes once.

    The rest of the step then computes as for one spike. A reset after the integration separates the
    step from the spike before it, and all other resets the spike from the step after it.
    """
    never, now = np.int32(-2), np.int32(k)
    first, limit = scan.first, scan.limit
    if given(phase):
        row = phase[k, start : start + n]
        for j in range(n):
            limit[j] = now if row[j] & FREE else never
        if reset == ZERO_AFTER:
            for j in range(n):
                first[j] = now - np.int32(1) if row[j] & RESET_NOW else never
        else:
            for j in range(n):
                first[j] = now if row[j] & SPIKED else never
    else:
        for j in range(n):
            limit[j] = now
            first[j] = now if mem[j] > threshold[j] else never


@part_of_caller
def _carried_parameters(k, n, after, mem, want_beta, want_threshold, kind, scan):
    """Gradients of beta and of the threshold from the step k+1 of a membrane that leaks."""
    zero = after.dtype.type(0)
    subtract, zeroed = reset_steps(kind.reset, k + 1)
    first, d_beta, d_threshold = scan.first, scan.d_beta, scan.d_threshold
    if want_threshold and kind.reset == SUBTRACT:
        for j in range(n):
            d_threshold[j] -= after[j] if first[j] == subtract else zero
    if want_beta:
        for j in range(n):
            d_beta[j] += (zero if first[j] == zeroed else after[j]) * mem[j]


@part_of_caller
def _accumulate(now, n, g, rule, scan):
    """The doubly cumulated gradient of the rules that have it, into ``scan.ramp``."""
    zero = g.dtype.type(0)
    first, tail, ramp = scan.first, scan.tail, scan.ramp
    if rule == PRE_SPIKE:
        for j in range(n):
            tail[j] += g[j] if now < first[j] else zero
            ramp[j] += tail[j]
    else:
        for j in range(n):
            tail[j] += g[j]
            ramp[j] += tail[j]


@part_of_caller
def _through_spikes(k, n, start, after, mem, grad_spikes, spike_gradient, kind, parameters, scan):
    """The gradient that reaches V[k] through the spikes and their feedback, into ``scan.slope``."""
    rule, surrogate, a, b = spike_gradient
    zero = after.dtype.type(0)
    now = np.int32(k)
    weight, height, threshold = parameters.feedback, parameters.height, parameters.threshold
    slope, total, limit = scan.slope, scan.total, scan.limit
    g = scan.zeros[:n]
    if given(grad_spikes):
        g = grad_spikes[row_of(grad_spikes, k), start : start + n]
    if kind.feedback:
        for j in range(n):
            total[j] = g[j] + weight[j] * after[j]  # the height follows below, for both
        g = total[:n]
    if rule in (PRE_SPIKE, STRAIGHT_THROUGH):
        _accumulate(now, n, g, rule, scan)
        g = scan.ramp[:n]
    copy(mem, n, scan.mem)
    for j in range(0, n, LANES):
        distance = load(scan.mem, j) - load(threshold, j)
        store(slope, j, surrogate_slope(distance, surrogate, a, b))
    for j in range(n):
        slope[j] *= g[j] * height[j] if now <= limit[j] else zero


@part_of_caller
def _adjoint_membrane(k, n, start, after, row, through, grads, into, kind, parameters, scan):
    """lam[k] of the membrane from lam[k+1] = ``after``."""
    zero = after.dtype.type(0)
    now = np.int32(k)
    _, zeroed = reset_steps(kind.reset, k + 1)
    decay, first, slope = parameters.decay, scan.first, scan.slope
    if through and given(into.threshold):
        for j in range(n):
            scan.d_threshold[j] -= slope[j]
    if kind.inhibitory:  # the membrane of Alpha does not depend on the step before
        for j in range(n):
            row[j] = slope[j] if through else zero
    elif through:
        for j in range(n):
            row[j] = decay[j] * (zero if first[j] == zeroed else after[j]) + slope[j]
    else:
        for j in range(n):
            row[j] = decay[j] * (zero if first[j] == zeroed else after[j])
    if given(grads.grad_mem):
        h = grads.grad_mem[row_of(grads.grad_mem, k), start : start + n]
        for j in range(n):
            row[j] += h[j]
    if given(grads.grad_at):
        for j in range(n):
            row[j] += grads.grad_at[start + j] if first[j] == now else zero
            row[j] += grads.grad_before[start + j] if first[j] == now + np.int32(1) else zero
    if given(into.feedback):
        for j in range(n):
            if first[j] == now:
                into.feedback[start + j] = after[j]
    if kind.reset == ZERO_AFTER:
        for j in range(n):
            row[j] = zero if first[j] == now - np.int32(1) else row[j]


@part_of_caller
def _adjoint_synaptic(k, n, start, syn, grad_syn, want_alpha, parameters, scan):
    """The adjoint of the synaptic current, without what the membrane at k adds to it."""
    alpha, lam_s, d_alpha = parameters.alpha, scan.lam_s, scan.d_alpha
    if want_alpha:
        for j in range(n):
            d_alpha[j] += lam_s[j] * syn[k, start + j]
    for j in range(n):
        lam_s[j] *= alpha[j]
    if given(grad_syn):
        q = grad_syn[row_of(grad_syn, k), start : start + n]
        for j in range(n):
            lam_s[j] += q[j]


@part_of_caller
def _parameters_of_alpha(k, n, start, after, saved, into, parameters, scan):
    """Gradients of beta and of the gain from step k+1."""
    alpha, decay, lam_i = parameters.alpha, parameters.decay, scan.lam_i
    d_beta, d_gain = scan.d_beta, scan.d_gain
    if given(into.beta):
        for j in range(n):
            d_beta[j] += lam_i[j] * saved.inh[k, start + j]
    if given(into.gain):
        # The gain multiplies this sum at k+1. The input current cancels there.
        for j in range(n):
            both = alpha[j] * saved.syn[k, start + j] + decay[j] * saved.inh[k, start + j]
            d_gain[j] += after[j] * both


@part_of_caller
def _adjoint_alpha(k, n, start, after, row, grad_inh, reset, parameters, scan):
    """The adjoints of both synaptic currents of Alpha."""
    zero = after.dtype.type(0)
    now, spike = np.int32(k), np.int32(k - 1)
    gain, decay = parameters.gain, parameters.decay
    first, lam_s, lam_i, d_threshold = scan.first, scan.lam_s, scan.lam_i, scan.d_threshold
    for j in range(n):
        lam_i[j] *= decay[j]
    if given(grad_inh):
        r = grad_inh[row_of(grad_inh, k), start : start + n]
        for j in range(n):
            lam_i[j] += r[j]
    if reset == SUBTRACT:
        for j in range(n):
            if first[j] == now:
                lam_i[j] += after[j]
            if first[j] == spike:
                d_threshold[j] -= lam_s[j]
                lam_i[j] = zero
    for j in range(n):
        lam_s[j] += gain[j] * row[j]
        lam_i[j] += gain[j] * row[j]
    if reset == ZERO_AFTER:
        for j in range(n):
            lam_s[j] = zero if first[j] == spike else lam_s[j]
            lam_i[j] = zero if first[j] == spike else lam_i[j]


@part_of_caller
def _finish(start, n, steps, after, into, kind, initial, parameters, scan, once):
    """The gradients to parameters and to the states before the first step."""
    zero = after.dtype.type(0)
    decay, alpha, lam_s, lam_i = parameters.decay, parameters.alpha, scan.lam_s, scan.lam_i
    if not once:  # a spike one step before the first
        subtract, zeroed = reset_steps(kind.reset, 0)
        carried = scan.slope[:n]
        for j in range(n):
            carried[j] = zero if scan.first[j] == zeroed else after[j]
            scan.d_threshold[j] -= after[j] if scan.first[j] == subtract else zero
        after = carried
    if given(into.beta):
        for j in range(n):
            rest = lam_i[j] * initial.inh[j] if kind.inhibitory else after[j] * initial.mem[j]
            into.beta[start + j] = scan.d_beta[j] + rest if parameters.decay_passes[j] else zero
    if given(into.threshold):
        copy(scan.d_threshold, n, into.threshold[start : start + n])
    if given(into.alpha):
        for j in range(n):
            total = scan.d_alpha[j] + lam_s[j] * initial.syn[j]
            into.alpha[start + j] = total if parameters.alpha_passes[j] else zero
    if given(into.gain):
        for j in range(n):
            both = alpha[j] * initial.syn[j] + decay[j] * initial.inh[j]
            into.gain[start + j] = scan.d_gain[j] + after[j] * both
    if given(into.feedback):
        for j in range(n):
            if scan.first[j] == steps:
                into.feedback[start + j] = zero
    if given(into.mem_0):
        for j in range(n):
            into.mem_0[start + j] = decay[j] * after[j]
    if given(into.syn_0):
        for j in range(n):
            into.syn_0[start + j] = alpha[j] * lam_s[j]
    if given(into.inh_0):
        for j in range(n):
            into.inh_0[start + j] = decay[j] * lam_i[j]


@helper
def _block(
    start, n, saved, neuron, times, grads, into, spike_gradient, initial, state, parameters, scan
):
    steps = saved.num_steps
    kind = kind_of(neuron)
    recompute, want_current = given(saved.current), given(into.current)
    through = spike_gradient.rule != NO_RULE and (given(grads.grad_spikes) or kind.feedback)
    source = into.current if recompute else saved.mem
    lam = scan.lam
    column = start if want_current and not kind.synaptic else 0
    load_block(neuron, start, n, parameters, initial)
    once = neuron.refractory is None
    last_0 = neuron.last_0, neuron.refractory, start, n, np.int32(steps)
    if once:
        load_times(times, start, n, steps, scan.first)
    else:
        load_history(*last_0, scan.first)
    if recompute:
        _integrate_again(
            start, n, saved.current, source, kind, initial, state, parameters, scan.first,
            neuron.refractory,
        )  # fmt: skip
    for j in range(n):
        scan.limit[j] = scan.first[j] if spike_gradient.rule == MASKED else steps
    _clear(scan, n)
    after = scan.zeros[:n]
    for k in range(steps - 1, -1, -1):
        row = lam[k % lam.shape[0], column : column + n]
        mem = source[k, start : start + n]
        if not once:
            _mark_spikes(k, n, start, mem, saved.phase, kind.reset, parameters.threshold, scan)
        # The states of the last step carry nothing on, also where they are infinite or NaN.
        carries = k < steps - 1
        if not kind.inhibitory:
            _carried_parameters(
                k, n, after, mem, carries and given(into.beta), given(into.threshold), kind, scan
            )
        if through:
            _through_spikes(
                k, n, start, after, mem, grads.grad_spikes, spike_gradient, kind, parameters, scan
            )
        _adjoint_membrane(k, n, start, after, row, through, grads, into, kind, parameters, scan)
        if kind.inhibitory and carries:
            _parameters_of_alpha(k, n, start, after, saved, into, parameters, scan)
        if kind.synaptic:
            _adjoint_synaptic(
                k, n, start, saved.syn, grads.grad_syn, carries and given(into.alpha), parameters,
                scan,
            )  # fmt: skip
            if kind.inhibitory:
                _adjoint_alpha(
                    k, n, start, after, row, grads.grad_inh, kind.reset, parameters, scan
                )
            else:
                for j in range(n):
                    scan.lam_s[j] += row[j]
            if want_current:
                for j in range(n):
                    lam_s = scan.lam_s[j]
                    into.current[k, start + j] = lam_s - scan.lam_i[j] if kind.inhibitory else lam_s
        after = row
    if not once:
        load_history(*last_0, scan.first)
    _finish(start, n, steps, after, into, kind, initial, parameters, scan, once)


@compiled
def neuron_backward_loop(low, high, saved, neuron, times, grads, into, spike_gradient):
    saved, neuron, grads = Saved(*saved), Neuron(*neuron), OutputGradients(*grads)
    into, spike_gradient = InputGradients(*into), SpikeGradient(*spike_gradient)
    dtype = neuron.beta.dtype
    initial, state = new_state(BLOCK, dtype), new_state(BLOCK, dtype)
    parameters = new_parameters(BLOCK, dtype)
    in_place = given(into.current) and not given(neuron.alpha)
    scan = _Scan(
        into.current if in_place else np.empty((2, BLOCK), dtype),
        np.empty(BLOCK, np.int32),
        np.empty(BLOCK, np.int32),
        np.zeros(BLOCK, dtype),
        np.empty(BLOCK, dtype),
        np.empty(BLOCK, dtype),
        np.empty(BLOCK, dtype),
        np.empty(BLOCK, dtype),
        np.empty(BLOCK, dtype),
        np.empty(BLOCK, dtype),
        np.empty(BLOCK, dtype),
        np.empty(BLOCK, dtype),
        np.empty(BLOCK, dtype),
        np.empty(BLOCK, dtype),
        np.empty(BLOCK, dtype),
    )
    for start in range(low, high, BLOCK):
        n = min(BLOCK, high - start)
        _block(
            start,
            n,
            saved,
            neuron,
            times,
            grads,
            into,
            spike_gradient,
            initial,
            state,
            parameters,
            scan,
        )
