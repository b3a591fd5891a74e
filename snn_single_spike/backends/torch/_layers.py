"""A layer of weights and its neurons from spike times, by dense products.

The functions compute the dense product and the dense loops of :mod:`.neuron` for a few samples at a
time. Memory does not grow with the batch. Computation takes as long as on dense tensors.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch
from torch import Tensor

from .._events import Events
from .._surrogate import Surrogate
from .._types import (
    ClosedFormAdjoint,
    ForwardOutputs,
    GradientFactors,
    Neuron,
    OutputGradients,
    Saved,
)
from ..adjoint import adjoint_rows
from .neuron import neuron_backward, neuron_forward

_Result = TypeVar("_Result")

_ELEMENTS = 1 << 22  # most elements of a dense tensor of some samples


class Product:
    """The product of dense spikes (T, n, units) and weights, and its transposes."""

    weight: Tensor
    units: int
    features: int

    def current(self, spikes: Tensor) -> Tensor:
        """(T, n, features)."""
        raise NotImplementedError

    def to_weight(self, lam: Tensor, spikes: Tensor) -> Tensor:
        """The gradient of the weights from that of the current, (T, n, features)."""
        raise NotImplementedError

    def to_input(self, lam: Tensor, spikes: Tensor) -> Tensor:
        """The gradient of the spikes, (T, n, units)."""
        raise NotImplementedError


def without_autocast(function: Callable[..., _Result]) -> Callable[..., _Result]:
    """A function of events that computes in the type of its weights, as the other backends do."""

    @functools.wraps(function)
    def computed(events: Events, *arguments: Any) -> _Result:
        with torch.autocast(events.times.device.type, enabled=False):
            return function(events, *arguments)

    return computed


def pieces(num_steps: int, batch: int, product: Product) -> Iterator[slice]:
    """Samples whose dense tensors have few elements."""
    size = max(_ELEMENTS // (num_steps * max(product.units, product.features)), 1)
    return (slice(low, min(low + size, batch)) for low in range(0, batch, size))


def dense(events: Events, num_steps: int, product: Product, samples: slice) -> Tensor:
    """The dense spikes (T, n, units) of some samples."""
    return events.part(samples).to_dense(num_steps, product.units, product.weight.dtype)


def _around(rows: Tensor, steps: Tensor) -> Tensor:
    """rows[step - 1] and rows[step] of every neuron, (2, n); 0 before the first step."""
    found = [rows.gather(0, step.clamp(min=0)[None])[0] for step in (steps - 1, steps)]
    return torch.stack([found[0].masked_fill(steps < 1, 0), found[1].masked_fill(steps < 0, 0)])


def first_spikes(
    events: Events,
    num_steps: int,
    product: Product,
    neuron: Neuron,
    times: Tensor,
    crossing: Tensor | None,
    sensitivity: Tensor | None,
    when: Tensor | None,
) -> None:
    batch, features = times.shape
    neuron = neuron._replace(reset="none")
    for part in pieces(num_steps, batch, product):
        current = product.current(dense(events, num_steps, product, part)).flatten(1)
        n = part.stop - part.start
        first = times.new_empty(n * features, dtype=torch.int64)
        around = current.new_empty(2, n * features)
        mem = torch.empty_like(current) if sensitivity is not None else None
        steps = torch.empty_like(first)
        out = ForwardOutputs(None, mem, None, None, around, None, first, when=steps)
        neuron_forward(current, neuron, out)
        times[part] = first.view(n, features).to(times.dtype)
        if when is not None:
            when[part] = steps.view(n, features).to(when.dtype)
        if crossing is not None:
            crossing[:, part] = around.view(2, n, features)
        if sensitivity is not None and mem is not None:
            # p[t] = dV[t]/dbeta = V[t-1] + beta p[t-1]: the membrane itself is integrated.
            late = torch.cat([torch.zeros_like(mem[:1]), mem[:-1]])
            slope = torch.empty_like(late)
            never = neuron._replace(threshold=torch.full_like(neuron.threshold, torch.inf))
            unused = torch.empty_like(first)
            outputs = ForwardOutputs(None, slope, None, None, None, None, unused)
            neuron_forward(late, never, outputs)
            sensitivity[:, part] = _around(slope, steps).view(2, n, features)
            sensitivity[0, part].masked_fill_(first.view(n, features) < 0, 0.0)  # as the crossing


def backward_closed_form(
    events: Events,
    num_steps: int,
    product: Product,
    beta: Tensor,
    adjoint: ClosedFormAdjoint,
    grad_weight: Tensor | None,
    grad_inputs: Tensor | None,
    grad_late: Tensor | None = None,
) -> Tensor:
    """Add to the gradient of the weights. Returns the adjoint summed over time, (features,).

    The gradients to inputs are correct only if each input has one event at most.
    """
    batch = len(events.offsets) - 1
    total = beta.new_zeros(product.features)
    for part in pieces(num_steps, batch, product):
        lam = adjoint_rows(neuron_backward, num_steps, beta, adjoint, part)
        spikes = dense(events, num_steps, product, part)
        if grad_weight is not None:
            grad_weight += product.to_weight(lam, spikes)
            total += lam.sum((0, 1))
        if grad_late is not None:
            grad_late += _to_shares(product.to_input(lam, spikes), events.part(part))
        if grad_inputs is not None:
            through = product.to_input(lam, spikes)
            some = events.part(part)
            step, sample, unit = some.times.long(), some.samples(), some.units.long()
            grad_inputs[0, part.start + sample, unit] = through[step, sample, unit]
            later = step > 0
            step, sample, unit = step[later] - 1, sample[later], unit[later]
            grad_inputs[1, part.start + sample, unit] = through[step, sample, unit]
    return total


def _to_shares(through: Tensor, events: Events) -> Tensor:
    """The gradient of the share of the later step of each unit, from that of the spikes."""
    assert events.values is not None
    step, sample, unit = events.times.long(), events.samples(), events.units.long()
    rise = through.diff(dim=0, append=through.new_zeros(1, *through.shape[1:]))
    height = events.values.sum(0).to(through.dtype)
    total = through.new_zeros(through.shape[2])
    return total.index_add_(0, unit, height * rise[step, sample, unit])


def backward_scan(
    events: Events,
    num_steps: int,
    product: Product,
    neuron: Neuron,
    times: Tensor,
    grad_spikes: GradientFactors,
    rule: str,
    surrogate: Surrogate,
    grad_weight: Tensor | None,
    grad_current: Tensor | None,
    grad_late: Tensor | None = None,
) -> Tensor:
    """Add to the gradient of the weights, and write that of the current.

    Returns the adjoint summed over time, and the gradients of beta and threshold, (3, features).
    """
    batch, features = times.shape
    totals = neuron.beta.new_zeros(3, features)
    for part in pieces(num_steps, batch, product):
        spikes = dense(events, num_steps, product, part)
        current = product.current(spikes).flatten(1)
        n = spikes.shape[1]
        lam = torch.empty_like(current)
        beta, threshold = (current.new_empty(n * features) for _ in range(2))
        neuron_backward(
            num_steps,
            current.dtype,
            Saved(current, recompute=True),
            neuron,
            times[part].flatten().long(),
            OutputGradients(grad_spikes.to_dense(part).flatten(1)),
            rule,
            surrogate,
            {"current": lam, "beta": beta, "threshold": threshold},
        )
        lam = lam.view(num_steps, n, features)
        if grad_weight is not None:
            grad_weight.add_(product.to_weight(lam, spikes))
        if grad_late is not None:
            grad_late += _to_shares(product.to_input(lam, spikes), events.part(part))
        totals += torch.stack(
            (lam.sum((0, 1)), beta.view(n, features).sum(0), threshold.view(n, features).sum(0))
        )
        if grad_current is not None:
            grad_current[:, part] = lam
    return totals
