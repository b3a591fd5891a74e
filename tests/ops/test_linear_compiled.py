"""Compiled and exported linear layers from spike times return the same as eager mode."""

import io

import pytest
import torch
import torch._dynamo
from torch import Tensor, nn

from snn_single_spike import (
    LeakyReadout,
    SingleSpikeLeaky,
    SingleSpikeLinear,
    SpikeEvents,
    SpikeTimes,
)
from snn_single_spike.functional import single_spike_linear, spike_count
from snn_single_spike.spikes import LazyCurrent

from tests.support.linear_modules import LEARNS, inputs, net_of
from tests.support.oracle import relative_error


@pytest.fixture(autouse=True)
def _compile_afresh():
    torch._dynamo.reset()


def compiled(module, **options):
    return torch.compile(module, fullgraph=True, backend="aot_eager", **options)


def as_events(spikes):
    return SpikeEvents.from_dense(spikes.to_dense())


def assert_same(made, right):
    assert type(made) is type(right)
    assert made.shape == right.shape
    assert made.dtype == right.dtype
    assert torch.equal(made.to_dense(), right.to_dense())


def outputs_and_gradients(net, call, x):
    net.zero_grad()
    out = call(x)
    out.square().sum().backward()
    return [out.detach(), *(p.grad.clone() for p in net.parameters())]


@pytest.mark.parametrize("kind", [SpikeTimes, SpikeEvents])
@pytest.mark.parametrize("path", ["module", "neuron"])
def test_a_layer_returns_the_spikes_of_the_eager_one(path, kind):
    net = net_of(path)
    x = inputs() if kind is SpikeTimes else as_events(inputs())
    assert_same(compiled(net)(x), net(x))
    assert_same(torch.export.export(net, (x,)).module()(x), net(x))


@pytest.mark.parametrize(
    ("rule", "path", "kind"),
    [
        ("masked", "module", SpikeTimes),
        ("pre_spike", "neuron", SpikeTimes),
        ("straight_through", "module", SpikeEvents),
        ("spike_time", "neuron", SpikeEvents),
        ("masked", "neuron", SpikeEvents),
    ],
)
def test_gradients_are_those_of_the_eager_net(rule, path, kind):
    hidden = SingleSpikeLinear(9, 6, 0.8, gradient=rule, **LEARNS).double()
    hidden.weight.data *= 4
    net = nn.Sequential(
        net_of(path, gradient=rule, **LEARNS),
        hidden,
        nn.Linear(6, 2).double(),
        LeakyReadout(0.9, learn_beta=True).double(),
    )
    right = outputs_and_gradients(net, net, inputs())
    assert all(x.any() for x in right)
    x = inputs() if kind is SpikeTimes else as_events(inputs())
    made = outputs_and_gradients(net, compiled(net), x)
    for mine, expected in zip(made, right, strict=True):
        assert relative_error(mine, expected) < 1e-10


@pytest.mark.parametrize("reduction", ["sum", "max", "last"])
def test_readouts_are_those_of_the_eager_net(reduction):
    readout = LeakyReadout(0.9, learn_beta=True, reduction=reduction).double()
    net = nn.Sequential(net_of("module"), nn.Linear(9, 2).double(), readout)
    right = outputs_and_gradients(net, net, inputs())
    made = outputs_and_gradients(net, compiled(net), inputs())
    for mine, expected in zip(made, right, strict=True):
        assert relative_error(mine, expected) < 1e-10


def test_compiled_layers_among_eager_ones():
    first, second = net_of("module"), SingleSpikeLinear(9, 6, 0.8).double()
    second.weight.data *= 4
    results = []
    for one, two in ((first, second), (compiled(first), second), (first, compiled(second))):
        net = nn.ModuleList([first, second])
        results.append(
            outputs_and_gradients(net, lambda x, f=one, g=two: spike_count(g(f(x))), inputs())
        )
    for made in results[1:]:
        for mine, expected in zip(made, results[0], strict=True):
            assert relative_error(mine, expected) < 1e-12


def test_what_a_compiler_returns():
    module, spikes = net_of("module"), inputs()
    weight = module.weight.detach()

    def run(spikes):
        return single_spike_linear(spikes, weight, None, 0.9, gradient="spike_time")

    made, right = compiled(run)(spikes), run(spikes)
    assert torch.equal(made.times, right.times)
    assert torch.allclose(made.interpolated_times, right.interpolated_times)
    linear = nn.Linear(12, 3).double()
    current = compiled(linear)(spikes)
    assert type(current) is LazyCurrent
    assert torch.equal(current.to_dense(), linear(spikes).to_dense())
    neuron = SingleSpikeLeaky(0.8, spike_format="times").double()
    net = nn.Sequential(linear, neuron)
    (spk, mem), (spk_right, mem_right) = compiled(net)(spikes), net(spikes)
    assert_same(spk, spk_right)
    assert type(mem) is Tensor  # a LazyMembrane in eager mode
    assert torch.allclose(mem, mem_right.to_dense())
    assert_same(compiled(net)(spikes.to_dense())[0], net(spikes.to_dense())[0])


def test_an_exported_layer_is_saved_and_loaded():
    module, spikes = net_of("module"), inputs()
    file = io.BytesIO()
    torch.export.save(torch.export.export(module, (spikes,)), file)
    file.seek(0)
    assert_same(torch.export.load(file).module()(spikes), module(spikes))


def test_batch_sizes_share_a_graph():
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    module = net_of("module")
    call, counts = torch.compile(module, fullgraph=True, backend=counter), []
    for batch in (4, 5, 6, 7):
        spikes = inputs(batch=batch)
        with torch.no_grad():
            assert_same(call(spikes), module(spikes))
        counts.append(counter.frame_count)
    assert counts[1:] == [counts[1]] * 3  # the second batch size makes the size a symbol


def test_a_compiled_layer_without_a_surrogate():
    spikes = inputs()
    layer = SingleSpikeLinear(12, 5, 0.9, threshold=0.1, surrogate_disable=True).double()
    net = nn.Sequential(layer, nn.Linear(5, 3).double(), LeakyReadout(0.9).double())
    compiled(net)(spikes).sum().backward()
    assert layer.weight.grad is None or not layer.weight.grad.any()
    assert net[1].weight.grad.any()


def test_an_exported_layer_runs_in_plain_torch_with_gradients_recorded():
    layer = SingleSpikeLeaky(0.9, init_hidden=True, learn_beta=True, backend="torch")
    x = torch.randn(8, 2, 5)
    program = torch.export.export(layer, (x,))
    assert torch.equal(program.module()(x), layer(x))
