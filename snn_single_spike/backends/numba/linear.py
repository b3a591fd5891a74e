"""Launches the compiled CPU loops for linear layers from spike times.

Each spike adds its column of weights to the current of its step once. Between two steps with spikes
the loop jumps to the later one, so cost and memory follow the number of spikes and not T. Only the
backward pass of the surrogate rules reads every step.

Neurons come in tiles. The weights, state and tables of a tile stay in the second-level cache while
the loop processes all samples. A thread owns a range of tiles. If there are few tiles, a thread
owns a range of samples, too, and adds to separate gradients: no result depends on timing.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from snn_single_spike.kernels.numba import arguments
from snn_single_spike.kernels.numba.compiling import REDUCTIONS, RESETS
from snn_single_spike.kernels.numba.linear_backward_closed_form import (
    linear_backward_closed_form_loop,
)
from snn_single_spike.kernels.numba.linear_backward_scan import linear_backward_scan_loop
from snn_single_spike.kernels.numba.linear_current import (
    linear_current_backward_loop,
    linear_current_loop,
)
from snn_single_spike.kernels.numba.linear_events import (
    collect_events_loop,
    count_events_loop,
    pack_loop,
    sort_loop,
    unpack_loop,
)
from snn_single_spike.kernels.numba.linear_forward import linear_first_spikes_loop
from snn_single_spike.kernels.numba.linear_readout import linear_readout_loop
from snn_single_spike.kernels.numba.simd import LANES, WORD
from snn_single_spike.kernels.numba.tile import JUMP, TILE

from .. import memory
from .._arrays import as_numpy
from .._events import Events, offsets_of
from .._surrogate import Surrogate
from .._types import (
    ClosedFormAdjoint,
    GradientFactors,
    LinearGradients,
    LinearNeurons,
)
from . import _work_space as work_space
from ._launch import as_array, as_events, plain, spike_gradient
from ._threads import in_threads

SPLITS = True  # reads spikes that are shared between two steps
_FEW = 64  # rows of weights that the product is taken with inside the loop
_ROWS_BYTES = 4 << 20  # of a piece of the gradient to dense spikes, made and read in turns


def _sample_ranges(tiles: int, samples: int) -> int:
    """How many ranges the samples are split into, because there are fewer tiles than threads."""
    return max(min(torch.get_num_threads() // max(tiles, 1), samples), 1)


def _parts(tiles: int, samples: int) -> list[tuple[int, arguments.Part]]:
    """For each thread the index of its range of samples, and its tiles and samples."""
    by_tile = max(min(4 * torch.get_num_threads(), tiles), 1)
    by_sample = _sample_ranges(tiles, samples)
    return [
        (
            k,
            arguments.Part(
                tile_low=tiles * i // by_tile,
                tile_high=tiles * (i + 1) // by_tile,
                low=samples * k // by_sample,
                high=samples * (k + 1) // by_sample,
            ),
        )
        for k in range(by_sample)
        for i in range(by_tile)
    ]


def _ranges(total: int) -> list[tuple[int, int]]:
    threads = max(min(torch.get_num_threads(), total), 1)
    return [(total * i // threads, total * (i + 1) // threads) for i in range(threads)]


def _scratch(dtype: Any) -> arguments.Scratch:
    kind, marks = np.dtype(dtype), 4 * TILE * 4
    block = work_space.lines(marks + (14 + 5 * (JUMP + 1)) * TILE * kind.itemsize)
    numbers = block[marks:].view(kind).reshape(-1, TILE)
    numbers[:14] = 0
    block[:marks] = 0
    return arguments.Scratch(
        rows=numbers[:14],
        marks=block[:marks].view(np.int32).reshape(4, TILE),
        tables=numbers[14:].reshape(5, JUMP + 1, TILE),
    )


def _packed(weight: Tensor, size: int = TILE) -> np.ndarray:
    """The weights in tiles of ``size`` neurons, (tiles, N, size)."""
    out_features, units = weight.shape
    tiles = -(-out_features // size)
    packed = as_numpy(memory.empty((tiles, units, size), dtype=weight.dtype, device=weight.device))
    in_threads(pack_loop, [(*r, as_numpy(weight), packed) for r in _ranges(tiles)])
    return packed


def _unpack(packed: np.ndarray, weight: Tensor) -> None:
    """Write the sum over the ranges of samples, (ranges, tiles, N, size of a tile), to (O, N)."""
    in_threads(unpack_loop, [(*r, packed, as_numpy(weight)) for r in _ranges(packed.shape[1])])


def _layer(
    packed: np.ndarray,
    dtype: torch.dtype,
    bias: Tensor | None,
    beta: Tensor,
    threshold: Tensor | None,
) -> arguments.Layer:
    return arguments.Layer(
        weight=packed,
        bias=as_array(bias, 1, dtype),
        beta=as_array(beta, 1, dtype),
        threshold=as_array(threshold, 1, dtype),
    )


def collect_events(spikes: Tensor) -> Events:
    """As :func:`snn_single_spike.backends._events.collect_events`, in one pass and a count.

    A tensor with the batch first in memory is read as it is.
    """
    shape = num_steps, batch, units = tuple(spikes.shape)
    if units > 1 and spikes.stride(2) != 1:
        spikes = spikes.contiguous()
    steps = spikes.stride()[:2]
    size = (num_steps - 1) * steps[0] + (batch - 1) * steps[1] + units if spikes.numel() else 0
    memory = as_numpy(spikes.as_strided((size,), (1,)))
    given, ranges = (memory, steps, shape), _ranges(batch)
    counts, ones = torch.empty(batch, dtype=torch.int64), np.empty(batch, np.bool_)
    in_threads(count_events_loop, [(*part, *given, as_numpy(counts), ones) for part in ranges])
    offsets = offsets_of(counts)
    total = int(offsets[-1])
    times, indices = (torch.empty(total, dtype=torch.int32) for _ in range(2))
    heights = torch.empty(0 if ones.all() else total, dtype=spikes.dtype)
    arrays = [as_numpy(x) for x in (offsets, times, indices, heights)]
    in_threads(collect_events_loop, [(*part, *given, *arrays) for part in ranges])
    return Events(offsets, times, indices, heights if len(heights) else None)


def sort_spikes(times: Tensor, num_steps: int) -> Events:
    rows = as_numpy(times)
    offsets = offsets_of(torch.from_numpy(np.count_nonzero(rows >= 0, axis=1)))
    ordered, units = (
        torch.empty(int(offsets[-1]), dtype=torch.int32, device=times.device) for _ in range(2)
    )
    filled = (as_numpy(offsets), as_numpy(ordered), as_numpy(units))
    in_threads(sort_loop, [(*r, rows, num_steps, *filled) for r in _ranges(len(rows))])
    return Events(offsets, ordered, units, None, once=True)


def _tile_of_current(out_features: int) -> int:
    """The neurons of a tile. An output layer of ten neurons would compute 118 that it has not."""
    return LANES if out_features <= LANES else TILE


def linear_current(events: Events, weight: Tensor, bias: Tensor | None, current: Tensor) -> None:
    """Write the current (T, B, O) of the events."""
    dtype = weight.dtype
    packed = _packed(weight, _tile_of_current(len(weight)))
    given = plain(as_events(events, dtype), packed, as_array(bias, 1, dtype), as_numpy(current))
    in_threads(
        linear_current_loop,
        [
            (*work_space.empty((2, TILE), packed.dtype), *plain(part), *given)
            for _, part in _parts(len(packed), current.shape[1])
        ],
    )


def linear_current_backward(
    events: Events, grad: Tensor, grad_weight: Tensor, grad_bias: Tensor | None
) -> None:
    """Write the gradients (O, N) and (O,) that follow from the one of the current (T, B, O)."""
    out_features, units = grad_weight.shape
    rows, batch = as_numpy(grad), grad.shape[1]
    size = _tile_of_current(out_features)
    tiles = -(-out_features // size)
    ranges = _sample_ranges(tiles, batch)
    shape = (ranges, tiles, units, size)
    by_range = as_numpy(memory.empty(shape, dtype=grad_weight.dtype, device=grad.device))
    bias = np.empty((ranges, out_features), rows.dtype)
    given = plain(as_events(events, grad_weight.dtype), rows)
    calls = []
    for k, part in _parts(tiles, batch):
        gradients = arguments.CurrentGradients(weight=by_range[k], bias=bias[k])
        scratch = work_space.empty((2, TILE), rows.dtype)
        calls.append((*scratch, *plain(part), *given, *plain(gradients)))
    in_threads(linear_current_backward_loop, calls)
    _unpack(by_range, grad_weight)
    if grad_bias is not None:
        grad_bias.copy_(torch.from_numpy(bias).sum(0))


def linear_first_spikes(
    events: Events,
    num_steps: int,
    layer: LinearNeurons,
    times: Tensor,
    crossing: Tensor | None,
    sensitivity: Tensor | None,
    when: Tensor | None,
) -> None:
    dtype = layer.weight.dtype
    packed = _packed(layer.weight)
    out = arguments.FirstSpikes(
        times=as_numpy(times),
        crossing=as_array(crossing, 3, dtype),
        sensitivity=as_array(sensitivity, 3, dtype),
        when=as_array(when, 2, torch.int32),
    )
    neurons = _layer(packed, dtype, layer.bias, layer.beta, layer.threshold)
    given = plain(as_events(events, dtype), neurons, num_steps, out)
    in_threads(
        linear_first_spikes_loop,
        [
            (*plain(_scratch(packed.dtype), part), *given)
            for _, part in _parts(len(packed), times.shape[0])
        ],
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
    dtype = weight.dtype
    packed = _packed(weight)
    out = arguments.ReadoutOutputs(
        value=as_numpy(value),
        sensitivity=as_array(sensitivity, 2, dtype),
        step=as_array(step, 2, torch.int64),
    )
    neurons = _layer(packed, dtype, bias, beta, None)
    given = plain(as_events(events, dtype), neurons, num_steps, REDUCTIONS[reduction], out)
    in_threads(
        linear_readout_loop,
        [
            (*plain(_scratch(packed.dtype), part), *given)
            for _, part in _parts(len(packed), value.shape[0])
        ],
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
    grad_late: Tensor | None = None,
) -> None:
    dtype = weight.dtype
    packed = _packed(weight)
    tiles, batch = len(packed), len(events.offsets) - 1
    parts = _parts(tiles, batch)
    ranges = _sample_ranges(tiles, batch)
    by_range = work_space.zeros(
        (ranges, *(packed.shape if grad_weight is not None else (0, 0, 0))), packed.dtype
    )
    bias = np.zeros((ranges, len(beta)), packed.dtype)
    shape = (0, 0, 0) if grad_inputs is None else tuple(grad_inputs.shape)
    inputs = work_space.zeros((len(parts), *shape), packed.dtype)
    late = _shares(events, len(parts), weight.shape[1], packed.dtype)
    impulses = arguments.ClosedFormAdjoint(
        every=as_array(adjoint.every, 2, dtype),
        at=as_array(adjoint.at, 2, dtype),
        before=as_array(adjoint.before, 2, dtype),
        when=as_array(adjoint.when, 2, torch.int64),
    )
    neurons = _layer(packed, dtype, None, beta, None)
    given = plain(as_events(events, dtype), neurons, num_steps, impulses)
    calls = []
    for number, (k, part) in enumerate(parts):
        gradients = arguments.ClosedFormGradients(
            weight=by_range[k], bias=bias[k], inputs=inputs[number], late=late[number]
        )
        lists = arguments.StepLists(
            heads=np.full(num_steps + 1, -1, np.int32),
            busy=np.zeros(num_steps // WORD + 1, np.int64),
        )
        calls.append(
            (*plain(_scratch(packed.dtype), lists, part), *given, *plain(gradients)),
        )
    in_threads(linear_backward_closed_form_loop, calls)
    if grad_weight is not None:
        _unpack(by_range, grad_weight)
    if grad_bias is not None:
        grad_bias.copy_(torch.from_numpy(bias).sum(0))
    if grad_inputs is not None:
        grad_inputs.copy_(torch.from_numpy(inputs).sum(0))
    if grad_late is not None:
        grad_late.copy_(torch.from_numpy(late).sum(0))


def _shares(events: Events, parts: int, units: int, dtype: np.dtype) -> np.ndarray:
    """The gradients of the later shares, one row for each call.

    (parts, N) of spikes that are shared between two steps, whether the gradient is wanted or not:
    their loop always adds to it. (parts, 0) of other spikes.
    """
    return np.zeros((parts, units if events.shared else 0), dtype)


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
    dtype = layer.weight.dtype
    packed = _packed(layer.weight)
    tiles = len(packed)
    batch, out_features = times.shape
    factor = grad_spikes.weight
    few = factor is not None and len(factor) <= _FEW
    packed_factor = np.empty((0, 0, 0), packed.dtype)
    columns = out_features
    if few:
        assert factor is not None
        packed_factor, columns = _packed(factor.T), len(factor)
    piece = max(_ROWS_BYTES // (num_steps * columns * dtype.itemsize), 1)
    ranges = _sample_ranges(tiles, min(piece, batch))
    by_range = work_space.zeros((ranges, *packed.shape), packed.dtype)
    bias, beta, threshold = np.zeros((3, ranges, out_features), packed.dtype)
    neurons = _layer(packed, dtype, layer.bias, layer.beta, layer.threshold)
    given = plain(
        as_events(events, dtype), neurons, RESETS[layer.reset], num_steps, as_numpy(times)
    )
    through = spike_gradient(rule, surrogate, dtype)
    parts = len(_parts(tiles, min(piece, batch)))
    late = _shares(events, parts, packed.shape[1], packed.dtype)
    for low in range(0, batch, piece):
        samples = slice(low, min(low + piece, batch))
        rows = grad_spikes.rows(samples) if few else grad_spikes.to_dense(samples)
        dense = arguments.DenseGradient(
            rows=as_array(rows, 3, dtype), factor=packed_factor, offset=low
        )
        calls = []
        for number, (k, part) in enumerate(_parts(tiles, samples.stop - low)):
            gradients = arguments.LinearGradients(
                weight=by_range[k],
                bias=bias[k],
                beta=beta[k],
                threshold=threshold[k],
                current=as_array(out.current, 3, dtype),
                late=late[number],
            )
            moved = part._replace(low=low + part.low, high=low + part.high)
            mem = work_space.empty((num_steps, TILE), packed.dtype)
            calls.append(
                (
                    *plain(_scratch(packed.dtype), mem, moved),
                    *given,
                    *plain(dense, through, gradients),
                )
            )
        in_threads(linear_backward_scan_loop, calls)
    _unpack(by_range, out.weight)
    out.bias.copy_(torch.from_numpy(bias).sum(0))
    out.beta.copy_(torch.from_numpy(beta).sum(0))
    out.threshold.copy_(torch.from_numpy(threshold).sum(0))
    if out.late is not None:
        out.late.copy_(torch.from_numpy(late).sum(0))
