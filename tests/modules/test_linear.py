"""SingleSpikeLinear, and nn.Linear followed by SingleSpikeLeaky, from spike times."""

import copy
import io
import math

import pytest
import torch
from torch import Tensor, nn

from snn_single_spike import (
    LeakyReadout,
    SingleSpikeLeaky,
    SingleSpikeLinear,
    SpikeEvents,
    SpikeTimes,
    backends,
)
from snn_single_spike.functional import linear_readout, single_spike_leaky, single_spike_linear
from snn_single_spike.ops.validation import GRADIENT_RULES
from snn_single_spike.spikes import choice

from tests.support.devices import device_of
from tests.support.linear_modules import LEARNS, gradients, inputs, net_of, net_parameters
from tests.support.oracle import relative_error
from tests.support.surrogates import fused


@pytest.mark.parametrize("options", [{}, LEARNS], ids=["fixed", "learned"])
@pytest.mark.parametrize("rule", GRADIENT_RULES)
@pytest.mark.parametrize("path", ["neuron", "module"])
def test_modules_equal_the_dense_one(path, rule, options, linear_backend):
    device = device_of(linear_backend)
    spikes, results = inputs(device), []
    g = torch.randn(17, 4, 9, dtype=torch.float64, device=device)
    for way in (path, "dense"):
        net = net_of(way, device, linear_backend, gradient=rule, **options)
        out = net(spikes if way == path else spikes.to_dense())
        assert type(out) is (SpikeTimes if way == path else Tensor)
        dense = out.to_dense() if way == path else out
        (dense * g).sum().backward()
        results.append([dense.detach(), *gradients(net)])
    assert results[0][0].any()
    for mine, right in zip(*results, strict=True):
        assert relative_error(mine, right) < 1e-10


@pytest.mark.parametrize("rule", GRADIENT_RULES)
def test_a_dense_input_of_a_module(rule, linear_backend):
    device = device_of(linear_backend)
    dense = torch.rand(17, 4, 12, dtype=torch.float64, device=device).requires_grad_()
    results = []
    for path in ("module", "neuron", "dense"):
        net = net_of(path, device, linear_backend, gradient=rule, **LEARNS)
        out = net(dense)
        spikes = out if path == "dense" else out.to_dense()
        if path != "dense":
            assert isinstance(out, SpikeTimes)
            assert (out.interpolated_times is None) == (rule != "spike_time")
        dense.grad = None
        spikes.square().sum(1)[3:].sum().backward()
        results.append([spikes.detach(), dense.grad, *gradients(net)])
    assert results[0][0].any()
    for result in results[:2]:
        for mine, right in zip(result, results[2], strict=True):
            assert relative_error(mine, right) < 1e-10


def sparse_problem(dtype, high=False):
    """A sparse dense input, and a layer that is wide enough to convert the input to events."""
    make = torch.Generator().manual_seed(0)
    dense = (torch.rand(17, 4, 12, generator=make) < 0.02).to(dtype)
    if high:
        dense *= torch.rand(dense.shape, generator=make).to(dtype) - 0.3
    torch.manual_seed(0)
    layer = SingleSpikeLinear(12, 100, 0.8, threshold=0.05, learn_beta=True).to(dtype)
    return dense, layer


@pytest.fixture
def found(monkeypatch):
    """Count the dense inputs that the layer converts to events."""
    found, from_dense = [], SpikeEvents.from_dense
    spy = lambda dense: (found.append(dense), from_dense(dense))[1]  # noqa: E731
    monkeypatch.setattr(SpikeEvents, "from_dense", spy)
    return found


needs_numba = pytest.mark.skipif(
    backends.explain("cpu")[0] != "numba", reason="numba is not installed"
)


@needs_numba
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("high", [False, True])
def test_a_dense_input_that_is_nearly_all_zeros(high, dtype, found, monkeypatch):
    """The layer converts a sparse dense input to events, with the same results."""
    results = []
    for least in (0, math.inf):
        monkeypatch.setattr(choice, "LEAST_PRODUCTS", least)
        dense, layer = sparse_problem(dtype, high)
        out = layer(dense)
        out.to_dense()[3:].square().sum().backward()
        results.append([out.to_dense().detach(), *gradients(layer)])
    assert len(found) == 1
    assert results[0][0].any()
    for mine, right in zip(*results, strict=True):
        assert relative_error(mine, right) < (1e-10 if dtype == torch.float64 else 1e-5)


@pytest.mark.parametrize("shape", [(198, 128, 99), (25, 128, 784)])
def test_the_share_of_spikes_with_a_constant_column(shape):
    """A sample meets every column: its step has no factor in common with their number."""
    dense = torch.zeros(shape)
    dense[..., 0] = 1
    share = choice._sampled_share(dense)
    assert abs(share * shape[2] - 1) < 0.05


@needs_numba
def test_dense_inputs_that_are_multiplied(found, monkeypatch):
    few, layer = sparse_problem(torch.float32)
    layer(few)  # small
    monkeypatch.setattr(choice, "LEAST_PRODUCTS", 0)
    narrow = SingleSpikeLinear(12, 20, 0.8)
    layer(torch.rand_like(few))
    narrow(few)
    layer(few.clone().requires_grad_())
    layer(few[:, :0])
    with torch.autocast("cpu", torch.bfloat16):
        layer(few)
    layer.bfloat16()(few.bfloat16())
    monkeypatch.setattr(backends, "explain", lambda device: ("torch", "a test"))
    with pytest.warns(UserWarning, match="runs plain torch"):
        layer.float()(few)
    assert not found
    monkeypatch.undo()
    with pytest.raises(RuntimeError, match="same dtype"):
        layer(few.double())


def test_any_height_of_the_spikes_of_a_dense_input(linear_backend):
    device = device_of(linear_backend)
    heights = torch.tensor([-2.0, 1.0, 0.5], device=device)
    neuron = SingleSpikeLeaky(
        0.9, spike_format="times", graded_spikes_factor=heights, learn_graded_spikes_factor=True,
        backend=linear_backend, init_hidden=True, gradient="spike_time",
    )  # fmt: skip
    current = torch.full((5, 2, 3), 0.4, device=device, requires_grad=True)
    spikes = neuron(current)
    assert (spikes.times == 2).all()
    spikes.to_dense()[2].sum().backward()
    assert torch.equal(neuron.graded_spikes_factor.grad, torch.full((3,), 2.0, device=device))
    assert current.grad.isfinite().all()
    assert current.grad[:, :, 1].any()


def test_a_loss_on_the_times_alone(linear_backend):
    device = device_of(linear_backend)
    spikes, results = inputs(device), []
    for path in ("module", "dense"):
        net = net_of(path, device, linear_backend, gradient="spike_time", **LEARNS)
        if path == "module":
            interpolated_times = net(spikes).interpolated_times
        else:
            interpolated_times = single_spike_leaky(
                net[0](spikes.to_dense()), net[1].beta, net[1].threshold, gradient="spike_time"
            ).times
        assert (interpolated_times > 0).any()
        interpolated_times.square().sum().backward()
        results.append([interpolated_times.detach(), *(x for x in gradients(net) if x is not None)])
        assert net_parameters(net)["graded_spikes_factor"].grad is None or not net_parameters(net)[
            "graded_spikes_factor"
        ].grad.any()  # fmt: skip
    for mine, right in zip(results[0], results[1], strict=False):
        if mine.shape == right.shape:
            assert relative_error(mine, right) < 1e-10


@pytest.mark.parametrize("rule", GRADIENT_RULES)
def test_a_graph_kept_for_a_second_pass(rule, linear_backend):
    device = device_of(linear_backend)
    hidden = net_of("module", device, linear_backend, gradient=rule, **LEARNS)
    torch.manual_seed(1)
    output = nn.Linear(9, 2).double().to(device)
    scores = LeakyReadout(0.9, backend=linear_backend)(output(hidden(inputs(device))))
    scores.square().sum().backward(retain_graph=True)
    once = [*gradients(hidden), output.weight.grad]
    once = [x.clone() for x in once if x is not None]
    scores.square().sum().backward()
    twice = [x for x in [*gradients(hidden), output.weight.grad] if x is not None]
    assert all(x.any() for x in once)
    for one, two in zip(once, twice, strict=True):
        assert torch.equal(2 * one, two)


@pytest.mark.parametrize("rule", GRADIENT_RULES)
def test_without_a_gradient(rule, linear_backend):
    device = device_of(linear_backend)
    net = net_of("module", device, linear_backend, gradient=rule, **LEARNS)
    spikes = net(inputs(device))
    with torch.no_grad():
        quiet = net(inputs(device))
    with torch.inference_mode():
        inferred = net(inputs(device))
        assert torch.equal(inferred.to_dense(), spikes.to_dense())
    for other in (quiet, inferred, spikes.detach()):
        assert torch.equal(other.times, spikes.times)
        assert not other.requires_grad
        assert not other.to_dense().requires_grad
        if rule == "spike_time":
            assert torch.equal(other.interpolated_times, spikes.interpolated_times)
            assert not other.interpolated_times.requires_grad
    assert spikes.requires_grad
    frozen = net_of("module", device, linear_backend, gradient=rule).requires_grad_(False)
    assert not frozen(inputs(device)).requires_grad


def test_no_bias(linear_backend):
    device = device_of(linear_backend)
    spikes, results = inputs(device), []
    for bias in (None, torch.zeros(5, dtype=torch.float64, device=device)):
        weight = torch.ones(5, 12, dtype=torch.float64, device=device).cumsum(0) / 9
        out = single_spike_linear(spikes, weight, bias, 0.9, backend=linear_backend)
        results.append(out.times)
    assert torch.equal(*results)
    assert (results[0] >= 0).any()
    module = SingleSpikeLinear(12, 5, 0.9, bias=False)
    assert module.bias is None
    assert "bias" not in module.state_dict()
    assert "bias=False" in repr(module)
    assert module(inputs()).shape == (17, 4, 5)


def soft(u):
    path = torch.sigmoid(4 * u)
    return path + ((u > 0).to(u) - path).detach()


@pytest.mark.parametrize("learns", ["all", "neuron"])
@pytest.mark.parametrize("rule", GRADIENT_RULES)
def test_a_surrogate_of_the_users_own(rule, learns, linear_backend):
    device = device_of(linear_backend)
    spikes, results = inputs(device), []
    for path in ("module", "neuron", "dense"):
        net = net_of(path, device, linear_backend, gradient=rule, spike_grad=soft, **LEARNS)
        if learns == "neuron":
            net_parameters(net)["weight"].requires_grad_(False)
            net_parameters(net)["bias"].requires_grad_(False)
        out = net(spikes.to_dense() if path == "dense" else spikes)
        out = out if path == "dense" else out.to_dense()
        (out.cumsum(0)).square().sum().backward()
        results.append([out.detach(), *gradients(net)])
    assert results[0][1] is not None
    for result in results[:2]:
        for mine, right in zip(result, results[2], strict=True):
            assert (mine is None) == (right is None)
            if mine is not None:
                assert relative_error(mine, right) < 1e-10


def test_a_surrogate_that_learns(linear_backend):
    device = device_of(linear_backend)
    slope = torch.tensor(4.0, dtype=torch.float64, device=device, requires_grad=True)

    def learned(u):
        path = torch.sigmoid(slope * u)
        return path + ((u > 0).to(u) - path).detach()

    net = net_of("module", device, linear_backend, spike_grad=learned).requires_grad_(False)
    net(inputs(device)).to_dense().sum().backward()
    assert slope.grad.abs() > 0


@pytest.mark.parametrize("rule", GRADIENT_RULES)
@pytest.mark.parametrize("path", ["module", "neuron"])
def test_surrogate_disable_stops_gradients_from_spikes(path, rule, linear_backend):
    device = device_of(linear_backend)
    net = net_of(path, device, linear_backend, gradient=rule, surrogate_disable=True)
    spikes = net(inputs(device))
    assert not spikes.requires_grad
    assert not spikes.to_dense().requires_grad
    if rule == "spike_time":
        assert spikes.interpolated_times.requires_grad  # as the times of single_spike_leaky


@pytest.mark.parametrize("learn", [False, True])
def test_state_dicts_load_strictly_both_ways(learn):
    options = {
        "learn_beta": learn,
        "learn_threshold": learn,
        "learn_graded_spikes_factor": learn,
    }
    torch.manual_seed(0)
    pair = nn.Sequential(nn.Linear(12, 9), SingleSpikeLeaky(0.7, init_hidden=True, **options))
    module = SingleSpikeLinear(12, 9, 0.5, **options)
    joined = {name.split(".")[1]: value for name, value in pair.state_dict().items()}
    assert set(joined) == set(module.state_dict())
    module.load_state_dict(joined, strict=True)
    spikes = SpikeTimes(inputs().times, 17)
    assert torch.equal(module(spikes).to_dense(), pair(spikes.to_dense()))
    own = {"weight": "0", "bias": "0"}
    back = {f"{own.get(name, '1')}.{name}": value for name, value in module.state_dict().items()}
    pair.load_state_dict(back, strict=True)
    assert dict(module.named_parameters()).keys() == {
        name.split(".")[1] for name, _ in pair.named_parameters()
    }


def test_initialized_as_torch_does():
    torch.manual_seed(0)
    module = SingleSpikeLinear(12, 9, 0.9, dtype=torch.float64)
    torch.manual_seed(0)
    assert torch.equal(module.weight, nn.Linear(12, 9, dtype=torch.float64).weight)
    meta = SingleSpikeLinear(12, 9, 0.9, device="meta").weight
    assert (meta.shape, meta.device.type) == ((9, 12), "meta")
    assert "12, 9, bias=True" in repr(module)
    assert "spike_format='times'" in repr(module)


@pytest.mark.parametrize("how", ["deepcopy", "save"])
def test_copies_after_a_forward(how):
    net = SingleSpikeLinear(
        12, 9, 0.9, learn_beta=True, spike_grad=fused("fast_sigmoid"), gradient="spike_time"
    )
    spikes = SpikeTimes(inputs().times, 17)
    expected = net(spikes)
    expected.interpolated_times.sum().backward()
    if how == "deepcopy":
        other = copy.deepcopy(net)
    else:
        file = io.BytesIO()
        torch.save(net, file)
        file.seek(0)
        other = torch.load(file, weights_only=False)
    assert torch.equal(other(spikes).times, expected.times)
    assert other(spikes).requires_grad
    assert other.weight.data_ptr() != net.weight.data_ptr()
    assert repr(other) == repr(net)


def test_one_step_at_a_time_goes_through_the_weights():
    net = net_of("module")
    state, num_steps = None, []
    for x in inputs().to_dense():
        out, state = net.step(x, state)
        num_steps.append(out)
    assert torch.equal(torch.stack(num_steps), net(inputs()).to_dense())
    assert torch.stack(num_steps).any()


@pytest.mark.parametrize("option", ["init_hidden", "output", "spike_format"])
def test_options_that_the_module_does_not_have(option):
    with pytest.raises(TypeError, match=f"SingleSpikeLinear does not accept `{option}`: it always"):
        SingleSpikeLinear(3, 4, 0.9, **{option: True})


def test_other_options_that_are_refused():
    with pytest.raises(ValueError, match="spike_format='events'"):
        SingleSpikeLeaky(0.9, spike_format="events")
    with pytest.raises(TypeError, match="unexpected keyword argument 'spam'"):
        SingleSpikeLinear(3, 4, 0.9, spam=1)
    with pytest.raises(ValueError, match="beta contains NaN"):
        SingleSpikeLinear(3, 4, math.nan)
    with pytest.raises(ValueError, match="reduction='mean'"):
        linear_readout(inputs(), torch.zeros(2, 12).double(), None, 0.9, reduction="mean")
    with pytest.raises(ValueError, match=r"beta has shape \(3,\), which does not broadcast"):
        linear_readout(inputs(), torch.zeros(2, 12).double(), None, torch.ones(3).double())


@pytest.mark.parametrize("rule", ["masked", "spike_time"])
def test_spikes_of_height_0_from_a_dense_current_are_spikes(rule):
    current = torch.full((5, 2, 3), 0.6)
    height = torch.tensor([0.0, 1.0, 2.0])
    lif = SingleSpikeLeaky(
        0.9, graded_spikes_factor=height, gradient=rule, init_hidden=True, spike_format="times"
    )
    spikes = lif(current)
    assert torch.equal(spikes.times, torch.ones(2, 3, dtype=torch.int8))
    assert torch.equal(spikes.to_dense()[1], height.expand(2, 3))


@pytest.mark.parametrize(
    ("spikes", "kind", "message"),
    [
        (torch.zeros(5, 2, 3), ValueError, r"\(time, batch, 4\) is expected.*in_features=3"),
        (torch.zeros(5, 2, 1, 4), ValueError, r"use spikes.flatten\(2\)"),
        (SpikeTimes(torch.zeros(2, 2, 2, dtype=int), 5), ValueError, r"use spikes.flatten\(2\)"),
        (torch.zeros(5, 2, 4, dtype=int), TypeError, r"use spikes.float\(\)"),
        (torch.zeros(2, 4), ValueError, "the whole sequence is expected"),
        (None, TypeError, "not NoneType"),
    ],
)
def test_input_that_does_not_fit_the_layer(spikes, kind, message):
    with pytest.raises(kind, match=message):
        SingleSpikeLinear(4, 6, beta=0.9)(spikes)


def test_weights_on_another_device_than_the_spikes(linear_backend):
    spikes = SpikeTimes(torch.zeros(2, 4, dtype=int, device=device_of(linear_backend)), 5)
    weight = torch.rand(6, 4, device="meta")
    for layer in (single_spike_linear, linear_readout):
        with pytest.raises(ValueError, match="weight is on meta, but the spikes"):
            layer(spikes, weight, None, 0.9, backend=linear_backend)


@pytest.mark.parametrize("register", ["register_full_backward_hook", "register_backward_hook",
                                      "register_full_backward_pre_hook"])  # fmt: skip
@pytest.mark.parametrize("layer", [
    lambda: SingleSpikeLinear(3, 4, beta=0.9),
    lambda: nn.Sequential(nn.Linear(3, 4), SingleSpikeLeaky(0.9, spike_format="times")),
])  # fmt: skip
def test_backward_hooks_of_layers_that_return_spike_times_are_rejected(register, layer):
    net = layer()
    hooked = net[1] if isinstance(net, nn.Sequential) else net
    handle = getattr(hooked, register)(lambda *_: None)
    spikes = SpikeTimes(torch.tensor([[0, 1, 2]]), num_steps=4)
    with pytest.raises(RuntimeError, match='no backward hooks.*spike_format="dense"'):
        net(spikes)
    with torch.no_grad():
        net(spikes)
    handle.remove()
    net(spikes)
