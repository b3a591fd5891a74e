"""The non-firing readout of the papers: a reduction of the membrane over time, in one launch.

The kernel reads the dense current; ``linear.py`` computes the same reductions from spike times.
"""

import triton
import triton.language as tl

from .block import clamp_decay, initial_state, load_lanes, pass_gradient, store_row
from .turns import first_turn, load_first_turn, load_next_turn, whole_turns


@triton.jit
def empty_reduction(T, REDUCTION: tl.constexpr, STATE: tl.constexpr, BLOCK: tl.constexpr):
    """The reduction before the first step, and the step of its value."""
    if REDUCTION == "max":
        return tl.full((BLOCK,), float("-inf"), STATE), tl.zeros((BLOCK,), tl.int32)
    else:
        return tl.zeros((BLOCK,), STATE), tl.zeros((BLOCK,), tl.int32) + (T - 1)


@triton.jit
def reduce_step(result, result_slope, taken, v, slope, t, REDUCTION: tl.constexpr):
    """Add V[t] to a reduction: its value, the derivative by beta, the step of the value."""
    if REDUCTION == "sum":
        result += v
        result_slope += slope
    elif REDUCTION == "max":
        # NaN is the maximum, as in torch.max, and the first of equal values is taken.
        better = (v > result) | ((v != v) & (result == result))
        result = tl.where(better, v, result)
        result_slope = tl.where(better, slope, result_slope)
        taken = tl.where(better, t, taken)
    else:
        tl.static_assert(REDUCTION == "last", "unknown reduction")
        result = v
        result_slope = slope
    return result, result_slope, taken


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
    step of the maximum or last value.
    """
    start = tl.program_id(0).to(tl.int64) * BLOCK
    lane = tl.arange(0, BLOCK)
    inside = lane < tl.minimum(M - start, BLOCK).to(tl.int32)
    raw = load_lanes(beta, start, lane, P_BETA)
    decay = clamp_decay(raw)
    v = initial_state(mem_0, start, lane, inside, BLOCK, STATE)
    slope = tl.zeros((BLOCK,), STATE)  # d V[t] / d beta
    result_slope = tl.zeros((BLOCK,), STATE)
    result, taken = empty_reduction(T, REDUCTION, STATE, BLOCK)

    place = (start, lane, inside)
    t0 = first_turn(T, U)
    rows = load_first_turn(current + start, place, M, -t0, U)
    for WHOLE in tl.static_range(2):
        turns = whole_turns(T, U) if WHOLE else 1
        while turns > 0:
            ahead = load_next_turn(current, place, t0 + U, T, M, U)
            for u in tl.static_range(U):
                t = t0 + u
                real = True if WHOLE else t >= 0
                if real:
                    if sensitivity is not None:
                        slope = v + decay * slope
                    v = decay * v + rows[u].to(STATE)
                    result, result_slope, taken = reduce_step(
                        result, result_slope, taken, v, slope, t, REDUCTION
                    )
            t0 += U
            rows = ahead
            turns -= 1

    store_row(value + start, lane, result, inside)
    if step is not None:
        tl.store(step + start + lane, taken.to(tl.int64), mask=inside)
    if sensitivity is not None:
        tl.store(sensitivity + start + lane, pass_gradient(raw, result_slope), mask=inside)
