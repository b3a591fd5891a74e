"""The registered operators and their gradients.

``torch.ops.snn_single_spike.*`` are what ``torch.compile`` and ``torch.export`` see: opaque,
functional, with shapes known from :func:`register_fake <torch.library.register_fake>`.
They take flattened time-major tensors (T, M) and parameters (P,), allocate what was asked
for, and hand it to one implementation (:mod:`snn_single_spike.backends`). An output that
was not asked for is an empty tensor at this boundary, where None cannot be returned.

The autograd functions on top decide what to ask for and what to save: at most one (T, M)
tensor.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from . import backends
from .backends.buffers import (
    ForwardOutputs,
    InputGradients,
    Neuron,
    OutputGradients,
    ReadoutOutputs,
    Saved,
    state_dtype,
)
from .backends.memory import empty
from .surrogate import Surrogate

_library = torch.library.Library("snn_single_spike", "DEF")
_library.define(
    "leaky_forward(Tensor current, Tensor beta, Tensor threshold, Tensor graded_spikes_factor, "
    "Tensor? mem_0, str reset, bool spikes, bool mem, bool crossing, bool final, str backend) "
    "-> (Tensor spikes, Tensor mem, Tensor crossing, Tensor final, Tensor times)"
)
_library.define(
    "leaky_backward(Tensor? saved, bool recompute, Tensor beta, Tensor threshold, "
    "Tensor graded_spikes_factor, Tensor? mem_0, str reset, Tensor times, Tensor? grad_spikes, "
    "Tensor? grad_mem, Tensor? grad_at, Tensor? grad_before, SymInt steps, ScalarType dtype, "
    "str rule, str surrogate, float a, float b, bool[4] needs, str backend) "
    "-> (Tensor current, Tensor beta, Tensor threshold, Tensor mem_0)"
)
_library.define(
    "leaky_readout(Tensor current, Tensor beta, Tensor? mem_0, str reduction, bool sensitivity, "
    "bool step, str backend) -> (Tensor value, Tensor sensitivity, Tensor step)"
)


def _wanted(tensor: Tensor) -> Tensor | None:
    """None for the empty tensor that stands for an output nobody asked for."""
    return tensor if tensor.numel() else None


def _leaky_forward(
    current: Tensor,
    beta: Tensor,
    threshold: Tensor,
    graded_spikes_factor: Tensor,
    mem_0: Tensor | None,
    reset: str,
    spikes: bool,
    mem: bool,
    crossing: bool,
    final: bool,
    backend: str,
    *,
    fake: bool = False,
) -> tuple[Tensor, ...]:
    steps, lanes = current.shape
    dtype, device = current.dtype, current.device
    new = torch.empty if fake else empty
    out = (
        new((steps, lanes) if spikes else (0,), dtype=dtype, device=device),
        new((steps, lanes) if mem else (0,), dtype=dtype, device=device),
        new((2, lanes) if crossing else (0,), dtype=state_dtype(dtype), device=device),
        new((lanes,) if final else (0,), dtype=dtype, device=device),
        new((lanes,), dtype=torch.int64, device=device),
    )
    if not fake and lanes:
        backends.load(backend).leaky_forward(
            current,
            Neuron(beta, threshold, graded_spikes_factor, mem_0, reset),
            ForwardOutputs(
                spikes=_wanted(out[0]),
                mem=_wanted(out[1]),
                crossing=_wanted(out[2]),
                final=_wanted(out[3]),
                times=out[4],
            ),
        )
    return out


def _leaky_backward(
    saved: Tensor | None,
    recompute: bool,
    beta: Tensor,
    threshold: Tensor,
    graded_spikes_factor: Tensor,
    mem_0: Tensor | None,
    reset: str,
    times: Tensor,
    grad_spikes: Tensor | None,
    grad_mem: Tensor | None,
    grad_at: Tensor | None,
    grad_before: Tensor | None,
    steps: int,
    dtype: torch.dtype,
    rule: str,
    surrogate: str,
    a: float,
    b: float,
    needs: list[bool],
    backend: str,
    *,
    fake: bool = False,
) -> tuple[Tensor, ...]:
    lanes, device = times.shape[0], times.device
    need_current, *need_lanes = needs
    new = torch.empty if fake else empty
    out = (
        new((steps, lanes) if need_current or recompute else (0,), dtype=dtype, device=device),
        *(new((lanes,) if need else (0,), dtype=beta.dtype, device=device) for need in need_lanes),
    )
    if not fake and lanes:
        backends.load(backend).leaky_backward(
            steps,
            dtype,
            Saved(saved, recompute),
            Neuron(beta, threshold, graded_spikes_factor, mem_0, reset),
            times,
            OutputGradients(grad_spikes, grad_mem, grad_at, grad_before),
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
        backends.load(backend).leaky_readout(
            current,
            beta,
            mem_0,
            reduction,
            ReadoutOutputs(out[0], _wanted(out[1]), _wanted(out[2])),
        )
    return out


for _name, _function in (
    ("leaky_forward", _leaky_forward),
    ("leaky_backward", _leaky_backward),
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


def _sum_lanes(gradient: Tensor, like: Tensor) -> Tensor | None:
    """Gradient of a parameter (P,) from one value per lane (M,)."""
    return gradient.view(-1, like.shape[0]).sum(0).to(like.dtype)


class SingleSpikeLeaky(torch.autograd.Function):
    """Spikes, membrane and spike times of a layer, differentiable in every input.

    Returns (spikes, mem, times, final); those not asked for are empty. ``times`` are int64
    steps, or interpolated and differentiable under the ``spike_time`` rule.
    """

    @staticmethod
    def forward(
        ctx: Any,
        current: Tensor,
        beta: Tensor,
        threshold: Tensor,
        graded_spikes_factor: Tensor,
        mem_0: Tensor | None,
        reset: str,
        rule: str,
        surrogate: tuple[str, float, float] | None,
        spikes_move_times: bool,
        want: tuple[bool, bool, bool],
        recompute: bool,
        track: bool,
        backend: str,
    ) -> tuple[Tensor, ...]:
        want_spikes, want_mem, want_final = want
        exact = rule == "spike_time"
        # needs_input_grad does not know of torch.no_grad()
        needs = ctx.needs_input_grad if track else (False,) * 5
        need_beta = needs[1]
        through_spikes = surrogate is not None and want_spikes and not exact
        # The membrane is read by the surrogate and by the gradient of beta, by nothing else.
        need_current, _, need_threshold, need_factor, need_mem = needs[:5]
        upstream = need_current or need_beta or need_threshold or need_mem  # all but the factor
        need_saved = upstream and (through_spikes or need_beta)
        save_mem = need_saved and not recompute and (want_spikes or want_mem)
        spikes, mem, crossing, final, times = torch.ops.snn_single_spike.leaky_forward(
            current,
            beta,
            threshold,
            graded_spikes_factor,
            mem_0,
            reset,
            want_spikes,
            want_mem or save_mem,
            exact,
            want_final,
            backend,
        )
        steps = times
        if exact:
            times = _interpolate(steps, crossing, threshold)
        elif upstream or need_factor:
            times = times.clone()  # the caller may write -1 over with what suits a loss
        ctx.set_materialize_grads(False)
        carries = spikes_move_times if exact else surrogate is not None
        constant = [final] if exact else [final, times]
        ctx.mark_non_differentiable(*constant, *([] if carries else [spikes]))
        saved = (mem if save_mem else current) if need_saved else None
        ctx.save_for_backward(
            saved, beta, threshold, graded_spikes_factor, mem_0, steps, crossing if exact else None
        )
        ctx.recompute = need_saved and not save_mem
        ctx.reset, ctx.rule, ctx.surrogate, ctx.backend = reset, rule, surrogate, backend
        ctx.steps, ctx.dtype = current.shape[0], current.dtype
        ctx.want = want_spikes and carries, want_mem, exact
        return spikes, (mem if want_mem else mem.new_empty(0)), times, final

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        # A compiled graph hands in zeros for outputs that do not exist.
        grad_spikes, grad_mem, grad_times = (
            grad if wanted else None for grad, wanted in zip(grads, ctx.want, strict=False)
        )
        saved, beta, threshold, factor, mem_0, times, crossing = ctx.saved_tensors
        need_current, need_beta, need_threshold, need_factor, need_mem = ctx.needs_input_grad[:5]
        exact = ctx.rule == "spike_time"

        grad_factor = None
        if need_factor and grad_spikes is not None:
            at_spike = _at_steps(grad_spikes, times)
            grad_factor = _sum_lanes(at_spike.to(factor.dtype), factor)
        if not (need_current or need_beta or need_threshold or need_mem):
            return None, None, None, grad_factor, *(None,) * 9
        grad_at = grad_before = direct_threshold = None
        if exact:
            grad_at, grad_before, direct_threshold = _through_crossing(
                grad_spikes, grad_times, times, crossing, threshold, factor
            )
            grad_spikes = None

        name, a, b = ctx.surrogate or ("straight_through_estimator", 0.0, 0.0)
        grad_current, grad_beta, grad_threshold, grad_mem_0 = (
            torch.ops.snn_single_spike.leaky_backward(
                saved,
                ctx.recompute,
                beta,
                threshold,
                factor,
                mem_0,
                ctx.reset,
                times,
                _rows(grad_spikes),
                _rows(grad_mem),
                grad_at,
                grad_before,
                ctx.steps,
                ctx.dtype,
                ctx.rule,
                name,
                a,
                b,
                [need_current, need_beta, need_threshold, need_mem],
                ctx.backend,
            )
        )
        if need_threshold and direct_threshold is not None:
            grad_threshold = grad_threshold + direct_threshold
        return (
            grad_current if need_current else None,
            _sum_lanes(grad_beta, beta) if need_beta else None,
            _sum_lanes(grad_threshold, threshold) if need_threshold else None,
            grad_factor,
            grad_mem_0 if need_mem else None,
            *(None,) * 8,
        )


def _per_lane(parameter: Tensor, lanes: int) -> Tensor:
    return parameter.repeat(lanes // parameter.shape[0])


def _interpolate(times: Tensor, crossing: Tensor, threshold: Tensor) -> Tensor:
    """Time at which the straight line between V[t*-1] and V[t*] meets the threshold."""
    below, above = crossing.unbind(0)
    theta = _per_lane(threshold, times.shape[0])
    between = times - 1 + (theta - below) / (above - below)
    return torch.where(times > 0, between, times.to(between.dtype))


def _at_steps(rows: Tensor, times: Tensor, back: int = 0) -> Tensor:
    """rows[t* - back] of every lane that fired at t* >= back, else 0."""
    index = (times - back).clamp(min=0)
    return torch.where(times >= back, rows.gather(0, index[None])[0], 0.0)


def _through_crossing(
    grad_spikes: Tensor | None,
    grad_times: Tensor | None,
    times: Tensor,
    crossing: Tensor,
    threshold: Tensor,
    factor: Tensor,
) -> tuple[Tensor, Tensor, Tensor] | tuple[None, None, None]:
    """Gradients to V[t*], V[t*-1] and the threshold from the interpolated spike time tau.

    A loss on the spikes reaches tau as the slope of a spike that is shared linearly between
    the two steps around it: dL/dtau = factor * (g[t*] - g[t*-1]).
    """
    if grad_spikes is None and grad_times is None:
        return None, None, None
    below, above = crossing.unbind(0)
    lanes = times.shape[0]
    grad = torch.zeros_like(below)
    if grad_times is not None:
        grad = grad + grad_times
    if grad_spikes is not None:
        rise = _at_steps(grad_spikes, times) - _at_steps(grad_spikes, times, back=1)
        grad = grad + rise.to(grad.dtype) * _per_lane(factor, lanes)
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
        ctx.backend, ctx.steps, ctx.dtype = backend, current.shape[0], current.dtype
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
            grad_current, _, _, grad_mem = torch.ops.snn_single_spike.leaky_backward(
                None,
                False,
                beta,
                beta,  # no threshold: nothing here fires or resets
                beta,
                None,
                "none",
                at.new_zeros(at.shape, dtype=torch.int64) if every_step else step,
                None,
                at[None] if every_step else None,
                None if every_step else at,
                None if every_step else torch.zeros_like(at),
                ctx.steps,
                ctx.dtype,
                "masked",
                "straight_through_estimator",
                0.0,
                0.0,
                [need_current, False, False, need_mem],
                ctx.backend,
            )
        return (
            grad_current if need_current else None,
            grad_beta,
            grad_mem if need_mem else None,
            None,
            None,
            None,
        )
