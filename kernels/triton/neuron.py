"""Single-spike integrate-and-fire layer: forward and backward, one launch each.

One pair of kernels for all neurons; what a neuron does not have is None, and compiled away.
The membrane is driven by the current itself (Leaky, Lapicque, and RLeaky, whose spike is fed
back), by the synaptic current that it jumps into (Synaptic: alpha is given), or is the
difference of an excitatory and an inhibitory one (Alpha: gain is given too).

Layout: time-major (T, M), M = batch * features, contiguous. A program owns ``BLOCK``
neighbouring neurons and walks the time axis once, with their state in registers in
``STATE`` precision (float32, or float64 for float64 input). It loads ``U`` time steps
ahead of integrating them, so that enough bytes are in flight to cover memory latency.

Rows past either end of the time axis are clamped, not masked: such a step recomputes
nothing and stores again what the last real step stored. A time mask on the loads would
cost a trip through shared memory each.

Inside a kernel a silent neuron's spike time is T, so that ``k <= first`` needs no special
case; -1 is for the outside. Offsets in time are int64 (T * M may pass 2**31), lane
offsets int32. Launch with ``enable_fp_fusion=False``: fused multiply-adds would decide
ties differently from snnTorch.
"""

import triton
import triton.language as tl

from .block import clamp_decay, initial_state, load_lanes, pass_gradient
from .surrogate import surrogate_slope


@triton.jit
def _integrate(v, s, i, x, beta, threshold, alpha, gain, feedback, reset, RESET: tl.constexpr):
    """V, syn, inh at t from t-1, with the one reset (and feedback) that follows the spike.

    reset: the spike was at t-1. The reset is "zero_before" the integration (Leaky), or "zero_after" it.
    """
    if alpha is None:
        if RESET == "zero_before":
            v = tl.where(reset, 0.0, v)
        v = beta * v + x
    elif gain is None:
        s = alpha * s + x
        v = beta * v + s
    else:
        held = i
        s = alpha * s + x
        i = beta * i - x
        v = gain * (s + i)
    if feedback is not None:
        v = tl.where(reset, v + feedback, v)
    if RESET == "subtract":
        if gain is None:
            v = tl.where(reset, v - threshold, v)
        else:  # as snnTorch's Alpha defines it
            v = tl.where(reset, v + held, v)
            s = tl.where(reset, s - threshold, s)
            i = tl.where(reset, 0.0, i)
    if RESET == "zero_after":
        v = tl.where(reset, 0.0, v)
        if gain is not None:
            s = tl.where(reset, 0.0, s)
            i = tl.where(reset, 0.0, i)
    return v, s, i


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
    spikes,
    mem,
    syn,
    inh,
    times,
    crossing,
    final,
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
    """First spike of every neuron, and whichever outputs are not None.

    current (T, M); beta, threshold, graded_spikes_factor, alpha, gain, feedback (P,),
    P = 1 or features; mem_0, syn_0, inh_0 (M,) or None. beta is the decay of inh where gain
    is given, else of the membrane. Outputs: spikes, mem, syn, inh (T, M), times (M,) int64,
    crossing (2, M) = V[t*-1], V[t*], final (1 to 3, M) = V, syn, inh at T-1.
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
    first = tl.zeros((BLOCK,), tl.int32) + T
    if crossing is not None:
        below = tl.zeros((BLOCK,), STATE)
        above = tl.zeros((BLOCK,), STATE)

    # Only the spike times are asked for: stop once every neuron has fired.
    TIMES_ONLY: tl.constexpr = (spikes is None and mem is None) and (syn is None and final is None)
    t0 = 0
    stop = T
    while t0 < stop:
        rows = ()
        for u in tl.static_range(U):
            row = tl.minimum(t0 + u, T - 1).to(tl.int64)
            rows = rows + (tl.load(current + start + row * M + lane, mask=inside, other=0.0),)
        for u in tl.static_range(U):
            t = t0 + u
            row = tl.minimum(t, T - 1)
            before = v
            v, s_t, i_t = _integrate(
                before,
                s,
                i,
                rows[u].to(STATE),
                decay,
                theta,
                alpha_,
                gain_,
                feedback_,
                first == t - 1,
                RESET,
            )
            v = tl.where(t < T, v, before)
            if alpha is not None:
                s = tl.where(t < T, s_t, s)
            if gain is not None:
                i = tl.where(t < T, i_t, i)
            fire = (v > theta) & (first >= T)
            first = tl.where(fire, t, first)
            if crossing is not None:
                below = tl.where(fire, before, below)
                above = tl.where(fire, v, above)
            offset = start + row.to(tl.int64) * M
            if spikes is not None:
                spike = tl.where(first == row, height, 0.0)
                tl.store(spikes + offset + lane, spike.to(spikes.dtype.element_ty), mask=inside)
            if mem is not None:
                tl.store(mem + offset + lane, v.to(mem.dtype.element_ty), mask=inside)
            if syn is not None:
                tl.store(syn + offset + lane, s.to(syn.dtype.element_ty), mask=inside)
            if inh is not None:
                tl.store(inh + offset + lane, i.to(inh.dtype.element_ty), mask=inside)
        t0 += U
        if TIMES_ONLY:
            silent = tl.max(tl.where(inside & (first >= T), 1, 0), axis=0)
            stop = tl.where(silent > 0, T, 0)

    tl.store(times + start + lane, tl.where(first < T, first, -1).to(tl.int64), mask=inside)
    if crossing is not None:
        tl.store(crossing + start + lane, below, mask=inside)
        tl.store(crossing + M + start + lane, above, mask=inside)
    if final is not None:
        tl.store(final + start + lane, v.to(final.dtype.element_ty), mask=inside)
        if alpha is not None:
            tl.store(final + M + start + lane, s.to(final.dtype.element_ty), mask=inside)
        if gain is not None:
            tl.store(final + M + M + start + lane, i.to(final.dtype.element_ty), mask=inside)


@triton.jit
def neuron_backward_kernel(
    mem,
    current,
    syn,
    inh,
    beta,
    threshold,
    graded_spikes_factor,
    mem_0,
    alpha,
    gain,
    feedback,
    syn_0,
    inh_0,
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
    """The reverse scan lam[k] = s'(u[k]) dL/dc[k] + h[k] + beta lam[k+1], all rules.

    lam is the gradient to the membrane, and to the current (T, M) where nothing lies between.
    Behind it follow those to synaptic currents: lam_s[k] = lam[k] + alpha lam_s[k+1] of
    Synaptic; lam_s[k] = gain lam[k] + alpha lam_s[k+1] and lam_i[k] = gain lam[k] + beta
    lam_i[k+1] of Alpha, whose membrane carries nothing over (and has no gradient to mem_0).

    mem (T, M) is the saved membrane. Where it is None and current (T, M) is given, the
    membrane is integrated again into grad_current, which the reverse scan then overwrites
    row by row. syn and inh (T, M) are needed for the gradients of alpha and, where gain is
    given, beta and gain. grad_spikes, grad_mem, grad_syn and grad_inh advance by STEP_*
    elements a time step, 0 where the gradient is the same at every step. grad_at and
    grad_before (M,) are gradients to V[t*] and V[t*-1]. The other grad_* (M,) are per lane:
    the caller sums them over the batch, so that no atomics make training non-deterministic.
    grad_feedback is the gradient to the current that the spike feeds back. RULE is "none"
    where no gradient passes the spikes. Anything not wanted is None.

    a and b, parameters of the surrogate, come in float32; what that leaves of them in a_rest and
    b_rest.
    """
    if STATE == tl.float64:  # noqa: SIM300
        a = tl.cast(a, STATE) + tl.cast(a_rest, STATE)
        b = tl.cast(b, STATE) + tl.cast(b_rest, STATE)
    start = tl.program_id(0).to(tl.int64) * BLOCK
    lane = tl.arange(0, BLOCK)
    inside = lane < tl.minimum(M - start, BLOCK).to(tl.int32)
    raw = load_lanes(beta, start, lane, P_BETA)
    decay = clamp_decay(raw, CLAMP)
    theta = load_lanes(threshold, start, lane, P_THRESHOLD)
    first = tl.load(times + start + lane, mask=inside, other=0).to(tl.int32)
    first = tl.where(first < 0, T, first)
    if grad_spikes is not None or feedback is not None:
        height = load_lanes(graded_spikes_factor, start, lane, P_GRADED_SPIKES_FACTOR)
    alpha_ = None
    gain_ = None
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

    if mem is None and current is not None:
        v = v_0
        s = s_0
        i = i_0
        t0 = 0
        while t0 < T:
            rows = ()
            for u in tl.static_range(U):
                row = tl.minimum(t0 + u, T - 1).to(tl.int64)
                rows = rows + (tl.load(current + start + row * M + lane, mask=inside, other=0.0),)
            for u in tl.static_range(U):
                t = t0 + u
                offset = start + tl.minimum(t, T - 1).to(tl.int64) * M
                held = v
                # Past the last step the synaptic currents no longer matter.
                v, s, i = _integrate(
                    held,
                    s,
                    i,
                    rows[u].to(STATE),
                    decay,
                    theta,
                    alpha_,
                    gain_,
                    feedback_,
                    first == t - 1,
                    RESET,
                )
                v = tl.where(t < T, v, held)
                tl.store(
                    grad_current + offset + lane,
                    v.to(grad_current.dtype.element_ty),
                    mask=inside,
                )
            t0 += U
        # Each thread reads back rows of its own; the barrier states it for every layout.
        tl.debug_barrier()

    if grad_at is not None:
        at = tl.load(grad_at + start + lane, mask=inside, other=0.0).to(STATE)
        before = tl.load(grad_before + start + lane, mask=inside, other=0.0).to(STATE)

    HAS_MEM: tl.constexpr = mem is not None or current is not None
    THROUGH: tl.constexpr = (grad_spikes is not None or feedback is not None) and RULE != "none"
    lam = tl.zeros((BLOCK,), STATE)
    lam_s = tl.zeros((BLOCK,), STATE)
    lam_i = tl.zeros((BLOCK,), STATE)
    tail = tl.zeros((BLOCK,), STATE)  # sum of g over the steps from k on
    ramp = tl.zeros((BLOCK,), STATE)  # sum of (t - k + 1) g[t] over the steps from k on
    d_beta = tl.zeros((BLOCK,), STATE)
    d_threshold = tl.zeros((BLOCK,), STATE)
    d_alpha = tl.zeros((BLOCK,), STATE)
    d_gain = tl.zeros((BLOCK,), STATE)
    d_feedback = tl.zeros((BLOCK,), STATE)
    k0 = T - 1
    while k0 >= 0:
        v_rows = ()
        s_rows = ()
        i_rows = ()
        g_rows = ()
        h_rows = ()
        q_rows = ()
        r_rows = ()
        for u in tl.static_range(U):
            row = tl.maximum(k0 - u, 0).to(tl.int64)
            here = start + row * M
            if mem is not None:
                v_rows = v_rows + (tl.load(mem + here + lane, mask=inside, other=0.0),)
            elif current is not None:
                v_rows = v_rows + (tl.load(grad_current + here + lane, mask=inside, other=0.0),)
            if syn is not None:
                s_rows = s_rows + (tl.load(syn + here + lane, mask=inside, other=0.0),)
            if inh is not None:
                i_rows = i_rows + (tl.load(inh + here + lane, mask=inside, other=0.0),)
            if grad_spikes is not None:
                g_rows = g_rows + (
                    tl.load(grad_spikes + start + row * STEP_SPIKES + lane, mask=inside, other=0.0),
                )
            if grad_mem is not None:
                h_rows = h_rows + (
                    tl.load(grad_mem + start + row * STEP_MEM + lane, mask=inside, other=0.0),
                )
            if grad_syn is not None:
                q_rows = q_rows + (
                    tl.load(grad_syn + start + row * STEP_SYN + lane, mask=inside, other=0.0),
                )
            if grad_inh is not None:
                r_rows = r_rows + (
                    tl.load(grad_inh + start + row * STEP_INH + lane, mask=inside, other=0.0),
                )
        for u in tl.static_range(U):
            k = k0 - u
            row = tl.maximum(k, 0)
            carry = lam
            if RESET == "zero_before":
                carry = tl.where(first == k, 0.0, carry)
            if RESET == "subtract" and (grad_threshold is not None and gain is None):
                d_threshold -= tl.where(first == row, tl.where(k >= 0, carry, 0.0), 0.0)
            if HAS_MEM:
                v = v_rows[u].to(STATE)
                if grad_beta is not None and gain is None:
                    d_beta += tl.where(k >= 0, carry * v, 0.0)
            new = tl.zeros((BLOCK,), STATE)
            if gain is None:  # the membrane of Alpha carries nothing over
                new = decay * carry
            if THROUGH:
                if feedback is not None:
                    g = carry * weight
                    if grad_spikes is not None:
                        g += g_rows[u].to(STATE)
                    g *= height
                else:
                    g = g_rows[u].to(STATE) * height
                if RULE == "masked":
                    d_c = tl.where(row <= first, g, 0.0)
                else:
                    if RULE == "pre_spike":
                        g = tl.where(row < first, g, 0.0)
                    tail += g
                    ramp += tail
                    d_c = ramp
                through = surrogate_slope(v - theta, a, b, SURROGATE) * d_c
                new += through
                if grad_threshold is not None:
                    d_threshold -= tl.where(k >= 0, through, 0.0)
            if grad_feedback is not None:
                d_feedback += tl.where(first == row, tl.where(k >= 0, carry, 0.0), 0.0)
            if grad_mem is not None:
                new += h_rows[u].to(STATE)
            if grad_at is not None:
                new += tl.where(first == row, at, 0.0) + tl.where(first == row + 1, before, 0.0)
            if RESET == "zero_after":
                new = tl.where(first == k - 1, 0.0, new)
            if alpha is not None:
                if grad_alpha is not None:
                    d_alpha += tl.where(k >= 0, lam_s * s_rows[u].to(STATE), 0.0)
                new_s = alpha_ * lam_s
                if grad_syn is not None:
                    new_s += q_rows[u].to(STATE)
                if gain is not None:
                    if grad_beta is not None:
                        d_beta += tl.where(k >= 0, lam_i * i_rows[u].to(STATE), 0.0)
                    if grad_gain is not None:
                        # What the gain multiplies at k+1; there the current cancels.
                        both = alpha_ * s_rows[u].to(STATE) + decay * i_rows[u].to(STATE)
                        d_gain += tl.where(k >= 0, carry * both, 0.0)
                    new_i = decay * lam_i
                    if grad_inh is not None:
                        new_i += r_rows[u].to(STATE)
                    if RESET == "subtract":
                        new_i = tl.where(first == k, new_i + carry, new_i)
                        if grad_threshold is not None:
                            d_threshold -= tl.where(
                                first == k - 1, tl.where(k >= 0, new_s, 0.0), 0.0
                            )
                        new_i = tl.where(first == k - 1, 0.0, new_i)
                    new_s += gain_ * new
                    new_i += gain_ * new
                    if RESET == "zero_after":
                        new_s = tl.where(first == k - 1, 0.0, new_s)
                        new_i = tl.where(first == k - 1, 0.0, new_i)
                    lam_i = tl.where(k >= 0, new_i, lam_i)
                else:
                    new_s += new
                lam_s = tl.where(k >= 0, new_s, lam_s)
            lam = tl.where(k >= 0, new, lam)
            if grad_current is not None:
                if alpha is None:
                    to_current = lam
                elif gain is None:
                    to_current = lam_s
                else:
                    to_current = lam_s - lam_i
                offset = start + row.to(tl.int64) * M
                tl.store(
                    grad_current + offset + lane,
                    to_current.to(grad_current.dtype.element_ty),
                    mask=inside,
                )
        k0 -= U

    if grad_beta is not None:
        if gain is None:
            d_beta += lam * v_0
        else:
            d_beta += lam_i * i_0
        tl.store(grad_beta + start + lane, pass_gradient(raw, d_beta, CLAMP), mask=inside)
    if grad_threshold is not None:
        tl.store(grad_threshold + start + lane, d_threshold, mask=inside)
    if grad_mem_0 is not None:
        tl.store(grad_mem_0 + start + lane, decay * lam, mask=inside)
    if grad_alpha is not None:
        tl.store(
            grad_alpha + start + lane, pass_gradient(raw_alpha, d_alpha + lam_s * s_0), mask=inside
        )
    if grad_gain is not None:
        d_gain += lam * (alpha_ * s_0 + decay * i_0)
        tl.store(grad_gain + start + lane, d_gain, mask=inside)
    if grad_feedback is not None:
        tl.store(grad_feedback + start + lane, d_feedback, mask=inside)
    if grad_syn_0 is not None:
        tl.store(grad_syn_0 + start + lane, alpha_ * lam_s, mask=inside)
    if grad_inh_0 is not None:
        tl.store(grad_inh_0 + start + lane, decay * lam_i, mask=inside)
