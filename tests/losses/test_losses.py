"""Losses against per-element loops, against equal losses of snnTorch, and in training."""

import inspect
import math

import numpy as np
import pytest
import snntorch.functional as SF
import torch
from hypothesis import given
from hypothesis import strategies as st
from snntorch import surrogate
from torch import nn

from snn_single_spike import LeakyReadout, SingleSpikeLeaky, SpikeTimes, losses, metrics
from snn_single_spike.functional import first_spike_time, single_spike_leaky, spike_count
from snn_single_spike.functional.count import COUNTED
from snn_single_spike.losses import regularizers, temporal

STEPS, BATCH, CLASSES = 12, 5, 4


def trains(
    num_steps=STEPS, batch=BATCH, classes=CLASSES, silent=0.3, height=1.0, dtype=torch.float64
):
    """Spike trains with at most one spike, and their times, T for a silent neuron."""
    times = torch.randint(num_steps, (batch, classes))
    times[torch.rand(batch, classes) < silent] = num_steps
    spikes = torch.zeros(num_steps + 1, batch, classes, dtype=dtype).scatter_(0, times[None], 1.0)
    return spikes[:num_steps] * torch.as_tensor(height).to(dtype), times


def labels(batch=BATCH, classes=CLASSES):
    return torch.randint(classes, (batch,))


def slow_times(spikes):
    num_steps, batch, classes = spikes.shape
    out = torch.full((batch, classes), float(num_steps), dtype=torch.float64)
    for b in range(batch):
        for c in range(classes):
            for t in reversed(range(num_steps)):
                if spikes[t, b, c] != 0:
                    out[b, c] = t
    return out


def slow_cross_entropy(logits, targets):
    rows = []
    for row, target in zip(logits.tolist(), targets.tolist(), strict=True):
        rows.append(math.log(sum(math.exp(x) for x in row)) - row[target])
    return torch.tensor(rows, dtype=torch.float64)


shapes = st.tuples(st.integers(1, 40), st.integers(1, 4), st.integers(1, 5), st.integers(0, 1000))


@given(shapes)
def test_times_are_those_of_a_loop_and_their_gradient_is_everywhere(shape):
    num_steps, batch, classes, seed = shape
    torch.manual_seed(seed)
    spikes, times = trains(num_steps, batch, classes)
    spikes.requires_grad_()
    found = losses.first_spike_times(spikes)
    assert torch.equal(found, slow_times(spikes.detach()))
    assert torch.equal(found, times.double())
    upstream = torch.randn_like(found)
    found.backward(upstream)
    for t in range(num_steps):
        assert torch.allclose(spikes.grad[t], -(num_steps - t) * upstream)


def test_times_of_images_batch_first_views_and_one_neuron():
    spikes, times = trains(classes=12)
    image = spikes.view(STEPS, BATCH, 3, 2, 2)
    assert torch.equal(losses.first_spike_times(image), times.view(BATCH, 3, 2, 2).double())
    view = spikes.transpose(0, 1).contiguous().transpose(0, 1)
    assert torch.equal(losses.first_spike_times(view), times.double())
    assert torch.equal(losses.first_spike_times(spikes[..., :1]), times[:, :1].double())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("autocast", [False, True])
def test_half_precision_is_exact_beyond_its_own_integers(dtype, autocast):
    spikes, times = trains(5000, dtype=dtype)
    spikes.requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        found = losses.first_spike_times(spikes)
        value = losses.ce_temporal_loss(time_scale=1000)(spikes, labels())
        losses.mse_temporal_loss()(spikes, labels()).backward()
    assert found.dtype == value.dtype == torch.float32
    assert torch.equal(found, times.float())
    assert spikes.grad.dtype == dtype


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("height", [0.3, -2.0, torch.tensor([0.1, 1.0, 3.3, 7.0])])
def test_graded_spikes_are_divided_by_their_height(height, dtype):
    spikes, times = trains(height=height, dtype=dtype)
    factor = torch.as_tensor(height).to(dtype).requires_grad_()
    found = losses.first_spike_times(spikes, graded_spikes_factor=factor)
    torch.testing.assert_close(found, times.to(found.dtype))
    with pytest.raises(ValueError, match="graded_spikes_factor="):
        losses.first_spike_times(spikes)


LOSSES_ON_SPIKES = {
    "times": lambda x: losses.first_spike_times(x).square().sum(),
    "ce": lambda x: losses.ce_temporal_loss()(x, TARGETS),
    "mse": lambda x: losses.mse_temporal_loss()(x, TARGETS),
    "firing": losses.firing_regularizer(max_silent=0, late=0.3),
    "count": losses.spike_count_regularizer(0.6, 0.7),
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", LOSSES_ON_SPIKES)
def test_spike_times_are_the_same_loss_without_dense_spikes(name, dtype, monkeypatch):
    spikes, _ = trains(dtype=dtype)
    spikes.requires_grad_()
    expected = LOSSES_ON_SPIKES[name](spikes)
    (right,) = torch.autograd.grad(expected, spikes)

    def forbidden(self):
        raise AssertionError("dense spikes were made")

    monkeypatch.setattr(SpikeTimes, "to_dense", forbidden)
    given = SpikeTimes.from_dense(spikes)
    value = LOSSES_ON_SPIKES[name](given)
    assert value.dtype == expected.dtype
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(torch.autograd.grad(value, spikes)[0], right)
    torch.testing.assert_close(LOSSES_ON_SPIKES[name](given.detach()), expected)


def test_spike_times_of_another_height_are_divided_and_checked():
    spikes, times = trains(dtype=torch.float32)
    given = SpikeTimes.from_dense(spikes)
    high = SpikeTimes(given.times, STEPS, height=torch.tensor(2.0))
    assert torch.equal(losses.first_spike_times(high, graded_spikes_factor=2.0), times.float())
    for some, factor in ((high, 1.0), (given, 2.0)):
        with pytest.raises(ValueError, match="one spike of height graded_spikes_factor"):
            losses.first_spike_times(some, graded_spikes_factor=factor)
    with pytest.raises(ValueError, match="no neurons"):
        losses.first_spike_times(SpikeTimes(given.times[:, :0], STEPS))


def test_times_give_no_gradient_to_a_learned_height():
    lif = SingleSpikeLeaky(0.9, graded_spikes_factor=0.7, learn_graded_spikes_factor=True)
    current = torch.rand(20, 3, 4).requires_grad_()
    spikes, _ = lif(current)
    loss_fn = losses.ce_temporal_loss(graded_spikes_factor=lif.graded_spikes_factor)
    loss_fn(spikes, torch.tensor([0, 1, 2])).backward()
    assert lif.graded_spikes_factor.grad.abs() < 1e-5
    assert current.grad.abs().max() > 0


@pytest.mark.parametrize("inverse", temporal.INVERSES)
@pytest.mark.parametrize("time_scale", [None, 1.0, 2.5])
@pytest.mark.parametrize("on_target", [None, 0, 3.5, -2])
def test_ce_temporal_loss_against_a_loop(inverse, time_scale, on_target):
    spikes, times = trains()
    targets = labels()
    on = STEPS / 3 if on_target is None else on_target % STEPS
    scaled = times.double()
    for b in range(BATCH):
        distance = on + abs(times[b, targets[b]].item() - on)
        scaled[b, targets[b]] = distance
    scaled /= STEPS / 12 if time_scale is None else time_scale
    logits = -scaled if inverse == "negate" else 1 / (scaled + 1)
    rows = slow_cross_entropy(logits, targets)
    expected = {"mean": rows.mean(), "sum": rows.sum(), "none": rows}
    for reduction, value in expected.items():
        loss_fn = losses.ce_temporal_loss(
            inverse, reduction, time_scale=time_scale, on_target=on_target
        )
        torch.testing.assert_close(loss_fn(spikes, targets), value)


@pytest.mark.parametrize("tolerance", [0, 3])
@pytest.mark.parametrize(("on", "off"), [(None, None), (0, None), (3, 9), (2.5, -1)])
def test_mse_temporal_loss_against_a_loop(on, off, tolerance):
    spikes, times = trains()
    targets, weight = labels(), torch.rand(CLASSES, dtype=torch.float64)
    expected = torch.zeros(BATCH, CLASSES, dtype=torch.float64)
    for b in range(BATCH):
        for c in range(CLASSES):
            on_time = STEPS / 3 if on is None else on
            off_time = STEPS if off is None else off % STEPS
            distance = abs(times[b, c].item() - (on_time if c == targets[b] else off_time))
            if distance >= tolerance:
                expected[b, c] = (distance / STEPS) ** 2 * weight[targets[b]]
    results = {"mean": expected.mean(), "sum": expected.sum(), "none": expected}
    for reduction, value in results.items():
        loss_fn = losses.mse_temporal_loss(False, on, off, tolerance, False, reduction, weight)
        torch.testing.assert_close(loss_fn(spikes, targets), value)


SNNTORCHS = {"time_scale": 1, "on_target": 0}


def test_equal_to_snntorch_where_every_neuron_fires():
    spikes, _ = trains(silent=0, dtype=torch.float32)
    targets, weight = labels(), torch.rand(CLASSES)
    pairs = [
        (losses.ce_temporal_loss(**SNNTORCHS, **options), SF.ce_temporal_loss(**options))
        for options in (
            {},
            {"inverse": "reciprocal"},
            {"reduction": "sum"},
            {"reduction": "none"},
            {"weight": weight},
        )
    ] + [
        (losses.mse_temporal_loss(**options), SF.mse_temporal_loss(**options))
        for options in (
            {"on_target": 2, "off_target": 9},
            {"on_target": 2, "off_target": 9, "tolerance": 3},
            {"on_target": 1, "off_target": 5, "reduction": "sum"},
        )
    ]
    for ours, theirs in pairs:
        torch.testing.assert_close(ours(spikes, targets), theirs(spikes, targets))
    times = torch.tensor([1.0, 5.0, -1.0, 11.0])
    for wanted in (times, torch.randint(STEPS, (BATCH, CLASSES)).float()):
        ours = losses.mse_temporal_loss(target_is_time=True)(spikes, wanted)
        theirs = SF.mse_temporal_loss(target_is_time=True)(spikes, wanted.clone().expand(5, 4) + 0)
        torch.testing.assert_close(ours, theirs)
    assert times[2] == -1.0, "snnTorch writes into the caller's targets"


@pytest.mark.parametrize("num_steps", [12, 48])
def test_ce_temporal_loss_is_the_same_at_any_time_resolution(num_steps):
    times = torch.tensor([[2.0, 5.0, 12.0], [9.0, 1.0, 4.0]]) * num_steps / 12
    targets = torch.tensor([0, 2])
    expected = losses.ce_temporal_loss(num_steps=12)(times * 12 / num_steps, targets)
    torch.testing.assert_close(
        losses.ce_temporal_loss(num_steps=num_steps)(times, targets), expected
    )


def test_ce_temporal_loss_moves_the_right_class_to_its_time_and_the_others_away():
    times = torch.tensor([[1.0, 2.0, 3.0], [5.0, 7.0, 9.0]], requires_grad=True)
    losses.ce_temporal_loss(num_steps=12)(times, torch.tensor([1, 1])).backward()
    later = times.grad < 0  # T / 3 is 4
    assert later.tolist() == [[True, True, True], [True, False, True]]


def test_default_targets_are_not_those_of_snntorch():
    spikes = torch.zeros(STEPS, 1, 3)
    spikes[STEPS // 3, 0, 1] = 1  # the right class, and silence: nothing to improve
    assert losses.mse_temporal_loss()(spikes, torch.tensor([1])) == 0
    assert SF.mse_temporal_loss()(spikes, torch.tensor([1])) > 0.5  # all are to fire at 0


LOSS_FUNCTIONS = {
    "times": lambda x: losses.first_spike_times(x),
    "ce negate": lambda x: losses.ce_temporal_loss()(x, TARGETS),
    "ce reciprocal": lambda x: losses.ce_temporal_loss("reciprocal", time_scale=3)(x, TARGETS),
    "mse": lambda x: losses.mse_temporal_loss(on_target=2.5, tolerance=1.2)(x, TARGETS),
    "count": lambda x: losses.spike_count_regularizer(0.99, 1.0)(x),
    "firing": lambda x: losses.firing_regularizer(max_silent=0)(x),
    "firing late": lambda x: losses.firing_regularizer(late=0.5, latest=2.5)(x),
    "membrane sum": lambda x: losses.ce_membrane_loss()(x, TARGETS),
    "membrane max": lambda x: losses.ce_membrane_loss("max")(x + RAMP, TARGETS),
    "membrane last": lambda x: losses.ce_membrane_loss("last")(x, TARGETS),
}
TARGETS = torch.tensor([0, 1, 2, 3, 1])
RAMP = torch.arange(STEPS * BATCH * CLASSES).view(STEPS, BATCH, CLASSES) / 100


@pytest.mark.parametrize("name", LOSS_FUNCTIONS)
def test_gradcheck(name):
    spikes, _ = trains()
    assert torch.autograd.gradcheck(LOSS_FUNCTIONS[name], spikes.requires_grad_())


def test_given_times_are_the_same_loss_and_silent_ones_have_no_gradient():
    current = (torch.rand(30, BATCH, CLASSES, dtype=torch.float64) * 0.4).requires_grad_()
    with torch.no_grad():
        current[:, 0, 0] = 0.0
    times = first_spike_time(current, 0.9, gradient="spike_time")
    assert times[0, 0] == -1
    for make in (losses.ce_temporal_loss, losses.mse_temporal_loss):
        (grad,) = torch.autograd.grad(
            make(num_steps=30)(times, TARGETS), current, retain_graph=True
        )
        assert not grad[:, 0, 0].any()
        assert grad[:, 1:].any()
        spikes = single_spike_leaky(current, 0.9).spikes
        exact = first_spike_time(current, 0.9).double()  # whole steps
        torch.testing.assert_close(
            make(num_steps=30)(exact, TARGETS), make()(spikes, TARGETS), rtol=1e-12, atol=0
        )


@pytest.mark.parametrize("reduction", ["sum", "max", "last"])
def test_ce_membrane_loss(reduction):
    mem = torch.randn(STEPS, BATCH, CLASSES, dtype=torch.float64)
    targets = labels()
    scores = torch.zeros(BATCH, CLASSES, dtype=torch.float64)
    for b in range(BATCH):
        for c in range(CLASSES):
            trace = mem[:, b, c].tolist()
            scores[b, c] = {"sum": sum(trace), "max": max(trace), "last": trace[-1]}[reduction]
    rows = slow_cross_entropy(scores, targets)
    for batch_reduction, value in (("mean", rows.mean()), ("sum", rows.sum()), ("none", rows)):
        loss_fn = losses.ce_membrane_loss(reduction, batch_reduction=batch_reduction)
        torch.testing.assert_close(loss_fn(mem, targets), value)
        torch.testing.assert_close(loss_fn(scores, targets), value)


def test_ce_membrane_loss_scales_its_scores():
    mem, targets = torch.randn(4, 3, 5), torch.tensor([0, 4, 2])
    expected = losses.ce_membrane_loss()(0.05 * mem.sum(0), targets)
    torch.testing.assert_close(losses.ce_membrane_loss(scale=0.05)(mem, targets), expected)
    each = losses.ce_membrane_loss(scale=torch.full((5,), 0.05))
    torch.testing.assert_close(each(mem, targets), expected)


def test_ce_membrane_loss_is_snntorchs_for_the_maximum_and_fits_the_readout():
    current, targets = torch.randn(STEPS, BATCH, CLASSES), labels()
    ours = losses.ce_membrane_loss("max")(current, targets)
    torch.testing.assert_close(ours, SF.ce_max_membrane_loss()(current, targets))
    for reduction in ("sum", "max", "last"):
        loss_fn = losses.ce_membrane_loss(reduction)
        mem = LeakyReadout(0.9, reduction=None)(current)
        scores = LeakyReadout(0.9, reduction=reduction)(current)
        torch.testing.assert_close(loss_fn(mem, targets), loss_fn(scores, targets))


def test_membrane_sum_in_half_precision_accumulates_in_float32():
    mem, targets = (torch.rand(3000, 2, 3) * 8).round() / 8, torch.tensor([0, 1])
    exact = losses.ce_membrane_loss()(mem, targets)
    torch.testing.assert_close(losses.ce_membrane_loss()(mem.half(), targets), exact)


@pytest.mark.parametrize("penalty", regularizers.PENALTIES)
@pytest.mark.parametrize("per", COUNTED)
@pytest.mark.parametrize(("lower", "upper"), [(0.5, None), (None, 0.4), (0.6, 0.7)])
def test_spike_count_regularizer_against_a_loop(penalty, per, lower, upper):
    spikes, times = trains(silent=0.5)
    fired = (times < STEPS).double().tolist()
    rows = fired if per == "sample" else [list(column) for column in zip(*fired, strict=True)]
    costs = []
    for row in rows:
        count = sum(row) / len(row)
        distance = max(
            (lower - count) if lower is not None else 0.0,
            (count - upper) if upper is not None else 0.0,
            0.0,
        )
        costs.append(distance**2 if penalty == "squared" else distance)
    reg_fn = losses.spike_count_regularizer(lower, upper, 0.3, penalty=penalty, per=per)
    value = reg_fn(spikes)
    assert value.item() == pytest.approx(0.3 * sum(costs) / len(costs))


def test_firing_regularizer_against_a_loop():
    spikes, times = trains(batch=8, silent=0.5)
    total = 0.0
    for c in range(CLASSES):
        column = times[:, c].tolist()
        quiet = sum(t == STEPS for t in column) / len(column) > 0.5
        for t in column:
            if t == STEPS:
                total += 0.7 * quiet
            else:
                total += 0.3 * max(t - 6, 0) / STEPS + 0.2 * max(4 - t, 0) / STEPS
    reg_fn = losses.firing_regularizer(
        2.0, silent=0.7, late=0.3, early=0.2, latest=6, earliest=4, max_silent=0.5
    )
    assert reg_fn(spikes).item() == pytest.approx(2 * total / times.numel())


def test_firing_regularizer_leaves_sparse_neurons_alone():
    spikes = torch.zeros(STEPS, 10, 2)
    spikes[3, 0, 0] = 1  # fires in one sample of ten; its neighbor never
    spikes.requires_grad_()
    losses.firing_regularizer()(spikes).backward()
    assert not spikes.grad[:, :, 0].any()
    assert (spikes.grad[:, :, 1] < 0).all()


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        spike_grad = surrogate.fast_sigmoid(slope=10)
        self.fc1, self.fc2 = nn.Linear(8, 32), nn.Linear(32, 2)
        self.lif1 = SingleSpikeLeaky(0.9, spike_grad=spike_grad)
        self.lif2 = SingleSpikeLeaky(0.9, spike_grad=spike_grad)
        with torch.no_grad():
            for parameter in (*self.fc1.parameters(), *self.fc2.parameters()):
                parameter.mul_(0.1)

    def forward(self, x):
        hidden, _ = self.lif1(self.fc1(x))
        return hidden, self.lif2(self.fc2(hidden))[0]


def test_a_silent_network_recovers():
    targets = torch.arange(64) % 2
    times = torch.randint(0, 6, (64, 8)) + 6 * (targets[:, None] ^ (torch.arange(8) % 2))
    x = torch.zeros(20, 64, 8).scatter_(0, times[None], 1.0)
    net = Net()
    loss_fn = losses.ce_temporal_loss()
    revive = losses.firing_regularizer(5.0)
    always = losses.firing_regularizer(5.0, max_silent=0)
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
    assert not any(spikes.any() for spikes in net(x))
    for _ in range(120):
        hidden, out = net(x)
        optimizer.zero_grad()
        (loss_fn(out, targets) + revive(hidden) + always(out)).backward()
        optimizer.step()
    hidden, out = net(x)
    assert (spike_count(hidden, per="neuron") > 0).float().mean() > 0.9
    assert metrics.accuracy_temporal(out, targets) > 0.9


def test_nan_reaches_the_loss_and_leaves_other_neurons_alone():
    spikes, times = trains()
    spikes[3, 0, 0] = torch.nan
    found = losses.first_spike_times(spikes)
    assert found[0, 0].isnan()
    assert torch.equal(found[1:], times[1:].double())
    assert losses.ce_temporal_loss()(spikes, labels()).isnan()


def test_compiles_in_one_graph():
    spikes, _ = trains()
    spikes.requires_grad_()
    targets = labels()

    def both(x):
        temporal_loss = losses.ce_temporal_loss()(x, targets) + losses.mse_temporal_loss()(
            x, targets
        )
        return temporal_loss + losses.firing_regularizer()(x)

    compiled = torch.compile(both, fullgraph=True, backend="aot_eager")
    (expected,) = torch.autograd.grad(both(spikes), spikes)
    torch.testing.assert_close(torch.autograd.grad(compiled(spikes), spikes)[0], expected)


SPIKES = torch.zeros(STEPS, BATCH, CLASSES)
CE, MSE, MEM = losses.ce_temporal_loss, losses.mse_temporal_loss, losses.ce_membrane_loss
COUNT, FIRING = losses.spike_count_regularizer, losses.firing_regularizer
TIMES = torch.zeros(BATCH, CLASSES)
ERRORS = {
    "unknown inverse": (ValueError, "inverse='log'", lambda: CE("log")),
    "unknown reduction": (ValueError, "reduction='max'", lambda: CE(reduction="max")),
    "time scale": (ValueError, "time_scale=0 must be", lambda: CE(time_scale=0)),
    "num_steps": (ValueError, "num_steps=0", lambda: CE(num_steps=0)),
    "no tensor": (TypeError, "spk_out must be", lambda: CE()([1], TARGETS)),
    "one step": (ValueError, "num_steps=T", lambda: CE()(SPIKES[0], TARGETS)),
    "rank 1": (ValueError, "spk_out has shape", lambda: CE()(SPIKES[0, 0], TARGETS)),
    "rank 4": (ValueError, r"flatten\(2\)", lambda: CE()(SPIKES[..., None], TARGETS)),
    "T=0": (ValueError, r"T=0", lambda: CE()(SPIKES[:0], TARGETS)),
    "integers": (TypeError, r"spk_out.float\(\)", lambda: CE()(SPIKES.long(), TARGETS)),
    "other T": (ValueError, "leave num_steps out", lambda: CE(num_steps=9)(SPIKES, TARGETS)),
    "late": (ValueError, "time of 10", lambda: CE(num_steps=9)(TIMES + 10, TARGETS)),
    "integer times": (
        TypeError,
        'gradient="spike_time"',
        lambda: CE(num_steps=9)(TIMES.long(), TARGETS),
    ),
    "two spikes": (ValueError, "one spike", lambda: CE()(SPIKES + 1, TARGETS)),
    "height 0": (
        ValueError,
        "contains 0",
        lambda: losses.first_spike_times(SPIKES, graded_spikes_factor=0.0),
    ),
    "height shape": (
        ValueError,
        "graded_spikes_factor has shape",
        lambda: losses.first_spike_times(SPIKES, graded_spikes_factor=torch.ones(3)),
    ),
    "batch": (ValueError, "targets has 4 samples", lambda: CE()(SPIKES, TARGETS[:4])),
    "no time": (ValueError, "num_steps=T", lambda: MEM()(SPIKES[:, :1], TARGETS)),
    "class": (ValueError, "targets contains 4", lambda: MSE()(SPIKES, TARGETS + 1)),
    "negative class": (ValueError, "contains -1", lambda: MEM()(SPIKES, TARGETS - 1)),
    "one-hot": (ValueError, r"argmax\(1\)", lambda: CE()(SPIKES, TIMES.long())),
    "float targets": (TypeError, r"targets.long\(\)", lambda: CE()(SPIKES, TARGETS.float())),
    "list targets": (TypeError, "torch.as_tensor", lambda: CE()(SPIKES, [0] * 5)),
    "weight": (ValueError, "weight must be", lambda: CE(weight=torch.ones(3))(SPIKES, TARGETS)),
    "weight and times": (
        ValueError,
        "target_is_time=True",
        lambda: MSE(target_is_time=True, weight=torch.ones(4)),
    ),
    "on_target": (ValueError, "on_target=13", lambda: MSE(on_target=13)(SPIKES, TARGETS)),
    "on_target of CE": (ValueError, "on_target=-13", lambda: CE(on_target=-13)(SPIKES, TARGETS)),
    "off_target": (ValueError, "off_target=-13", lambda: MSE(off_target=-13)(SPIKES, TARGETS)),
    "tolerance": (ValueError, "tolerance=-1", lambda: MSE(tolerance=-1)),
    "time shape": (ValueError, "targets has shape", lambda: MSE(True)(SPIKES, TARGETS)),
    "time list": (TypeError, "torch.as_tensor", lambda: MSE(True)(SPIKES, [0] * 4)),
    "time value": (ValueError, "a time in targets=50", lambda: MSE(True)(SPIKES, TIMES + 50)),
    "membrane over batch": (ValueError, "batch_reduction='mean'", lambda: MEM("mean")),
    "membrane unknown": (ValueError, "'first' is not known: use one of", lambda: MEM("first")),
    "membrane batch": (ValueError, "batch_reduction='max'", lambda: MEM(batch_reduction="max")),
    "membrane T=0": (ValueError, "T=0", lambda: MEM()(SPIKES[:0], TARGETS)),
    "membrane rank": (ValueError, "mem_out has shape", lambda: MEM()(SPIKES[..., None], TARGETS)),
    "membranes of a loop over calls": (
        ValueError,
        "remove the loop over time",
        lambda: MEM()(SPIKES.expand(STEPS, *SPIKES.shape), TARGETS),
    ),
    "membrane integer": (TypeError, "mem_out has dtype", lambda: MEM()(TIMES.long(), TARGETS)),
    "unbounded": (ValueError, "bound nothing", COUNT),
    "swapped": (ValueError, "swap them", lambda: COUNT(2, 1)),
    "penalty": (ValueError, "penalty='l1'", lambda: COUNT(1, penalty="l1")),
    "per": (ValueError, "per='class'", lambda: COUNT(1, per="class")),
    "count rank": (ValueError, "spk_out has shape", lambda: COUNT(1)(TIMES)),
    "firing times": (ValueError, "have no gradient", lambda: FIRING()(TIMES)),
    "firing weight": (ValueError, "late=-1", lambda: FIRING(late=-1)),
    "firing fraction": (ValueError, "max_silent=2", lambda: FIRING(max_silent=2)),
    "firing latest": (ValueError, "latest=99", lambda: FIRING(late=1, latest=99)(SPIKES)),
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors_name_the_argument_and_the_fix(name):
    kind, message, call = ERRORS[name]
    with pytest.raises(kind, match=message):
        call()


@pytest.mark.parametrize("num_steps", ["5", 5.5])
def test_a_number_of_steps_that_is_none(num_steps):
    with pytest.raises(TypeError, match=f"num_steps={num_steps!r} must be .* an integer"):
        losses.ce_temporal_loss(num_steps=num_steps)


def test_a_number_of_steps_from_numpy():
    assert losses.ce_temporal_loss(num_steps=np.int64(5)).num_steps == 5


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: losses.ce_temporal_loss(time_scale="x"),
            "time_scale='x' must be a number above 0",
        ),
        (lambda: losses.ce_temporal_loss(on_target="x"), "on_target='x' must be a number"),
        (lambda: losses.mse_temporal_loss(True, on_target=3), "on_target and off_target.*out"),
        (lambda: losses.spike_count_regularizer(lower=float("nan")), "lower=nan must be a number"),
        (lambda: losses.firing_regularizer(float("inf")), "Lambda=inf must be a number"),
        (lambda: losses.firing_regularizer(latest=9), "latest=9 has no effect with late=0"),
        (lambda: losses.firing_regularizer(earliest=9), "earliest=9 has no effect with early=0"),
    ],
)
def test_options_that_are_no_numbers_or_do_nothing(make, message):
    with pytest.raises(ValueError, match=message):
        make()


TWINS = [
    (module, name)
    for module, theirs in ((losses, SF), (metrics, SF))
    for name in module.__all__
    if hasattr(theirs, name)
]
# The defaults of snnTorch ask every class for a spike at step 0: see the docstring.
OTHER_DEFAULTS = {("mse_temporal_loss", "on_target"), ("mse_temporal_loss", "off_target")}


@pytest.mark.parametrize(("module", "name"), TWINS, ids=lambda x: x if isinstance(x, str) else "")
def test_arguments_are_those_of_snntorch(module, name):
    """In the same order, so that positional arguments mean the same."""
    ours, theirs = (
        list(inspect.signature(getattr(place, name)).parameters.values()) for place in (module, SF)
    )
    for mine, other in zip(ours, theirs, strict=False):
        assert (mine.name, mine.kind) == (other.name, other.kind)
        if (name, mine.name) not in OTHER_DEFAULTS:
            assert mine.default == other.default, mine.name
    assert len(ours) >= len(theirs)
    # Arguments of ours alone leave the positions of snnTorch's as they are.
    more = ours[len(theirs) :]
    assert all(x.kind is x.KEYWORD_ONLY or x.default is not x.empty for x in more)


def test_the_twins_of_snntorch():
    assert {name for _, name in TWINS} == {
        *("accuracy_temporal", "ce_temporal_loss", "mse_temporal_loss"),
    }


def test_several_target_spikes_are_rejected():
    with pytest.raises(ValueError, match=r"multi_spike=True.*at most once.*snntorch\.functional"):
        losses.mse_temporal_loss(False, 3, 5, 0, True)
    assert SF.mse_temporal_loss(False, 3, 5, 0, False).reduction == "mean"
    assert losses.mse_temporal_loss(False, 3, 5, 0, False).reduction == "mean"
