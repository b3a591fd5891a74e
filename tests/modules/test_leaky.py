"""SingleSpikeLeaky in place of snn.Leaky."""

import copy
import gc
import inspect
import io

import pytest
import snntorch as snn
import torch
from snntorch import surrogate, utils
from snntorch._neurons.neurons import SpikingNeuron

from snn_single_spike import FusedLeaky, SingleSpikeLeaky
from snn_single_spike.functional import first_spike_time
from snn_single_spike.ops.surrogate import Surrogate, recognize

CURRENT = torch.randn(12, 3, 5, generator=torch.Generator().manual_seed(0))
FACTORIES = {
    "atan": {"alpha": 1.5},
    "fast_sigmoid": {"slope": 10},
    "sigmoid": {"slope": 5},
    "straight_through_estimator": {},
    "triangular": {"threshold": 2},
    "heaviside": {},
    "spike_rate_escape": {"beta": 2, "slope": 3},
    "SFS": {"slope": 10, "B": 0.5},
    "LSO": {"slope": 0.2},
}


def network(neuron, **options):
    return torch.nn.Sequential(torch.nn.Linear(5, 6), neuron(0.9, **options))


@pytest.mark.parametrize(("cls", "refractory"), [(SingleSpikeLeaky, None), (FusedLeaky, 0)])
def test_constructor_is_that_of_snntorch_and_four_keywords(cls, refractory):
    ours = inspect.signature(cls).parameters
    theirs = inspect.signature(snn.Leaky).parameters
    shared = list(ours)[: len(theirs)]
    assert shared == list(theirs)
    assert [ours[name].default for name in shared] == [p.default for p in theirs.values()]
    extra = [ours[name] for name in list(ours)[len(theirs) :]]
    assert [p.name for p in extra] == ["gradient", "backend", "refractory", "spike_format"]
    assert ours["refractory"].default == refractory
    assert all(p.kind is p.KEYWORD_ONLY for p in extra)


@pytest.mark.parametrize("learn", [False, True])
def test_checkpoints_load_strictly_both_ways(learn):
    options = {
        "learn_beta": learn,
        "learn_threshold": learn,
        "learn_graded_spikes_factor": learn,
        "init_hidden": True,
    }
    theirs, ours = network(snn.Leaky, **options), network(SingleSpikeLeaky, **options)
    assert list(theirs.state_dict()) == list(ours.state_dict())
    assert [n for n, _ in theirs.named_parameters()] == [n for n, _ in ours.named_parameters()]
    theirs[1].beta.data.fill_(0.25)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    assert ours[1].beta.item() == 0.25
    ours(CURRENT)
    theirs.load_state_dict(ours.state_dict(), strict=True)


def test_returns_follow_init_hidden_and_output():
    spk, mem = SingleSpikeLeaky(0.9)(CURRENT)
    assert spk.shape == mem.shape == CURRENT.shape
    only = SingleSpikeLeaky(0.9, init_hidden=True)(CURRENT)
    assert torch.equal(only, spk)
    both = SingleSpikeLeaky(0.9, init_hidden=True, output=True)(CURRENT)
    assert torch.equal(both[0], spk)
    assert torch.equal(both[1], mem)


def test_initial_membrane_as_in_snntorch():
    lif = SingleSpikeLeaky(0.9)
    assert lif.mem.shape == (0,)
    spk, mem = lif(CURRENT, lif.reset_mem())  # the old idiom: an empty tensor, then the loop
    assert torch.equal(spk, lif(CURRENT)[0])
    start = torch.full((3, 5), 0.5)
    assert torch.equal(lif(CURRENT, start)[1][0], 0.9 * start + CURRENT[0])
    with pytest.raises(TypeError, match="init_hidden=True"):
        SingleSpikeLeaky(0.9, init_hidden=True)(CURRENT, start)
    with pytest.raises(ValueError, match=r"pass mem\[-1\]"):
        lif(CURRENT, mem)


@pytest.mark.parametrize("init_hidden", [False, True])
def test_state_after_a_call(init_hidden):
    net = network(SingleSpikeLeaky, init_hidden=init_hidden, learn_beta=True)
    net(CURRENT)
    mem = net[1].mem
    assert mem.shape == (3, 6)
    assert not mem.requires_grad
    assert torch.equal(mem, SingleSpikeLeaky(0.9)(net[0](CURRENT))[1][-1])
    snn.Leaky.detach_hidden()
    utils.reset(net)
    assert torch.equal(net[1].mem, torch.zeros(3, 6))


def test_every_call_is_a_new_sample():
    lif = SingleSpikeLeaky(0.9, init_hidden=True)
    assert torch.equal(lif(CURRENT), lif(CURRENT))


def test_learnable_parameters_learn():
    lif = SingleSpikeLeaky(
        torch.full((5,), 0.9),
        torch.ones(5),
        learn_beta=True,
        learn_threshold=True,
        learn_graded_spikes_factor=True,
    )
    (lif(CURRENT)[0] * CURRENT).sum().backward()
    for name in ("beta", "threshold", "graded_spikes_factor"):
        grad = getattr(lif, name).grad
        assert grad.shape == getattr(lif, name).shape
        assert grad.abs().sum() > 0


def test_surrogate_disable_stops_gradients_from_spikes():
    spk, mem = SingleSpikeLeaky(0.9, surrogate_disable=True)(CURRENT.clone().requires_grad_())
    assert not spk.requires_grad
    assert mem.requires_grad


def test_graded_spikes():
    factor = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0])
    plain, graded = (
        SingleSpikeLeaky(0.9, graded_spikes_factor=f)(CURRENT)[0] for f in (1.0, factor)
    )
    assert torch.equal(graded, plain * factor)


@pytest.mark.parametrize("name", FACTORIES)
def test_surrogates_of_snntorch_are_recognized(name):
    made = getattr(surrogate, name)(**FACTORIES[name])
    known = recognize(made)
    assert known.name == name
    assert known[1 : 1 + len(FACTORIES[name])] == tuple(map(float, FACTORIES[name].values()))
    assert recognize(known) is known


@pytest.mark.parametrize(
    "function",
    [
        surrogate.SSO(),
        surrogate.custom_surrogate(lambda u, g, s: g),
        surrogate.fast_sigmoid(slope=torch.tensor(3.0)),
        lambda u: u,
        torch.relu,
    ],
    ids=["SSO", "custom", "tensor slope", "lambda", "function"],
)
def test_anything_else_is_left_to_autograd(function):
    assert recognize(function) is None


def test_default_surrogate_is_that_of_snntorch():
    assert recognize(None) == recognize(snn.Leaky(0.9).spike_grad) == Surrogate("atan", 2.0)


def test_the_surrogate_stays_callable():
    u = torch.tensor([-0.5, 0.5], requires_grad=True)
    spk = SingleSpikeLeaky(0.9, spike_grad=surrogate.fast_sigmoid(slope=10)).spike_grad(u)
    spk.sum().backward()
    assert spk.tolist() == [0.0, 1.0]
    assert torch.allclose(u.grad, torch.full((2,), 1 / 36))


def test_random_surrogate_of_snntorch_works():
    current = CURRENT.clone().requires_grad_()
    SingleSpikeLeaky(0.9, spike_grad=surrogate.SSO())(current)[0].sum().backward()
    assert current.grad.abs().sum() > 0


@pytest.mark.parametrize("how", ["deepcopy", "save"])
def test_copies_after_a_forward(how):
    net = network(SingleSpikeLeaky, learn_beta=True, spike_grad=surrogate.fast_sigmoid(slope=10))
    spk, _ = net(CURRENT)
    spk.sum().backward()
    if how == "deepcopy":
        other = copy.deepcopy(net)
    else:
        file = io.BytesIO()
        torch.save(net, file)
        file.seek(0)
        other = torch.load(file, weights_only=False)
    assert torch.equal(other(CURRENT)[0], spk)
    assert other[1].spike_grad == Surrogate("fast_sigmoid", 10.0)
    utils.reset(other)  # utils.reset does not reach copies of snnTorch's neurons
    assert torch.equal(other[1].mem, torch.zeros(3, 6))
    assert net[1].mem is not other[1].mem


def test_neurons_are_not_kept_alive_for_ever():
    gc.collect()
    before = sum(neuron is not None for neuron in SpikingNeuron.instances)
    lif = SingleSpikeLeaky(0.9)
    lif(CURRENT)
    assert sum(neuron is not None for neuron in SpikingNeuron.instances) == before + 1
    del lif
    gc.collect()
    assert sum(neuron is not None for neuron in SpikingNeuron.instances) == before
    snn.Leaky.reset_hidden()
    snn.Leaky.detach_hidden()


def test_double_and_half_models():
    assert network(SingleSpikeLeaky).double()(CURRENT.double())[0].dtype == torch.float64
    assert network(SingleSpikeLeaky).bfloat16()(CURRENT.bfloat16())[0].dtype == torch.bfloat16


def test_autocast():
    net = network(SingleSpikeLeaky, learn_beta=True)
    with torch.autocast("cpu", torch.bfloat16):
        spk, mem = net(CURRENT)
    assert spk.dtype == mem.dtype == torch.bfloat16
    spk.float().sum().backward()
    assert net[0].weight.grad.dtype == torch.float32
    assert net[1].beta.grad.dtype == torch.float32


def test_convolutional_features():
    lif = SingleSpikeLeaky(torch.rand(4, 1, 1))
    spk, mem = lif(torch.randn(10, 2, 4, 7, 7))
    assert spk.shape == mem.shape == (10, 2, 4, 7, 7)
    assert spk.sum(0).max() <= 1


def test_a_small_network_learns_from_any_rule():
    """Every rule learns to classify two inputs by which of them arrives first."""
    x = torch.zeros(10, 8, 2)
    x[1, :4, 0] = x[4, :4, 1] = x[1, 4:, 1] = x[4, 4:, 0] = 1.0
    target = torch.arange(8) // 4
    for rule in ("masked", "straight_through", "pre_spike", "spike_time"):
        torch.manual_seed(1)
        net = torch.nn.Sequential(
            torch.nn.Linear(2, 20), SingleSpikeLeaky(0.8, init_hidden=True, gradient=rule)
        )
        out = torch.nn.Linear(20, 2)
        optimizer = torch.optim.Adam([*net.parameters(), *out.parameters()], 0.02)
        for _ in range(60):
            loss = torch.nn.functional.cross_entropy(out(net(x)).sum(0), target)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        assert (out(net(x)).sum(0).argmax(1) == target).all(), rule


def test_spike_times_of_a_module_by_the_functional():
    lif = SingleSpikeLeaky(0.9)
    spk, _ = lif(CURRENT)
    times = first_spike_time(CURRENT, lif.beta, lif.threshold)
    assert torch.equal(times >= 0, spk.sum(0) > 0)


def test_reset_mem_before_a_smaller_batch():
    """reset_mem() at the top of forward: the old state has the shape of the old batch."""
    lif = SingleSpikeLeaky(0.9)
    for current in (CURRENT, CURRENT[:, :2], CURRENT[:, :2].bfloat16()):
        mem = lif.reset_mem()
        spk, _ = lif(current, mem)
        assert torch.equal(spk, lif(current)[0])


def test_numpy_parameters_and_double_input():
    import numpy as np

    lif = SingleSpikeLeaky(beta=np.exp(-1 / 10), threshold=np.float64(1.0))
    assert lif(CURRENT)[0].dtype == torch.float32
    assert SingleSpikeLeaky(0.9)(CURRENT.double())[0].dtype == torch.float64


@pytest.mark.parametrize("gradient", ["masked", "spike_time"])
def test_surrogate_disable_under_every_rule(gradient):
    lif = SingleSpikeLeaky(0.9, surrogate_disable=True, gradient=gradient)
    assert not lif(CURRENT.clone().requires_grad_())[0].requires_grad


@pytest.mark.parametrize("spike_grad", [torch.sigmoid, surrogate.LSO()], ids=["sigmoid", "LSO"])
def test_step_gives_the_spikes_of_forward_for_any_surrogate(spike_grad):
    lif = SingleSpikeLeaky(0.9, spike_grad=spike_grad, learn_graded_spikes_factor=True)
    lif.graded_spikes_factor.data.fill_(2.0)
    spk, _ = lif(CURRENT)
    spk.sum().backward()
    grad, lif.graded_spikes_factor.grad = lif.graded_spikes_factor.grad, None
    state, num_steps = None, []
    for x in CURRENT:
        out, state = lif.step(x, state)
        num_steps.append(out)
    assert torch.equal(torch.stack(num_steps), spk)
    torch.stack(num_steps).sum().backward()
    assert torch.allclose(lif.graded_spikes_factor.grad, grad)


@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0])
def test_a_decay_at_its_bounds_learns_step_by_step(beta):
    current = torch.rand(12, 4, 3, dtype=torch.float64)
    grads = []
    for whole in (True, False):
        lif = SingleSpikeLeaky(torch.full((3,), beta), learn_beta=True).double()
        if whole:
            spikes = lif(current)[0]
        else:
            state, out = None, []
            for x in current:
                spike, state = lif.step(x, state)
                out.append(spike)
            spikes = torch.stack(out)
        spikes.cumsum(0).sum().backward()
        grads.append(lif.beta.grad)
    assert grads[0].all()
    torch.testing.assert_close(*grads)


@pytest.mark.parametrize("factory", [surrogate.atan, surrogate.straight_through_estimator])
def test_a_surrogate_factory_that_was_not_called(factory):
    with pytest.raises(TypeError, match=f"call it, snntorch.surrogate.{factory.__name__}"):
        SingleSpikeLeaky(0.9, spike_grad=factory)


def test_a_refused_neuron_is_not_listed():
    gc.collect()
    before = len(SpikingNeuron.instances)
    for _ in range(3):
        with pytest.raises(ValueError, match="NaN"):
            SingleSpikeLeaky(float("nan"))
    assert len(SpikingNeuron.instances) == before


def test_a_wrong_argument_is_told_with_the_class():
    with pytest.raises(TypeError, match=r"SingleSpikeLeaky\(\) got an unexpected keyword .*'spam'"):
        SingleSpikeLeaky(0.9, spam=1)
    with pytest.raises(TypeError, match=r"SingleSpikeLeaky\(\) missing .*'beta'"):
        SingleSpikeLeaky()
