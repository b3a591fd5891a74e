"""Single-spike leaky integrate-and-fire layer: forward and backward, one launch each.

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

from .surrogate import surrogate_slope


@triton.jit
def _load_lanes(parameter, start, lane, P):
    """One value per lane of a parameter of ``P`` elements, repeated over the batch."""
    return tl.load(parameter + ((start % P).to(tl.int32) + lane) % P)


@triton.jit
def _clamp(beta):
    """clamp(beta, 0, 1), and NaN stays NaN as in torch."""
    beta = tl.maximum(beta, 0.0, propagate_nan=tl.PropagateNan.ALL)
    return tl.minimum(beta, 1.0, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def _integrate(v, x, beta, threshold, first, t, RESET: tl.constexpr):
    """V[t] from V[t-1], with the one reset that follows the spike."""
    if RESET == "zero":
        v = tl.where(first == t - 1, 0.0, v)
    v = beta * v + x
    if RESET == "subtract":
        v = tl.where(first == t - 1, v - threshold, v)
    return v


@triton.jit
def leaky_forward_kernel(
    current,
    beta,
    threshold,
    graded_spikes_factor,
    mem_0,
    spikes,
    mem,
    times,
    crossing,
    final,
    T,
    M,
    P_BETA,
    P_THRESHOLD,
    P_GRADED,
    RESET: tl.constexpr,
    STATE: tl.constexpr,
    BLOCK: tl.constexpr,
    U: tl.constexpr,
):
    """First spike of every neuron, and whichever outputs are not None.

    current (T, M); beta, threshold, graded_spikes_factor (P,), P = 1 or features;
    mem_0 (M,) or None. Outputs: spikes (T, M), mem (T, M), times (M,) int64,
    crossing (2, M) = V[t*-1], V[t*], final (M,) = V[T-1].
    """
    start = tl.program_id(0).to(tl.int64) * BLOCK
    lane = tl.arange(0, BLOCK)
    inside = lane < tl.minimum(M - start, BLOCK).to(tl.int32)
    decay = _clamp(_load_lanes(beta, start, lane, P_BETA))
    theta = _load_lanes(threshold, start, lane, P_THRESHOLD)
    if spikes is not None:
        height = _load_lanes(graded_spikes_factor, start, lane, P_GRADED)
    if mem_0 is not None:
        v = tl.load(mem_0 + start + lane, mask=inside, other=0.0).to(STATE)
    else:
        v = tl.zeros((BLOCK,), STATE)
    first = tl.zeros((BLOCK,), tl.int32) + T
    if crossing is not None:
        below = tl.zeros((BLOCK,), STATE)
        above = tl.zeros((BLOCK,), STATE)

    # Only the spike times are asked for: stop once every neuron has fired.
    TIMES_ONLY: tl.constexpr = (spikes is None and mem is None) and final is None
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
            v = _integrate(before, rows[u].to(STATE), decay, theta, first, t, RESET)
            v = tl.where(t < T, v, before)
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


@triton.jit
def leaky_backward_kernel(
    mem,
    current,
    beta,
    threshold,
    graded_spikes_factor,
    mem_0,
    times,
    grad_spikes,
    grad_mem,
    grad_at,
    grad_before,
    grad_current,
    grad_beta,
    grad_threshold,
    grad_mem_0,
    T,
    M,
    P_BETA,
    P_THRESHOLD,
    P_GRADED,
    STEP_SPIKES,
    STEP_MEM,
    a,
    b,
    RULE: tl.constexpr,
    SURROGATE: tl.constexpr,
    RESET: tl.constexpr,
    STATE: tl.constexpr,
    BLOCK: tl.constexpr,
    U: tl.constexpr,
):
    """The reverse scan lam[k] = s'(u[k]) dL/dc[k] + h[k] + beta lam[k+1], all rules.

    mem (T, M) is the saved membrane. Where it is None and current (T, M) is given, the
    membrane is integrated again into grad_current, which the reverse scan then overwrites
    row by row. grad_spikes and grad_mem advance by STEP_* elements a time step, 0 where
    the gradient is the same at every step. grad_at and grad_before (M,) are gradients to
    V[t*] and V[t*-1]. grad_beta, grad_threshold, grad_mem_0 (M,) are per lane: the caller
    sums them over the batch, so that no atomics make training non-deterministic.
    Anything not wanted is None.
    """
    start = tl.program_id(0).to(tl.int64) * BLOCK
    lane = tl.arange(0, BLOCK)
    inside = lane < tl.minimum(M - start, BLOCK).to(tl.int32)
    raw = _load_lanes(beta, start, lane, P_BETA)
    decay = _clamp(raw)
    theta = _load_lanes(threshold, start, lane, P_THRESHOLD)
    first = tl.load(times + start + lane, mask=inside, other=0).to(tl.int32)
    first = tl.where(first < 0, T, first)
    if mem_0 is not None:
        v_0 = tl.load(mem_0 + start + lane, mask=inside, other=0.0).to(STATE)
    else:
        v_0 = tl.zeros((BLOCK,), STATE)

    if mem is None and current is not None:
        v = v_0
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
                v = _integrate(held, rows[u].to(STATE), decay, theta, first, t, RESET)
                v = tl.where(t < T, v, held)
                tl.store(
                    grad_current + offset + lane,
                    v.to(grad_current.dtype.element_ty),
                    mask=inside,
                )
            t0 += U
        # Each thread reads back rows of its own; the barrier states it for every layout.
        tl.debug_barrier()

    if grad_spikes is not None:
        height = _load_lanes(graded_spikes_factor, start, lane, P_GRADED)
    if grad_at is not None:
        at = tl.load(grad_at + start + lane, mask=inside, other=0.0).to(STATE)
        before = tl.load(grad_before + start + lane, mask=inside, other=0.0).to(STATE)

    HAS_MEM: tl.constexpr = mem is not None or current is not None
    lam = tl.zeros((BLOCK,), STATE)
    tail = tl.zeros((BLOCK,), STATE)  # sum of g over the steps from k on
    ramp = tl.zeros((BLOCK,), STATE)  # sum of (t - k + 1) g[t] over the steps from k on
    d_beta = tl.zeros((BLOCK,), STATE)
    d_threshold = tl.zeros((BLOCK,), STATE)
    k0 = T - 1
    while k0 >= 0:
        v_rows = ()
        g_rows = ()
        h_rows = ()
        for u in tl.static_range(U):
            row = tl.maximum(k0 - u, 0).to(tl.int64)
            if mem is not None:
                v_rows = v_rows + (tl.load(mem + start + row * M + lane, mask=inside, other=0.0),)
            elif current is not None:
                v_rows = v_rows + (
                    tl.load(grad_current + start + row * M + lane, mask=inside, other=0.0),
                )
            if grad_spikes is not None:
                g_rows = g_rows + (
                    tl.load(grad_spikes + start + row * STEP_SPIKES + lane, mask=inside, other=0.0),
                )
            if grad_mem is not None:
                h_rows = h_rows + (
                    tl.load(grad_mem + start + row * STEP_MEM + lane, mask=inside, other=0.0),
                )
        for u in tl.static_range(U):
            k = k0 - u
            row = tl.maximum(k, 0)
            carry = lam
            if RESET == "zero":
                carry = tl.where(first == k, 0.0, carry)
            if RESET == "subtract" and grad_threshold is not None:
                d_threshold -= tl.where(first == row, tl.where(k >= 0, carry, 0.0), 0.0)
            if HAS_MEM:
                v = v_rows[u].to(STATE)
                if grad_beta is not None:
                    d_beta += tl.where(k >= 0, carry * v, 0.0)
            new = decay * carry
            if grad_spikes is not None:
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
            if grad_mem is not None:
                new += h_rows[u].to(STATE)
            if grad_at is not None:
                new += tl.where(first == row, at, 0.0) + tl.where(first == row + 1, before, 0.0)
            lam = tl.where(k >= 0, new, lam)
            if grad_current is not None:
                offset = start + row.to(tl.int64) * M
                tl.store(
                    grad_current + offset + lane,
                    lam.to(grad_current.dtype.element_ty),
                    mask=inside,
                )
        k0 -= U

    if grad_beta is not None:
        d_beta += lam * v_0
        d_beta = tl.where((raw >= 0.0) & (raw <= 1.0), d_beta, 0.0)
        tl.store(grad_beta + start + lane, d_beta, mask=inside)
    if grad_threshold is not None:
        tl.store(grad_threshold + start + lane, d_threshold, mask=inside)
    if grad_mem_0 is not None:
        tl.store(
            grad_mem_0 + start + lane, (decay * lam).to(grad_mem_0.dtype.element_ty), mask=inside
        )


@triton.jit
def leaky_readout_kernel(
    current,
    beta,
    mem_0,
    value,
    sensitivity,
    step,
    T,
    M,
    P_BETA,
    REDUCTION: tl.constexpr,
    STATE: tl.constexpr,
    BLOCK: tl.constexpr,
    U: tl.constexpr,
):
    """Sum, maximum or last value over time of a membrane that never fires.

    current (T, M), beta (P,), mem_0 (M,) or None. Outputs: value (M,); sensitivity (M,) or
    None, d value / d beta carried forward with the membrane; step (M,) int64 or None, the
    step that the value was taken at (maximum, last).
    """
    start = tl.program_id(0).to(tl.int64) * BLOCK
    lane = tl.arange(0, BLOCK)
    inside = lane < tl.minimum(M - start, BLOCK).to(tl.int32)
    raw = _load_lanes(beta, start, lane, P_BETA)
    decay = _clamp(raw)
    if mem_0 is not None:
        v = tl.load(mem_0 + start + lane, mask=inside, other=0.0).to(STATE)
    else:
        v = tl.zeros((BLOCK,), STATE)
    slope = tl.zeros((BLOCK,), STATE)  # d V[t] / d beta
    result_slope = tl.zeros((BLOCK,), STATE)
    if REDUCTION == "max":
        result = tl.full((BLOCK,), float("-inf"), STATE)
        taken = tl.zeros((BLOCK,), tl.int32)
    else:
        result = tl.zeros((BLOCK,), STATE)
        taken = tl.zeros((BLOCK,), tl.int32) + (T - 1)

    t0 = 0
    while t0 < T:
        rows = ()
        for u in tl.static_range(U):
            row = tl.minimum(t0 + u, T - 1).to(tl.int64)
            rows = rows + (tl.load(current + start + row * M + lane, mask=inside, other=0.0),)
        for u in tl.static_range(U):
            t = t0 + u
            if sensitivity is not None:
                slope = tl.where(t < T, v + decay * slope, slope)
            v = tl.where(t < T, decay * v + rows[u].to(STATE), v)
            if REDUCTION == "sum":
                result += tl.where(t < T, v, 0.0)
                result_slope += tl.where(t < T, slope, 0.0)
            elif REDUCTION == "max":
                # NaN is the maximum, as in torch.max, and the first of equals wins.
                better = (v > result) | ((v != v) & (result == result))
                result = tl.where(better, v, result)
                result_slope = tl.where(better, slope, result_slope)
                taken = tl.where(better, t, taken)
            else:
                tl.static_assert(REDUCTION == "last", "unknown reduction")
                result = v
                result_slope = slope
        t0 += U

    tl.store(value + start + lane, result.to(value.dtype.element_ty), mask=inside)
    if step is not None:
        tl.store(step + start + lane, taken.to(tl.int64), mask=inside)
    if sensitivity is not None:
        result_slope = tl.where((raw >= 0.0) & (raw <= 1.0), result_slope, 0.0)
        tl.store(sensitivity + start + lane, result_slope, mask=inside)
