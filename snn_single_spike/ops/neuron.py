"""The registered operators and their gradients.

``torch.ops.snn_single_spike.*`` are what ``torch.compile`` and ``torch.export`` see: opaque,
functional, with shapes known from :func:`register_fake <torch.library.register_fake>`.
They take flattened time-major tensors (T, M) and parameters (P,), allocate what was asked
for, and hand it to one implementation (:mod:`snn_single_spike.backends`). An output that
was not asked for is an empty tensor at this boundary, where None cannot be returned.

The autograd functions on top decide what to ask for and what to save: one (T, M) tensor at
most, and where the decay of a synaptic current is learned the currents as well.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .. import backends
from ..backends._types import (
    ForwardOutputs,
    InputGradients,
    Neuron,
    OutputGradients,
    ReadoutOutputs,
    Saved,
    state_dtype,
)
from ..backends.memory import copy, empty
from .surrogate import Surrogate

_library = torch.library.Library("snn_single_spike", "DEF")
# The fields of Neuron, in their order
_NEURON = (
    "Tensor beta, Tensor threshold, Tensor graded_spikes_factor, Tensor? mem_0, Tensor? alpha, "
    "Tensor? gain, Tensor? feedback, Tensor? syn_0, Tensor? inh_0, bool clamp, str reset"
)
_library.define(
    f"neuron_forward(Tensor current, {_NEURON}, bool spikes, bool mem, bool syn, bool crossing, "
    "bool final, str backend) -> (Tensor spikes, Tensor mem, Tensor syn, Tensor inh, "
    "Tensor crossing, Tensor final, Tensor times)"
)
_library.define(
    "neuron_backward(Tensor? saved, bool recompute, Tensor? syn, Tensor? inh, "
    f"{_NEURON}, Tensor times, Tensor? grad_spikes, Tensor? grad_mem, Tensor? grad_syn, "
    "Tensor? grad_inh, Tensor? grad_at, Tensor? grad_before, SymInt num_steps, ScalarType dtype, "
    "str rule, str surrogate, float a, float b, bool[9] needs, str backend) -> (Tensor current, "
    "Tensor beta, Tensor threshold, Tensor mem_0, Tensor alpha, Tensor gain, Tensor feedback, "
    "Tensor syn_0, Tensor inh_0)"
)
_library.define(
    "leaky_readout(Tensor current, Tensor beta, Tensor? mem_0, str reduction, bool sensitivity, "
    "bool step, str backend) -> (Tensor value, Tensor sensitivity, Tensor step)"
)


def _wanted(tensor: Tensor) -> Tensor | None:
    """None for the empty tensor that stands for an output nobody asked for."""
    return tensor if tensor.numel() else None


def _leaky_forward(current: Tensor, *given: Any, fake: bool = False) -> tuple[Tensor, ...]:
    neuron = Neuron(*given[: len(Neuron._fields)])
    spikes, mem, syn, crossing, final, backend = given[len(Neuron._fields) :]
    num_steps, lanes = current.shape
    dtype, device = current.dtype, current.device
    states = 1 + (neuron.alpha is not None) + (neuron.gain is not None)
    new = torch.empty if fake else empty
    out = (
        new((num_steps, lanes) if spikes else (0,), dtype=dtype, device=device),
        new((num_steps, lanes) if mem else (0,), dtype=dtype, device=device),
        new((num_steps, lanes) if syn and states > 1 else (0,), dtype=dtype, device=device),
        new((num_steps, lanes) if syn and states > 2 else (0,), dtype=dtype, device=device),
        new((2, lanes) if crossing else (0,), dtype=state_dtype(dtype), device=device),
        new((states, lanes) if final else (0,), dtype=dtype, device=device),
        new((lanes,), dtype=torch.int64, device=device),
    )
    if not fake and lanes:
        backends.load(backend, "neuron").neuron_forward(
            current,
            neuron,
            ForwardOutputs(
                spikes=_wanted(out[0]),
                mem=_wanted(out[1]),
                syn=_wanted(out[2]),
                inh=_wanted(out[3]),
                crossing=_wanted(out[4]),
                final=_wanted(out[5]),
                times=out[6],
            ),
        )
    return out


def _leaky_backward(
    saved: Tensor | None,
    recompute: bool,
    syn: Tensor | None,
    inh: Tensor | None,
    *given: Any,
    fake: bool = False,
) -> tuple[Tensor, ...]:
    neuron = Neuron(*given[: len(Neuron._fields)])
    times, *rest = given[len(Neuron._fields) :]
    grads = OutputGradients(*rest[: len(OutputGradients._fields)])
    num_steps, dtype, rule, surrogate, a, b, needs, backend = rest[len(OutputGradients._fields) :]
    lanes, device = times.shape[0], times.device
    need_current, *need_lanes = needs
    state = neuron.beta.dtype
    new = torch.empty if fake else empty
    out = (
        new((num_steps, lanes) if need_current or recompute else (0,), dtype=dtype, device=device),
        *(new((lanes,) if need else (0,), dtype=state, device=device) for need in need_lanes),
    )
    if not fake and lanes:
        backends.load(backend, "neuron").neuron_backward(
            num_steps,
            dtype,
            Saved(saved, recompute, syn, inh),
            neuron,
            times,
            grads,
            rule,
            Surrogate(surrogate, a, b),
            InputGradients(*(_wanted(tensor) for tensor in out)),
        )
    return out


def _leaky_readout(
    current: Tensor,
    beta: Tensor,
    mem_0: Tensor | None,
    reduction: str,
    sensitivity: bool,
    step: bool,
    backend: str,
    *,
    fake: bool = False,
) -> tuple[Tensor, ...]:
    lanes, device = current.shape[1], current.device
    new = torch.empty if fake else empty
    out = (
        new((lanes,), dtype=current.dtype, device=device),
        new((lanes,) if sensitivity else (0,), dtype=state_dtype(current.dtype), device=device),
        new((lanes,) if step else (0,), dtype=torch.int64, device=device),
    )
    if not fake and lanes:
        backends.load(backend, "readout").readout(
            current,
            beta,
            mem_0,
            reduction,
            ReadoutOutputs(out[0], _wanted(out[1]), _wanted(out[2])),
        )
    return out


for _name, _function in (
    ("neuron_forward", _leaky_forward),
    ("neuron_backward", _leaky_backward),
    ("leaky_readout", _leaky_readout),
):
    # One implementation for every device: the `backend` argument already says which code runs.
    _library.impl(_name, _function, "CompositeExplicitAutograd")
    torch.library.register_fake(
        f"snn_single_spike::{_name}", functools.partial(_function, fake=True), lib=_library
    )


def _rows(gradient: Tensor | None) -> Tensor | None:
    """An upstream gradient as contiguous rows: one row if it is the same at every step.

    The gradient of a sum over time is an expanded tensor; reading its one row T times costs
    nothing, writing it out T times would cost as much as the whole backward pass.
    """
    if gradient is None:
        return None
    # A compiler that traces this does not know the strides yet.
    if not torch.compiler.is_compiling() and gradient.shape[0] > 1 and gradient.stride(0) == 0:
        gradient = gradient[:1]
    return gradient.contiguous()


def _sum_lanes(gradient: Tensor | None, like: Tensor) -> Tensor | None:
    """Gradient of a parameter (P,) from one value per lane (M,)."""
    if gradient is None:
        return None
    return gradient.view(-1, like.shape[0]).sum(0).to(like.dtype)


class SingleSpike(torch.autograd.Function):
    """Spikes, states and spike times of a layer, differentiable in every input.

    Returns (spikes, mem, syn, inh, times, final); those not asked for are empty. ``times``
    are int64 steps, or interpolated and differentiable under the ``spike_time`` rule.
    """

    @staticmethod
    def forward(
        ctx: Any,
        current: Tensor,
        beta: Tensor,
        threshold: Tensor,
        graded_spikes_factor: Tensor,
        mem_0: Tensor | None,
        alpha: Tensor | None,
        gain: Tensor | None,
        feedback: Tensor | None,
        syn_0: Tensor | None,
        inh_0: Tensor | None,
        clamp: bool,
        reset: str,
        rule: str,
        surrogate: tuple[str, float, float] | None,
        spikes_move_times: bool,
        want: tuple[bool, bool, bool, bool],
        recompute: bool,
        track: bool,
        backend: str,
    ) -> tuple[Tensor, ...]:
        want_spikes, want_mem, want_syn, want_final = want
        neuron = (
            beta,
            threshold,
            graded_spikes_factor,
            mem_0,
            alpha,
            gain,
            feedback,
            syn_0,
            inh_0,
        )
        exact = rule == "spike_time"
        # needs_input_grad does not know of torch.no_grad()
        needs = ctx.needs_input_grad[:10] if track else (False,) * 10
        _, need_beta, _, need_factor, _, need_alpha, need_gain, *_ = needs
        # All but the factor, unless the spike of that height is fed back
        upstream = any(needs[:3]) or any(needs[4:]) or (need_factor and feedback is not None)
        through_spikes = surrogate is not None and not exact
        through_spikes = through_spikes and (want_spikes or feedback is not None)
        # The membrane is read by the surrogate and by the gradient of its decay, the synaptic
        # currents by those of theirs and of the gain, and nothing else is.
        need_saved = upstream and (through_spikes or (need_beta and gain is None))
        save_syn = need_alpha or need_gain or (gain is not None and need_beta)
        save_mem = need_saved and (save_syn or (not recompute and (want_spikes or want_mem)))
        spikes, mem, syn, inh, crossing, final, times = torch.ops.snn_single_spike.neuron_forward(
            current,
            *neuron,
            clamp,
            reset,
            want_spikes,
            want_mem or save_mem,
            want_syn or save_syn,
            exact,
            want_final,
            backend,
        )
        num_steps = times
        if exact:
            times = interpolate(num_steps, crossing, threshold)
        elif upstream or need_factor:
            times = copy(times)  # the caller may write -1 over with what suits a loss
        ctx.set_materialize_grads(False)
        carries = need_factor or (spikes_move_times if exact else surrogate is not None)
        constant = [final] if exact else [final, times]
        ctx.mark_non_differentiable(*constant, *([] if carries else [spikes]))
        ctx.save_for_backward(
            (mem if save_mem else current) if need_saved else None,
            syn if save_syn else None,
            inh if save_syn and gain is not None else None,
            *neuron,
            num_steps,
            crossing if exact else None,
        )
        ctx.recompute = need_saved and not save_mem
        ctx.clamp, ctx.reset, ctx.rule = clamp, reset, rule if through_spikes else "none"
        ctx.exact, ctx.surrogate, ctx.backend = exact, surrogate, backend
        ctx.moves = spikes_move_times
        ctx.num_steps, ctx.dtype = current.shape[0], current.dtype
        both = want_syn and gain is not None
        ctx.want = want_spikes and carries, want_mem, want_syn, both, exact
        return (
            spikes,
            mem if want_mem else mem.new_empty(0),
            syn if want_syn else mem.new_empty(0),
            inh if both else mem.new_empty(0),
            times,
            final,
        )

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        # A compiled graph hands in zeros for outputs that do not exist.
        grad_spikes, grad_mem, grad_syn, grad_inh, grad_times = (
            grad if wanted else None for grad, wanted in zip(grads, ctx.want, strict=False)
        )
        saved, syn, inh, *neuron, times, crossing = ctx.saved_tensors
        beta, threshold, factor, _, alpha, gain, feedback, _, _ = neuron
        needs = list(ctx.needs_input_grad[:10])
        need_factor = needs.pop(3)

        at_spike = None  # gradient to the height of a spike
        if need_factor and grad_spikes is not None:
            at_spike = at_steps(grad_spikes, times).to(factor.dtype)
        grad_at = grad_before = direct_threshold = None
        if ctx.exact:
            rise = None
            if grad_spikes is not None and ctx.moves:
                rise = at_steps(grad_spikes, times) - at_steps(grad_spikes, times, back=1)
                rise = rise.to(crossing.dtype) * _per_lane(factor, len(times))
            grad_at, grad_before, direct_threshold = through_crossing(
                rise, grad_times, times, crossing, threshold
            )
        if ctx.exact or ctx.surrogate is None:
            grad_spikes = None
        needs[6] = feedback is not None and (needs[6] or need_factor)
        into: list[Tensor | None] = [None] * 9
        if any(needs):
            name, a, b = ctx.surrogate or ("straight_through_estimator", 0.0, 0.0)
            into = torch.ops.snn_single_spike.neuron_backward(
                saved,
                ctx.recompute,
                syn,
                inh,
                *neuron,
                ctx.clamp,
                ctx.reset,
                times,
                *map(_rows, (grad_spikes, grad_mem, grad_syn, grad_inh)),
                grad_at,
                grad_before,
                ctx.num_steps,
                ctx.dtype,
                ctx.rule,
                name,
                a,
                b,
                needs,
                ctx.backend,
            )
            into = [grad if need else None for grad, need in zip(into, needs, strict=True)]
        current, *states_and_parameters = into
        d_beta, d_threshold, d_mem, d_alpha, d_gain, d_fed, d_syn, d_inh = states_and_parameters
        if d_threshold is not None and direct_threshold is not None:
            d_threshold = d_threshold + direct_threshold
        d_feedback = None
        if d_fed is not None:
            # What the spike feeds back is feedback * factor.
            d_feedback = d_fed * _per_lane(factor, len(d_fed))
            from_feedback = d_fed * _per_lane(feedback, len(d_fed))
            at_spike = from_feedback if at_spike is None else at_spike + from_feedback
        return (
            current,
            _sum_lanes(d_beta, beta),
            _sum_lanes(d_threshold, threshold),
            _sum_lanes(at_spike, factor) if need_factor else None,
            d_mem,
            _sum_lanes(d_alpha, alpha),
            _sum_lanes(d_gain, gain),
            _sum_lanes(d_feedback, feedback),
            d_syn,
            d_inh,
            *(None,) * 9,
        )


def _per_lane(parameter: Tensor, lanes: int) -> Tensor:
    return parameter.repeat(lanes // parameter.shape[0])


def interpolate(times: Tensor, crossing: Tensor, threshold: Tensor) -> Tensor:
    """Time at which the straight line between V[t*-1] and V[t*] meets the threshold."""
    below, above = crossing.unbind(0)
    theta = _per_lane(threshold, times.shape[0])
    between = times - 1 + (theta - below) / (above - below)
    return torch.where(times > 0, between, times.to(between.dtype))


def at_steps(rows: Tensor, times: Tensor, back: int = 0) -> Tensor:
    """rows[t* - back] of every lane that fired at t* >= back, else 0."""
    index = (times - back).clamp(min=0)
    return torch.where(times >= back, rows.gather(0, index[None])[0], 0.0)


def through_crossing(
    rise: Tensor | None,
    grad_times: Tensor | None,
    times: Tensor,
    crossing: Tensor,
    threshold: Tensor,
) -> tuple[Tensor, Tensor, Tensor] | tuple[None, None, None]:
    """Gradients to V[t*], V[t*-1] and the threshold from the interpolated spike time tau.

    A loss on the spikes reaches tau as the slope of a spike that is shared linearly between
    the two steps around it: dL/dtau = ``rise`` = factor * (g[t*] - g[t*-1]).
    """
    if rise is None and grad_times is None:
        return None, None, None
    below, above = crossing.unbind(0)
    lanes = times.shape[0]
    grad = torch.zeros_like(below)
    if grad_times is not None:
        grad = grad + grad_times
    if rise is not None:
        grad = grad + rise
    # A spike at step 0 has no crossing to interpolate, a silent neuron no spike.
    per_volt = torch.where(times > 0, grad / (above - below), 0.0)
    position = (_per_lane(threshold, lanes) - below) / (above - below)
    position = torch.where(times > 0, position, 0.0)
    return -position * per_volt, (position - 1.0) * per_volt, per_volt


class LeakyReadout(torch.autograd.Function):
    """Sum, maximum or last value over time of a membrane that never fires."""

    @staticmethod
    def forward(
        ctx: Any,
        current: Tensor,
        beta: Tensor,
        mem_0: Tensor | None,
        reduction: str,
        track: bool,
        backend: str,
    ) -> Tensor:
        need_current, need_beta, need_mem = ctx.needs_input_grad[:3] if track else (False,) * 3
        placed = reduction != "sum" and (need_current or need_mem)
        value, sensitivity, step = torch.ops.snn_single_spike.leaky_readout(
            current, beta, mem_0, reduction, need_beta, placed, backend
        )
        # Beta's gradient was carried forward with the membrane: nothing of size T is kept.
        ctx.save_for_backward(beta, sensitivity, step)
        ctx.backend, ctx.num_steps, ctx.dtype = backend, current.shape[0], current.dtype
        ctx.reduction = reduction
        return value

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        beta, sensitivity, step = ctx.saved_tensors
        need_current, need_beta, need_mem = ctx.needs_input_grad[:3]
        grad_beta = _sum_lanes(sensitivity * grad, beta) if need_beta else None
        grad_current = grad_mem = None
        if need_current or need_mem:
            at = grad.to(beta.dtype).contiguous()
            every_step = ctx.reduction == "sum"
            # A membrane without threshold, spikes and reset
            absent = (
                "saved syn inh mem_0 alpha gain feedback syn_0 inh_0 grad_spikes grad_syn grad_inh"
            )
            grad_current, _, _, grad_mem, *_ = torch.ops.snn_single_spike.neuron_backward(
                **dict.fromkeys(absent.split()),
                recompute=False,
                beta=beta,
                threshold=beta,
                graded_spikes_factor=beta,
                clamp=True,
                reset="none",
                times=at.new_zeros(at.shape, dtype=torch.int64) if every_step else step,
                grad_mem=at[None] if every_step else None,
                grad_at=None if every_step else at,
                grad_before=None if every_step else torch.zeros_like(at),
                num_steps=ctx.num_steps,
                dtype=ctx.dtype,
                rule="none",
                surrogate="straight_through_estimator",
                a=0.0,
                b=0.0,
                needs=[need_current, False, False, need_mem, *(False,) * 5],
                backend=ctx.backend,
            )
        return (
            grad_current if need_current else None,
            grad_beta,
            grad_mem if need_mem else None,
            None,
            None,
            None,
        )
