"""Random numbers in converted models: one draw for each step and sample, or an error."""

import copy
import random

import numpy as np
import pytest
import snntorch as snn
import torch
import torch.nn.functional as F
from snntorch import spikegen
from torch import nn

from snn_single_spike import ConversionError, convert

from tests.support.networks import leaky

STEPS, BATCH, FEATURES = 5, 3, 6


class Front(nn.Module):
    """A network whose input is changed before the first layer."""

    def __init__(self, draw):
        super().__init__()
        self.draw = draw
        self.fc, self.lif = nn.Linear(FEATURES, FEATURES), snn.Leaky(beta=0.0, threshold=1e9)
        self.generator, self.rng = torch.Generator(), np.random.default_rng(0)
        self.noise = torch.zeros(FEATURES)

    def forward(self, x):
        return self.lif(self.fc(self.draw(self, x)))[1]


RIGHT = {
    "dropout": lambda net, x: F.dropout(x),
    "alpha dropout": lambda net, x: F.alpha_dropout(x, 0.5, net.training),
    "rrelu": lambda net, x: F.rrelu(-x, training=True),
    "bernoulli": lambda net, x: torch.bernoulli(x),
    "rand_like": lambda net, x: x + torch.rand_like(x),
    "in place": lambda net, x: x + torch.empty_like(x).normal_(),
    "of a generator": lambda net, x: x + torch.rand(x.shape, generator=net.generator),
    "of a distribution": lambda net, x: x + torch.distributions.Normal(0.0, 1.0).sample(x.shape),
    "one a sample": lambda net, x: x + torch.rand(len(x), 1),
    "one a head": lambda net, x: x + torch.rand(2 * len(x), 1).unflatten(0, (-1, 2)).sum(1),
    "features first": lambda net, x: x + F.dropout(x.T).T,
    "rate code": lambda net, x: spikegen.rate(x, num_steps=1)[0],
}


@pytest.mark.parametrize("name", RIGHT)
def test_every_step_draws(name):
    static, sequence = Front(RIGHT[name]), torch.rand(STEPS, BATCH, FEATURES)
    rows = []
    for net, x in ((convert(static, num_steps=STEPS), sequence[0]), (convert(static), sequence)):
        net.fc.register_forward_hook(lambda module, inputs, out: rows.append(len(out)))
        for _ in range(2):
            torch.manual_seed(0)
            net.generator.manual_seed(0)
            first = net(x)
            torch.manual_seed(0)
            net.generator.manual_seed(0)
            assert torch.equal(net(x), first)  # the first call draws as later ones do
            x = x.clone()
        if x.dim() == 2:
            assert not torch.equal(first[0], first[1])
    assert set(rows) == {STEPS * BATCH}


def test_a_poisson_code_fires_as_often_as_in_the_loop():
    class Poisson(nn.Module):
        def __init__(self):
            super().__init__()
            self.lif = snn.Leaky(beta=1.0)

        def forward(self, x):
            return self.lif(0.3 * torch.bernoulli(x))

    spk, _ = convert(Poisson(), num_steps=12)(torch.full((5000, 1), 0.5))
    right = 1 - (1 + 12 + 66 + 220) / 2**12  # at least 4 of 12
    assert abs(spk.sum(0).mean().item() - right) < 3 * (right * (1 - right) / 5000) ** 0.5


def shuffled(net, x):
    return x[torch.randperm(len(x))]


WRONG = {
    "one for all samples": (
        lambda net, x: x + torch.randn(x.shape[1:]),
        r"test_chance.py:\d+ draws random numbers of shape \(6,\).*torch.rand_like",
    ),
    "one number": (lambda net, x: x + torch.rand(1), r"of shape \(1,\)"),
    "a scalar": (lambda net, x: x * torch.rand(()), r"of shape \(\)"),
    "weights": (lambda net, x: F.linear(x, F.dropout(net.fc.weight)), r"of shape \(6, 6\)"),
    "in place": (lambda net, x: x + net.noise.normal_(), r"of shape \(6,\)"),
    "in weights": (
        lambda net, x: (net.fc.weight.data.normal_(), x)[1],
        r"of shape \(6, 6\)",
    ),
    "a shuffle": (shuffled, "shuffles with torch.randperm.*mix time steps"),
    "Python": (lambda net, x: x * random.random(), "draws from Python's random.*with torch"),
    "numpy": (lambda net, x: x * np.random.rand(), "numpy.random.*Draw with torch"),  # noqa: NPY002
    "a generator of numpy": (lambda net, x: x * net.rng.random(), "'self.rng'.*Draw with torch"),
}


@pytest.mark.parametrize("num_steps", [None, STEPS])
@pytest.mark.parametrize("name", WRONG)
def test_one_draw_for_all_steps_is_refused(name, num_steps):
    draw, message = WRONG[name]
    x = torch.rand(BATCH, FEATURES) if num_steps else torch.rand(STEPS, BATCH, FEATURES)
    with pytest.raises(ConversionError, match=message):
        convert(Front(draw), num_steps=num_steps)(x)


@pytest.mark.parametrize("num_steps", [None, STEPS])
def test_as_many_weights_as_rows_by_chance(num_steps):
    class Connections(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.rand(STEPS * BATCH, FEATURES))
            self.lif = snn.Leaky(beta=0.9)
            self.of_weights = True

        def forward(self, x):
            if self.of_weights:
                return self.lif(F.linear(x, F.dropout(self.weight)))
            return self.lif(F.linear(F.dropout(x), self.weight))

    fast = convert(Connections(), num_steps=num_steps)
    x = torch.rand(BATCH, FEATURES) if num_steps else torch.rand(STEPS, BATCH, FEATURES)
    with pytest.raises(ConversionError, match=r"draws random numbers of shape \(15, 6\)"):
        fast(x)
    fast.of_weights = False
    torch.manual_seed(0)
    spk, _ = fast(x)
    torch.manual_seed(0)
    assert torch.equal(fast(x)[0], spk)


@pytest.mark.parametrize("steps", [1, 5])
def test_one_draw_for_all_samples_of_a_small_first_batch(steps):
    """Every size is a multiple of one row."""
    net = Front(lambda net, x: x + torch.randn(x.shape[1:]))
    with pytest.raises(ConversionError, match=r"of shape \(6,\)"):
        convert(net)(torch.rand(steps, 1, FEATURES))


def test_as_many_attention_heads_as_steps():
    """A draw of (batch * heads) before the first neuron is one draw for all steps."""

    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention = nn.MultiheadAttention(FEATURES, 2, dropout=0.5, batch_first=True)
            self.lif = snn.Leaky(beta=0.0, threshold=1e9)

        def forward(self, x):
            return self.lif(self.attention(x, x, x)[0])[1]

    mem = convert(Attention(), num_steps=2)(torch.rand(BATCH, 4, FEATURES))
    assert not torch.equal(mem[0], mem[1])


QUIET = {
    "nothing": lambda net, x: x,
    "dropout of nothing": lambda net, x: F.dropout(x, 0.0),
    "rrelu in eval mode": lambda net, x: F.rrelu(-x, training=False),
    "attention": lambda net, x: F.scaled_dot_product_attention(*[x[:, None, None]] * 3)[:, 0, 0],
}


@pytest.mark.parametrize("name", QUIET)
def test_a_front_that_draws_nothing_runs_once(name):
    fast, rows = convert(Front(QUIET[name]), num_steps=STEPS), []
    fast.fc.register_forward_hook(lambda module, inputs, out: rows.append(len(out)))
    for _ in range(2):
        fast(torch.rand(BATCH, FEATURES))
    assert rows == [BATCH, BATCH]


def test_draws_behind_the_first_neuron_leave_the_front_alone():
    net = nn.Sequential(nn.Linear(6, 6), leaky(), nn.Dropout(), nn.Linear(6, 6), leaky(output=True))
    fast, rows = convert(net, num_steps=STEPS), []
    fast[0].register_forward_hook(lambda module, inputs, out: rows.append(len(out)))
    fast(torch.rand(BATCH, 6))
    assert rows == [BATCH]


class Late(nn.Module):
    """Draws, and normalizes, when its input is large."""

    def __init__(self):
        super().__init__()
        self.norm, self.lif = nn.BatchNorm1d(FEATURES), snn.Leaky(beta=0.9, threshold=1e9)
        self.generator, self.own = torch.Generator(), False

    def forward(self, x):
        x = self.norm(x)
        if x.max() > 2:
            return self.lif(x + torch.rand(FEATURES))[1]
        if x.max() > 1:
            x = x + torch.rand(x.shape, generator=self.generator if self.own else None)
        return self.lif(x)[1]


@pytest.mark.filterwarnings("ignore:.*BatchNorm takes its statistics")
@pytest.mark.parametrize("own", [False, True])
def test_a_draw_that_comes_later(own):
    net = Late()
    net.own = own
    x = torch.tensor([[-1.0] * FEATURES, [0.9] * FEATURES])  # normalized to 1 and -1
    calm, noisy = x / 1e3, torch.cat([x, x, x * 0])
    fast = convert(net, num_steps=STEPS)
    fast(calm)
    other = copy.deepcopy(fast)  # its next call is its first
    found = []
    for each in (fast, other):
        torch.manual_seed(3)
        each.generator.manual_seed(3)
        found.append(each(noisy))
    assert torch.equal(*found)
    assert not torch.equal(found[0][0], found[0][1] - 0.9 * found[0][0])
    for mine, right in zip(fast.norm.buffers(), other.norm.buffers(), strict=True):
        assert torch.equal(mine, right)
    fast = convert(net, num_steps=STEPS)
    fast(calm)
    with pytest.raises(ConversionError, match=r"of shape \(6,\)"):
        fast(torch.cat([x[:1] * 20, *[x * 0] * 3]).abs())


def test_noise_that_is_switched_on_in_a_model_with_dropout():
    def draw(net, x):
        x = F.dropout(x)
        return x + torch.rand(1) if net.noisy else x

    net = Front(draw)
    net.noisy = False
    fast, x = convert(net), torch.rand(STEPS, BATCH, FEATURES)
    fast(x)
    fast.noisy = True
    with pytest.raises(ConversionError, match=r"of shape \(1,\)"):
        fast(x)


def test_noise_of_hooks():
    def noisy(module, inputs, *out):
        x = out[0] if out else inputs[0]
        return x + torch.rand_like(x)

    x = torch.rand(BATCH, FEATURES)
    fast = convert(Front(lambda net, x: x), num_steps=STEPS)
    fast.fc.register_forward_hook(noisy)
    mem = fast(x)
    assert not torch.equal(mem[0], mem[1])
    whole = convert(Front(lambda net, x: x))
    whole.register_forward_pre_hook(noisy)
    assert whole(x.expand(STEPS, *x.shape)).isfinite().all()
    static = convert(Front(lambda net, x: x), num_steps=STEPS)
    static.register_forward_pre_hook(noisy)
    with pytest.raises(ConversionError, match="register the hook on the first layer"):
        static(x)


def test_lazy_layers_draw_their_weights_only():
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc, self.lif = None, snn.Leaky(beta=0.9)

        def forward(self, x):
            if self.fc is None:
                self.fc = nn.Linear(x.size(1), 4)
            return self.lif(self.fc(x))

    x = torch.rand(STEPS, BATCH, FEATURES)
    for make in (lambda: nn.Sequential(nn.LazyLinear(4), leaky(output=True)), Own):
        for net, given in ((convert(make()), x), (convert(make(), num_steps=STEPS), x[0])):
            spk, _ = net(given)
            assert torch.equal(net(given)[0], spk)


def test_compiled_models_draw_at_every_step():
    net = nn.Sequential(nn.Dropout(), nn.Linear(50, 50), snn.Leaky(0.0, threshold=1e9, output=True))
    x = torch.ones(2, 50)
    fast = convert(net, num_steps=STEPS)
    _, mem = torch.compile(fast, fullgraph=True, backend="aot_eager")(x)
    assert not torch.equal(mem[0], mem[1])


def test_a_compiled_front_stays_compiled():
    compiled = []

    def backend(graph, inputs):
        compiled.append(graph)
        return graph

    front = torch.compile(nn.Sequential(nn.Linear(6, 6), nn.Dropout()), backend=backend)
    fast = convert(nn.Sequential(front, snn.Leaky(0.0, threshold=1e9, output=True)), num_steps=5)
    _, mem = fast(torch.rand(3, 6))
    assert compiled
    assert not torch.equal(mem[0], mem[1])
