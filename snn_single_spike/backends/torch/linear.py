"""A linear layer and its neurons from spike times, in plain torch."""

from __future__ import annotations

import torch
from torch import Tensor

from .._events import Events, sort_by_time
from .._surrogate import Surrogate
from .._types import (
    ClosedFormAdjoint,
    GradientFactors,
    LinearGradients,
    LinearNeurons,
    ReadoutOutputs,
)
from ._layers import Product, backward_closed_form, backward_scan, dense, first_spikes, pieces
from ._layers import without_autocast as _without_autocast
from .readout import readout

SPLITS = True  # reads spikes that are shared between two steps
sort_spikes = sort_by_time


class _Linear(Product):
    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self.weight, self.bias = weight, bias
        self.features, self.units = weight.shape

    def current(self, spikes: Tensor) -> Tensor:
        return torch.nn.functional.linear(spikes, self.weight, self.bias)

    def to_weight(self, lam: Tensor, spikes: Tensor) -> Tensor:
        return lam.flatten(0, 1).T @ spikes.flatten(0, 1)

    def to_input(self, lam: Tensor, spikes: Tensor) -> Tensor:
        return lam @ self.weight


@_without_autocast
def linear_first_spikes(
    events: Events,
    num_steps: int,
    layer: LinearNeurons,
    times: Tensor,
    crossing: Tensor | None,
    sensitivity: Tensor | None,
    when: Tensor | None,
) -> None:
    product = _Linear(layer.weight, layer.bias)
    first_spikes(events, num_steps, product, layer.neuron(), times, crossing, sensitivity, when)


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
    product = _Linear(weight, bias)
    for part in pieces(num_steps, value.shape[0], product):
        current = product.current(dense(events, num_steps, product, part)).flatten(1)
        rows = (None if x is None else x[part].flatten() for x in (value, sensitivity, step))
        readout(current, beta, None, reduction, ReadoutOutputs(*rows))  # type: ignore


@_without_autocast
def linear_backward_closed_form(
    events: Events,
    num_steps: int,
    weight: Tensor,
    beta: Tensor,
    adjoint: ClosedFormAdjoint,
    grad_weight: Tensor | None,
    grad_bias: Tensor | None,
    grad_inputs: Tensor | None,
    grad_late: Tensor | None = None,
) -> None:
    product = _Linear(weight, None)
    total = backward_closed_form(
        events, num_steps, product, beta, adjoint, grad_weight, grad_inputs, grad_late
    )
    if grad_bias is not None:
        grad_bias += total


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
    bias, beta, threshold = backward_scan(
        events,
        num_steps,
        _Linear(layer.weight, layer.bias),
        layer.neuron(),
        times,
        grad_spikes,
        rule,
        surrogate,
        out.weight,
        out.current,
        out.late,
    )
    out.bias.add_(bias)
    out.beta.add_(beta)
    out.threshold.add_(threshold)
