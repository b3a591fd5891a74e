"""Modules of Synaptic, Alpha, Lapicque and one-to-one RLeaky: constructors, checkpoints, states."""

from __future__ import annotations

import copy
import inspect

import pytest
import torch
from snntorch import utils
from torch import nn

from snn_single_spike import SingleSpikeLapicque, SingleSpikeRLeaky

from tests.support.devices import device_of
from tests.support.neurons import CASES, KINDS, build, leaf, make
from tests.support.oracle import relative_error

pytestmark = pytest.mark.usefixtures("one_thread")


def test_two_dimensional_input_is_refused(kind):
    neuron, _ = build(kind.ours, kind, make(kind, dtype=torch.float32))
    with pytest.raises(ValueError, match=r"time, batch"):
        neuron(torch.randn(2, 5))


def test_constructor_is_that_of_snntorch(kind):
    theirs, ours = (inspect.signature(cls).parameters for cls in (kind.theirs, kind.ours))
    extra = dict(list(ours.items())[len(theirs) :])
    assert [(name, p.default) for name, p in extra.items()] == [
        *(("gradient", "masked"), ("backend", "auto"), ("refractory", None))
    ]
    assert all(p.kind is inspect.Parameter.KEYWORD_ONLY for p in extra.values())
    for (name, mine), right in zip(ours.items(), theirs.values(), strict=False):
        assert (name, mine.default, mine.kind) == (right.name, right.default, right.kind)


def test_defaults_are_those_of_snntorch(kind, backend):
    """Numbers as parameters, no learned parameter, default reset and default surrogate."""
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
    if "V" not in numbers:  # snnTorch's gradient differs without a gate on the feedback
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
    """A call is one sample. The neuron keeps the last states, detached, until utils.reset."""
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
