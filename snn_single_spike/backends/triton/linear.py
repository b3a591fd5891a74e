"""Launches the Triton kernels for linear layers from spike times.

The tensor-core form does T products for each input, neuron and sample, the event form reads one
weight for each input that fires: the first is the faster one where T is small and few inputs are
silent. Where the line lies differs from card to card: the first layer that could take either form
has both timed on the card it is on.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import triton
from torch import Tensor

from snn_single_spike.kernels.triton.linear import (
    linear_backward_input_kernel,
    linear_backward_weight_kernel,
    linear_first_spikes_dot_kernel,
    linear_first_spikes_kernel,
    linear_readout_kernel,
)

from .._events import Events, offsets_of, sort_by_time
from .._surrogate import Surrogate
from .._types import (
    ClosedFormAdjoint,
    GradientFactors,
    LinearGradients,
    LinearNeurons,
    OutputGradients,
    Saved,
)
from ._launch import LAUNCH, on_device_of, state_type, warp_size
from .neuron import neuron_backward

EVENTS = 8  # spikes loaded ahead
# Products of a tensor core in the time that the event form takes for a spike, where nothing may
# be timed: an estimate from data sheets.
DOT_PRODUCTS = 32
_TIMED = {"num_steps": 32, "batch": 512, "units": 512, "lanes": 1024}  # above a launch's own time
_REPEATS = 10
_PIECE_BYTES = 64 << 20  # of the membrane and the adjoint of some samples

sort_spikes = sort_by_time


def dot_tile(warp: int) -> dict[str, Any]:
    """Tile of the tensor-core form, and how it multiplies."""
    precision = "tf32x3" if warp == 32 else "ieee"
    return {"STEPS": 16, "UNITS": 16, "BLOCK": 64, "PRECISION": precision}


def dot_pays(events: Events, num_steps: int, weight: Tensor) -> bool:
    """Whether the tensor-core form can be used, and should take less time than the event form."""
    products = num_steps * (len(events.offsets) - 1) * weight.shape[1]
    return (
        events.once
        and weight.dtype == torch.float32
        and products <= dot_products(weight.device) * len(events.times)
    )


_measured: dict[torch.device, float] = {}


def dot_products(device: torch.device) -> float:
    """Products of a tensor core in the time that the event form takes for a spike.

    Measured once for each card, and rounded to a power of two: the forms round differently, and
    the next run should choose the same one. Not measured for deterministic algorithms, while a
    CUDA graph is captured, and in the interpreter.
    """
    if torch.are_deterministic_algorithms_enabled():
        return DOT_PRODUCTS
    timeable = warp_size() is not None and not torch.cuda.is_current_stream_capturing()
    if device not in _measured and timeable:
        _measured[device] = _measure(device, **_TIMED)
    return _measured.get(device, DOT_PRODUCTS)


def _measure(device: torch.device, num_steps: int, batch: int, units: int, lanes: int) -> float:
    # Not from the generators of torch: what a user draws next must not depend on this.
    when = (
        torch.arange(batch * units, dtype=torch.int32, device=device).view(batch, units) % num_steps
    )
    events = sort_by_time(when, num_steps)
    weight = torch.ones(units, lanes, dtype=torch.float32, device=device)
    never = weight.new_full((lanes,), math.inf)  # no spikes: every step is computed
    parameters = (weight.new_zeros(lanes), weight.new_full((lanes,), 0.9), never)
    times = torch.empty(batch, lanes, dtype=torch.int32, device=device)
    arguments = (events, num_steps, weight, parameters, times)
    with on_device_of(times):
        by_events = _milliseconds(lambda: _first_spikes_events(*arguments, None, None))
        by_products = _milliseconds(lambda: _first_spikes_dot(*arguments))
    return 2.0 ** round(math.log2(num_steps * by_events / by_products))


def _milliseconds(run: Callable[[], None]) -> float:
    run()  # compiles
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(_REPEATS):
        run()
    end.record()
    end.synchronize()
    return start.elapsed_time(end)


def _block(lanes: int) -> int:
    """Neurons per program: the interpreter takes its time per program, whatever its size."""
    largest = 128 if warp_size() is not None else 4096
    return min(largest, max(triton.next_power_of_2(lanes), 32))


def _events(events: Events, dtype: torch.dtype) -> tuple[Tensor | None, ...]:
    values = events.values
    return events.offsets, events.times, events.units, None if values is None else values.to(dtype)


def linear_first_spikes(
    events: Events,
    num_steps: int,
    layer: LinearNeurons,
    times: Tensor,
    crossing: Tensor | None,
    sensitivity: Tensor | None,
) -> None:
    weight = layer.weight.T.contiguous()
    parameters = (layer.bias, layer.beta, layer.threshold)
    if crossing is None and dot_pays(events, num_steps, layer.weight):
        _first_spikes_dot(events, num_steps, weight, parameters, times)
    else:
        _first_spikes_events(events, num_steps, weight, parameters, times, crossing, sensitivity)


def _first_spikes_events(
    events: Events,
    num_steps: int,
    weight: Tensor,
    parameters: tuple[Tensor, ...],
    times: Tensor,
    crossing: Tensor | None,
    sensitivity: Tensor | None,
) -> None:
    batch, lanes = times.shape
    block = _block(lanes)
    with on_device_of(times):
        linear_first_spikes_kernel[(batch, triton.cdiv(lanes, block))](
            *_events(events, weight.dtype),
            weight,
            *parameters,
            None,
            times,
            None,
            crossing,
            sensitivity,
            num_steps,
            batch,
            lanes,
            0,
            RESET="none",
            STATE=state_type(weight.dtype),
            BLOCK=block,
            U=EVENTS,
            **LAUNCH,
        )


def _first_spikes_dot(
    events: Events,
    num_steps: int,
    weight: Tensor,
    parameters: tuple[Tensor, ...],
    times: Tensor,
) -> None:
    batch, lanes = times.shape
    units = len(weight)
    when = torch.full((batch, units), -1, dtype=torch.int32, device=weight.device)
    when[events.samples(), events.units.long()] = events.times
    tile = dot_tile(warp_size() or 32)
    with on_device_of(times):
        linear_first_spikes_dot_kernel[(batch, triton.cdiv(lanes, tile["BLOCK"]))](
            when, weight, *parameters, times, num_steps, units, lanes, **tile, num_warps=4
        )


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
    batch, lanes = value.shape
    block = _block(lanes)
    with on_device_of(value):
        linear_readout_kernel[(batch, triton.cdiv(lanes, block))](
            *_events(events, weight.dtype),
            weight.T.contiguous(),
            bias,
            beta,
            value,
            sensitivity,
            step,
            num_steps,
            lanes,
            REDUCTION=reduction,
            STATE=state_type(weight.dtype),
            BLOCK=block,
            U=EVENTS,
            **LAUNCH,
        )


def _by_unit(events: Events, units: int, samples: slice) -> tuple[Tensor, ...]:
    """Offsets (N + 1,), times, samples and values of the spikes of some samples, by unit."""
    part = events.part(samples)
    order = part.units.argsort(stable=True)
    offsets = offsets_of(torch.bincount(part.units, minlength=units))
    values = None if part.values is None else part.values[order]
    return offsets, part.times[order], part.samples().int()[order], values  # type: ignore


def _closed_form(
    num_steps: int, beta: Tensor, adjoint: ClosedFormAdjoint
) -> tuple[Tensor | None, ...]:
    """every, at, before, when, log2(beta), and the geometric sums (T + 1, O) that every needs."""
    geometric = None
    if adjoint.every is not None:
        powers = beta.double().expand(num_steps, -1).cumprod(0).roll(1, 0)
        powers[0] = 1.0
        sums = torch.cat([torch.zeros_like(powers[:1]), powers.cumsum(0)])
        geometric = sums.to(beta.dtype)
    return (*adjoint, beta.double().log2().to(beta.dtype), geometric)


def _sum_over_time(num_steps: int, beta: Tensor, adjoint: ClosedFormAdjoint) -> Tensor:
    """The sum over time and batch of an adjoint in closed form, (O,)."""
    decay = beta.double()

    def geometric(n: Tensor) -> Tensor:
        """1 + beta + ... + beta^(n-1), to all digits where beta is close to 1."""
        partial = -torch.expm1(n * decay.log()) / (1 - decay)
        return torch.where(n <= 0, 0.0, torch.where(decay == 1, n, partial))

    total = decay.new_zeros(decay.shape)
    if adjoint.every is not None:
        ahead = torch.arange(1, num_steps + 1, device=beta.device, dtype=decay.dtype)[:, None]
        total += adjoint.every.double().sum(0) * geometric(ahead).sum(0)
    if adjoint.at is not None and adjoint.when is not None:
        spike = adjoint.when.to(decay.dtype)
        total += (adjoint.at.double() * geometric(spike + 1)).sum(0)
        if adjoint.before is not None:
            total += (adjoint.before.double() * geometric(spike)).sum(0)
    return total.to(beta.dtype)


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
    lanes, units = weight.shape
    batch = len(events.offsets) - 1
    closed = _closed_form(num_steps, beta, adjoint)
    block = _block(lanes)
    options = {"STATE": state_type(weight.dtype), "BLOCK": block, **LAUNCH}
    transposed = weight.new_zeros(units, lanes)
    with on_device_of(weight):
        linear_backward_weight_kernel[(units, triton.cdiv(lanes, block))](
            *_by_unit(events, units, slice(0, batch)),
            None,
            *closed,
            transposed,
            num_steps,
            batch,
            lanes,
            U=EVENTS,
            **options,
        )
        if grad_inputs is not None and len(events.times):
            linear_backward_input_kernel[(len(events.times),)](
                events.times,
                events.units,
                events.samples().int(),
                weight.T.contiguous(),
                *closed,
                grad_inputs,
                num_steps,
                batch,
                units,
                lanes,
                **options,
            )
    grad_weight.copy_(transposed.T)
    grad_bias.copy_(_sum_over_time(num_steps, beta, adjoint))


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
    lanes, units = layer.weight.shape
    batch, dtype = times.shape[0], layer.weight.dtype
    weight = layer.weight.T.contiguous()
    parameters = (layer.bias, layer.beta, layer.threshold)
    block = _block(lanes)
    options = {"STATE": state_type(dtype), "BLOCK": block, "U": EVENTS}
    options |= LAUNCH
    transposed = weight.new_zeros(units, lanes)
    neuron = layer.neuron()
    size = max(_PIECE_BYTES // (num_steps * lanes * dtype.itemsize), 1)
    for low in range(0, batch, size):
        part = slice(low, min(low + size, batch))
        n = part.stop - low
        mem, lam = (weight.new_empty(num_steps, n, lanes) for _ in range(2))
        beta, threshold = (weight.new_empty(n * lanes) for _ in range(2))
        with on_device_of(weight):
            linear_first_spikes_kernel[(n, triton.cdiv(lanes, block))](
                *_events(events, dtype),
                weight,
                *parameters,
                times,
                None,
                mem,
                None,
                None,
                num_steps,
                batch,
                lanes,
                low,
                RESET=layer.reset,
                **options,
            )
            neuron_backward(
                num_steps,
                dtype,
                Saved(mem.flatten(1)),
                neuron,
                times[part].flatten(),
                OutputGradients(
                    grad_spikes.to_dense(part).flatten(1), None, None, None, None, None
                ),
                rule,
                surrogate,
                {"current": lam.flatten(1), "beta": beta, "threshold": threshold},
            )
            linear_backward_weight_kernel[(units, triton.cdiv(lanes, block))](
                *_by_unit(events, units, part),
                lam,
                None,
                None,
                None,
                None,
                None,
                None,
                transposed,
                num_steps,
                n,
                lanes,
                **options,
            )
        out.bias.add_(lam.sum((0, 1)))
        out.beta.add_(beta.view(n, lanes).sum(0))
        out.threshold.add_(threshold.view(n, lanes).sum(0))
        if out.current is not None:
            out.current[:, part] = lam
    out.weight.copy_(transposed.T)
