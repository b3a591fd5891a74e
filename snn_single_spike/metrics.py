"""Accuracy, latency and energy of single-spike networks, without gradients and loops.

Every value other than 0 is a spike, whatever its height; NaN is no spike. To count spikes use
:func:`snn_single_spike.functional.spike_count`.
"""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Real
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .backends._types import state_dtype
from .functional import spike_count
from .ops.validation import (
    REDUCTIONS,
    check_choice,
    check_recording,
    check_targets,
    not_classes,
)
from .spikes import SpikeEvents, SpikeTimes
from .spikes.lazy import LazyTensor, to_dense

__all__ = [
    "ACCUMULATE_PJ",
    "MULTIPLY_ACCUMULATE_PJ",
    "Energy",
    "accuracy_membrane",
    "accuracy_temporal",
    "energy_estimate",
    "latency_to_decision",
]

ACCUMULATE_PJ = 0.9
"""Energy of a 32-bit float addition in 45 nm, in pJ. Horowitz, *Computing's energy problem (and
what we can do about it)*, ISSCC 2014."""
MULTIPLY_ACCUMULATE_PJ = 4.6
"""Energy of a 32-bit float multiplication (3.7 pJ) and addition (0.9 pJ); same source."""


@torch.no_grad()
def accuracy_temporal(spk_out: Tensor, targets: Tensor, mem_out: Tensor | None = None) -> float:
    """
    Fraction of samples whose right class spikes first.

    A sample without any spike counts as wrong (snnTorch reads it as class 0). If k classes spike
    first together and the right class is one of them, the sample counts 1/k: the expected value
    of a random choice between them (snnTorch takes the lowest index). With `mem_out` the class
    with the highest membrane in that step wins, which is the class that crossed its threshold by
    most.

    Example::

        spk, mem = net(x)
        metrics.accuracy_temporal(spk, targets, mem_out=mem)

    :param spk_out: spikes of shape `(T, B, C)`; only the first spike of a class counts. Or spike
        times of shape `(B, C)`, any negative value for a silent neuron
    :type spk_out: torch.Tensor or SpikeTimes

    :param targets: class indices of shape `(B,)`
    :type targets: torch.Tensor

    :param mem_out: decides between classes that spike together: the membrane of shape
        `(T, B, C)`, read at the step of the spike, or scores of shape `(B, C)`. A class with NaN
        loses. Defaults to None
    :type mem_out: torch.Tensor, optional

    :return: accuracy between 0 and 1
    :rtype: float

    :raises ValueError: a wrong shape, `T = 0`, an empty batch, batches that differ, a class
        index out of range (checked on the CPU)
    :raises TypeError: targets that are not integers
    """
    first = _first(spk_out)
    if first.shape[0] == 0:
        raise ValueError(
            f"spk_out has shape {tuple(spk_out.shape)}: no samples (B=0). Pass at least one sample"
        )
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
    Fraction of samples whose right class has the highest membrane. A class with NaN loses.

    :class:`snn_single_spike.losses.ce_membrane_loss` optimizes this accuracy.

    :param mem_out: membrane of shape `(T, B, C)`, or scores of shape `(B, C)` as from
        :class:`snn_single_spike.LeakyReadout`
    :type mem_out: torch.Tensor

    :param targets: class indices of shape `(B,)`
    :type targets: torch.Tensor

    :param reduction: reduction of a membrane over time: `"sum"`, `"max"` or `"last"`. Defaults to
        `"sum"`
    :type reduction: str, optional

    :return: accuracy between 0 and 1
    :rtype: float

    :raises ValueError: a wrong shape, `T = 0`, an empty batch, batches that differ, a class
        index out of range (checked on the CPU), an unknown reduction
    :raises TypeError: targets that are not integers
    """
    check_choice("reduction", reduction, REDUCTIONS)
    scores = _reduced(to_dense(mem_out), reduction)
    if scores.shape[0] == 0:
        raise ValueError(
            f"mem_out has shape {tuple(mem_out.shape)}: no samples (B=0). Pass at least one sample"
        )
    targets = check_targets(targets, scores)
    scores = scores.double().masked_fill(scores.isnan(), -torch.inf)
    right = (scores.argmax(1) == targets) & (scores.amax(1) > -torch.inf)
    return right.double().mean().item()


def _reduced(mem_out: Tensor, reduction: str) -> Tensor:
    """Scores (B, C): a membrane reduced over time as the loss reduces it, or given scores."""
    if isinstance(mem_out, Tensor) and mem_out.dim() == 2:
        return mem_out
    check_recording("mem_out", mem_out)
    if mem_out.dim() != 3:
        raise not_classes("mem_out", mem_out, ", or scores (batch, classes),")
    if reduction == "last":
        return mem_out[-1]
    if reduction == "max":
        return mem_out.amax(0)
    return mem_out.sum(0, dtype=state_dtype(mem_out.dtype))


def _scores(mem_out: Tensor, spk_out: Tensor, earliest: Tensor) -> Tensor:
    """Membranes (B, C) at the step of the decision; any value where no class spikes."""
    mem_out = to_dense(mem_out)
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
    # An interpolated time lies in the step before the step of the spike.
    step = earliest.nan_to_num(posinf=0.0).ceil().long().clamp(max=mem_out.shape[0] - 1)
    return mem_out.gather(0, step.expand(shape)[None])[0]


@torch.no_grad()
def latency_to_decision(spk_out: Tensor) -> Tensor:
    """
    Step of the first spike of any class: the time that the network needs to decide on a sample.

    Example::

        latency = metrics.latency_to_decision(spk)
        latency.nanmean(), latency.isnan().float().mean()   # mean of the decided; undecided

    :param spk_out: spikes of shape `(T, B, C)`, or spike times of shape `(B, C)`, any negative
        value for a silent neuron
    :type spk_out: torch.Tensor or SpikeTimes

    :return: steps of shape `(B,)`, floating-point; NaN for a sample without any spike, so a plain
        mean becomes NaN too
    :rtype: torch.Tensor

    :raises ValueError: a wrong shape, `T = 0`
    """
    earliest = _first(spk_out).amin(1)
    return torch.where(earliest.isfinite(), earliest, torch.nan)


def _check_samples(name: str, recording: Any) -> None:
    if recording.shape[1] == 0:
        raise ValueError(
            f"{name} has shape {tuple(recording.shape)}: no samples (B=0). Pass at least one sample"
        )


def _first(spk_out: Any) -> Tensor:
    """Step of the first spike (B, C), infinity for a silent neuron, from spikes or times."""
    if _has_times(spk_out) and spk_out.dim() == 3:
        return _finite_times(_steps(spk_out).double())
    spk_out = to_dense(spk_out)
    if isinstance(spk_out, Tensor) and spk_out.dim() == 2:
        return _finite_times(spk_out if spk_out.is_floating_point() else spk_out.double())
    fired = _fired(spk_out)
    _reject_membranes(spk_out, fired)
    if fired.dim() != 3:
        raise not_classes("spk_out", fired, ", or spike times (batch, classes),")
    # max returns the first of equal values, and every device supports it for bytes.
    found, step = fired.to(torch.uint8).max(0)
    return torch.where(found > 0, step.double(), torch.inf)


def _finite_times(times: Tensor) -> Tensor:
    return torch.where(times >= 0, times, torch.inf)


def _has_times(spk_out: object) -> bool:
    """Whether ``spk_out`` holds the times of its spikes; to_dense() checks an empty one."""
    return isinstance(spk_out, SpikeTimes) and not spk_out.folded and spk_out.numel() > 0


def _steps(spikes: SpikeTimes) -> Tensor:
    """Step of each spike (B, *features), -1 for a silent neuron or a height of 0 or NaN."""
    if spikes.height is None:
        return spikes.times
    return torch.where(spikes.height.abs() > 0, spikes.times, -1)


def _fired(spk_out: Any) -> Tensor:
    """Where dense spikes are other than 0, (T, B, *features) bool."""
    check_recording("spk_out", spk_out, differentiable=False)
    # A comparison of magnitudes excludes NaN and includes negative spikes.
    return spk_out if spk_out.dtype == torch.bool else spk_out.detach().abs() > 0


def _reject_membranes(spk_out: Tensor, fired: Tensor) -> None:
    """Spikes are 0 at most steps, or have one height for each neuron; membranes are neither."""
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
            f"spk_out has values other than 0 at more than half of the steps, from {low:g} to "
            f"{high:g} for one neuron: pass the spikes, not the membrane"
        )


class Energy(NamedTuple):
    """Result of :func:`energy_estimate`: all values per sample, averaged over the batch."""

    synaptic_operations: float
    """Number of spikes times fan-out."""
    joules: float
    """Energy of the synaptic operations."""
    dense_operations: float
    """Multiply-accumulates of one pass through the same layers without spikes: neurons times
    fan-out."""
    dense_joules: float
    """Energy of the dense operations."""


FanOut = float | Tensor | nn.Module


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
    Energy of synaptic operations per sample. In one synaptic operation a spike is added to the
    membrane of one neuron that it reaches.

    .. math::

            E = E_{\\rm AC} \\sum_{\\rm layers} \\text{spikes} × \\text{fan-out}, \\qquad
            E_{\\rm dense} = E_{\\rm MAC} \\sum_{\\rm layers} \\text{neurons} × \\text{fan-out}

    Constants: 32-bit floating point in 45 nm, 0.9 pJ to accumulate and 4.6 pJ to multiply and
    accumulate, Horowitz, ISSCC 2014. The estimate excludes memory, biases, and the leak and
    threshold of the neurons. It compares networks; it does not predict the energy of a chip.

    Example::

        # 784-1000-10: the input spikes reach 1000 neurons each, the hidden ones 10
        metrics.energy_estimate([x, spk1], [net.fc1, net.fc2]).joules

    :param spk_out: spikes of shape `(T, B, *features)` that go into a layer of synapses, or a
        sequence with the spikes into each layer. Every spike counts 1, whatever its height
    :type spk_out: torch.Tensor, SpikeTimes, SpikeEvents or sequence

    :param fan_out: number of synapses of each neuron: a number, a tensor that broadcasts to
        `features`, or the following linear layer (a module with `in_features` and
        `out_features`); a sequence for several layers
    :type fan_out: float, torch.Tensor, torch.nn.Linear, SingleSpikeLinear or sequence

    :param graded: spikes have heights, and a synaptic operation multiplies by the height: it then
        costs a multiply-accumulate. Defaults to False
    :type graded: bool, optional, keyword only

    :param accumulate_pj: energy to accumulate, in pJ. Defaults to 0.9
    :type accumulate_pj: float, optional, keyword only

    :param multiply_accumulate_pj: energy to multiply and accumulate, in pJ. Defaults to 4.6
    :type multiply_accumulate_pj: float, optional, keyword only

    :return: operations and joules per sample, of the spikes and of dense layers
    :rtype: Energy

    :raises ValueError: a wrong shape, `T = 0`, an empty batch, a fan-out that does not fit, another
        number of fan-outs than of layers
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
        counts = spike_count(_unit_spikes(spikes), per="neuron").view(spikes.shape[2:])
        _check_samples("spk_out", spikes)
        reach = _reach(fan, spikes, i)
        operations += (counts * reach).sum().item() / spikes.shape[1]
        dense += reach.sum().item()
    each = multiply_accumulate_pj if graded else accumulate_pj
    return Energy(
        operations, operations * each * 1e-12, dense, dense * multiply_accumulate_pj * 1e-12
    )


def _unit_spikes(spikes: Any) -> Any:
    """The same spikes with height 1: spike_count counts a spike by its height."""
    if _has_times(spikes):
        return spikes if spikes.height is None else SpikeTimes(_steps(spikes), spikes.num_steps)
    if isinstance(spikes, SpikeEvents) and not spikes.folded and spikes.numel() > 0:
        events = spikes.events()
        if events.values is None and spikes.height is None:
            return spikes
        if events.values is None or bool((events.values.abs() > 0).all()):
            return SpikeEvents(events._replace(values=None), spikes.num_steps, spikes.features)
    return _fired(to_dense(spikes)).float()


def _reach(fan_out: FanOut, spikes: Tensor, layer: int) -> Tensor:
    """Number of synapses of every neuron of a layer, float64 (*features)."""
    features = spikes.shape[2:]
    inputs, outputs = (getattr(fan_out, f"{end}_features", None) for end in ("in", "out"))
    if isinstance(inputs, int) and isinstance(outputs, int):
        if inputs != features[-1]:
            raise ValueError(
                f"fan_out of layer {layer} is a {type(fan_out).__name__} of {inputs} inputs, but "
                f"its spikes have shape {tuple(spikes.shape)}: pass the layer that these spikes go "
                "into"
            )
        fan_out = outputs
    if isinstance(fan_out, bool) or not isinstance(fan_out, Real | Tensor):
        raise TypeError(
            f"fan_out of layer {layer} is a {type(fan_out).__name__}: pass a number, one value per "
            "neuron or an nn.Linear. The fan-out of a convolution is kernel size times output "
            "channels divided by stride, except at the edges"
        )
    reach = torch.as_tensor(fan_out, dtype=torch.float64, device=spikes.device)
    try:
        return reach.expand(features)
    except RuntimeError:
        raise ValueError(
            f"fan_out of layer {layer} has shape {tuple(reach.shape)}, which does not broadcast to "
            f"the features {tuple(features)}: pass a number or one value per neuron"
        ) from None
