"""Gradients of Synaptic, Alpha, Lapicque and one-to-one RLeaky against snnTorch and by steps."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import snntorch as snn
import torch

from snn_single_spike import SingleSpikeAlpha, SingleSpikeLapicque, SingleSpikeRLeaky
from snn_single_spike.ops.validation import GRADIENT_RULES, RESETS

from tests.support import sequential
from tests.support.devices import device_of
from tests.support.neurons import (
    CASES,
    KINDS,
    SURROGATES,
    Case,
    Kind,
    assert_is_bptt,
    assert_same,
    build,
    leaf,
    make,
    results,
    run_ours,
    run_reference,
    run_theirs,
)
from tests.support.oracle import Run, assert_runs_close, reference_run, relative_error
from tests.support.problems import problem as leaky_problem

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize(("size", "reset"), CASES)
def test_reference_is_bptt_through_snntorch(kind, size, reset):
    """The reference. The random arguments contain neurons of every kind."""
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
    """All neurons fire at one step, or never (-1)."""
    case = copy.deepcopy(make(kind, (6, 2, 3), rule=rule))
    case.x.fill_(0.001)
    case.weight.copy_(torch.eye(3))
    for value in case.states.values():
        value.zero_()
    if name == "Alpha" and step == 0:  # an input acts one step later
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
    """snnTorch clamps all decays, except in Lapicque, where decays may be negative or above 1."""
    # Training may move beta to a value that the constructor rejects.
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
    theirs = snn.Lapicque(**values)  # C in the checkpoint follows from the learned beta
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
    """A membrane that equals the threshold is not above the threshold."""
    random = make(kind, (25, 4, 20), reset=reset, dtype=torch.float32)
    case = grid(kind, reset) if ties else random
    theirs, ours = run_theirs(kind, case), run_ours(kind, case, backend)
    at = theirs["mem"] == case.parameters["threshold"]
    assert (at & (theirs["spk"].cumsum(0) == 0)).any() == ties
    assert torch.equal(ours["spk"], theirs["spk"])
    for key in kind.outputs:
        mine = torch.where(theirs["valid"], ours[key], 0.0)
        assert relative_error(mine, theirs[key]) < 1e-5


def test_half_precision_is_float32_rounded(name, kind, backend):
    # One type for each kind of neuron: a loop compiles for seconds, and test_numba.py compares the
    # conversions of both types.
    dtype = torch.float16 if name == "Synaptic" else torch.bfloat16
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


class Own(torch.autograd.Function):
    """A custom surrogate, with the derivative of a fast sigmoid of slope 7."""

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
    if name == "RLeaky" and rule != "spike_time":  # the loop needs the derivative
        with pytest.raises(ValueError, match="spike_grad"):
            run_ours(kind, case, backend, spike_grad=Own.apply)
        return
    ours = run_ours(kind, case, backend, spike_grad=Own.apply)
    assert_same(ours, run_reference(kind, case, lambda u: u / (1 + 7 * u.abs())))


def test_surrogate_disable(kind, backend):
    case = make(kind)
    ours = run_ours(kind, case, backend, surrogate_disable=True)
    assert_same(ours, run_reference(kind, case, lambda u: 0 * u))


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
