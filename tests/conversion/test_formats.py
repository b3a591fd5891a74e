"""Converted models that choose the format of spikes: spike_format="auto"."""

import copy
import itertools
import types

import pytest
import snntorch as snn
import torch
import torch.nn.functional as F
from snntorch import utils
from torch import nn
from torch.utils.checkpoint import checkpoint

from snn_single_spike import SpikeEvents, SpikeTimes, convert
from snn_single_spike.spikes import choice
from snn_single_spike.spikes.lazy import LastState

from tests.support import networks
from tests.support.networks import awake, leaky, loss_of, tensors

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*MaxPool after a neuron"),
    pytest.mark.filterwarnings("ignore:.*when training, BatchNorm"),
    pytest.mark.filterwarnings("error::snn_single_spike.MaterializationWarning"),
]


class Loop(nn.Module):
    """A loop over time, whose hidden membranes are read or not."""

    def __init__(self, records=False):
        super().__init__()
        self.records = records
        self.fc1, self.lif1 = nn.Linear(20, 30), snn.Leaky(0.9)
        self.fc2, self.lif2 = nn.Linear(30, 25), snn.Leaky(0.9, reset_mechanism="zero")
        self.fc3, self.lif3 = nn.Linear(25, 10), snn.Leaky(0.8, learn_beta=True)

    def forward(self, x):
        mem1, mem2, mem3 = (lif.init_leaky() for lif in (self.lif1, self.lif2, self.lif3))
        spikes, membranes, hidden = [], [], []
        for step in range(x.size(0)):
            spk1, mem1 = self.lif1(self.fc1(x[step]), mem1)
            spk2, mem2 = self.lif2(self.fc2(spk1), mem2)
            spk3, mem3 = self.lif3(self.fc3(spk2.flatten(1)), mem3)
            spikes.append(spk3)
            membranes.append(mem3)
            if self.records:
                hidden.append(mem2)
        return torch.stack(spikes), membranes, hidden


class Skip(nn.Module):
    """Spikes that something else than a linear layer reads, too."""

    def __init__(self):
        super().__init__()
        self.fc1, self.lif1 = nn.Linear(20, 30), leaky()
        self.fc2, self.lif2 = nn.Linear(30, 30), leaky()
        self.fc3, self.lif3 = nn.Linear(30, 30), leaky()
        self.fc4, self.out = nn.Linear(30, 6), snn.Leaky(0.9)

    def forward(self, x):
        a = self.lif1(self.fc1(x))
        b = self.lif2(self.fc2(a))
        c = self.lif3(self.fc3(b)) + a
        self.kept = c
        return self.out(self.fc4(F.dropout(b, 0.2, self.training) + c))


def chain(*sizes):
    layers = []
    for inputs, outputs in itertools.pairwise(sizes):
        layers += [nn.Linear(inputs, outputs), leaky(output=len(layers) == 2 * len(sizes) - 4)]
    return nn.Sequential(*layers)


@pytest.fixture(params=[False, True], ids=["currents", "layers"])
def always(request, monkeypatch):
    """Choose spike times and events wherever they are possible."""
    for name in ("LEAST_PRODUCTS", "LEAST_CONV_PRODUCTS", "_ENTRIES_IN_LOOPS", "_CONV_STEPS"):
        monkeypatch.setattr(choice, name, 0)
    monkeypatch.setattr(choice, "_CONV_SHARE", 1000.0)
    monkeypatch.setattr(choice, "layer_pays", lambda *_: request.param)


MODELS = {
    **{name: networks.MODELS[name] for name in ("tutorial 5", "tutorial 6", "population")},
    "chain": (lambda: chain(20, 30, 25, 10), (20,)),
    "loop": (Loop, (20,)),
    "records": (lambda: Loop(records=True), (20,)),
    "skip": (Skip, (20,)),
}


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("name", MODELS)
def test_the_second_call_gives_what_dense_spikes_give(name, training, always):
    make, shape = MODELS[name]
    model = awake(make()).double().train(training)
    x = (torch.rand(7, 3, *shape, dtype=torch.float64) > 0.6).double() * 2
    found = []
    for spike_format in ("auto", "dense"):
        fast = convert(model, spike_format=spike_format)
        fast(x)
        torch.manual_seed(7)  # of dropout
        outs = tensors(fast(x))
        loss_of(outs).backward()
        found.append([*outs, *(p.grad for p in fast.parameters())])
    assert all(type(mine) is torch.Tensor for mine in found[0])
    assert any(right.any() for right in found[1])
    for mine, right in zip(*found, strict=True):
        torch.testing.assert_close(mine, right, rtol=1e-10, atol=1e-10)


def formats_of(model, *inputs, **options):
    fast = convert(model, **options)
    fast(*inputs)
    found, *_ = fast._single_spike.formats.values()
    outputs = {path: [layer.outputs for layer in layers] for path, layers in found.layers.items()}
    return outputs, found


def test_neurons_whose_spikes_reach_layers_only_are_found():
    x = torch.rand(5, 2, 20)
    outputs, found = formats_of(chain(20, 30, 25, 10), x)
    assert outputs == {"": [30], "1": [25], "3": [10]}
    assert found.membranes == {"5"}  # returned
    assert found.opened == {"3"}
    static, _ = formats_of(chain(20, 30, 25, 10), x[0], num_steps=5)
    assert static == {"1": [25], "3": [10]}
    outputs, found = formats_of(Loop(), x)
    assert outputs == {"[1]": [30], "lif1": [25], "lif2": [10]}
    assert found.opened == {"lif2"}
    assert formats_of(Loop(records=True), x)[1].opened == {"lif1", "lif2"}
    assert formats_of(Skip(), x)[0] == {"": [30]}
    dropped = nn.Sequential(nn.Linear(20, 30), leaky(), nn.Dropout(0.5), nn.Linear(30, 9), leaky())
    assert formats_of(dropped, x)[0] == {"": [30]}
    assert formats_of(dropped.eval(), x)[0] == {"": [30], "1": [9]}
    custom = chain(20, 30, 25)
    custom[3].spike_grad = lambda x: torch.sigmoid(3 * x)
    outputs, found = formats_of(custom, x)
    assert outputs == {"": [30], "1": [25]}
    assert found.opened == {"1"}
    normed = nn.Sequential(nn.Linear(20, 30), nn.LayerNorm(30), snn.Synaptic(0.9, 0.8, True))
    outputs, found = formats_of(normed, x)
    assert outputs == {"": [30]}
    assert found.opened == {""}


def test_convolutions_and_max_pooling_between_neurons_are_found():
    x = torch.rand(5, 2, 1, 16, 16)

    def model(between, units):
        layers = [nn.Conv2d(1, 4, 3, padding=1), leaky(), nn.Conv2d(4, 8, 3, groups=2), between]
        return nn.Sequential(*layers, leaky(), nn.Flatten(), nn.Linear(units, 5), leaky())

    side_by_side, found = formats_of(model(nn.MaxPool2d(2), 392), x)
    assert side_by_side == {"": [4], "1": [8], "4": [5]}
    (convolution,) = found.layers["1"]
    assert convolution == choice.Layer(8, 8 * 14 * 14 * 2 * 9, convolution=True)
    assert formats_of(model(nn.MaxPool2d(3, stride=2), 288), x)[0] == {"": [4], "4": [5]}
    twice = nn.Sequential(nn.MaxPool2d(2), nn.MaxPool2d(2))
    assert formats_of(model(twice, 72), x)[0] == {"": [4], "4": [5]}
    assert formats_of(model(nn.BatchNorm2d(8), 1568).eval(), x)[0] == {"": [4], "4": [5]}


def inputs_of_linear(fast, x):
    """The types of the inputs of linear layers in a call after the first."""
    fast(x)
    found = []
    plain = F.linear

    def linear(input_, *args):
        found.append(type(input_))
        return plain(input_, *args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(F, "linear", linear)
        fast(x)
    return found


def test_the_measured_rules_choose():
    wide = chain(200, 128, 100, 10)
    frames = (torch.rand(25, 60, 200) < 0.01).float()
    dense = [torch.Tensor] * 3
    assert inputs_of_linear(convert(wide), frames) == [SpikeEvents, SpikeTimes, torch.Tensor]
    assert inputs_of_linear(convert(wide), frames[:, :2]) == dense
    assert inputs_of_linear(convert(wide, spike_format="dense"), frames) == dense
    busy = (torch.rand(25, 60, 200) < 0.5).float()
    assert inputs_of_linear(convert(wide), busy) == [torch.Tensor, SpikeTimes, torch.Tensor]
    assert inputs_of_linear(convert(wide, backend="torch"), busy) == dense
    assert inputs_of_linear(convert(wide).bfloat16(), busy.bfloat16()) == dense
    with torch.autocast("cpu", torch.bfloat16):
        assert inputs_of_linear(convert(wide), busy) == dense
    needs_gradient = frames.clone().requires_grad_()
    assert inputs_of_linear(convert(wide), needs_gradient)[0] is torch.Tensor


def test_the_share_of_spikes_that_pays_follows_the_width_of_a_layer():
    pytest.importorskip("numba")
    x = (torch.arange(40_000) % 5 == 0).float().view(10, 20, 200)  # one entry in 5
    wide, narrow = (choice.Layer(outputs, 10**6) for outputs in (128, 64))
    assert choice.events_pay(x, wide)
    assert not choice.events_pay(x, narrow)
    assert not choice.events_pay(x[:1, :2], wide)
    assert choice.spike_times_pay(10, 20, wide)
    assert not choice.spike_times_pay(1, 200, wide)
    assert not choice.spike_times_pay(10, 20, choice.Layer(17, 10**6))  # most of a tile is empty
    assert choice.spike_times_pay(10, 20, choice.Layer(16, 10**6))  # one vector
    assert not choice.spike_times_pay(7, 30, choice.Layer(16, 10**6))
    with torch.no_grad():
        assert choice.events_pay(x, wide)
        assert not choice.events_pay(x + (torch.arange(200) % 40 == 1), wide)


def test_one_loop_for_layer_and_neurons_pays_without_gradients_and_with_few_spikes():
    pytest.importorskip("numba")
    times = torch.full((2, 200), -1)
    times[:, :10] = 3
    weight = torch.zeros(100, 200)
    assert not choice.layer_pays(SpikeTimes(times, 100), weight, "auto")
    with torch.no_grad():
        assert choice.layer_pays(SpikeTimes(times, 20), weight, "auto")
        assert not choice.layer_pays(SpikeTimes(times, 19), weight, "auto")
        assert choice.layer_pays(SpikeTimes(times, 5), weight, "torch")


class BatchFirst(nn.Module):
    """A loop over the second dimension of its input, or over a part of it."""

    def __init__(self, how):
        super().__init__()
        self.how = how
        self.fc1, self.norm, self.lif1 = nn.Linear(20, 30), nn.BatchNorm1d(30), snn.Leaky(0.9)
        self.fc2, self.lif2 = nn.Linear(30, 25), snn.Synaptic(0.8, 0.9)

    def step(self, x, t):
        if self.how == "time last":
            return x[..., t]
        if self.how == "encoded":
            return x[t]
        return x[:, t + 1] if self.how == "offset" else x[:, t]

    def forward(self, x):
        mem1, (syn2, mem2) = self.lif1.init_leaky(), self.lif2.init_synaptic()
        spikes = []
        if self.how == "encoded":
            x = x.clone().transpose(0, 1)
        for t in range(6):
            spk1, mem1 = self.lif1(self.norm(self.fc1(self.step(x, t))), mem1)
            spk2, syn2, mem2 = self.lif2(self.fc2(spk1), syn2, mem2)
            spikes.append(spk2)
        return torch.stack(spikes)


@pytest.mark.parametrize("how", ["batch first", "offset", "time last", "encoded"])
def test_any_sequence_that_a_loop_indexes_becomes_events(how, always):
    model = awake(BatchFirst(how)).double()
    x = (torch.rand(3, 7, 20, dtype=torch.float64) > 0.6).double() * 2
    x = x.transpose(1, 2) if how == "time last" else x
    found = []
    for spike_format in ("auto", "dense"):
        fast = convert(model, spike_format=spike_format)
        seen = inputs_of_linear(fast, x)
        chosen = [SpikeEvents, SpikeTimes] if spike_format == "auto" else [torch.Tensor] * 2
        assert seen == chosen
        fast(x).square().sum().backward()
        out = fast(x)
        found.append([out, *(p.grad for p in fast.parameters())])
    assert found[0][0].any()
    for mine, right in zip(*found, strict=True):
        torch.testing.assert_close(mine, right, rtol=1e-10, atol=1e-10)


def test_hooks_see_dense_tensors(always):
    fast = convert(chain(20, 30, 25))
    seen = []
    x = torch.rand(5, 2, 20)
    fast(x)
    handle = fast[1].register_forward_hook(lambda module, given, out: seen.append(type(out)))
    fast(x)
    handle.remove()
    fast(x)
    assert seen == [torch.Tensor]
    fast[2].register_full_backward_hook(lambda *gradients: seen.append(gradients[2][0].shape))
    loss_of(tensors(fast(x))).backward()
    assert seen[1:] == [(10, 25)]


def test_spike_times_as_inputs(always):
    model = awake(chain(20, 30, 25)).double()
    spikes = SpikeTimes(torch.randint(-1, 7, (3, 20)), 7, dtype=torch.float64)
    fast = convert(model)
    for _ in range(2):
        spk, mem = fast(spikes)
        right = convert(model, spike_format="dense")(spikes.to_dense())
        torch.testing.assert_close((spk, mem), right)


def test_compiled_parts_stay_dense(always):
    model = chain(20, 30, 25)
    model[0] = torch.compile(model[0], backend="eager")
    fast = convert(model)
    assert inputs_of_linear(fast, torch.rand(5, 2, 20)) == [torch.Tensor] * 2


class Binary(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight):
        ctx.x, ctx.weight = x, weight
        return F.linear(x, weight.sign())

    @staticmethod
    def backward(ctx, grad):
        return grad @ ctx.weight.sign(), grad.t() @ ctx.x


class Hidden(nn.Module):
    """Two layers, and what users write between them."""

    def __init__(self, how=""):
        super().__init__()
        self.how, self.kept, self.flag = how, types.SimpleNamespace(), False
        self.fc1, self.lif1 = nn.Linear(20, 30), snn.Leaky(0.9)
        self.fc2, self.lif2 = nn.Linear(30, 25), snn.Leaky(0.9)
        self.fc3, self.lif3 = nn.Linear(25, 10), snn.Leaky(0.9)

    def layer(self, spk):
        if self.how == "function":
            return Binary.apply(spk, self.fc2.weight)
        if self.how == "checkpoint":
            return checkpoint(self.fc2, spk, use_reentrant=True)
        if self.how == "sparse":
            return F.linear(spk, self.fc2.weight.detach().to_sparse()) + self.fc2.bias
        return self.fc2(spk)

    def forward(self, x, hidden=False):
        spk1, _ = self.lif1(self.fc1(x))
        spk2, mem2 = self.lif2(self.layer(spk1))
        spk3, mem3 = self.lif3(self.fc3(spk2))
        if self.how == "kept":
            self.kept.spk, self.kept.mem = spk1, mem2
        return (spk1, mem2, spk3, mem3) if hidden or self.flag else (spk3, mem3)


@pytest.mark.parametrize("how", ["", "function", "checkpoint", "sparse", "kept"])
@pytest.mark.filterwarnings("ignore:the model was not compared", "ignore:None of the inputs")
def test_later_calls_give_what_first_calls_give(how, always):
    model = awake(Hidden(how)).double()
    x = (torch.rand(7, 3, 20, dtype=torch.float64) > 0.6).double() * 2
    found = []
    for spike_format in ("auto", "dense"):
        fast = convert(model, spike_format=spike_format)
        for _ in range(2):
            fast.zero_grad()
            outs = fast(x)
            loss_of(tensors(outs)).backward()
        seen = [*outs, *fast(x, hidden=True), fast.lif1.mem, fast.lif2.mem + 0]
        fast.flag = True
        seen += [*fast(x), *fast(x), *vars(fast.kept).values()]
        fast.eval()
        with torch.no_grad():
            fast(x)
        seen += fast(x)
        found.append([*seen, *(p.grad for p in fast.parameters())])
    for mine, right in zip(*found, strict=True):
        assert type(mine) is type(right)
        torch.testing.assert_close(mine, right, rtol=1e-10, atol=1e-10)


def test_models_that_ask_for_tensors_stay_dense(always):
    class Asks(Hidden):
        def forward(self, x):
            return super().forward(x) if isinstance(x, torch.Tensor) else None

    fast = convert(Asks())
    assert inputs_of_linear(fast, torch.rand(5, 2, 20)) == [torch.Tensor] * 3


def test_the_last_membrane_is_computed_on_its_first_use(always, monkeypatch):
    monkeypatch.setattr(choice, "layer_pays", lambda *_: True)
    fast = convert(chain(20, 30, 25, 10))
    for size in (3, 2):
        fast(torch.rand(7, size, 20))
    state = fast[3].mem
    assert isinstance(state, LastState)
    assert torch.equal(torch.zeros_like(state), torch.zeros(2, 25))
    assert copy.deepcopy(fast)[3].mem.shape == (0,)
    snn.Leaky.detach_hidden()
    assert fast[3].mem is state
    utils.reset(fast)
    assert torch.equal(fast[3].mem, torch.zeros(2, 25))
    fast(torch.rand(7, 2, 20))
    with torch.no_grad():
        fast[2].weight.add_(1)
    with pytest.raises(RuntimeError, match="changed in place since the neurons ran"):
        fast[3].mem.sum()


def test_an_empty_batch_in_the_first_call():
    spk, mem = convert(Hidden())(torch.rand(5, 0, 20))
    assert spk.shape == mem.shape == (5, 0, 10)
