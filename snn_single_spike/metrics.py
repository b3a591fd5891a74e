"""Accuracy, latency, spike counts and energy of single-spike networks. No gradients, no loops.

A spike is a value other than 0, whatever its height; NaN is none.
"""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Real
from typing import NamedTuple

import torch
from torch import Tensor, nn

from .backends._types import state_dtype
from .modules.linear import SingleSpikeLinear
from .ops.validation import REDUCTIONS, check_choice, check_recording, check_targets
from .spikes.lazy import LazyTensor, materialize

__all__ = [
    "ACCUMULATE_PJ",
    "MULTIPLY_ACCUMULATE_PJ",
    "Energy",
    "accuracy_membrane",
    "accuracy_temporal",
    "energy_estimate",
    "latency_to_decision",
    "spike_counts",
]

ACCUMULATE_PJ = 0.9
"""A 32-bit float addition in 45 nm, in pJ. Horowitz, *Computing's energy problem (and what we
can do about it)*, ISSCC 2014."""
MULTIPLY_ACCUMULATE_PJ = 4.6
"""A 32-bit float multiplication (3.7 pJ) and addition (0.9 pJ); same source."""

COUNTED = ("train", "sample", "neuron")


def _first(spk_out: Tensor) -> Tensor:
    """Step of the first spike (B, C), infinity if silent, from spikes or from times."""
    spk_out = materialize(spk_out, "a metric")
    if isinstance(spk_out, Tensor) and spk_out.dim() == 2:
        times = spk_out if spk_out.is_floating_point() else spk_out.double()
        return torch.where(times >= 0, times, torch.inf)
    fired = _fired(spk_out)
    _refuse_membranes(spk_out, fired)
    if fired.dim() != 3:
        raise ValueError(
            f"spk_out has shape {tuple(fired.shape)}, but (time, batch, classes) is expected, or "
            "spike times (batch, classes): use spk_out.flatten(2)"
        )
    # max gives the first of equal values, and is defined for bytes on every device.
    found, step = fired.to(torch.uint8).max(0)
    return torch.where(found > 0, step.double(), torch.inf)


def _refuse_membranes(spk_out: Tensor, fired: Tensor) -> None:
    """Values nearly everywhere, and all kinds of them: no spikes."""
    if not spk_out.is_floating_point() or fired.device.type != "cpu":
        return
    if fired.sum() * 2 <= fired.numel():
        return
    heights = spk_out.detach().double().flatten(0, 1)
    least = torch.where(heights != 0, heights, torch.inf).amin(0)
    most = torch.where(heights != 0, heights, -torch.inf).amax(0)
    unequal = most > least
    if unequal.any():
        low, high = (x[unequal][0].item() for x in (least, most))
        raise ValueError(
            f"spk_out has values other than 0 at more than half of the steps, of one neuron from "
            f"{low:g} to {high:g}: pass the spikes, not the membrane"
        )


def _fired(spk_out: Tensor) -> Tensor:
    """Where there are spikes, (T, B, *features) bool."""
    spk_out = materialize(spk_out, "a metric")
    check_recording("spk_out", spk_out, differentiable=False)
    # Comparing magnitudes leaves NaN out; spikes may be negative.
    return spk_out if spk_out.dtype == torch.bool else spk_out.detach().abs() > 0


@torch.no_grad()
def accuracy_temporal(spk_out: Tensor, targets: Tensor, mem_out: Tensor | None = None) -> float:
    """
    Fraction of samples whose right class spikes first.

    A sample without any spike counts as wrong (snnTorch reads it as class 0). k classes that
    spike first together share the sample: the right one among them counts 1/k, which is what
    choosing between them at random gives on average (snnTorch takes the lowest index). With
    `mem_out` the one with the highest membrane in that step is chosen, that is, the one that
    crossed its threshold by most.

    Example::

        spk, mem = net(x)
        metrics.accuracy_temporal(spk, targets, mem_out=mem)

    :param spk_out: spikes of shape `(T, B, C)`, of which the first counts; or spike times of
        shape `(B, C)`, any negative value if silent
    :type spk_out: torch.Tensor

    :param targets: class indices of shape `(B,)`
    :type targets: torch.Tensor

    :param mem_out: decides between classes that spike together: membrane of shape `(T, B, C)`,
        read at the step of the spike, or scores of shape `(B, C)`. NaN loses. Defaults to None
    :type mem_out: torch.Tensor, optional

    :return: accuracy between 0 and 1
    :rtype: float

    :raises ValueError: a wrong shape, `T = 0`, an empty batch, batches that differ, a class
        index out of range (checked on the CPU)
    :raises TypeError: targets that are not integers
    """
    first = _first(spk_out)
    if first.shape[0] == 0:
        raise ValueError(f"spk_out has shape {tuple(spk_out.shape)}: no samples to be right about")
    targets = check_targets(targets, first)
    earliest = first.amin(1, keepdim=True)
    winners = (first == earliest) & first.isfinite()
    if mem_out is not None:
        scores = _scores(mem_out, spk_out, earliest)
        best = scores.masked_fill(~winners | scores.isnan(), -torch.inf)
        winners &= best == best.amax(1, keepdim=True)
    share = winners.double() / winners.sum(1, keepdim=True).clamp(min=1)
    return share.gather(1, targets[:, None]).mean().item()


@torch.no_grad()
def accuracy_membrane(mem_out: Tensor, targets: Tensor, reduction: str = "sum") -> float:
    """
    Fraction of samples whose right class has the highest membrane; what
    :class:`snn_single_spike.losses.ce_membrane_loss` trains. NaN loses.

    :param mem_out: membrane of shape `(T, B, C)`, or scores of shape `(B, C)` as from
        :class:`snn_single_spike.LeakyReadout`
    :type mem_out: torch.Tensor

    :param targets: class indices of shape `(B,)`
    :type targets: torch.Tensor

    :param reduction: of a membrane over time: `"sum"`, `"max"` or `"last"`. Defaults to `"sum"`
    :type reduction: str, optional

    :return: accuracy between 0 and 1
    :rtype: float

    :raises ValueError: a wrong shape, `T = 0`, an empty batch, batches that differ, a class
        index out of range (checked on the CPU), an unknown reduction
    :raises TypeError: targets that are not integers
    """
    check_choice("reduction", reduction, REDUCTIONS)
    scores = mem_out = materialize(mem_out, "a metric")
    if not (isinstance(mem_out, Tensor) and mem_out.dim() == 2):
        check_recording("mem_out", mem_out)
        if reduction == "last":
            scores = mem_out[-1]
        else:
            summed = reduction == "sum"
            state = state_dtype(mem_out.dtype)  # as the loss sums it
            scores = mem_out.sum(0, dtype=state) if summed else mem_out.amax(0)
    if scores.dim() != 2:
        raise ValueError(
            f"mem_out has shape {tuple(mem_out.shape)}, but (time, batch, classes) is expected, or "
            "scores (batch, classes): use mem_out.flatten(2)"
        )
    if scores.shape[0] == 0:
        raise ValueError(f"mem_out has shape {tuple(mem_out.shape)}: no samples to be right about")
    targets = check_targets(targets, scores)
    scores = scores.double().masked_fill(scores.isnan(), -torch.inf)
    right = (scores.argmax(1) == targets) & (scores.amax(1) > -torch.inf)
    return right.double().mean().item()


def _scores(mem_out: Tensor, spk_out: Tensor, earliest: Tensor) -> Tensor:
    """Membranes (B, C) at the step of the decision; anything where there is none."""
    mem_out = materialize(mem_out, "a metric")
    if not isinstance(mem_out, Tensor):
        raise TypeError(f"mem_out must be a torch.Tensor, not {type(mem_out).__name__}")
    shape = spk_out.shape[-2:]
    if mem_out.shape == shape:
        return mem_out
    if (
        mem_out.dim() != 3
        or mem_out.shape[1:] != shape
        or (spk_out.dim() == 3 and mem_out.shape != spk_out.shape)
    ):
        raise ValueError(
            f"mem_out has shape {tuple(mem_out.shape)}, but spk_out has {tuple(spk_out.shape)}: "
            f"pass the membrane of the same layer, or scores of shape {tuple(shape)}"
        )
    # An interpolated time lies in the step before that of the spike.
    step = earliest.nan_to_num(posinf=0.0).ceil().long().clamp(max=mem_out.shape[0] - 1)
    return mem_out.gather(0, step.expand(shape)[None])[0]


@torch.no_grad()
def latency_to_decision(spk_out: Tensor) -> Tensor:
    """
    Step of the first spike of any class: how long each sample takes to be decided.

    Example::

        latency = metrics.latency_to_decision(spk)
        latency.nanmean(), latency.isnan().float().mean()   # mean of the decided; undecided

    :param spk_out: spikes of shape `(T, B, C)`, or spike times of shape `(B, C)`, any negative
        value if silent
    :type spk_out: torch.Tensor

    :return: steps of shape `(B,)`, floating-point; NaN for a sample without any spike, so that
        a plain mean cannot pass over it unseen
    :rtype: torch.Tensor

    :raises ValueError: a wrong shape, `T = 0`
    """
    earliest = _first(spk_out).amin(1)
    return torch.where(earliest.isfinite(), earliest, torch.nan)


@torch.no_grad()
def spike_counts(spk_out: Tensor, per: str = "sample") -> Tensor:
    """
    Number of spikes.

    Example::

        metrics.spike_counts(spk).float().mean()              # spikes per sample
        metrics.spike_counts(spk, per="neuron") == 0          # neurons that never fired

    :param spk_out: spikes of shape `(T, B, *features)`
    :type spk_out: torch.Tensor

    :param per: `"sample"`, `"neuron"` (summed over the batch) or `"train"` (of each neuron in
        each sample). Defaults to `"sample"`
    :type per: str, optional

    :return: int64 counts of shape `(B,)`, `(*features)` or `(B, *features)`
    :rtype: torch.Tensor

    :raises ValueError: a wrong shape, `T = 0`, an unknown `per`
    """
    check_choice("per", per, COUNTED)
    trains = _fired(spk_out).sum(0)
    if per == "train":
        return trains
    return trains.flatten(1).sum(1) if per == "sample" else trains.sum(0)


class Energy(NamedTuple):
    """What :func:`energy_estimate` returns; everything per sample, averaged over the batch."""

    synaptic_operations: float
    """Spikes times fan-out."""
    joules: float
    """Energy of these."""
    dense_operations: float
    """Multiply-accumulates of the same layers without spikes, one pass: neurons times fan-out."""
    dense_joules: float
    """Energy of those."""


FanOut = float | Tensor | nn.Linear | SingleSpikeLinear


@torch.no_grad()
def energy_estimate(
    spk_out: Tensor | Sequence[Tensor],
    fan_out: FanOut | Sequence[FanOut],
    *,
    graded: bool = False,
    accumulate_pj: float = ACCUMULATE_PJ,
    multiply_accumulate_pj: float = MULTIPLY_ACCUMULATE_PJ,
) -> Energy:
    """
    Energy of synaptic operations per sample: every spike is added to the membrane of each
    neuron it reaches.

    .. math::

            E = E_{\\rm AC} \\sum_{\\rm layers} \\text{spikes} × \\text{fan-out}, \\qquad
            E_{\\rm dense} = E_{\\rm MAC} \\sum_{\\rm layers} \\text{neurons} × \\text{fan-out}

    Constants: 32-bit floating point in 45 nm, 0.9 pJ to accumulate and 4.6 pJ to multiply and
    accumulate, Horowitz, ISSCC 2014. Memory, leak and threshold of the neurons, and biases are
    not counted, so this compares networks; it does not predict a chip.

    Example::

        # 784-1000-10: the input spikes reach 1000 neurons each, the hidden ones 10
        metrics.energy_estimate([x, spk1], [net.fc1, net.fc2]).joules

    :param spk_out: spikes of shape `(T, B, *features)` that go into a layer of synapses, or a
        sequence of such, one for each layer
    :type spk_out: torch.Tensor or sequence

    :param fan_out: synapses of each neuron: a number, one value per neuron (a tensor that
        broadcasts to `features`) or the `nn.Linear` that follows; a sequence for several layers
    :type fan_out: float, torch.Tensor, torch.nn.Linear, SingleSpikeLinear or sequence

    :param graded: spikes have heights that must be multiplied: a synaptic operation then costs a
        multiply-accumulate. Defaults to False
    :type graded: bool, optional, keyword only

    :param accumulate_pj: energy to accumulate, in pJ. Defaults to 0.9
    :type accumulate_pj: float, optional, keyword only

    :param multiply_accumulate_pj: energy to multiply and accumulate, in pJ. Defaults to 4.6
    :type multiply_accumulate_pj: float, optional, keyword only

    :return: operations and joules per sample, and those of dense layers
    :rtype: Energy

    :raises ValueError: a wrong shape, `T = 0`, an empty batch, a fan-out that does not fit, as
        many fan-outs as layers not given
    :raises TypeError: a fan-out of another type
    """
    layers = [spk_out] if isinstance(spk_out, (Tensor, LazyTensor)) else list(spk_out)
    fans = list(fan_out) if isinstance(fan_out, Sequence) else [fan_out]
    if len(layers) != len(fans):
        raise ValueError(
            f"fan_out has {len(fans)} entries, but spk_out has {len(layers)} layers: pass one for "
            "each"
        )
    operations = dense = 0.0
    for i, (spikes, fan) in enumerate(zip(layers, fans, strict=True)):
        counts = spike_counts(spikes, per="neuron")
        if spikes.shape[1] == 0:
            raise ValueError(f"spk_out has shape {tuple(spikes.shape)}: no samples (B=0)")
        reach = _reach(fan, spikes, i)
        operations += (counts * reach).sum().item() / spikes.shape[1]
        dense += reach.sum().item()
    each = multiply_accumulate_pj if graded else accumulate_pj
    return Energy(
        operations, operations * each * 1e-12, dense, dense * multiply_accumulate_pj * 1e-12
    )


def _reach(fan_out: FanOut, spikes: Tensor, layer: int) -> Tensor:
    """Synapses of every neuron of a layer, float64 (*features)."""
    features = spikes.shape[2:]
    if isinstance(fan_out, nn.Linear | SingleSpikeLinear):
        if fan_out.in_features != features[-1]:
            raise ValueError(
                f"fan_out of layer {layer} is a Linear of {fan_out.in_features} inputs, but its "
                f"spikes have shape {tuple(spikes.shape)}: pass the layer that these spikes go into"
            )
        fan_out = fan_out.out_features
    if isinstance(fan_out, bool) or not isinstance(fan_out, Real | Tensor):
        raise TypeError(
            f"fan_out of layer {layer} is a {type(fan_out).__name__}: pass a number, one value per "
            "neuron or an nn.Linear. Of a convolution it is kernel size times output channels over "
            "stride, but for the edges"
        )
    reach = torch.as_tensor(fan_out, dtype=torch.float64, device=spikes.device)
    try:
        return reach.expand(features)
    except RuntimeError:
        raise ValueError(
            f"fan_out of layer {layer} has shape {tuple(reach.shape)}, which does not broadcast to "
            f"the features {tuple(features)}: pass a number or one value per neuron"
        ) from None
