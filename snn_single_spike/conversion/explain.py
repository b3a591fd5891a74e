"""Says what :func:`~snn_single_spike.convert` would do with a model, and why."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from snntorch._neurons.neurons import SpikingNeuron
from torch import nn

from ..functional import DEFAULT_GRADIENT
from .folded.modules import FOLDED, Converted
from .loops.find import find_loops
from .refusals.layers import ConversionError, convertible_kind, reject_neuron
from .whole import Options, convert_whole

__all__ = ["LoopReport", "NeuronReport", "Report", "explain"]


@dataclass(frozen=True)
class LoopReport:
    """A loop over time inside of a method."""

    layer: str
    """Path of the module; "" is the model."""
    method: str
    place: str
    """File and line."""
    converts: bool
    reason: str
    """Why it cannot run all steps at once, and the edit; "" if it can."""


@dataclass(frozen=True)
class NeuronReport:
    """A neuron of snnTorch."""

    layer: str
    kind: str
    becomes: str
    """The class of its single-spike form; "" if there is none."""
    reason: str
    """Why there is none, and the edit; "" if there is one."""


@dataclass(frozen=True)
class Report:
    """What :func:`~snn_single_spike.convert` would do with a model. ``str()`` prints it."""

    model: str
    converts: bool
    reason: str
    """Why the model as a whole does not convert, and the edit; "" if it does."""
    called: bool
    """Whether a converted copy has run on the inputs that :func:`explain` was given."""
    loops: tuple[LoopReport, ...]
    neurons: tuple[NeuronReport, ...]
    warnings: tuple[str, ...]

    def __str__(self) -> str:
        shown = ", as far as its source shows" if self.loops and not self.called else ""
        verdict = f"converts{shown}" if self.converts else f"does not convert. {self.reason}"
        lines = [f"{self.model} {verdict}"]
        fine = "runs all steps at once" if self.converts else "its source shows no obstacle"
        for loop in self.loops:
            how = fine if loop.converts else f"stays a loop. {loop.reason}"
            where = f"{loop.layer}.{loop.method}" if loop.layer else loop.method
            lines.append(f"  loop over time in {where}, {loop.place}: {how}")
        for neuron in self.neurons:
            how = f"becomes {neuron.becomes}" if neuron.becomes else neuron.reason
            lines.append(f"  neuron {neuron.layer!r} ({neuron.kind}): {how}")
        lines += [f"  warning: {warning}" for warning in self.warnings]
        if self.converts and self.loops and not self.called:
            lines.append(
                "  The first call compares the model with its loop. To see its result here, pass "
                "an input: explain(net, x)"
            )
        if self.converts and self.neurons:
            lines.append(
                "  The loss is not a part of the model. Neurons spike once, so losses on rates or "
                "counts, such as ce_rate_loss, ce_count_loss and mse_count_loss, have to change: "
                "see snn_single_spike.losses. convert(net, refractory=0) keeps every spike of "
                "Leaky, Synaptic and Lapicque"
            )
        return "\n".join(lines)


def explain(model: nn.Module, *args: Any, **kwargs: Any) -> Report:
    """
    Say what :func:`~snn_single_spike.convert` would do with a model, for each loop over time and
    each neuron, and why. The model is not changed.

    Example::

        print(explain(net))       # what the source shows
        print(explain(net, x))    # also runs a converted copy, and the check of its first call

    :param model: a model of snnTorch
    :type model: torch.nn.Module
    :param args, kwargs: inputs of the model. Without them nothing is run
    :return: the report; ``str(report)`` prints it
    :rtype: Report
    :raises TypeError: ``model`` is not a module
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, not {type(model).__name__}")
    called = bool(args or kwargs)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        reason = _refusal(model, args, kwargs) if called else _refusal(model)
    neurons = tuple(_neurons(model))
    return Report(
        model=type(model).__name__,
        converts=not reason,
        reason=reason,
        called=called,
        loops=tuple(_loops(model, neurons)),
        neurons=neurons,
        warnings=tuple(dict.fromkeys(str(warning.message) for warning in caught)),
    )


def _refusal(model: nn.Module, args: Any = (), kwargs: Any = None) -> str:
    """Why a model does not convert, or its converted copy does not run."""
    if isinstance(model, (Converted, SpikingNeuron)):
        return "It is converted already, or a single neuron"
    options = Options(None, False, DEFAULT_GRADIENT, "auto", "dense", 0, check=None)
    try:
        fast = convert_whole(model, options)
    except ConversionError as error:
        return str(error)
    devices = {x.device for x in (*model.parameters(), *model.buffers()) if x.device.type != "cpu"}
    if args or kwargs:
        with torch.random.fork_rng(devices):
            try:
                fast(*args, **kwargs)
            except Exception as error:
                return f"The converted model raises {type(error).__name__}: {error}"
    return ""


def _loops(model: nn.Module, neurons: tuple[NeuronReport, ...]) -> Iterator[LoopReport]:
    for path, part in model.named_modules():
        below = f"{path}." if path else ""
        refused = (n.layer for n in neurons if n.reason and n.layer.startswith(below))
        neuron = next(refused, None)
        for loop in find_loops(part).loops:
            reason = "" if loop.error is None else str(loop.error).removeprefix(f"{loop.place}: ")
            if neuron is not None:
                reason = f"It calls the neuron {neuron!r}"
            yield LoopReport(path, loop.method, loop.place, not reason, reason)


def _neurons(model: nn.Module) -> Iterator[NeuronReport]:
    for path, neuron in model.named_modules():
        if not isinstance(neuron, SpikingNeuron):
            continue
        kind, reason = convertible_kind(neuron), ""
        try:
            reject_neuron(path, neuron)
        except ConversionError as error:
            reason = str(error)
        becomes = FOLDED[kind].__mro__[2].__name__ if kind and not reason else ""
        yield NeuronReport(path, type(neuron).__name__, becomes, reason)
