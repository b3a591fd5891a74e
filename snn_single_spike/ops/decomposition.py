"""The operators of dense layers as plain torch operators, for exporters without our kernels.

``torch.onnx.export(..., dynamo=True)`` decomposes operators by torch's table. The decompositions
unroll the loop over time, so that the number of time steps is fixed in the exported graph.
``torch.compile`` and ``torch.export`` keep the operators.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..backends._types import FREE, RESET_NOW, SPIKED, ForwardOutputs, Neuron, state_dtype
from . import readout  # noqa: F401 - registers the operator
from ._library import decompose, take
from .neuron import Wanted


def _steps(current: Tensor) -> tuple[Tensor, ...]:
    if not isinstance(current.shape[0], int):
        raise ValueError(
            "the number of time steps is dynamic, but an ONNX graph has a fixed number of them: "
            "leave the time dimension out of dynamic_shapes, or export step() of a neuron"
        )
    return current.to(state_dtype(current.dtype)).unbind(0)


def _spread(parameter: Tensor, like: Tensor) -> Tensor:
    """A parameter (P,) of all neurons (M,)."""
    return parameter.to(like.dtype).repeat(like.shape[0] // parameter.shape[0])


@decompose("neuron_forward")
def neuron_forward(current: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    """See :func:`snn_single_spike.backends.torch.neuron.neuron_forward`."""
    arguments = iter(rest)
    neuron, wanted = take(Neuron, arguments), take(Wanted, arguments)
    dtype = state_dtype(current.dtype)
    zeros = torch.zeros_like(current[0], dtype=dtype)
    decay = neuron.beta.clamp(0.0, 1.0) if neuron.clamp else neuron.beta
    beta, theta = _spread(decay, zeros), _spread(neuron.threshold, zeros)
    factor = _spread(neuron.graded_spikes_factor, zeros)
    alpha = None if neuron.alpha is None else _spread(neuron.alpha.clamp(0.0, 1.0), zeros)
    gain = None if neuron.gain is None else _spread(neuron.gain, zeros)
    feedback = None if neuron.feedback is None else _spread(neuron.feedback, zeros)
    v = zeros if neuron.mem_0 is None else neuron.mem_0
    s = zeros if neuron.syn_0 is None else neuron.syn_0
    i = zeros if neuron.inh_0 is None else neuron.inh_0
    never = torch.zeros_like(zeros, dtype=torch.bool)
    fired, done = never, never  # one step before, and at any step before
    last, silent = torch.full_like(zeros, -1, dtype=torch.int64), neuron.refractory
    if silent is not None:
        last = torch.full_like(last, -silent - 2) if neuron.last_0 is None else neuron.last_0
        fired = last == -1
    spikes: list[Tensor] = []
    rows: dict[str, list[Tensor]] = {"mem": [], "syn": [], "inh": [], "before": [], "phase": []}
    for t, x in enumerate(_steps(current)):
        before, held = v, i
        if alpha is not None:
            s = alpha * s + x
        if gain is not None:
            i = beta * i - x
            v = gain * (s + i)
        else:
            if neuron.reset == "zero_before":
                before = torch.where(fired, 0.0, before)
            v = beta * before + (x if alpha is None else s)
        if feedback is not None:
            v = v + torch.where(fired, feedback * factor, 0.0)
        if neuron.reset == "subtract" and gain is None:
            v = torch.where(fired, v - theta, v)
        elif neuron.reset == "subtract":
            v = torch.where(fired, v + held, v)
            s, i = torch.where(fired, s - theta, s), torch.where(fired, 0.0, i)
        elif neuron.reset == "zero_after":
            v = torch.where(fired, 0.0, v)
            if gain is not None:
                s, i = torch.where(fired, 0.0, s), torch.where(fired, 0.0, i)
        free = ~done if silent is None else t - last > silent
        phase = FREE * free + RESET_NOW * fired
        fired = (v > theta) & free
        done, last = done | fired, torch.where(fired, t, last)
        rows["phase"].append((phase + SPIKED * fired).to(torch.uint8))
        for name, value in (("mem", v), ("syn", s), ("inh", i), ("before", before)):
            rows[name].append(value)
        spikes.append(fired)
    spiked = torch.stack(spikes)
    empty = current.new_empty(0)

    def whole(name: str, is_wanted: bool) -> Tensor:
        return torch.stack(rows[name]).to(current.dtype) if is_wanted else empty

    crossing = zeros.new_empty(0)
    if wanted.crossing:
        pair = (rows["before"], rows["mem"])
        crossing = torch.stack([torch.where(spiked, torch.stack(x), 0.0).sum(0) for x in pair])
    when = last.new_empty(0)
    if wanted.crossing:
        mem = torch.stack(rows["mem"])
        seen = torch.where(mem.isnan(), -torch.inf, mem)
        when = torch.where(last < 0, seen.argmax(0), last)
        crossing = torch.stack((crossing[0], torch.where(last < 0, seen.amax(0), crossing[1])))
    final = torch.stack([v, s, i][: neuron.num_states])
    out = ForwardOutputs(
        spikes=torch.where(spiked, factor, 0.0).to(current.dtype) if wanted.spikes else empty,
        mem=whole("mem", wanted.mem),
        syn=whole("syn", wanted.syn and alpha is not None),
        inh=whole("inh", wanted.syn and gain is not None),
        crossing=crossing,
        final=final.to(current.dtype) if wanted.final else empty,
        times=last,
        phase=torch.stack(rows["phase"]) if wanted.phase else empty.to(torch.uint8),
        when=when,
    )
    return out  # type: ignore[return-value]


@decompose("readout")
def leaky_readout(
    current: Tensor,
    beta: Tensor,
    mem_0: Tensor | None,
    reduction: str,
    sensitivity: bool,
    step: bool,
    backend: str,
) -> tuple[Tensor, ...]:
    """See :func:`snn_single_spike.backends.torch.readout.readout`; without a backward pass."""
    dtype = state_dtype(current.dtype)
    zeros = torch.zeros_like(current[0], dtype=dtype)
    decay, v = _spread(beta.clamp(0.0, 1.0), zeros), zeros if mem_0 is None else mem_0
    rows = []
    for x in _steps(current):
        v = decay * v + x
        rows.append(v)
    mem = torch.stack(rows)
    value = {"sum": mem.sum(0), "max": mem.amax(0), "last": v}[reduction]
    empty = current.new_empty(0)
    return value.to(current.dtype), empty, empty.to(torch.int64)
