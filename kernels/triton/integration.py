"""The integration of a block of neurons over time, for the forward and the backward kernel."""

import triton
import triton.language as tl

from .block import FREE, RESET_NOW, SPIKED, store_row
from .turns import first_turn, load_first_turn, load_next_turn, whole_turns


@triton.jit
def integrate(v, s, i, x, beta, threshold, alpha, gain, feedback, fired, RESET: tl.constexpr):
    """Membrane and synaptic currents at t from those at t-1.

    ``fired`` marks the neurons whose spike was at t-1: their reset and feedback follow now. The
    reset is "subtract", "zero_before" the integration (Leaky), or "zero_after" it.
    """
    tl.static_assert(
        (RESET == "none" or RESET == "subtract")
        or (RESET == "zero_before" or RESET == "zero_after"),
        "unknown reset",
    )
    if alpha is None:
        if RESET == "zero_before":
            v = tl.where(fired, 0.0, v)
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
        v = tl.where(fired, v + feedback, v)
    if RESET == "subtract":
        if gain is None:
            v = tl.where(fired, v - threshold, v)
        else:  # as snnTorch's Alpha defines it
            v = tl.where(fired, v + held, v)
            s = tl.where(fired, s - threshold, s)
            i = tl.where(fired, 0.0, i)
    if RESET == "zero_after":
        v = tl.where(fired, 0.0, v)
        if gain is not None:
            s = tl.where(fired, 0.0, s)
            i = tl.where(fired, 0.0, i)
    return v, s, i


@triton.jit
def phase_of(before, last, t, refractory):
    """The phase of step ``t``, from the last spikes before it and up to it."""
    age = t - before
    free = tl.minimum(tl.maximum(age - refractory, 0), 1)
    reset = tl.maximum(2 - age, 0)
    spiked = tl.maximum(1 - (t - last), 0)
    return free * FREE + spiked * SPIKED + reset * RESET_NOW


@triton.jit
def integrate_again(
    current,
    into,
    place,
    states,
    beta,
    threshold,
    alpha,
    gain,
    feedback,
    first,
    refractory,
    T,
    M,
    RESET: tl.constexpr,
    U: tl.constexpr,
):
    """Recompute the membrane of neurons whose first spikes are known, into ``into`` (T, M).

    ``states`` are V, syn, inh before the first step, in state precision. With ``refractory``,
    ``first`` is the last spike before the first step.
    """
    start, lane, inside = place
    v, s, i = states
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
                    fired = first == t - 1
                    x = rows[u].to(v.dtype)
                    v, s, i = integrate(
                        v, s, i, x, beta, threshold, alpha, gain, feedback, fired, RESET
                    )
                    if refractory is not None:
                        first = tl.where((v > threshold) & (t - first > refractory), t, first)
                    store_row(into + here, lane, v, inside)
                    here += M
            t0 += U
            rows = ahead
            turns -= 1
