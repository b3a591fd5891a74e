"""The operators of convolutions from spike times, and their gradients.

As in :mod:`.linear`, a carrier takes the place of the dense spikes. The gradient to a carrier is a
:class:`FactoredGradient` with one factor: a function that computes the adjoint of a few samples and
the transposed convolution of it. No tensor of the size of the dense current is kept, in the forward
or in the backward pass. A compiled layer returns the dense product.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .. import backends
from ..backends import _convolution as convolution
from ..backends._compiling import is_traced
from ..backends._events import Events
from ..backends._surrogate import Surrogate
from ..backends._types import (
    ClosedFormAdjoint,
    ConvGradients,
    ConvNeurons,
    Convolution,
    GradientFactors,
    schema,
)
from ..backends.adjoint import adjoint_rows
from ._library import New, allocate, allocate_fake, cleared, given, given_of, register, take
from .factored_gradient import At, FactoredGradient, factors_of, held, rows_of
from .linear import (
    LinearSettings,
    at_spikes,
    check_backward,
    dense_adjoint,
    first_spikes,
    sort_spikes,
    with_values,
)

_KEPT = 1 << 21  # elements of an adjoint that is kept until the layer before reads it


def _conv_first_spikes(new: New, *rest: Any) -> tuple[Tensor, ...]:
    arguments = iter(rest)
    events, num_steps = take(Events, arguments), next(arguments)
    layer, conv = take(ConvNeurons, arguments), take(Convolution, arguments)
    want_crossing, want_sensitivity, backend = arguments
    weight, batch = layer.weight, events.offsets.shape[0] - 1
    shape, dtype, device = (batch, weight.shape[0] * conv.positions), weight.dtype, weight.device
    crossing = new(want_crossing, (2, *shape), dtype, device)
    sensitivity = new(want_sensitivity, (2, *shape), dtype, device)
    times = new(True, shape, torch.int32, device)
    when = new(want_crossing, shape, torch.int32, device)
    if new is not allocate_fake and batch:
        outputs = map(given, (crossing, sensitivity, when))
        backends.load(backend, "conv").conv_first_spikes(
            events.trimmed(), num_steps, layer, conv, times, *outputs
        )
    return crossing, sensitivity, times, when


def _conv_backward_closed_form(new: New, *rest: Any) -> tuple[Tensor, ...]:
    arguments = iter(rest)
    events, num_steps = take(Events, arguments), next(arguments)
    weight, beta = next(arguments), next(arguments)
    conv, adjoint = take(Convolution, arguments), take(ClosedFormAdjoint, arguments)
    want_inputs, backend = arguments
    batch, dtype, device = events.offsets.shape[0] - 1, weight.dtype, weight.device
    zeros = cleared(new)
    grad_weight = zeros(not want_inputs, tuple(weight.shape), dtype, device)
    grad_bias = zeros(not want_inputs, (weight.shape[0],), dtype, device)
    grad_inputs = zeros(want_inputs, (2, batch, conv.units), dtype, device)
    if new is not allocate_fake:
        backends.load(backend, "conv").conv_backward_closed_form(
            events.trimmed(),
            num_steps,
            weight,
            beta,
            conv,
            adjoint,
            *map(given, (grad_weight, grad_bias, grad_inputs)),
        )
    return grad_weight, grad_bias, grad_inputs


def _backward_scan(
    new: New,
    scan: convolution.Scan | None,
    events: Events,
    num_steps: int,
    layer: ConvNeurons,
    times: Tensor,
    factors: GradientFactors,
    rule: str,
    surrogate: Surrogate,
    *,
    want_parameters: bool,
    want_current: bool,
) -> tuple[ConvGradients, Tensor | None]:
    """The gradients, and what the backend keeps of the maxima of windows.

    Nothing is computed without ``scan``.
    """
    zeros, dtype, device = cleared(new), layer.weight.dtype, layer.weight.device
    weight, bias, beta, threshold = (
        zeros(want_parameters, tuple(x.shape), dtype, device) for x in layer[:4]
    )
    current = new(want_current, (num_steps, *times.shape), dtype, device)
    out = ConvGradients(weight, bias, beta, threshold, current)
    if scan is None:
        return out, None
    given_out = given_of(out)
    return out, scan(events.trimmed(), num_steps, times, factors, rule, surrogate, given_out)


def _conv_backward_scan(new: New, *rest: Any) -> tuple[Tensor, ...]:
    arguments = iter(rest)
    events, num_steps = take(Events, arguments), next(arguments)
    layer, conv = take(ConvNeurons, arguments), take(Convolution, arguments)
    times, grad, rule = next(arguments), next(arguments), next(arguments)
    surrogate = take(Surrogate, arguments)
    want_current, backend = arguments
    scan = None
    if new is not allocate_fake:
        scan = backends.load(backend, "conv").conv_backward_scan(layer, conv)
    gradients, _ = _backward_scan(
        new,
        scan,
        events,
        num_steps,
        layer,
        times,
        rows_of(grad, None),
        rule,
        surrogate,
        want_parameters=True,
        want_current=want_current,
    )
    return gradients  # type: ignore[return-value]


_EVENTS = f"{schema(Events)}, SymInt num_steps"
register(
    f"conv_first_spikes({_EVENTS}, {schema(ConvNeurons)}, {schema(Convolution)}, bool crossing, "
    "bool sensitivity, str backend) -> "
    "(Tensor out_crossing, Tensor out_sensitivity, Tensor out_times, Tensor out_when)",
    _conv_first_spikes,
)
register(
    f"conv_backward_closed_form({_EVENTS}, Tensor weight, Tensor beta, {schema(Convolution)}, "
    f"{schema(ClosedFormAdjoint)}, bool inputs, str backend) -> "
    "(Tensor out_weight, Tensor out_bias, Tensor out_inputs)",
    _conv_backward_closed_form,
)
register(
    f"conv_backward_scan({_EVENTS}, {schema(ConvNeurons)}, {schema(Convolution)}, Tensor spiked, "
    f"Tensor grad_spikes, str rule, {schema(Surrogate)}, bool current, str backend) -> "
    "(Tensor out_weight, Tensor out_bias, Tensor out_beta, Tensor out_threshold, "
    "Tensor out_current)",
    _conv_backward_scan,
)


class ConvSpikes(torch.autograd.Function):
    """First spikes of the leaky neurons behind a convolution, from the spikes of the layer before.

    ``given_`` is the carrier of the input. ``weight`` is (O, C / groups, KH, KW), ``bias`` is (O,).
    ``beta`` (between 0 and 1) and ``threshold`` are (O, 1) or (O, positions). ``events`` are the
    four tensors of :class:`Events`. Returns the carrier (T, B, O * positions) of the new spikes,
    their times (B, O * positions) int32, and interpolated times under "spike_time", else an empty
    tensor.
    """

    @staticmethod
    def forward(
        ctx: Any,
        settings: LinearSettings,
        conv: Convolution,
        given_: Tensor | None,
        weight: Tensor,
        bias: Tensor,
        beta: Tensor,
        threshold: Tensor,
        *events: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        exact = settings.rule == "spike_time"
        _, _, _, _, _, need_beta, *_ = ctx.needs_input_grad
        out = torch.ops.snn_single_spike.conv_first_spikes(
            *(*events, settings.once, settings.padded, settings.num_steps),
            *(weight, bias, beta, threshold, settings.reset),
            *conv,
            exact,
            exact and settings.track and need_beta,
            settings.backend,
        )
        ctx.save_for_backward(weight, bias, beta, threshold, *out, *events)
        ctx.conv = conv
        return first_spikes(ctx, settings, out, _flat(threshold, conv) if exact else threshold)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        grad, _, grad_times = grads
        settings: LinearSettings = ctx.settings
        weight, bias, beta, threshold, *around_spikes = ctx.saved_tensors
        crossing, sensitivity, times, when, *tensors = around_spikes
        place = "single_spike_conv2d (SingleSpikeLeaky"
        check_backward(place, weight, grad, grad_times, layer="convolution")
        _, _, need_input, *_ = ctx.needs_input_grad
        if need_input and not is_traced():
            parameters = (weight, bias, beta, threshold)
            weight, bias, beta, threshold = map(held, parameters)
        layer = ConvNeurons(weight, bias, beta, threshold, settings.reset)
        exact = settings.rule == "spike_time"
        # A compiled graph passes zeros for outputs without a gradient.
        grad = None if settings.surrogate is None else grad
        grad_times = grad_times if exact else None
        unused = (None,) * len(tensors)
        if (grad is None and grad_times is None) or not times.numel():
            zeros = (torch.zeros_like(x) for x in (weight, bias, beta, threshold))
            return None, None, None, *zeros, *unused
        events = take(Events, iter((*tensors, settings.once, settings.padded)))
        through = _Backward(settings, ctx.conv, events, layer, times, need_input)
        if exact:
            found = through.times(when, crossing, sensitivity, grad, grad_times)
        else:
            assert grad is not None
            found = through.spikes(grad)
        return None, None, *found, *unused


def _flat(parameter: Tensor, conv: Convolution) -> Tensor:
    """A parameter (O, 1 or positions) as one value for each neuron, (O * positions,)."""
    return parameter.expand(len(parameter), conv.positions).flatten()


class _Backward:
    """The backward pass of one layer: gradients to the input, the weights and the parameters."""

    def __init__(
        self,
        settings: LinearSettings,
        conv: Convolution,
        events: Events,
        layer: ConvNeurons,
        times: Tensor,
        need_input: bool,
    ) -> None:
        self.settings, self.conv, self.events = settings, conv, events
        self.layer, self.spiked, self.need_input = layer, times, need_input

    def times(
        self,
        when: Tensor,
        crossing: Tensor,
        sensitivity: Tensor,
        grad: Tensor | None,
        grad_times: Tensor | None,
    ) -> tuple[Tensor | None, ...]:
        """By the rule "spike_time", whose adjoint has a closed form."""
        settings, conv, layer, spiked = self.settings, self.conv, self.layer, self.spiked
        theta = _flat(layer.threshold, conv)
        adjoint, by_beta, by_threshold = at_spikes(
            settings, spiked, when, crossing, sensitivity, theta, grad, grad_times
        )
        backward = torch.ops.snn_single_spike.conv_backward_closed_form
        num_steps, backend = settings.num_steps, settings.backend
        given_ = (num_steps, layer.weight, layer.beta, *conv, *adjoint)
        grad_weight, grad_bias, _ = backward(*self.events, *given_, False, backend)
        decay = _flat(layer.beta, conv)
        to_input = None
        if is_traced() and self.need_input:
            lam = dense_adjoint(num_steps, decay, adjoint)
            to_input = self._product(slice(0, len(spiked)), lam)
        elif self.need_input:
            scan = backends.load(backend, "neuron").neuron_backward

            def rows(samples: slice) -> tuple[Tensor, None]:
                return adjoint_rows(scan, num_steps, decay, adjoint, samples), None

            def around(steps: Tensor, fired: Tensor) -> Tensor:
                return backward(*self._events_at(steps, fired), *given_, True, backend)[2]

            to_input = self._to_input(rows, around)
        d_beta = None if by_beta is None else self._of(by_beta, layer.beta)
        return to_input, grad_weight, grad_bias, d_beta, self._of(by_threshold, layer.threshold)

    def _of(self, values: Tensor, parameter: Tensor) -> Tensor:
        """Values (B, O * positions), summed to the shape of a parameter."""
        return values.sum(0).view(len(parameter), -1).sum_to_size(parameter.shape)

    def _to_input(
        self, rows: Callable[[slice], tuple[Tensor, Tensor | None]], at: At | None
    ) -> FactoredGradient:
        """The gradient to the input spikes.

        It is computed from rows of the adjoint (T, n, O * positions), and the maxima if known.
        """
        return FactoredGradient(
            self.settings.num_steps,
            len(self.spiked),
            GradientFactors(lambda samples: self._product(samples, *rows(samples)), None),
            at,
            like=self.layer.weight.new_empty(0, self.conv.units),
            reads=self.layer[:4],
        )

    def _product(self, samples: slice, lam: Tensor, winner: Tensor | None = None) -> Tensor:
        """The transposed convolution of the adjoint of some samples."""
        num_steps, weight, conv = self.settings.num_steps, self.layer.weight, self.conv
        if is_traced():  # all samples, in operations that a compiler can trace
            dense = self.events.to_dense(num_steps, conv.units, weight.dtype)
            return convolution.to_input(lam, dense, weight, conv)
        return self._transposed(self._events_of(samples), num_steps, lam, winner)

    @functools.cached_property
    def _transposed(self) -> convolution.ToInput:
        module = backends.load(self.settings.backend, "conv")
        to_input: convolution.ToInput = module.conv_to_input(self.layer.weight, self.conv)
        return to_input

    def _events_at(self, steps: Tensor, fired: Tensor) -> Events:
        """One step of each input as an event, whose value is 0 for an input without a spike.

        An input with a spike has the step of its spike. Behind a maximum the values are those of
        the spikes, because they decide which position of a window has the maximum.
        """
        events = sort_spikes(steps, self.settings.num_steps, self.settings.backend)
        values = fired.to(self.layer.weight.dtype)
        spikes = self.events.trimmed()
        if self.conv.pools and spikes.values is not None:
            values = values.index_put((spikes.samples(), spikes.units.long()), spikes.values)
        return with_values(events, values)

    def _events_of(self, samples: slice) -> Events:
        events = self.events.trimmed().part(samples)
        return events._replace(offsets=events.offsets - events.offsets[0])

    def spikes(self, grad: Tensor) -> tuple[Tensor | None, ...]:
        """By a surrogate rule, from a scan over all steps."""
        settings, conv, layer = self.settings, self.conv, self.layer
        assert isinstance(settings.surrogate, Surrogate)
        num_steps, rule, surrogate = settings.num_steps, settings.rule, settings.surrogate
        every = slice(0, len(self.spiked))
        if is_traced():
            *gradients, current = torch.ops.snn_single_spike.conv_backward_scan(
                *(*self.events, num_steps, *layer, *conv, self.spiked, grad, rule, *surrogate),
                *(self.need_input, settings.backend),
            )
            return self._product(every, current) if self.need_input else None, *gradients
        factors = factors_of(grad)
        by_rule = backends.load(settings.backend, "conv").conv_backward_scan(layer, self.conv)
        keep = self.need_input and num_steps * self.spiked.numel() <= _KEPT

        def scan(
            samples: slice, wanted: GradientFactors, want_parameters: bool
        ) -> tuple[ConvGradients, Tensor | None]:
            return _backward_scan(
                allocate,
                by_rule,
                self._events_of(samples),
                num_steps,
                layer,
                self.spiked[samples],
                wanted,
                rule,
                surrogate,
                want_parameters=want_parameters,
                want_current=keep or not want_parameters,
            )

        (*gradients, current), winner = scan(every, factors, want_parameters=True)
        kept = current if keep else None

        def rows(samples: slice) -> tuple[Tensor, Tensor | None]:
            if kept is not None:
                return kept[:, samples], None if winner is None else winner[:, samples]
            # A second scan of a few samples takes less memory than the adjoint of all samples.
            wanted = factors.part(samples.start)
            found, found_winner = scan(samples, wanted, want_parameters=False)
            assert found.current is not None
            return found.current, found_winner

        return self._to_input(rows, None) if self.need_input else None, *gradients
