"""Metrics against per-sample loops, and against equal metrics of snnTorch."""

import math

import numpy as np
import pytest
import snntorch.functional as SF
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from snn_single_spike import SingleSpikeLinear, SpikeEvents, SpikeTimes, metrics
from snn_single_spike.functional import first_spike_time, single_spike_leaky


def slow_accuracy(spikes, targets, mem=None):
    num_steps, batch, classes = spikes.shape
    right = 0.0
    for b in range(batch):
        for t in range(num_steps):
            winners = [c for c in range(classes) if spikes[t, b, c] != 0]
            if winners:
                if mem is not None:
                    best = max(mem[t, b, c].item() for c in winners)
                    winners = [c for c in winners if mem[t, b, c] == best]
                right += (targets[b].item() in winners) / len(winners)
                break
    return right / batch


shapes = st.tuples(st.integers(1, 8), st.integers(1, 6), st.integers(1, 5), st.integers(0, 1000))


@given(shapes, st.floats(0, 0.5), st.booleans())
def test_accuracy_against_a_loop(shape, rate, with_mem):
    num_steps, batch, classes, seed = shape
    torch.manual_seed(seed)
    spikes = (torch.rand(num_steps, batch, classes) < rate) * 0.7  # repeated and graded
    targets = torch.randint(classes, (batch,))
    # Few levels, so that membranes tie too
    mem = torch.randint(3, spikes.shape).float() if with_mem else None
    found = metrics.accuracy_temporal(spikes, targets, mem)
    assert isinstance(found, float)
    assert found == pytest.approx(slow_accuracy(spikes, targets, mem))


def test_accuracy_is_snntorchs_without_ties_and_silent_samples():
    num_steps, batch, classes = 50, 200, 10
    times = torch.rand(batch, num_steps).argsort(1)[:, :classes]  # distinct within a sample
    spikes = torch.zeros(num_steps, batch, classes).scatter_(0, times[None], 1.0)
    targets = torch.randint(classes, (batch,))
    ours = metrics.accuracy_temporal(spikes, targets)
    assert ours == pytest.approx(SF.accuracy_temporal(spikes, targets))


def test_silent_samples_are_wrong_and_ties_are_shared():
    spikes = torch.zeros(5, 4, 3)
    zeros = torch.zeros(4, dtype=torch.int64)
    assert metrics.accuracy_temporal(spikes, zeros) == 0.0
    assert SF.accuracy_temporal(spikes, zeros) == 1.0  # reads silence as class 0
    spikes[2] = 1
    assert metrics.accuracy_temporal(spikes, zeros) == pytest.approx(1 / 3)
    mem = torch.zeros(5, 4, 3)
    mem[2, :, 1] = 2.0
    mem[3, :, 0] = 9.0  # after the spikes
    assert metrics.accuracy_temporal(spikes, zeros, mem) == 0.0
    assert metrics.accuracy_temporal(spikes, zeros + 1, mem) == 1.0
    assert metrics.accuracy_temporal(spikes, zeros + 1, mem[2]) == 1.0
    assert metrics.accuracy_temporal(spikes, zeros + 2, mem.fill_(torch.nan)) < 0.5


def test_times_do_as_well_as_spikes():
    current = torch.rand(30, 64, 10) * 0.25
    targets = torch.randint(10, (64,))
    spikes, mem, times = single_spike_leaky(current, 0.9)
    for extra in ((), (mem,), (mem.sum(0),)):
        expected = metrics.accuracy_temporal(spikes, targets, *extra)
        assert metrics.accuracy_temporal(times, targets, *extra) == expected
    latency = metrics.latency_to_decision(spikes)
    torch.testing.assert_close(metrics.latency_to_decision(times), latency, equal_nan=True)
    exact = first_spike_time(current, 0.9, gradient="spike_time")
    assert metrics.accuracy_temporal(exact, targets, mem) >= 0
    decided = metrics.latency_to_decision(exact)
    torch.testing.assert_close(decided.ceil().double(), latency, equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.int64, torch.bool])
def test_latency_and_operations_against_loops(dtype):
    spikes = (torch.rand(6, 7, 2, 3) < 0.1).to(dtype)
    flat = spikes.flatten(2)
    latency = metrics.latency_to_decision(flat)
    for b in range(7):
        num_steps = [t for t in range(6) if flat[t, b].any()]
        assert latency[b] == num_steps[0] if num_steps else math.isnan(latency[b])
    fan_out = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
    operations = sum(fan_out.flatten()[n].item() for _, _, n in flat.nonzero().tolist())
    energy = metrics.energy_estimate(spikes, fan_out)
    assert energy.synaptic_operations == pytest.approx(operations / 7)


def test_nan_is_no_spike():
    spikes = torch.tensor([torch.nan, 1.0])[:, None, None]
    assert metrics.energy_estimate(spikes, 1).synaptic_operations == 1
    assert metrics.latency_to_decision(spikes).tolist() == [1]


def test_empty_batch():
    spikes = torch.zeros(4, 0, 3)
    assert metrics.latency_to_decision(spikes).shape == (0,)
    with pytest.raises(ValueError, match="no samples"):
        metrics.accuracy_temporal(spikes, torch.zeros(0, dtype=torch.int64))
    with pytest.raises(ValueError, match="B=0"):
        metrics.energy_estimate(spikes, 10)


def test_energy_by_hand():
    x, hidden = torch.zeros(5, 2, 4), torch.zeros(5, 2, 3)
    x[0] = 1  # 4 spikes a sample, each to 3 neurons
    hidden[1, 0, :2] = 1  # 2 spikes in one of two samples, each to 10 neurons
    energy = metrics.energy_estimate([x, hidden], [nn.Linear(4, 3), 10])
    assert energy.synaptic_operations == 4 * 3 + 1 * 10
    assert energy.joules == pytest.approx(22 * 0.9e-12)
    assert energy.dense_operations == 4 * 3 + 3 * 10
    assert energy.dense_joules == pytest.approx(42 * 4.6e-12)
    graded = metrics.energy_estimate(hidden, 10, graded=True, multiply_accumulate_pj=2.0)
    assert graded.joules == pytest.approx(10 * 2e-12)
    assert graded.dense_joules == pytest.approx(30 * 2e-12)
    assert metrics.energy_estimate(hidden, 10, accumulate_pj=1).joules == pytest.approx(1e-11)


def test_energy_with_a_fan_out_for_each_neuron():
    spikes = torch.ones(1, 2, 2, 3)
    fan_out = torch.tensor([1, 2, 3])
    assert metrics.energy_estimate(spikes, fan_out).synaptic_operations == 12
    assert metrics.energy_estimate(spikes, fan_out).dense_operations == 12


HEIGHTS = {
    "1": None,
    "of each neuron": torch.tensor([0.5, 2.0, 1.0]),
    "negative, 0 and NaN": torch.tensor([-1.0, 0.0, math.nan]),
}


@pytest.mark.parametrize("name", HEIGHTS)
def test_spike_times_are_read_without_dense_spikes(name, monkeypatch):
    given = SpikeTimes(torch.randint(-1, 6, (50, 3)), 6, height=HEIGHTS[name])
    dense, targets, mem = given.to_dense(), torch.randint(3, (50,)), torch.rand(6, 50, 3)
    fan_out = torch.tensor([1.0, 10.0, 100.0])

    def found(spikes):
        yield metrics.latency_to_decision(spikes).nan_to_num(-1).tolist()
        yield metrics.accuracy_temporal(spikes, targets)
        yield metrics.accuracy_temporal(spikes, targets, mem)
        yield metrics.energy_estimate(spikes, fan_out)

    expected = list(found(dense))

    def forbidden(self):
        raise AssertionError("dense spikes were made")

    monkeypatch.setattr(SpikeTimes, "to_dense", forbidden)
    assert list(found(given)) == expected


@pytest.mark.parametrize("heights", [[1.0], [1.0, 3.0], [1.0, 2.0, math.nan]])
def test_every_event_is_one_operation_whatever_its_height(heights):
    dense = torch.zeros(7, 4, 2, 3)
    where = torch.rand(dense.shape) < 0.3
    dense[where] = torch.tensor(heights)[torch.randint(len(heights), (int(where.sum()),))]
    fan_out = torch.arange(1.0, 7.0).view(2, 3)
    expected = metrics.energy_estimate(dense, fan_out)
    assert metrics.energy_estimate(SpikeEvents.from_dense(dense), fan_out) == expected
    assert expected.synaptic_operations > 0


def test_spike_times_of_another_rank_or_no_neurons():
    times = torch.zeros(4, 2, 3, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"flatten\(2\)"):
        metrics.latency_to_decision(SpikeTimes(times, 5))
    for call in (metrics.latency_to_decision, lambda x: metrics.energy_estimate(x, 1)):
        with pytest.raises(ValueError, match="no neurons"):
            call(SpikeTimes(times[:, 0, :0], 5))


SPIKES, TARGETS = torch.zeros(5, 4, 3), torch.zeros(4, dtype=torch.int64)
ACCURACY, ENERGY = metrics.accuracy_temporal, metrics.energy_estimate
ERRORS = {
    "no tensor": (TypeError, "spk_out must be", lambda: ACCURACY([1], TARGETS)),
    "rank": (ValueError, "torch.stack", lambda: ENERGY(SPIKES[0], 1)),
    "rank 4": (ValueError, r"flatten\(2\)", lambda: ACCURACY(SPIKES[..., None], TARGETS)),
    "T=0": (ValueError, "T=0", lambda: metrics.latency_to_decision(SPIKES[:0])),
    "no neurons": (ValueError, "no neurons", lambda: ENERGY(SPIKES[..., :0], 1)),
    "batch": (ValueError, "targets has 3 samples", lambda: ACCURACY(SPIKES, TARGETS[:3])),
    "class": (ValueError, "targets contains 3", lambda: ACCURACY(SPIKES, TARGETS + 3)),
    "float": (TypeError, "targets.long", lambda: ACCURACY(SPIKES, TARGETS.float())),
    "mem": (ValueError, "mem_out has shape", lambda: ACCURACY(SPIKES, TARGETS, SPIKES[:2])),
    "mem type": (TypeError, "mem_out must be", lambda: ACCURACY(SPIKES, TARGETS, [1])),
    "membrane": (
        ValueError,
        "from 0.25 to 0.5 for one neuron: .* not the membrane",
        lambda: ACCURACY(0.25 * torch.arange(60.0).view(5, 4, 3).clamp(max=2), TARGETS),
    ),
    "layers": (ValueError, "fan_out has 1 entries", lambda: ENERGY([SPIKES, SPIKES], 10)),
    "linear": (ValueError, "Linear of 4 inputs", lambda: ENERGY(SPIKES, nn.Linear(4, 2))),
    "conv": (TypeError, "Conv2d", lambda: ENERGY(SPIKES, nn.Conv2d(3, 4, 3))),
    "fan-out": (ValueError, "does not broadcast", lambda: ENERGY(SPIKES, torch.ones(4))),
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors_name_the_argument_and_the_fix(name):
    kind, message, call = ERRORS[name]
    with pytest.raises(kind, match=message):
        call()


def test_accuracy_by_the_membrane():
    mem = torch.tensor([[[0.0, 1.0], [0.0, 5.0]], [[3.0, 1.0], [6.0, 0.0]]])  # (2, 2, 2)
    targets = torch.tensor([0, 0])
    assert metrics.accuracy_membrane(mem, targets) == 1.0
    assert metrics.accuracy_membrane(mem, 1 - targets, "max") == 0.0
    assert metrics.accuracy_membrane(mem[:1], targets, "last") == 0.0
    assert metrics.accuracy_membrane(mem.sum(0), torch.tensor([0, 1])) == 0.5
    with pytest.raises(ValueError, match="reduction='mean' is not known"):
        metrics.accuracy_membrane(mem, targets, "mean")
    with pytest.raises(ValueError, match="flatten"):
        metrics.accuracy_membrane(mem[..., None], targets)
    with pytest.raises(ValueError, match="no samples"):
        metrics.accuracy_membrane(mem[:, :0], targets[:0])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_membrane_of_half_types_is_summed_as_the_loss_sums_it(dtype):
    mem = torch.full((100, 1, 2), 700.0, dtype=dtype)
    mem[:, :, 1] += 8
    assert metrics.accuracy_membrane(mem, torch.tensor([1])) == 1
    assert metrics.accuracy_membrane(mem, torch.tensor([0])) == 0


def test_nan_is_never_right_by_the_membrane():
    mem = torch.full((3, 2, 4), torch.nan)
    assert metrics.accuracy_membrane(mem, torch.zeros(2, dtype=torch.int64)) == 0
    mem[:, 0, 2] = -1
    assert metrics.accuracy_membrane(mem, torch.full((2,), 2)) == 0.5


def test_spikes_of_several_heights_are_spikes():
    counts = torch.zeros(9, 1, 2)
    counts[3, 0, 0], counts[5, 0, 0] = 1, 2
    assert metrics.latency_to_decision(SpikeEvents.from_dense(counts)).item() == 3


def test_accuracy_is_a_fraction_in_double():
    times = torch.zeros(10, 2)
    times[:, 1] = 1
    times[0] = torch.tensor([1.0, 0.0])
    assert metrics.accuracy_temporal(times, torch.zeros(10, dtype=torch.int64)) == 0.9


@pytest.mark.parametrize("fan_out", [5, 5.0, np.int64(5), SingleSpikeLinear(3, 5, 0.9)])
def test_kinds_of_fan_out(fan_out):
    spikes = torch.zeros(4, 2, 3)
    spikes[1, 0, 0] = 1
    assert metrics.energy_estimate(spikes, fan_out).synaptic_operations == 2.5


def test_integers_are_scores_and_spikes():
    scores, targets = torch.tensor([[3, 1], [0, 2]]), torch.tensor([0, 0])
    assert metrics.accuracy_membrane(scores, targets) == 0.5
    counts = torch.randint(1, 4, (6, 2, 2))
    assert metrics.latency_to_decision(counts).tolist() == [0, 0]
