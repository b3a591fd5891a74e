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
    turns.py        the rows of some steps, loaded one turn of the loop ahead
    surrogate.py    the derivatives of the surrogates

Layout: time-major (T, M), M = batch * features, contiguous. A program owns ``BLOCK``
neighboring neurons and walks the time axis once. Their state stays in registers, in ``STATE``
precision (float32, or float64 for float64 input). A turn of the loop over time is ``U`` steps. Its
rows are loaded during the turn before it, so that enough bytes are in flight to cover the latency
of the memory. The loop is compiled twice: for the first turn, whose first steps may not exist, and
for all others (``WHOLE``). Rows that do not exist are clamped, not masked: a mask in time on the
loads would cost a trip through shared memory for each of them.

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
    carried,
    load_first_rows,
    load_next_rows,
    mark_spikes,
    spike_gradient,
    store_gradient,
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
from .integration import integrate, integrate_again, phase_of
from .turns import first_turn, first_turn_back, load_first_turn, load_next_turn, whole_turns


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
    when,
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
    crossing (2, M) = V[t*-1], V[t*], with when (M,) int64 = t*; of a silent neuron 0, the maximum
    of V, and its step; final (1 to 3, M) = V, syn, inh at T-1.

    refractory is None for one spike, else the number of silent steps after each. Then first is the
    last spike in place of the first one; last_0 (M,) is the last one before the first step, and
    phase (T, M) is an output.
    """
    start = tl.program_id(0).to(tl.int64) * BLOCK
    lane = tl.arange(0, BLOCK)
    inside = lane < tl.minimum(M - start, BLOCK).to(tl.int32)
    place = (start, lane, inside)
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
    if crossing is not None:
        below = tl.zeros((BLOCK,), STATE)
        above = tl.full((BLOCK,), float("-inf"), STATE)
        peak = tl.zeros((BLOCK,), tl.int32)

    # Where only the spike times are wanted, the loop ends once every neuron has fired.
    UNREAD: tl.constexpr = (spikes is None and mem is None) and (syn is None and final is None)
    TIMES_ONLY: tl.constexpr = UNREAD and refractory is None
    t0 = first_turn(T, U)
    rows = load_first_turn(current + start, place, M, -t0, U)
    for WHOLE in tl.static_range(2):
        turns = whole_turns(T, U) if WHOLE else 1
        while turns > 0:
            ahead = load_next_turn(current, place, t0 + U, T, M, U)
            here = start + tl.maximum(t0, 0).to(tl.int64) * M
            for u in tl.static_range(U):
                t = t0 + u
                real = True if WHOLE else t >= 0
                if real:
                    before = v
                    x = rows[u].to(STATE)
                    v, s, i = integrate(
                        before,
                        s,
                        i,
                        x,
                        decay,
                        theta,
                        alpha_,
                        gain_,
                        feedback_,
                        first == t - 1,
                        RESET,
                    )
                    last = first
                    if refractory is None:
                        fire = (v > theta) & (first >= T)
                    else:
                        fire = (v > theta) & (t - first > refractory)
                    first = tl.where(fire, t, first)
                    if crossing is not None:
                        below = tl.where(fire, before, below)
                        kept = (v > above) & (first >= t)  # a spike is the highest step so far
                        above = tl.where(kept, v, above)
                        peak = tl.where(kept, t, peak)
                    if spikes is not None:
                        store_row(spikes + here, lane, tl.where(first == t, height, 0.0), inside)
                    if mem is not None:
                        store_row(mem + here, lane, v, inside)
                    if syn is not None:
                        store_row(syn + here, lane, s, inside)
                    if inh is not None:
                        store_row(inh + here, lane, i, inside)
                    if phase is not None:
                        store_row(phase + here, lane, phase_of(last, first, t, refractory), inside)
                    here += M
            t0 += U
            rows = ahead
            turns -= 1
            if TIMES_ONLY and WHOLE:
                turns = tl.minimum(turns, end_once_all_fired(first, inside, T))

    if refractory is None:
        first = tl.where(first < T, first, -1)
    store_row(times + start, lane, first, inside)
    if crossing is not None:
        store_row(crossing + start, lane, below, inside)
        store_row(crossing + M + start, lane, above, inside)
        store_row(when + start, lane, peak, inside)
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
    when,
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
    elements a time step, 0 where the gradient is the same at every step. grad_at and grad_before
    (M,) are gradients to V at the step when (M,), and at the step before it. The other grad_* (M,)
    are per lane: the caller sums them over the batch, because atomics would make training
    non-deterministic. grad_feedback is the gradient to the current that the spike feeds back. RULE
    is "none" where no gradient passes the spikes. Each output that is not wanted is None.

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
    step = None
    if grad_at is not None:
        step = tl.load(when + start + lane, mask=inside, other=-1).to(tl.int32)
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
    k0 = first_turn_back(T, U)
    rows = load_first_rows(
        membrane, syn, inh, phase, grad_spikes, grad_mem, grad_syn, grad_inh,
        place, T, M, STEP_SPIKES, STEP_MEM, STEP_SYN, STEP_INH, U,
    )  # fmt: skip
    for WHOLE in tl.static_range(2):
        turns = whole_turns(T, U) if WHOLE else 1
        while turns > 0:
            ahead = load_next_rows(
                membrane, syn, inh, phase, grad_spikes, grad_mem, grad_syn, grad_inh,
                place, k0 - U, M, STEP_SPIKES, STEP_MEM, STEP_SYN, STEP_INH, U,
            )  # fmt: skip
            v_rows, s_rows, i_rows, phases, g_rows, h_rows, q_rows, r_rows = rows
            here = start + tl.minimum(k0, T - 1).to(tl.int64) * M
            for u in tl.static_range(U):
                k = k0 - u
                real = True if WHOLE else k < T
                if real:
                    after = lam
                    v = v_rows[u].to(STATE) if membrane is not None else None
                    limit = first
                    if refractory is not None:
                        bits = phases[u] if phase is not None else None
                        first, limit = mark_spikes(bits, v, theta, k, RESET)
                    if RESET == "zero_before":
                        after = tl.where(first == k, 0.0, after)
                    entering = tl.zeros((BLOCK,), STATE)
                    if gain is None:  # the membrane of Alpha carries nothing over
                        if grad_beta is not None:
                            d_beta += carried(after * v, k, T, WHOLE)
                        if RESET == "subtract" and grad_threshold is not None:
                            d_threshold -= tl.where(first == k, after, 0.0)
                        entering = decay * after
                    if THROUGH:
                        g = g_rows[u].to(STATE) if grad_spikes is not None else None
                        g = spike_gradient(g, after, weight, height)
                        through, tail, ramp = through_spikes(
                            g, tail, ramp, v, theta, limit, k, a, b, RULE, SURROGATE
                        )
                        entering += through
                        if grad_threshold is not None:
                            d_threshold -= through
                    if grad_feedback is not None:
                        d_feedback += tl.where(first == k, after, 0.0)
                    h = h_rows[u].to(STATE) if grad_mem is not None else None
                    entering = add_direct_gradients(entering, h, at, before, step, k)
                    if RESET == "zero_after":
                        entering = tl.where(first == k - 1, 0.0, entering)
                    if alpha is not None:
                        s = s_rows[u].to(STATE) if syn is not None else None
                        if grad_alpha is not None:
                            d_alpha += carried(lam_s * s, k, T, WHOLE)
                        q = q_rows[u].to(STATE) if grad_syn is not None else None
                        new_s = adjoint_synaptic(lam_s, q, alpha_)
                        if gain is None:
                            lam_s = new_s + entering
                        else:
                            i = i_rows[u].to(STATE) if inh is not None else None
                            if grad_beta is not None:
                                d_beta += carried(lam_i * i, k, T, WHOLE)
                            if grad_gain is not None:
                                # The input current cancels at step k+1: the gain multiplies the
                                # sum of the carried states.
                                both = alpha_ * s + decay * i
                                d_gain += carried(after * both, k, T, WHOLE)
                            if RESET == "subtract" and grad_threshold is not None:
                                d_threshold -= tl.where(first == k - 1, new_s, 0.0)
                            r = r_rows[u].to(STATE) if grad_inh is not None else None
                            lam_s, lam_i = adjoint_alpha(
                                new_s, lam_i, entering, after, r, decay, gain_, first, k, RESET
                            )
                    lam = entering
                    if grad_current is not None:
                        to_current = adjoint_current(lam, lam_s, lam_i, alpha, gain)
                        store_row(grad_current + here, lane, to_current, inside)
                    here -= M
            k0 -= U
            rows = ahead
            turns -= 1

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
