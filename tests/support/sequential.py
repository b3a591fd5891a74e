"""Single-spike neurons one step at a time in float64: slow, autograd makes every gradient.

This module is written from the equations of snnTorch's neurons. A neuron is a function that
computes one step. :func:`run` gates the neuron to one spike, and builds dense spikes whose gradient
path is the gradient rule.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

Tensors = Mapping[str, Tensor]
Step = Callable[[Tensor, Tensors, Tensors, Tensor, str], dict[str, Tensor]]
"""`(input, parameters, state, reset_now, reset_mechanism) -> state`"""


class Trace(NamedTuple):
    """The result of :func:`run`."""

    spikes: Tensor
    """(T, B, *features)"""
    states: dict[str, Tensor]
    """"mem" and the synaptic currents, each (T, B, *features)."""
    times: Tensor
    """First spike, -1 for a silent neuron; interpolated under "spike_time"."""


def clip(decay):
    """clamp(decay, 0, 1) with a gradient at the bounds. torch's clamp has none from 2.14 on."""
    inside = decay.detach().clamp(0, 1)
    return torch.where(decay == inside, decay, inside)


def _reset(mem: Tensor, threshold: Tensor, now: Tensor, mechanism: str) -> Tensor:
    """Reset of a membrane that has been integrated."""
    if mechanism == "subtract":
        return torch.where(now, mem - threshold, mem)
    return torch.where(now, 0.0, mem) if mechanism == "zero" else mem


def leaky(x: Tensor, p: Tensors, state: Tensors, now: Tensor, mechanism: str) -> dict[str, Tensor]:
    """snn.Leaky: "zero" acts before the integration, "subtract" after it."""
    mem = state["mem"]
    if mechanism == "zero":
        mem = torch.where(now, 0.0, mem)
    mem = clip(p["beta"]) * mem + x
    return {"mem": _reset(mem, p["threshold"], now, mechanism) if mechanism != "zero" else mem}


def synaptic(
    x: Tensor, p: Tensors, state: Tensors, now: Tensor, mechanism: str
) -> dict[str, Tensor]:
    """snn.Synaptic: the synaptic current is never reset."""
    syn = clip(p["alpha"]) * state["syn"] + x
    mem = clip(p["beta"]) * state["mem"] + syn
    return {"syn": syn, "mem": _reset(mem, p["threshold"], now, mechanism)}


def alpha(x: Tensor, p: Tensors, state: Tensors, now: Tensor, mechanism: str) -> dict[str, Tensor]:
    """snn.Alpha: the membrane is a function of the two currents, and the reset acts on them."""
    rise, fall = clip(p["alpha"]), clip(p["beta"])
    exc = rise * state["syn_exc"] + x
    inh = fall * state["syn_inh"] - x
    mem = (rise.log() / (fall.log() - rise.log()) + 1) * (exc + inh)
    if mechanism == "zero":
        exc, inh, mem = (torch.where(now, 0.0, value) for value in (exc, inh, mem))
    elif mechanism == "subtract":
        exc = torch.where(now, exc - p["threshold"], exc)
        inh = torch.where(now, 0.0, inh)
        mem = torch.where(now, mem + state["syn_inh"], mem)
    return {"syn_exc": exc, "syn_inh": inh, "mem": mem}


def lapicque(
    x: Tensor, p: Tensors, state: Tensors, now: Tensor, mechanism: str
) -> dict[str, Tensor]:
    """snn.Lapicque: no decay is clamped. Without C, beta determines C."""
    dt, R = p["time_step"], p["R"]
    C = p["C"] if "C" in p else dt / (R * torch.log(1 / p["beta"]))
    mem = x * R * (1 / (R * C)) * dt + (1 - dt / (R * C)) * state["mem"]
    return {"mem": _reset(mem, p["threshold"], now, mechanism)}


def rleaky(x: Tensor, p: Tensors, state: Tensors, now: Tensor, mechanism: str) -> dict[str, Tensor]:
    """snn.RLeaky with all_to_all=False: the last spike of a neuron enters its membrane."""
    mem = clip(p["beta"]) * state["mem"] + x + p["V"] * state["spk"]
    return {"mem": _reset(mem, p["threshold"], now, mechanism)}


def run(
    step: Step,
    current: Tensor,
    parameters: Tensors,
    states: Tensors,
    surrogate: Callable[[Tensor], Tensor],
    rule: str,
    reset: str,
    refractory: int | None = None,
) -> Trace:
    """
    A whole sequence, one spike and one reset per neuron; with ``refractory`` any number of them.

    :param current: (T, B, *features)
    :param parameters: by the names of the neuron's step, "threshold" and maybe "factor"
    :param states: initial states (B, *features); an absent state is zeros
    :param refractory: number of silent steps after each spike
    :param surrogate: differentiable function of mem - threshold, used for its derivative only
    """
    num_steps, zeros = current.shape[0], torch.zeros_like(current[0])
    theta, factor = parameters["threshold"], parameters.get("factor", zeros + 1)
    state: dict[str, Tensor] = {name: zeros for name in ("syn", "syn_exc", "syn_inh", "mem", "spk")}
    state |= states
    first = torch.full(zeros.shape, num_steps, device=zeros.device)  # as long as it is silent
    last = torch.full_like(first, -(1 << 40))
    if refractory == 0:  # snnTorch resets an initial membrane above the threshold
        last = torch.where(state["mem"] > theta, -1, last)
    once = twice = zeros
    spikes: list[Tensor] = []
    trace: list[dict[str, Tensor]] = []
    for t, x in enumerate(current):
        spiked = first if refractory is None else last
        after = step(x, parameters, state, spiked == t - 1, reset)
        free = first == num_steps if refractory is None else t - last > refractory
        fires = (after["mem"] > theta) & free
        first, last = (torch.where(fires, t, spike) for spike in (first, last))
        crossing = surrogate(after["mem"] - theta)
        path = crossing - crossing.detach()  # 0 in value, the surrogate in gradient
        once = once + path
        twice = twice + once  # (t - k + 1) times each path since k = 0
        if rule == "masked":
            path = torch.where(free, path, 0.0)
        elif rule == "straight_through":
            path = twice
        else:
            path = torch.where(t < first, twice, 0.0) if rule == "pre_spike" else zeros
        spikes.append(factor * (fires.to(zeros) + path))
        trace.append(after)
        state = after | {"spk": spikes[t]}

    dense = torch.stack(spikes)
    record = {name: torch.stack([after[name] for after in trace]) for name in trace[0]}
    times = torch.where(first == num_steps, -1, first)
    if rule == "spike_time":
        # Where the straight line between the steps around the spike meets the threshold.
        crosses = times >= 1
        above = record["mem"].gather(0, times.clamp(min=0)[None])[0]
        below = record["mem"].gather(0, (times - 1).clamp(min=0)[None])[0]
        rise = torch.where(crosses, above - below, 1.0)
        interpolated_times = torch.where(
            crosses, times - 1 + (theta - below) / rise, times.to(zeros)
        )
        step_ = torch.arange(num_steps, device=zeros.device).view(-1, *[1] * zeros.dim())
        share = (step_ == times).to(zeros) - (step_ == times - 1).to(zeros)
        dense = dense + torch.where(
            crosses, factor * (interpolated_times - interpolated_times.detach()) * share, 0.0
        )
        # A silent neuron: the surrogate at the peak of the membrane.
        peak, m = record["mem"].max(0)
        path = surrogate(peak - theta)
        path = factor * torch.where(times < 0, path - path.detach(), 0.0)
        dense = dense + path * (step_ == m)
        times = interpolated_times
    return Trace(dense, record, times)
