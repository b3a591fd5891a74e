"""The parts of the reverse scan over a block of neurons, for ``neuron_backward_kernel``.

lam is the adjoint of the membrane: dL/dV[k], by every path from step k on. lam_s and lam_i are
the adjoints of the synaptic currents. ``after`` is lam[k+1] as far as V[k] reaches it: 0 where a
reset before the integration separates the two. The compiler removes the code of an argument that
is None. ``backends/torch/_scan.py`` has the same parts in plain torch.
"""

import triton
import triton.language as tl

from .block import FREE, RESET_NOW, SPIKED
from .surrogate import surrogate_slope
from .turns import first_turn_back, load_first_turn, load_turn


@triton.jit
def _first_back(stream, place, step, T, U: tl.constexpr):
    """The rows of the first turn backward in time; none for a stream that is None."""
    if stream is None:
        return ()
    else:
        row = stream + place[0] + tl.cast(T - 1, tl.int64) * step
        return load_first_turn(row, place, -step, first_turn_back(T, U) - (T - 1), U)


@triton.jit
def _next_back(stream, place, step, k0, U: tl.constexpr):
    """The rows of the turn from ``k0`` down; row 0 where there is none."""
    if stream is None:
        return ()
    else:
        there = k0 >= 0
        row = stream + place[0] + tl.where(there, k0, 0).to(tl.int64) * step
        return load_turn(row, place, tl.where(there, -step, 0), U)


@triton.jit
def load_first_rows(
    mem,
    syn,
    inh,
    phase,
    grad_spikes,
    grad_mem,
    grad_syn,
    grad_inh,
    place,
    T,
    M,
    STEP_SPIKES,
    STEP_MEM,
    STEP_SYN,
    STEP_INH,
    U: tl.constexpr,
):
    """The rows of the first turn backward in time: one tuple for each stream."""
    return (
        _first_back(mem, place, M, T, U),
        _first_back(syn, place, M, T, U),
        _first_back(inh, place, M, T, U),
        _first_back(phase, place, M, T, U),
        _first_back(grad_spikes, place, STEP_SPIKES, T, U),
        _first_back(grad_mem, place, STEP_MEM, T, U),
        _first_back(grad_syn, place, STEP_SYN, T, U),
        _first_back(grad_inh, place, STEP_INH, T, U),
    )


@triton.jit
def load_next_rows(
    mem,
    syn,
    inh,
    phase,
    grad_spikes,
    grad_mem,
    grad_syn,
    grad_inh,
    place,
    k0,
    M,
    STEP_SPIKES,
    STEP_MEM,
    STEP_SYN,
    STEP_INH,
    U: tl.constexpr,
):
    """The rows of the turn from step ``k0`` down: one tuple for each stream."""
    return (
        _next_back(mem, place, M, k0, U),
        _next_back(syn, place, M, k0, U),
        _next_back(inh, place, M, k0, U),
        _next_back(phase, place, M, k0, U),
        _next_back(grad_spikes, place, STEP_SPIKES, k0, U),
        _next_back(grad_mem, place, STEP_MEM, k0, U),
        _next_back(grad_syn, place, STEP_SYN, k0, U),
        _next_back(grad_inh, place, STEP_INH, k0, U),
    )


@triton.jit
def carried(product, k, T, WHOLE: tl.constexpr):
    """A product with a state of step ``k``; 0 for the last step, which carries nothing on.

    The state of the last step may be infinite or NaN.
    """
    if WHOLE:
        return product
    else:
        return tl.where(k < T - 1, product, 0.0)


@triton.jit
def mark_spikes(phase, v, theta, k, RESET: tl.constexpr):
    """The spikes at ``k`` of a neuron with a refractory period, in the terms of one spike.

    Returns the step of the spike, and the last step at which a gradient passes it; -2 for none. The
    other parts of the scan then compute as for one spike. A reset after the integration separates
    the step from the spike before it, and all other resets the spike from the step after it.
    """
    never = tl.zeros_like(v).to(tl.int32) - 2
    if phase is None:
        return tl.where(v > theta, k, never), never + (2 + k)
    else:
        bits = phase.to(tl.int32)
        limit = tl.where((bits & FREE) != 0, k, never)
        if RESET == "zero_after":
            return tl.where((bits & RESET_NOW) != 0, k - 1, never), limit
        else:
            return tl.where((bits & SPIKED) != 0, k, never), limit


@triton.jit
def spike_gradient(g, after, feedback, height):
    """dL/dc before the rule: from the loss on the spike, and from its feedback to step k+1."""
    if feedback is None:
        return g * height
    else:
        total = after * feedback
        if g is not None:
            total += g
        return total * height


@triton.jit
def gate(g, tail, ramp, first, row, RULE: tl.constexpr):
    """dL/dc[k] by the rule, and its two sums over later steps.

    tail is the sum of g[t] from step k on, ramp the sum of (t - k + 1) g[t].
    """
    if RULE == "masked":
        return tl.where(row <= first, g, 0.0), tail, ramp
    else:
        if RULE == "pre_spike":
            g = tl.where(row < first, g, 0.0)
        tail += g
        ramp += tail
        return ramp, tail, ramp


@triton.jit
def through_spikes(
    g, tail, ramp, v, theta, first, row, a, b, RULE: tl.constexpr, SURROGATE: tl.constexpr
):
    """s'(V[k] - theta) dL/dc[k], the gradient that reaches V[k] through the spikes."""
    d_c, tail, ramp = gate(g, tail, ramp, first, row, RULE)
    return surrogate_slope(v - theta, a, b, SURROGATE) * d_c, tail, ramp


@triton.jit
def add_direct_gradients(lam, h, at, before, step, row):
    """Add the losses on the membrane: h[k] at every step; at and before at one step each."""
    if h is not None:
        lam += h
    if at is not None:
        lam += tl.where(step == row, at, 0.0) + tl.where(step == row + 1, before, 0.0)
    return lam


@triton.jit
def adjoint_synaptic(lam_s, q, alpha):
    """alpha lam_s[k+1] + q[k]. The caller adds the contribution of the membrane."""
    lam_s = alpha * lam_s
    if q is not None:
        lam_s += q
    return lam_s


@triton.jit
def adjoint_alpha(lam_s, lam_i, lam, after, r, beta, gain, first, k, RESET: tl.constexpr):
    """lam_s[k] and lam_i[k] of Alpha, from lam[k] and the resets at k and k+1.

    lam_s comes in from ``adjoint_synaptic``, lam_i is that of step k+1.
    """
    lam_i = beta * lam_i
    if r is not None:
        lam_i += r
    if RESET == "subtract":
        lam_i = tl.where(first == k, lam_i + after, lam_i)
        lam_i = tl.where(first == k - 1, 0.0, lam_i)
    lam_s += gain * lam
    lam_i += gain * lam
    if RESET == "zero_after":
        lam_s = tl.where(first == k - 1, 0.0, lam_s)
        lam_i = tl.where(first == k - 1, 0.0, lam_i)
    return lam_s, lam_i


@triton.jit
def adjoint_current(lam, lam_s, lam_i, alpha, gain):
    """dL/dI[k]: the input current drives the membrane or the synaptic currents."""
    if alpha is None:
        return lam
    elif gain is None:
        return lam_s
    else:
        return lam_s - lam_i


@triton.jit
def store_gradient(out, place, gradient):
    """Write one value per lane, unless ``out`` is None."""
    start, lane, inside = place
    if out is not None:
        tl.store(out + start + lane, gradient, mask=inside)
