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
from .._events import Events
from .._surrogate import Surrogate
from .._types import (
    ClosedFormAdjoint,
    ConvGradients,
    ConvNeurons,
    Convolution,
    GradientFactors,
    Neuron,
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


def _packed(weight: Tensor, groups: int) -> Tensor:
    """(O, C / groups, KH, KW) to (C, KH * KW, lanes), zeros in the padding."""
    out_channels, taps = len(weight) // groups, weight.shape[2:].numel()
    by_tap = weight.reshape(groups, out_channels, -1, taps).permute(0, 2, 3, 1)
    packed = weight.new_zeros(groups * weight.shape[1], taps, _lanes(out_channels))
    packed[..., :out_channels] = by_tap.flatten(0, 1)
    return packed


def _unpack(packed: np.ndarray, weight: Tensor, groups: int) -> None:
    """The sum over ranges of samples (ranges, C, KH * KW, lanes), as (O, C / groups, KH, KW)."""
    out_channels = len(weight) // groups
    total = torch.from_numpy(packed).sum(0)[..., :out_channels]
    weight.copy_(total.unflatten(0, (groups, -1)).permute(0, 3, 1, 2).reshape(weight.shape))


def _by_cell(parameter: Tensor, groups: int, beyond: float) -> Tensor:
    """(O, Q) to (groups * Q, lanes), ``beyond`` in the padding."""
    out_channels = len(parameter) // groups
    rows = parameter.view(groups, out_channels, -1).transpose(1, 2).flatten(0, 1)
    padded = rows.new_full((len(rows), _lanes(out_channels)), beyond)
    padded[:, :out_channels] = rows
    return padded


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
    groups = conv.groups
    if threshold is not None:
        beta, threshold = torch.broadcast_tensors(beta, threshold)
    decay = as_numpy(_by_cell(beta, groups, 0.0))
    drive = weight.new_zeros(len(weight)) if bias is None else bias
    theta = decay[:0] if threshold is None else as_numpy(_by_cell(threshold, groups, torch.inf))
    return arguments.ConvLayer(
        weight=as_numpy(_packed(weight, groups)),
        bias=as_numpy(_by_cell(drive[:, None], groups, 0.0)),
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
            mem=np.empty(shape, kind),
            slope=np.empty(shape if slopes else (0, shape[1]), kind),
            rows=np.empty((4, shape[1]), kind),
            first=np.empty(shape, np.int32),
            peaks=np.empty((0 if when is None else 2, *shape), kind),
            when=np.empty((0 if when is None else shape[0], shape[1]), np.int32),
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
    gradient = np.zeros((wanted, *neurons.weight.shape), kind)
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
        of_weight = gradient[k] if wanted else np.empty((0, 0, 0), kind)
        into = arguments.ConvGradients(of_weight, bias[k], as_array(grad_inputs, 3, dtype))
        calls.append((*samples, *plain(state), *given, *plain(into)))
    in_threads(conv_backward_closed_form_loop, calls)
    if grad_weight is not None and grad_bias is not None:
        _unpack(gradient, grad_weight, conv.groups)
        total = torch.from_numpy(bias).sum(0)[:, : neurons.out_channels]
        grad_bias.copy_(total.flatten())


def _to_cells(features: Tensor, conv: Convolution) -> Tensor:
    """(..., O * positions) in the order of cells: channels of a group side by side."""
    by_group = features.unflatten(-1, (conv.groups, -1, conv.positions))
    return by_group.transpose(-1, -2).flatten(-3)


def _to_features(cells: Tensor, conv: Convolution) -> Tensor:
    """The inverse of :func:`_to_cells`."""
    by_cell = cells.unflatten(-1, (conv.groups, conv.positions, -1))
    return by_cell.transpose(-1, -2).flatten(-3)


def _cell_gradient(grad_spikes: GradientFactors, conv: Convolution) -> GradientFactors:
    """The gradient to the spikes in the order of cells."""
    if grad_spikes.weight is not None:
        return grad_spikes._replace(weight=_to_cells(grad_spikes.weight, conv).contiguous())
    return GradientFactors(
        lambda samples: _to_cells(grad_spikes.rows(samples), conv).contiguous(), None
    )


def _cell_neuron(layer: ConvNeurons, conv: Convolution) -> Neuron:
    neuron = layer.neuron(conv.positions)
    return neuron._replace(
        beta=_to_cells(neuron.beta, conv).contiguous(),
        threshold=_to_cells(neuron.threshold, conv).contiguous(),
    )


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
    packed = as_numpy(_packed(weight, conv.groups))
    bias = as_numpy(_by_cell(layer.bias[:, None], conv.groups, 0.0))
    threads = torch.get_num_threads()
    gradient = np.zeros((threads, *packed.shape), packed.dtype)
    neuron, gradients = _cell_neuron(layer, conv), _cell_gradient(grad_spikes, conv)
    first = _to_cells(times, conv).to(torch.int64)
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
            out.current[:, part] = _to_features(lam, conv)
    if out.weight is not None:
        _unpack(gradient, out.weight, conv.groups)
        for total, into in zip(totals, (out.bias, out.beta, out.threshold), strict=True):
            assert into is not None
            of_channel = _to_features(total, conv).view(len(into), -1)
            into.copy_(of_channel.sum_to_size(into.view(len(into), -1).shape).view(into.shape))


def conv_to_input(
    events: Events, num_steps: int, weight: Tensor, conv: Convolution, lam: Tensor
) -> Tensor:
    if not conv.pools:
        return convolution.to_input(lam, None, weight, conv)
    n, channels = lam.shape[1], len(weight) // conv.groups
    packed = as_numpy(_packed(weight, conv.groups))
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
