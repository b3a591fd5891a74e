"""Delays of spikes: against a dense shift, finite differences and every backend."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from snn_single_spike import (
    DelayedSpikes,
    LeakyReadout,
    MaterializationWarning,
    SingleSpikeConv1d,
    SingleSpikeLeaky,
    SingleSpikeLinear,
    SpikeDelay,
    SpikeEvents,
    SpikeTimes,
)
from snn_single_spike.backends.numba import linear as numba_linear
from snn_single_spike.backends.numba._threads import in_threads
from snn_single_spike.functional import (
    delay_spikes,
    leaky_readout,
    linear_readout,
    single_spike_leaky,
    single_spike_linear,
    spike_count,
)
from snn_single_spike.losses import ce_temporal_loss, first_spike_times
from snn_single_spike.ops.validation import GRADIENT_RULES, REDUCTIONS

from tests.support.devices import device_of, runnable

T, B, N, OUT = 20, 4, 6, 5
DOUBLE = torch.float64


def problem(seed: int = 0) -> tuple[SpikeTimes, Tensor, Tensor, Tensor]:
    """Spikes, weights, a bias and fractional delays, some of which lead past the end."""
    make = torch.Generator().manual_seed(seed)
    times = torch.randint(-1, T, (B, N), generator=make)
    weight = torch.randn(OUT, N, generator=make, dtype=DOUBLE)
    bias = 0.1 * torch.randn(OUT, generator=make, dtype=DOUBLE)
    delay = 6 * torch.rand(N, generator=make, dtype=DOUBLE)
    return SpikeTimes(times, T, dtype=DOUBLE), weight, bias, delay


def events(dense: Tensor) -> SpikeEvents:
    return SpikeEvents.from_dense(dense)


def shifted(dense: Tensor, steps: Tensor) -> Tensor:
    """Each unit of (T, B, N) by its own number of steps."""
    out = torch.zeros_like(dense)
    for unit, n in enumerate(steps.tolist()):
        out[n:, :, unit] = dense[: len(dense) - n, :, unit]
    return out


@pytest.mark.parametrize("make", [lambda x: x, lambda x: events(2 * x.to_dense() + shifted(
    x.to_dense(), torch.full((N,), 2))), SpikeTimes.to_dense])  # fmt: skip
def test_whole_delays_are_a_dense_shift(make: Any) -> None:
    spikes, *_ = problem()
    given, steps = make(spikes), torch.tensor([0, 1, 2, 7, 19, 5])
    late = delay_spikes(given, steps)
    assert type(late) is type(given)
    dense = given if isinstance(given, Tensor) else given.to_dense()
    out = late if isinstance(late, Tensor) else late.to_dense()
    assert torch.equal(out, shifted(dense, steps))
    assert out[:, :, 4].sum() < dense[:, :, 4].sum()  # something came too late


def test_delayed_spikes_of_whole_delays_are_the_same_dense_spikes() -> None:
    """Without a gradient to the delay, no second part of each spike is made."""
    spikes, *_ = problem()
    height, whole = torch.rand(N, dtype=DOUBLE, requires_grad=True), torch.arange(N) * 1.0
    flat = SpikeTimes(spikes.times, T, dtype=DOUBLE, height=height)
    for of in (flat, flat.reshape(T, B, 2, 3), events(spikes.to_dense())):
        delay = whole.to(DOUBLE).view(of.features)
        found = DelayedSpikes(of, delay).to_dense()
        expected = DelayedSpikes(of, delay.clone().requires_grad_()).to_dense()
        assert torch.equal(found, expected)
        if of is not flat:
            continue
        (of_height,) = torch.autograd.grad(found.cumsum(0).sum(), height)
        assert torch.equal(of_height, torch.autograd.grad(expected.cumsum(0).sum(), height)[0])


def test_a_fraction_is_shared_by_two_steps() -> None:
    spikes = SpikeTimes(torch.tensor([[2, 7, 8, -1]]), 10)
    late = delay_spikes(spikes, torch.tensor([1.25, 1.5, 1.5, 1.5]))
    assert isinstance(late, DelayedSpikes)
    dense = late.to_dense()[:, 0]
    assert dense[3, 0] == 0.75
    assert dense[4, 0] == 0.25
    assert dense[8, 1] == dense[9, 1] == 0.5
    assert dense[9, 2] == 0.5  # the second half comes after the end
    assert dense.sum() == 2.5
    assert late.times.tolist() == [[3, 8, 9, -1]]
    assert late.interpolated_times is not None
    assert late.interpolated_times.tolist() == [[3.25, 8.5, 9.5, -1.0]]
    assert torch.equal(late.events().to_dense(10, 4, torch.float32), late.to_dense())


@pytest.mark.parametrize("rule", GRADIENT_RULES)
@pytest.mark.parametrize("kind", ["times", "events"])
def test_layers_from_delayed_spikes_equal_layers_from_dense_ones(
    rule: str, kind: str, linear_backend: str
) -> None:
    """Two layers with delays of inputs and outputs, and a readout: all gradients."""
    spikes, weight, bias, delay = (x.to(device_of(linear_backend)) for x in problem(1))
    inputs: Any = spikes if kind == "times" else events(spikes.to_dense() * 2)
    second = torch.linspace(0, 3.3, OUT, dtype=DOUBLE, device=weight.device)
    leaves = [x.clone().requires_grad_() for x in (delay, second, weight, bias)]

    def run(from_dense: bool) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
        d1, d2, w, b = leaves
        given = events(delay_spikes(inputs.to_dense(), d1)) if from_dense else delay_spikes(
            inputs, d1
        )  # fmt: skip
        hidden = single_spike_linear(given, w, b, 0.9, gradient=rule, backend=linear_backend)
        late: Any = (
            events(delay_spikes(hidden.to_dense(), d2)) if from_dense else delay_spikes(hidden, d2)
        )
        out = single_spike_linear(
            late, w[:, :OUT].T.abs(), None, 0.8, 0.7, gradient=rule, backend=linear_backend
        )
        scores = linear_readout(late, w[:3, :OUT], None, 0.95, backend=linear_backend)
        weighting = torch.arange(T, dtype=DOUBLE, device=w.device).view(-1, 1, 1)
        loss = (out.to_dense() * weighting).sum() + scores.square().sum()
        return hidden.times, out.times, torch.autograd.grad(loss, leaves)

    *expected_times, expected = run(True)
    *times, found = run(False)
    assert all((x >= 0).any() and (x < 0).any() for x in times)
    assert all(map(torch.equal, times, expected_times))
    for a, e in zip(found, expected, strict=True):
        torch.testing.assert_close(a, e, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("rule", ["masked", "spike_time"])
def test_fixed_fractional_delays_have_the_gradients_of_learned_ones(
    rule: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The compiled loops always add the gradient to the delay, so they need memory for it."""
    spikes, weight, bias, delay = problem(1)
    leaves = [x.requires_grad_() for x in (weight, bias)]
    rooms = []

    def recorded(kernel: Any, calls: list[Any]) -> None:
        if "backward" in kernel.__name__:
            rooms.extend(call[-1][-1].shape for call in calls)  # the last gradient is the delay's
        in_threads(kernel, calls)

    monkeypatch.setattr(numba_linear, "in_threads", recorded)

    def gradients(delay: Tensor) -> tuple[Tensor, ...]:
        late = delay_spikes(spikes, delay)
        options: Any = {"gradient": rule, "backend": "numba"}
        hidden = single_spike_linear(late, 2 * weight, bias, 0.9, **options)
        scores = linear_readout(late, weight, bias, 0.8, backend="numba")
        loss = hidden.to_dense().cumsum(0).sum() + scores.square().sum()
        return torch.autograd.grad(loss, leaves)

    fixed = gradients(delay)
    assert len(rooms) >= 2
    assert set(rooms) == {(N,)}
    for found, expected in zip(fixed, gradients(delay.requires_grad_()), strict=True):
        assert torch.equal(found, expected)


@pytest.mark.parametrize("backend", runnable("triton"))
@pytest.mark.parametrize("rule", ["masked", "spike_time"])
def test_triton_equals_plain_torch(backend: str, rule: str) -> None:
    results = []
    for name in ("torch", backend):
        spikes, weight, bias, delay = (x.to(device_of(name)) for x in problem(4))
        leaves = [x.requires_grad_() for x in (delay, weight, bias)]
        options = {"gradient": rule, "backend": name}
        hidden = single_spike_linear(delay_spikes(spikes, delay), 2 * weight, bias, 0.9, **options)
        scores = linear_readout(
            delay_spikes(hidden, delay[:OUT]), weight[:, :OUT], bias, 0.8, backend=name
        )
        found = torch.autograd.grad(scores.square().sum(), leaves)
        results.append([x.cpu() for x in (hidden.times, scores.detach(), *found)])
    for a, e in zip(*results, strict=True):
        torch.testing.assert_close(a, e, rtol=1e-9, atol=1e-10)


def test_the_gradient_of_a_delay_equals_finite_differences_of_the_interpolated_time(
    linear_backend: str,
) -> None:
    spikes, weight, bias, delay = (x.to(device_of(linear_backend)) for x in problem(2))
    weight, delay = 2 * weight, delay.round(decimals=3)
    per_time = torch.rand(B, OUT, dtype=DOUBLE, device=weight.device)

    def loss(d: Tensor) -> tuple[Tensor, Tensor]:
        late = delay_spikes(spikes, d)
        out = single_spike_linear(
            late, weight, bias, 0.9, gradient="spike_time", backend=linear_backend
        )
        assert out.interpolated_times is not None
        return (out.interpolated_times * per_time).sum(), out.times

    given = delay.clone().requires_grad_()
    value, times = loss(given)
    (found,) = torch.autograd.grad(value, given)
    assert (found != 0).sum() >= 4
    step = 1e-6
    for unit in range(N):
        (low, t0), (high, t1) = (
            loss(delay + sign * step * torch.eye(N, dtype=DOUBLE, device=delay.device)[unit])
            for sign in (-1, 1)
        )
        assert torch.equal(t0, times)
        assert torch.equal(t1, times)
        assert abs((high - low) / (2 * step) - found[unit]) < 1e-6


def test_the_interpolated_time_is_continuous_in_the_delay() -> None:
    """At whole delays, too, where the steps of both parts change."""
    delay = torch.linspace(1, 6, 501, dtype=DOUBLE)
    spikes = SpikeTimes(torch.zeros(1, 501, dtype=torch.int64), T, dtype=DOUBLE)
    weight = 1.5 * torch.eye(501, dtype=DOUBLE)  # each neuron has an input of its own
    hidden = single_spike_linear(
        delay_spikes(spikes, delay), weight, None, 0.9, gradient="spike_time"
    )
    assert hidden.interpolated_times is not None
    steps = hidden.interpolated_times[0].diff()
    assert steps.min() > 0
    assert steps.max() < 4e-2


def test_dendritic_delays_move_the_times_of_a_loss() -> None:
    spikes, weight, bias, delay = problem(3)
    delay = delay[:OUT].clone().requires_grad_()
    hidden = single_spike_linear(spikes, 2 * weight, bias, 0.9, gradient="spike_time")
    late = delay_spikes(hidden, delay)
    assert late.interpolated_times is not None
    fired = (hidden.times >= 0) & (hidden.times + delay.detach().floor() < T)
    (found,) = torch.autograd.grad(late.interpolated_times.sum(), delay)
    assert torch.equal(found, fired.sum(0).to(DOUBLE))
    whole = delay_spikes(hidden, torch.tensor(2))
    assert isinstance(whole, SpikeTimes)
    assert whole.interpolated_times is not None
    assert hidden.interpolated_times is not None
    arrives = (hidden.times >= 0) & (hidden.times + 2 < T)
    expected = torch.where(arrives, hidden.interpolated_times + 2, -1.0)
    assert torch.equal(whole.interpolated_times, expected)


@settings(max_examples=20, deadline=None)
@given(st.data())
def test_any_delays_and_readouts(data: st.DataObject) -> None:
    num_steps, units = data.draw(st.integers(1, 70)), data.draw(st.integers(1, 9))
    steps = st.integers(-1, num_steps - 1)
    times = data.draw(st.lists(steps, min_size=2 * units, max_size=2 * units))
    delays = data.draw(st.lists(st.floats(0, 80), min_size=units, max_size=units))
    reduction = data.draw(st.sampled_from(REDUCTIONS))
    spikes = SpikeTimes(torch.tensor(times).view(2, units), num_steps, dtype=DOUBLE)
    delay = torch.tensor(delays, dtype=DOUBLE, requires_grad=True)
    weight = torch.randn(3, units, dtype=DOUBLE, requires_grad=True)
    found = linear_readout(delay_spikes(spikes, delay), weight, None, 0.9, reduction=reduction)
    dense = delay_spikes(spikes.to_dense(), delay)
    expected = leaky_readout(dense @ weight.T, 0.9, reduction=reduction)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    pairs = zip(
        torch.autograd.grad(found.sum(), (delay, weight)),
        torch.autograd.grad(expected.sum(), (delay, weight)),
        strict=True,
    )
    if reduction != "max":  # of equal maxima torch takes another one
        for a, e in pairs:
            torch.testing.assert_close(a, e, rtol=1e-9, atol=1e-9)


def test_a_delay_outside_of_its_range_returns() -> None:
    spikes = SpikeTimes(torch.full((1, 3), 5), T, dtype=DOUBLE)
    delay = torch.tensor([-0.5, -0.5, 9.0], dtype=DOUBLE, requires_grad=True)
    late = delay_spikes(spikes, delay, max_delay=8)
    assert torch.equal(late.delay.detach(), torch.tensor([0, 0, 8], dtype=DOUBLE))
    later = torch.arange(T, dtype=DOUBLE).view(-1, 1, 1) * torch.tensor([1.0, -1.0, 1.0])
    (found,) = torch.autograd.grad((late.to_dense() * later).sum(), delay)
    assert found.tolist() == [0.0, -1.0, 1.0]  # descent increases the second, reduces the third


@pytest.mark.parametrize("inputs", ["times", "events", "dense"])
def test_a_linear_layer_with_delays(inputs: str) -> None:
    spikes, *_ = problem()
    layer = SingleSpikeLinear(
        N, OUT, 0.9, delay=torch.rand(N) * 5, learn_delay=True, max_delay=9, dtype=DOUBLE
    )
    layer.weight.data *= 4
    given = {"times": spikes, "events": events(spikes.to_dense()), "dense": spikes.to_dense()}
    hidden = layer(given[inputs])
    delayed = delay_spikes(spikes.to_dense(), layer.delay)
    expected = single_spike_leaky(
        delayed @ layer.weight.T + layer.bias, 0.9, reset_mechanism="subtract"
    )
    assert (hidden.times >= 0).any()
    assert torch.equal(hidden.times, expected.times)
    hidden.to_dense().sum().backward()
    assert layer.delay.grad.abs().sum() > 0


def test_the_options_of_modules() -> None:
    layer = SingleSpikeLinear(N, OUT, 0.9, learn_delay=True, max_delay=9)
    assert isinstance(layer.delay, nn.Parameter)
    assert torch.equal(layer.delay, torch.zeros(N))
    assert "learn_delay=True, max_delay=9" in repr(layer)
    assert "delay" not in SingleSpikeLinear(N, OUT, 0.9).state_dict()
    with pytest.raises(ValueError, match="max_delay=9 has no effect without delays"):
        SingleSpikeLinear(N, OUT, 0.9, max_delay=9)
    fixed = SingleSpikeLinear(N, OUT, 0.9, delay=2)
    assert "delay" in dict(fixed.named_buffers())
    fixed.load_state_dict(layer.state_dict())
    spikes, *_ = problem()
    with pytest.raises(RuntimeError, match="step\\(\\) .* does not support delays"):
        fixed.step(torch.zeros(1, N))
    late = SpikeDelay((2, 3), 1.5)
    given = spikes.reshape(T, B, 2, 3)
    assert torch.equal(late(given).to_dense(), delay_spikes(given.to_dense(), 1.5))
    assert isinstance(SpikeDelay(N, 2)(spikes), SpikeTimes)
    assert repr(late) == "SpikeDelay((2, 3), learn_delay=False, max_delay=None)"


@pytest.mark.parametrize(
    ("delay", "options", "message"),
    [
        (-1.0, {}, "delay contains -1.0, but must be finite and not negative"),
        (float("inf"), {}, "delay contains inf"),
        (torch.zeros(3), {}, r"delay has shape \(3,\), which does not broadcast to the features"),
        (0.0, {"max_delay": 0}, "max_delay=0 must be positive"),
    ],
)
def test_invalid_delays_say_so(delay: Any, options: dict[str, Any], message: str) -> None:
    spikes, *_ = problem()
    with pytest.raises(ValueError, match=message):
        delay_spikes(spikes, delay, **options)
    with pytest.raises(ValueError, match=message):
        SpikeDelay(N, delay, **options)
    with pytest.raises(ValueError, match=message):
        SingleSpikeLinear(N, OUT, 0.9, delay=delay, **options)


@pytest.mark.parametrize("delay", [2.0, 1.5])
def test_delays_of_half_types(delay: float) -> None:
    given = SpikeTimes(torch.tensor([[3, -1, 0]]), T, dtype=torch.float16)
    late = delay_spikes(given, torch.full((3,), delay, dtype=torch.float16))
    expected = delay_spikes(given.to_dense().float(), delay)
    assert torch.equal(late.to_dense().float(), expected)


@pytest.mark.parametrize("delay", [1.0 * (1 << 31), 1.0 * (1 << 31) - 0.5, 1e20])
@pytest.mark.parametrize("learned", [False, True])
def test_a_delay_beyond_int32_leaves_no_spike(delay: float, learned: bool) -> None:
    spikes, weight, *_ = problem()
    late = torch.full((N,), delay, dtype=DOUBLE, requires_grad=learned)
    for inputs in (spikes, events(spikes.to_dense()), spikes.to_dense()):
        out = delay_spikes(inputs, late)
        dense = out if isinstance(out, Tensor) else out.to_dense()
        assert not dense.any()
        if not isinstance(out, Tensor):
            assert (single_spike_linear(out, weight, None, 0.9).times < 0).all()


def test_an_infinite_delay_of_training_is_rejected() -> None:
    spikes, *_ = problem()
    delay = torch.tensor([1.0, torch.inf] * 3)
    for inputs in (spikes, spikes.to_dense()):
        with pytest.raises(ValueError, match="delay contains an infinite value"):
            delay_spikes(inputs, delay, max_delay=5)
    assert torch.equal(  # a list, as SpikeDelay takes it
        delay_spikes(spikes, [0, 1, 2, 3, 4, 5]).times,
        delay_spikes(spikes, torch.arange(N)).times,
    )


def test_delays_of_delayed_spikes_are_rejected() -> None:
    spikes, *_, delay = problem()
    with pytest.raises(TypeError, match="does not support DelayedSpikes: add the delays"):
        delay_spikes(delay_spikes(spikes, delay), 2)


def test_losses_of_one_time_for_each_spike_name_the_times() -> None:
    spikes, *_, delay = problem()
    targets = torch.arange(B)
    late = delay_spikes(spikes, delay.requires_grad_())
    for loss in (lambda x: ce_temporal_loss()(x, targets), first_spike_times):
        with pytest.raises(ValueError, match=r"pass spk_out\.interpolated_times"):
            loss(late)
    value = ce_temporal_loss(num_steps=T)(late.interpolated_times, targets)
    (found,) = torch.autograd.grad(value, delay)
    assert found.abs().sum() > 0


def test_delayed_spikes_are_spikes() -> None:
    spikes, weight, _, delay = problem()
    late = delay_spikes(spikes, delay.requires_grad_())
    assert late.requires_grad
    assert not late.detach().requires_grad
    assert torch.equal(late.samples([1]).to_dense(), late.to_dense()[:, [1]])
    assert torch.equal(late.fold().to_dense(), late.to_dense().flatten(0, 1))
    as_maps = late.reshape(T, B, 2, 3)
    assert torch.equal(as_maps.flatten(2).to_dense(), late.to_dense())
    for copied in (copy.deepcopy(late.detach()), pickle.loads(pickle.dumps(late))):
        assert torch.equal(copied.to_dense(), late.to_dense())
    torch.testing.assert_close(
        spike_count(late, per="sample"), late.to_dense().sum((0, 2)), rtol=0, atol=0
    )
    current = nn.functional.linear(late, weight)
    torch.testing.assert_close(current.to_dense(), late.to_dense() @ weight.T)
    lif = SingleSpikeLeaky(0.9, spike_format="times", init_hidden=True)
    expected = single_spike_leaky(late.to_dense() @ weight.T, 0.9).times
    assert torch.equal(lif(current).times, expected)
    torch.testing.assert_close(
        LeakyReadout(torch.tensor(0.9, dtype=DOUBLE))(current),
        leaky_readout(late.to_dense() @ weight.T, 0.9),
    )


def test_a_convolution_makes_fractional_delays_dense() -> None:
    spikes, *_, delay = problem()
    maps = spikes.reshape(T, B, 2, 3)
    conv = SingleSpikeConv1d(2, 4, 2, beta=0.9, dtype=DOUBLE)
    conv.weight.data *= 4
    late = delay_spikes(maps, delay.view(2, 3))
    with pytest.warns(MaterializationWarning, match="delays are not whole"):
        found = conv(late)
    assert torch.equal(found.times, conv(late.to_dense()).times)
    assert (found.times >= 0).any()
    whole = delay_spikes(maps, torch.tensor(3))
    assert torch.equal(conv(whole).times, conv(whole.to_dense()).times)


def test_delays_and_spikes_of_two_devices_say_so() -> None:
    for inputs in (spikes := problem()[0], spikes.to_dense()):
        for delay in (0.5, 2.0):
            layer = SingleSpikeLinear(N, OUT, 0.9, delay=delay, dtype=DOUBLE, device="meta")
            with pytest.raises(ValueError, match=r"delay is on meta.*delay.to\('cpu'\)"):
                layer(inputs)


def test_a_compiled_layer_with_delays() -> None:
    spikes, *_ = problem()
    net = nn.Sequential(
        SingleSpikeLinear(N, OUT, 0.9, delay=torch.rand(N) * 5, learn_delay=True, dtype=DOUBLE),
        SpikeDelay(OUT, torch.rand(OUT, dtype=DOUBLE) * 3, learn_delay=True),
        nn.Linear(OUT, 3, dtype=DOUBLE),
        LeakyReadout(0.9),
    )
    net[0].weight.data *= 4
    compiled = torch.compile(net, fullgraph=True, backend="aot_eager")
    found = torch.autograd.grad(compiled(spikes).square().sum(), list(net.parameters())[:3])
    expected = torch.autograd.grad(net(spikes).square().sum(), list(net.parameters())[:3])
    for a, e in zip(found, expected, strict=True):
        torch.testing.assert_close(a, e)
    late = torch.compile(net[:2], fullgraph=True, backend="aot_eager")(spikes)
    assert isinstance(late, DelayedSpikes)
    torch.testing.assert_close(late.to_dense(), net[:2](spikes).to_dense())
