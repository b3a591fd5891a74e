"""Synaptic, Alpha, Lapicque and one-to-one RLeaky against snnTorch and a sequential reference."""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import pytest
import snntorch as snn
import torch
from snntorch import surrogate, utils
from torch import Tensor, nn

from snn_single_spike import (
    SingleSpikeAlpha,
    SingleSpikeLapicque,
    SingleSpikeRLeaky,
    SingleSpikeSynaptic,
)
from snn_single_spike.ops.validation import GRADIENT_RULES, RESETS

from tests.support import sequential
from tests.support.devices import device_of
from tests.support.oracle import Run, assert_runs_close, reference_run, relative_error
from tests.support.problems import problem as leaky_problem

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


@dataclass(frozen=True)
class Kind:
    """A neuron: snnTorch's, ours, one step of the reference, and how to call them."""

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


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Threads that wait for each other take most of the time of small products."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(params=KINDS)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def kind(name: str) -> Kind:
    return KINDS[name]


@dataclass(frozen=True, eq=False)
class Case:
    """Arguments of a linear layer and its neurons, and a loss: weights of each output."""

    x: Tensor
    weight: Tensor
    parameters: Results
    states: Results
    loss: Results
    reset: str = "subtract"
    rule: str = "masked"
    surrogate: str = "fast_sigmoid"


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
    Random arguments. The first sample is strong and the last is weak, so that neurons fire
    early, late and never; membranes start below threshold.

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
    """A neuron that learns all that it can, and what it learns."""
    parameters = {name: value.clone() for name, value in case.parameters.items()}
    factor = parameters.pop("factor", None)  # not an argument of these neurons, but a buffer
    learn = {name: "learn_recurrent" if name == "V" else "learn_" + name for name in LEARN}
    options |= {learn[name]: True for name in parameters if name in LEARN}
    if "V" in parameters:
        options["all_to_all"] = False
    repair = cls is snn.Alpha and options.pop("learn_alpha")  # which raises in snnTorch 1.0
    neuron = cls(**parameters, **options, spike_grad=spike_grad, reset_mechanism=case.reset)
    if factor is not None:
        neuron.graded_spikes_factor = factor
    if repair:
        del neuron.alpha
        neuron.alpha = nn.Parameter(parameters["alpha"])
    return neuron, {name: getattr(neuron, name) for name in parameters if name in LEARN}


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
    else:  # as of the initial membrane of Alpha, which nothing depends on
        grads = [None] * len(asked)
    found = {name: value.detach().cpu() for name, value in outputs.items()}
    for (name, value), grad in zip(asked.items(), grads, strict=True):
        found["d" + name] = torch.zeros_like(value) if grad is None else grad
    return found


@functools.cache
def run_theirs(kind: Kind, case: Case) -> Results:
    """
    BPTT through snnTorch's neuron, with a detached gate that lets one spike out (and back in).

    snnTorch resets at every crossing: what comes after the second is not "valid".
    """
    smooth = SURROGATES[case.surrogate][1]

    def fire(u: Tensor) -> Tensor:  # snnTorch's own surrogates round to float32
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
    learned = {name: leaf(value) for name, value in case.parameters.items() if name in LEARN}
    leaves = leaves_of(case)
    trace = sequential.run(
        kind.step,
        leaves["x"] @ leaves["weight"],
        case.parameters | learned,
        {name: leaves["_" + name] for name in case.states},
        smooth or SURROGATES[case.surrogate][1],
        case.rule,
        case.reset,
    )
    return results(case, {"spk": trace.spikes, **trace.states}, leaves | learned)


def run_ours(
    kind: Kind, case: Case, backend: str, spike_grad: Any = None, only: str = "", **options: Any
) -> Results:
    """``only``: the one leaf that needs a gradient, all if not given."""
    device = device_of(backend)
    options |= {"gradient": case.rule, "backend": backend}
    spike_grad = spike_grad or SURROGATES[case.surrogate][0]
    neuron, _ = build(kind.ours, kind, case, spike_grad, **options)
    neuron = neuron.to(device)
    leaves = leaves_of(case, device)
    leaves |= {name: getattr(neuron, name) for name in case.parameters if name in LEARN}
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
    """Equal to snnTorch where that has not crossed twice, for a loss on that."""
    theirs = run_theirs(kind, case)
    valid = theirs["valid"]
    ours = run(replace(case, loss={name: w * valid for name, w in case.loss.items()}))
    ours |= {name: torch.where(valid, ours[name], 0.0) for name in kind.outputs}
    assert_same(ours, theirs, 1e-10)
    return theirs


# Of the parameters, None is one per neuron
CASES = [(None, reset) for reset in RESETS] + [((), "subtract")]


@pytest.mark.parametrize(("size", "reset"), CASES)
def test_reference_is_bptt_through_snntorch(kind, size, reset):
    """The reference, and that the random arguments hold every kind of neuron."""
    case = make(kind, size=size, reset=reset)
    theirs = assert_is_bptt(kind, case, lambda case: run_reference(kind, case))
    times = torch.where(theirs["spk"].any(0), (theirs["spk"] > 0).int().argmax(0), -1)
    assert {-1, 0} < set(times.unique().tolist())
    assert theirs["valid"].all() == (reset == "none")


@pytest.mark.parametrize("reset", RESETS)
@pytest.mark.parametrize("rule", GRADIENT_RULES)
def test_reference_of_leaky_is_the_numpy_reference(rule, reset):
    arguments = leaky_problem((11, 2, 4))
    fused, smooth = SURROGATES["sigmoid"]
    expected = reference_run(**arguments, surrogate=fused, rule=rule, reset=reset)
    names = ("current", "beta", "threshold", "factor", "mem_0")
    leaves = {name: leaf(arguments[name]) for name in names}
    start = {"mem": leaves["mem_0"]}
    spikes, states, times = sequential.run(
        sequential.leaky, leaves["current"], leaves, start, smooth, rule, reset
    )
    loss = (spikes * arguments["g"]).sum() + (states["mem"] * arguments["h"]).sum()
    if rule == "spike_time":
        loss = loss + (times * arguments["grad_times"]).sum()
    actual = Run(spikes, states["mem"], times, *torch.autograd.grad(loss, list(leaves.values())))
    assert_runs_close(actual, expected, 1e-10)


@pytest.mark.parametrize(("size", "reset"), CASES)
def test_masked_is_bptt_through_snntorch(kind, size, reset, backend):
    case = make(kind, size=size, reset=reset)
    assert_is_bptt(kind, case, lambda case: run_ours(kind, case, backend))


@pytest.mark.parametrize("reset", RESETS)
@pytest.mark.parametrize("rule", GRADIENT_RULES)
def test_every_rule_and_reset(kind, rule, reset, backend):
    slope = dict(zip(RESETS, SURROGATES, strict=True))[reset]
    case = make(kind, reset=reset, rule=rule, surrogate=slope)
    assert_same(run_ours(kind, case, backend), run_reference(kind, case))


HIDDEN = {"init_hidden": True}


@pytest.mark.parametrize(
    ("rule", "reset", "options"),
    [
        ("masked", "subtract", {}),
        ("masked", "zero", HIDDEN),
        ("spike_time", "subtract", HIDDEN),
        ("straight_through", "none", HIDDEN),
        ("straight_through", "subtract", HIDDEN),
        ("pre_spike", "zero", HIDDEN | {"output": True}),
    ],
)
def test_without_initial_states_and_with_hidden_ones(kind, rule, reset, options, backend):
    case = make(kind, given=False, rule=rule, reset=reset, surrogate="atan")
    if options == HIDDEN:
        case = replace(case, loss={"spk": case.loss["spk"]})
    ours = run_ours(kind, case, backend, **options)
    assert ("mem" in ours) == (options != HIDDEN)
    assert_same(ours, run_reference(kind, case))


def test_an_initial_membrane_above_the_threshold_is_not_reset(kind, backend):
    case = copy.deepcopy(make(kind, (7, 2, 3)))
    case.states["mem"].fill_(4.0)
    assert_same(run_ours(kind, case, backend), run_reference(kind, case))


@pytest.mark.parametrize("rule", ["masked", "spike_time"])
def test_a_graded_spike_of_a_checkpoint(kind, rule, backend):
    case = make(kind, (7, 2, 3), rule=rule)
    factor = {"factor": torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64)}
    case = replace(case, parameters=case.parameters | factor)
    assert_same(run_ours(kind, case, backend), run_reference(kind, case))
    if rule == "masked":
        assert_is_bptt(kind, case, lambda case: run_ours(kind, case, backend))


@pytest.mark.parametrize("rule", ["masked", "straight_through"])
def test_a_loss_that_is_the_same_at_every_step(kind, rule, backend):
    case = make(kind, (7, 2, 3), rule=rule)
    case = replace(case, loss={name: w[0] for name, w in case.loss.items()})
    assert_same(run_ours(kind, case, backend), run_reference(kind, case))


def test_a_loss_on_one_output(kind, backend):
    for rule, output in zip(GRADIENT_RULES, (*kind.outputs, "mem", "spk"), strict=False):
        case = make(kind, (7, 2, 3), reset="zero", rule=rule)
        case = replace(case, loss={output: case.loss[output]})
        assert_same(run_ours(kind, case, backend), run_reference(kind, case))


def test_a_gradient_alone_equals_the_same_among_all(kind, backend):
    case = make(kind, (7, 2, 3), reset="zero")
    together = run_ours(kind, case, backend)
    for key in together:
        if key.startswith("d"):
            alone = run_ours(kind, case, backend, only=key[1:])
            assert set(alone) == {*kind.outputs, key}
            assert_same(alone, together, 1e-12)


@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 1, 3), (17, 2, 3, 2, 2), (3, 2, 1030)], ids=str)
def test_shapes(kind, shape, backend):
    """One step; parameters per channel; more neurons than a block of the kernels."""
    case = make(kind, shape, size=(3, 1, 1) if len(shape) == 5 else None, reset="zero")
    assert_same(run_ours(kind, case, backend), run_reference(kind, case))


@pytest.mark.parametrize("name", ["Alpha", "RLeaky"])
def test_more_neurons_than_a_thread_takes(kind, cpu_backend):
    case = make(kind, (2, 2, 35_000, 1), reset="zero")
    expected = run_reference(kind, case)
    torch.set_num_threads(2)
    assert_same(run_ours(kind, case, cpu_backend), expected)


@pytest.mark.parametrize(
    ("step", "rule"),
    [(-1, "masked"), (-1, "spike_time"), (0, "spike_time"), (0, "pre_spike"), (5, "spike_time")],
)
def test_silent_and_synchronous_layers(name, kind, step, rule, backend):
    """All fire at a step, or never (-1)."""
    case = copy.deepcopy(make(kind, (6, 2, 3), rule=rule))
    case.x.fill_(0.001)
    case.weight.copy_(torch.eye(3))
    for value in case.states.values():
        value.zero_()
    if name == "Alpha" and step == 0:  # what comes in acts one step later
        case.states["syn_exc"].fill_(100.0)
    elif step >= 0:
        case.x[step - (name == "Alpha")] = 100.0
    ours = run_ours(kind, case, backend)
    assert torch.equal(ours["spk"].sum(0), torch.full((2, 3), float(step >= 0)).double())
    assert (ours["spk"][step] == (step >= 0)).all()
    assert_same(ours, run_reference(kind, case))


def clamp_passes_at_bounds() -> bool:
    bound = torch.ones(1, requires_grad=True)
    return bool(torch.autograd.grad(bound.clamp(0, 1).sum(), bound)[0])


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("Synaptic", {"alpha": 0.0, "beta": 0.0}),
        ("Synaptic", {"alpha": 1.0, "beta": 0.5}),
        ("Synaptic", {"alpha": 0.5, "beta": 1.0}),
        ("Synaptic", {"alpha": 1.5, "beta": -0.5}),
        ("Synaptic", {"alpha": -0.5, "beta": 1.5}),
        ("Synaptic", {"alpha": 0.7, "beta": 0.7}),
        ("Alpha", {"alpha": 1.0, "beta": 0.5}),
        ("Alpha", {"beta": 0.99}),
        ("Alpha", {"beta": 1.0}),
        ("Alpha", {"beta": 1.2}),
        ("RLeaky", {"beta": 0.0}),
        ("RLeaky", {"beta": 1.0, "V": 0.0}),
        ("RLeaky", {"beta": 1.5, "V": 3.0}),
        ("RLeaky", {"beta": -0.5}),
        ("Lapicque", {"C": 0.5, "time_step": 1.0}),
        ("Lapicque", {"C": 0.2, "time_step": 0.5}),
        ("Lapicque", {"C": -2.0}),
    ],
)
def test_parameters_at_and_beyond_their_bounds(name, values, backend, monkeypatch):
    """snnTorch clamps all decays but those of Lapicque, which may be negative or above 1."""
    # Training may take a beta to where the constructor would refuse it.
    monkeypatch.setattr(snn.Alpha, "_alpha_cases", lambda self: None)
    kind = KINDS[name]
    if name != "Lapicque" and {0.0, 1.0} & set(values.values()) and not clamp_passes_at_bounds():
        pytest.skip("torch's clamp, and so snnTorch, has no gradient at its bounds from 2.14 on")
    case = copy.deepcopy(make(kind, (7, 2, 3), size=()))
    for key, value in values.items():
        case.parameters[key].fill_(value)
    assert_is_bptt(kind, case, lambda case: run_ours(kind, case, backend))


@pytest.mark.parametrize(
    ("name", "arguments"),
    [("Alpha", {"alpha": alpha, "beta": beta}) for alpha, beta in ((1, 0), (0.5, 0), (1.5, -0.2))]
    + [("Lapicque", {"beta": beta}) for beta in (0.1, 0.9, 1.0, 1.2)]
    + [("Lapicque", {"beta": 0.4} | more) for more in ({"R": 2.0}, {"C": 3.0}, {"time_step": 0.5})],
)
def test_arguments_that_snntorch_transforms(name, arguments, cpu_backend):
    """Logarithms of 0 in Alpha; R and C from beta, and no clamp, in Lapicque."""
    kind, x = KINDS[name], leaf(torch.randn(12, 2, 5, dtype=torch.float64))
    arguments = {k: torch.tensor(v, dtype=torch.float64) for k, v in arguments.items()}
    theirs = kind.theirs(**arguments, reset_mechanism="none", init_hidden=True, output=True)
    ours = kind.ours(**arguments, reset_mechanism="none", backend=cpu_backend)
    loop, whole = torch.stack([theirs(step)[-1] for step in x]), ours(x)[-1]
    assert relative_error(whole, loop) < 1e-12
    (right,), (mine,) = (torch.autograd.grad(mem.square().sum(), x) for mem in (loop, whole))
    assert relative_error(mine, right) < 1e-10


def test_lapicque_learns_beta(backend):
    """snnTorch computes C from beta once, and its second backward pass raises."""
    case, device = make(KINDS["Lapicque"]), device_of(backend)
    values = {"beta": torch.tensor(0.7).double(), "threshold": case.parameters["threshold"]}
    learned = {name: leaf(value) for name, value in values.items()}
    fixed = {name: torch.ones(()).double() for name in ("R", "time_step")}
    fused, smooth = SURROGATES["atan"]
    trace = sequential.run(
        sequential.lapicque, case.x, learned | fixed, {}, smooth, "masked", "subtract"
    )
    expected = results(case, {"spk": trace.spikes, **trace.states}, learned)
    options = {"learn_beta": True, "learn_threshold": True, "spike_grad": fused}
    neuron = SingleSpikeLapicque(**values, **options, backend=backend).to(device)
    for _ in range(2):
        outputs = dict(zip(("spk", "mem"), neuron(case.x.to(device)), strict=True))
        found = results(case, outputs, {"beta": neuron.beta, "threshold": neuron.threshold})
        assert_same(found, expected)
    assert torch.equal(copy.deepcopy(neuron)(case.x.to(device))[1].cpu(), found["mem"])
    neuron.beta.data.fill_(0.4)
    _, mem = neuron(case.x.to(device))
    theirs = snn.Lapicque(**values)  # C of the checkpoint is that of the beta that was learned
    theirs.load_state_dict(neuron.state_dict())
    assert relative_error(mem[0], theirs(case.x[0])[1]) < 1e-12


def grid(kind: Kind, reset: str) -> Case:
    """Numbers with few bits: arithmetic is exact, and membranes land on the threshold."""
    case = copy.deepcopy(
        make(kind, (25, 4, 20), size=(), given=False, reset=reset, dtype=torch.float32)
    )
    draw = torch.Generator().manual_seed(0)
    case.x.copy_(torch.randint(-4, 6, case.x.shape, generator=draw) / 4)
    case.weight.copy_(torch.eye(20))
    exact = {"alpha": 0.5, "beta": 0.25, "V": 0.25, "threshold": 1.0, "time_step": 1.0}
    for name in exact.keys() & case.parameters.keys():
        case.parameters[name].fill_(exact[name])
    return case


@pytest.mark.parametrize(
    ("reset", "ties"), [*((reset, True) for reset in RESETS), ("subtract", False)]
)
def test_first_spikes_equal_snntorch_in_float32(kind, ties, reset, backend):
    """Exactly at the threshold is not above it."""
    random = make(kind, (25, 4, 20), reset=reset, dtype=torch.float32)
    case = grid(kind, reset) if ties else random
    theirs, ours = run_theirs(kind, case), run_ours(kind, case, backend)
    at = theirs["mem"] == case.parameters["threshold"]
    assert (at & (theirs["spk"].cumsum(0) == 0)).any() == ties
    assert torch.equal(ours["spk"], theirs["spk"])
    for key in kind.outputs:
        mine = torch.where(theirs["valid"], ours[key], 0.0)
        assert relative_error(mine, theirs[key]) < 1e-5


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_is_float32_rounded(kind, dtype, backend):
    case, device = make(kind, dtype=torch.float32), device_of(backend)
    neuron = build(kind.ours, kind, case, backend=backend)[0].to(device)
    x, *states = (leaf(value.to(dtype), device) for value in (case.x, *case.states.values()))
    half, full = neuron(x, *states), neuron(x.float(), *(state.float() for state in states))
    assert torch.equal(half[0].float(), full[0])
    for low, high in zip(half, full, strict=True):
        assert low.dtype == dtype
        assert torch.allclose(low, high.to(dtype), rtol=torch.finfo(dtype).eps)
    half[0].sum().backward()
    assert x.grad.dtype == dtype
    assert x.grad.isfinite().all()


def test_non_contiguous_input_and_states(kind, backend):
    case, device = make(kind), device_of(backend)
    neuron = build(kind.ours, kind, case, backend=backend)[0].to(device)
    dense = [leaf(value, device) for value in (case.x, *case.states.values())]
    strided = [leaf(v.mT.contiguous().mT.to(device)) for v in dense]
    found = []
    for x, *states in (dense, strided):
        assert x.is_contiguous() == (x is dense[0])
        out = neuron(x, *states)
        found.append((*out, *torch.autograd.grad(sum(o.square().sum() for o in out), x)))
    for one, two in zip(*found, strict=True):
        assert torch.equal(one, two)


def test_empty_batch(kind, backend):
    for key, value in run_ours(kind, make(kind, (5, 0, 3)), backend).items():
        if key in kind.outputs:
            assert value.shape == (5, 0, 3)
        assert not value.any()


def test_two_dimensional_input_is_refused(kind):
    neuron, _ = build(kind.ours, kind, make(kind, dtype=torch.float32))
    with pytest.raises(ValueError, match=r"time, batch"):
        neuron(torch.randn(2, 5))


class Own(torch.autograd.Function):
    """A surrogate that is the user's own, with the derivative of a fast sigmoid of slope 7."""

    @staticmethod
    def forward(ctx, u):
        ctx.save_for_backward(u)
        return (u > 0).to(u)

    @staticmethod
    def backward(ctx, grad):
        return grad / (1 + 7 * ctx.saved_tensors[0].abs()) ** 2


@pytest.mark.parametrize("rule", GRADIENT_RULES)
def test_a_surrogate_of_the_users_own(name, kind, rule, backend):
    case = make(kind, rule=rule)
    if name == "RLeaky" and rule != "spike_time":  # its derivative is needed within the loop
        with pytest.raises(ValueError, match="spike_grad"):
            run_ours(kind, case, backend, spike_grad=Own.apply)
        return
    ours = run_ours(kind, case, backend, spike_grad=Own.apply)
    assert_same(ours, run_reference(kind, case, lambda u: u / (1 + 7 * u.abs())))


def test_surrogate_disable(kind, backend):
    case = make(kind)
    ours = run_ours(kind, case, backend, surrogate_disable=True)
    assert_same(ours, run_reference(kind, case, lambda u: 0 * u))


def test_constructor_is_that_of_snntorch(kind):
    theirs, ours = (inspect.signature(cls).parameters for cls in (kind.theirs, kind.ours))
    extra = dict(list(ours.items())[len(theirs) :])
    assert [(name, p.default) for name, p in extra.items()] == [
        *(("gradient", "masked"), ("backend", "auto"))
    ]
    assert all(p.kind is inspect.Parameter.KEYWORD_ONLY for p in extra.values())
    for (name, mine), right in zip(ours.items(), theirs.values(), strict=False):
        assert (name, mine.default, mine.kind) == (right.name, right.default, right.kind)


def test_defaults_are_those_of_snntorch(kind, backend):
    """Numbers as parameters, nothing learned, the reset and the surrogate not chosen."""
    case, device = make(kind, size=(), given=False, dtype=torch.float32), device_of(backend)
    numbers = {name: float(value) for name, value in case.parameters.items()}
    options = {"learn_recurrent": False, "all_to_all": False} if "V" in numbers else {}
    theirs = kind.theirs(**numbers, **options, init_hidden=True)
    ours = kind.ours(**numbers, **options, backend=backend).to(device)
    x, y, g = leaf(case.x), leaf(case.x, device), case.loss["spk"]
    loop = torch.stack([theirs(step) for step in x])
    first = loop * (loop.detach().cumsum(0) - loop.detach() == 0)
    spk = ours(y)[0]
    assert torch.equal(spk.cpu(), first)
    (first * g).sum().backward()
    (spk * g.to(device)).sum().backward()
    if "V" not in numbers:  # without a gate on what it is fed, snnTorch's gradient is another
        assert relative_error(y.grad, x.grad) < 1e-5


@pytest.mark.parametrize(("size", "reset"), CASES)
def test_checkpoints_load_both_ways(kind, size, reset):
    case = make(kind, dtype=torch.float32, size=size, reset=reset)
    neurons = [build(cls, kind, case)[0] for cls in (kind.ours, kind.theirs)]
    neurons[0](case.x)
    assert neurons[0].state_dict().keys() == neurons[1].state_dict().keys()
    for source, target in (neurons, neurons[::-1]):
        for value in source.state_dict().values():
            value *= 0.9 if value.is_floating_point() else 1
        target.load_state_dict(source.state_dict(), strict=True)
        for mine, right in zip(
            target.state_dict().values(), source.state_dict().values(), strict=True
        ):
            assert torch.equal(mine, right)
        first = neurons[0](case.x)[-1][0]
        assert relative_error(first, neurons[1](case.x[0])[-1]) < 1e-6
        neurons[1].reset_mem()


@pytest.mark.parametrize("init_hidden", [False, True])
def test_copies_and_saved_modules_after_a_forward(kind, init_hidden, tmp_path):
    case = make(kind, dtype=torch.float32)
    neuron, learned = build(kind.ours, kind, case, init_hidden=init_hidden, output=True)
    expected = neuron(case.x)
    expected[0].sum().backward()
    torch.save(neuron, tmp_path / "neuron.pt")
    saved = torch.load(tmp_path / "neuron.pt", weights_only=False)
    for other in (copy.deepcopy(neuron), saved):
        out = other(case.x)
        assert all(torch.equal(mine, right) for mine, right in zip(out, expected, strict=True))
        other.zero_grad()
        out[0].sum().backward()
        for name, parameter in learned.items():
            assert torch.equal(getattr(other, name).grad, parameter.grad)


@pytest.mark.parametrize("init_hidden", [False, True])
def test_last_states_and_reset(kind, init_hidden):
    """A call is one sample; its last states are kept, detached, until utils.reset."""
    case = make(kind, dtype=torch.float32, given=False)
    net = nn.Sequential(build(kind.ours, kind, case, init_hidden=init_hidden, output=True)[0])
    first = net(case.x)
    for name, value in zip(kind.outputs, first, strict=True):
        if name in kind.states:
            assert torch.equal(getattr(net[0], name), value[-1])
            assert not getattr(net[0], name).requires_grad
    runs = [net(case.x)]
    utils.reset(net)
    assert not any(getattr(net[0], name).any() for name in kind.states)
    runs.append(net(case.x))
    if not init_hidden:  # the states of a loop, made before it
        net(case.x[:, :1])
        states = net[0].reset_mem()
        runs.append(net[0](case.x, *(states if isinstance(states, tuple) else [states])))
    for run in runs:
        assert all(torch.equal(mine, right) for mine, right in zip(run, first, strict=True))


def test_initial_states_are_refused_with_hidden_ones(kind):
    case = make(kind, dtype=torch.float32)
    neuron, _ = build(kind.ours, kind, case, init_hidden=True)
    for name, value in case.states.items():
        with pytest.raises(TypeError, match="init_hidden"):
            neuron(case.x, **{name: value})


OPTIONS = [{"inhibition": True}, {"state_quant": torch.round}, {"gradient": "exact"}]


@pytest.mark.parametrize(
    ("name", "option"),
    [(name, option) for name in KINDS for option in [*OPTIONS, {"backend": "jax"}]]
    + [("Synaptic", {"reset_delay": False}), ("RLeaky", {"reset_delay": False})]
    + [("RLeaky", {"all_to_all": True, **more}) for more in ({}, {"linear_features": 5})],
)
def test_options_that_cannot_be_honoured_are_named(name, option):
    arguments = make(KINDS[name]).parameters | ({"all_to_all": False} if name == "RLeaky" else {})
    with pytest.raises(ValueError, match=next(iter(option))):
        KINDS[name].ours(**arguments | option)


def test_the_factor_alone_gets_its_gradient_through_feedback():
    x, g = torch.randn(9, 2, 4).double(), torch.randn(9, 2, 4).double()
    grads = []
    for learn in (False, True):
        torch.manual_seed(0)
        neuron = SingleSpikeRLeaky(
            torch.tensor(0.8).double(),
            V=torch.tensor(0.5).double(),
            all_to_all=False,
            learn_recurrent=learn,
            gradient="straight_through",
            init_hidden=True,
        ).double()
        neuron.graded_spikes_factor.requires_grad_()
        (neuron(x) * g).sum().backward()
        grads.append(neuron.graded_spikes_factor.grad)
    assert torch.equal(*grads)


def test_feedback_before_the_first_step_is_checked():
    neuron, x = SingleSpikeRLeaky(0.8, all_to_all=False), torch.rand(6, 2, 5)
    for wrong in (torch.zeros(6, 2, 5), torch.zeros(5)):
        with pytest.raises(ValueError, match="spk has shape"):
            neuron(x, wrong)
    with pytest.raises(TypeError, match="spk must be a torch.Tensor"):
        neuron(x, [1.0])
    neuron(x)
    assert neuron.spk.untyped_storage().nbytes() == 4 * 10


def test_one_feedback_weight_has_two_names():
    neuron = SingleSpikeRLeaky(0.8, V=torch.tensor(0.3), all_to_all=False)
    state = {key: value.clone() for key, value in neuron.state_dict().items()}
    neuron.load_state_dict(state, assign=True)
    neuron(torch.rand(4, 2, 3))
    assert neuron.recurrent.V is neuron.V


@pytest.mark.parametrize(("name", "value"), [("R", 0.0), ("C", 0.0), ("beta", 0.0)])
def test_a_circuit_without_time_constant_is_refused(name, value):
    given = {"beta": 0.5} if name == "R" else {"R": 1.0} if name == "C" else {}
    with pytest.raises(ValueError, match=f"{name}=0.0 must"):
        SingleSpikeLapicque(**given, **{name: value})


def test_what_follows_a_learned_beta_is_saved_as_it_is_now():
    neuron = SingleSpikeLapicque(0.5, learn_beta=True)
    neuron.beta.data.fill_(0.7)
    assert torch.allclose(neuron.state_dict()["C"], 1 / torch.log(1 / torch.tensor(0.7)))


def test_an_alpha_of_1_learns():
    """Against the slope below 1; above it, alpha is clipped."""
    current = torch.rand(20, 3, 4, dtype=torch.float64)

    def total(alpha):
        neuron = SingleSpikeAlpha(
            torch.tensor(alpha, dtype=torch.float64), 0.5, learn_alpha=True
        ).double()
        loss = neuron(current)[3].sum()
        loss.backward()
        return loss.item(), neuron.alpha.grad.item()

    above, slope = total(1.0)
    below, _ = total(1 - 1e-6)
    assert slope == pytest.approx((above - below) / 1e-6, rel=1e-3)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_parameters_of_each_neuron_in_half_types(dtype):
    x, four = torch.rand(9, 3, 4), torch.linspace(0.5, 1.5, 4)
    neurons = (
        SingleSpikeLapicque(R=2 * four, C=2.0),
        SingleSpikeLapicque(beta=0.8, threshold=four),
        SingleSpikeRLeaky(0.9, V=four, all_to_all=False),
        SingleSpikeRLeaky(0.9 * four.clamp(max=1), threshold=four, all_to_all=False),
    )
    for neuron in neurons:
        more = (torch.ones(3, 4),) if isinstance(neuron, SingleSpikeRLeaky) else ()
        spikes, _ = neuron(x, *more)
        half = copy.deepcopy(neuron).to(dtype)
        half_spikes, half_mem = half(x.to(dtype), *(state.to(dtype) for state in more))
        assert half_spikes.dtype == half_mem.dtype == dtype
        assert (half_spikes == spikes).float().mean() > 0.9
