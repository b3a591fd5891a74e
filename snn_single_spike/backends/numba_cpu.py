"""Fused CPU loops, compiled by numba on their first use and cached on disk after it.

A block of neighbouring neurons is carried through all time steps with its state in the
first-level cache, so that every (T, M) tensor is read or written once. The loops over a
block are free of branches, and vectorised. No fast-math, so that spikes are decided as
eager torch decides them.

Threads are Python threads over ranges of neurons (the loops hold no GIL), as many as
``torch.get_num_threads()``: numba's own threading layers clash with forked data loaders.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
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

BLOCK = 1024
_MIN_WORK = 1 << 17  # elements (T * M) worth a thread of their own

RESETS = {"none": 0, "subtract": 1, "zero": 2}
RULES = {"masked": 0, "pre_spike": 1, "straight_through": 2, "spike_time": 3}
SURROGATES = {
    "atan": 0,
    "fast_sigmoid": 1,
    "sigmoid": 2,
    "straight_through_estimator": 3,
    "triangular": 4,
    "heaviside": 5,
    "spike_rate_escape": 6,
    "SFS": 7,
    "LSO": 8,
}
REDUCTIONS = {"sum": 0, "max": 1, "last": 2}
_SUBTRACT, _ZERO = RESETS["subtract"], RESETS["zero"]
_MASKED, _PRE_SPIKE, _STRAIGHT_THROUGH = (
    RULES["masked"],
    RULES["pre_spike"],
    RULES["straight_through"],
)
_SUM, _MAX = REDUCTIONS["sum"], REDUCTIONS["max"]


def _compile(function: Any) -> Any:
    options = {"nogil": True, "error_model": "numpy"}
    try:
        return numba.njit(cache=True, **options)(function)
    except RuntimeError:  # nowhere to write a cache: compile again in every process
        return numba.njit(**options)(function)


@_compile
def _lanes(parameter, start, n, out):
    """One value per lane of a parameter repeated over the batch."""
    size = parameter.shape[0]
    for j in range(n):
        out[j] = parameter[(start + j) % size]


@_compile
def _clamp(beta, n, active):
    """clamp(beta, 0, 1) in place, and where it passes a gradient on."""
    zero, one = beta.dtype.type(0), beta.dtype.type(1)
    for j in range(n):
        b = beta[j]
        active[j] = (b >= zero) & (b <= one)
        b = zero if b < zero else b
        beta[j] = one if b > one else b


@_compile
def _start(mem, start, n, v):
    for j in range(n):
        v[j] = mem[start + j] if mem.shape[0] > 0 else v.dtype.type(0)


@_compile
def _resets(reset, t):
    """The steps whose spikes subtract, or zero, the membrane at ``t``; -2 is no step."""
    return np.int32(t - 1 if reset == _SUBTRACT else -2), np.int32(t - 1 if reset == _ZERO else -2)


@_compile
def _forward(
    low, high, current, beta, theta, height, mem_0, spikes, mem, times, crossing, final, reset
):
    steps = current.shape[0]
    never = np.int32(steps)
    zero, one = current.dtype.type(0), current.dtype.type(1)
    want_spikes, want_mem = spikes.shape[0] > 0, mem.shape[0] > 0
    want_crossing, want_final = crossing.shape[0] > 0, final.shape[0] > 0
    times_only = not (want_spikes or want_mem or want_final)
    v, before = np.empty(BLOCK, current.dtype), np.empty(BLOCK, current.dtype)
    unwanted = np.empty((2, BLOCK), current.dtype)
    b, th = np.empty(BLOCK, current.dtype), np.empty(BLOCK, current.dtype)
    first = np.empty(BLOCK, np.int32)
    active = np.empty(BLOCK, np.bool_)
    graded = want_spikes and (height != one).any()
    for start in range(low, high, BLOCK):
        stop = min(start + BLOCK, high)
        n = stop - start
        _lanes(beta, start, n, b)
        _clamp(b, n, active)
        _lanes(theta, start, n, th)
        _start(mem_0, start, n, v)
        first[:] = never
        for t in range(steps):
            now = np.int32(t)
            subtract, clear = _resets(reset, t)
            x = current[t, start:stop]
            # Two loops over the block: more take longer, and one has too many arrays for the
            # compiler to prove them apart, so it would not be vectorised.
            mem_row = mem[t, start:stop] if want_mem else unwanted[0, :n]
            spike_row = spikes[t, start:stop] if want_spikes else unwanted[1, :n]
            if want_crossing:
                before[:n] = v[:n]
            for j in range(n):
                u = b[j] * (zero if first[j] == clear else v[j]) + x[j]
                u = u - th[j] if first[j] == subtract else u
                v[j] = u
                mem_row[j] = u
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
            final[start:stop] = v[:n]
        if want_crossing:
            for j in range(n):
                if first[j] == never:
                    crossing[0, start + j] = zero
                    crossing[1, start + j] = zero


@_compile
def _slope(v, theta, surrogate, a, b, out, n):
    """s'(v - theta) of one block."""
    kind = out.dtype.type
    zero, half, one = kind(0), kind(0.5), kind(1)
    if surrogate == 0:
        scale = kind(np.pi / 2) * a
        for j in range(n):
            x = scale * (v[j] - theta[j])
            out[j] = half * a / (one + x * x)
    elif surrogate == 1:
        for j in range(n):
            x = a * abs(v[j] - theta[j]) + one
            out[j] = one / (x * x)
    elif surrogate == 2:
        for j in range(n):
            e = np.exp(-abs(a * (v[j] - theta[j])))  # cannot overflow
            out[j] = a * e / ((one + e) * (one + e))
    elif surrogate == 3:
        out[:n] = one
    elif surrogate == 4:
        for j in range(n):
            out[j] = a if v[j] - theta[j] < zero else -a
    elif surrogate == 5:
        for j in range(n):
            out[j] = one if v[j] - theta[j] > zero else zero
    elif surrogate == 6:
        for j in range(n):
            out[j] = b * np.exp(-a * abs(v[j] - theta[j] - one))
    elif surrogate == 7:
        for j in range(n):
            u = v[j] - theta[j]
            x = a * abs(u) + one
            out[j] = one / (x * x) if u > b else zero
    else:
        for j in range(n):
            out[j] = one if v[j] - theta[j] > zero else a


@_compile
def _backward(
    low,
    high,
    steps,
    mem,
    current,
    beta,
    theta,
    height,
    mem_0,
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
    reset,
    surrogate,
    a,
    b,
):
    zero = beta.dtype.type(0)
    recompute = current.shape[0] > 0
    want_current = grad_current.shape[0] > 0
    want_beta, want_theta = grad_beta.shape[0] > 0, grad_theta.shape[0] > 0
    has_g, has_h, has_at = grad_spikes.shape[0] > 0, grad_mem.shape[0] > 0, grad_at.shape[0] > 0
    source = grad_current if recompute else mem
    # lam lives in the rows of grad_current, or in two rows of its own that take turns
    lam = grad_current if want_current else np.empty((2, BLOCK), beta.dtype)
    decay, th = np.empty(BLOCK, beta.dtype), np.empty(BLOCK, beta.dtype)
    peak, v_0 = np.empty(BLOCK, beta.dtype), np.empty(BLOCK, beta.dtype)
    slope, ramp = np.empty(BLOCK, beta.dtype), np.empty(BLOCK, beta.dtype)
    tail, zeros = np.empty(BLOCK, beta.dtype), np.zeros(BLOCK, beta.dtype)
    d_beta, d_theta = np.empty(BLOCK, beta.dtype), np.empty(BLOCK, beta.dtype)
    active = np.empty(BLOCK, np.bool_)
    first, limit = np.empty(BLOCK, np.int32), np.empty(BLOCK, np.int32)
    for start in range(low, high, BLOCK):
        stop = min(start + BLOCK, high)
        n = stop - start
        offset = start if want_current else 0
        _lanes(beta, start, n, decay)
        _clamp(decay, n, active)
        _lanes(theta, start, n, th)
        _lanes(height, start, n, peak)
        _start(mem_0, start, n, v_0)
        for j in range(n):
            first[j] = times[start + j] if times[start + j] >= 0 else steps
        if recompute:
            # The membrane goes where its gradient will overwrite it, row by row.
            before = v_0[:n]
            for t in range(steps):
                subtract, clear = _resets(reset, t)
                x, v = current[t, start:stop], grad_current[t, start:stop]
                for j in range(n):
                    u = decay[j] * (zero if first[j] == clear else before[j]) + x[j]
                    v[j] = u - th[j] if first[j] == subtract else u
                before = v
        limit[:] = steps
        if rule == _MASKED:
            limit[:n] = first[:n]
        tail[:], ramp[:], d_beta[:], d_theta[:] = zero, zero, zero, zero
        after = zeros[:n]
        for k in range(steps - 1, -1, -1):
            now = np.int32(k)
            subtract, clear = _resets(reset, k + 1)
            row = lam[k % lam.shape[0], offset : offset + n]
            if want_theta and reset == _SUBTRACT:
                for j in range(n):
                    d_theta[j] -= after[j] if first[j] == subtract else zero
            if want_beta:
                v = source[k, start:stop]
                for j in range(n):
                    d_beta[j] += (zero if first[j] == clear else after[j]) * v[j]
            if has_g:
                g = grad_spikes[k if grad_spikes.shape[0] > 1 else 0, start:stop]
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
                _slope(source[k, start:stop], th, surrogate, a, b, slope, n)
                for j in range(n):
                    slope[j] *= g[j] * peak[j] if now <= limit[j] else zero
                    row[j] = decay[j] * (zero if first[j] == clear else after[j]) + slope[j]
                if want_theta:
                    for j in range(n):
                        d_theta[j] -= slope[j]
            else:
                for j in range(n):
                    row[j] = decay[j] * (zero if first[j] == clear else after[j])
            if has_h:
                h = grad_mem[k if grad_mem.shape[0] > 1 else 0, start:stop]
                for j in range(n):
                    row[j] += h[j]
            if has_at:
                for j in range(n):
                    row[j] += grad_at[start + j] if first[j] == now else zero
                    row[j] += grad_before[start + j] if first[j] == now + np.int32(1) else zero
            after = row
        if want_beta:
            for j in range(n):
                grad_beta[start + j] = d_beta[j] + after[j] * v_0[j] if active[j] else zero
        if want_theta:
            grad_theta[start:stop] = d_theta[:n]
        if grad_mem_0.shape[0] > 0:
            for j in range(n):
                grad_mem_0[start + j] = decay[j] * after[j]


@_compile
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


@functools.cache
def _pool(process: int) -> ThreadPoolExecutor:
    """Worker threads; a forked process gets its own."""
    return ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="snn_single_spike")


def _run(kernel: Callable[..., None], steps: int, lanes: int, *arguments: object) -> None:
    """Run ``kernel`` over all lanes, split among torch's number of threads."""
    threads = min(torch.get_num_threads(), -(-lanes // BLOCK), steps * lanes // _MIN_WORK)
    if threads <= 1:
        kernel(0, lanes, *arguments)
        return
    share = -(-lanes // (threads * BLOCK)) * BLOCK
    ranges = [(low, min(low + share, lanes)) for low in range(0, lanes, share)]
    waiting = []
    try:
        while len(ranges) > 1:
            waiting.append(_pool(os.getpid()).submit(kernel, *ranges[-1], *arguments))
            ranges.pop()
    except RuntimeError:
        pass  # the interpreter is shutting down and takes no new work: the rest runs here
    for low, high in ranges:
        kernel(low, high, *arguments)
    for future in waiting:
        future.result()


@functools.cache
def _nothing(dimensions: int, dtype: torch.dtype) -> np.ndarray:
    """Stands for None in a compiled loop."""
    return torch.empty((0,) * dimensions, dtype=dtype).numpy()


def _array(tensor: Tensor | None, dimensions: int, dtype: torch.dtype) -> np.ndarray:
    """A numpy view, widened to ``dtype`` where needed; an empty array for None."""
    if tensor is None:
        return _nothing(dimensions, dtype)
    return tensor.detach().to(dtype).numpy()


class _Narrowed:
    """Output arrays in state precision for outputs of a half type, copied back at the end."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self._pairs: list[tuple[Tensor, Tensor]] = []

    def array(self, tensor: Tensor | None, dimensions: int) -> np.ndarray:
        if tensor is None or tensor.dtype == self.dtype:
            return _array(tensor, dimensions, self.dtype)
        wide = torch.empty(tensor.shape, dtype=self.dtype)
        self._pairs.append((tensor, wide))
        return wide.numpy()

    def copy_back(self) -> None:
        for tensor, wide in self._pairs:
            tensor.copy_(wide)


def leaky_forward(current: Tensor, neuron: Neuron, out: ForwardOutputs) -> None:
    steps, lanes = current.shape
    dtype = state_dtype(current.dtype)
    results = _Narrowed(dtype)
    _run(
        _forward,
        steps,
        lanes,
        _array(current, 2, dtype),
        _array(neuron.beta, 1, dtype),
        _array(neuron.threshold, 1, dtype),
        _array(neuron.graded_spikes_factor, 1, dtype),
        _array(neuron.mem, 1, dtype),
        results.array(out.spikes, 2),
        results.array(out.mem, 2),
        out.times.numpy(),
        results.array(out.crossing, 2),
        results.array(out.final, 1),
        RESETS[neuron.reset],
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
        _array(None if saved.recompute else saved.tensor, 2, state),
        _array(saved.tensor if saved.recompute else None, 2, state),
        _array(neuron.beta, 1, state),
        _array(neuron.threshold, 1, state),
        _array(neuron.graded_spikes_factor, 1, state),
        _array(neuron.mem, 1, state),
        times.numpy(),
        _array(grads.spikes, 2, state),
        _array(grads.mem, 2, state),
        _array(grads.at, 1, state),
        _array(grads.before, 1, state),
        results.array(out.current, 2),
        results.array(out.beta, 1),
        results.array(out.threshold, 1),
        results.array(out.mem, 1),
        RULES[rule],
        RESETS[neuron.reset],
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
        _array(current, 2, dtype),
        _array(beta, 1, dtype),
        _array(mem, 1, dtype),
        results.array(out.value, 1),
        results.array(out.sensitivity, 1),
        _array(out.step, 1, torch.int64),
        REDUCTIONS[reduction],
    )
    results.copy_back()
