"""Fused CPU loops, compiled by numba on their first use and cached on disk after it.

A block of neighbouring neurons is carried through all time steps with its state in the
first-level cache, so that every (T, M) tensor is read or written once. The loops over a
block are free of branches, and vectorised. Leaky has loops of its own in explicit vectors
(:mod:`.simd`), which keep the state in registers for a few steps; the others also take the
lanes that are left of a whole vector. No fast-math, so that spikes are decided as eager torch
decides them. Threads take ranges of neurons.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba
import numpy as np
import torch
from torch import Tensor

from ..surrogate import Surrogate
from .buffers import (
    ForwardOutputs,
    InputGradients,
    Neuron,
    OutputGradients,
    ReadoutOutputs,
    Saved,
    state_dtype,
)
from .memory import empty
from .numba_common import (
    REDUCTIONS,
    RESETS,
    RULES,
    SURROGATES,
    as_array,
    compiled,
    in_threads,
    surrogate_slope,
)
from .simd import (
    LANES,
    LINE,
    any_lane,
    fence,
    full_like,
    load,
    prefetch,
    store,
    stream,
    where,
)

BLOCK = 1024
TILE = 4  # steps that Leaky takes with its state in registers, and reads ahead
_STREAM = 4 << 20  # bytes of a result that is written past the cache
_KEPT = 1 << 16  # membranes that stay in the second-level cache
_PIECE = 1 << 20  # elements (T * M) that a thread takes at once

_SUBTRACT, _ZERO, _CLEAR = RESETS["subtract"], RESETS["zero"], RESETS["clear"]
_MASKED, _PRE_SPIKE, _STRAIGHT_THROUGH, _BLOCKED = (
    RULES["masked"],
    RULES["pre_spike"],
    RULES["straight_through"],
    RULES["none"],
)
_ATAN = SURROGATES["atan"]
_SUM, _MAX = REDUCTIONS["sum"], REDUCTIONS["max"]


_inlined = numba.njit(forceinline=True, error_model="numpy")


@compiled
def _lanes(parameter, start, n, out):
    """One value per lane of a parameter repeated over the batch."""
    size = parameter.shape[0]
    if size == 1:
        out[:n] = parameter[0]
        return
    at = start % size
    for j in range(n):  # a division for each takes as long as some ten time steps
        out[j] = parameter[at]
        at = at + 1 if at + 1 < size else 0


@compiled
def _clamp(decay, n, active):
    """clamp(decay, 0, 1) in place, and where it passes a gradient on."""
    zero, one = decay.dtype.type(0), decay.dtype.type(1)
    for j in range(n):
        b = decay[j]
        active[j] = (b >= zero) & (b <= one)
        b = zero if b < zero else b
        decay[j] = one if b > one else b


@compiled
def _start(mem, start, n, v):
    for j in range(n):
        v[j] = mem[start + j] if mem.shape[0] > 0 else v.dtype.type(0)


@_inlined
def _resets(reset, t):
    """The steps whose spikes subtract, or zero, the membrane at ``t``; -2 is no step."""
    return np.int32(t - 1 if reset == _SUBTRACT else -2), np.int32(t - 1 if reset == _ZERO else -2)


@compiled
def _integrate(x, v, s, i, decay, th, al, gn, fed, first, t, n, reset, second, third, fed_back):
    """One step of any neuron, in place, from the current ``x``; see ``kernels/leaky.py``."""
    zero = v.dtype.type(0)
    subtract, zeroed = _resets(reset, t)
    last = np.int32(t - 1)
    cleared = last if reset == _CLEAR else np.int32(-2)
    if third:
        for j in range(n):
            held = i[j]
            exc = al[j] * s[j] + x[j]
            inh = decay[j] * held - x[j]
            u = gn[j] * (exc + inh)
            v[j] = u + held if first[j] == subtract else u
            s[j] = exc - th[j] if first[j] == subtract else exc
            i[j] = zero if first[j] == subtract else inh
        for j in range(n):
            v[j] = zero if first[j] == cleared else v[j]
            s[j] = zero if first[j] == cleared else s[j]
            i[j] = zero if first[j] == cleared else i[j]
        return
    if second:
        for j in range(n):
            s[j] = al[j] * s[j] + x[j]
            v[j] = decay[j] * v[j] + s[j]
    else:
        for j in range(n):
            v[j] = decay[j] * (zero if first[j] == zeroed else v[j]) + x[j]
    if fed_back:
        for j in range(n):
            v[j] = v[j] + fed[j] if first[j] == last else v[j]
    for j in range(n):
        u = v[j] - th[j] if first[j] == subtract else v[j]
        v[j] = zero if first[j] == cleared else u


@_inlined
def _write(array, index, vector, streams):
    if streams:
        stream(array, index, vector)
    else:
        store(array, index, vector)


@compiled
def _streams(array, low):
    """Whether to write rows past the cache from ``low`` on: they are more than fit, and aligned."""
    first = array.ctypes.data + low * array.itemsize
    aligned = first % LINE == 0 and array.strides[0] % LINE == 0
    return aligned and array.size * array.itemsize >= _STREAM


@_inlined
def _early(tile, steps):
    """First step of a tile; what is left after tiles of ``TILE`` steps are tiles of one step."""
    whole = steps // TILE
    return min(tile, whole) * TILE + max(tile - whole, 0)


@_inlined
def _leaky_rows(
    count,
    early,
    start,
    n,
    current,
    spikes,
    mem,
    crossing,
    v,
    first,
    b,
    th,
    peak,
    reset,
    stream_spikes,
    stream_mem,
    want_spikes,
    want_mem,
    want_crossing,
    read_all,
):
    """``count`` steps of a block from ``early`` on, each vector with its state in registers."""
    steps = current.shape[0]
    ahead = min(early + count, steps - count)
    for j in range(0, n, LANES):
        lane = start + j
        at = load(first, j)
        if not (read_all or any_lane(at == steps)):
            if want_spikes:
                for k in range(count):
                    _write(spikes, (early + k, lane), 0.0, stream_spikes)
            continue
        u, decay, threshold, height = load(v, j), load(b, j), load(th, j), load(peak, j)
        # A neuron that has fired has an infinite threshold.
        level = where(at == steps, threshold, np.inf)
        fall = threshold if reset == _SUBTRACT else full_like(threshold, 0.0)
        fires = at == early - 1
        for k in range(count):
            t = early + k
            prefetch(current, (ahead + k, lane))
            before = u
            held = where(fires, 0.0, u) if reset == _ZERO else u
            u = decay * held + load(current, (t, lane)) - where(fires, fall, 0.0)
            fires = u > level
            level = where(fires, np.inf, level)
            at = where(fires, t, at)
            if want_spikes:
                _write(spikes, (t, lane), where(fires, height, 0.0), stream_spikes)
            if want_mem:
                _write(mem, (t, lane), u, stream_mem)
            if want_crossing:
                below, above = load(crossing, (0, lane)), load(crossing, (1, lane))
                store(crossing, (0, lane), where(fires, before, below))
                store(crossing, (1, lane), where(fires, u, above))
        store(v, j, u)
        store(first, j, at)


@compiled
def _leaky_forward(
    low,
    high,
    current,
    beta,
    theta,
    height,
    mem_0,
    clamp,
    reset,
    spikes,
    mem,
    times,
    crossing,
    final,
):
    """:func:`_forward` of Leaky, in whole vectors; returns the first lane that is left."""
    steps = current.shape[0]
    never = np.int32(steps)
    dtype = current.dtype
    zero = dtype.type(0)
    want_spikes, want_mem = spikes.shape[0] > 0, mem.shape[0] > 0
    want_crossing, want_final = crossing.shape[0] > 0, final.shape[0] > 0
    read_all = want_mem or want_final
    stream_spikes, stream_mem = _streams(spikes, low), _streams(mem, low)
    v, b, th, peak = np.empty((4, BLOCK), dtype)
    first = np.empty(BLOCK, np.int32)
    active = np.empty(BLOCK, np.bool_)
    tiles = steps // TILE + steps % TILE
    whole = low + (high - low) // LANES * LANES
    for start in range(low, whole, BLOCK):
        stop = min(start + BLOCK, whole)
        n = stop - start
        _lanes(beta, start, n, b)
        if clamp:
            _clamp(b, n, active)
        _lanes(theta, start, n, th)
        _lanes(height, start, n, peak)
        _start(mem_0, start, n, v)
        first[:] = never
        if want_crossing:
            crossing[:, start:stop] = zero
        rows = start, n, current, spikes, mem, crossing, v, first, b, th, peak
        wanted = stream_spikes, stream_mem, want_spikes, want_mem, want_crossing, read_all
        for tile in range(tiles):
            early = _early(tile, steps)
            # Two calls, because a number that is written out is compiled in.
            if tile < steps // TILE:
                _leaky_rows(TILE, early, *rows, reset, *wanted)
            else:
                _leaky_rows(1, early, *rows, reset, *wanted)
            if not (read_all or want_spikes) and first[:n].max() < never:
                break
        for j in range(n):
            times[start + j] = first[j] if first[j] < never else -1
        if want_final:
            final[0, start:stop] = v[:n]
    fence()
    return whole


@compiled
def _forward(
    low,
    high,
    current,
    beta,
    theta,
    height,
    mem_0,
    alpha,
    gain,
    feedback,
    syn_0,
    inh_0,
    clamp,
    reset,
    spikes,
    mem,
    syn,
    inh,
    times,
    crossing,
    final,
):
    steps = current.shape[0]
    never = np.int32(steps)
    zero, one = current.dtype.type(0), current.dtype.type(1)
    second, third, fed_back = alpha.shape[0] > 0, gain.shape[0] > 0, feedback.shape[0] > 0
    want_spikes, want_mem = spikes.shape[0] > 0, mem.shape[0] > 0
    want_syn, want_inh = syn.shape[0] > 0, inh.shape[0] > 0
    want_crossing, want_final = crossing.shape[0] > 0, final.shape[0] > 0
    times_only = not (want_spikes or want_mem or want_syn or want_final)
    if high - low >= LANES and not (second or fed_back or reset == _CLEAR):
        low = _leaky_forward(
            low,
            high,
            current,
            beta,
            theta,
            height,
            mem_0,
            clamp,
            reset,
            spikes,
            mem,
            times,
            crossing,
            final,
        )
    v, before = np.empty(BLOCK, current.dtype), np.empty(BLOCK, current.dtype)
    s, i = np.empty(BLOCK, current.dtype), np.empty(BLOCK, current.dtype)
    unwanted = np.empty(BLOCK, current.dtype)
    b, th = np.empty(BLOCK, current.dtype), np.empty(BLOCK, current.dtype)
    al, gn = np.empty(BLOCK, current.dtype), np.empty(BLOCK, current.dtype)
    fed = np.empty(BLOCK, current.dtype)
    first = np.empty(BLOCK, np.int32)
    active = np.empty(BLOCK, np.bool_)
    graded = want_spikes and (height != one).any()
    for start in range(low, high, BLOCK):
        stop = min(start + BLOCK, high)
        n = stop - start
        _lanes(beta, start, n, b)
        if clamp:
            _clamp(b, n, active)
        _lanes(theta, start, n, th)
        _start(mem_0, start, n, v)
        if second:
            _lanes(alpha, start, n, al)
            _clamp(al, n, active)
            _start(syn_0, start, n, s)
        if third:
            _lanes(gain, start, n, gn)
            _start(inh_0, start, n, i)
        if fed_back:
            _lanes(feedback, start, n, fed)
            for j in range(n):
                fed[j] *= height[(start + j) % height.shape[0]]
        first[:] = never
        for t in range(steps):
            now = np.int32(t)
            spike_row = spikes[t, start:stop] if want_spikes else unwanted[:n]
            if want_crossing:
                before[:n] = v[:n]
            x = current[t, start:stop]
            _integrate(x, v, s, i, b, th, al, gn, fed, first, t, n, reset, second, third, fed_back)
            if want_mem:
                mem[t, start:stop] = v[:n]
            if want_syn:
                syn[t, start:stop] = s[:n]
            if want_inh:
                inh[t, start:stop] = i[:n]
            for j in range(n):
                first[j] = now if (v[j] > th[j]) & (first[j] == never) else first[j]
                spike_row[j] = one if first[j] == now else zero
            if want_crossing:
                for j in range(n):
                    if first[j] == now:
                        crossing[0, start + j] = before[j]
                        crossing[1, start + j] = v[j]
            if times_only and t % 8 == 7 and first[:n].max() < never:
                break
        for j in range(n):
            times[start + j] = first[j] if first[j] < never else -1
        if graded:
            for j in range(n):
                if first[j] < never:
                    spikes[first[j], start + j] = height[(start + j) % height.shape[0]]
        if want_final:
            final[0, start:stop] = v[:n]
            if second:
                final[1, start:stop] = s[:n]
            if third:
                final[2, start:stop] = i[:n]
        if want_crossing:
            for j in range(n):
                if first[j] == never:
                    crossing[0, start + j] = zero
                    crossing[1, start + j] = zero


@_inlined
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


@_inlined
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
                    _write(grad_current, (early + k, lane), 0.0, streams)
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
            if rule != _BLOCKED or want_beta:
                u = load(membranes, (t, column + j))
            if want_beta:
                store(d_beta, j, load(d_beta, j) + carried * u)
            if rule != _BLOCKED:
                prefetch(grad_spikes, (behind + k if each else 0, lane))
                g = load(grad_spikes, (t if each else 0, lane))
                if rule == _MASKED:
                    g = where(t <= at, g, 0.0)
                else:
                    total = load(tail, j) + (where(t < at, g, 0.0) if rule == _PRE_SPIKE else g)
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
                _write(grad_current, (t, lane), after, streams)
        store(lam, j, after)


@compiled
def _leaky_backward(
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
    """:func:`_backward` of Leaky, in whole vectors; returns the first lane that is left."""
    dtype = beta.dtype
    zero = dtype.type(0)
    recompute = current.shape[0] > 0
    want_current = grad_current.shape[0] > 0
    want_beta, want_theta = grad_beta.shape[0] > 0, grad_theta.shape[0] > 0
    has_h, has_at = grad_mem.shape[0] > 0, grad_at.shape[0] > 0
    if grad_spikes.shape[0] == 0:
        rule = _BLOCKED
    # Whether nothing reaches the membrane after the spike: then nothing is read there.
    closes = not has_h and rule != _STRAIGHT_THROUGH
    default = surrogate == _ATAN and rule == _MASKED and want_current
    default = default and not (has_h or has_at or want_beta or want_theta)
    streams = _streams(grad_current, low)
    # A reset comes this many steps after the spike, or never.
    lags = 1 if reset == _ZERO else steps + 1, 1 if reset == _SUBTRACT else steps + 1
    tiles = steps // TILE + steps % TILE
    block = BLOCK
    if recompute:
        block = max(LANES, min(BLOCK, _KEPT // steps // LANES * LANES))
    decay, th, peak, v_0, v, lam, tail, ramp, d_beta, d_theta = np.empty((10, block), dtype)
    first = np.empty(block, np.int32)
    membranes = np.empty((steps, block), dtype) if recompute else mem
    active = np.ones(block, np.bool_)
    whole = low + (high - low) // LANES * LANES
    for start in range(low, whole, block):
        stop = min(start + block, whole)
        n = stop - start
        _lanes(beta, start, n, decay)
        if clamp:
            _clamp(decay, n, active)
        _lanes(theta, start, n, th)
        _lanes(height, start, n, peak)
        _start(mem_0, start, n, v_0)
        v[:n] = v_0[:n]
        for j in range(n):
            first[j] = times[start + j] if times[start + j] >= 0 else steps
        lam[:], tail[:], ramp[:], d_beta[:], d_theta[:] = zero, zero, zero, zero, zero
        if recompute:
            block_again = start, n, current, membranes, v, first, decay, th, *lags, closes
            for tile in range(tiles):
                early = _early(tile, steps)
                if tile < steps // TILE:
                    _leaky_rows_again(TILE, early, *block_again)
                else:
                    _leaky_rows_again(1, early, *block_again)
        grads = grad_spikes, grad_mem, grad_at, grad_before, grad_current
        work = first, lam, tail, ramp, d_beta, d_theta, decay, th, peak, *lags
        column = 0 if recompute else start
        rows = start, n, membranes, column, *grads, *work
        how = a, b, streams
        wanted = closes, rule, has_h, has_at, want_current, want_beta, want_theta
        usual = True, _MASKED, False, False, True, False, False
        for tile in range(tiles - 1, -1, -1):
            early = _early(tile, steps)
            # The default is compiled by itself, as it were: a fifth faster.
            if tile < steps // TILE and default:
                _leaky_rows_back(TILE, early, *rows, *how, _ATAN, *usual)
            elif tile < steps // TILE:
                _leaky_rows_back(TILE, early, *rows, *how, surrogate, *wanted)
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
    return whole


@compiled
def _backward(
    low,
    high,
    steps,
    mem,
    current,
    syn,
    inh,
    beta,
    theta,
    height,
    mem_0,
    alpha,
    gain,
    feedback,
    syn_0,
    inh_0,
    clamp,
    reset,
    times,
    grad_spikes,
    grad_mem,
    grad_syn,
    grad_inh,
    grad_at,
    grad_before,
    grad_current,
    grad_beta,
    grad_theta,
    grad_mem_0,
    grad_alpha,
    grad_gain,
    grad_feedback,
    grad_syn_0,
    grad_inh_0,
    rule,
    surrogate,
    a,
    b,
):
    dtype = beta.dtype
    zero = dtype.type(0)
    recompute = current.shape[0] > 0
    second, third, fed_back = alpha.shape[0] > 0, gain.shape[0] > 0, feedback.shape[0] > 0
    want_current = grad_current.shape[0] > 0
    want_beta, want_theta = grad_beta.shape[0] > 0, grad_theta.shape[0] > 0
    want_alpha, want_gain = grad_alpha.shape[0] > 0, grad_gain.shape[0] > 0
    has_g, has_h, has_at = grad_spikes.shape[0] > 0, grad_mem.shape[0] > 0, grad_at.shape[0] > 0
    has_q, has_r = grad_syn.shape[0] > 0, grad_inh.shape[0] > 0
    through = (has_g or fed_back) and rule != _BLOCKED
    source = grad_current if recompute else mem
    if high - low >= LANES and not (second or fed_back or reset == _CLEAR):
        low = _leaky_backward(
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
        )
    # lam lives in the rows of grad_current, or in two rows of its own that take turns
    lam = grad_current if want_current and not second else np.empty((2, BLOCK), dtype)
    decay, th = np.empty(BLOCK, dtype), np.empty(BLOCK, dtype)
    peak, v_0 = np.empty(BLOCK, dtype), np.empty(BLOCK, dtype)
    slope, ramp = np.empty(BLOCK, dtype), np.empty(BLOCK, dtype)
    tail, zeros = np.empty(BLOCK, dtype), np.zeros(BLOCK, dtype)
    d_beta, d_theta = np.empty(BLOCK, dtype), np.empty(BLOCK, dtype)
    active = np.ones(BLOCK, np.bool_)
    first, limit = np.empty(BLOCK, np.int32), np.empty(BLOCK, np.int32)
    # Of neurons with synaptic currents or feedback
    al, gn = np.empty(BLOCK, dtype), np.empty(BLOCK, dtype)
    fed, weight = np.empty(BLOCK, dtype), np.empty(BLOCK, dtype)
    s_0, i_0, v = np.empty(BLOCK, dtype), np.empty(BLOCK, dtype), np.empty(BLOCK, dtype)
    s, i, total = np.empty(BLOCK, dtype), np.empty(BLOCK, dtype), np.empty(BLOCK, dtype)
    lam_s, lam_i = np.empty(BLOCK, dtype), np.empty(BLOCK, dtype)
    d_alpha, d_gain = np.empty(BLOCK, dtype), np.empty(BLOCK, dtype)
    active_alpha = np.empty(BLOCK, np.bool_)
    for start in range(low, high, BLOCK):
        stop = min(start + BLOCK, high)
        n = stop - start
        offset = start if want_current and not second else 0
        _lanes(beta, start, n, decay)
        if clamp:
            _clamp(decay, n, active)
        _lanes(theta, start, n, th)
        _lanes(height, start, n, peak)
        _start(mem_0, start, n, v_0)
        if second:
            _lanes(alpha, start, n, al)
            _clamp(al, n, active_alpha)
            _start(syn_0, start, n, s_0)
        if third:
            _lanes(gain, start, n, gn)
            _start(inh_0, start, n, i_0)
        if fed_back:
            _lanes(feedback, start, n, weight)
            fed[:n] = weight[:n] * peak[:n]
        for j in range(n):
            first[j] = times[start + j] if times[start + j] >= 0 else steps
        if recompute:
            # The membrane goes where its gradient will overwrite it, row by row.
            v[:n], s[:n], i[:n] = v_0[:n], s_0[:n], i_0[:n]
            for t in range(steps):
                x = current[t, start:stop]
                _integrate(
                    x, v, s, i, decay, th, al, gn, fed, first, t, n, reset, second, third, fed_back
                )
                grad_current[t, start:stop] = v[:n]
        limit[:] = steps
        if rule == _MASKED:
            limit[:n] = first[:n]
        tail[:], ramp[:], d_beta[:], d_theta[:] = zero, zero, zero, zero
        lam_s[:], lam_i[:], d_alpha[:], d_gain[:] = zero, zero, zero, zero
        after = zeros[:n]
        for k in range(steps - 1, -1, -1):
            now = np.int32(k)
            subtract, zeroed = _resets(reset, k + 1)
            row = lam[k % lam.shape[0], offset : offset + n]
            if want_theta and reset == _SUBTRACT and not third:
                for j in range(n):
                    d_theta[j] -= after[j] if first[j] == subtract else zero
            if want_beta and not third:
                held = source[k, start:stop]
                for j in range(n):
                    d_beta[j] += (zero if first[j] == zeroed else after[j]) * held[j]
            if through:
                g = zeros[:n]
                if has_g:
                    g = grad_spikes[k if grad_spikes.shape[0] > 1 else 0, start:stop]
                if fed_back:
                    for j in range(n):
                        total[j] = g[j] + weight[j] * after[j]  # peak follows below, for both
                    g = total[:n]
                if rule == _PRE_SPIKE:
                    for j in range(n):
                        tail[j] += g[j] if now < first[j] else zero
                        ramp[j] += tail[j]
                    g = ramp[:n]
                elif rule == _STRAIGHT_THROUGH:
                    for j in range(n):
                        tail[j] += g[j]
                        ramp[j] += tail[j]
                    g = ramp[:n]
                v[:n] = source[k, start:stop]
                for j in range(0, n, LANES):
                    distance = load(v, j) - load(th, j)
                    store(slope, j, surrogate_slope(distance, surrogate, a, b))
                for j in range(n):
                    slope[j] *= g[j] * peak[j] if now <= limit[j] else zero
                    row[j] = decay[j] * (zero if first[j] == zeroed else after[j]) + slope[j]
                if want_theta:
                    for j in range(n):
                        d_theta[j] -= slope[j]
                if third:
                    row[:] = slope[:n]  # the membrane of Alpha carries nothing over
            elif third:
                row[:] = zero
            else:
                for j in range(n):
                    row[j] = decay[j] * (zero if first[j] == zeroed else after[j])
            if has_h:
                h = grad_mem[k if grad_mem.shape[0] > 1 else 0, start:stop]
                for j in range(n):
                    row[j] += h[j]
            if has_at:
                for j in range(n):
                    row[j] += grad_at[start + j] if first[j] == now else zero
                    row[j] += grad_before[start + j] if first[j] == now + np.int32(1) else zero
            if second or fed_back or reset == _CLEAR:
                if grad_feedback.shape[0] > 0:
                    for j in range(n):
                        if first[j] == now:
                            grad_feedback[start + j] = after[j]
                if reset == _CLEAR:
                    for j in range(n):
                        row[j] = zero if first[j] == now - np.int32(1) else row[j]
                if want_alpha:
                    for j in range(n):
                        d_alpha[j] += lam_s[j] * syn[k, start + j]
                if third:
                    if want_beta:
                        for j in range(n):
                            d_beta[j] += lam_i[j] * inh[k, start + j]
                    if want_gain:
                        # What the gain multiplies at k+1; there the current cancels.
                        for j in range(n):
                            both = al[j] * syn[k, start + j] + decay[j] * inh[k, start + j]
                            d_gain[j] += after[j] * both
                if second:
                    for j in range(n):
                        lam_s[j] *= al[j]
                    if has_q:
                        q = grad_syn[k if grad_syn.shape[0] > 1 else 0, start:stop]
                        for j in range(n):
                            lam_s[j] += q[j]
                if third:
                    for j in range(n):
                        lam_i[j] *= decay[j]
                    if has_r:
                        r = grad_inh[k if grad_inh.shape[0] > 1 else 0, start:stop]
                        for j in range(n):
                            lam_i[j] += r[j]
                    if reset == _SUBTRACT:
                        for j in range(n):
                            if first[j] == now:
                                lam_i[j] += after[j]
                            if first[j] == now - np.int32(1):
                                d_theta[j] -= lam_s[j]
                                lam_i[j] = zero
                    for j in range(n):
                        lam_s[j] += gn[j] * row[j]
                        lam_i[j] += gn[j] * row[j]
                    if reset == _CLEAR:
                        for j in range(n):
                            lam_s[j] = zero if first[j] == now - np.int32(1) else lam_s[j]
                            lam_i[j] = zero if first[j] == now - np.int32(1) else lam_i[j]
                    if want_current:
                        grad_current[k, start:stop] = lam_s[:n] - lam_i[:n]
                elif second:
                    for j in range(n):
                        lam_s[j] += row[j]
                    if want_current:
                        grad_current[k, start:stop] = lam_s[:n]
            after = row
        if want_beta:
            for j in range(n):
                rest = lam_i[j] * i_0[j] if third else after[j] * v_0[j]
                grad_beta[start + j] = d_beta[j] + rest if active[j] else zero
        if want_theta:
            grad_theta[start:stop] = d_theta[:n]
        if grad_mem_0.shape[0] > 0:
            for j in range(n):
                grad_mem_0[start + j] = decay[j] * after[j]
        if want_alpha:
            for j in range(n):
                grad_alpha[start + j] = d_alpha[j] + lam_s[j] * s_0[j] if active_alpha[j] else zero
        if want_gain:
            for j in range(n):
                both = al[j] * s_0[j] + decay[j] * i_0[j]
                grad_gain[start + j] = d_gain[j] + after[j] * both
        if grad_feedback.shape[0] > 0:
            for j in range(n):
                if first[j] == steps:
                    grad_feedback[start + j] = zero
        if grad_syn_0.shape[0] > 0:
            grad_syn_0[start:stop] = al[:n] * lam_s[:n]
        if grad_inh_0.shape[0] > 0:
            grad_inh_0[start:stop] = decay[:n] * lam_i[:n]


@compiled
def _readout(low, high, current, beta, mem_0, value, sensitivity, step, reduction):
    steps = current.shape[0]
    zero = current.dtype.type(0)
    want_slope = sensitivity.shape[0] > 0
    v, slope = np.empty(BLOCK, current.dtype), np.empty(BLOCK, current.dtype)
    decay = np.empty(BLOCK, current.dtype)
    result, result_slope = np.empty(BLOCK, current.dtype), np.empty(BLOCK, current.dtype)
    active = np.empty(BLOCK, np.bool_)
    taken = np.empty(BLOCK, np.int32)
    for start in range(low, high, BLOCK):
        stop = min(start + BLOCK, high)
        n = stop - start
        _lanes(beta, start, n, decay)
        _clamp(decay, n, active)
        _start(mem_0, start, n, v)
        slope[:], result_slope[:] = zero, zero
        result[:] = -np.inf if reduction == _MAX else zero
        taken[:] = 0 if reduction == _MAX else steps - 1
        for t in range(steps):
            x = current[t, start:stop]
            if want_slope:
                for j in range(n):
                    slope[j] = v[j] + decay[j] * slope[j]
            for j in range(n):
                v[j] = decay[j] * v[j] + x[j]
            if reduction == _SUM:
                for j in range(n):
                    result[j] += v[j]
                    result_slope[j] += slope[j]
            elif reduction == _MAX:
                for j in range(n):
                    nan = (v[j] != v[j]) & (result[j] == result[j])  # NaN wins, as in torch.max
                    better = (v[j] > result[j]) | nan
                    result[j] = v[j] if better else result[j]
                    result_slope[j] = slope[j] if better else result_slope[j]
                    taken[j] = t if better else taken[j]
            else:
                result[:n], result_slope[:n] = v[:n], slope[:n]
        value[start:stop] = result[:n]
        if step.shape[0] > 0:
            for j in range(n):
                step[start + j] = taken[j]
        if want_slope:
            for j in range(n):
                sensitivity[start + j] = result_slope[j] if active[j] else zero


def _run(kernel: Callable[..., None], steps: int, lanes: int, *arguments: object) -> None:
    """Run ``kernel`` over all lanes, in pieces."""
    piece = max(BLOCK, _PIECE // steps // BLOCK * BLOCK)
    if torch.get_num_threads() == 1:
        piece = lanes
    pieces = [(low, min(low + piece, lanes)) for low in range(0, lanes, piece)]
    in_threads(kernel, [(*lanes_, *arguments) for lanes_ in pieces])


class _Narrowed:
    """Output arrays in state precision for outputs of a half type, copied back at the end."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self._pairs: list[tuple[Tensor, Tensor]] = []

    def array(self, tensor: Tensor | None, dimensions: int) -> np.ndarray:
        if tensor is None or tensor.dtype == self.dtype:
            return as_array(tensor, dimensions, self.dtype)
        wide = empty(tuple(tensor.shape), dtype=self.dtype, device=tensor.device)
        self._pairs.append((tensor, wide))
        return wide.numpy()

    def copy_back(self) -> None:
        for tensor, wide in self._pairs:
            tensor.copy_(wide)


def _neuron(neuron: Neuron, dtype: torch.dtype) -> tuple[Any, ...]:
    """What both loops take of a neuron, in their order."""
    return (
        as_array(neuron.beta, 1, dtype),
        as_array(neuron.threshold, 1, dtype),
        as_array(neuron.graded_spikes_factor, 1, dtype),
        as_array(neuron.mem, 1, dtype),
        as_array(neuron.alpha, 1, dtype),
        as_array(neuron.gain, 1, dtype),
        as_array(neuron.feedback, 1, dtype),
        as_array(neuron.syn, 1, dtype),
        as_array(neuron.inh, 1, dtype),
        neuron.clamp,
        RESETS[neuron.reset],
    )


def leaky_forward(current: Tensor, neuron: Neuron, out: ForwardOutputs) -> None:
    steps, lanes = current.shape
    dtype = state_dtype(current.dtype)
    results = _Narrowed(dtype)
    _run(
        _forward,
        steps,
        lanes,
        as_array(current, 2, dtype),
        *_neuron(neuron, dtype),
        results.array(out.spikes, 2),
        results.array(out.mem, 2),
        results.array(out.syn, 2),
        results.array(out.inh, 2),
        out.times.numpy(),
        results.array(out.crossing, 2),
        results.array(out.final, 2),
    )
    results.copy_back()


def leaky_backward(
    steps: int,
    dtype: torch.dtype,
    saved: Saved,
    neuron: Neuron,
    times: Tensor,
    grads: OutputGradients,
    rule: str,
    surrogate: Surrogate,
    out: InputGradients,
) -> None:
    lanes = times.numel()
    state = state_dtype(dtype)
    scalar = np.float64 if state == torch.float64 else np.float32
    results = _Narrowed(state)
    _run(
        _backward,
        steps,
        lanes,
        steps,
        as_array(None if saved.recompute else saved.tensor, 2, state),
        as_array(saved.tensor if saved.recompute else None, 2, state),
        as_array(saved.syn, 2, state),
        as_array(saved.inh, 2, state),
        *_neuron(neuron, state),
        times.numpy(),
        *(as_array(g, 2, state) for g in (grads.spikes, grads.mem, grads.syn, grads.inh)),
        as_array(grads.at, 1, state),
        as_array(grads.before, 1, state),
        results.array(out.current, 2),
        *(results.array(tensor, 1) for tensor in out[1:]),
        RULES[rule],
        SURROGATES[surrogate.name],
        scalar(surrogate.a),
        scalar(surrogate.b),
    )
    results.copy_back()


def leaky_readout(
    current: Tensor, beta: Tensor, mem: Tensor | None, reduction: str, out: ReadoutOutputs
) -> None:
    steps, lanes = current.shape
    dtype = state_dtype(current.dtype)
    results = _Narrowed(dtype)
    _run(
        _readout,
        steps,
        lanes,
        as_array(current, 2, dtype),
        as_array(beta, 1, dtype),
        as_array(mem, 1, dtype),
        results.array(out.value, 1),
        results.array(out.sensitivity, 1),
        as_array(out.step, 1, torch.int64),
        REDUCTIONS[reduction],
    )
    results.copy_back()
