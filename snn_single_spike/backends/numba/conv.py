"""Launches the compiled CPU loops for convolutions from spike times.

A cell is all channels of a position and group. Each spike adds its rows of weights to the cells
that it reaches once. A thread owns samples. Gradients of the weights are summed over ranges of
samples, so no result depends on timing.

A surrogate rule reads every step. Its backward pass writes the dense current of a few samples from
the spikes, runs the reverse scan of :mod:`.neuron` over it, and gathers the adjoint at the spikes.
"""

from __future__ import annotations

import functools

import numpy as np
import torch
from torch import Tensor

from snn_single_spike.kernels.numba import arguments
from snn_single_spike.kernels.numba.conv_backward_closed_form import conv_backward_closed_form_loop
from snn_single_spike.kernels.numba.conv_current import (
    conv_current_loop,
    conv_gather_loop,
    conv_unpool_loop,
)
from snn_single_spike.kernels.numba.conv_forward import conv_first_spikes_loop
from snn_single_spike.kernels.numba.simd import LANES

from .. import _convolution as convolution
from .._arrays import as_numpy
from .._cells import (
    gradient_of_cells,
    neuron_of_cells,
    parameter_of_cells,
    sum_to_parameter,
    to_cells,
    to_features,
    weight_from_cells,
    weight_of_cells,
)
from .._events import Events
from .._surrogate import Surrogate
from .._types import (
    ClosedFormAdjoint,
    ConvGradients,
    ConvNeurons,
    Convolution,
    GradientFactors,
    OutputGradients,
    Saved,
)
from ..memory import empty
from ._launch import as_array, as_events, in_threads, plain
from .neuron import neuron_backward

_TABLE = 1 << 16  # elements of a table of powers, which has at least _JUMP steps
_JUMP = 64  # steps that a table of powers reaches at least
_PIECE = 1 << 21  # elements of a dense tensor of some samples


def _reached(inputs: int, outputs: int, taps: int, stride: int, before: int, dilation: int):
    """For each input and tap the output that they reach, -1 for none."""
    shifted = np.arange(inputs)[:, None] + before - dilation * np.arange(taps)
    output, rest = np.divmod(shifted, stride)
    inside = (rest == 0) & (output >= 0) & (output < outputs)
    return np.where(inside, output, -1).astype(np.int32)


@functools.lru_cache(64)
def _patches(conv: Convolution, kernel: tuple[int, int]) -> arguments.Patches:
    windows, members = np.empty(0, np.int32), np.empty((0, 0), np.int32)
    if conv.pools:
        whole = conv.out_height // conv.pool_y, conv.out_width // conv.pool_x
        y, x = np.divmod(np.arange(conv.out_height * conv.out_width), conv.out_width)
        inside = (y // conv.pool_y < whole[0]) & (x // conv.pool_x < whole[1])
        window = np.where(inside, y // conv.pool_y * whole[1] + x // conv.pool_x, -1)
        order = np.argsort(window, kind="stable")[np.count_nonzero(~inside) :]
        windows = window.astype(np.int32)
        members = order.reshape(conv.positions, -1).astype(np.int32)
    return arguments.Patches(
        rows=_reached(
            conv.height, conv.out_height, kernel[0], conv.stride_y, conv.top, conv.dilation_y
        ),
        columns=_reached(
            conv.width, conv.out_width, kernel[1], conv.stride_x, conv.left, conv.dilation_x
        ),
        width=conv.out_width,
        positions=conv.out_height * conv.out_width,
        group=conv.channels // conv.groups,
        neurons=conv.positions,
        windows=windows,
        members=members,
    )


def _lanes(out_channels: int) -> int:
    """Channels of a cell, padded to whole vectors."""
    return -(-out_channels // LANES) * LANES


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
    theta = (
        decay[:0]
        if threshold is None
        else as_numpy(parameter_of_cells(threshold, groups, lanes, torch.inf))
    )
    return arguments.ConvLayer(
        weight=as_numpy(weight_of_cells(weight, groups, lanes)),
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
        current=np.empty((cells if current else 0, lanes), kind),
        seen=np.empty(cells if current else 0, np.int32),
        routed=np.empty((cells if routed else 0, lanes), kind),
        reached=np.empty((3, weight.shape[2:].numel()), np.int32),
    )


def _scratch(conv: Convolution, weight: Tensor, kind: np.dtype) -> tuple[object, ...]:
    """Work space of the loops that read every step, if the neurons read the maximum of windows."""
    cells, lanes = _cells(conv, weight)
    return (
        tuple(_step(conv, weight, kind, current=conv.pools, routed=conv.pools)),
        np.empty((4, lanes), kind),
        np.empty(cells if conv.pools else 0, np.int32),
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
    )
    neurons = _layer(layer.weight, layer.bias, layer.beta, layer.threshold, conv, num_steps, slopes)
    given = plain(as_events(events, dtype), patches, neurons, num_steps, out)
    kind = neurons.weight.dtype

    def state() -> arguments.ConvState:
        return arguments.ConvState(
            mem=np.empty(shape, kind),
            slope=np.empty(shape if slopes else (0, shape[1]), kind),
            rows=np.empty((4, shape[1]), kind),
            first=np.empty(shape, np.int32),
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
    grad_weight: Tensor,
    grad_bias: Tensor,
    grad_inputs: Tensor | None,
) -> None:
    dtype = weight.dtype
    patches, shape = _patches(conv, _kernel(weight)), _cells(conv, weight)
    neurons = _layer(weight, None, beta, None, conv, num_steps)
    kind = neurons.weight.dtype
    ranges = _ranges(len(events.offsets) - 1, torch.get_num_threads())
    gradient = np.zeros((len(ranges), *neurons.weight.shape), kind)
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
            lam=np.empty(shape, kind),
            at=np.empty(shape, kind),
            before=np.empty(shape, kind),
            when=np.empty(shape, np.int32),
            counters=np.empty((3, shape[0]), np.int32),
            rows=np.empty((4, shape[1]), kind),
            total=np.empty(LANES, kind),
            step=tuple(_step(conv, weight, kind, current=conv.pools, routed=conv.pools)),
        )
        into = arguments.ConvGradients(gradient[k], bias[k], as_array(grad_inputs, 3, dtype))
        calls.append((*samples, *plain(state), *given, *plain(into)))
    in_threads(conv_backward_closed_form_loop, calls)
    grad_weight.copy_(weight_from_cells(torch.from_numpy(gradient).sum(0), weight, conv.groups))
    total = torch.from_numpy(bias).sum(0)[:, : neurons.out_channels]
    grad_bias.copy_(total.flatten())


def conv_backward_scan(
    events: Events,
    num_steps: int,
    layer: ConvNeurons,
    conv: Convolution,
    times: Tensor,
    grad_spikes: GradientFactors,
    rule: str,
    surrogate: Surrogate,
    out: ConvGradients,
) -> None:
    weight = layer.weight
    dtype, device = weight.dtype, weight.device
    patches = _patches(conv, _kernel(weight))
    batch, neurons = times.shape
    channels = len(weight) // conv.groups
    lanes = _lanes(channels)
    packed = as_numpy(weight_of_cells(weight, conv.groups, lanes))
    bias = as_numpy(parameter_of_cells(layer.bias[:, None], conv.groups, lanes))
    threads = torch.get_num_threads()
    gradient = np.zeros((threads, *packed.shape), packed.dtype)
    neuron, gradients = neuron_of_cells(layer, conv), gradient_of_cells(grad_spikes, conv)
    first = to_cells(times, conv).to(torch.int64)
    piece = max(_PIECE // (num_steps * neurons), threads)
    totals = layer.beta.new_zeros(3, neurons)
    given = plain(as_events(events, dtype), patches)
    scratch = [_scratch(conv, weight, packed.dtype) for _ in range(threads)]
    for low in range(0, batch, piece):
        part = slice(low, min(low + piece, batch))
        n = part.stop - low
        current, lam = (
            empty((num_steps, n, neurons), dtype=dtype, device=device) for _ in range(2)
        )
        beta, threshold = (current.new_empty(n * neurons) for _ in range(2))
        calls = [
            (low + i, low + j, low, *scratch[k], *given, packed, bias, channels)
            for k, (i, j) in enumerate(_ranges(n, threads))
        ]
        in_threads(conv_current_loop, [(*call, as_numpy(current)) for call in calls])
        neuron_backward(
            num_steps,
            dtype,
            Saved(current.flatten(1), recompute=True),
            neuron,
            first[part].flatten(),
            OutputGradients(gradients.to_dense(part).flatten(1)),
            rule,
            surrogate,
            {"current": lam.flatten(1), "beta": beta, "threshold": threshold},
        )
        if out.weight is not None:
            in_threads(
                conv_gather_loop,
                [(*call, as_numpy(lam), gradient[k]) for k, call in enumerate(calls)],
            )
            totals += torch.stack(
                (
                    lam.sum((0, 1)),
                    beta.view(n, neurons).sum(0),
                    threshold.view(n, neurons).sum(0),
                )
            )
        if out.current is not None:
            out.current[:, part] = to_features(lam, conv)
    if out.weight is not None:
        total = torch.from_numpy(gradient).sum(0)
        out.weight.copy_(weight_from_cells(total, weight, conv.groups))
        for total, into in zip(totals, (out.bias, out.beta, out.threshold), strict=True):
            assert into is not None
            into.copy_(sum_to_parameter(total, into, conv))


def conv_to_input(
    events: Events, num_steps: int, weight: Tensor, conv: Convolution, lam: Tensor
) -> Tensor:
    if not conv.pools:
        return convolution.to_input(lam, None, weight, conv)
    n, channels = lam.shape[1], len(weight) // conv.groups
    packed = as_numpy(weight_of_cells(weight, conv.groups, _lanes(channels)))
    bias = np.zeros((conv.groups, packed.shape[2]), packed.dtype)
    positions = conv.out_height * conv.out_width
    shape = (num_steps, n, conv.groups * positions * channels)
    unpooled = empty(shape, dtype=lam.dtype, device=lam.device).zero_()
    given = plain(as_events(events, weight.dtype), _patches(conv, _kernel(weight)))
    rows = as_numpy(lam.contiguous()), as_numpy(unpooled)
    calls = [
        (i, j, 0, *_scratch(conv, weight, packed.dtype), *given, packed, bias, channels, *rows)
        for i, j in _ranges(n, torch.get_num_threads())
    ]
    in_threads(conv_unpool_loop, calls)
    by_cell = unpooled.view(num_steps * n, conv.groups, positions, channels)
    if conv.groups == 1:  # channels last in memory
        maps = by_cell.view(-1, conv.out_height, conv.out_width, channels).permute(0, 3, 1, 2)
    else:
        maps = by_cell.transpose(2, 3).reshape(-1, len(weight), conv.out_height, conv.out_width)
    return convolution.maps_to_input(maps, num_steps, weight, conv)
