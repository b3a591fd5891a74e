"""The method, sequential and in float64: slow, and easy to check against the papers.

This module is written from the equations and shares no code with the implementations that the tests
compare with the reference. `I` is (T, M); `beta`, `theta` and `factor` are (M,); all arrays are
numpy float64. Formulas: Taylor, King and Harper, arXiv:2205.15286, and docs/method.md.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


class Forward(NamedTuple):
    spikes: Array
    mem: Array
    times: NDArray[np.int64]
    """First spike, T for a silent neuron."""
    interpolated_times: Array
    """Interpolated crossing, T for a silent neuron."""


class Gradients(NamedTuple):
    current: Array
    beta: Array
    theta: Array
    mem_0: Array
    factor: Array


def forward(
    I: Array, beta: Array, theta: Array, factor: Array, mem_0: Array, reset: str = "none"
) -> Forward:
    """V[t] = clamp(beta, 0, 1) V[t-1] + I[t], one spike at the first V[t] > theta, one reset."""
    T, M = I.shape
    decay = np.clip(beta, 0.0, 1.0)
    spikes, mem = np.zeros((T, M)), np.zeros((T, M))
    times, interpolated_times = np.full(M, T), np.full(M, float(T))
    for m in range(M):
        v = mem_0[m]
        for t in range(T):
            reset_now = times[m] == t - 1
            previous = 0.0 if reset == "zero" and reset_now else v
            v = decay[m] * previous + I[t, m]
            if reset == "subtract" and reset_now:
                v -= theta[m]
            mem[t, m] = v
            if v > theta[m] and times[m] == T:
                times[m] = t
                spikes[t, m] = factor[m]
                interpolated_times[m] = (
                    0.0 if t == 0 else t - 1 + (theta[m] - previous) / (v - previous)
                )
    return Forward(spikes, mem, times, interpolated_times)


def backward(
    I: Array,
    beta: Array,
    theta: Array,
    factor: Array,
    mem_0: Array,
    result: Forward,
    slope: Callable[[Array], Array],
    g: Array,
    h: Array,
    grad_tau: Array,
    rule: str,
    reset: str = "none",
) -> Gradients:
    """Gradients of a loss with dL/dS = g, dL/dV = h and dL/dtau = grad_tau.

    ``slope`` is the derivative of the surrogate. Gradients are per neuron and sample, not summed.
    """
    T, M = I.shape
    decay = np.clip(beta, 0.0, 1.0)
    clamped = (beta < 0.0) | (beta > 1.0)
    out = Gradients(np.zeros((T, M)), np.zeros(M), np.zeros(M), np.zeros(M), np.zeros(M))
    for m in range(M):
        V, spike = result.mem[:, m], int(result.times[m])
        if spike < T:
            out.factor[m] = g[spike, m]
        dS = g[:, m] * factor[m]

        to_v = h[:, m].copy()  # dL/dV[k], directly
        for k in range(T):
            if rule == "masked":
                dc = dS[k] if k <= spike else 0.0
            elif rule == "straight_through":
                dc = sum((t - k + 1) * dS[t] for t in range(k, T))
            elif rule == "pre_spike":
                dc = sum((t - k + 1) * dS[t] for t in range(k, spike)) if k < spike else 0.0
            else:
                dc = 0.0
            if dc != 0.0:
                through = slope(V[k] - theta[m]) * dc
                to_v[k] += through
                out.theta[m] -= through
        if rule == "spike_time" and 1 <= spike < T:
            below, above = V[spike - 1], V[spike]
            d_tau = grad_tau[m] + dS[spike] - dS[spike - 1]
            rise = above - below
            to_v[spike] -= d_tau * (theta[m] - below) / rise**2
            to_v[spike - 1] += d_tau * (theta[m] - above) / rise**2
            out.theta[m] += d_tau / rise
        if rule == "spike_time" and spike == T:
            peak = int(np.argmax(V))  # as if the neuron fired there
            through = slope(V[peak] - theta[m]) * dS[peak]
            to_v[peak] += through
            out.theta[m] -= through

        lam = 0.0
        for k in reversed(range(T)):
            # From V[k+1] = decay * V[k] + I[k+1], and the reset at k+1 if the spike was at k
            carry = 0.0 if reset == "zero" and k == spike else lam
            if reset == "subtract" and k == spike:
                out.theta[m] -= lam
            out.beta[m] += carry * V[k]
            lam = to_v[k] + decay[m] * carry
            out.current[k, m] = lam
        out.beta[m] = 0.0 if clamped[m] else out.beta[m] + lam * mem_0[m]
        out.mem_0[m] = decay[m] * lam
    return out
