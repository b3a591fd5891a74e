"""A linear layer and its neurons from spike times, in plain torch.

The functions compute the dense product and the dense loops of :mod:`.neuron` for a few samples at a
time. Memory does not grow with the batch. Computation takes as long as on dense tensors.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from .._events import Events, sort_by_time
from .._surrogate import Surrogate
from .._types import (
    ClosedFormAdjoint,
    ForwardOutputs,
    GradientFactors,
    LinearGradients,
    LinearNeurons,
    OutputGradients,
    ReadoutOutputs,
    Saved,
)
from ..adjoint import adjoint_rows
from .neuron import neuron_backward, neuron_forward
from .readout import readout

_ELEMENTS = 1 << 22  # most elements of a dense tensor of some samples

sort_spikes = sort_by_time


def _without_autocast(function: Callable[..., None]) -> Callable[..., None]:
    """A function of events that computes in the type of its weights, as the other backends do."""

    @functools.wraps(function)
    def computed(events: Events, *arguments: Any) -> None:
        with torch.autocast(events.times.device.type, enabled=False):
            function(events, *arguments)

    return computed


def _pieces(num_steps: int, batch: int, width: int) -> Iterator[slice]:
    size = max(_ELEMENTS // (num_steps * width), 1)
    return (slice(low, min(low + size, batch)) for low in range(0, batch, size))


def _dense(events: Events, num_steps: int, weight: Tensor, samples: slice) -> Tensor:
    """The dense spikes (T, n, N) of some samples."""
    return events.part(samples).to_dense(num_steps, weight.shape[1], weight.dtype)


def _current(spikes: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return torch.nn.functional.linear(spikes, weight, bias).flatten(1)


@_without_autocast
def linear_first_spikes(
    events: Events,
    num_steps: int,
    layer: LinearNeurons,
    times: Tensor,
    crossing: Tensor | None,
    sensitivity: Tensor | None,
) -> None:
    batch, out_features = times.shape
    neuron = layer.neuron()._replace(reset="none")
    for part in _pieces(num_steps, batch, max(layer.weight.shape)):
        spikes = _dense(events, num_steps, layer.weight, part)
        current = _current(spikes, layer.weight, layer.bias)
        n = spikes.shape[1]
        first = times.new_empty(n * out_features, dtype=torch.int64)
        around = current.new_empty(2, n * out_features)
        mem = torch.empty_like(current) if sensitivity is not None else None
        out = ForwardOutputs(None, mem, None, None, around, None, first)
        neuron_forward(current, neuron, out)
        times[part] = first.view(n, out_features).to(times.dtype)
        if crossing is not None:
            crossing[:, part] = around.view(2, n, out_features)
        if sensitivity is not None and mem is not None:
            # p[t] = dV[t]/dbeta = V[t-1] + beta p[t-1]: the membrane itself is integrated.
            late = torch.cat([torch.zeros_like(mem[:1]), mem[:-1]])
            slope = torch.empty_like(late)
            never = neuron._replace(threshold=torch.full_like(neuron.threshold, torch.inf))
            unused = torch.empty_like(first)
            outputs = ForwardOutputs(None, slope, None, None, None, None, unused)
            neuron_forward(late, never, outputs)
            for place, step in enumerate((first - 1, first)):
                at = torch.where(first >= 0, step.clamp(min=0), 0)
                value = slope.gather(0, at[None])[0]
                fires = (first >= 0) & (step >= 0)
                sensitivity[place, part] = torch.where(fires, value, 0).view(n, out_features)


@_without_autocast
def linear_readout(
    events: Events,
    num_steps: int,
    weight: Tensor,
    bias: Tensor,
    beta: Tensor,
    reduction: str,
    value: Tensor,
    sensitivity: Tensor | None,
    step: Tensor | None,
) -> None:
    for part in _pieces(num_steps, value.shape[0], max(weight.shape)):
        current = _current(_dense(events, num_steps, weight, part), weight, bias)
        rows = (None if x is None else x[part].flatten() for x in (value, sensitivity, step))
        readout(current, beta, None, reduction, ReadoutOutputs(*rows))  # type: ignore


@_without_autocast
def linear_backward_closed_form(
    events: Events,
    num_steps: int,
    weight: Tensor,
    beta: Tensor,
    adjoint: ClosedFormAdjoint,
    grad_weight: Tensor,
    grad_bias: Tensor,
    grad_inputs: Tensor | None,
) -> None:
    batch = len(events.offsets) - 1
    for part in _pieces(num_steps, batch, max(weight.shape)):
        lam = adjoint_rows(neuron_backward, num_steps, beta, adjoint, part)
        spikes = _dense(events, num_steps, weight, part)
        grad_weight += lam.flatten(0, 1).T @ spikes.flatten(0, 1)
        grad_bias += lam.sum((0, 1))
        if grad_inputs is not None:
            through = lam @ weight
            grad_inputs[0, part] = (through * spikes).sum(0)
            grad_inputs[1, part] = (through[:-1] * spikes[1:]).sum(0)


@_without_autocast
def linear_backward_scan(
    events: Events,
    num_steps: int,
    layer: LinearNeurons,
    times: Tensor,
    grad_spikes: GradientFactors,
    rule: str,
    surrogate: Surrogate,
    out: LinearGradients,
) -> None:
    batch, out_features = times.shape
    for part in _pieces(num_steps, batch, max(layer.weight.shape)):
        spikes = _dense(events, num_steps, layer.weight, part)
        current = _current(spikes, layer.weight, layer.bias)
        n = spikes.shape[1]
        lam = torch.empty_like(current)
        beta, threshold = (current.new_empty(n * out_features) for _ in range(2))
        neuron_backward(
            num_steps,
            current.dtype,
            Saved(current, recompute=True),
            layer.neuron(),
            times[part].flatten().long(),
            OutputGradients(grad_spikes.to_dense(part).flatten(1)),
            rule,
            surrogate,
            {"current": lam, "beta": beta, "threshold": threshold},
        )
        lam = lam.view(num_steps, n, out_features)
        out.weight.add_(lam.flatten(0, 1).T @ spikes.flatten(0, 1))
        out.bias.add_(lam.sum((0, 1)))
        out.beta.add_(beta.view(n, out_features).sum(0))
        out.threshold.add_(threshold.view(n, out_features).sum(0))
        if out.current is not None:
            out.current[:, part] = lam
