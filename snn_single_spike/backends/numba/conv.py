"""Launches the compiled CPU loops for convolutions from spike times.

A cell is all channels of a position and group. Each spike adds its rows of weights to the cells
that it reaches once. A thread owns samples. Gradients of the weights are summed over ranges of
samples, so no result depends on timing.

A surrogate rule reads every step. Its backward pass integrates the membranes of one sample again,
and replaces them by their adjoint. The gradient to the inputs is (T, n, units), for a few samples.
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from snn_single_spike.kernels.numba import arguments
from snn_single_spike.kernels.numba.compiling import RESETS
from snn_single_spike.kernels.numba.conv_backward_closed_form import conv_backward_closed_form_loop
from snn_single_spike.kernels.numba.conv_backward_scan import conv_backward_scan_loop
from snn_single_spike.kernels.numba.conv_forward import conv_first_spikes_loop
from snn_single_spike.kernels.numba.conv_to_input import VECTORS, conv_to_input_loop
from snn_single_spike.kernels.numba.conv_winners import conv_winners_loop
from snn_single_spike.kernels.numba.simd import LANES

from .. import _convolution as convolution
from .._arrays import as_numpy
from .._cells import parameter_of_cells, weight_from_cells, weight_of_cells
from .._events import Events
from .._surrogate import Surrogate
from .._types import (
    ClosedFormAdjoint,
    ConvGradients,
    ConvNeurons,
    Convolution,
    GradientFactors,
)
from ..memory import empty
from . import _work_space as work_space
from ._launch import as_array, as_events, plain, spike_gradient
from ._threads import in_threads

_TABLE = 1 << 16  # elements of a table of powers, which has at least _JUMP steps
_JUMP = 64  # steps that a table of powers reaches at least
_PIECE = 1 << 21  # elements of a dense tensor of some samples
_NO_WINNER = np.empty((0, 0, 0, 0), np.int16)


def _reached(inputs: int, outputs: int, taps: int, stride: int, before: int, dilation: int):
    """For each input and tap the output that they reach, -1 for none."""
    shifted = np.arange(inputs)[:, None] + before - dilation * np.arange(taps)
    output, rest = np.divmod(shifted, stride)
    inside = (rest == 0) & (output >= 0) & (output < outputs)
    return np.where(inside, output, -1).astype(np.int32)


def _order(taps: int, stride: int, dilation: int) -> list[int]:
    """The taps of a row of the kernel, in an order in which they reach outputs side by side."""
    # A tap later by stride / dilation reaches the output before.
    apart = stride // dilation if stride % dilation == 0 else taps
    return sorted(range(taps), key=lambda tap: (tap % apart, -tap))


def _runs(reached: np.ndarray, windows: int, size: int) -> np.ndarray:
    """``columns`` of :class:`arguments.Patches`, from the outputs by input and ordered tap."""
    inside = reached >= 0
    starts = inside.copy()
    starts[:, 1:] &= ~(inside[:, :-1] & (reached[:, 1:] == reached[:, :-1] + 1))
    run = np.cumsum(starts, 1) - 1
    runs = np.zeros((len(reached), max(int(run.max(initial=0)) + 1, 1), 5), np.int32)
    x, tap = np.nonzero(starts)
    runs[x, run[x, tap], 0], runs[x, run[x, tap], 1] = reached[x, tap], tap
    x, tap = np.nonzero(inside)
    np.add.at(runs[..., 2], (x, run[x, tap]), 1)
    runs[..., 3] = runs[..., 0] // size
    runs[..., 4] = np.minimum((runs[..., 0] + runs[..., 2] - 1) // size + 1, windows)
    return runs


@functools.lru_cache(64)
def _patches(conv: Convolution, kernel: tuple[int, int]) -> arguments.Patches:
    members, across, down = np.empty((0, 0), np.int32), conv.out_width, conv.out_height
    if conv.pools:
        down, across = conv.out_height // conv.pool_y, conv.out_width // conv.pool_x
        positions = np.arange(conv.out_height * conv.out_width).reshape(conv.out_height, -1)
        inside = positions[: down * conv.pool_y, : across * conv.pool_x]
        blocks = inside.reshape(down, conv.pool_y, across, conv.pool_x).swapaxes(1, 2)
        members = blocks.reshape(conv.positions, -1).astype(np.int32)
    size_y, size_x = max(conv.pool_y, 1), max(conv.pool_x, 1)
    rows = _reached(
        conv.height, conv.out_height, kernel[0], conv.stride_y, conv.top, conv.dilation_y
    )
    windows = np.where((rows >= 0) & (rows // size_y < down), rows // size_y, -1)
    columns = _reached(
        conv.width, conv.out_width, kernel[1], conv.stride_x, conv.left, conv.dilation_x
    )
    ordered = columns[:, _order(kernel[1], conv.stride_x, conv.dilation_x)]
    return arguments.Patches(
        rows=np.stack([rows, windows], -1).astype(np.int32),
        columns=_runs(ordered, across, size_x),
        width=conv.out_width,
        taps=kernel[1],
        positions=conv.out_height * conv.out_width,
        group=conv.channels // conv.groups,
        neurons=conv.positions,
        across=across,
        members=members,
    )


def _lanes(out_channels: int) -> int:
    """Channels of a cell, padded to whole vectors."""
    return -(-out_channels // LANES) * LANES


def _pack(weight: Tensor, conv: Convolution) -> np.ndarray:
    """Weights (O, C / groups, KH, KW) as (C, KH * KW, lanes), with ordered taps."""
    order = _order(weight.shape[3], conv.stride_x, conv.dilation_x)
    lanes = _lanes(len(weight) // conv.groups)
    return as_numpy(weight_of_cells(weight[..., order], conv.groups, lanes))


def _unpack(packed: np.ndarray, weight: Tensor, conv: Convolution) -> None:
    """The inverse of :func:`_pack`, for the sum over ranges of samples."""
    order = _order(weight.shape[3], conv.stride_x, conv.dilation_x)
    total = torch.from_numpy(packed).sum(0)
    weight[..., order] = weight_from_cells(total, weight, conv.groups)


def _tables(beta: np.ndarray, num_steps: int, slopes: bool) -> np.ndarray:
    """Powers of beta and their sums for 0 ... n steps, and the derivatives of both by beta."""
    reach = min(num_steps, max(_TABLE // beta.size, _JUMP))
    tables = np.zeros((4 if slopes else 2, reach + 1, *beta.shape), beta.dtype)
    power, geometric = tables[0], tables[1]
    power[0], power[1:] = 1, beta
    np.multiply.accumulate(power, 0, out=power)
    np.add.accumulate(power[:-1], 0, out=geometric[1:])
    if slopes:
        steps = np.arange(1, reach + 1, dtype=beta.dtype)[:, None, None]
        np.multiply(steps, power[:-1], out=tables[2, 1:])
        np.add.accumulate(tables[2, :-1], 0, out=tables[3, 1:])
    return tables


def _layer(
    weight: Tensor,
    bias: Tensor | None,
    beta: Tensor,
    threshold: Tensor | None,
    conv: Convolution,
    num_steps: int,
    slopes: bool = False,
) -> arguments.ConvLayer:
    groups, lanes = conv.groups, _lanes(len(weight) // conv.groups)
    if threshold is not None:
        beta, threshold = torch.broadcast_tensors(beta, threshold)
    decay = as_numpy(parameter_of_cells(beta, groups, lanes))
    drive = weight.new_zeros(len(weight)) if bias is None else bias
    theta = decay[:0]
    if threshold is not None:
        theta = as_numpy(parameter_of_cells(threshold, groups, lanes, torch.inf))
    return arguments.ConvLayer(
        weight=_pack(weight, conv),
        bias=as_numpy(parameter_of_cells(drive[:, None], groups, lanes)),
        beta=decay,
        threshold=theta,
        tables=_tables(decay, num_steps, slopes),
        out_channels=len(weight) // groups,
    )


def _ranges(samples: int, most: int) -> list[tuple[int, int]]:
    count = max(min(most, samples), 1)
    return [(samples * i // count, samples * (i + 1) // count) for i in range(count)]


def _cells(conv: Convolution, weight: Tensor) -> tuple[int, int]:
    """The shape (cells of neurons, lanes)."""
    return conv.groups * conv.positions, _lanes(len(weight) // conv.groups)


def _step(
    conv: Convolution, weight: Tensor, kind: np.dtype, current: bool, routed: bool
) -> arguments.ConvStep:
    """Work space of one step. Its parts are as large as they are needed."""
    cells = conv.groups * conv.out_height * conv.out_width
    lanes = _lanes(len(weight) // conv.groups)
    return arguments.ConvStep(
        current=work_space.empty((cells if current else 0, lanes), kind),
        routed=work_space.empty((cells if routed else 0, lanes), kind),
    )


def _kernel(weight: Tensor) -> tuple[int, int]:
    return weight.shape[2], weight.shape[3]


def conv_first_spikes(
    events: Events,
    num_steps: int,
    layer: ConvNeurons,
    conv: Convolution,
    times: Tensor,
    crossing: Tensor | None,
    sensitivity: Tensor | None,
    when: Tensor | None,
) -> None:
    dtype = layer.weight.dtype
    patches, shape = _patches(conv, _kernel(layer.weight)), _cells(conv, layer.weight)
    slopes = sensitivity is not None
    for around in (crossing, sensitivity):
        if around is not None:
            around.zero_()
    out = arguments.FirstSpikes(
        times=as_numpy(times),
        crossing=as_array(crossing, 3, dtype),
        sensitivity=as_array(sensitivity, 3, dtype),
        when=as_array(when, 2, torch.int32),
    )
    neurons = _layer(layer.weight, layer.bias, layer.beta, layer.threshold, conv, num_steps, slopes)
    given = plain(as_events(events, dtype), patches, neurons, num_steps, out)
    kind = neurons.weight.dtype

    def state() -> arguments.ConvState:
        return arguments.ConvState(
            mem=work_space.empty(shape, kind),
            slope=work_space.empty(shape if slopes else (0, shape[1]), kind),
            rows=work_space.empty((4, shape[1]), kind),
            first=work_space.empty(shape, np.int32),
            peaks=work_space.empty((0 if when is None else 2, *shape), kind),
            when=work_space.empty((0 if when is None else shape[0], shape[1]), np.int32),
            counters=np.empty((3, shape[0]), np.int32),
            step=tuple(_step(conv, layer.weight, kind, current=True, routed=False)),
        )

    ranges = _ranges(len(times), 4 * torch.get_num_threads())
    in_threads(conv_first_spikes_loop, [(*r, *plain(state()), *given) for r in ranges])


def conv_backward_closed_form(
    events: Events,
    num_steps: int,
    weight: Tensor,
    beta: Tensor,
    conv: Convolution,
    adjoint: ClosedFormAdjoint,
    grad_weight: Tensor | None,
    grad_bias: Tensor | None,
    grad_inputs: Tensor | None,
) -> None:
    dtype = weight.dtype
    patches, shape = _patches(conv, _kernel(weight)), _cells(conv, weight)
    neurons = _layer(weight, None, beta, None, conv, num_steps)
    kind = neurons.weight.dtype
    ranges = _ranges(len(events.offsets) - 1, torch.get_num_threads())
    wanted = 0 if grad_weight is None else len(ranges)
    gradient = work_space.zeros((wanted, *neurons.weight.shape), kind)
    bias = np.zeros((len(ranges), *neurons.bias.shape), kind)
    impulses = arguments.ClosedFormAdjoint(
        every=as_array(None, 2, dtype),
        at=as_array(adjoint.at, 2, dtype),
        before=as_array(adjoint.before, 2, dtype),
        when=as_array(adjoint.when, 2, torch.int64),
    )
    given = plain(as_events(events, dtype), patches, neurons, impulses)
    calls = []
    for k, samples in enumerate(ranges):
        state = arguments.ConvImpulses(
            lam=work_space.empty(shape, kind),
            at=work_space.empty(shape, kind),
            before=work_space.empty(shape, kind),
            when=work_space.empty(shape, np.int32),
            counters=np.empty((6, shape[0]), np.int32),
            total=work_space.empty((LANES,), kind),
            rows=work_space.empty((1, shape[1]), kind),
            winner=work_space.empty(shape[1:], np.int32),
            step=tuple(_step(conv, weight, kind, current=conv.pools, routed=conv.pools)),
        )
        of_weight = gradient[k] if wanted else np.empty((0, 0, 0), kind)
        into = arguments.ConvGradients(of_weight, bias[k], as_array(grad_inputs, 3, dtype))
        calls.append((*samples, *plain(state), *given, *plain(into)))
    in_threads(conv_backward_closed_form_loop, calls)
    if grad_weight is not None and grad_bias is not None:
        _unpack(gradient, grad_weight, conv)
        total = torch.from_numpy(bias).sum(0)[:, : neurons.out_channels]
        grad_bias.copy_(total.flatten())


def _sum_of_cells(
    by_range: np.ndarray, neurons: arguments.ConvLayer, conv: Convolution, into: Tensor
) -> None:
    """Write the sum over ranges (ranges, cells of neurons, lanes) to a parameter (O, ...)."""
    total = torch.from_numpy(by_range).sum(0)[:, : neurons.out_channels]
    of_channel = total.unflatten(0, (conv.groups, -1)).transpose(1, 2).reshape(len(into), -1)
    into.copy_(of_channel.sum_to_size(into.view(len(into), -1).shape).view(into.shape))


def _gradient_rows(
    grad_spikes: GradientFactors, part: slice, conv: Convolution, weight: Tensor
) -> arguments.ConvGradientRows:
    """The gradient to the spikes of some samples, with channels last if it is computed so."""
    rows = grad_spikes.rows(part) if grad_spikes.weight is None else grad_spikes.to_dense(part)
    last = rows.shape[2:] == (len(weight), conv.positions) and rows.stride(2) == 1
    rows = (rows.transpose(2, 3) if last else rows).flatten(2)
    are_cells = last and conv.groups == 1 and len(weight) % LANES == 0
    dense = as_array(rows, 3, weight.dtype)
    return arguments.ConvGradientRows(
        rows=dense,
        offset=part.start,
        last=last,
        cells=work_space.empty((0 if are_cells else len(rows), *_cells(conv, weight)), dense.dtype),
    )


def conv_backward_scan(layer: ConvNeurons, conv: Convolution) -> convolution.Scan:
    neurons = _layer(layer.weight, layer.bias, layer.beta, layer.threshold, conv, num_steps=1)
    return functools.partial(_conv_backward_scan, layer, conv, neurons)


def _conv_backward_scan(
    layer: ConvNeurons,
    conv: Convolution,
    neurons: arguments.ConvLayer,
    events: Events,
    num_steps: int,
    times: Tensor,
    grad_spikes: GradientFactors,
    rule: str,
    surrogate: Surrogate,
    out: ConvGradients,
) -> Tensor | None:
    weight, dtype = layer.weight, layer.weight.dtype
    patches, shape = _patches(conv, _kernel(weight)), _cells(conv, weight)
    kind, threads = neurons.weight.dtype, torch.get_num_threads()
    piece = max(_PIECE // (num_steps * times.shape[1]), threads)
    ranges = min(threads, len(times))
    want_weight = out.weight is not None
    routes = conv.pools and want_weight
    keeps = conv.pools and out.current is not None
    winner = _winner(conv, weight, num_steps, len(times)) if keeps else None
    winner_array = _NO_WINNER if winner is None else as_numpy(winner)
    gradient = work_space.zeros((ranges if want_weight else 0, *neurons.weight.shape), kind)
    totals = work_space.zeros((3, ranges, *shape), kind)
    through = spike_gradient(rule, surrogate, dtype)
    given = plain(
        as_events(events, dtype), patches, neurons, RESETS[layer.reset], num_steps, as_numpy(times)
    )
    states = [
        arguments.ConvScan(
            mem=work_space.empty((num_steps, *shape), kind),
            first=work_space.empty(shape, np.int32),
            limit=work_space.empty(shape, np.int32),
            counters=np.empty((3, shape[0]), np.int32),
            rows=work_space.empty((1, shape[1]), kind),
            winner=work_space.empty((num_steps if conv.pools else 0, *shape), np.int32),
            step=tuple(_step(conv, weight, kind, current=True, routed=routes)),
        )
        for _ in range(ranges)
    ]
    for low in range(0, len(times), piece):
        part = slice(low, min(low + piece, len(times)))
        rows = _gradient_rows(grad_spikes, part, conv, weight)
        calls = []
        for k, (i, j) in enumerate(_ranges(part.stop - low, ranges)):
            into = arguments.ConvScanGradients(
                gradient[k] if want_weight else neurons.weight[:0],
                *totals[:, k],
                as_array(out.current, 3, dtype),
                winner_array,
            )
            # Each thread has work space of its own.
            own = work_space.empty(rows.cells.shape, kind) if k else rows.cells
            dense = rows._replace(cells=own)
            calls.append(
                (low + i, low + j, *plain(states[k]), *given, *plain(dense, through, into))
            )
        in_threads(conv_backward_scan_loop, calls)
    if out.weight is not None:
        _unpack(gradient, out.weight, conv)
        for total, parameter in zip(totals, (out.bias, out.beta, out.threshold), strict=True):
            assert parameter is not None
            _sum_of_cells(total, neurons, conv, parameter)
    return winner


class _Transposed(NamedTuple):
    """Indices of :class:`arguments.TransposedConv`."""

    vectors: np.ndarray
    whole: int
    part: int
    patches: np.ndarray
    inside: np.ndarray
    covered: int
    end: int
    of_taps: np.ndarray
    """(n, VECTORS, LANES): which weight of an output channel, (KH, KW, C), and -1 for none."""


@functools.lru_cache(64)
def _transposed(conv: Convolution, kernel: tuple[int, int]) -> _Transposed:
    channels = conv.channels // conv.groups
    height = (conv.out_height - 1) * conv.stride_y + conv.dilation_y * (kernel[0] - 1) + 1
    width = (conv.out_width - 1) * conv.stride_x + conv.dilation_x * (kernel[1] - 1) + 1
    end = height * width * channels
    # Rows of numbers that lie side by side: those of a tap, or of a row of the kernel
    taps = np.arange(kernel[0])[:, None] * conv.dilation_y * width
    if conv.dilation_x > 1:
        taps = taps + np.arange(kernel[1]) * conv.dilation_x
    starts = taps.flatten() * channels
    size = math.prod(kernel) * channels // len(starts)
    numbers = np.arange(len(starts) * size).reshape(len(starts), size)
    inside_vectors = size // LANES * LANES
    vectors, of_taps = [], []
    for first, stop in ((0, inside_vectors), (inside_vectors, size)):
        lanes = np.arange(first, stop).reshape(-1, min(LANES, max(stop - first, 1)))
        begins = (starts[:, None] + lanes[:, 0]).flatten()
        weights = np.full((len(begins), LANES), -1)
        weights[:, : lanes.shape[1]] = numbers[:, first:stop].reshape(len(begins), lanes.shape[1])
        missing = -len(begins) % VECTORS
        vectors.append(np.pad(begins, (0, missing), constant_values=end))
        of_taps.append(np.pad(weights, ((0, missing), (0, 0)), constant_values=-1))
    y, x = np.divmod(np.arange(conv.out_height * conv.out_width), conv.out_width)
    y_in = np.arange(conv.height) + conv.top
    return _Transposed(
        vectors=np.concatenate(vectors).reshape(-1, VECTORS),
        whole=len(vectors[0]) // VECTORS,
        part=size - inside_vectors,
        patches=(y * conv.stride_y * width + x * conv.stride_x) * channels,
        inside=np.where(y_in < height, (y_in * width + conv.left) * channels, -1),
        covered=max(width - conv.left, 0),
        end=end,
        of_taps=np.concatenate(of_taps).reshape(-1, VECTORS, LANES),
    )


def _by_vectors(weight: Tensor, of_taps: np.ndarray) -> np.ndarray:
    """Weights (O, C / groups, KH, KW) as (n, O, VECTORS * LANES)."""
    flat = as_numpy(weight.permute(0, 2, 3, 1).flatten(1).contiguous())
    chosen = np.where(of_taps < 0, 0, flat[:, of_taps])  # (O, n, VECTORS, LANES)
    by_vectors = work_space.empty((len(of_taps), len(weight), *of_taps.shape[1:]), flat.dtype)
    by_vectors[...] = chosen.swapaxes(0, 1)
    return by_vectors.reshape(len(of_taps), len(weight), -1)


def _winner(conv: Convolution, weight: Tensor, num_steps: int, samples: int) -> Tensor:
    """An empty tensor (T, n, cells of neurons, O / groups) for the positions of maxima."""
    positions = conv.out_height * conv.out_width
    dtype = torch.int16 if positions <= torch.iinfo(torch.int16).max else torch.int32
    shape = (num_steps, samples, conv.groups * conv.positions, len(weight) // conv.groups)
    return empty(shape, dtype=dtype, device=weight.device)


def _winners(events: Events, num_steps: int, weight: Tensor, conv: Convolution) -> Tensor:
    """The positions with the maxima of windows."""
    samples, shape = len(events.offsets) - 1, _cells(conv, weight)
    packed = _pack(weight, conv)
    bias = np.zeros((conv.groups, shape[1]), packed.dtype)  # the same for all cells of a window
    out = _winner(conv, weight, num_steps, samples)
    given = plain(as_events(events, weight.dtype), _patches(conv, _kernel(weight)))
    calls = []
    for part in _ranges(samples, torch.get_num_threads()):
        work = arguments.ConvWinners(
            current=_step(conv, weight, packed.dtype, current=True, routed=False).current,
            rows=work_space.empty((1, shape[1]), packed.dtype),
            winner=work_space.empty(shape, np.int32),
            counters=np.empty((2, shape[0]), np.int32),
        )
        calls.append((*part, *plain(work), *given, packed, bias, as_numpy(out)))
    in_threads(conv_winners_loop, calls)
    return out


def _rows(steps: Tensor) -> tuple[np.ndarray, int]:
    """The rows (steps * apart + samples, ...) of a part (T, n, ...) of some samples, and ``apart``.

    Row ``t * apart + sample`` is ``steps[t, sample]``. Nothing is copied.
    """
    row = steps.shape[2:].numel()
    if not steps.numel() or not steps[0].is_contiguous() or steps.stride(0) % row:
        steps = steps.contiguous()
    apart = max(steps.stride(0) // max(row, 1), 1)
    count = (len(steps) - 1) * apart + steps.shape[1] if steps.numel() else 0
    rows = steps.as_strided((count, *steps.shape[2:]), (row, *steps.stride()[2:]))
    return as_numpy(rows), apart


def conv_to_input(weight: Tensor, conv: Convolution) -> convolution.ToInput:
    if not conv.pools:
        return lambda events, num_steps, lam, winner: convolution.to_input(lam, None, weight, conv)
    by_vectors = _by_vectors(weight, _transposed(conv, _kernel(weight)).of_taps)
    return functools.partial(_conv_to_input, weight, conv, by_vectors)


def _conv_to_input(
    weight: Tensor,
    conv: Convolution,
    by_vectors: np.ndarray,
    events: Events,
    num_steps: int,
    lam: Tensor,
    winner: Tensor | None,
) -> Tensor:
    if winner is None:
        winner = _winners(events, num_steps, weight, conv)
    n, kind = lam.shape[1], by_vectors.dtype
    indices = _transposed(conv, _kernel(weight))
    out = empty((num_steps, n, conv.units), dtype=lam.dtype, device=lam.device)
    threads = torch.get_num_threads()
    positions, channels = len(indices.patches), len(weight) // conv.groups
    by_sample = [(*part, 0, num_steps) for part in _ranges(n, threads)]
    by_step = [(0, n, *part) for part in _ranges(num_steps, threads)]
    rows = (*_rows(lam), *_rows(winner))
    calls = []
    for part in by_step if n < threads else by_sample:
        layer = arguments.TransposedConv(
            weight=by_vectors,
            vectors=indices.vectors,
            whole=indices.whole,
            part=indices.part,
            totals=work_space.empty((VECTORS, LANES), kind),
            patches=indices.patches,
            inside=indices.inside,
            covered=indices.covered,
            size=(conv.channels // conv.groups, conv.height, conv.width),
            maps=work_space.empty((2 * indices.end + LANES,), kind),
            end=indices.end,
            counts=np.empty(positions, np.int32),
            lanes=np.empty((positions, channels), np.int32),
            values=work_space.empty((positions, channels), kind),
        )
        calls.append((*part, *plain(layer), *rows, as_numpy(out)))
    in_threads(conv_to_input_loop, calls)
    return out.view(num_steps, n, -1, conv.channels).transpose(2, 3)
