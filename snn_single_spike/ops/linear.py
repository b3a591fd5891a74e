"""Linear layers and what their currents drive, from spike times: gradients.

The dense (T, B, N) spikes of a layer exist for autograd only, as a carrier of no size. What
comes back to it is a :class:`FactoredGradient`, the product of the next layer's adjoint and weights
that is left undone: the layer that made the spikes takes it a few samples at a time, or only at
its spike times. Whatever else touches it is given the dense product.

These functions call an implementation directly: a compiler cannot trace a gradient that is no
tensor, and :class:`snn_single_spike.spikes` gives it dense tensors.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils._pytree import tree_map

from .. import backends
from ..backends._events import Events
from ..backends._types import (
    ClosedFormAdjoint,
    GradientFactors,
    LinearGradients,
    LinearNeurons,
    state_dtype,
)
from ..backends.adjoint import adjoint_rows
from ..backends.memory import empty
from ..spikes.times import carrier
from .crossing import at_steps, interpolate, through_crossing
from .surrogate import Surrogate


class FactoredGradient(Tensor):
    """Gradient (T, B, N) to spikes that linear layers took: their adjoints times their weights."""

    factors: GradientFactors
    at_spikes: Tensor | None
    """(2, B, N): the gradient at the step of each spike and at the step before it, if known."""

    @staticmethod
    def __new__(
        cls, num_steps: int, batch: int, factors: GradientFactors, at_spikes: Tensor | None
    ) -> FactoredGradient:
        weight = factors.weight
        assert weight is not None
        new: FactoredGradient = Tensor._make_wrapper_subclass(
            cls, (num_steps, batch, weight.shape[1]), dtype=weight.dtype, device=weight.device
        )
        new.factors, new.at_spikes = factors, at_spikes
        return new

    def to_dense(self) -> Tensor:
        return self.factors.to_dense(slice(0, self.shape[1]))

    def plus(self, other: FactoredGradient) -> FactoredGradient:
        """The gradient of spikes that both go into, left undone, too."""
        at_spikes = None
        if self.at_spikes is not None and other.at_spikes is not None:
            at_spikes = self.at_spikes + other.at_spikes
        factors = self.factors.plus(other.factors)
        return FactoredGradient(self.shape[0], self.shape[1], factors, at_spikes)

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls,
        function: Any,
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        # Autograd adds up what comes from several layers that take the same spikes.
        if function is torch.ops.aten.add.Tensor and not kwargs:
            one, other = args
            if isinstance(one, FactoredGradient) and isinstance(other, FactoredGradient):
                return one.plus(other)

        if function._schema.is_mutable and isinstance(args[0], FactoredGradient):
            raise TypeError(
                f"{function} would change a gradient that is made anew each time, and be lost: "
                "use the operation that returns a new tensor"
            )

        def dense(x: Any) -> Any:
            return x.to_dense() if isinstance(x, FactoredGradient) else x

        return function(*tree_map(dense, args), **tree_map(dense, kwargs or {}))


def _rows_of(tensor: Tensor, weight: Tensor | None) -> GradientFactors:
    """A tensor (T or 1, B, O) as a gradient to spikes, or as the first factor of one."""
    return GradientFactors(lambda samples: tensor[:, samples].contiguous(), weight)


class Source(NamedTuple):
    """The spikes that a linear layer takes."""

    events: Events
    num_steps: int
    at_spikes: bool
    """Whether the layer that made them asks for its gradient at their times only."""


class LinearSpikes(torch.autograd.Function):
    """First spikes of a layer of leaky neurons, from those of the layer before.

    weight (O, N); bias, beta (between 0 and 1) and threshold (O,). Returns the carrier
    (T, B, O) of the new spikes, their times (B, O) int32, and under the ``spike_time`` rule
    interpolated times, else an empty tensor.
    """

    @staticmethod
    def forward(
        ctx: Any,
        given: Tensor | None,
        weight: Tensor,
        bias: Tensor,
        beta: Tensor,
        threshold: Tensor,
        source: Source,
        rule: str,
        reset: str,
        surrogate: Surrogate | None,
        track: bool,
        backend: str,
    ) -> tuple[Tensor, Tensor, Tensor]:
        events, num_steps, _ = source
        batch, lanes = len(events.offsets) - 1, len(weight)
        exact = rule == "spike_time"
        need_beta = exact and track and ctx.needs_input_grad[3]
        layer = LinearNeurons(weight, bias, beta, threshold, reset)
        times = torch.empty(batch, lanes, dtype=torch.int32, device=weight.device)
        crossing = weight.new_empty(2, batch, lanes) if exact else None
        sensitivity = weight.new_empty(2, batch, lanes) if need_beta else None
        if batch:
            backends.load(backend, "linear").linear_first_spikes(
                events, num_steps, layer, times, crossing, sensitivity
            )
        ctx.save_for_backward(weight, bias, beta, threshold, times, crossing, sensitivity)
        ctx.source, ctx.rule, ctx.reset, ctx.surrogate = source, rule, reset, surrogate
        ctx.backend = backend
        ctx.set_materialize_grads(False)
        interpolated_times = weight.new_empty(0)
        if crossing is not None:
            around = crossing.flatten(1)
            interpolated_times = interpolate(times.flatten().long(), around, threshold).view(
                batch, lanes
            )
            ctx.mark_non_differentiable(times)
        else:
            ctx.mark_non_differentiable(times, interpolated_times)
        new = carrier(num_steps, batch, lanes, weight)
        if surrogate is None and not exact:
            ctx.mark_non_differentiable(new)
        return new, times, interpolated_times

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        grad, _, grad_tau = grads
        weight, bias, beta, threshold, times, crossing, sensitivity = ctx.saved_tensors
        need_input, zeros = ctx.needs_input_grad[0], torch.zeros_like
        nothing = grad is None and grad_tau is None
        if nothing or not times.numel():
            return None, zeros(weight), zeros(bias), zeros(beta), zeros(threshold), *(None,) * 6
        if crossing is not None:
            at, before, direct = through_crossing(
                _rise(grad, times),
                None if grad_tau is None else grad_tau.flatten(),
                times.flatten().long(),
                crossing.flatten(1),
                threshold,
            )
            assert at is not None
            assert before is not None
            assert direct is not None
            at, before = at.view(times.shape), before.view(times.shape)
            adjoint = ClosedFormAdjoint(None, at, before, times.long())
            linear = _through_impulses(ctx.source, adjoint, weight, beta, need_input, ctx.backend)
            d_beta = None
            if sensitivity is not None:
                d_beta = (before * sensitivity[0] + at * sensitivity[1]).sum(0)
            return *linear, d_beta, direct.view(times.shape).sum(0), *(None,) * 6
        assert grad is not None
        events, num_steps, _ = ctx.source
        lam = None
        if need_input:
            shape = (num_steps, *times.shape)
            lam = empty(shape, dtype=weight.dtype, device=weight.device)
        into = LinearGradients(zeros(weight), zeros(bias), zeros(beta), zeros(threshold), lam)
        backends.load(ctx.backend, "linear").linear_backward_scan(
            events,
            num_steps,
            LinearNeurons(weight, bias, beta, threshold, ctx.reset),
            times,
            _rows(grad),
            ctx.rule,
            ctx.surrogate,
            into,
        )
        to_input = None
        if lam is not None:
            to_input = FactoredGradient(num_steps, len(times), _rows_of(lam, weight), None)
        return to_input, *into[:4], *(None,) * 6


def _rows(grad: Tensor) -> GradientFactors:
    if isinstance(grad, FactoredGradient):
        return grad.factors
    # The gradient of a sum over time is one row that is read again and again.
    some = grad[:1] if grad.shape[0] > 1 and grad.stride(0) == 0 else grad
    return _rows_of(some, None)


def _rise(grad: Tensor | None, times: Tensor) -> Tensor | None:
    """dL/dS[t*] - dL/dS[t*-1] of every neuron, (B * O,)."""
    if grad is None:
        return None
    if isinstance(grad, FactoredGradient) and grad.at_spikes is not None:
        at, before = grad.at_spikes
        return torch.where(times >= 0, at - before, 0.0).flatten()
    dense = grad.to_dense() if isinstance(grad, FactoredGradient) else grad
    flat, num_steps = dense.reshape(dense.shape[0], -1), times.flatten().long()
    return at_steps(flat, num_steps) - at_steps(flat, num_steps, back=1)


def _through_impulses(
    source: Source,
    adjoint: ClosedFormAdjoint,
    weight: Tensor,
    beta: Tensor,
    need_input: bool,
    backend: str,
) -> tuple[Tensor | None, Tensor, Tensor]:
    """Gradients to the inputs, if asked, the weights and the bias from a closed form."""
    events, num_steps, at_spikes = source
    grad_weight, grad_bias = torch.zeros_like(weight), torch.zeros_like(beta)
    inputs = None
    if need_input and at_spikes:
        inputs = weight.new_zeros(2, len(events.offsets) - 1, weight.shape[1])
    backends.load(backend, "linear").linear_backward_closed_form(
        events, num_steps, weight, beta, adjoint, grad_weight, grad_bias, inputs
    )
    to_input = None
    if need_input:
        rows = functools.partial(
            adjoint_rows, backends.load(backend, "neuron").neuron_backward, num_steps, beta, adjoint
        )
        batch = len(events.offsets) - 1
        to_input = FactoredGradient(num_steps, batch, GradientFactors(rows, weight), inputs)
    return to_input, grad_weight, grad_bias


class LinearReadout(torch.autograd.Function):
    """Sum, maximum or last value over time of a membrane that never fires, (B, O)."""

    @staticmethod
    def forward(
        ctx: Any,
        given: Tensor | None,
        weight: Tensor,
        bias: Tensor,
        beta: Tensor,
        source: Source,
        reduction: str,
        track: bool,
        backend: str,
    ) -> Tensor:
        events, num_steps, _ = source
        batch, lanes = len(events.offsets) - 1, len(weight)
        need_beta = track and ctx.needs_input_grad[3]
        placed = track and reduction != "sum"
        value = weight.new_empty(batch, lanes)
        sensitivity = torch.empty_like(value) if need_beta else None
        step = torch.empty_like(value, dtype=torch.int64) if placed else None
        if batch:
            backends.load(backend, "linear").linear_readout(
                events, num_steps, weight, bias, beta, reduction, value, sensitivity, step
            )
        ctx.save_for_backward(weight, beta, sensitivity, step)
        ctx.source, ctx.backend = source, backend
        return value

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        weight, beta, sensitivity, step = ctx.saved_tensors
        d_beta = None if sensitivity is None else (sensitivity * grad).sum(0)
        if not grad.numel():
            return None, torch.zeros_like(weight), torch.zeros_like(beta), d_beta, *(None,) * 4
        grad = grad.contiguous()
        adjoint = ClosedFormAdjoint(grad, None, None, None)
        if step is not None:
            adjoint = ClosedFormAdjoint(None, grad, None, step)
        linear = _through_impulses(
            ctx.source, adjoint, weight, beta, ctx.needs_input_grad[0], ctx.backend
        )
        return *linear, d_beta, *(None,) * 4


class SpikeCount(torch.autograd.Function):
    """Number of spikes of each neuron (N,), or of each sample (B,), in state precision.

    Linear in the dense spikes: the gradient is the same at every step.
    """

    @staticmethod
    def forward(ctx: Any, given: Tensor, times: Tensor, per: str) -> Tensor:
        ctx.save_for_backward(times)
        ctx.num_steps, ctx.dtype, ctx.per = len(given), given.dtype, per
        return (times >= 0).sum(0 if per == "neuron" else 1, dtype=state_dtype(given.dtype))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (times,) = ctx.saved_tensors
        batch, neurons = times.shape
        grad = grad.to(ctx.dtype)
        of_sample, of_neuron = grad.new_ones(batch), grad.new_ones(neurons)
        if ctx.per == "neuron":
            of_neuron = grad
        else:
            of_sample = grad
        lam = of_sample[:, None].expand(ctx.num_steps, batch, 1)
        at_spikes = (of_sample[:, None] * of_neuron).expand(2, batch, neurons)
        factors = _rows_of(lam, of_neuron[None])
        return FactoredGradient(ctx.num_steps, batch, factors, at_spikes), None, None
