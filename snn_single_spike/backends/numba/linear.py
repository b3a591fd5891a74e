"""Launches the compiled CPU loops for linear layers from spike times.

Each spike adds its column of weights to the current of its step, once; between two steps with
spikes the membrane is jumped over, so that cost and memory follow the number of spikes and not T.
Only the surrogate rules look at every step when they go back.

Neurons come in tiles, whose weights, state and tables stay in the second-level cache while all
samples go by. A thread owns a range of tiles, and where tiles are few a range of samples as well,
with gradients of its own: no result depends on timing.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from snn_single_spike.kernels.numba.compiling import REDUCTIONS, RESETS, RULES
from snn_single_spike.kernels.numba.linear_backward_closed_form import (
    linear_backward_closed_form_loop,
)
from snn_single_spike.kernels.numba.linear_backward_scan import linear_backward_scan_loop
from snn_single_spike.kernels.numba.linear_events import pack_loop, sort_loop, unpack_loop
from snn_single_spike.kernels.numba.linear_forward import linear_first_spikes_loop
from snn_single_spike.kernels.numba.linear_readout import linear_readout_loop
from snn_single_spike.kernels.numba.surrogate import SURROGATES
from snn_single_spike.kernels.numba.tile import JUMP, TILE

from .._events import Events, offsets_of
from .._surrogate import Surrogate
from .._types import (
    ClosedFormAdjoint,
    GradientFactors,
    LinearGradients,
    LinearNeurons,
)
from ..memory import empty
from ._launch import as_array, in_threads

_FEW = 64  # rows of weights that the product is taken with inside the loop
_ROWS_BYTES = 4 << 20  # of a piece of the gradient to dense spikes, made and read in turns


def _parts(tiles: int, samples: int) -> int:
    """How many ranges the samples are split into, because there are fewer tiles than threads."""
    return max(min(torch.get_num_threads() // max(tiles, 1), samples), 1)


def _splits(tiles: int, samples: int) -> list[tuple[int, tuple[int, int, int, int]]]:
    """Ranges of tiles and samples, some for each thread, after the number of the latter."""
    by_tile = max(min(4 * torch.get_num_threads(), tiles), 1)
    by_sample = _parts(tiles, samples)
    return [
        (
            k,
            (
                tiles * i // by_tile,
                tiles * (i + 1) // by_tile,
                samples * k // by_sample,
                samples * (k + 1) // by_sample,
            ),
        )
        for k in range(by_sample)
        for i in range(by_tile)
    ]


def _ranges(total: int) -> list[tuple[int, int]]:
    threads = max(min(torch.get_num_threads(), total), 1)
    return [(total * i // threads, total * (i + 1) // threads) for i in range(threads)]


def _scratch(dtype: np.dtype) -> tuple[np.ndarray, ...]:
    """State of one tile: rows of lanes, rows of steps or marks, and tables of powers."""
    return (
        np.zeros((13, TILE), dtype),
        np.zeros((3, TILE), np.int32),
        np.empty((5, JUMP + 1, TILE), dtype),
    )


def _packed(weight: Tensor) -> np.ndarray:
    lanes, units = weight.shape
    tiles = -(-lanes // TILE)
    packed = empty((tiles, units, TILE), dtype=weight.dtype, device=weight.device).numpy()
    in_threads(pack_loop, [(*r, weight.detach().numpy(), packed) for r in _ranges(tiles)])
    return packed


def _events(events: Events, dtype: torch.dtype) -> tuple[np.ndarray, ...]:
    arrays = (events.offsets, events.times, events.units)
    return *(x.numpy() for x in arrays), as_array(events.values, 1, dtype)


def sort_spikes(times: Tensor, num_steps: int) -> Events:
    rows = times.numpy()
    offsets = offsets_of(torch.from_numpy(np.count_nonzero(rows >= 0, axis=1)))
    ordered, units = (
        torch.empty(int(offsets[-1]), dtype=torch.int32, device=times.device) for _ in range(2)
    )
    filled = (offsets.numpy(), ordered.numpy(), units.numpy())
    in_threads(sort_loop, [(*r, rows, num_steps, *filled) for r in _ranges(len(rows))])
    return Events(offsets, ordered, units, None, once=True)


def linear_first_spikes(
    events: Events,
    num_steps: int,
    layer: LinearNeurons,
    times: Tensor,
    crossing: Tensor | None,
    sensitivity: Tensor | None,
) -> None:
    dtype = layer.weight.dtype
    packed = _packed(layer.weight)
    arguments = (
        *_events(events, dtype),
        packed,
        as_array(layer.bias, 1, dtype),
        as_array(layer.beta, 1, dtype),
        as_array(layer.threshold, 1, dtype),
        num_steps,
        times.numpy(),
        as_array(crossing, 3, dtype),
        as_array(sensitivity, 3, dtype),
    )
    splits = _splits(len(packed), times.shape[0])
    in_threads(
        linear_first_spikes_loop,
        [(*_scratch(packed.dtype), *split, *arguments) for _, split in splits],
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
    arguments = (
        *_events(events, dtype),
        packed,
        as_array(bias, 1, dtype),
        as_array(beta, 1, dtype),
        num_steps,
        REDUCTIONS[reduction],
        value.numpy(),
        as_array(sensitivity, 2, dtype),
        as_array(step, 2, torch.int64),
    )
    splits = _splits(len(packed), value.shape[0])
    in_threads(
        linear_readout_loop, [(*_scratch(packed.dtype), *split, *arguments) for _, split in splits]
    )


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
    dtype = weight.dtype
    packed = _packed(weight)
    tiles, units, _ = packed.shape
    batch = len(events.offsets) - 1
    splits, parts = _splits(tiles, batch), _parts(tiles, batch)
    ours = np.zeros((parts, tiles, units, TILE), packed.dtype)
    bias = np.zeros((parts, len(beta)), packed.dtype)
    shape = (0, 0, 0) if grad_inputs is None else tuple(grad_inputs.shape)
    inputs = np.zeros((len(splits), *shape), packed.dtype)
    calls = []
    for number, (part, split) in enumerate(splits):
        calls.append(
            (
                *_scratch(packed.dtype),
                *split,
                *_events(events, dtype),
                packed,
                as_array(beta, 1, dtype),
                num_steps,
                *(as_array(x, 2, dtype) for x in adjoint[:3]),
                as_array(adjoint.when, 2, torch.int64),
                ours[part],
                bias[part],
                inputs[number],
                np.empty(num_steps + 1, np.int32),
            )
        )
    in_threads(linear_backward_closed_form_loop, calls)
    in_threads(unpack_loop, [(*r, ours, grad_weight.numpy()) for r in _ranges(tiles)])
    grad_bias.copy_(torch.from_numpy(bias).sum(0))
    if grad_inputs is not None:
        grad_inputs.copy_(torch.from_numpy(inputs).sum(0))


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
    scalar = np.float64 if dtype == torch.float64 else np.float32
    packed = _packed(layer.weight)
    tiles, units, _ = packed.shape
    batch, lanes = times.shape
    factor = grad_spikes.weight
    few = factor is not None and len(factor) <= _FEW
    through = np.empty((0, 0, 0), packed.dtype)
    width = lanes
    if few:
        assert factor is not None
        through, width = _packed(factor.T), len(factor)
    piece = max(_ROWS_BYTES // (num_steps * width * dtype.itemsize), 1)
    parts = _parts(tiles, min(piece, batch))
    ours = np.zeros((parts, tiles, units, TILE), packed.dtype)
    parameters = np.zeros((3, parts, lanes), packed.dtype)
    for low in range(0, batch, piece):
        high = min(low + piece, batch)
        some = slice(low, high)
        rows = grad_spikes.rows(some) if few else grad_spikes.to_dense(some)
        calls = []
        for part, (first, last, start, stop) in _splits(tiles, high - low):
            calls.append(
                (
                    *_scratch(packed.dtype),
                    first,
                    last,
                    low + start,
                    low + stop,
                    low,
                    *_events(events, dtype),
                    packed,
                    as_array(layer.bias, 1, dtype),
                    as_array(layer.beta, 1, dtype),
                    as_array(layer.threshold, 1, dtype),
                    RESETS[layer.reset],
                    num_steps,
                    times.numpy(),
                    as_array(rows, 3, dtype),
                    through,
                    RULES[rule],
                    SURROGATES[surrogate.name],
                    scalar(surrogate.a),
                    scalar(surrogate.b),
                    ours[part],
                    *(gradient[part] for gradient in parameters),
                    as_array(out.current, 3, dtype),
                    np.empty((num_steps, TILE), packed.dtype),
                )
            )
        in_threads(linear_backward_scan_loop, calls)
    in_threads(unpack_loop, [(*r, ours, out.weight.numpy()) for r in _ranges(tiles)])
    for target, gradient in zip((out.bias, out.beta, out.threshold), parameters, strict=True):
        target.copy_(torch.from_numpy(gradient).sum(0))
