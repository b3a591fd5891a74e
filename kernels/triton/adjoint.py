"""The parts of the reverse scan over a block of neurons, for ``neuron_backward_kernel``.

lam is the adjoint of the membrane: dL/dV[k], by every path from step k on. lam_s and lam_i are
the adjoints of the synaptic currents. ``after`` is lam[k+1] as far as V[k] reaches it: 0 where a
reset before the integration separates the two. The compiler removes the code of an argument that
is None. ``backends/torch/_scan.py`` has the same parts in plain torch.
"""

import triton
import triton.language as tl

from .block import FREE, RESET_NOW, SPIKED, load_row
from .surrogate import surrogate_slope


@triton.jit
def load_rows(
    mem,
    syn,
    inh,
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
    """Rows of ``U`` time steps from ``k0`` down; before the first step, its row again.

    One tuple of rows for each stream, an empty one for a stream that is None.
    """
    start, lane, inside = place
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
            v_rows = v_rows + (load_row(mem + here, lane, inside),)
        if syn is not None:
            s_rows = s_rows + (load_row(syn + here, lane, inside),)
        if inh is not None:
            i_rows = i_rows + (load_row(inh + here, lane, inside),)
        if grad_spikes is not None:
            g_rows = g_rows + (load_row(grad_spikes + start + row * STEP_SPIKES, lane, inside),)
        if grad_mem is not None:
            h_rows = h_rows + (load_row(grad_mem + start + row * STEP_MEM, lane, inside),)
        if grad_syn is not None:
            q_rows = q_rows + (load_row(grad_syn + start + row * STEP_SYN, lane, inside),)
        if grad_inh is not None:
            r_rows = r_rows + (load_row(grad_inh + start + row * STEP_INH, lane, inside),)
    return v_rows, s_rows, i_rows, g_rows, h_rows, q_rows, r_rows


@triton.jit
def load_phases(phase, place, k0, M, U: tl.constexpr):
    """Phases of ``U`` time steps from ``k0`` down, as :func:`load_rows` does; none for None."""
    start, lane, inside = place
    rows = ()
    if phase is not None:
        for u in tl.static_range(U):
            row = tl.maximum(k0 - u, 0).to(tl.int64)
            rows = rows + (tl.load(phase + start + row * M + lane, mask=inside, other=0),)
    return rows


@triton.jit
def mark_spikes(phase, v, theta, k, row, RESET: tl.constexpr):
    """The spikes at ``k`` of a neuron with a refractory period, in the terms of one spike.

    Returns the step of the spike, and the last step at which a gradient passes it; -2 for none. The
    other parts of the scan then compute as for one spike. A reset after the integration separates
    the step from the spike before it, and all other resets the spike from the step after it.
    """
    never = tl.zeros_like(v).to(tl.int32) - 2
    if phase is None:
        return tl.where(v > theta, k, never), never + (2 + row)
    else:
        bits = phase.to(tl.int32)
        limit = tl.where((bits & FREE) != 0, row, never)
        if RESET == "zero_after":
            return tl.where((bits & RESET_NOW) != 0, k - 1, never), limit
        else:
            return tl.where((bits & SPIKED) != 0, k, never), limit


@triton.jit
def at_spike(first, step, k, x):
    """x of the neurons that spike at ``step``, else 0; 0 before the first step."""
    return tl.where(first == step, tl.where(k >= 0, x, 0.0), 0.0)


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
def add_direct_gradients(lam, h, at, before, first, row):
    """Add the losses on the membrane: h[k] at every step; at, before around the spike."""
    if h is not None:
        lam += h
    if at is not None:
        lam += tl.where(first == row, at, 0.0) + tl.where(first == row + 1, before, 0.0)
    return lam


@triton.jit
def sum_alpha(d_beta, d_gain, after, lam_i, s, i, alpha, beta, grad_beta, grad_gain, carries):
    """Add step k+1 to the gradients of Alpha's decay of inh, and of its gain."""
    if grad_beta is not None:
        d_beta += tl.where(carries, lam_i * i, 0.0)
    if grad_gain is not None:
        # The input current cancels at step k+1: the gain multiplies the sum of the carried states.
        both = alpha * s + beta * i
        d_gain += tl.where(carries, after * both, 0.0)
    return d_beta, d_gain


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
