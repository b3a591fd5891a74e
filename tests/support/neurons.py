"""Synaptic, Alpha, Lapicque and one-to-one RLeaky: ours, snnTorch's, and the reference."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import snntorch as snn
import torch
from snntorch import surrogate
from torch import Tensor, nn

from snn_single_spike import (
    SingleSpikeAlpha,
    SingleSpikeLapicque,
    SingleSpikeLeaky,
    SingleSpikeRLeaky,
    SingleSpikeSynaptic,
)
from snn_single_spike.ops.validation import RESETS

from tests.support import sequential
from tests.support.devices import device_of
from tests.support.oracle import relative_error

Results = dict[str, Tensor]
"""Outputs by name, and gradients: "dx", "dweight", "dbeta", "d_mem" of the initial "mem"."""


# snnTorch's surrogates, whose derivatives are fused, and functions that have these derivatives
SURROGATES: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "atan": (surrogate.atan(alpha=3.0), lambda u: torch.atan(torch.pi / 2 * 3 * u) / torch.pi),
    "fast_sigmoid": (surrogate.fast_sigmoid(slope=4), lambda u: u / (1 + 4 * u.abs())),
    "sigmoid": (surrogate.sigmoid(slope=5), lambda u: torch.sigmoid(5 * u)),
}


# Random parameters lie in these ranges.
RANGES = {
    "alpha": (0.7, 0.95),
    "beta": (0.05, 0.65),
    "threshold": (0.5, 1.5),
    "V": (-1.0, 1.0),
    "R": (2.0, 2.0),
    "C": (1.0, 1.0),
    "time_step": (0.3, 1.9),
}
LEARN = {"alpha", "beta", "threshold", "V"}
ATTRIBUTES = {"factor": "graded_spikes_factor"}


@dataclass(frozen=True)
class Kind:
    """A neuron: snnTorch's class, ours, one step of the reference, and their arguments."""

    theirs: type
    ours: type
    step: sequential.Step
    states: tuple[str, ...]  # in the order of the arguments
    parameters: tuple[str, ...]

    @property
    def outputs(self) -> tuple[str, ...]:
        return ("spk", *(name for name in self.states if name != "spk"))


LIF = ("beta", "threshold")
_KINDS = (
    Kind(snn.Synaptic, SingleSpikeSynaptic, sequential.synaptic, ("syn", "mem"), ("alpha", *LIF)),
    Kind(
        *(snn.Alpha, SingleSpikeAlpha, sequential.alpha),
        *(("syn_exc", "syn_inh", "mem"), ("alpha", *LIF)),
    ),
    Kind(
        *(snn.Lapicque, SingleSpikeLapicque, sequential.lapicque),
        *(("mem",), ("R", "C", "time_step", "threshold")),
    ),
    Kind(snn.RLeaky, SingleSpikeRLeaky, sequential.rleaky, ("spk", "mem"), ("V", *LIF)),
)
KINDS = {kind.theirs.__name__: kind for kind in _KINDS}
LEAKY = Kind(snn.Leaky, SingleSpikeLeaky, sequential.leaky, ("mem",), LIF)
NEURONS = {"Leaky": LEAKY} | KINDS


@dataclass(frozen=True, eq=False)
class Case:
    """Arguments of a linear layer and its neurons, and the weights of each output in the loss."""

    x: Tensor
    weight: Tensor
    parameters: Results
    states: Results
    loss: Results
    reset: str = "subtract"
    rule: str = "masked"
    surrogate: str = "fast_sigmoid"
    refractory: int | None = None


@functools.cache
def make(
    kind: Kind,
    shape: tuple[int, ...] = (12, 3, 5),
    *,
    size: tuple[int, ...] | None = None,
    given: bool = True,
    dtype: torch.dtype = torch.float64,
    **options: str,
) -> Case:
    """
    Random arguments. The first sample is strong and the last is weak, so neurons fire early, late
    and never. Membranes start below the threshold.

    :param size: of the parameters, one per neuron by default
    :param given: there are initial states
    """
    draw = torch.Generator().manual_seed(1)

    def normal(*size: int) -> Tensor:
        return torch.randn(size, generator=draw, dtype=dtype)

    strength = torch.linspace(2.0, 0.05, shape[1], dtype=dtype).view(-1, *[1] * len(shape[2:]))
    parameters = {}
    for name in kind.parameters:
        low, high = RANGES[name]
        # snnTorch takes R and C as numbers only
        of = () if name in ("R", "C") else shape[2:] if size is None else size
        parameters[name] = low + (high - low) * torch.rand(of, generator=draw, dtype=dtype)
    states = {name: normal(*shape[1:]) * strength for name in kind.states}
    states["mem"].clamp_(max=0.4)
    return Case(
        normal(*shape) * strength,
        torch.eye(shape[-1], dtype=dtype) + 0.1 * normal(shape[-1], shape[-1]),
        parameters,
        states if given else {},
        {name: normal(*shape) for name in kind.outputs},
        **options,
    )


def leaf(value: Tensor, device: str = "cpu") -> Tensor:
    return value.detach().to(device, copy=True).requires_grad_()


def leaves_of(case: Case, device: str = "cpu") -> Results:
    values = {"x": case.x, "weight": case.weight}
    values |= {"_" + name: value for name, value in case.states.items()}
    return {name: leaf(value, device) for name, value in values.items()}


def build(
    cls: type, kind: Kind, case: Case, spike_grad: Any = None, **options: Any
) -> tuple[nn.Module, Results]:
    """A neuron with all parameters learned, and these parameters."""
    parameters = {name: value.clone() for name, value in case.parameters.items()}
    factor = parameters.pop("factor", None)  # a buffer, and not an argument of these neurons
    learn = {name: "learn_recurrent" if name == "V" else "learn_" + name for name in LEARN}
    options |= {learn[name]: True for name in parameters if name in LEARN}
    if "V" in parameters:
        options["all_to_all"] = False
    repair = cls is snn.Alpha and options.pop("learn_alpha")  # which raises in snnTorch 1.0
    neuron = cls(**parameters, **options, spike_grad=spike_grad, reset_mechanism=case.reset)
    if repair:
        del neuron.alpha
        neuron.alpha = nn.Parameter(parameters["alpha"])
    learned = {name: getattr(neuron, name) for name in parameters if name in LEARN}
    if factor is not None:
        neuron.graded_spikes_factor = learned["factor"] = factor.requires_grad_()
    return neuron, learned


def results(case: Case, outputs: Results, leaves: Results) -> Results:
    """Outputs, and the gradients of their weighted sum."""
    total = torch.zeros(())
    for name, weights in case.loss.items():
        out = outputs[name]
        out = out if out.dim() == weights.dim() else out.sum(0)  # weights of no single step
        total = total + (out * weights.to(out.device)).sum().cpu()
    asked = {name: value for name, value in leaves.items() if value.requires_grad}
    if total.requires_grad:
        grads = torch.autograd.grad(total, list(asked.values()), allow_unused=True)
    else:  # e.g. of the initial membrane of Alpha, which changes no output
        grads = [None] * len(asked)
    found = {name: value.detach().cpu() for name, value in outputs.items()}
    for (name, value), grad in zip(asked.items(), grads, strict=True):
        found["d" + name] = torch.zeros_like(value) if grad is None else grad
    return found


@functools.cache
def run_theirs(kind: Kind, case: Case) -> Results:
    """
    BPTT through snnTorch's neuron. A detached gate passes one spike, also to the feedback.

    snnTorch resets at every crossing, so outputs after the second crossing are not "valid".
    """
    smooth = SURROGATES[case.surrogate][1]

    def fire(u: Tensor) -> Tensor:  # snnTorch's surrogates round to float32
        return (u > 0).to(u) + (smooth(u) - smooth(u).detach())

    neuron, learned = build(kind.theirs, kind, case, fire)
    leaves = leaves_of(case)
    current = leaves["x"] @ leaves["weight"]
    zeros = torch.zeros_like(current[0])
    state = [leaves.get("_" + name, zeros) for name in kind.states]
    fired, record = zeros.bool(), []
    crossings, before = zeros.int(), []
    for x in current:
        spk, *rest = neuron(x, *state)
        spk = spk * ~fired
        fired = fired | (spk > 0)
        state = [spk, *rest] if "spk" in kind.states else rest
        record.append((spk, *rest))
        before.append(crossings)
        crossings = crossings + (rest[-1] > neuron.threshold)
    valid = (torch.stack(before) < 2) | (case.reset == "none")
    outputs = dict(zip(kind.outputs, map(torch.stack, zip(*record, strict=True)), strict=True))
    outputs = {name: torch.where(valid, value, 0.0) for name, value in outputs.items()}
    return results(case, outputs, leaves | learned) | {"valid": valid}


@functools.cache
def run_reference(kind: Kind, case: Case, smooth: Any = None) -> Results:
    learned = {
        name: leaf(value)
        for name, value in case.parameters.items()
        if name in LEARN | ATTRIBUTES.keys()
    }
    leaves = leaves_of(case)
    trace = sequential.run(
        kind.step,
        leaves["x"] @ leaves["weight"],
        case.parameters | learned,
        {name: leaves["_" + name] for name in case.states},
        smooth or SURROGATES[case.surrogate][1],
        case.rule,
        case.reset,
        case.refractory,
    )
    return results(case, {"spk": trace.spikes, **trace.states}, leaves | learned)


def run_ours(
    kind: Kind, case: Case, backend: str, spike_grad: Any = None, only: str = "", **options: Any
) -> Results:
    """``only`` names the one leaf with a gradient. Defaults to all leaves."""
    device = device_of(backend)
    options |= {"gradient": case.rule, "backend": backend, "refractory": case.refractory}
    spike_grad = spike_grad or SURROGATES[case.surrogate][0]
    neuron, _ = build(kind.ours, kind, case, spike_grad, **options)
    neuron = neuron.to(device)
    leaves = leaves_of(case, device)
    for name in case.parameters:
        if name in LEARN | ATTRIBUTES.keys():
            leaves[name] = getattr(neuron, ATTRIBUTES.get(name, name))
    for name, value in leaves.items():
        value.requires_grad_(only in ("", name))
    given = {name: leaves["_" + name] for name in case.states}
    out = neuron(leaves["x"] @ leaves["weight"], **given)
    out = out if isinstance(out, tuple) else (out,)
    assert len(out) == len(kind.outputs) or options.get("init_hidden")
    return results(case, dict(zip(kind.outputs, out, strict=False)), leaves)


def assert_same(actual: Results, expected: Results, gradients: float = 1e-9) -> None:
    """Spikes at the same steps, states equal to rounding, gradients close."""
    assert torch.equal(actual["spk"] != 0, expected["spk"] != 0)
    for key, mine in actual.items():
        error = relative_error(mine, expected[key])
        tolerance = gradients if key.startswith("d") else 1e-12
        assert error <= tolerance, f"{key} differs by {error:.1e} relative"


def assert_is_bptt(kind: Kind, case: Case, run: Callable[[Case], Results]) -> Results:
    """Equal to snnTorch up to the second crossing, for a loss on these steps."""
    theirs = run_theirs(kind, case)
    valid = theirs["valid"]
    ours = run(replace(case, loss={name: w * valid for name, w in case.loss.items()}))
    ours |= {name: torch.where(valid, ours[name], 0.0) for name in kind.outputs}
    assert_same(ours, theirs, 1e-10)
    return theirs


# Of the parameters, None is one per neuron
CASES = [(None, reset) for reset in RESETS] + [((), "subtract")]


@functools.cache
def dense_case(neuron: str, rule: str, reset: str) -> Case:
    """A small case of graded spikes, by the name of the neuron."""
    case = make(NEURONS[neuron], (8, 3, 3), rule=rule, reset=reset)
    factor = torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64)
    return replace(case, parameters=case.parameters | {"factor": factor})
