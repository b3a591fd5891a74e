"""The integration of a block of neurons over time, for the forward and the backward kernel."""

import triton
import triton.language as tl

from .block import FREE, RESET_NOW, SPIKED, load_row, store_row


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
def fire_again(v, threshold, last, t, T, refractory):
    """Whether a neuron with a refractory period spikes at ``t``; not past the last step."""
    # An infinite threshold, and not a second mask: masks of many steps would fill the scalar
    # registers of an AMD GPU.
    wait = tl.where(t < T, refractory, 1 << 30)
    return v > tl.where(t - last > wait, threshold, float("inf"))


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
    t0 = 0
    while t0 < T:
        rows = load_ahead(current, place, t0, T, M, U)
        for u in tl.static_range(U):
            t = t0 + u
            offset = start + tl.minimum(t, T - 1).to(tl.int64) * M
            held = v
            x = rows[u].to(v.dtype)
            # The synaptic currents after the last step are not used.
            v, s, i = integrate(
                held, s, i, x, beta, threshold, alpha, gain, feedback, first == t - 1, RESET
            )
            v = tl.where(t < T, v, held)
            if refractory is not None:
                fire = fire_again(v, threshold, first, t, T, refractory)
                first = tl.where(fire, t, first)
            store_row(into + offset, lane, v, inside)
        t0 += U


@triton.jit
def load_ahead(stream, place, t0, T, M, U: tl.constexpr):
    """The rows of ``U`` time steps from ``t0`` on; past the last step, its row again."""
    start, lane, inside = place
    rows = ()
    for u in tl.static_range(U):
        row = tl.minimum(t0 + u, T - 1).to(tl.int64)
        rows = rows + (load_row(stream + start + row * M, lane, inside),)
    return rows
