"""The non-firing readout of the papers: a reduction of the membrane over time, in one launch."""

import triton
import triton.language as tl

from .block import clamp_decay, initial_state, load_lanes, pass_gradient


@triton.jit
def readout_kernel(
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
    raw = load_lanes(beta, start, lane, P_BETA)
    decay = clamp_decay(raw)
    v = initial_state(mem_0, start, lane, inside, BLOCK, STATE)
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
        tl.store(sensitivity + start + lane, pass_gradient(raw, result_slope), mask=inside)
