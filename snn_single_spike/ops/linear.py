"""The operators of linear layers from spike times, and their gradients.

For autograd, a carrier (:mod:`.carrier`) takes the place of the dense (T, B, N) spikes of a layer.
The gradient to a carrier is a :class:`FactoredGradient`: the adjoint of the next layer and its
weights, not multiplied. The adjoint of a readout and of the rule "spike_time" has a closed form.
Under a surrogate rule the next layer stores its adjoint (T, B, O) until the layer before has read
it. A compiler cannot trace a factored gradient, so a compiled layer returns the dense product.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import backends
from ..backends._compiling import is_traced
from ..backends._events import Events
from ..backends._surrogate import Surrogate
from ..backends._types import (
    ClosedFormAdjoint,
    GradientFactors,
    LinearGradients,
    LinearNeurons,
    schema,
)
from ..backends.adjoint import adjoint_rows
from ._library import New, allocate, allocate_fake, cleared, given, given_of, register, take
from .carrier import carrier
from .crossing import Slope, around, interpolate, through_crossing
from .factored_gradient import FactoredGradient, factors_of, held, rows_of
from .second_order import refuse_batched, refuse_recorded


class Readout(NamedTuple):
    """Options of the readout operator: the reduction, and the outputs besides the value."""

    reduction: str
    sensitivity: bool
    step: bool


def _sort_spikes(new: New, times: Tensor, num_steps: int, backend: str) -> tuple[Tensor, ...]:
    batch, units = times.shape
    device = times.device
    offsets = new(True, (batch + 1,), torch.int64, device)
    ordered, indices = (new(True, (batch * units,), torch.int32, device) for _ in range(2))
    if new is not allocate_fake:
        events = _sorted(times, num_steps, backend)
        offsets.copy_(events.offsets)
        for padded, exact in ((ordered, events.times), (indices, events.units)):
            padded[: len(exact)] = exact
            padded[len(exact) :] = 0
    return offsets, ordered, indices


def _sorted(times: Tensor, num_steps: int, backend: str) -> Events:
    module = backends.load(backend, "linear")
    return module.sort_spikes(times.to(torch.int32).contiguous(), num_steps)


def sort_spikes(times: Tensor, num_steps: int, backend: str) -> Events:
    """Spike times (B, N), -1 for a silent unit, as events."""
    if is_traced():
        sorted_ = torch.ops.snn_single_spike.sort_spikes(times, num_steps, backend)
        return take(Events, iter((*sorted_, None, True, True)))
    return _sorted(times, num_steps, backend)


def with_values(events: Events, values: Tensor) -> Events:
    """Events with the values (B, N) of their units."""
    if len(events.units) == values.numel():  # every unit has one
        of_sample = events.units.view(values.shape).long()
        return events._replace(values=values.gather(1, of_sample).flatten(), once=False)
    return events._replace(values=values[events.samples(), events.units.long()], once=False)


def _linear_first_spikes(new: New, *rest: Any) -> tuple[Tensor, ...]:
    arguments = iter(rest)
    events, num_steps, layer = (
        take(Events, arguments),
        next(arguments),
        take(LinearNeurons, arguments),
    )
    want_crossing, want_sensitivity, backend = arguments
    weight = layer.weight
    batch, out_features = events.offsets.shape[0] - 1, weight.shape[0]
    shape, dtype, device = (batch, out_features), weight.dtype, weight.device
    crossing = new(want_crossing, (2, *shape), dtype, device)
    sensitivity = new(want_sensitivity, (2, *shape), dtype, device)
    times = new(True, shape, torch.int32, device)
    when = new(want_crossing, shape, torch.int32, device)
    if new is not allocate_fake and batch:
        backends.load(backend, "linear").linear_first_spikes(
            events.trimmed(), num_steps, layer, times, *map(given, (crossing, sensitivity, when))
        )
    return crossing, sensitivity, times, when


def _linear_readout(new: New, *rest: Any) -> tuple[Tensor, ...]:
    arguments = iter(rest)
    events, num_steps = take(Events, arguments), next(arguments)
    weight, bias, beta = next(arguments), next(arguments), next(arguments)
    wanted = take(Readout, arguments)
    (backend,) = arguments
    batch = events.offsets.shape[0] - 1
    shape, dtype, device = (batch, weight.shape[0]), weight.dtype, weight.device
    value = new(True, shape, dtype, device)
    sensitivity = new(wanted.sensitivity, shape, dtype, device)
    step = new(wanted.step, shape, torch.int64, device)
    if new is not allocate_fake and batch:
        backends.load(backend, "linear").linear_readout(
            events.trimmed(),
            num_steps,
            weight,
            bias,
            beta,
            wanted.reduction,
            value,
            given(sensitivity),
            given(step),
        )
    return value, sensitivity, step


def _linear_backward_closed_form(new: New, *rest: Any) -> tuple[Tensor, ...]:
    arguments = iter(rest)
    events, num_steps = take(Events, arguments), next(arguments)
    weight, beta = next(arguments), next(arguments)
    adjoint = take(ClosedFormAdjoint, arguments)
    want_inputs, want_late, backend = arguments
    batch, dtype, device = events.offsets.shape[0] - 1, weight.dtype, weight.device
    zeros = cleared(new)
    grad_weight = zeros(not want_inputs, tuple(weight.shape), dtype, device)
    grad_bias = zeros(not want_inputs, tuple(beta.shape), dtype, device)
    grad_inputs = zeros(want_inputs, (2, batch, weight.shape[1]), dtype, device)
    grad_late = zeros(want_late, (weight.shape[1],), dtype, device)
    if new is not allocate_fake:
        backends.load(backend, "linear").linear_backward_closed_form(
            events.trimmed(),
            num_steps,
            weight,
            beta,
            adjoint,
            *map(given, (grad_weight, grad_bias, grad_inputs)),
            *([grad_late] if want_late else []),
        )
    return grad_weight, grad_bias, grad_inputs, grad_late


def _backward_scan(
    new: New,
    events: Events,
    num_steps: int,
    layer: LinearNeurons,
    times: Tensor,
    factors: GradientFactors | None,
    rule: str,
    surrogate: Surrogate,
    want_current: bool,
    want_late: bool,
    backend: str,
) -> LinearGradients:
    zeros, dtype, device = cleared(new), layer.weight.dtype, layer.weight.device
    weight, bias, beta, threshold = (zeros(True, tuple(x.shape), dtype, device) for x in layer[:4])
    current = new(want_current, (num_steps, *times.shape), dtype, device)
    late = zeros(want_late, (layer.weight.shape[1],), dtype, device)
    out = LinearGradients(weight, bias, beta, threshold, current, late)
    if factors is not None:
        backends.load(backend, "linear").linear_backward_scan(
            events.trimmed(), num_steps, layer, times, factors, rule, surrogate, given_of(out)
        )
    return out


def _linear_backward_scan(new: New, *rest: Any) -> tuple[Tensor, ...]:
    arguments = iter(rest)
    events, num_steps = take(Events, arguments), next(arguments)
    layer, times, grad = take(LinearNeurons, arguments), next(arguments), next(arguments)
    rule, surrogate = next(arguments), take(Surrogate, arguments)
    want_current, want_late, backend = arguments
    factors = None if new is allocate_fake else rows_of(grad, None)
    return _backward_scan(  # type: ignore[return-value]
        new,
        events,
        num_steps,
        layer,
        times,
        factors,
        rule,
        surrogate,
        want_current,
        want_late,
        backend,
    )


_EVENTS = f"{schema(Events)}, SymInt num_steps"
register(
    "sort_spikes(Tensor times, SymInt num_steps, str backend) -> "
    "(Tensor out_offsets, Tensor out_times, Tensor out_units)",
    _sort_spikes,
)
register(
    f"linear_first_spikes({_EVENTS}, {schema(LinearNeurons)}, bool crossing, bool sensitivity, "
    "str backend) -> "
    "(Tensor out_crossing, Tensor out_sensitivity, Tensor out_times, Tensor out_when)",
    _linear_first_spikes,
)
register(
    f"linear_readout({_EVENTS}, Tensor weight, Tensor bias, Tensor beta, {schema(Readout)}, "
    "str backend) -> (Tensor out_value, Tensor out_sensitivity, Tensor out_step)",
    _linear_readout,
)
register(
    f"linear_backward_closed_form({_EVENTS}, Tensor weight, Tensor beta, "
    f"{schema(ClosedFormAdjoint)}, bool inputs, bool late, str backend) -> "
    "(Tensor out_weight, Tensor out_bias, Tensor out_inputs, Tensor out_late)",
    _linear_backward_closed_form,
)
register(
    f"linear_backward_scan({_EVENTS}, {schema(LinearNeurons)}, Tensor spiked, Tensor grad_spikes, "
    f"str rule, {schema(Surrogate)}, bool current, bool late, str backend) -> "
    "(Tensor out_weight, Tensor out_bias, Tensor out_beta, Tensor out_threshold, "
    "Tensor out_current, Tensor out_late)",
    _linear_backward_scan,
)


_ELEMENTS = 1 << 22  # most elements of a dense gradient of some samples


class LinearSettings(NamedTuple):
    """Arguments of :class:`LinearSpikes` and :class:`LinearReadout` that are not tensors."""

    num_steps: int
    once: bool
    """As in :class:`Events`."""
    padded: bool
    rule: str = "masked"
    reset: str = "none"
    surrogate: Slope | None = None
    """As in :class:`snn_single_spike.ops.neuron.Settings`."""
    reduction: str = "sum"
    track: bool = True
    backend: str = "torch"


def check_backward(
    place: str, weight: Tensor, *grads: Tensor | None, layer: str = "linear layer"
) -> None:
    """Reject a backward pass that torch records, or runs for several gradients at once."""
    module = "nn.Conv2d" if layer == "convolution" else "nn.Linear"
    cure = (
        f"Compute from dense spikes: {module} of spikes.to_dense(), then the neurons with "
        'spike_format="dense" (also an option of convert).'
    )
    place = f"{place} behind a {layer} of shape {tuple(weight.shape)}) from spike times"
    refuse_recorded(place, cure)
    refuse_batched(place, cure, *grads)


class Needs(NamedTuple):
    """Which gradients of its input a layer computes: to the spikes, and to their later shares."""

    input: bool
    late: bool


class LinearSpikes(torch.autograd.Function):
    """First spikes of a layer of leaky neurons, from the spikes of the layer before.

    ``given`` is the carrier of the input. ``fraction`` (N,) is the share of the step after each
    event, from which the two rows of their values were made; None for events of one step.
    ``weight`` is (O, N); ``bias``, ``beta`` (between 0 and 1) and ``threshold`` are (O,).
    ``events`` are the four tensors of :class:`Events`. Returns the carrier (T, B, O) of the new
    spikes, their times (B, O) int32, and interpolated times (B, O) under "spike_time", else an
    empty tensor.
    """

    @staticmethod
    def forward(
        ctx: Any,
        settings: LinearSettings,
        given: Tensor | None,
        fraction: Tensor | None,
        weight: Tensor,
        bias: Tensor,
        beta: Tensor,
        threshold: Tensor,
        *events: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        exact = settings.rule == "spike_time"
        _, _, _, _, _, need_beta, *_ = ctx.needs_input_grad
        out = torch.ops.snn_single_spike.linear_first_spikes(
            *events,
            settings.once,
            settings.padded,
            settings.num_steps,
            *(weight, bias, beta, threshold, settings.reset),
            exact,
            exact and settings.track and need_beta,
            settings.backend,
        )
        ctx.save_for_backward(weight, bias, beta, threshold, *out, *events)
        return first_spikes(ctx, settings, out, threshold)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        grad, _, grad_times = grads
        settings: LinearSettings = ctx.settings
        weight, bias, beta, threshold, *around_spikes = ctx.saved_tensors
        crossing, sensitivity, times, when, *tensors = around_spikes
        check_backward("single_spike_linear (SingleSpikeLeaky", weight, grad, grad_times)
        _, need_input, need_late, *_ = ctx.needs_input_grad
        if need_input and not is_traced():
            weight, beta = held(weight), held(beta)
        layer = LinearNeurons(weight, bias, beta, threshold, settings.reset)
        exact = settings.rule == "spike_time"
        # A compiled graph passes zeros for outputs without a gradient.
        grad = None if settings.surrogate is None else grad
        grad_times = grad_times if exact else None
        unused = (None,) * len(tensors)
        needs = Needs(need_input, need_late)
        if (grad is None and grad_times is None) or not times.numel():
            zeros = (torch.zeros_like(x) for x in (weight, bias, beta, threshold))
            return None, None, None, *zeros, *unused
        events = take(Events, iter((*tensors, settings.once, settings.padded)))
        if exact:
            return (
                None,
                *_through_times(settings, events, layer, times, when, crossing, sensitivity, grad,
                                grad_times, needs),
                *unused,
            )  # fmt: skip
        assert grad is not None
        return None, *_through_spikes(settings, events, layer, times, grad, needs), *unused


def _through_times(
    settings: LinearSettings,
    events: Events,
    layer: LinearNeurons,
    times: Tensor,
    when: Tensor,
    crossing: Tensor,
    sensitivity: Tensor,
    grad: Tensor | None,
    grad_times: Tensor | None,
    needs: Needs,
) -> tuple[Tensor | None, ...]:
    """The gradients by the rule "spike_time", whose adjoint has a closed form."""
    adjoint, d_beta, d_threshold = at_spikes(
        settings, times, when, crossing, sensitivity, layer.threshold, grad, grad_times
    )
    linear = _through_closed_form(settings, events, adjoint, layer.weight, layer.beta, needs)
    return *linear, None if d_beta is None else d_beta.sum(0), d_threshold.sum(0)


def first_spikes(
    ctx: Any, settings: LinearSettings, out: tuple[Tensor, ...], threshold: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """What a layer's autograd function returns: the carrier, the times and interpolated times.

    ``out`` are the outputs of the operator; ``threshold`` (N,) is that of each neuron.
    """
    crossing, _, times, _ = out
    ctx.settings = settings
    ctx.set_materialize_grads(False)
    batch, units = times.shape
    new = carrier(settings.num_steps, batch, units, crossing)
    constant = [times]
    if settings.rule == "spike_time":
        moments = interpolate(times.flatten(), crossing.flatten(1), threshold)
        interpolated = moments.view(times.shape)
    else:
        interpolated = crossing.new_empty(0)
        constant.append(interpolated)
    if settings.surrogate is None:
        constant.append(new)
    ctx.mark_non_differentiable(*constant)  # a second call would replace the first
    return new, times, interpolated


def at_spikes(
    settings: LinearSettings,
    times: Tensor,
    when: Tensor,
    crossing: Tensor,
    sensitivity: Tensor,
    threshold: Tensor,
    grad: Tensor | None,
    grad_times: Tensor | None,
) -> tuple[ClosedFormAdjoint, Tensor | None, Tensor]:
    """The adjoint by the rule "spike_time", and the gradients of beta and threshold (B, N)."""
    at, before, direct = through_crossing(
        gradient_around(grad, when, times >= 0),
        None if grad_times is None else grad_times.flatten(),
        times.flatten(),
        crossing.flatten(1),
        threshold,
        settings.surrogate,
    )
    assert at is not None
    assert before is not None
    assert direct is not None
    at, before = at.view(times.shape), before.view(times.shape)
    adjoint = ClosedFormAdjoint(None, at, before, when.long())
    d_beta = before * sensitivity[0] + at * sensitivity[1] if sensitivity.numel() else None
    return adjoint, d_beta, direct.view(times.shape)


def gradient_around(grad: Tensor | None, steps: Tensor, fired: Tensor) -> Tensor | None:
    """dL/dS (2, B * O) at the step of each neuron; and one step before, if the neuron fired."""
    if grad is None:
        return None
    if isinstance(grad, FactoredGradient) and grad.at is not None:
        return grad.at(steps, fired).flatten(1)
    if isinstance(grad, FactoredGradient):
        batch = len(steps)
        size = max(_ELEMENTS // (grad.shape[0] * max(grad.shape[2], 1)), 1)
        parts = [slice(low, min(low + size, batch)) for low in range(0, batch, size)]
        found = [_dense_around(grad.factors.to_dense(part), steps[part]) for part in parts]
        return torch.cat(found, 1) if found else grad.new_empty(2, steps.numel())
    return _dense_around(grad, steps)


def _dense_around(grad: Tensor, steps: Tensor) -> Tensor:
    flat = grad.reshape(grad.shape[0], -1)
    if len(flat) == 1:  # the same at every step
        return flat.expand(2, -1)
    return around(flat, steps.flatten().long())


def _through_spikes(
    settings: LinearSettings,
    events: Events,
    layer: LinearNeurons,
    times: Tensor,
    grad: Tensor,
    needs: Needs,
) -> tuple[Tensor | None, ...]:
    """The gradients by a surrogate rule, from a scan over all steps."""
    assert isinstance(settings.surrogate, Surrogate)
    common = (settings.rule, settings.surrogate, *needs, settings.backend)
    if is_traced():
        rule, surrogate, *options = common
        out: Any = LinearGradients(
            *torch.ops.snn_single_spike.linear_backward_scan(
                *events, settings.num_steps, *layer, times, grad, rule, *surrogate, *options
            )
        )
        *gradients, current, _ = out
        return current @ layer.weight if needs.input else None, None, *gradients
    out = _backward_scan(
        allocate, events, settings.num_steps, layer, times, factors_of(grad), *common
    )
    to_input = None
    if needs.input:
        assert out.current is not None
        weight = layer.weight
        factors = rows_of(out.current, weight)
        to_input = FactoredGradient(settings.num_steps, len(times), factors, None, reads=(weight,))
    return to_input, out.late if needs.late else None, *out[:-2]


def _through_closed_form(
    settings: LinearSettings,
    events: Events,
    adjoint: ClosedFormAdjoint,
    weight: Tensor,
    beta: Tensor,
    needs: Needs,
) -> tuple[Tensor | None, Tensor | None, Tensor, Tensor]:
    """The gradients to the input, the shares (if needed), the weights and the bias."""
    num_steps, backend, batch = settings.num_steps, settings.backend, events.offsets.shape[0] - 1
    backward = torch.ops.snn_single_spike.linear_backward_closed_form
    given_ = (num_steps, weight, beta, *adjoint)
    grad_weight, grad_bias, _, grad_late = backward(*events, *given_, False, needs.late, backend)
    to_late = grad_late if needs.late else None
    if not needs.input:
        return None, to_late, grad_weight, grad_bias
    if is_traced():
        return dense_adjoint(num_steps, beta, adjoint) @ weight, None, grad_weight, grad_bias

    def at(steps: Tensor, fired: Tensor) -> Tensor:
        events = with_values(_sorted(steps, num_steps, backend), fired.to(weight.dtype))
        _, _, around_steps, _ = backward(*events, *given_, True, False, backend)
        return around_steps

    scan = backends.load(backend, "neuron").neuron_backward
    rows = functools.partial(adjoint_rows, scan, num_steps, beta, adjoint)
    factors = GradientFactors(rows, weight)
    to_input = FactoredGradient(num_steps, batch, factors, at, reads=(weight, beta))
    return to_input, to_late, grad_weight, grad_bias


def dense_adjoint(num_steps: int, beta: Tensor, adjoint: ClosedFormAdjoint) -> Tensor:
    """lam (T, B, O) in operations that a compiler can trace."""
    step = torch.arange(num_steps, device=beta.device).view(-1, 1, 1)
    if adjoint.every is not None:
        powers = torch.cat([torch.ones_like(beta)[None], beta.expand(num_steps - 1, -1)])
        return powers.cumprod(0).cumsum(0).flip(0)[:, None] * adjoint.every
    assert adjoint.at is not None
    assert adjoint.when is not None

    def impulse(amount: Tensor, when: Tensor) -> Tensor:
        ahead = when - step
        return torch.where((when >= 0) & (ahead >= 0), amount * beta ** ahead.clamp(min=0), 0.0)

    lam = impulse(adjoint.at, adjoint.when)
    if adjoint.before is not None:
        lam = lam + impulse(adjoint.before, adjoint.when - 1)
    return lam


class LinearReadout(torch.autograd.Function):
    """Sum, maximum or last value over time of a membrane that never fires, (B, O)."""

    @staticmethod
    def forward(
        ctx: Any,
        settings: LinearSettings,
        given: Tensor | None,
        fraction: Tensor | None,
        weight: Tensor,
        bias: Tensor,
        beta: Tensor,
        *events: Tensor | None,
    ) -> Tensor:
        _, _, _, _, _, need_beta, *_ = ctx.needs_input_grad
        wanted = Readout(
            settings.reduction,
            sensitivity=settings.track and need_beta,
            step=settings.track and settings.reduction != "sum",
        )
        value, sensitivity, step = torch.ops.snn_single_spike.linear_readout(
            *events,
            settings.once,
            settings.padded,
            settings.num_steps,
            *(weight, bias, beta),
            *wanted,
            settings.backend,
        )
        ctx.save_for_backward(weight, beta, sensitivity, step, *events)
        ctx.settings = settings
        return value

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        settings: LinearSettings = ctx.settings
        weight, beta, sensitivity, step, *tensors = ctx.saved_tensors
        check_backward("linear_readout (LeakyReadout", weight, grad)
        _, need_input, need_late, _, _, need_beta, *_ = ctx.needs_input_grad
        if need_input and not is_traced():
            weight, beta = held(weight), held(beta)
        unused = (None,) * len(tensors)
        d_beta = (sensitivity * grad).sum(0) if need_beta else None
        if not grad.numel():
            zeros = torch.zeros_like
            return None, None, None, zeros(weight), zeros(beta), d_beta, *unused
        grad = grad.contiguous()
        adjoint = ClosedFormAdjoint(every=grad)
        if settings.reduction != "sum":
            adjoint = ClosedFormAdjoint(at=grad, when=step)
        events = take(Events, iter((*tensors, settings.once, settings.padded)))
        needs = Needs(need_input, need_late)
        linear = _through_closed_form(settings, events, adjoint, weight, beta, needs)
        return None, *linear, d_beta, *unused
