"""Launches the Triton kernels for linear layers from spike times.

Two kernels find first spikes. The tensor-core form computes T products for each input, neuron and
sample. The event form reads one weight for each input that fires. The tensor-core form is faster
where T is small and few inputs are silent. The limit differs from card to card: the first layer
that can use either form times both on its card.
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
from ..adjoint import sum_over_time
from ._launch import LAUNCH, on_device_of, state_type, warp_size
from .neuron import neuron_backward

EVENTS = 4  # spikes loaded ahead
# Products of a tensor core in the time that the event form takes for a spike, where timing is not
# possible: an estimate from data sheets.
DOT_PRODUCTS = 32
# A layer that takes much longer than a launch.
_TIMED = {"num_steps": 32, "batch": 512, "in_features": 512, "out_features": 1024}
_REPEATS = 10
_PIECE_BYTES = 64 << 20  # of the membrane, and of the adjoint, of some samples

sort_spikes = sort_by_time


def dot_tile(warp: int) -> dict[str, Any]:
    """Tile of the tensor-core form, and how it multiplies."""
    precision = "tf32x3" if warp == 32 else "ieee"
    return {"STEPS": 16, "UNITS": 16, "BLOCK": 64, "PRECISION": precision}


# The sums of products are rounded in another order anyway. Named, because the default of Triton
# changes with its version.
DOT_LAUNCH = {"num_warps": 4, "enable_fp_fusion": True}


def dot_pays(events: Events, num_steps: int, weight: Tensor) -> bool:
    """Whether the tensor-core form is possible, and estimated to be faster than the event form."""
    products = num_steps * (len(events.offsets) - 1) * weight.shape[1]
    return (
        events.once
        and weight.dtype == torch.float32
        and products <= dot_products(weight.device) * len(events.times)
    )


_measured: dict[torch.device, float] = {}


def dot_products(device: torch.device) -> float:
    """Products of a tensor core in the time that the event form takes for a spike.

    Measured once for each card, and rounded to a power of two: the two forms round differently, so
    the next run should choose the same form. The estimate is used with deterministic algorithms,
    during the capture of a CUDA graph, and in the interpreter.
    """
    if torch.are_deterministic_algorithms_enabled():
        return DOT_PRODUCTS
    timeable = warp_size() is not None and not torch.cuda.is_current_stream_capturing()
    if device not in _measured and timeable:
        _measured[device] = _measure(device, **_TIMED)
    return _measured.get(device, DOT_PRODUCTS)


def _measure(
    device: torch.device, num_steps: int, batch: int, in_features: int, out_features: int
) -> float:
    # No random numbers: the measurement must not advance the user's generators.
    spikes = torch.arange(batch * in_features, dtype=torch.int32, device=device) % num_steps
    events = sort_by_time(spikes.view(batch, in_features), num_steps)
    weight = torch.ones(in_features, out_features, dtype=torch.float32, device=device)
    parameters = {
        "bias": weight.new_zeros(out_features),
        "beta": weight.new_full((out_features,), 0.9),
        # No neuron fires, so that every step is computed.
        "threshold": weight.new_full((out_features,), math.inf),
    }
    times = torch.empty(batch, out_features, dtype=torch.int32, device=device)
    arguments = (events, num_steps, weight, parameters, times)
    with on_device_of(times):
        by_events = _milliseconds(lambda: _first_spikes_events(*arguments))
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


def block(out_features: int, warp: int | None) -> int:
    """Neurons per program; large in the interpreter (no ``warp``), whose cost is per program.

    Where 16 does not divide the neurons, rows of weights are not aligned. Triton would load and
    store them in two orders of the threads, and exchange values at every step: a program then has
    one neuron for each thread.
    """
    largest = 4096
    if warp is not None:
        largest = 128 if out_features % 16 == 0 else warp
    return min(largest, max(triton.next_power_of_2(out_features), 32))


def _block(out_features: int) -> int:
    return block(out_features, warp_size())


def _constants(dtype: torch.dtype, out_features: int) -> dict[str, Any]:
    return {"STATE": state_type(dtype), "BLOCK": _block(out_features), "U": EVENTS, **LAUNCH}


def _by_sample(events: Events, dtype: torch.dtype) -> dict[str, Tensor | None]:
    """Spikes as the forward kernels read them: ordered by sample and time."""
    values = None if events.values is None else events.values.to(dtype)
    return {
        "offsets": events.offsets,
        "times": events.times,
        "units": events.units,
        "values": values,
    }


def _by_input(events: Events, in_features: int, samples: slice) -> dict[str, Tensor | None]:
    """Spikes of some samples as the gradient of the weights reads them: ordered by input."""
    part = events.part(samples)
    order = part.units.argsort(stable=True)
    return {
        "offsets": offsets_of(torch.bincount(part.units, minlength=in_features)),
        "times": part.times[order],
        "samples": part.samples().int()[order],
        "values": None if part.values is None else part.values[order],
    }


def _parameters(layer: LinearNeurons) -> dict[str, Tensor]:
    return {"bias": layer.bias, "beta": layer.beta, "threshold": layer.threshold}


def linear_first_spikes(
    events: Events,
    num_steps: int,
    layer: LinearNeurons,
    times: Tensor,
    crossing: Tensor | None,
    sensitivity: Tensor | None,
    when: Tensor | None,
) -> None:
    weight = layer.weight.T.contiguous()
    arguments = (events, num_steps, weight, _parameters(layer), times)
    if crossing is None and dot_pays(events, num_steps, layer.weight):
        _first_spikes_dot(*arguments)
    else:
        _first_spikes_events(*arguments, crossing, sensitivity, when)


def _first_spikes_events(
    events: Events,
    num_steps: int,
    weight: Tensor,
    parameters: dict[str, Tensor],
    times: Tensor,
    crossing: Tensor | None = None,
    sensitivity: Tensor | None = None,
    when: Tensor | None = None,
) -> None:
    batch, out_features = times.shape
    constants = _constants(weight.dtype, out_features)
    with on_device_of(times):
        linear_first_spikes_kernel[(batch, triton.cdiv(out_features, constants["BLOCK"]))](
            **_by_sample(events, weight.dtype),
            weight=weight,
            **parameters,
            spiked=None,
            first_spikes=times,
            mem=None,
            crossing=crossing,
            sensitivity=sensitivity,
            peaks=when,
            T=num_steps,
            B=batch,
            O=out_features,
            start=0,
            RESET="none",
            **constants,
        )


def _first_spikes_dot(
    events: Events,
    num_steps: int,
    weight: Tensor,
    parameters: dict[str, Tensor],
    times: Tensor,
) -> None:
    batch, out_features = times.shape
    in_features = len(weight)
    spikes = torch.full((batch, in_features), -1, dtype=torch.int32, device=weight.device)
    spikes[events.samples(), events.units.long()] = events.times
    tile = dot_tile(warp_size() or 32)
    with on_device_of(times):
        linear_first_spikes_dot_kernel[(batch, triton.cdiv(out_features, tile["BLOCK"]))](
            times=spikes,
            weight=weight,
            **parameters,
            first_spikes=times,
            T=num_steps,
            N=in_features,
            O=out_features,
            **tile,
            **DOT_LAUNCH,
        )


def _membrane(
    events: Events,
    num_steps: int,
    weight: Tensor,
    layer: LinearNeurons,
    times: Tensor,
    samples: slice,
) -> Tensor:
    """The membrane (T, n, O) of some samples, whose first spikes are known."""
    batch, out_features = times.shape
    n = samples.stop - samples.start
    mem = weight.new_empty(num_steps, n, out_features)
    constants = _constants(weight.dtype, out_features)
    linear_first_spikes_kernel[(n, triton.cdiv(out_features, constants["BLOCK"]))](
        **_by_sample(events, weight.dtype),
        weight=weight,
        **_parameters(layer),
        spiked=times,
        first_spikes=None,
        mem=mem,
        crossing=None,
        sensitivity=None,
        peaks=None,
        T=num_steps,
        B=batch,
        O=out_features,
        start=samples.start,
        RESET=layer.neuron().reset,
        **constants,
    )
    return mem


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
    batch, out_features = value.shape
    constants = _constants(weight.dtype, out_features)
    with on_device_of(value):
        linear_readout_kernel[(batch, triton.cdiv(out_features, constants["BLOCK"]))](
            **_by_sample(events, weight.dtype),
            weight=weight.T.contiguous(),
            bias=bias,
            beta=beta,
            value=value,
            sensitivity=sensitivity,
            taken=step,
            T=num_steps,
            O=out_features,
            REDUCTION=reduction,
            **constants,
        )


_NO_CLOSED_FORM: dict[str, Tensor | None] = dict.fromkeys(
    (*ClosedFormAdjoint._fields, "log_decay", "geometric")
)


def _closed_form(
    num_steps: int, beta: Tensor, adjoint: ClosedFormAdjoint
) -> dict[str, Tensor | None]:
    """An adjoint with log2(beta), and the geometric sums (T + 1, O) that ``every`` needs."""
    geometric = None
    if adjoint.every is not None:
        powers = beta.double().expand(num_steps, -1).cumprod(0).roll(1, 0)
        powers[0] = 1.0
        sums = torch.cat([torch.zeros_like(powers[:1]), powers.cumsum(0)])
        geometric = sums.to(beta.dtype)
    log_decay = beta.double().log2().to(beta.dtype)
    when = None if adjoint.when is None else adjoint.when.int()
    given = {**adjoint._asdict(), "when": when}
    return {**given, "log_decay": log_decay, "geometric": geometric}


def _add_weight_gradient(
    events: Events,
    num_steps: int,
    samples: slice,
    lam: Tensor | None,
    closed_form: dict[str, Tensor | None],
    grad_weight: Tensor,
) -> None:
    """Add the gradient of some samples to that of the transposed weights (N, O)."""
    in_features, out_features = grad_weight.shape
    constants = _constants(grad_weight.dtype, out_features)
    linear_backward_weight_kernel[(in_features, triton.cdiv(out_features, constants["BLOCK"]))](
        **_by_input(events, in_features, samples),
        lam=lam,
        **closed_form,
        grad_weight=grad_weight,
        T=num_steps,
        n=samples.stop - samples.start,
        O=out_features,
        **constants,
    )


def linear_backward_closed_form(
    events: Events,
    num_steps: int,
    weight: Tensor,
    beta: Tensor,
    adjoint: ClosedFormAdjoint,
    grad_weight: Tensor | None,
    grad_bias: Tensor | None,
    grad_inputs: Tensor | None,
) -> None:
    out_features, in_features = weight.shape
    batch = len(events.offsets) - 1
    closed_form = _closed_form(num_steps, beta, adjoint)
    with on_device_of(weight):
        if grad_weight is not None:
            transposed = weight.new_zeros(in_features, out_features)
            _add_weight_gradient(events, num_steps, slice(0, batch), None, closed_form, transposed)
            grad_weight.copy_(transposed.T)
        if grad_inputs is not None and len(events.times):
            linear_backward_input_kernel[(len(events.times),)](
                times=events.times,
                units=events.units,
                samples=events.samples().int(),
                weight=weight.T.contiguous(),
                **closed_form,
                grad_inputs=grad_inputs,
                T=num_steps,
                B=batch,
                N=in_features,
                O=out_features,
                STATE=state_type(weight.dtype),
                BLOCK=_block(out_features),
                **LAUNCH,
            )
    if grad_bias is not None:
        grad_bias.copy_(sum_over_time(num_steps, beta, adjoint))


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
    weight = layer.weight.T.contiguous()
    neuron = layer.neuron()
    transposed = torch.zeros_like(weight)
    size = max(_PIECE_BYTES // (num_steps * out_features * weight.dtype.itemsize), 1)
    for low in range(0, batch, size):
        samples = slice(low, min(low + size, batch))
        n = samples.stop - low
        lam = weight.new_empty(num_steps, n, out_features)
        beta, threshold = (weight.new_empty(n * out_features) for _ in range(2))
        with on_device_of(weight):
            mem = _membrane(events, num_steps, weight, layer, times, samples)
            neuron_backward(
                num_steps,
                weight.dtype,
                Saved(mem.flatten(1)),
                neuron,
                times[samples].flatten(),
                OutputGradients(grad_spikes.to_dense(samples).flatten(1)),
                rule,
                surrogate,
                {"current": lam.flatten(1), "beta": beta, "threshold": threshold},
            )
            _add_weight_gradient(events, num_steps, samples, lam, _NO_CLOSED_FORM, transposed)
        out.bias.add_(lam.sum((0, 1)))
        out.beta.add_(beta.view(n, out_features).sum(0))
        out.threshold.add_(threshold.view(n, out_features).sum(0))
        if out.current is not None:
            out.current[:, samples] = lam
    out.weight.copy_(transposed.T)
