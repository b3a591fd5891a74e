"""nn.Conv1d and nn.Conv2d of spike times: a neuron computes their current when it reads it."""

import pickle
import warnings

import pytest
import snntorch as snn
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from snn_single_spike import (
    LeakyReadout,
    MaterializationWarning,
    SingleSpikeConv1d,
    SingleSpikeConv2d,
    SingleSpikeLeaky,
    SpikeEvents,
    SpikeTimes,
    convert,
)
from snn_single_spike.ops.validation import GRADIENT_RULES
from snn_single_spike.spikes import ConvCurrent

from tests.support.linear_problems import CPU_BACKENDS
from tests.support.oracle import relative_error, rounding_decides_a_peak

STEPS = 9
LEARNS = {"learn_beta": True, "learn_threshold": True, "learn_graded_spikes_factor": True}


@pytest.fixture(autouse=True)
def _loud():
    with warnings.catch_warnings():
        warnings.simplefilter("error", MaterializationWarning)
        yield


def times_of(*features, batch=3, seed=1):
    make = torch.Generator().manual_seed(seed)
    return SpikeTimes(
        torch.randint(-1, STEPS, (batch, *features), generator=make), STEPS, dtype=torch.float64
    )


NETS = {
    "conv": lambda: [nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(4, 3, 3, stride=2), 3 * 16],
    "max pooling": lambda: [
        nn.Sequential(nn.Conv2d(2, 18, 3, padding=1), nn.MaxPool2d(2)),
        nn.Sequential(nn.Conv2d(18, 4, 2, padding=1, groups=2), nn.MaxPool2d((3, 2))),
        4 * 2,
    ],
    "average pooling": lambda: [
        nn.Conv2d(2, 4, 3),
        nn.Sequential(nn.AvgPool2d(2), nn.Conv2d(4, 3, 2)),
        3 * 4,
    ],
    "averages of currents": lambda: [
        nn.Sequential(nn.Conv2d(2, 4, 3), nn.AvgPool2d(3, 2)),
        nn.Sequential(nn.Conv2d(4, 6, 2, padding=1, groups=2), nn.AvgPool2d(2)),
        6 * 4,
    ],
    "batch norm": lambda: [
        nn.Sequential(nn.Conv2d(2, 4, 3), batch_norm(4), nn.MaxPool2d(2)),
        nn.Sequential(nn.Conv2d(4, 3, 2, bias=False), batch_norm(3)),
        3 * 4,
    ],
}


def batch_norm(channels):
    made = nn.BatchNorm2d(channels)
    for value in (made.weight, made.bias, made.running_mean, made.running_var):
        value.data.copy_(torch.rand(channels) / 4)
    made.weight.data.sub_(0.1)  # a negative factor
    return made


def network(name):
    """As written for snnTorch. Weights are large enough for most neurons to fire."""
    torch.manual_seed(0)
    one, two, units = NETS[name]()
    channels = next(x.out_channels for x in two.modules() if isinstance(x, nn.Conv2d))
    hidden = {"init_hidden": True, "learn_beta": True}
    net = nn.Sequential(
        one,
        snn.Leaky(beta=0.9, threshold=0.4, learn_threshold=True, **hidden),
        two,
        snn.Leaky(beta=torch.rand(channels, 1, 1) / 2 + 0.5, threshold=0.2, **hidden),
        nn.Flatten(),
        nn.Linear(units, 5),
        snn.Leaky(beta=0.8, init_hidden=True, output=True, threshold=0.3),
    ).double()
    for layer in net.modules():
        if isinstance(layer, nn.Conv2d):
            layer.weight.data.mul_(2)
    return net.eval()


@pytest.mark.filterwarnings("ignore:.*BatchNorm takes its statistics")
@pytest.mark.parametrize("kind", ["times", "events"])
@pytest.mark.parametrize("rule", GRADIENT_RULES)
@pytest.mark.parametrize("name", NETS)
def test_a_converted_network(name, rule, kind, monkeypatch):
    """Spikes, membrane and all gradients equal those from dense tensors, without dense maps."""
    monkeypatch.setattr("snn_single_spike.spikes.pooling.SPARSE", 0)  # always events
    spikes = times_of(2, 9, 9)
    if kind == "events":
        make = torch.Generator().manual_seed(1)
        dense = torch.rand((STEPS, 3, 2, 9, 9), generator=make, dtype=torch.float64)
        spikes = SpikeEvents.from_dense(dense * 8 * (dense < 0.08))
    results = []
    for form in ("times", "dense"):
        net = convert(network(name), spike_format=form, gradient=rule)
        spk, mem = net(spikes if form == "times" else spikes.to_dense())
        spk, mem = (x if isinstance(x, torch.Tensor) else x.to_dense() for x in (spk, mem))
        ramp = torch.arange(STEPS, dtype=torch.float64).view(-1, 1, 1)
        (mem.square().sum() + (spk * ramp).sum()).backward()
        results.append([spk.detach(), mem.detach(), *(p.grad for p in net.parameters())])
    assert results[0][0].any()
    for mine, right in zip(*results, strict=True):
        assert (mine is None) == (right is None)
        if mine is not None:
            assert relative_error(mine, right) < 1e-9


@pytest.mark.parametrize("rule", GRADIENT_RULES)
@pytest.mark.parametrize("options", [{}, LEARNS], ids=["fixed", "learned"])
def test_modules_equal_the_dense_ones(options, rule, cpu_backend):
    beta = torch.rand(4, 1, 1, dtype=torch.float64) / 2 + 0.5
    how = {"gradient": rule, "backend": cpu_backend, "threshold": 0.4, **options}
    net = nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1), SingleSpikeLeaky(beta, init_hidden=True, **how)
    ).double()
    layer = SingleSpikeConv2d(2, 4, 3, beta, padding=1, **how).double()
    layer.load_state_dict({name[2:]: value for name, value in net.state_dict().items()})
    spikes, results = times_of(2, 6, 6), []
    dense = spikes.to_dense().flatten(0, 1)
    for module in (layer, net):
        if module is layer:
            out = layer(spikes).to_dense()
        else:
            out = net[1](net[0](dense).unflatten(0, (STEPS, 3)))
        (out * torch.arange(STEPS).view(-1, 1, 1, 1, 1)).sum().backward()
        grads = {name.rpartition(".")[2]: p.grad for name, p in module.named_parameters()}
        results.append([out.detach(), *(grads[name] for name in sorted(grads))])
    assert results[0][0].any()
    for mine, right in zip(*results, strict=True):
        assert relative_error(mine, right) < 1e-10


@settings(max_examples=30)
@given(
    num_steps=st.sampled_from([1, 2, 7, 70]),
    batch=st.integers(1, 3),
    groups=st.integers(1, 2),
    channels=st.tuples(st.integers(1, 2), st.sampled_from([1, 3, 17])),
    maps=st.tuples(st.integers(4, 9), st.integers(4, 9)),
    kernel=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    how=st.tuples(st.integers(1, 3), st.integers(0, 2), st.integers(1, 2)),
    window=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    rule=st.sampled_from(GRADIENT_RULES),
    bias=st.booleans(),
    backend=st.sampled_from(CPU_BACKENDS),
    seed=st.integers(0, 2**16),
)
def test_any_sizes_with_a_maximum_of_windows(
    num_steps, batch, groups, channels, maps, kernel, how, window, rule, bias, backend, seed
):
    torch.manual_seed(seed)
    stride, padding, dilation = how
    conv = nn.Conv2d(
        groups * channels[0], groups * channels[1], kernel, stride, padding, dilation, groups, bias
    ).double()
    try:
        out = conv(torch.zeros(1, groups * channels[0], *maps, dtype=torch.float64))
    except RuntimeError:
        assume(False)  # the kernel is larger than the maps
    assume(out.shape[2] >= window[0] and out.shape[3] >= window[1])
    times = torch.randint(-num_steps, num_steps, (batch, conv.in_channels, *maps)).clamp(min=-1)
    dense = SpikeTimes(times, num_steps, dtype=torch.float64).to_dense()
    beta = torch.rand(conv.out_channels, 1, 1, generator=torch.Generator().manual_seed(seed))
    current = conv(dense.flatten(0, 1)).unflatten(0, dense.shape[:2])
    assume(rule != "spike_time" or not rounding_decides_a_peak(current, beta.double(), 0.2))
    g, found = None, []
    for form in ("times", "dense"):
        neuron = SingleSpikeLeaky(
            beta,
            **{"threshold": 0.2, "init_hidden": True, "gradient": rule, "spike_format": form},
            backend=backend,
        ).double()
        leaf = dense.clone().requires_grad_()
        x = SpikeTimes.from_dense(leaf).fold() if form == "times" else leaf.flatten(0, 1)
        current = F.max_pool2d(conv(x), window)
        if form == "times":
            assert isinstance(current, ConvCurrent)
            spk = neuron(current.unfold()).to_dense()
        else:
            spk = neuron(current.unflatten(0, (num_steps, batch)))
        g = torch.randn_like(spk) if g is None else g
        grads = torch.autograd.grad((spk * g).sum(), (leaf, *conv.parameters()))
        found.append([spk.detach(), *grads])
    for mine, right in zip(*found, strict=True):
        assert relative_error(mine, right) < 1e-7  # a slow crossing divides by a small number


@pytest.mark.parametrize("batch", [1, 3])
def test_gradients_do_not_depend_on_threads(batch):
    """With fewer samples than threads the steps of the gradient to the inputs are shared."""
    before, found = torch.get_num_threads(), []
    net = network("max pooling")
    spikes = times_of(2, 9, 9, batch=batch)
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            fast = convert(net, spike_format="times")
            fast(spikes)[1].to_dense().square().sum().backward()
            found.append([p.grad for p in fast.parameters()])
    finally:
        torch.set_num_threads(before)
    assert found[0][0].any()
    for one, two in zip(*found, strict=True):
        if one is not None:
            torch.testing.assert_close(one, two, rtol=1e-12, atol=1e-12)


def test_kept_maxima_have_the_size_of_the_adjoint(monkeypatch):
    """Of a few channels per group, whose cells are padded to whole vectors."""
    loops = pytest.importorskip("snn_single_spike.backends.numba.conv")
    kept, made = [], loops._winner
    monkeypatch.setattr(loops, "_winner", lambda *of: kept.append(made(*of)) or kept[-1])
    net = convert(network("max pooling"), spike_format="times")
    net(times_of(2, 9, 9))[1].to_dense().sum().backward()
    assert [tuple(x.shape) for x in kept] == [(STEPS, 3, 2 * 2, 2)]  # groups * windows, O / groups


def test_a_dense_input_and_one_step_at_a_time():
    layer = SingleSpikeConv2d(2, 4, 3, 0.9, threshold=0.3).double()
    spikes = times_of(2, 6, 6)
    made = layer(spikes)
    assert torch.equal(layer(spikes.to_dense()).times, made.times)
    state, steps = None, []
    for x in spikes.to_dense():
        spk, state = layer.step(x, state)
        steps.append(spk)
    assert torch.equal(torch.stack(steps), made.to_dense())
    events = SpikeEvents.from_dense(spikes.to_dense())
    assert torch.equal(layer(events).times, made.times)


def test_one_dimension():
    layer = SingleSpikeConv1d(2, 4, 3, torch.rand(4, 1), padding="same", threshold=0.3).double()
    conv = nn.Conv1d(2, 4, 3, padding="same").double()
    conv.load_state_dict({name: layer.state_dict()[name] for name in ("weight", "bias")})
    spikes = times_of(2, 8)
    current = conv(spikes)
    assert isinstance(current, ConvCurrent)
    assert current.shape == (STEPS, 3, 4, 8)
    dense = conv(spikes.to_dense().flatten(0, 1)).unflatten(0, (STEPS, 3))
    torch.testing.assert_close(current.to_dense(), dense)
    neuron = SingleSpikeLeaky(layer.beta, threshold=0.3, spike_format="times")
    spk, mem = neuron(current)
    right, right_mem = SingleSpikeLeaky(layer.beta, threshold=0.3)(dense)
    assert torch.equal(layer(spikes).times, spk.times)
    assert torch.equal(spk.to_dense(), right)
    torch.testing.assert_close(mem.to_dense(), right_mem)
    pooled = F.max_pool1d(current, 3)
    assert isinstance(pooled, ConvCurrent)
    expected = F.max_pool1d(dense.flatten(0, 1), 3).unflatten(0, (STEPS, 3))
    torch.testing.assert_close(pooled.to_dense(), expected)
    spk, _ = neuron(pooled)
    assert torch.equal(spk.to_dense(), SingleSpikeLeaky(layer.beta, threshold=0.3)(expected)[0])


def test_windows_of_a_maximum_that_fall_back_to_dense_maps():
    current = nn.Conv2d(2, 4, 3).double()(times_of(2, 8, 8).fold())
    dense = current.to_dense()
    others = {
        "stride": {"kernel_size": 3, "stride": 2},
        "padding": {"kernel_size": 2, "padding": 1},
        "ceil": {"kernel_size": 4, "ceil_mode": True},
        "dilation": {"kernel_size": 2, "dilation": 2},
        "indices": {"kernel_size": 2, "return_indices": True},
    }
    for options in others.values():
        with pytest.warns(MaterializationWarning, match="max_pool2d.* does not support"):
            made = F.max_pool2d(current, **options)
        expected = F.max_pool2d(dense, **options)
        if isinstance(made, tuple):
            made, expected = torch.stack(made), torch.stack(expected)
        assert torch.equal(made, expected)
    twice = F.max_pool2d(current, 2)
    with pytest.warns(MaterializationWarning):
        assert torch.equal(F.max_pool2d(twice, 3), F.max_pool2d(F.max_pool2d(dense, 2), 3))


POOLS = [
    ((2,), {}, {}),
    ((3, 1), {"stride": 2, "dilation": 2, "padding": 3}, {}),
    (((2, 3), (3, 2)), {"stride": (1, 2), "padding": (0, 2), "groups": 2}, {}),
    ((3,), {"dilation": (1, 3)}, {"count_include_pad": False}),
]


@pytest.mark.parametrize(("window", "how", "options"), POOLS, ids=repr)
def test_an_average_of_currents_is_a_convolution(window, how, options):
    conv = nn.Conv2d(2, 4, (3, 2), **how).double()
    current = conv(times_of(2, 9, 10).fold())
    made = F.avg_pool2d(current, *window, **options)
    assert isinstance(made, ConvCurrent)
    dense, expected = made.to_dense(), F.avg_pool2d(current.to_dense(), *window, **options)
    assert relative_error(dense, expected) < 1e-12
    grads = [torch.autograd.grad(x.square().sum(), conv.parameters()) for x in (dense, expected)]
    for mine, right in zip(*grads, strict=True):
        assert relative_error(mine, right) < 1e-12


def test_an_average_in_one_dimension():
    current = nn.Conv1d(2, 4, 3).double()(times_of(2, 11).fold())
    made = F.avg_pool1d(current, 3, 2)
    assert isinstance(made, ConvCurrent)
    assert relative_error(made.to_dense(), F.avg_pool1d(current.to_dense(), 3, 2)) < 1e-12


def test_averages_and_batch_norms_that_fall_back_to_dense_maps():
    current = nn.Conv2d(2, 4, 3).double()(times_of(2, 8, 8).fold())
    pooled, dense = F.max_pool2d(current, 2), F.max_pool2d(current.to_dense(), 2)
    norm = batch_norm(4).double().eval()
    others = [
        (lambda x: F.avg_pool2d(x, 2, padding=1), current),
        (lambda x: F.avg_pool2d(x, 3, ceil_mode=True), current),
        (lambda x: F.avg_pool2d(x, 2, divisor_override=3), current),
        (lambda x: F.avg_pool2d(x, 2), pooled),
        (norm, pooled),  # a negative factor
        (nn.BatchNorm2d(4).double(), current),  # in training
        (nn.BatchNorm2d(4, track_running_stats=False).double().eval(), current),
    ]
    for layer, x in others:
        with pytest.warns(MaterializationWarning, match="ConvCurrent"):
            made = layer(x)
        given = dense if x is pooled else current.to_dense()
        assert relative_error(made, layer(given)) < 1e-12
    norm.weight.data.abs_()
    made = norm(pooled)
    assert isinstance(made, ConvCurrent)
    assert relative_error(made.to_dense(), norm(dense)) < 1e-12


def test_ties_and_bias_in_windows(cpu_backend):
    """Untouched positions have the bias; of equal positions the first one gets the gradient."""
    weight = torch.tensor([1.0, -1.0], dtype=torch.float64).view(2, 1, 1, 1)
    times = torch.tensor([[0, 0, 1, -1], [0, 2, 1, 3]]).view(1, 1, 2, 4)
    found = []
    for path in ("times", "dense"):
        w, b = weight.clone().requires_grad_(), torch.tensor([0.1, 0.2], dtype=torch.float64)
        b.requires_grad_()
        source = SpikeTimes(times, 4, dtype=torch.float64).to_dense().requires_grad_()
        x = SpikeTimes.from_dense(source).fold() if path == "times" else source.flatten(0, 1)
        current = F.max_pool2d(F.conv2d(x, w, b), 2)
        current = current.unfold() if path == "times" else current.unflatten(0, (4, 1))
        form = path if path == "times" else "dense"
        neuron = SingleSpikeLeaky(
            0.5, threshold=0.35, spike_format=form, init_hidden=True, backend=cpu_backend
        )
        spk = neuron(current)
        dense = spk.to_dense() if path == "times" else spk
        (dense * torch.arange(1.0, 5).view(-1, 1, 1, 1, 1)).sum().backward()
        found.append([dense.detach(), w.grad, b.grad, source.grad])
    for mine, right in zip(*found, strict=True):
        torch.testing.assert_close(mine, right, rtol=1e-12, atol=1e-12)


def test_a_current_is_opened_before_its_weights_change():
    conv = nn.Conv2d(2, 4, 3).double()
    current = conv(times_of(2, 6, 6))
    copy = pickle.loads(pickle.dumps(current.detach()))
    assert torch.equal(copy.to_dense(), current.to_dense())
    conv.weight.data.add_(1)
    with torch.no_grad():
        conv.weight.add_(1)
    with pytest.raises(RuntimeError, match="current of a convolution"):
        current.to_dense()


def test_what_becomes_dense_warns_and_is_right():
    spikes = times_of(2, 6, 6)
    conv = nn.Conv2d(2, 4, 3).double()
    with pytest.warns(MaterializationWarning, match="LeakyReadout does not support ConvCurrent"):
        scores = LeakyReadout(0.9)(conv(spikes))
    assert scores.shape == (3, 4, 4, 4)
    uneven = SpikeTimes(spikes.times, STEPS, height=torch.rand(2, 6, 6, dtype=torch.float64) + 0.5)
    with pytest.warns(MaterializationWarning, match="height differs in a channel"):
        made = SingleSpikeConv2d(2, 4, 3, 0.9).double()(uneven)
    assert isinstance(made, SpikeTimes)
    with pytest.warns(MaterializationWarning, match="custom spike_grad"):
        SingleSpikeConv2d(2, 4, 3, 0.9, spike_grad=lambda u: torch.sigmoid(u)).double()(spikes)


class _Net(nn.Module):
    def __init__(self, rule):
        super().__init__()
        how = {"gradient": rule, "threshold": 0.2, "learn_beta": True}
        self.one = SingleSpikeConv2d(1, 4, 3, torch.rand(4, 1, 1) / 2 + 0.5, **how)
        self.two, self.pool = nn.Conv2d(4, 3, 2), nn.MaxPool2d(2)
        self.lif = SingleSpikeLeaky(0.9, init_hidden=True, spike_format="times", **how)
        self.out = nn.Sequential(nn.Linear(12, 5), LeakyReadout(0.9))

    def forward(self, x):
        hidden = self.lif(self.pool(self.two(self.one(x))))
        return self.out(hidden.flatten(2)), hidden.times


@pytest.mark.parametrize("rule", ["masked", "spike_time"])
def test_compiled_and_exported(rule):
    net, spikes, found = _Net(rule).double(), times_of(1, 7, 7), []
    for run in (net, torch.compile(net, fullgraph=True, backend="aot_eager")):
        scores, times = run(spikes)
        scores.square().sum().backward()
        found.append([times, scores.detach(), *(p.grad.clone() for p in net.parameters())])
        net.zero_grad()
    assert (found[0][0] >= 0).any()
    for mine, right in zip(*found, strict=True):
        torch.testing.assert_close(mine, right, rtol=1e-9, atol=1e-9)
    if rule == "masked":
        exported = torch.export.export(net, (spikes,)).module()
        assert torch.equal(exported(spikes)[0], net(spikes)[0])


def test_options_that_are_refused():
    with pytest.raises(TypeError, match="followed by SingleSpikeLeaky"):
        SingleSpikeConv2d(1, 2, 3, 0.9, output=True)
    with pytest.raises(ValueError, match="padding_mode='reflect' is not supported"):
        SingleSpikeConv2d(1, 2, 3, 0.9, padding_mode="reflect")
    with pytest.raises(ValueError, match=r"\(time, batch, 1, height, width\) is expected"):
        SingleSpikeConv2d(1, 2, 3, 0.9)(times_of(2, 6, 6))
    with pytest.raises(TypeError, match="unpack"):
        SingleSpikeConv1d(1, 2, 3, 0.9)((times_of(2, 6), None))
    assert "groups=2, bias=False" in repr(SingleSpikeConv2d(2, 2, 3, 0.9, groups=2, bias=False))
