"""Spike times and events: values, types, gradients, copies, and rejected arguments."""

import copy
import io
import math
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from snn_single_spike import SingleSpikeLinear, SpikeEvents, SpikeTimes
from snn_single_spike.backends._events import Events, collect_events
from snn_single_spike.functional import spike_count

from tests.support.spikes import (
    BATCH,
    FEATURES,
    STANDING_FOR_DENSE,
    STEPS,
    dense_of,
    event,
    graded,
    times_of,
)

DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]


@pytest.mark.parametrize("features", [(1,), (5,), (2, 5), (2, 3, 4)])
@pytest.mark.parametrize("num_steps", [1, 2, 7])
def test_times_stand_for_one_spike_a_neuron(num_steps, features):
    times = times_of(num_steps, features=features)
    spikes = SpikeTimes(times, num_steps)
    assert torch.equal(spikes.to_dense(), dense_of(times, num_steps))
    assert spikes.shape == (num_steps, BATCH, *features)


@given(
    num_steps=st.integers(1, 9),
    batch=st.integers(0, 3),
    features=st.lists(st.integers(1, 4), min_size=1, max_size=3),
    seed=st.integers(0, 2**16),
)
def test_round_trips(num_steps, batch, features, seed):
    times = times_of(num_steps, batch, features, seed)
    spikes = SpikeTimes(times, num_steps)
    dense = spikes.to_dense()
    assert torch.equal(SpikeTimes.from_dense(dense).times, times)
    events = SpikeEvents.from_dense(dense)
    assert torch.equal(events.to_dense(), dense)
    for mine, right in zip(spikes.events()[:3], events.events()[:3], strict=True):
        assert torch.equal(mine, right)
    several = graded(num_steps, batch, features, seed)
    assert torch.equal(SpikeEvents.from_dense(several).to_dense(), several)
    assert torch.equal(
        SpikeEvents.from_dense(several).events().offsets.diff(),
        (several > 0).flatten(2).sum((0, 2)),
    )


LAYOUTS = {
    "time first": ((5, 3, 37), lambda x: x),
    "batch first": ((3, 5, 37), lambda x: x.transpose(0, 1)),
    "time last": ((3, 37, 5), lambda x: x.permute(2, 0, 1)),
    "a part": ((9, 7, 40), lambda x: x[1:6, 2:5, 3:]),
    "every second": ((3, 10, 2, 20), lambda x: x[:, ::2].transpose(0, 1)),
    "repeated": ((5, 1, 37), lambda x: x.expand(5, 3, 37)),
    "empty": ((5, 0, 37), lambda x: x),
}


@pytest.mark.parametrize("threshold", [0.1, 0.95])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_events_of_dense_tensors_in_any_order_of_memory(layout, threshold):
    shape, view = LAYOUTS[layout]
    memory = torch.rand(shape)
    memory[memory < threshold] = 0
    memory[:, :1] *= math.nan
    dense = view(memory)
    found = SpikeEvents.from_dense(dense).events()
    expected = collect_events(dense.flatten(2).contiguous())
    for mine, right in zip(found[:4], expected[:4], strict=True):
        torch.testing.assert_close(mine, right, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_dense_tensors_keep_their_type(dtype):
    dense = dense_of(times_of(), STEPS).to(dtype)
    assert SpikeTimes.from_dense(dense).to_dense().dtype == dtype
    assert SpikeEvents.from_dense(dense).to_dense().dtype == dtype
    several = graded().to(dtype)
    assert torch.equal(SpikeEvents.from_dense(several).to_dense(), several)
    assert SpikeTimes(times_of(), STEPS, dtype=dtype).to_dense().dtype == dtype


@pytest.mark.parametrize(
    ("num_steps", "expected"),
    [
        (1, torch.int8),
        (127, torch.int8),
        (128, torch.int8),
        (129, torch.int16),
        (32768, torch.int16),
        (32769, torch.int32),
    ],
)
def test_times_are_kept_in_the_smallest_type(num_steps, expected):
    times = torch.tensor([[0, -1, num_steps - 1]])
    spikes = SpikeTimes(times, num_steps)
    assert spikes.times.dtype == expected
    assert spikes.times.tolist() == times.tolist()
    dense = spikes.to_dense()
    assert dense[-1].tolist() == [[float(num_steps == 1), 0.0, 1.0]]
    assert dense.sum() == 2
    assert SpikeTimes.from_dense(dense).times.tolist() == times.tolist()


@pytest.mark.parametrize(
    "dtype",
    [torch.uint8, torch.uint16, torch.uint64, torch.int8, torch.int16, torch.int32, torch.int64],
    ids=str,
)
def test_times_of_any_integer_type(dtype):
    assert SpikeTimes(torch.tensor([[3, 0]], dtype=dtype), 5).times.tolist() == [[3, 0]]


def test_a_silent_layer():
    spikes = SpikeTimes(torch.full((2, 3), -1), 4)
    assert not spikes.to_dense().any()
    assert spike_count(spikes, per="sample").tolist() == [0, 0]
    assert len(spikes.events().times) == 0
    events = SpikeEvents.from_dense(torch.zeros(4, 2, 3))
    assert spike_count(events, per="sample").tolist() == [0, 0]
    assert torch.equal(events.to_dense(), torch.zeros(4, 2, 3))


def test_heights_scale_the_features():
    times, height = times_of(), torch.tensor([0.5, 1, 2, 3, 4])
    spikes = SpikeTimes(times, STEPS, height=height)
    assert torch.equal(spikes.to_dense(), dense_of(times, STEPS) * height)
    assert torch.equal(spikes.flatten(2).to_dense(), (dense_of(times, STEPS) * height).flatten(2))
    assert spikes.height.shape == FEATURES
    one = SpikeTimes(times, STEPS, height=torch.tensor(2.0, dtype=torch.float64))
    assert one.to_dense().dtype == torch.float64
    assert torch.equal(one.to_dense(), dense_of(times, STEPS).double() * 2)


def test_events_are_ordered_by_sample_and_time():
    for spikes in (SpikeTimes(times_of(), STEPS), SpikeEvents.from_dense(graded())):
        offsets, times, units, values, *_ = spikes.events()
        assert offsets.dtype == torch.int64
        assert times.dtype == units.dtype == torch.int32
        assert offsets.tolist() == [
            0,
            *spikes.to_dense().flatten(2).count_nonzero((0, 2)).cumsum(0).tolist(),
        ]
        dense = spikes.to_dense().flatten(2)
        for sample in range(BATCH):
            inside = slice(*offsets[sample : sample + 2].tolist())
            assert (times[inside].diff() >= 0).all()
            found = dense[times[inside].long(), sample, units[inside].long()]
            assert torch.equal(found, found.new_ones(()).expand_as(found) if values is None
                               else values[inside])  # fmt: skip
            assert len(found) == (dense[:, sample] != 0).sum()


def test_spikes_of_a_unit_in_one_step_add_up():
    spikes = SpikeEvents(event([0, 3], [1, 1, 2], [0, 0, 1], [2.0, 3.0, 4.0]), 3, (2,))
    assert spikes.to_dense()[:, 0].tolist() == [[0.0, 0.0], [5.0, 0.0], [0.0, 4.0]]
    weight = torch.tensor([[1.0, 10.0]])
    times = [SingleSpikeLinear(2, 1, 0.0, threshold=x) for x in (4.9, 5.0)]
    for layer in times:
        layer.weight.data.copy_(weight)
        layer.bias.data.zero_()
    assert [layer(spikes).times.item() for layer in times] == [1, 2]


@pytest.mark.parametrize("folded", [False, True])
def test_gradients_through_dense_and_from_dense(folded):
    leaf = dense_of(times_of(), STEPS).double().requires_grad_()
    height = torch.rand(5, dtype=torch.float64, requires_grad=True)
    spikes = SpikeTimes.from_dense(leaf)
    assert spikes.requires_grad
    graded = SpikeTimes(spikes.times, STEPS, height=height)
    assert graded.requires_grad
    g = torch.randn(STEPS, BATCH, *FEATURES, dtype=torch.float64)
    views = (spikes.fold().flatten(1), g.flatten(0, 1).flatten(1)) if folded else (spikes, g)
    (views[0].to_dense() * views[1]).sum().backward()
    assert torch.equal(leaf.grad, g)
    (graded.to_dense() * g).sum().backward()
    assert torch.allclose(height.grad, (leaf.detach() * g).sum((0, 1, 2)))


def test_two_dense_tensors_of_one_and_a_function_of_torch():
    leaf = dense_of(times_of(), STEPS).requires_grad_()
    spikes = SpikeTimes.from_dense(leaf)
    (spikes.to_dense().sum() + (2 * spikes).sum() + torch.sum(spikes * 3)).backward()
    assert torch.equal(leaf.grad, torch.full_like(leaf, 6))


def test_events_carry_the_gradient_of_dense_spikes_only():
    leaf = graded().requires_grad_()
    spikes = SpikeEvents.from_dense(leaf)
    (spikes.to_dense().sum() + (2 * spikes).sum()).backward()
    assert torch.equal(leaf.grad, torch.full_like(leaf, 3))
    assert not SpikeEvents(spikes.events(), spikes.num_steps, spikes.features).requires_grad


@pytest.mark.parametrize(
    ("times", "num_steps", "error", "message"),
    [
        (torch.zeros(2, 3), 5, TypeError, r"not torch.float32: round them, e.g. times.int\(\)"),
        (torch.zeros(2, 3, dtype=torch.bool), 5, TypeError, "not torch.bool"),
        (torch.zeros(2, 3, dtype=torch.complex64), 5, TypeError, "not torch.complex64"),
        ([[1]], 5, TypeError, "times must be an integer tensor, not list"),
        (torch.zeros(3, dtype=torch.int8), 5, ValueError, r"use times.unsqueeze\(0\)"),
        (torch.tensor([[0, 5]]), 5, ValueError, "runs from 0 to 5, but num_steps=5 allows 0 to 4"),
        (torch.tensor([[-2, 3]]), 5, ValueError, "runs from -2 to 3"),
        (torch.tensor([[256]]), 128, ValueError, "runs from 256 to 256"),
        (torch.tensor([[0]]), 0, ValueError, "num_steps=0 must be a positive number of time steps"),
        (torch.tensor([[0]]), -1, ValueError, "num_steps=-1 must be a positive"),
        (torch.tensor([[0]]), True, ValueError, "num_steps=True must be a positive"),
        (torch.tensor([[0]]), 5.0, ValueError, "num_steps=5.0 must be a positive"),
        (torch.tensor([[0]]), 2**31 + 1, ValueError, r"is more than the 2\*\*31"),
    ],
)
def test_times_that_are_refused(times, num_steps, error, message):
    with pytest.raises(error, match=message):
        SpikeTimes(times, num_steps)


def test_steps_of_numpy():
    assert SpikeTimes(times_of(), np.int64(STEPS)).shape == (STEPS, BATCH, *FEATURES)


def test_heights_that_are_refused():
    with pytest.raises(ValueError, match=r"height has shape \(3,\), which does not broadcast"):
        SpikeTimes(times_of(), STEPS, height=torch.ones(3))
    with pytest.raises(ValueError, match=r"height is on meta, but the times is on cpu"):
        SpikeTimes(times_of(), STEPS, height=torch.ones(5, device="meta"))


@pytest.mark.parametrize("kind", [SpikeTimes, SpikeEvents])
def test_dense_tensors_that_are_refused(kind):
    with pytest.raises(TypeError, match=r"not torch.int64: use spikes.float\(\)"):
        kind.from_dense(torch.zeros(2, 3, 4, dtype=torch.int64))
    with pytest.raises(TypeError, match="not ndarray"):
        kind.from_dense(np.zeros((2, 3, 4)))
    with pytest.raises(ValueError, match=r"spikes has shape \(3, 4\), but the whole sequence"):
        kind.from_dense(torch.zeros(3, 4))
    with pytest.raises(ValueError, match="at least one time step"):
        kind.from_dense(torch.zeros(0, 3, 4))


def test_dense_tensors_that_times_cannot_hold():
    with pytest.raises(ValueError, match="values other than 0 and 1: use SpikeEvents"):
        SpikeTimes.from_dense(graded())
    with pytest.raises(ValueError, match="values other than 0 and 1"):
        SpikeTimes.from_dense(torch.full((2, 1, 1), math.nan))
    with pytest.raises(ValueError, match="spike more than once: use SpikeEvents.from_dense"):
        SpikeTimes.from_dense(torch.ones(2, 1, 1))


@pytest.mark.parametrize(
    ("events", "message"),
    [
        (event([0, 2], [0], [0]), r"offsets=\[0, 2\] must rise from 0 to the number of events, 1"),
        (event([1, 1], [0], [0]), r"offsets=\[1, 1\] must rise"),
        (event([0, 2, 1, 2], [0, 1], [0, 0]), r"offsets=\[0, 2, 1, 2\] must rise"),
        (event([], [0], [0]), r"offsets=\[\] must rise"),
        (event([0, 1], [5], [0]), "times of the events run from 5 to 5, but must lie between 0 an"),
        (event([0, 1], [-1], [0]), "times of the events run from -1"),
        (event([0, 1], [0], [3]), "units of the events run from 3 to 3, but must lie between 0 an"),
        (event([0, 3], [0, 2, 1], [0, 0, 0]), "event 2 is earlier than the one before it"),
        (event([0, 1], [0, 1], [0]), "events has 2 times and 1 units: pass one of each"),
        (event([0, 1], [0], [0], [1.0, 2.0]), "1 times and 1 units and 2 values"),
    ],
)
def test_events_that_are_refused(events, message):
    with pytest.raises(ValueError, match=message):
        SpikeEvents(events, 5, (3,))


def test_events_of_the_wrong_type_are_refused():
    good = event([0, 1], [1], [2])
    with pytest.raises(TypeError, match="times of the events must be integers, not torch.float32"):
        SpikeEvents(good._replace(times=torch.tensor([1.7])), 5, (3,))
    with pytest.raises(TypeError, match="units of the events must be integers, not torch.float32"):
        SpikeEvents(good._replace(units=torch.tensor([1.0])), 5, (3,))
    with pytest.raises(TypeError, match=r"values of the events .* not torch.int64"):
        SpikeEvents(good._replace(values=torch.tensor([2])), 5, (3,))


def test_a_new_sample_may_begin_earlier_than_the_last_ended():
    spikes = SpikeEvents(event([0, 0, 2, 2, 4, 4], [1, 3, 0, 2], [0, 1, 2, 0]), 5, (3,))
    assert spike_count(spikes, per="sample").tolist() == [0, 2, 0, 2, 0]
    assert spikes.to_dense().nonzero().tolist() == [[0, 3, 2], [1, 1, 0], [2, 3, 0], [3, 1, 1]]


@pytest.mark.parametrize("name", ["graded times", "events", "folded times", "folded events"])
@pytest.mark.parametrize("how", ["pickle", "deepcopy", "save"])
def test_copies(name, how):
    spikes = STANDING_FOR_DENSE[name]()
    if how == "pickle":
        other = pickle.loads(pickle.dumps(spikes))
    elif how == "deepcopy":
        other = copy.deepcopy(spikes)
    else:
        file = io.BytesIO()
        torch.save(spikes, file)
        file.seek(0)
        other = torch.load(file, weights_only=False)
    assert type(other) is type(spikes)
    assert torch.equal(other.to_dense(), spikes.to_dense())
    assert other.events().times.data_ptr() != spikes.events().times.data_ptr()


def test_a_height_must_be_a_tensor():
    with pytest.raises(TypeError, match=r"height must be a tensor, not float: use torch.tensor"):
        SpikeTimes(torch.zeros(3, 4, dtype=torch.int8), 5, height=2.0)


def test_events_out_of_order_in_unsigned_types():
    times = torch.tensor([4, 2, 0], dtype=torch.uint8)
    events = Events(torch.tensor([0, 3]), times, torch.tensor([0, 1, 2]), None)
    with pytest.raises(ValueError, match="earlier than the one before it"):
        SpikeEvents(events, 6, (5,))


def test_types_of_dense_tensors_are_floating_point():
    with pytest.raises(TypeError, match="dtype=torch.int64 must be a floating-point type"):
        SpikeTimes(torch.zeros(2, 3, dtype=int), 4, dtype=torch.int64)


@pytest.mark.parametrize("units", [1, 15, 16, 50])
@pytest.mark.parametrize("threads", [1, 2])
def test_events_are_collected_as_torch_collects_them(units, threads, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    dense = torch.rand(6, 5, units, 2, dtype=torch.float64)
    for spikes in (
        dense * (dense > 0.8),
        (dense > 0.5).double(),
        -dense,
        dense * 0,
        dense * torch.nan,
    ):
        found = SpikeEvents.from_dense(spikes.transpose(0, 1)).events()
        right = collect_events(spikes.transpose(0, 1).flatten(2))
        assert (found.values is None) == (right.values is None)
        for mine, expected in zip(found[:4], right[:4], strict=True):
            torch.testing.assert_close(mine, expected, equal_nan=True)
