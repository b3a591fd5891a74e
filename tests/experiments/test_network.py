"""The papers' networks."""

import math

import pytest
import torch
from torch import nn

from snn_single_spike import SpikeDelay, SpikeTimes
from snn_single_spike.experiments import ExperimentError
from snn_single_spike.experiments.network import Network, count_spikes
from snn_single_spike.experiments.sources import make
from snn_single_spike.experiments.training import groups


def network(**flags):
    torch.manual_seed(0)
    defaults = {"dataset": "digits", "layers": "30", "weight_scale": "3"}
    if flags.get("neuron", "single-spike") == "single-spike":
        defaults["spike_format"] = "dense"
    return Network(make({**defaults, **flags}))


@pytest.fixture
def codes():
    """(T, B, 1, 8, 8): every pixel spikes once."""
    return SpikeTimes(torch.randint(0, 20, (6, 1, 8, 8)), 20).to_dense()


def test_weights_start_as_in_the_papers():
    net = network(layers="40-30", weight_scale="2,1,0.1")
    layers = [m for m in net.modules() if isinstance(m, nn.Linear)]
    for layer, scale, inputs in zip(layers, (2, 1, 0.1), (64, 40, 30), strict=True):
        bound = scale / math.sqrt(inputs)
        assert layer.in_features == inputs
        assert 0.95 * bound < layer.weight.abs().max() <= bound
        assert layer.weight.mean().abs() < 0.1 * bound
        assert not layer.bias.any()
    state = network(dataset="yinyang", layers="40").state_dict()
    assert torch.equal(state["stages.1.beta"], torch.full((40,), math.exp(-1 / 10)))
    assert torch.equal(state["readout.beta"], torch.full((3,), math.exp(-1 / 20)))
    assert net.stages[1].beta.requires_grad
    assert not network(learn_beta=False).stages[1].beta.requires_grad


@pytest.mark.parametrize("spike_format", ["dense", "times"])
@pytest.mark.parametrize("layers", ["30-20", "4C3-P2-20", "4C3-AP2-20"])
def test_the_layer_of_a_constant_current_is_computed_once(layers, spike_format, monkeypatch):
    flags = {"layers": layers, "coding": "current", "spike_format": spike_format}
    net = network(**flags, precision="float64").double()
    x = torch.rand(6, 1, 8, 8, dtype=torch.float64)
    results, steps = [], []
    compute = type(net.stages[0]).forward
    monkeypatch.setattr(
        type(net.stages[0]), "forward", lambda self, x: steps.append(len(x)) or compute(self, x)
    )
    for current in (x.expand(20, *x.shape), x.repeat(20, 1, 1, 1, 1)):
        scores, hidden = net(current)
        loss = nn.functional.cross_entropy(scores, torch.arange(6))
        results.append((scores, *torch.autograd.grad(loss, list(net.parameters()))))
    assert count_spikes(hidden) > 20
    assert steps[0] == 1
    assert 20 in steps
    for a, b in zip(*results, strict=True):
        assert torch.allclose(a, b, atol=1e-12)


@pytest.mark.parametrize("readout", ["sum", "max", "last"])
@pytest.mark.parametrize("layers", ["30", "30-20", "4C3-P2-20", "4C3-AP2-20"])
@pytest.mark.parametrize("kind", ["single-spike", "multi-spike"])
def test_spikes_are_those_of_the_loop_and_so_are_gradients(codes, kind, layers, readout):
    results = []
    for neuron in (kind, f"{kind}-loop"):
        more = {"readout": readout, "score_scale": "0.5", "precision": "float64"}
        net = network(neuron=neuron, layers=layers, **more).double()
        scores, hidden = net(codes.double())
        nn.functional.cross_entropy(scores, torch.arange(6)).backward()
        results.append((scores, hidden, [p.grad for p in net.parameters()]))
    (ours, hidden, gradients), (loop, hidden_loop, gradients_loop) = results
    assert all(torch.equal(a, b) for a, b in zip(hidden, hidden_loop, strict=True))
    assert count_spikes(hidden) > 20
    assert torch.allclose(ours, loop)
    assert gradients[0].abs().max() > 0
    for a, b in zip(gradients, gradients_loop, strict=True):
        # The gradients of snnTorch's spikes are rounded to float32
        assert torch.allclose(a, b, atol=1e-7)


def test_multi_spike_neurons_fire_first_where_single_spikes_are(codes):
    (_, (once,)), (_, (many,)) = (
        network(neuron=neuron, weight_scale="8")(codes)
        for neuron in ("single-spike", "multi-spike")
    )
    assert many.sum(0).max() > 1
    assert torch.equal(once > 0, (many > 0) & (many.cumsum(0) == 1))


def test_networks_of_one_seed_share_their_weights():
    first = network().state_dict()
    for neuron in ("multi-spike", "multi-spike-loop", "single-spike-loop"):
        other = network(neuron=neuron)
        assert all(torch.equal(first[key], other.state_dict()[key]) for key in first)
        other.load_state_dict(first, strict=False)


@pytest.mark.parametrize("rule", ["straight_through", "pre_spike", "spike_time"])
def test_gradient_rules_reach_the_first_weights(codes, rule):
    gradients = []
    for gradient in ("masked", rule):
        net = network(gradient=gradient)
        nn.functional.cross_entropy(net(codes)[0], torch.arange(6)).backward()
        gradients.append(net.stages[0].weight.grad)
    assert gradients[1].abs().max() > 0
    assert not torch.allclose(*gradients)


@pytest.mark.parametrize(
    "surrogate",
    ["fast_sigmoid:25", "atan", "sigmoid:5", "triangular", "straight_through_estimator"],
)
def test_surrogates_are_those_asked_for(codes, surrogate):
    gradients = []
    for asked in ("fast_sigmoid:10", surrogate):
        net = network(surrogate=asked)
        nn.functional.cross_entropy(net(codes)[0], torch.arange(6)).backward()
        gradients.append(net.stages[0].weight.grad)
    assert not torch.allclose(*gradients)


@pytest.mark.parametrize("layers", ["4C3-P2-20", "4C4-AP2-3C5-20"])
def test_padded_convolutions_keep_the_size_of_their_maps(codes, layers):
    for spike_format in ("dense", "times"):
        net = network(layers=layers, padding="same", spike_format=spike_format)
        given = codes if spike_format == "dense" else SpikeTimes.from_dense(codes)
        scores, hidden = net(given)
        assert scores.shape == (6, 10)
        assert [x.shape[3:] for x in hidden] == (
            [(4, 4), ()] if layers == "4C3-P2-20" else [(8, 8), (4, 4), ()]
        )


def test_delays_in_front_of_a_constant_current_are_refused():
    with pytest.raises(ExperimentError, match="--delays 5.*: the delays in front of the first"):
        network(delays="5", coding="current", spike_format="times")
    network(delays="5", coding="current", layers="4C3-20", spike_format="times")


def test_convolutions_and_poolings_have_the_shapes_they_say(codes):
    for layers, side in (("4C3-P2-20", 3), ("4C3-AP2-20", 6)):
        for spike_format in ("dense", "times"):
            scores, (maps, units) = network(layers=layers, spike_format=spike_format)(codes)
            assert maps.shape == (20, 6, 4, side, side)
            assert units.shape == (20, 6, 20)
            assert scores.shape == (6, 10)
    assert [type(m).__name__ for m in network(layers="4C3-P2-20").stages] == [
        *("EachStep", "EachStep", "SingleSpikeLeaky", "Linear", "SingleSpikeLeaky")
    ]
    assert network(layers="4C3-P2-20").stages[2].beta.shape == (4, 1, 1)


@pytest.mark.filterwarnings("error::snn_single_spike.spikes.MaterializationWarning")
@pytest.mark.parametrize("rule", ["masked", "spike_time"])
def test_convolutions_and_maxima_run_from_spike_times(rule):
    """No layer makes dense maps, forward or backward, so nothing warns."""
    spikes = SpikeTimes(torch.randint(0, 50, (3, 1, 8, 8)), 50)
    net = network(layers="4C3-P2-5C2-P2-7", spike_format="times", gradient=rule)
    scores, hidden = net(spikes)
    nn.functional.cross_entropy(scores, torch.arange(3)).backward()
    assert all(isinstance(x, SpikeTimes) for x in hidden)
    assert net.stages[0].layer.weight.grad.abs().max() > 0


def test_spikes_are_counted_in_every_form(codes):
    times = SpikeTimes(torch.tensor([[0, -1], [3, 2]]), 5)
    assert count_spikes([times, times.to_dense(), codes.to(torch.bfloat16)]) == 3 + 3 + 6 * 64


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"layers": "ten"}, "--layers ten, 'ten': use numbers of neurons"),
        ({"layers": "10-"}, "--layers 10-, '': use numbers"),
        ({"layers": "0"}, "'0': use numbers of at least 1"),
        ({"layers": "10-4C3"}, "'4C3': images are needed, but the input has 10 units"),
        ({"layers": "4C9"}, "'4C9': the input images are only 8 x 8"),
        ({"layers": "P2-10"}, "'P2': put a convolution before the first pooling"),
        ({"layers": "AP2-10"}, "'AP2': put a convolution before the first pooling"),
        ({"layers": "4C3-P2-P2"}, "'P2': P is the maximum of the currents.*use AP2"),
        ({"layers": "4C3-AP2-P2"}, "'P2': P is the maximum of the currents.*use AP2"),
        ({"layers": "4C3-AP7"}, "'AP7': the input maps are only 6 x 6"),
        ({"layers": "4C3-P7"}, "'P7': the input maps are only 6 x 6"),
        ({"dataset": "yinyang", "layers": "4C3"}, "'4C3': images are needed.*4 units"),
        (
            {"layers": "10-10", "weight_scale": "1,2"},
            "--weight-scale 1.0,2.0: give 1 factor, or 3, one for each layer",
        ),
    ],
)
def test_invalid_layers_are_rejected(flags, message):
    with pytest.raises(ExperimentError, match=message):
        network(**flags)


def test_delays_stand_in_front_of_linear_layers_and_learn_faster():
    codes = SpikeTimes(torch.randint(0, 20, (6, 1, 8, 8)), 40, dtype=torch.float64)
    results = []
    for form in ("times", "dense"):
        net = network(delays="7", layers="4C3-30", spike_format=form, precision="float64").double()
        delays = [m.delay for m in net.modules() if isinstance(m, SpikeDelay)]
        assert [len(d) for d in delays] == [4 * 36, 30]
        assert all(0 <= d.min() < 1 and 6 < d.max() <= 7 for d in delays)
        scores, _ = net(codes if form == "times" else codes.to_dense())
        nn.functional.cross_entropy(scores, torch.arange(6)).backward()
        assert all(d.grad.any() for d in delays)
        results.append([scores.detach(), *(p.grad for p in net.parameters())])
    assert all(torch.allclose(a, b) for a, b in zip(*results, strict=True))
    rest, late = groups(net, make({"dataset": "digits", "lr": "1e-2", "delay_lr": "0.5"}))
    assert late["times_lr"] == 50
    assert {id(p) for p in late["params"]} == {id(d) for d in delays}
    assert len(rest["params"]) + len(delays) == len(list(net.parameters()))
