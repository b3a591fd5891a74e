"""Neurons with ``refractory``: every spike of snnTorch, and refractory periods."""

import pickle

import pytest
import snntorch as snn
import torch
from snntorch import surrogate
from torch import nn
from torch.utils.data import default_collate

from snn_single_spike import (
    FusedLeaky,
    LeakyReadout,
    SingleSpikeAlpha,
    SingleSpikeLapicque,
    SingleSpikeLeaky,
    SingleSpikeLinear,
    SingleSpikeSynaptic,
    SpikeEvents,
    SpikeTimes,
)
from snn_single_spike.functional import single_spike_leaky, spike_count
from snn_single_spike.ops.validation import RESETS
from snn_single_spike.spikes import LazyCurrent, choice, events

from tests.support import sequential
from tests.support.devices import device_of
from tests.support.surrogates import differentiable, fused, smooth

READERS = {
    "linear, every spike": lambda: nn.Sequential(nn.Linear(19, 5), FusedLeaky(0.8)),
    "linear, one spike": lambda: nn.Sequential(nn.Linear(19, 5), SingleSpikeLeaky(0.8)),
    "SingleSpikeLinear": lambda: SingleSpikeLinear(19, 5, 0.8),
    "readout": lambda: nn.Sequential(nn.Linear(19, 5), LeakyReadout(0.9)),
    "spike_count": lambda: lambda spikes: spike_count(spikes, "sample"),
    "dense operation": lambda: lambda spikes: spikes.sin(),
    "dropout": lambda: nn.Dropout(0.0),
    "several": lambda: lambda spikes: spike_count(spikes) + spikes.cumsum(0)[-1].sum(0),
}

SHAPE = (2, 19)  # whole vectors of the numba loops, and a rest


def by_steps(lif, x, *state):
    rows = []
    for step in x:
        spk, *state = lif(step, *state)
        rows.append((spk, *state))
    return [torch.stack(values) for values in zip(*rows, strict=True)]


def tied(*shape):
    """Multiples of 1/4: with a decay of 1/2 many membranes are exactly at the threshold."""
    return torch.randint(-2, 5, shape) / 4


@pytest.mark.parametrize("inputs", [torch.randn, tied])
@pytest.mark.parametrize("reset", RESETS)
def test_every_spike_of_snntorch_bit_for_bit(reset, inputs, cpu_backend):
    x, mem = inputs(2000, *SHAPE), 3 * torch.rand(SHAPE)  # some begin above the threshold
    options = {"reset_mechanism": reset, "graded_spikes_factor": 0.5}
    expected = by_steps(snn.Leaky(0.5, **options), x, mem)
    ours = FusedLeaky(0.5, **options, backend=cpu_backend)(x, mem)
    assert expected[0].sum(0).max() > 100
    for mine, right in zip(ours, expected, strict=True):
        assert torch.equal(mine, right)
    given = (torch.zeros(SHAPE), mem)
    expected = by_steps(snn.Synaptic(0.5, 0.25, reset_mechanism=reset), x, *given)
    options = {"reset_mechanism": reset, "backend": cpu_backend, "refractory": 0}
    for mine, right in zip(
        SingleSpikeSynaptic(0.5, 0.25, **options)(x, *given), expected, strict=True
    ):
        assert torch.equal(mine, right)


def arguments(num_steps=13):
    x = torch.randn(num_steps, *SHAPE, dtype=torch.float64)
    parameters = {
        "beta": torch.rand(19, dtype=torch.float64),
        "threshold": 0.4 + 0.6 * torch.rand(19, dtype=torch.float64),
        "factor": 0.5 + torch.rand(19, dtype=torch.float64),
    }
    parameters["beta"][0] = 1.5  # clipped
    return x, parameters, torch.rand(SHAPE, dtype=torch.float64) * 2


def run_reference(arguments, reset, refractory, loss, smooth):
    x, parameters, mem = (leaf(value) for value in arguments)
    trace = sequential.run(
        *(sequential.leaky, x, parameters, {"mem": mem}, smooth, "masked", reset, refractory)
    )
    mem_rec = trace.states["mem"]
    given = (x, *parameters.values(), mem)
    grads = torch.autograd.grad((loss[0] * trace.spikes + loss[1] * mem_rec).sum(), given)
    return trace.spikes, mem_rec, grads


def leaf(value, device="cpu"):
    if isinstance(value, dict):
        return {name: leaf(x, device) for name, x in value.items()}
    return value.to(device, copy=True).requires_grad_()


def run_ours(arguments, reset, refractory, loss, **options):
    device = device_of(options["backend"])
    x, parameters, mem = (leaf(value, device) for value in arguments)
    loss = loss.to(device)
    out = single_spike_leaky(
        x, parameters["beta"], parameters["threshold"], mem=mem, reset_mechanism=reset,
        graded_spikes_factor=parameters["factor"], refractory=refractory, **options,
    )  # fmt: skip
    total = (loss[0] * out.spikes + loss[1] * out.mem).sum()
    grads = torch.autograd.grad(total, (x, *parameters.values(), mem))
    return [value.cpu() for value in (*out, *grads)]


@pytest.mark.parametrize("how", ["saved", "recompute", "custom surrogate"])
@pytest.mark.parametrize("refractory", [0, 1, 5, 50])
@pytest.mark.parametrize("reset", RESETS)
def test_gradients_are_backpropagation_through_time(reset, refractory, how, backend):
    given, loss = arguments(), torch.randn(2, 13, *SHAPE, dtype=torch.float64)
    function = smooth("atan")
    spikes, mem, expected = run_reference(given, reset, refractory, loss, function)
    options = {"spike_grad": function if how == "custom surrogate" else fused("atan")}
    options |= {"recompute": how == "recompute", "backend": backend}
    last = (torch.arange(1, 14)[:, None, None] * (spikes != 0)).amax(0) - 1
    ours = run_ours(given, reset, refractory, loss, **options)
    for mine, right in zip(ours, (spikes, mem, last, *expected), strict=True):
        assert torch.allclose(mine, right, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", ["fast_sigmoid", "sigmoid", "triangular"])
def test_gradients_against_autograd_through_snntorch(name):
    """In float32: snnTorch's surrogates round to it."""
    spike_grad = {
        "fast_sigmoid": surrogate.fast_sigmoid(10),
        "sigmoid": surrogate.sigmoid(5),
        "triangular": surrogate.triangular(),
    }[name]
    options = {"spike_grad": spike_grad, "learn_beta": True, "learn_threshold": True}
    theirs, ours = snn.Leaky(0.8, **options), FusedLeaky(0.8, **options)
    x, y = (torch.randn(30, *SHAPE).requires_grad_() for _ in range(2))
    y.data.copy_(x.data)
    expected = by_steps(theirs, x, torch.zeros(SHAPE))
    weights = torch.randn(2, 30, *SHAPE)
    for (spk, mem), given in ((expected, x), (ours(y), y)):
        (spk * weights[0] + mem * weights[1]).sum().backward()
        given.grad /= given.grad.norm()
    assert torch.allclose(y.grad, x.grad, atol=1e-6)
    for parameter in ("beta", "threshold"):
        right = getattr(theirs, parameter).grad
        assert torch.allclose(getattr(ours, parameter).grad, right, rtol=1e-4)


@pytest.mark.parametrize("reset", RESETS)
def test_a_period_as_long_as_the_sequence_is_one_spike(reset, cpu_backend):
    x, parameters, mem = arguments()
    given = (x, parameters, mem.clamp(max=0.3))
    loss = torch.randn(2, 13, *SHAPE, dtype=torch.float64)
    options = {"backend": cpu_backend}
    once = run_ours(given, reset, None, loss, **options)
    for mine, right in zip(run_ours(given, reset, 13, loss, **options), once, strict=True):
        assert torch.allclose(mine, right, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("refractory", [0, 3])
def test_half_precision_decides_spikes_in_float32(refractory, backend):
    """A membrane that is rounded to the type of the input may be at the threshold."""
    device, dtype = device_of(backend), torch.bfloat16
    given = tuple(torch.full((1,), value, device=device) for value in (0.9, 1.0))
    x = torch.randn(12, *SHAPE).to(device, dtype)
    weights = torch.randn(12, *SHAPE).to(device)
    results = []
    for kind in (dtype, torch.float32):
        for recompute in (False, True):
            y = x.to(kind, copy=True).requires_grad_()
            out = single_spike_leaky(
                *(y, *given), reset_mechanism="zero", refractory=refractory, recompute=recompute,
                backend=backend,
            )  # fmt: skip
            (out.spikes * weights).sum().backward()
            results.append((out.spikes.float(), y.grad.float()))
    for spikes, grad in results[:2]:
        assert torch.equal(spikes, results[2][0])
        assert torch.allclose(grad, results[2][1], rtol=0.05, atol=0.05)


@pytest.mark.parametrize("refractory", [None, 0, 1, 4])
@pytest.mark.parametrize("reset", RESETS)
def test_parts_of_a_sequence_give_the_whole(reset, refractory, backend):
    options = {"reset_mechanism": reset, "refractory": refractory, "backend": backend}
    x = torch.randn(21, *SHAPE, device=device_of(backend))
    for cls, rates in (
        (SingleSpikeLeaky, (0.9,)),
        (SingleSpikeSynaptic, (0.5, 0.8)),
        (SingleSpikeLapicque, (0.8,)),
    ):
        lif = cls(*rates, threshold=0.7, **options).to(x.device)
        whole, end = lif(x), lif.state
        state, parts = None, []
        for part in x.split((1, 3, 7, 2, 8)):
            parts.append(lif(part, state=state))
            state = lif.state
        for mine, right in zip(map(torch.cat, zip(*parts, strict=True)), whole, strict=True):
            assert torch.equal(mine, right)
        for mine, right in zip(state, end, strict=True):
            mine, right = ([] if x is None else x for x in (mine, right))
            assert torch.equal(torch.as_tensor(mine), torch.as_tensor(right))
        if cls is SingleSpikeLeaky:
            state, steps = None, []
            for step in x.cpu():
                spk, state = lif.cpu().step(step, state)
                steps.append(spk)
            assert torch.equal(torch.stack(steps), whole[0].cpu())
            assert torch.equal(state.times, end.times.cpu())


@pytest.mark.parametrize("refractory", [None, 2])
def test_gradients_pass_from_part_to_part(refractory):
    x = torch.randn(12, *SHAPE, dtype=torch.float64)
    lif = FusedLeaky(0.9, refractory=refractory)
    grads = []
    for parts in ((12,), (5, 7)):
        y = x.clone().requires_grad_()
        state, total = None, 0
        for part in y.split(parts):
            spk, mem = lif(part, state=state)
            state = lif.state._replace(mem=mem[-1])
            total = total + (spk.cumsum(0) * mem.detach()).sum() + mem[-1].sum()
        spk, mem = lif(y) if len(parts) == 1 else (None, None)
        grads.append(
            torch.autograd.grad(mem[-1].sum() if mem is not None else state.mem.sum(), y)[0]
        )
    assert torch.allclose(*grads)


def test_a_negative_threshold_resets_at_the_first_step_as_in_snntorch():
    x = torch.randn(6, *SHAPE)
    expected = by_steps(snn.Leaky(0.9, threshold=-0.3), x, torch.zeros(SHAPE))
    for mine, right in zip(FusedLeaky(0.9, threshold=-0.3)(x), expected, strict=True):
        assert torch.equal(mine, right)
    spk, state = FusedLeaky(0.9, threshold=-0.3).step(x[0])
    assert torch.equal(spk, expected[0][0])
    assert torch.equal(state.mem, expected[1][0])


@pytest.mark.parametrize("refractory", [0, 2])
@pytest.mark.parametrize("reset", ["subtract", "zero"])
def test_second_derivatives(reset, refractory):
    given, loss = arguments(7), torch.randn(2, 7, *SHAPE, dtype=torch.float64)

    def twice(run):
        x, parameters, mem = (leaf(value) for value in given)
        del parameters["factor"]
        spikes, mem_rec = run(x, parameters, mem)
        inputs = (x, *parameters.values(), mem)
        total = (loss[0] * spikes + loss[1] * mem_rec**2).sum()
        first = torch.autograd.grad(total, inputs, create_graph=True)
        penalty = sum((grad**2).sum() for grad in first)
        return torch.autograd.grad(penalty, inputs, materialize_grads=True)

    def ours(x, parameters, mem):
        out = single_spike_leaky(
            x, **parameters, mem=mem, reset_mechanism=reset, refractory=refractory,
            spike_grad=fused("atan"),
        )  # fmt: skip
        return out.spikes, out.mem

    def reference(x, parameters, mem):
        trace = sequential.run(
            sequential.leaky, x, parameters, {"mem": mem}, differentiable("atan"), "masked", reset,
            refractory,
        )  # fmt: skip
        return trace.spikes, trace.states["mem"]

    for mine, right in zip(twice(ours), twice(reference), strict=True):
        assert torch.allclose(mine, right, rtol=1e-8, atol=1e-8)


def test_spikes_without_a_gradient():
    x = torch.randn(9, *SHAPE, requires_grad=True)
    spk, mem = FusedLeaky(0.9, surrogate_disable=True)(x)
    assert not spk.requires_grad
    mem.sum().backward()
    y = x.detach().clone().requires_grad_()
    by_steps(snn.Leaky(0.9, surrogate_disable=True), y, torch.zeros(SHAPE))[1].sum().backward()
    assert torch.allclose(x.grad, y.grad)


def test_what_cannot_be_is_refused():
    x = torch.randn(4, *SHAPE)
    for gradient in ("spike_time", "straight_through", "pre_spike"):
        with pytest.raises(ValueError, match=f"gradient='{gradient}' is defined for neurons"):
            FusedLeaky(0.9, gradient=gradient)
    for wrong in (-1, 1.0, True, "all"):
        with pytest.raises(ValueError, match="must be an integer, 0 or more"):
            FusedLeaky(0.9, refractory=wrong)
    with pytest.raises(TypeError, match=r"more than one spike, use nn\.Linear"):
        SingleSpikeLinear(3, 2, 0.9, refractory=0)
    exact = SingleSpikeLeaky(0.9, gradient="spike_time")
    exact(x)
    with pytest.raises(ValueError, match="gradient='spike_time' does not support"):
        exact(x, state=exact.state)
    times = SingleSpikeLeaky(0.9, spike_format="times")
    times(nn.Linear(SHAPE[-1], 2)(times(x)[0]))
    with pytest.raises(RuntimeError, match="no state was kept"):
        _ = times.state
    with pytest.raises(ValueError, match=r"keep snntorch\.Alpha"):
        SingleSpikeAlpha(0.9, 0.8, refractory=0)
    alpha = SingleSpikeAlpha(0.9, 0.8)
    alpha.refractory = 0
    with pytest.raises(ValueError, match="feedback or a gain, which spike at most once"):
        alpha(x)
    lif = FusedLeaky(0.9)
    lif(x)
    with pytest.raises(TypeError, match="state= contains `mem`"):
        lif(x, x[0], state=lif.state)
    with pytest.raises(ValueError, match="the times of state"):
        lif(x, state=lif.state._replace(times=torch.zeros(3)))
    with pytest.raises(ValueError, match="mem has shape"):
        lif(x[:, :1], state=lif.state)


@pytest.mark.filterwarnings("error")
def test_a_linear_layer_from_spike_times_drives_every_spike():
    """The current is made from the events, and no dense spikes of the input."""
    spikes = SpikeTimes(torch.randint(-1, 70, (3, 30)), 70)
    linear, results = torch.nn.Linear(30, 19), []
    for given in (spikes, spikes.to_dense()):
        spk, mem = FusedLeaky(0.9, threshold=0.1)(linear(given))
        results.append((mem, *torch.autograd.grad((spk * mem).sum(), linear.parameters())))
        assert spk.sum(0).max() > 1
    for mine, right in zip(*results, strict=True):
        assert torch.allclose(mine, right, atol=1e-5)


def first(out):
    out = out[0] if isinstance(out, tuple) else out
    return out.to_dense() if hasattr(out, "to_dense") else out


@pytest.mark.parametrize(("threshold", "pays"), [(0.9, True), (20.0, True), (20.0, False)])
@pytest.mark.parametrize("reader", READERS)
@pytest.mark.filterwarnings("ignore::snn_single_spike.spikes.MaterializationWarning")
def test_events_leave_with_the_gradient_of_dense_spikes(reader, threshold, pays, monkeypatch):
    """With a threshold of 20, and few spikes, the layer behind computes from events."""
    monkeypatch.setattr(choice, "collected_events_pay", lambda spikes: pays)
    torch.manual_seed(5)
    behind = READERS[reader]()
    x = (torch.randn(120, *SHAPE) * 2).double()
    height = nn.Parameter(torch.rand(19, dtype=torch.float64) + 0.5)
    if isinstance(behind, nn.Module):
        behind.double()
    results = []
    for spike_format in ("dense", "times"):
        current = x.clone().requires_grad_()
        lif = FusedLeaky(0.99, threshold, spike_format=spike_format)
        lif.graded_spikes_factor = height
        spikes = lif(current)[0]
        if spike_format == "times":
            assert isinstance(spikes, SpikeEvents)
            assert spikes.requires_grad
        out = first(behind(spikes))
        parameters = behind.parameters() if isinstance(behind, nn.Module) else ()
        results.append(
            (
                first(spikes),
                out,
                *torch.autograd.grad((out * out).sum(), (current, height, *parameters)),
            )
        )
    assert results[0][0].count_nonzero() > 3
    for mine, right in zip(*results, strict=True):
        assert torch.allclose(mine, right, rtol=1e-10, atol=1e-12)
    assert results[0][2].any()


def test_events_of_neurons_in_other_forms():
    lif = FusedLeaky(0.9, 0.5, spike_format="times", graded_spikes_factor=2.0)
    x = torch.randn(30, 3, 4, requires_grad=True)
    spikes = lif(x)[0]
    dense = spikes.to_dense()
    assert "requires_grad=True" in repr(spikes)
    assert set(dense.unique().tolist()) == {0.0, 2.0}
    assert spikes.to("cpu") is spikes
    for other, expected in (
        (spikes.detach(), dense),
        (pickle.loads(pickle.dumps(spikes)), dense),
        (spikes.samples(slice(1, 3)), dense[:, 1:3]),
        (default_collate([spikes.samples(slice(0, 1)), spikes.samples(slice(1, 3))]), dense),
        (spikes.reshape(30, 3, 2, 2), dense.view(30, 3, 2, 2)),
    ):
        assert torch.equal(other.to_dense(), expected)
        assert torch.equal(torch.stack(list(other)), expected)
        assert other.requires_grad == (other.dim() == 4)
    with torch.no_grad():
        assert not lif(x)[0].requires_grad
    compiled = torch.compile(lambda x: lif(x)[0].to_dense(), backend="eager")
    assert torch.equal(compiled(x), dense)


def test_events_of_a_neuron_are_collected_once_and_where_they_pay(monkeypatch):
    pytest.importorskip("numba")  # elsewhere nothing was measured, and events are collected
    collected = []
    collect = events._collect
    monkeypatch.setattr(events, "_collect", lambda spikes: collected.append(1) or collect(spikes))
    lif = FusedLeaky(0.9, init_hidden=True, spike_format="times")
    fc = nn.Linear(200, 150)

    def current_of(share):
        x = torch.zeros(60, 10, 200)
        x.view(-1)[:: round(1 / share)] = 2.0  # a spike, and a membrane that decays
        return lif(x)

    dense = current_of(0.1)
    assert isinstance(fc(dense), torch.Tensor)
    assert spike_count(dense).sum() == 12_000
    changed = dense.to_dense().zero_()  # a copy
    assert not changed.any()
    assert not collected
    assert dense.to_dense().sum() == 12_000
    few = current_of(0.01)
    assert isinstance(fc(few), LazyCurrent)
    assert spike_count(few).sum() == 1_200
    assert len(few.reshape(60, 10, 20, 10).events().times) == len(few.events().times) == 1_200
    assert len(collected) == 1
    assert not choice.collected_events_pay(few.to_dense()[:40])  # 80,000 entries


def test_dense_spikes_as_events_keep_their_gradient():
    x = torch.randn(6, 2, 5).relu().requires_grad_()
    SpikeEvents.from_dense(x).to_dense().sin().sum().backward()
    assert torch.allclose(x.grad, x.detach().cos())
