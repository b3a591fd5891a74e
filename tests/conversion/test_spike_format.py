"""Converted models with spike_format="times", compared with the same models with "dense"."""

import copy
import io
import logging

import numpy as np
import pytest
import snntorch as snn
import torch
import torch.nn.functional as F
from snntorch import functional as SF
from snntorch import utils
from snntorch.functional import probe
from torch import nn

from snn_single_spike import (
    ConversionError,
    LeakyReadout,
    MaterializationWarning,
    SingleSpikeLeaky,
    SingleSpikeLinear,
    SpikeEvents,
    SpikeTimes,
    convert,
    losses,
    metrics,
    revert,
)
from snn_single_spike.functional import spike_count
from snn_single_spike.ops.validation import GRADIENT_RULES
from snn_single_spike.spikes import LazyCurrent, pooling
from snn_single_spike.spikes.lazy import LazyTensor

from tests.support import networks
from tests.support.networks import (
    Residual,
    Tutorial6,
    awake,
    leaky,
    loss_of,
    population,
    readme,
    siblings,
    tensors,
)

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*MaxPool after a neuron"),
    pytest.mark.filterwarnings("ignore:.*when training, BatchNorm"),
]


class Averaged(nn.Module):
    """Average pooling in every form. One form drops rows past the last whole window."""

    def __init__(self):
        super().__init__()
        self.conv1, self.lif1 = nn.Conv2d(1, 4, 3), leaky()
        self.conv2, self.lif2 = nn.Conv2d(4, 3, 2), leaky(learn_beta=True)
        self.pool = nn.AvgPool2d((2, 3))
        self.fc1, self.lif3 = nn.Linear(3 * 2 * 1, 12), leaky()
        self.fc2, self.out = nn.Linear(12, 4), snn.Leaky(0.9, threshold=torch.full((4,), 0.7))

    def forward(self, x):
        a = self.lif2(self.conv2(F.avg_pool2d(self.lif1(self.conv1(x)), 2)))
        b = self.lif3(self.fc1(torch.flatten(self.pool(a), 1)))
        return *self.out(self.fc2(b)), b, a


def stack():
    """Linear layers, with layers between them that keep spike times."""
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(30, 25),
        leaky(learn_beta=True, learn_threshold=True),
        nn.Identity(),
        nn.Dropout(0.4),
        nn.Sequential(nn.Linear(25, 20, bias=False), leaky(reset_mechanism="zero")),
        nn.BatchNorm1d(20),
        nn.Linear(20, 12),
        leaky(graded_spikes_factor=0.7, learn_graded_spikes_factor=True),
        nn.Linear(12, 5),
        leaky(output=True),
    )


def mixed():
    """Neurons with dense spikes between neurons with spike times."""
    return nn.Sequential(
        nn.Linear(20, 15),
        leaky(),
        nn.Linear(15, 10),
        snn.Synaptic(alpha=0.7, beta=0.6, init_hidden=True),
        nn.Linear(10, 8),
        leaky(),
        nn.LayerNorm(8),
        snn.Leaky(0.5, spike_grad=lambda x: torch.sigmoid(3 * x), init_hidden=True, output=True),
    )


MODELS = {
    **{name: networks.MODELS[name] for name in ("tutorial 5", "tutorial 6", "tutorial 7")},
    **{name: networks.MODELS[name] for name in ("population", "readme", "residual")},
    "averaged": (Averaged, (1, 12, 12)),
    "stack": (stack, (5, 6)),
    "mixed": (mixed, (20,)),
}


def assert_same(models, inputs):
    """Compare outputs and gradients of two models in training mode, up to rounding."""
    found = []
    for model, x in zip(models, inputs, strict=True):
        torch.manual_seed(7)  # of dropout
        outs = tensors(model(x))
        loss_of(outs).backward()
        found.append((outs, [p.grad for p in model.parameters()]))
    (outs, grads), (expected, right) = found
    assert any(out.any() for out in expected)
    for one, other in zip(outs, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)
    for one, other in zip(grads, right, strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            assert (one - other).norm() <= 1e-10 * max(other.norm(), 1)


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("rule", GRADIENT_RULES)
@pytest.mark.parametrize("name", MODELS)
def test_both_spike_formats_are_the_same_model(name, rule, training, monkeypatch):
    monkeypatch.setattr(pooling, "SPARSE", 0)  # pooled events, however many
    make, shape = MODELS[name]
    model = awake(make()).double().train(training)
    x = torch.rand(7, 3, *shape, dtype=torch.float64) * 3
    fast = convert(model, gradient=rule, spike_format="times")
    assert_same((fast, convert(model, gradient=rule)), (x, x))


@pytest.mark.parametrize("name", MODELS)
def test_static_input(name):
    make, shape = MODELS[name]
    model = awake(make()).double()
    image = torch.rand(3, *shape, dtype=torch.float64) * 3
    fast = convert(model, num_steps=6, spike_format="times")
    assert_same((fast, convert(model, num_steps=6)), (image, image))


@pytest.mark.parametrize("name", ["tutorial 6", "residual", "stack", "averaged"])
def test_checkpoints_and_the_way_back(name):
    make, shape = MODELS[name]
    model = make()
    fast = convert(model, spike_format="times")
    assert list(fast.state_dict()) == list(model.state_dict())
    fast.load_state_dict(make().state_dict(), strict=True)
    model.load_state_dict(fast.state_dict(), strict=True)
    fast(torch.rand(4, 3, *shape) * 3)
    back = revert(fast)
    assert type(back) is type(model)
    assert not any(hasattr(module, "spike_format") for module in back.modules())
    x = torch.rand(3, *shape) * 3
    back.eval(), model.eval()
    model.load_state_dict(fast.state_dict(), strict=True)
    for mine, right in zip(tensors(back(x)), tensors(model(x)), strict=True):
        assert torch.equal(mine, right)
    assert convert(back)(x[None]) is not None  # dense again


@pytest.mark.parametrize("how", ["deepcopy", "save"])
def test_copies_keep_the_spike_format(how):
    fast = convert(readme(), spike_format="times")
    x = torch.rand(5, 3, 1, 28, 28) * 3
    out = fast(x)[0]
    loss_of(tensors(out)).backward()
    if how == "deepcopy":
        other = copy.deepcopy(fast)
    else:
        file = io.BytesIO()
        torch.save(fast, file)
        file.seek(0)
        other = torch.load(file, weights_only=False)
    again = other(x)[0]
    assert isinstance(again, SpikeTimes)
    assert torch.equal(again.times, out.times)
    utils.reset(other)


def test_what_is_returned():
    x = torch.rand(7, 3, 8, 8) * 3
    spikes, mem = convert(population(), spike_format="times")(x)
    assert isinstance(spikes, SpikeTimes)
    assert spikes.shape == mem.shape == (7, 3, 50)
    assert isinstance(mem, LazyTensor)
    assert not isinstance(mem, LazyCurrent)
    assert mem.sum(0).shape == (3, 50)
    hidden = convert(population()[:3], spike_format="times")(x)  # init_hidden without output
    assert isinstance(hidden, SpikeTimes)
    first = convert(nn.Sequential(nn.Flatten(), leaky(output=True)), spike_format="times")(x)
    assert isinstance(first[0], SpikeTimes)
    assert isinstance(first[1], torch.Tensor)
    current = convert(population()[:4], spike_format="times")(x)
    assert isinstance(current, LazyCurrent)
    assert current.shape == (7, 3, 50)


def test_the_readout_takes_the_current_of_the_last_layer():
    model = awake(population()[:4]).double()
    x = torch.rand(7, 3, 8, 8).double() * 3
    readout = LeakyReadout(0.9).double()
    found = [readout(convert(model, spike_format=c)(x)) for c in ("times", "dense")]
    torch.testing.assert_close(*found, rtol=1e-10, atol=1e-10)


def test_features_are_flattened_without_dense_spikes(caplog):
    class Flattens(Tutorial6):
        def forward(self, x):
            a = self.lif1(F.max_pool2d(self.conv1(x), 6))
            for flat in (
                a.view(a.size(0), -1),
                a.flatten(1),
                torch.flatten(a, 1),
                a.reshape(len(a), -1),
                a.view(a.shape[0], 64),
                nn.Flatten()(nn.Identity()(a)),
                nn.Sequential(nn.Flatten(), nn.Dropout(0.5).eval())(a),
            ):
                assert isinstance(flat, SpikeTimes)
                assert flat.shape == (15, 64)
            return flat

    fast = convert(Flattens(), spike_format="times", check=False)  # a loop has dense spikes
    with caplog.at_level(logging.INFO, logger="snn_single_spike"):
        assert fast(torch.rand(5, 3, 1, 28, 28)).shape == (5, 3, 64)
    assert not caplog.records


@pytest.mark.parametrize("spike_format", ["dense", "times"])
def test_spike_times_and_events_as_inputs(spike_format):
    model = awake(stack()).double()
    times = torch.randint(-1, 7, (3, 5, 6))
    spikes = SpikeTimes(times, 7, dtype=torch.float64)
    events = torch.poisson(torch.full((7, 3, 5, 6), 0.3, dtype=torch.float64))
    fast, slow = (convert(model, spike_format=c) for c in (spike_format, "dense"))
    assert_same((fast, slow), (spikes, spikes.to_dense()))
    assert_same((fast, slow), (SpikeEvents.from_dense(events), events))


def test_events_into_a_convolution():
    model = awake(Residual()).double()
    frames = (torch.rand(7, 3, 1, 6, 6) > 0.6).double()
    fast, slow = (convert(model, spike_format=c) for c in ("times", "dense"))
    assert_same((fast, slow), (SpikeEvents.from_dense(frames), frames))


def test_membranes_are_computed_once_and_before_the_step():
    fast = convert(population(), spike_format="times")
    optimizer = torch.optim.SGD(fast.parameters(), 0.1)
    x = torch.rand(7, 3, 8, 8) * 3
    spikes, mem = fast(x)
    with torch.no_grad():
        peak = mem.amax()
    assert mem.to_dense() is mem.to_dense()
    mem.square().mean().backward()  # no_grad came first, the gradient is here all the same
    assert fast[1].weight.grad is not None
    optimizer.step()
    assert mem.to_dense().max() == peak
    _, mem = fast(x)
    assert mem.requires_grad
    (mem.mean() * 0).backward()
    spikes, mem = fast(x)
    loss_of(tensors(spikes)).backward()
    optimizer.step()
    with pytest.raises(
        RuntimeError, match=r"changed in place since the neurons ran.*ahead of optimizer"
    ):
        mem.sum()


def test_warnings_name_the_layers_that_make_dense_tensors():
    model = convert(awake(Residual()).eval(), spike_format="times")
    with pytest.warns(MaterializationWarning) as warned:
        model(torch.rand(5, 2, 1, 6, 6))
    said = [str(warning.message) for warning in warned]
    assert any(m.startswith("__add__ in ") and "support ConvCurrent" in m for m in said)
    assert any(m.startswith("add in ") and "support SpikeTimes" in m for m in said)
    net = nn.Sequential(
        nn.Sequential(nn.Conv2d(1, 4, 3), leaky()), nn.ConvTranspose2d(4, 2, 3), leaky()
    )
    with pytest.warns(MaterializationWarning) as warned:
        convert(net, spike_format="times")(torch.rand(5, 2, 1, 6, 6))
    assert "in layer '1' (ConvTranspose2d) does not support SpikeTimes" in str(warned[0].message)


def test_compiled_and_exported_models_return_spike_times():
    fast = convert(population(), spike_format="times").eval()
    x = torch.rand(5, 3, 8, 8) * 3
    compiled = torch.compile(fast, fullgraph=True, backend="aot_eager")
    spikes, right = compiled(x)[0], fast(x)[0]
    assert type(spikes) is type(right) is SpikeTimes
    assert torch.equal(spikes.to_dense(), right.to_dense())
    program = torch.export.export(fast, (x,))
    assert torch.equal(program.module()(x)[0], fast(x)[0].to_dense())


def test_probes_record_spike_times():
    fast = convert(population(), spike_format="times")
    monitor = probe.OutputMonitor(fast, instance=snn.Leaky)
    spikes, mem = fast(torch.rand(5, 3, 8, 8) * 3)
    assert monitor["2"][0].shape == (15, 40)
    assert monitor["2"][0].unfold().shape == (5, 3, 40)
    assert torch.equal(monitor["4"][0][0].times, spikes.times)
    assert monitor["4"][0][1].unfold().to_dense() is mem.to_dense()


def test_changes_in_place_are_refused():
    spikes = SpikeTimes(torch.tensor([[0, 1], [2, -1]]), 3)
    current = F.linear(spikes, torch.ones(3, 2))
    for change in (
        lambda x: x.mul_(3),
        lambda x: x.clamp_(min=0),
        lambda x: F.relu_(x),
        lambda x: torch.relu_(x),
        lambda x: x.requires_grad_(),
    ):
        for x in (spikes, current):
            with pytest.raises((AttributeError, TypeError), match=r"In-place .* Use x = x\.[a-z]+"):
                change(x)
    x = current
    x *= 2  # a new tensor of this name
    assert torch.equal(x, 2 * current.to_dense())
    assert torch.equal(F.relu(current, inplace=True), current.to_dense().relu())


def test_autocast():
    fast = convert(population(), spike_format="times")
    with torch.autocast("cpu", torch.bfloat16):
        spikes, mem = fast(torch.rand(5, 3, 8, 8) * 3)
        (spikes.to_dense().float().sum() + mem.float().mean()).backward()
    assert fast[1].weight.grad.dtype == torch.float32


def test_bad_calls():
    with pytest.raises(
        ValueError, match="spike_format='time' is not known: use one of 'auto', 'dense', 'tim"
    ):
        convert(readme(), spike_format="time")
    with pytest.raises(
        ConversionError,
        match=r"needs a snntorch.Leaky.*has Alpha, .*convert with spike_format='dense'",
    ):
        convert(siblings(), spike_format="times")
    spikes = SpikeTimes(torch.zeros(3, 64, dtype=torch.int8), 5)
    fast = convert(population(), num_steps=5, spike_format="times")
    with pytest.raises(ValueError, match=r"SpikeTimes.*num_steps=5.*convert it without num_steps"):
        fast(spikes)
    fast = convert(population(), spike_format="times")
    with pytest.raises(TypeError, match="a tensor as its input, or SpikeTimes or SpikeEvents"):
        fast(np.zeros((5, 3, 64)))
    with pytest.raises(ValueError, match="60 features, but the linear layer takes 64"):
        fast(SpikeTimes(torch.zeros(3, 60, dtype=torch.int8), 5))

    class Given(nn.Module):
        def __init__(self):
            super().__init__()
            self.lif = snn.Leaky(0.9)

        def forward(self, x, mem=None):
            return self.lif(x, mem)[0]

    fast = convert(Given(), spike_format="times")
    with pytest.raises(ConversionError, match="pass None for initial membranes"):
        fast(spikes, SpikeTimes(torch.zeros(3, 64, dtype=torch.int8), 4))
    with pytest.raises(ConversionError, match="is given an initial state of shape"):
        fast(spikes, spikes)


def test_losses_and_metrics_take_what_a_model_returns():
    model, x = awake(population(5)), torch.rand(7, 3, 8, 8) * 3
    targets = torch.tensor([1, 0, 3])
    outs = [convert(model, spike_format=c)(x) for c in ("times", "dense")]
    for on_spikes in (
        lambda spikes: losses.ce_temporal_loss()(spikes, targets),
        lambda spikes: losses.mse_temporal_loss()(spikes, targets),
        losses.spike_count_regularizer(upper=0.5),
        losses.firing_regularizer(),
        lambda spikes: metrics.accuracy_temporal(spikes, targets),
        spike_count,
        metrics.latency_to_decision,
        lambda spikes: metrics.energy_estimate(spikes, 10)[0],
        lambda spikes: SF.ce_rate_loss()(spikes, targets),
    ):
        torch.testing.assert_close(*(on_spikes(spikes) for spikes, _ in outs), equal_nan=True)
    for on_membrane in (
        lambda mem: losses.ce_membrane_loss()(mem, targets),
        lambda mem: metrics.accuracy_membrane(mem, targets),
        lambda mem: SF.ce_max_membrane_loss()(mem, targets),
    ):
        torch.testing.assert_close(*(on_membrane(mem) for _, mem in outs))
    both = [metrics.accuracy_temporal(spikes, targets, mem) for spikes, mem in outs]
    assert both[0] == both[1]


def test_weights_that_are_computed():
    model = population().double()
    nn.utils.parametrizations.weight_norm(model[1])
    x = torch.rand(7, 3, 8, 8).double() * 6
    assert_same((convert(model, spike_format="times"), convert(model)), (x, x))


def test_inference_mode():
    fast, x = convert(population(), spike_format="times"), torch.rand(7, 3, 8, 8) * 3
    with torch.inference_mode():
        _, mem = fast(x)
        assert mem.to_dense().shape == (7, 3, 50)
        codes = SpikeTimes(torch.randint(-1, 7, (3, 8, 8)), 7)
        fast(codes)
    fast(codes)[1].sum().backward()  # what was sorted then serves training, too
    assert fast[1].weight.grad.any()


def test_a_membrane_that_was_looked_at_in_inference_mode_still_learns():
    fast, x = convert(population(), spike_format="times"), torch.rand(7, 3, 8, 8) * 3
    _, mem = fast(x)
    with torch.inference_mode():
        metrics.accuracy_membrane(mem, torch.tensor([1, 0, 3]))
    losses.ce_membrane_loss()(mem, torch.tensor([1, 0, 3])).backward()
    assert fast[3].weight.grad.any()


def test_a_height_that_is_changed_later():
    codes = SpikeTimes(torch.randint(0, 7, (3, 20)), 7)
    up = SingleSpikeLinear(20, 16, 0.9, graded_spikes_factor=2.0, learn_graded_spikes_factor=True)
    up.weight.data.mul_(4)
    lif = SingleSpikeLeaky(0.9, spike_format="times")
    hidden = up(codes)
    _, mem = lif(F.linear(hidden, torch.rand(5, 16)))
    before = hidden.to_dense(), (2 * mem).detach()
    optimizer = torch.optim.SGD([up.graded_spikes_factor], 0.1)
    hidden.to_dense().sum().backward()
    optimizer.step()
    assert up.graded_spikes_factor != 2
    assert torch.equal(hidden.to_dense(), before[0])
    _, late = lif(F.linear(hidden, torch.rand(5, 16)))
    assert late.to_dense().isfinite().all()
    height = torch.ones(20)
    _, mem = lif(F.linear(SpikeTimes(codes.times, 7, height=height), torch.rand(5, 20)))
    height *= 2
    with pytest.raises(RuntimeError, match="has been changed in place"):
        mem.to_dense()


def test_autocast_reaches_neither_the_spikes_nor_their_membrane():
    codes, linear = SpikeTimes(torch.randint(-1, 40, (8, 100)), 40), nn.Linear(100, 50)
    lif = SingleSpikeLeaky(0.9, spike_format="times")
    with torch.autocast("cpu", torch.bfloat16):
        spikes, mem = lif(linear(codes))
        found = mem.to_dense()
        few = F.linear(SpikeTimes(torch.zeros(8, 100, dtype=torch.int8), 2), linear.weight)
    assert found.dtype == mem.dtype == few.dtype == torch.float32
    assert torch.equal(lif(linear(codes))[1].to_dense(), found)
    fired = found > 1
    assert torch.equal(fired.any(0), spikes.times >= 0)


@pytest.mark.parametrize("few", [True, False])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_spike_times_of_another_type_than_the_weights(dtype, few):
    model = nn.Sequential(nn.AvgPool2d(2), nn.Flatten(), nn.Linear(4, 3), leaky()).to(dtype)
    times = torch.full((2, 1, 4, 4), -1 if few else 3)
    times[:, :, 0, 0] = 2
    spikes = convert(model, spike_format="times")(SpikeTimes(times, 10))
    assert spikes.dtype == dtype
    layer = SingleSpikeLinear(16, 3, 0.9).to(dtype)
    compiled = torch.compile(layer, backend="aot_eager")
    codes = SpikeTimes(times.flatten(1), 10)
    assert torch.equal(compiled(codes), layer(codes).to_dense())


def test_hooks_that_would_do_nothing_are_refused():
    spikes, mem = convert(population(), spike_format="times")(torch.rand(7, 3, 8, 8) * 3)
    for x in (spikes, mem):
        for name in ("register_hook", "retain_grad"):
            with pytest.raises(AttributeError, match=f"{name} is not supported on .*dense"):
                getattr(x, name)
    with pytest.raises(TypeError, match=r"Save mem.to_dense\(\)"):
        torch.save(mem, io.BytesIO())


@pytest.mark.parametrize(
    "loss", ["ce_rate_loss", "ce_count_loss", "mse_count_loss", "ce_max_membrane_loss"]
)
def test_losses_of_snntorch_and_their_gradients(loss):
    model, x = awake(population(5)), torch.rand(7, 3, 8, 8) * 3
    grads = []
    for spike_format in ("times", "dense"):
        fast = convert(model, spike_format=spike_format)
        spikes, mem = fast(x)
        given = mem if "membrane" in loss else spikes
        getattr(SF, loss)()(given, torch.tensor([1, 0, 3])).backward()
        grads.append(fast[1].weight.grad)
    torch.testing.assert_close(*grads)


class Quantized(nn.Linear):
    """As layers of quantization packages: what is no tensor has its tensor in .value."""

    def forward(self, x):
        x = x if isinstance(x, torch.Tensor) else x.value
        return F.linear(x, self.weight.sign(), self.bias)


def test_layers_of_torch_with_another_forward_receive_dense_spikes():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 8), leaky(), Quantized(8, 4), leaky(output=True))
    x = 3 * torch.rand(5, 3, 6)
    fast = convert(net, spike_format="times")
    with pytest.warns(MaterializationWarning, match=r"Quantized.forward.* does not support"):
        spikes, _ = fast(x)
    assert torch.equal(spikes.to_dense(), convert(net)(x)[0])
    assert not revert(fast)[2]._forward_pre_hooks


def test_an_export_with_a_named_time_returns_its_number_of_steps(tmp_path):
    layers = nn.Sequential(nn.Linear(6, 6), snn.Leaky(0.9, init_hidden=True))
    fast = convert(layers, spike_format="times")
    x, longer = torch.rand(5, 4, 6) * 3, torch.rand(9, 4, 6) * 3
    named = ({0: torch.export.Dim("time", min=2, max=100)},)
    program = torch.export.export(fast, (x,), dynamic_shapes=named)
    torch.export.save(program, tmp_path / "net.pt2")
    for exported in (program, torch.export.load(tmp_path / "net.pt2")):
        for given in (x, longer):
            spikes = exported.module()(given)
            assert type(spikes.num_steps) is int
            assert torch.equal(spikes.to_dense(), fast(given).to_dense())
