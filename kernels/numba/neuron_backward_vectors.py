"""Backward pass of Leaky in explicit vectors; see ``neuron_forward_vectors.py``."""

import numpy as np

from .block import (
    BLOCK,
    STEPS,
    clamp_decay,
    first_step,
    initial_state,
    lane_values,
    past_the_cache,
    write_lanes,
)
from .compiling import (
    MASKED,
    NO_RULE,
    PRE_SPIKE,
    STRAIGHT_THROUGH,
    SUBTRACT,
    ZERO_BEFORE,
    compiled,
    inlined,
)
from .simd import LANES, any_lane, fence, load, prefetch, store, where
from .surrogate import ATAN, surrogate_slope

_KEPT = 1 << 16  # membranes that stay in the second-level cache


@inlined
def _leaky_rows_again(
    count, early, start, n, current, membranes, v, first, b, th, zero_lag, subtract_lag, closes
):
    """The membrane at ``count`` steps of a block from ``early`` on, into work space."""
    ahead = min(early + count, current.shape[0] - count)
    for j in range(0, n, LANES):
        at = load(first, j)
        if closes and not any_lane(at >= early):
            continue
        lane = start + j
        u, decay, threshold = load(v, j), load(b, j), load(th, j)
        zeroed, subtracted = at + zero_lag, at + subtract_lag
        for k in range(count):
            t = early + k
            prefetch(current, (ahead + k, lane))
            u = decay * where(zeroed == t, 0.0, u) + load(current, (t, lane))
            u = where(subtracted == t, u - threshold, u)
            store(membranes, (t, j), u)
        store(v, j, u)


@inlined
def _leaky_rows_back(
    count,
    early,
    start,
    n,
    membranes,
    column,
    grad_spikes,
    grad_mem,
    grad_at,
    grad_before,
    grad_current,
    first,
    lam,
    tail,
    ramp,
    d_beta,
    d_theta,
    b,
    th,
    peak,
    zero_lag,
    subtract_lag,
    slope_a,
    slope_b,
    streams,
    surrogate,
    closes,
    rule,
    has_h,
    has_at,
    want_current,
    want_beta,
    want_theta,
):
    """``count`` steps of a block backwards down to ``early``.

    Its membranes begin at a ``column``.
    """
    behind = max(early - count, 0)
    each = grad_spikes.shape[0] > 1  # step has a gradient of its own
    for j in range(0, n, LANES):
        lane = start + j
        at = load(first, j)
        if closes and not any_lane(at >= early):
            if want_current:
                for k in range(count):
                    write_lanes(grad_current, (early + k, lane), 0.0, streams)
            continue
        decay, threshold, height = load(b, j), load(th, j), load(peak, j)
        zeroed, subtracted = at + zero_lag, at + subtract_lag
        after = load(lam, j)
        for k in range(count - 1, -1, -1):
            t = early + k
            if want_theta:
                spent = where(subtracted == t + 1, after, 0.0)
                store(d_theta, j, load(d_theta, j) - spent)
            carried = where(zeroed == t + 1, 0.0, after)
            after = decay * carried
            if rule != NO_RULE or want_beta:
                u = load(membranes, (t, column + j))
            if want_beta:
                store(d_beta, j, load(d_beta, j) + carried * u)
            if rule != NO_RULE:
                prefetch(grad_spikes, (behind + k if each else 0, lane))
                g = load(grad_spikes, (t if each else 0, lane))
                if rule == MASKED:
                    g = where(t <= at, g, 0.0)
                else:
                    total = load(tail, j) + (where(t < at, g, 0.0) if rule == PRE_SPIKE else g)
                    store(tail, j, total)
                    g = load(ramp, j) + total
                    store(ramp, j, g)
                direct = surrogate_slope(u - threshold, surrogate, slope_a, slope_b) * (g * height)
                after = after + direct
                if want_theta:
                    store(d_theta, j, load(d_theta, j) - direct)
            if has_h:
                after = after + load(grad_mem, (t if grad_mem.shape[0] > 1 else 0, lane))
            if has_at:
                after = after + where(at == t, load(grad_at, lane), 0.0)
                after = after + where(at == t + 1, load(grad_before, lane), 0.0)
            if want_current:
                write_lanes(grad_current, (t, lane), after, streams)
        store(lam, j, after)


@compiled
def _vectors(
    low,
    high,
    steps,
    mem,
    current,
    beta,
    theta,
    height,
    mem_0,
    clamp,
    reset,
    times,
    grad_spikes,
    grad_mem,
    grad_at,
    grad_before,
    grad_current,
    grad_beta,
    grad_theta,
    grad_mem_0,
    rule,
    surrogate,
    a,
    b,
):
    dtype = beta.dtype
    zero = dtype.type(0)
    recompute = current.shape[0] > 0
    want_current = grad_current.shape[0] > 0
    want_beta, want_theta = grad_beta.shape[0] > 0, grad_theta.shape[0] > 0
    has_h, has_at = grad_mem.shape[0] > 0, grad_at.shape[0] > 0
    if grad_spikes.shape[0] == 0:
        rule = NO_RULE
    # Whether nothing reaches the membrane after the spike: then nothing is read there.
    closes = not has_h and rule != STRAIGHT_THROUGH
    default = surrogate == ATAN and rule == MASKED and want_current
    default = default and not (has_h or has_at or want_beta or want_theta)
    streams = past_the_cache(grad_current, low)
    # A reset comes this many steps after the spike, or never.
    lags = 1 if reset == ZERO_BEFORE else steps + 1, 1 if reset == SUBTRACT else steps + 1
    tiles = steps // STEPS + steps % STEPS
    block = BLOCK
    if recompute:
        block = max(LANES, min(BLOCK, _KEPT // steps // LANES * LANES))
    decay, th, peak, v_0, v, lam, tail, ramp, d_beta, d_theta = np.empty((10, block), dtype)
    first = np.empty(block, np.int32)
    membranes = np.empty((steps, block), dtype) if recompute else mem
    active = np.ones(block, np.bool_)
    for start in range(low, high, block):
        stop = min(start + block, high)
        n = stop - start
        lane_values(beta, start, n, decay)
        if clamp:
            clamp_decay(decay, n, active)
        lane_values(theta, start, n, th)
        lane_values(height, start, n, peak)
        initial_state(mem_0, start, n, v_0)
        v[:n] = v_0[:n]
        for j in range(n):
            first[j] = times[start + j] if times[start + j] >= 0 else steps
        lam[:], tail[:], ramp[:], d_beta[:], d_theta[:] = zero, zero, zero, zero, zero
        if recompute:
            block_again = start, n, current, membranes, v, first, decay, th, *lags, closes
            for tile in range(tiles):
                early = first_step(tile, steps)
                if tile < steps // STEPS:
                    _leaky_rows_again(STEPS, early, *block_again)
                else:
                    _leaky_rows_again(1, early, *block_again)
        grads = grad_spikes, grad_mem, grad_at, grad_before, grad_current
        work = first, lam, tail, ramp, d_beta, d_theta, decay, th, peak, *lags
        column = 0 if recompute else start
        rows = start, n, membranes, column, *grads, *work
        how = a, b, streams
        wanted = closes, rule, has_h, has_at, want_current, want_beta, want_theta
        usual = True, MASKED, False, False, True, False, False
        for tile in range(tiles - 1, -1, -1):
            early = first_step(tile, steps)
            # The default is compiled by itself, as it were: a fifth faster.
            if tile < steps // STEPS and default:
                _leaky_rows_back(STEPS, early, *rows, *how, ATAN, *usual)
            elif tile < steps // STEPS:
                _leaky_rows_back(STEPS, early, *rows, *how, surrogate, *wanted)
            else:
                _leaky_rows_back(1, early, *rows, *how, surrogate, *wanted)
        if want_beta:
            for j in range(n):
                grad_beta[start + j] = d_beta[j] + lam[j] * v_0[j] if active[j] else zero
        if want_theta:
            grad_theta[start:stop] = d_theta[:n]
        if grad_mem_0.shape[0] > 0:
            for j in range(n):
                grad_mem_0[start + j] = decay[j] * lam[j]
    fence()


@compiled
def neuron_backward_vectors(low, high, *arguments):
    """:func:`neuron_backward_loop` of Leaky, for lanes that are whole vectors.

    A loop around the loop: numba's cache holds it with all that it calls, optimised once more, and
    backwards a fifth faster.
    """
    _vectors(low, high, *arguments)
