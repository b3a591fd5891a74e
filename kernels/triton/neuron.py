"""A layer of neurons: forward and backward, one launch each.

The forward kernel integrates

    V[t] = beta V[t-1] + I[t]        with the reset that follows the first spike

and finds the first step t* with V[t*] > threshold. (With a refractory period it finds every such
step that is outside of it, each followed by a reset.) The backward kernel computes

    lam[k] = s'(V[k] - threshold) dL/dc[k] + h[k] + beta lam[k+1]

where dL/dc follows from the gradient to the spikes by the gradient rule, s' is the derivative
of the surrogate, and h is the gradient to the membrane. docs/method.md derives both.

One pair of kernels computes all neurons. A parameter that a neuron lacks is None, and the
compiler removes its code. The membrane is driven by the current itself (Leaky, Lapicque, and
RLeaky, whose spike is fed back), by a synaptic current (Synaptic: alpha is given), or by the
difference of an excitatory and an inhibitory one (Alpha: gain is given too).

    block.py        parameters and initial states of a block of neurons; rows of a stream
    integration.py  one step forward in time
    adjoint.py      one step backward in time: rules, adjoints, sums for the parameters
    surrogate.py    the derivatives of the surrogates

Layout: time-major (T, M), M = batch * features, contiguous. A program owns ``BLOCK``
neighbouring neurons and walks the time axis once. Their state stays in registers, in ``STATE``
precision (float32, or float64 for float64 input). The program loads ``U`` time steps before it
integrates them, so that enough bytes are in flight to cover the latency of the memory.

Rows past either end of the time axis are clamped, not masked: such a step changes no state,
and stores again the values of the last real step. A mask in time on the loads would cost a trip
through shared memory for each of them.

Inside a kernel the spike time of a silent neuron is T, so that ``k <= first`` needs no special
case; outside it is -1. Offsets in time are int64 (T * M may exceed 2**31), offsets of lanes
int32. Launch with ``enable_fp_fusion=False``: fused multiply-adds would decide ties differently
from snnTorch.
"""

import triton
import triton.language as tl

from .adjoint import (
    add_direct_gradients,
    adjoint_alpha,
    adjoint_current,
    adjoint_synaptic,
    at_spike,
    load_phases,
    load_rows,
    mark_spikes,
    spike_gradient,
    store_gradient,
    sum_alpha,
    through_spikes,
)
from .block import (
    clamp_decay,
    end_once_all_fired,
    initial_state,
    last_spike,
    load_lanes,
    pass_gradient,
    store_row,
)
from .integration import fire_again, integrate, integrate_again, load_ahead, phase_of


@triton.jit
def neuron_forward_kernel(
    current,
    beta,
    threshold,
    graded_spikes_factor,
    mem_0,
    alpha,
    gain,
    feedback,
    syn_0,
    inh_0,
    last_0,
    spikes,
    mem,
    syn,
    inh,
    times,
    crossing,
    final,
    phase,
    refractory,
    T,
    M,
    P_BETA,
    P_THRESHOLD,
    P_GRADED_SPIKES_FACTOR,
    P_ALPHA,
    P_GAIN,
    P_FEEDBACK,
    CLAMP: tl.constexpr,
    RESET: tl.constexpr,
    STATE: tl.constexpr,
    BLOCK: tl.constexpr,
    U: tl.constexpr,
):
    """First spike of every neuron, and each output that is not None.

    current (T, M); beta, threshold, graded_spikes_factor, alpha, gain, feedback (P,),
    P = 1 or features; mem_0, syn_0, inh_0 (M,) or None. beta is the decay of inh where gain
    is given, else of the membrane. Outputs: spikes, mem, syn, inh (T, M), times (M,) int64,
    crossing (2, M) = V[t*-1], V[t*], final (1 to 3, M) = V, syn, inh at T-1.

    refractory is None for one spike, else the number of silent steps after each. Then first is the
    last spike in place of the first one; last_0 (M,) is the last one before the first step, and
    phase (T, M) is an output.
    """
    start = tl.program_id(0).to(tl.int64) * BLOCK
    lane = tl.arange(0, BLOCK)
    inside = lane < tl.minimum(M - start, BLOCK).to(tl.int32)
    decay = clamp_decay(load_lanes(beta, start, lane, P_BETA), CLAMP)
    theta = load_lanes(threshold, start, lane, P_THRESHOLD)
    if spikes is not None or feedback is not None:
        height = load_lanes(graded_spikes_factor, start, lane, P_GRADED_SPIKES_FACTOR)
    alpha_ = None
    gain_ = None
    feedback_ = None
    if alpha is not None:
        alpha_ = clamp_decay(load_lanes(alpha, start, lane, P_ALPHA))
    if gain is not None:
        gain_ = load_lanes(gain, start, lane, P_GAIN)
    if feedback is not None:
        feedback_ = load_lanes(feedback, start, lane, P_FEEDBACK) * height
    v = initial_state(mem_0, start, lane, inside, BLOCK, STATE)
    s = initial_state(syn_0, start, lane, inside, BLOCK, STATE)
    i = initial_state(inh_0, start, lane, inside, BLOCK, STATE)
    if refractory is None:
        first = tl.zeros((BLOCK,), tl.int32) + T
    else:
        first = last_spike(last_0, refractory, start, lane, inside, BLOCK)
    bits = tl.zeros((BLOCK,), tl.int32)
    if crossing is not None:
        below = tl.zeros((BLOCK,), STATE)
        above = tl.zeros((BLOCK,), STATE)

    # Where only the spike times are wanted, the loop ends once every neuron has fired.
    UNREAD: tl.constexpr = (spikes is None and mem is None) and (syn is None and final is None)
    TIMES_ONLY: tl.constexpr = UNREAD and refractory is None
    t0 = 0
    stop = T
    while t0 < stop:
        rows = load_ahead(current, (start, lane, inside), t0, T, M, U)
        for u in tl.static_range(U):
            t = t0 + u
            row = tl.minimum(t, T - 1)
            before = v
            x = rows[u].to(STATE)
            v, s_t, i_t = integrate(
                before, s, i, x, decay, theta, alpha_, gain_, feedback_, first == t - 1, RESET
            )
            v = tl.where(t < T, v, before)
            if alpha is not None:
                s = tl.where(t < T, s_t, s)
            if gain is not None:
                i = tl.where(t < T, i_t, i)
            if refractory is None:
                fire = (v > theta) & (first >= T)
            else:
                fire = fire_again(v, theta, first, t, T, refractory)
            last = first
            first = tl.where(fire, t, first)
            if crossing is not None:
                below = tl.where(fire, before, below)
                above = tl.where(fire, v, above)
            offset = start + row.to(tl.int64) * M
            if spikes is not None:
                spike = tl.where(first == row, height, 0.0)
                store_row(spikes + offset, lane, spike, inside)
            if mem is not None:
                store_row(mem + offset, lane, v, inside)
            if syn is not None:
                store_row(syn + offset, lane, s, inside)
            if inh is not None:
                store_row(inh + offset, lane, i, inside)
            if phase is not None:
                bits = tl.where(t < T, phase_of(last, first, t, refractory), bits)
                store_row(phase + offset, lane, bits, inside)
        t0 += U
        if TIMES_ONLY:
            stop = end_once_all_fired(first, inside, T)

    if refractory is None:
        first = tl.where(first < T, first, -1)
    store_row(times + start, lane, first, inside)
    if crossing is not None:
        store_row(crossing + start, lane, below, inside)
        store_row(crossing + M + start, lane, above, inside)
    if final is not None:
        store_row(final + start, lane, v, inside)
        if alpha is not None:
            store_row(final + M + start, lane, s, inside)
        if gain is not None:
            store_row(final + M + M + start, lane, i, inside)


@triton.jit
def neuron_backward_kernel(
    mem,
    current,
    syn,
    inh,
    phase,
    beta,
    threshold,
    graded_spikes_factor,
    mem_0,
    alpha,
    gain,
    feedback,
    syn_0,
    inh_0,
    last_0,
    times,
    grad_spikes,
    grad_mem,
    grad_syn,
    grad_inh,
    grad_at,
    grad_before,
    grad_current,
    grad_beta,
    grad_threshold,
    grad_mem_0,
    grad_alpha,
    grad_gain,
    grad_feedback,
    grad_syn_0,
    grad_inh_0,
    refractory,
    T,
    M,
    P_BETA,
    P_THRESHOLD,
    P_GRADED_SPIKES_FACTOR,
    P_ALPHA,
    P_GAIN,
    P_FEEDBACK,
    STEP_SPIKES,
    STEP_MEM,
    STEP_SYN,
    STEP_INH,
    a,
    b,
    a_rest,
    b_rest,
    CLAMP: tl.constexpr,
    RULE: tl.constexpr,
    SURROGATE: tl.constexpr,
    RESET: tl.constexpr,
    STATE: tl.constexpr,
    BLOCK: tl.constexpr,
    U: tl.constexpr,
):
    """The reverse scan lam[k] = s'(u[k]) dL/dc[k] + h[k] + beta lam[k+1], for every rule.

    lam is the gradient to the membrane. It is also the gradient to the current (T, M) of a
    neuron without synaptic currents. Their adjoints follow from lam: for Synaptic
    lam_s[k] = lam[k] + alpha lam_s[k+1]; for Alpha, whose membrane carries nothing over (and
    has no gradient to mem_0), lam_s[k] = gain lam[k] + alpha lam_s[k+1] and
    lam_i[k] = gain lam[k] + beta lam_i[k+1].

    mem (T, M) is the saved membrane. Where mem is None and current (T, M) is given, the kernel
    integrates the membrane again into grad_current, and the reverse scan overwrites it row by
    row. syn and inh (T, M) are needed for the gradient of alpha and, where gain is given, for
    those of beta and gain. grad_spikes, grad_mem, grad_syn and grad_inh advance by STEP_*
    elements a time step, 0 where the gradient is the same at every step. grad_at and
    grad_before (M,) are the gradients to V[t*] and V[t*-1]. The other grad_* (M,) are per lane:
    the caller sums them over the batch, because atomics would make training non-deterministic.
    grad_feedback is the gradient to the current that the spike feeds back. RULE is "none"
    where no gradient passes the spikes. Each output that is not wanted is None.

    With refractory, the spikes follow from phase (T, M), or from the membrane where phase is None.

    a and b, the parameters of the surrogate, arrive in float32; a_rest and b_rest are their
    rounding errors.
    """
    if STATE == tl.float64:  # noqa: SIM300
        a = tl.cast(a, STATE) + tl.cast(a_rest, STATE)
        b = tl.cast(b, STATE) + tl.cast(b_rest, STATE)
    start = tl.program_id(0).to(tl.int64) * BLOCK
    lane = tl.arange(0, BLOCK)
    inside = lane < tl.minimum(M - start, BLOCK).to(tl.int32)
    place = (start, lane, inside)
    raw = load_lanes(beta, start, lane, P_BETA)
    decay = clamp_decay(raw, CLAMP)
    theta = load_lanes(threshold, start, lane, P_THRESHOLD)
    if refractory is None:
        first = tl.load(times + start + lane, mask=inside, other=0).to(tl.int32)
        first = tl.where(first < 0, T, first)
    else:
        first = last_spike(last_0, refractory, start, lane, inside, BLOCK)
    at_start = first == -1  # a spike one step before the first, with refractory
    if grad_spikes is not None or feedback is not None:
        height = load_lanes(graded_spikes_factor, start, lane, P_GRADED_SPIKES_FACTOR)
    alpha_ = None
    gain_ = None
    weight = None
    feedback_ = None
    if alpha is not None:
        raw_alpha = load_lanes(alpha, start, lane, P_ALPHA)
        alpha_ = clamp_decay(raw_alpha)
    if gain is not None:
        gain_ = load_lanes(gain, start, lane, P_GAIN)
    if feedback is not None:
        weight = load_lanes(feedback, start, lane, P_FEEDBACK)
        feedback_ = weight * height
    v_0 = initial_state(mem_0, start, lane, inside, BLOCK, STATE)
    s_0 = initial_state(syn_0, start, lane, inside, BLOCK, STATE)
    i_0 = initial_state(inh_0, start, lane, inside, BLOCK, STATE)

    membrane = mem
    if mem is None and current is not None:
        membrane = grad_current
        integrate_again(
            current=current,
            into=grad_current,
            place=place,
            states=(v_0, s_0, i_0),
            beta=decay,
            threshold=theta,
            alpha=alpha_,
            gain=gain_,
            feedback=feedback_,
            first=first,
            refractory=refractory,
            T=T,
            M=M,
            RESET=RESET,
            U=U,
        )
        # Where 16 divides M, a thread reads back values that it stored. Elsewhere loads and stores
        # may divide the neurons among the threads in two ways: the barrier is needed.
        tl.debug_barrier()

    at = None
    before = None
    if grad_at is not None:
        at = tl.load(grad_at + start + lane, mask=inside, other=0.0).to(STATE)
        before = tl.load(grad_before + start + lane, mask=inside, other=0.0).to(STATE)

    THROUGH: tl.constexpr = (grad_spikes is not None or feedback is not None) and RULE != "none"
    lam = tl.zeros((BLOCK,), STATE)
    lam_s = tl.zeros((BLOCK,), STATE)
    lam_i = tl.zeros((BLOCK,), STATE)
    tail = tl.zeros((BLOCK,), STATE)
    ramp = tl.zeros((BLOCK,), STATE)
    d_beta = tl.zeros((BLOCK,), STATE)
    d_threshold = tl.zeros((BLOCK,), STATE)
    d_alpha = tl.zeros((BLOCK,), STATE)
    d_gain = tl.zeros((BLOCK,), STATE)
    d_feedback = tl.zeros((BLOCK,), STATE)
    k0 = T - 1
    while k0 >= 0:
        v_rows, s_rows, i_rows, g_rows, h_rows, q_rows, r_rows = load_rows(
            membrane, syn, inh, grad_spikes, grad_mem, grad_syn, grad_inh,
            place, k0, M, STEP_SPIKES, STEP_MEM, STEP_SYN, STEP_INH, U,
        )  # fmt: skip
        phases = load_phases(phase, place, k0, M, U)
        for u in tl.static_range(U):
            k = k0 - u
            row = tl.maximum(k, 0)
            # The states of the last step carry nothing on, also where they are infinite or NaN.
            carries = (k >= 0) & (k < T - 1)
            after = lam
            v = v_rows[u].to(STATE) if membrane is not None else None
            limit = first
            if refractory is not None:
                bits = phases[u] if phase is not None else None
                first, limit = mark_spikes(bits, v, theta, k, row, RESET)
            if RESET == "zero_before":
                after = tl.where(first == k, 0.0, after)
            entering = tl.zeros((BLOCK,), STATE)
            if gain is None:  # the membrane of Alpha carries nothing over
                if grad_beta is not None:
                    d_beta += tl.where(carries, after * v, 0.0)
                if RESET == "subtract" and grad_threshold is not None:
                    d_threshold -= at_spike(first, row, k, after)
                entering = decay * after
            if THROUGH:
                g = g_rows[u].to(STATE) if grad_spikes is not None else None
                g = spike_gradient(g, after, weight, height)
                through, tail, ramp = through_spikes(
                    g, tail, ramp, v, theta, limit, row, a, b, RULE, SURROGATE
                )
                entering += through
                if grad_threshold is not None:
                    d_threshold -= tl.where(k >= 0, through, 0.0)
            if grad_feedback is not None:
                d_feedback += at_spike(first, row, k, after)
            h = h_rows[u].to(STATE) if grad_mem is not None else None
            entering = add_direct_gradients(entering, h, at, before, first, row)
            if RESET == "zero_after":
                entering = tl.where(first == k - 1, 0.0, entering)
            if alpha is not None:
                s = s_rows[u].to(STATE) if syn is not None else None
                if grad_alpha is not None:
                    d_alpha += tl.where(carries, lam_s * s, 0.0)
                q = q_rows[u].to(STATE) if grad_syn is not None else None
                new_s = adjoint_synaptic(lam_s, q, alpha_)
                if gain is None:
                    new_s += entering
                else:
                    i = i_rows[u].to(STATE) if inh is not None else None
                    d_beta, d_gain = sum_alpha(
                        d_beta, d_gain, after, lam_i, s, i, alpha_, decay, grad_beta, grad_gain,
                        carries,
                    )  # fmt: skip
                    if RESET == "subtract" and grad_threshold is not None:
                        d_threshold -= at_spike(first, k - 1, k, new_s)
                    r = r_rows[u].to(STATE) if grad_inh is not None else None
                    new_s, new_i = adjoint_alpha(
                        new_s, lam_i, entering, after, r, decay, gain_, first, k, RESET
                    )
                    lam_i = tl.where(k >= 0, new_i, lam_i)
                lam_s = tl.where(k >= 0, new_s, lam_s)
            lam = tl.where(k >= 0, entering, lam)
            if grad_current is not None:
                to_current = adjoint_current(lam, lam_s, lam_i, alpha, gain)
                store_row(grad_current + start + row.to(tl.int64) * M, lane, to_current, inside)
        k0 -= U

    if refractory is not None:
        if RESET == "subtract":
            d_threshold -= tl.where(at_start, lam, 0.0)
        if RESET == "zero_before":
            lam = tl.where(at_start, 0.0, lam)
    if gain is None:
        d_beta += lam * v_0
    else:
        d_beta += lam_i * i_0
        d_gain += lam * (alpha_ * s_0 + decay * i_0)
    store_gradient(grad_beta, place, pass_gradient(raw, d_beta, CLAMP))
    store_gradient(grad_threshold, place, d_threshold)
    store_gradient(grad_mem_0, place, decay * lam)
    if alpha is not None:
        d_alpha = pass_gradient(raw_alpha, d_alpha + lam_s * s_0)
        store_gradient(grad_alpha, place, d_alpha)
        store_gradient(grad_syn_0, place, alpha_ * lam_s)
    if gain is not None:
        store_gradient(grad_gain, place, d_gain)
        store_gradient(grad_inh_0, place, decay * lam_i)
    store_gradient(grad_feedback, place, d_feedback)
