"""The operators of a layer of neurons, and their gradient.

``neuron_forward`` and ``neuron_backward`` take flattened time-major tensors (T, M) and parameters
(P,). :class:`SingleSpike` decides which outputs are computed and which tensors are saved: at most
one (T, M) tensor, and the synaptic currents if the decay of a synaptic current is learned.
:func:`run_single_spike` is the entry: it checks the arguments and runs the operator.
"""

from __future__ import annotations

import itertools
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import backends
from ..backends._compiling import is_traced
from ..backends._surrogate import Surrogate
from ..backends._types import (
    FREE,
    OPTIONS,
    PARAMETERS,
    SCANNED,
    TENSORS,
    ForwardOutputs,
    InputGradients,
    Neuron,
    OutputGradients,
    Saved,
    needs_phase,
    schema,
    state_dtype,
)
from ..backends.memory import copy
from ..backends.torch import differentiable
from ._library import New, allocate_fake, given_of, register, take
from .crossing import Slope, around, at_steps, interpolate, per_neuron, through_crossing
from .factored_gradient import distinct_rows
from .gate import RuleGate
from .second_order import is_recorded, moved_height, refuse_batched, through_height, unit_spikes
from .surrogate import SpikeGrad
from .validation import (
    GRADIENT_RULES,
    check_choice,
    check_current,
    check_parameter,
    check_refractory,
    check_state,
)

# The gradients of parameters and states are rows of one tensor. A row is a multiple of this long,
# so that every row begins aligned.
_ALIGNED = 16
INPUTS = ("current", *TENSORS)
"""The tensor arguments of :class:`SingleSpike`, in order."""


class Wanted(NamedTuple):
    """The requested outputs of ``neuron_forward``. Spike times are always computed."""

    spikes: bool = True
    mem: bool = True
    syn: bool = False
    """All synaptic currents that the neuron has."""
    crossing: bool = False
    final: bool = False
    phase: bool = False
    """Only for a neuron with ``refractory``."""


class Settings(NamedTuple):
    """Arguments of :class:`SingleSpike` that are not tensors."""

    clamp: bool
    reset: str
    refractory: int | None
    rule: str
    surrogate: Slope | None
    """None for spikes without a gradient. Only "spike_time" takes a custom function."""
    wanted: Wanted
    recompute: bool
    track: bool
    """Whether gradients are enabled; ``ctx.needs_input_grad`` ignores ``torch.no_grad()``."""
    backend: str


def _neuron_forward(new: New, current: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    arguments = iter(rest)
    neuron, wanted = take(Neuron, arguments), take(Wanted, arguments)
    (backend,) = arguments
    num_steps, neurons = current.shape
    dtype, device = current.dtype, current.device
    whole = (num_steps, neurons)
    states = neuron.num_states
    out = ForwardOutputs(
        spikes=new(wanted.spikes, whole, dtype, device),
        mem=new(wanted.mem, whole, dtype, device),
        syn=new(wanted.syn and states > 1, whole, dtype, device),
        inh=new(wanted.syn and states > 2, whole, dtype, device),
        crossing=new(wanted.crossing, (2, neurons), state_dtype(dtype), device),
        final=new(wanted.final, (states, neurons), dtype, device),
        times=new(True, (neurons,), torch.int64, device),
        phase=new(wanted.phase, whole, torch.uint8, device),
        when=new(wanted.crossing, (neurons,), torch.int64, device),
    )
    if new is not allocate_fake and neurons:
        backends.load(backend, "neuron").neuron_forward(current, neuron, given_of(out))
    return out  # type: ignore[return-value]


def _neuron_backward(new: New, *rest: Any) -> tuple[Tensor, ...]:
    arguments = iter(rest)
    saved, neuron, times = take(Saved, arguments), take(Neuron, arguments), next(arguments)
    grads = take(OutputGradients, arguments)
    num_steps, dtype, rule = next(arguments), next(arguments), next(arguments)
    surrogate = take(Surrogate, arguments)
    needs, backend = arguments
    neurons, device = times.shape[0], times.device
    state = neuron.beta.dtype
    need_current, *need_rows = needs
    wanted = sum(need_rows)
    # Not a list of tensors: torch computes batched gradients of tensors only.
    current = new(need_current or saved.recompute, (num_steps, neurons), dtype, device)
    length = -(-neurons // _ALIGNED) * _ALIGNED
    rows = new(wanted > 0, (wanted, length), state, device)
    if new is not allocate_fake and neurons:
        if wanted and neurons % _ALIGNED:
            rows[:, neurons:] = 0.0
        out = _by_name(rows, needs, neurons)
        if current.numel():
            out["current"] = current
        backends.load(backend, "neuron").neuron_backward(
            num_steps, dtype, saved, neuron, times, grads, rule, surrogate, out
        )
    return current, rows


def _by_name(rows: Tensor, needs: list[bool], neurons: int) -> InputGradients:
    """The requested gradients of parameters and states, by names of :data:`SCANNED`."""
    names = itertools.compress(SCANNED[1:], needs[1:])
    return {name: row[:neurons] for name, row in zip(names, rows.unbind(0), strict=True)}


register(
    f"neuron_forward(Tensor current, {schema(Neuron)}, {schema(Wanted)}, str backend) -> "
    f"({', '.join(f'Tensor out_{name}' for name in ForwardOutputs._fields)})",
    _neuron_forward,
)
register(
    f"neuron_backward({schema(Saved)}, {schema(Neuron)}, Tensor times, {schema(OutputGradients)}, "
    f"SymInt num_steps, ScalarType dtype, str rule, {schema(Surrogate)}, "
    f"bool[{len(SCANNED)}] needs, str backend) -> (Tensor out_current, Tensor out_rows)",
    _neuron_backward,
)


def neuron_backward(
    saved: Saved,
    neuron: Neuron,
    times: Tensor,
    grads: OutputGradients,
    num_steps: int,
    dtype: torch.dtype,
    rule: str,
    surrogate: Surrogate | None,
    needs: dict[str, bool],
    backend: str,
) -> dict[str, Tensor]:
    """The requested gradients, by names of :data:`SCANNED`."""
    wanted = [needs.get(name, False) for name in SCANNED]
    current, rows = torch.ops.snn_single_spike.neuron_backward(
        *saved,
        *neuron,
        times,
        *grads,
        num_steps,
        dtype,
        rule,
        *(surrogate or Surrogate("straight_through_estimator")),
        wanted,
        backend,
    )
    into = _by_name(rows, wanted, times.shape[0])
    if wanted[0]:
        into["current"] = current
    return into


def _as_backends_read(grads: OutputGradients) -> OutputGradients:
    """Contiguous gradients; one row for a gradient that is the same at every step."""
    rows = (None if g is None else distinct_rows(g).contiguous() for g in grads[:4])
    single = (None if g is None else g.contiguous() for g in grads[4:])
    return OutputGradients(*rows, *single)


def sum_to_parameter(gradient: Tensor, like: Tensor) -> Tensor:
    """The gradient of a parameter (P,), summed from one value per neuron and sample (M,)."""
    return gradient.view(-1, like.shape[0]).sum(0).to(like.dtype)


class SingleSpike(torch.autograd.Function):
    """Spikes, states and spike times of a layer, differentiable in every input.

    ``tensors`` are :data:`INPUTS`. Returns (spikes, mem, syn, inh, times, final, crossing, phase);
    an output that is neither requested nor saved is empty. ``times`` (M,) are int64 steps, or
    interpolated and differentiable under "spike_time". The height of a spike has a gradient only
    for at most one spike.

    A saved tensor is an input or an output, so that second derivatives pass through it.
    """

    @staticmethod
    def forward(ctx: Any, settings: Settings, *tensors: Tensor | None) -> tuple[Tensor, ...]:
        inputs = dict(zip(INPUTS, tensors, strict=True))
        current = inputs.pop("current")
        assert current is not None
        options = {name: getattr(settings, name) for name in OPTIONS}
        neuron = Neuron(**inputs, **options)  # type: ignore[arg-type]
        wanted, surrogate = settings.wanted, settings.surrogate
        exact = settings.rule == "spike_time"
        needs = {
            name: settings.track and need
            for name, need in zip(INPUTS, ctx.needs_input_grad[1:], strict=True)
        }
        need_factor = needs.pop("graded_spikes_factor")
        del needs["last_0"]
        # The height of a spike enters a state only through feedback.
        scans = any(needs.values()) or (need_factor and neuron.feedback is not None)
        through_spikes = surrogate is not None and not exact
        through_spikes = through_spikes and (wanted.spikes or neuron.feedback is not None)
        # The surrogate and the gradient of beta read the membrane. The gradients of the gain and of
        # the decays of synaptic currents read these currents. With a refractory period the membrane
        # also says where a reset cuts the gradient.
        need_saved = through_spikes or (needs["beta"] and neuron.gain is None)
        need_saved = scans and (need_saved or neuron.refractory is not None)
        save_syn = needs["alpha"] or needs["gain"] or (neuron.gain is not None and needs["beta"])
        returned = wanted.spikes or wanted.mem
        save_mem = need_saved and (save_syn or (not settings.recompute and returned))
        computed = wanted._replace(
            mem=wanted.mem or save_mem,
            syn=wanted.syn or save_syn,
            crossing=exact,
            phase=wanted.phase or (scans and needs_phase(neuron, current.dtype)),
        )
        out: Any = ForwardOutputs(
            *torch.ops.snn_single_spike.neuron_forward(
                current, *neuron, *computed, settings.backend
            )
        )
        times = out.times
        if exact:
            times = interpolate(out.times, out.crossing, neuron.threshold)
        elif scans or need_factor:
            times = copy(times)  # the caller may overwrite -1 in place
        ctx.set_materialize_grads(False)
        carries = need_factor or surrogate is not None
        constant = [out.final, out.phase] if exact else [out.final, out.phase, times]
        ctx.mark_non_differentiable(*constant, *([] if carries else [out.spikes]))
        ctx.save_for_backward(
            (out.mem if save_mem else current) if need_saved else None,
            out.syn if save_syn else None,
            out.inh if save_syn and neuron.gain is not None else None,
            out.phase if scans and computed.phase else None,
            out.times,
            out.crossing if exact else None,
            out.when if exact else None,
            *neuron.tensors().values(),
        )
        ctx.settings = settings
        ctx.recompute = need_saved and not save_mem
        ctx.rule = (settings.rule, surrogate) if through_spikes else ("none", None)
        ctx.num_steps, ctx.dtype = current.shape[0], current.dtype
        # A compiled graph has no second derivatives, and passes zeros for unused outputs.
        traced = torch.compiler.is_compiling()
        has_mem, has_syn = (wanted.mem, wanted.syn) if traced else (computed.mem, computed.syn)
        has_inh = has_syn and neuron.gain is not None
        has_crossing = exact and not traced
        ctx.has_gradient = (
            *(wanted.spikes and carries, has_mem, has_syn, has_inh, exact, False, has_crossing),
            False,
        )
        # An output that is not requested is empty already, if it is not computed for the gradient.
        given = ((out.mem, has_mem), (out.syn, has_syn), (out.inh, has_inh))
        mem, syn, inh, crossing = (
            x if has or not x.numel() else x.new_empty(0)
            for x, has in (*given, (out.crossing, has_crossing))
        )
        return (out.spikes, mem, syn, inh, times, out.final, crossing, out.phase)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        settings: Settings = ctx.settings
        # A compiled graph passes zeros for outputs that do not exist.
        grad_spikes, grad_mem, grad_syn, grad_inh, grad_times, _, grad_crossing, _ = (
            grad if has else None for grad, has in zip(grads, ctx.has_gradient, strict=True)
        )
        saved, syn, inh, phase, times, crossing, when, *tensors = ctx.saved_tensors
        options = (getattr(settings, name) for name in OPTIONS)
        neuron = take(Neuron, iter((*tensors, *options)))
        factor, feedback = neuron.graded_spikes_factor, neuron.feedback
        needs = dict(zip(INPUTS, ctx.needs_input_grad[1:], strict=True))
        need_factor = needs.pop("graded_spikes_factor")
        del needs["last_0"]
        neurons = len(times)
        rule, surrogate = ctx.rule
        grad_heights = grad_spikes if need_factor else None
        grad_at = grad_before = direct_threshold = None
        if when is not None:
            assert crossing is not None
            on_spikes = None
            if grad_spikes is not None and settings.surrogate is not None:
                on_spikes = around(grad_spikes, when).to(crossing.dtype)
                on_spikes = on_spikes * per_neuron(factor, neurons)
            grad_at, grad_before, direct_threshold = through_crossing(
                on_spikes, grad_times, times, crossing, neuron.threshold, settings.surrogate
            )
            if grad_crossing is not None:
                before, at = grad_crossing.unbind(0)
                grad_at = at if grad_at is None else grad_at + at
                grad_before = before if grad_before is None else grad_before + before
        if crossing is not None or settings.surrogate is None:
            grad_spikes = None
        needs["feedback"] = feedback is not None and (needs["feedback"] or need_factor)
        gradients = OutputGradients(
            *(grad_spikes, grad_mem, grad_syn, grad_inh),
            *(grad_at, grad_before, None if grad_at is None else when),
        )
        states = Saved(saved, ctx.recompute, syn, inh, phase)
        into: dict[str, Tensor] = {}
        if is_recorded():
            into = _recorded_backward(
                *(ctx, states, neuron, times, when, crossing),
                *(gradients, grad_heights, needs, need_factor),
            )
        else:
            if any(needs.values()):
                into = neuron_backward(
                    states,
                    neuron,
                    times,
                    _as_backends_read(gradients),
                    ctx.num_steps,
                    ctx.dtype,
                    rule,
                    surrogate,
                    needs,
                    settings.backend,
                )
            at_spike = None  # gradient to the height of a spike
            if grad_heights is not None:
                at_spike = at_steps(grad_heights, times).to(factor.dtype)
            if "feedback" in into:
                # The fed-back current is feedback * factor.
                fed_back = into["feedback"]
                assert feedback is not None
                into["feedback"] = fed_back * per_neuron(factor, neurons)
                from_feedback = fed_back * per_neuron(feedback, neurons)
                at_spike = from_feedback if at_spike is None else at_spike + from_feedback
            if need_factor and at_spike is not None:
                into["graded_spikes_factor"] = at_spike
        if "threshold" in into and direct_threshold is not None:
            into["threshold"] = into["threshold"] + direct_threshold
        summed = {
            name: sum_to_parameter(into[name], getattr(neuron, name))
            for name in PARAMETERS
            if name in into
        }
        return None, *((into | summed).get(name) for name in INPUTS)


def _recorded_backward(
    ctx: Any,
    saved: Saved,
    neuron: Neuron,
    times: Tensor,
    when: Tensor | None,
    crossing: Tensor | None,
    grads: OutputGradients,
    grad_heights: Tensor | None,
    needs: dict[str, bool],
    need_factor: bool,
) -> dict[str, Tensor]:
    """The gradients of :meth:`SingleSpike.backward` in operations that autograd records."""
    settings: Settings = ctx.settings
    refuse_batched("neurons with create_graph=True", "", *grads)
    mem = saved.saved
    if mem is not None and saved.recompute:
        only_mem = settings._replace(wanted=Wanted(spikes=False), recompute=False, track=True)
        mem = SingleSpike.apply(only_mem, mem, *neuron.tensors().values())[1]
    rule, surrogate = ctx.rule
    wanted = [name for name, need in needs.items() if need]
    states = saved._replace(saved=mem, recompute=False)
    into, after = differentiable.neuron_backward(
        ctx.num_steps, states, neuron, times, grads, rule, surrogate, wanted
    )
    into = {name: into[name] for name in wanted}
    if "current" in into:
        into["current"] = into["current"].to(ctx.dtype)
    if need_factor or "feedback" in into:
        units = unit_spikes(ctx.num_steps, mem, neuron, times, rule, surrogate)
        into |= through_height(units, after, grad_heights, neuron)
    if when is not None and settings.surrogate is not None and grad_heights is not None:
        assert crossing is not None
        moved = moved_height(
            *(grad_heights, times, when, crossing, neuron.threshold, settings.surrogate)
        )
        into["graded_spikes_factor"] = into["graded_spikes_factor"] + moved
    return into


class Result(NamedTuple):
    """The result of :func:`run_single_spike`; an output that was not requested is None."""

    spikes: Tensor | None
    mem: Tensor | None
    syn: Tensor | None
    inh: Tensor | None
    times: Tensor
    final: Tensor | None
    """The states at T-1, (1 to 3, B, *features): the membrane, then the synaptic currents."""


def run_single_spike(
    current: Tensor,
    beta: Tensor | float,
    threshold: Tensor | float,
    graded_spikes_factor: Tensor | float,
    surrogate: Surrogate | None,
    custom_surrogate: SpikeGrad | None,
    gradient: str,
    reset: str,
    *,
    mem: Tensor | None = None,
    alpha: Tensor | float | None = None,
    gain: Tensor | None = None,
    feedback: Tensor | float | None = None,
    syn: Tensor | None = None,
    inh: Tensor | None = None,
    clamp: bool = True,
    refractory: int | None = None,
    last: Tensor | None = None,
    want_spikes: bool = True,
    want_mem: bool = True,
    want_final: bool = False,
    recompute: bool | None = None,
    backend: str = "auto",
) -> Result:
    """Check the arguments, run the operator, restore the shapes.

    :class:`snn_single_spike.backends._types.Neuron` describes the neuron and ``reset``.
    :func:`snn_single_spike.ops.surrogate.split` returns ``surrogate`` and ``custom_surrogate``.
    ``want_mem`` returns the synaptic currents, too. ``last`` (B, *features) is the step of the last
    spike before the sequence, negative.
    """
    check_current(current)
    check_choice("gradient", gradient, GRADIENT_RULES)
    refractory = check_refractory(refractory, gradient)
    if refractory is not None and (gain is not None or feedback is not None):
        raise ValueError(
            f"refractory={refractory} is not supported by neurons with feedback or a gain, which "
            "spike at most once: pass refractory=None"
        )
    chosen = backends.select(backend, current.device.type)
    exact = gradient == "spike_time"
    threshold_ = check_parameter("threshold", threshold, current)
    factor = check_parameter("graded_spikes_factor", graded_spikes_factor, current)

    # An exported program has no backward pass to save for.
    track = torch.is_grad_enabled() and not torch.compiler.is_exporting()
    # Custom surrogate: the operator returns the membrane, and autograd differentiates the rest.
    composed = track and want_spikes and custom_surrogate is not None and not exact
    # The operator sums the gradient to the height at one spike only.
    apart = composed or (refractory is not None and factor.requires_grad)
    learned = (x for x in (current, beta, feedback) if isinstance(x, Tensor))
    if composed and feedback is not None and any(x.requires_grad for x in learned):
        raise ValueError(
            "spike_grad is a custom function, but a neuron with feedback requires a surrogate of "
            "snntorch.surrogate: use e.g. snntorch.surrogate.atan(), or gradient='spike_time', "
            "which uses no surrogate"
        )
    settings = Settings(
        clamp=clamp,
        reset=reset,
        refractory=refractory,
        rule=gradient,
        surrogate=surrogate or (custom_surrogate if exact else None),
        wanted=Wanted(
            spikes=want_spikes,
            mem=want_mem or composed,
            syn=want_mem and alpha is not None,
            final=want_final,
            phase=composed and bool(refractory),
        ),
        # A second integration costs plain torch a whole pass, and the fused loops almost nothing.
        recompute=(not want_mem and chosen != "torch") if recompute is None else recompute,
        track=track,
        backend=chosen,
    )
    inputs = {
        "current": current.flatten(1).contiguous(),
        "beta": check_parameter("beta", beta, current),
        "threshold": threshold_,
        "graded_spikes_factor": torch.ones_like(factor) if apart else factor,
        "alpha": None if alpha is None else check_parameter("alpha", alpha, current),
        "gain": None if gain is None else check_parameter("gain", gain, current),
        "feedback": None if feedback is None else check_parameter("V", feedback, current),
        "mem_0": check_state("mem", mem, current),
        "syn_0": check_state("syn" if gain is None else "syn_exc", syn, current),
        "inh_0": check_state("syn_inh", inh, current),
    }
    inputs["last_0"] = _last_spike(refractory, last, inputs["mem_0"], threshold_, current)
    spikes, membrane, syn_rec, inh_rec, times, final, _, phase = SingleSpike.apply(
        settings, *(inputs[name] for name in INPUTS)
    )
    shape = current.shape
    spikes = spikes.view(shape) if want_spikes else None
    membrane = membrane.view(shape) if want_mem or composed else None
    times = times.view(shape[1:])
    if composed and custom_surrogate is not None and spikes is not None and membrane is not None:
        crossings = custom_surrogate(membrane.to(threshold_.dtype) - _broadcast(threshold_, shape))
        if phase.numel():
            free = (phase & FREE != 0).view(shape)
            crossings = torch.where(free, crossings, crossings.detach())
        closes = times if refractory is None else torch.full_like(times, -1)
        spikes = RuleGate.apply(crossings, spikes, closes, gradient)
    if apart and spikes is not None:
        spikes = (spikes * _broadcast(factor, shape)).to(current.dtype)
    return Result(
        spikes,
        membrane if want_mem else None,
        syn_rec.view(shape) if want_mem and alpha is not None else None,
        inh_rec.view(shape) if want_mem and gain is not None else None,
        times,
        final.view(len(final), *shape[1:]) if want_final else None,
    )


def _last_spike(
    refractory: int | None,
    last: Tensor | None,
    mem_0: Tensor | None,
    threshold: Tensor,
    current: Tensor,
) -> Tensor | None:
    """The step (M,) of the last spike before the sequence, as the operator reads it.

    Without a refractory period the membrane says whether the neuron spiked one step before, as in
    snnTorch.
    """
    if refractory is None:
        return None
    lowest = -refractory - 2
    if refractory:
        return None if last is None else last.flatten().clamp(lowest, -1).contiguous()
    if mem_0 is None:
        on_cpu = threshold.device.type == "cpu" and not is_traced()
        if on_cpu and bool((threshold >= 0).all()):
            return None
        mem_0 = torch.zeros_like(current[0], dtype=threshold.dtype).flatten()
    above = mem_0.detach().view(-1, threshold.numel()) > threshold.detach()
    return torch.where(above, -1, lowest).flatten()


def _broadcast(parameter: Tensor, shape: torch.Size) -> Tensor:
    return parameter if parameter.numel() == 1 else parameter.view(shape[2:])
