"""Launches the Triton kernels for convolutions from spike times.

Spikes are sorted by the tile of neurons that they reach, and by channel for the gradient of the
weights. No tensor has the size of the dense current. A surrogate rule reads every step: its
backward pass writes the membrane of a few samples, runs the reverse scan of :mod:`.neuron` over it,
and gathers the adjoint at the spikes. Kernels keep neurons in the order of cells, so that the
channels that a spike reaches lie side by side.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget

from snn_single_spike.kernels.triton.conv_backward import (
    conv_backward_input_kernel,
    conv_backward_weight_kernel,
)
from snn_single_spike.kernels.triton.conv_forward import conv_first_spikes_kernel

from .. import _convolution as convolution
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
from ..adjoint import sum_over_time
from ._launch import LAUNCH, gpu, on_device_of, state_type, warp_size
from ._tiles import Spikes, by_channel, by_tile, places_of, tile_of, windows
from .neuron import neuron_backward

EVENTS = 4  # spikes loaded ahead, where the registers allow
_MOST_MEMBERS = 64  # of a window
_CHANNELS, _WEIGHTS = 32, 128  # channels, and taps times channels, of a backward program
_PROGRAMS = 2048  # that sum the gradient of the weights, where there are enough spikes
_PIECE_BYTES = 64 << 20  # of the membrane, and of the adjoint, of some samples


def _kernel(weight: Tensor) -> tuple[int, int]:
    return weight.shape[2], weight.shape[3]


def _sizes(weight: Tensor, conv: Convolution) -> dict[str, int]:
    """The sizes that all kernels read."""
    windows_y, windows_x = windows(conv)
    height, width = _kernel(weight)
    return {
        "O": len(weight) // conv.groups,
        "windows_y": windows_y,
        "windows_x": windows_x,
        "stride_y": conv.stride_y,
        "stride_x": conv.stride_x,
        "dilation_y": conv.dilation_y,
        "dilation_x": conv.dilation_x,
        "KH": height,
        "KW": width,
        "POOL_Y": conv.pool_y,
        "POOL_X": conv.pool_x,
    }


def _by_cell(parameter: Tensor, conv: Convolution) -> Tensor:
    """A parameter (O, Q) as (groups, Q, O / groups)."""
    return parameter_of_cells(parameter, conv.groups, len(parameter) // conv.groups)


def _packed(weight: Tensor, conv: Convolution) -> Tensor:
    return weight_of_cells(weight, conv.groups, len(weight) // conv.groups)


def spikes_ahead(conv: Convolution) -> int:
    """Spikes whose weights the forward kernel loads ahead."""
    members = conv.pool_y * conv.pool_x
    if members > _MOST_MEMBERS:
        raise RuntimeError(
            f"the Triton kernels have no maximum of windows of {conv.pool_y} x {conv.pool_x}: they "
            f"keep one current for each of at most {_MOST_MEMBERS} positions of a window; use "
            "backend='torch' for this layer"
        )
    return max(1, 4 * EVENTS // max(members, 4))


def _walk(
    spikes: Spikes,
    num_steps: int,
    layer: ConvNeurons,
    conv: Convolution,
    reset: str,
    outputs: dict[str, Tensor | None],
) -> None:
    """Launch the forward kernel; ``outputs`` by name of its arguments."""
    sizes = _sizes(layer.weight, conv)
    dtype, channels = layer.weight.dtype, sizes["O"]
    tile = tile_of(conv, channels, dtype, warp_size() is None)
    tiles_y, tiles_x = tile.counts(conv)
    beta, threshold = torch.broadcast_tensors(layer.beta, layer.threshold)
    tiles = spikes.num_samples * conv.groups * tiles_y * tiles_x
    grid = (tiles, triton.cdiv(channels, tile.channels))
    conv_first_spikes_kernel[grid](
        **by_tile(spikes, conv, _kernel(layer.weight), tile),
        weight=_packed(layer.weight, conv),
        bias=_by_cell(layer.bias[:, None], conv),
        beta=_by_cell(beta, conv),
        threshold=_by_cell(threshold, conv),
        **outputs,
        T=num_steps,
        groups=conv.groups,
        tiles_y=tiles_y,
        tiles_x=tiles_x,
        **sizes,
        size=spikes.num_samples * len(layer.weight) * conv.positions,
        EACH=beta.shape[1] > 1,
        RESET=reset,
        STATE=state_type(dtype),
        PY=tile.y,
        PX=tile.x,
        CH=tile.channels,
        U=spikes_ahead(conv),
        **LAUNCH,
    )


_NO_OUTPUTS: dict[str, Tensor | None] = dict.fromkeys(
    ("spiked", "first_spikes", "mem", "winner", "crossing", "sensitivity", "peaks")
)


def conv_first_spikes(
    events: Events,
    num_steps: int,
    layer: ConvNeurons,
    conv: Convolution,
    times: Tensor,
    crossing: Tensor | None,
    sensitivity: Tensor | None,
    when: Tensor | None = None,
) -> None:
    outputs = {"first_spikes": times, "crossing": crossing, "sensitivity": sensitivity}
    outputs["peaks"] = when
    wanted = {name: x for name, x in outputs.items() if x is not None}
    found: dict[str, Tensor | None] = {name: torch.empty_like(x) for name, x in wanted.items()}
    with on_device_of(times):
        spikes = places_of(events, conv, layer.weight.dtype)
        _walk(spikes, num_steps, layer, conv, "none", _NO_OUTPUTS | found)
    for name, cells in found.items():
        assert cells is not None
        wanted[name].copy_(to_features(cells, conv))


def _winners(
    spikes: Spikes,
    num_steps: int,
    layer: ConvNeurons,
    conv: Convolution,
    **other: Tensor,
) -> Tensor | None:
    """The member of each window that has the maximum, at every step; None without windows.

    ``other`` is the spikes of the neurons, and the membrane to be written, if one is wanted.
    """
    winner = None
    if conv.pools:
        shape = (num_steps, spikes.num_samples, len(layer.weight) * conv.positions)
        winner = torch.empty(shape, dtype=torch.uint8, device=layer.weight.device)
    if winner is not None or "mem" in other:
        outputs = _NO_OUTPUTS | other | {"winner": winner}
        _walk(spikes, num_steps, layer, conv, layer.reset, outputs)
    return winner


def _winners_of(events: Events, num_steps: int, weight: Tensor, conv: Convolution) -> Tensor:
    """:func:`_winners` from the spikes alone."""
    zeros, ones = (weight.new_full((len(weight), *x), y) for x, y in (((), 0.0), ((1,), 1.0)))
    layer = ConvNeurons(weight, zeros, ones, ones, "none")
    with on_device_of(weight):
        winner = _winners(places_of(events, conv, weight.dtype), num_steps, layer, conv)
    assert winner is not None
    return winner


def _pieces(num_steps: int, neurons: int, batch: int, dtype: torch.dtype) -> list[slice]:
    """Samples whose tensors over all steps have few bytes."""
    size = max(_PIECE_BYTES // (num_steps * neurons * dtype.itemsize), 1)
    return [slice(low, min(low + size, batch)) for low in range(0, batch, size)]


def _part(events: Events, samples: slice) -> Events:
    """The events of some samples, with offsets from 0."""
    part = events.part(samples)
    return part._replace(offsets=part.offsets - part.offsets[0])


_NO_CLOSED_FORM: dict[str, Tensor | None] = dict.fromkeys(("at", "before", "when", "log_decay"))


def _gathered(
    spikes: Spikes,
    weight: Tensor,
    conv: Convolution,
    adjoint: dict[str, Tensor | None],
    each: bool,
) -> dict[str, Any]:
    """Arguments of the kernels that gather an adjoint at the spikes."""
    sizes = _sizes(weight, conv)
    per_sample = len(weight) * conv.positions
    return {
        **adjoint,
        **sizes,
        "group_size": conv.channels // conv.groups,
        "per_sample": per_sample,
        "size": spikes.num_samples * per_sample,
        "EACH": each,
        "STATE": state_type(weight.dtype),
        **patch_of(sizes["KH"] * sizes["KW"], sizes["O"], warp_size() is None),
        **LAUNCH,
    }


def patch_of(
    taps: int, channels: int, interpreted: bool, weights: int = _WEIGHTS
) -> dict[str, int]:
    """Taps and channels per program; all in the interpreter, whose cost is per program."""
    taps, channels = (triton.next_power_of_2(x) for x in (taps, channels))
    if not interpreted:
        channels = min(channels, _CHANNELS)
        taps = min(taps, weights // channels)
    return {"TAPS": taps, "CH": channels}


def gathered_ahead(
    conv: Convolution, dtype: torch.dtype, channels: int, weighted: bool, target: GPUTarget | None
) -> int:
    """Spikes whose adjoint is loaded ahead; ``weighted`` ones have heights.

    The scalar registers of AMD hold fewer masks. For GPUs before sm_90, and where 16 does not
    divide the channels, ptxas spreads the loads of four spikes with heights over three round trips
    to the memory, and those of two over one.
    """
    few = conv.pools or dtype == torch.float64
    if target is not None:
        old = target.backend == "cuda" and target.arch < 90
        few = few or target.warp_size != 32 or (weighted and (old or channels % 16 != 0))
    return EVENTS // 2 if few else EVENTS


def _weight_gradient(
    spikes: Spikes, num_steps: int, weight: Tensor, conv: Convolution, gathered: dict[str, Any]
) -> Tensor:
    """The gradient of the weights by the adjoint at the spikes."""
    taps = _kernel(weight)[0] * _kernel(weight)[1]
    channels, warp = len(weight) // conv.groups, warp_size()
    if warp is not None and channels % 16:
        # One weight for each thread. Rows are not aligned: Triton would load four for a thread in
        # two orders of the threads, and exchange values at every spike.
        gathered = gathered | patch_of(taps, channels, False, warp)
    blocks = (triton.cdiv(taps, gathered["TAPS"]), triton.cdiv(channels, gathered["CH"]))
    parts = 1
    if warp is not None:
        parts = max(_PROGRAMS // (conv.channels * blocks[0] * blocks[1]), 1)
    sums = weight.new_empty(parts, conv.channels, taps, channels)
    grid = (conv.channels * parts, *blocks)
    conv_backward_weight_kernel[grid](
        **by_channel(spikes, conv),
        **gathered,
        grad_weight=sums,
        T=num_steps,
        C=conv.channels,
        parts=parts,
        U=gathered_ahead(conv, weight.dtype, channels, spikes.values is not None, gpu()),
    )
    return weight_from_cells(sums.sum(0), weight, conv.groups)


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
    _, at, before, when = adjoint
    assert at is not None
    assert when is not None
    before = torch.zeros_like(at) if before is None else before
    batch, neurons = at.shape
    packed, rate = _packed(weight, conv), _by_cell(beta.double().log2().to(beta.dtype), conv)
    # The bias is the same for all members of a window, and changes no winner.
    layer = ConvNeurons(weight, weight.new_zeros(len(weight)), beta, beta, "none")
    pieces = [slice(0, batch)]
    if conv.pools:  # the winners of windows are written at every step
        pieces = _pieces(num_steps, neurons, batch, torch.uint8)
    with on_device_of(weight):
        for samples in pieces:
            spikes = places_of(_part(events, samples), conv, weight.dtype)
            closed_form: dict[str, Tensor | None] = {
                name: to_cells(x[samples], conv).contiguous()
                for name, x in (("at", at), ("before", before), ("when", when.int()))
            }
            closed_form["log_decay"] = rate
            closed_form["winner"] = _winners(spikes, num_steps, layer, conv)
            gathered = _gathered(spikes, weight, conv, closed_form, beta.shape[1] > 1)
            if grad_weight is not None:
                lam = {"lam": None}
                grad_weight += _weight_gradient(spikes, num_steps, weight, conv, lam | gathered)
            if grad_inputs is not None and len(spikes.times):
                conv_backward_input_kernel[(len(spikes.times),)](
                    times=spikes.times,
                    channels=spikes.channels,
                    samples=spikes.samples,
                    rows=spikes.rows,
                    columns=spikes.columns,
                    units=spikes.units,
                    **gathered,
                    weight=packed,
                    grad_inputs=grad_inputs[:, samples],
                    num_units=conv.units,
                    inputs=grad_inputs.stride(0),
                )
    if grad_bias is not None:
        decay = beta.expand(len(beta), conv.positions).flatten()
        total = sum_over_time(num_steps, decay, adjoint)
        grad_bias += total.view(len(grad_bias), -1).sum(1)


def conv_backward_scan(layer: ConvNeurons, conv: Convolution) -> convolution.Scan:
    return functools.partial(_conv_backward_scan, layer, conv)


def _conv_backward_scan(
    layer: ConvNeurons,
    conv: Convolution,
    events: Events,
    num_steps: int,
    times: Tensor,
    grad_spikes: GradientFactors,
    rule: str,
    surrogate: Surrogate,
    out: ConvGradients,
) -> Tensor | None:
    weight = layer.weight
    batch, neurons = times.shape
    neuron, gradients = neuron_of_cells(layer, conv), gradient_of_cells(grad_spikes, conv)
    totals = weight.new_zeros(3, neurons)
    winners = []
    for samples in _pieces(num_steps, neurons, batch, weight.dtype):
        n = samples.stop - samples.start
        mem, lam = (weight.new_empty(num_steps, n, neurons) for _ in range(2))
        beta, threshold = (weight.new_empty(n * neurons) for _ in range(2))
        spiked = to_cells(times[samples], conv).contiguous()
        with on_device_of(weight):
            spikes = places_of(_part(events, samples), conv, weight.dtype)
            winner = _winners(spikes, num_steps, layer, conv, spiked=spiked, mem=mem)
            neuron_backward(
                num_steps,
                weight.dtype,
                Saved(mem.flatten(1)),
                neuron,
                spiked.flatten(),
                OutputGradients(gradients.to_dense(samples).flatten(1)),
                rule,
                surrogate,
                {"current": lam.flatten(1), "beta": beta, "threshold": threshold},
            )
            if out.weight is not None:
                adjoint = {"lam": lam, **_NO_CLOSED_FORM, "winner": winner}
                gathered = _gathered(spikes, weight, conv, adjoint, each=False)
                out.weight.add_(_weight_gradient(spikes, num_steps, weight, conv, gathered))
        sums = (x.view(n, neurons).sum(0) for x in (beta, threshold))
        totals += torch.stack((lam.sum((0, 1)), *sums))
        if out.current is not None:
            out.current[:, samples] = to_features(lam, conv)
            if winner is not None:
                winners.append(winner)
    for total, into in zip(totals, (out.bias, out.beta, out.threshold), strict=True):
        if into is not None:
            into.copy_(sum_to_parameter(total, into, conv))
    return torch.cat(winners, 1) if winners else None


def conv_to_input(weight: Tensor, conv: Convolution) -> convolution.ToInput:
    return functools.partial(_conv_to_input, weight, conv)


def _conv_to_input(
    weight: Tensor,
    conv: Convolution,
    events: Events,
    num_steps: int,
    lam: Tensor,
    winner: Tensor | None,
) -> Tensor:
    """The transposed convolution (T, n, units) of the adjoint (T, n, O * positions)."""
    n = lam.shape[1]
    maps = lam.reshape(num_steps * n, len(weight), -1)
    if conv.pools:
        if winner is None:
            winner = _winners_of(events, num_steps, weight, conv)
        maps = _unpooled(maps, to_features(winner, conv).view(maps.shape).long(), conv)
    maps = maps.view(len(maps), len(weight), conv.out_height, conv.out_width)
    with torch.autocast(lam.device.type, enabled=False):
        return convolution.maps_to_input(maps, num_steps, weight, conv)


def _unpooled(lam: Tensor, winner: Tensor, conv: Convolution) -> Tensor:
    """The gradient (..., out_height * out_width) of the maps before the maximum of windows."""
    window = torch.arange(conv.positions, device=lam.device)
    y, x = window // windows(conv)[1], window % windows(conv)[1]
    y = y * conv.pool_y + winner // conv.pool_x
    x = x * conv.pool_x + winner % conv.pool_x
    maps = lam.new_zeros(*lam.shape[:-1], conv.out_height * conv.out_width)
    return maps.scatter_(-1, y * conv.out_width + x, lam)
