"""Spikes as times and events: what they stand for, and what still gives it."""

import copy
import io
import logging
import math
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from snn_single_spike import (
    LeakyReadout,
    SingleSpikeAlpha,
    SingleSpikeLeaky,
    SingleSpikeLinear,
    SingleSpikeSynaptic,
    SpikeEvents,
    SpikeTimes,
)
from snn_single_spike.backends._events import Events
from snn_single_spike.spikes.lazy import LazyTensor
from snn_single_spike.spikes.times import LazyCurrent

STEPS, BATCH, FEATURES = 7, 3, (2, 5)
DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]


def times_of(num_steps=STEPS, batch=BATCH, features=FEATURES, seed=0):
    make = torch.Generator().manual_seed(seed)
    return torch.randint(-1, num_steps, (batch, *features), generator=make)


def dense_of(times, num_steps):
    """One at a time."""
    spikes = torch.zeros(num_steps, *times.shape)
    for place in np.ndindex(*times.shape):
        if times[place] >= 0:
            spikes[(int(times[place]), *place)] = 1
    return spikes


def graded(num_steps=STEPS, batch=BATCH, features=FEATURES, seed=0):
    """Several spikes a unit, of several heights."""
    make = torch.Generator().manual_seed(seed)
    heights = torch.randint(1, 4, (num_steps, batch, *features), generator=make).float()
    return heights * (torch.rand(heights.shape, generator=make) < 0.3)


def event(offsets, times, units, values=None):
    return Events(
        torch.tensor(offsets, dtype=torch.int64),
        torch.tensor(times, dtype=torch.int32),
        torch.tensor(units, dtype=torch.int32),
        None if values is None else torch.tensor(values),
    )


def current():
    make = torch.Generator().manual_seed(1)
    weight = torch.randn(4, 10, generator=make)
    return F.linear(SpikeTimes(times_of(), STEPS).flatten(2), weight, torch.ones(4))


def membrane():
    return SingleSpikeLeaky(0.9, spike_format="times")(current())[1]


STANDING_FOR_DENSE = {
    "times": lambda: SpikeTimes(times_of(), STEPS),
    "graded times": lambda: SpikeTimes(times_of(), STEPS, height=torch.tensor([[2.0], [3.0]])),
    "events": lambda: SpikeEvents.from_dense(graded()),
    "folded times": lambda: SpikeTimes(times_of(), STEPS).fold(),
    "folded events": lambda: SpikeEvents.from_dense(graded()).fold(),
    "current": current,
    "folded current": lambda: current().fold(),
    "membrane": membrane,
}


# What they stand for


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
        SpikeEvents.from_dense(several).count(), (several > 0).flatten(2).sum((0, 2))
    )


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
    assert spikes.count().tolist() == [0, 0]
    assert len(spikes.events().times) == 0
    events = SpikeEvents.from_dense(torch.zeros(4, 2, 3))
    assert events.count().tolist() == [0, 0]
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
        assert offsets.tolist() == [0, *spikes.count().cumsum(0).tolist()]
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


# Views of them


@pytest.mark.parametrize("make", [STANDING_FOR_DENSE["graded times"], STANDING_FOR_DENSE["events"]])
@pytest.mark.parametrize(
    "change",
    [
        lambda x: x.flatten(2),
        lambda x: x.flatten(2, 3),
        lambda x: x.flatten(-2),
        lambda x: x.flatten(3),
        lambda x: torch.flatten(x, 2),
        lambda x: torch.flatten(input=x, start_dim=2),
        lambda x: x.reshape(STEPS, BATCH, 10),
        lambda x: x.reshape(STEPS, BATCH, -1),
        lambda x: x.reshape((STEPS, BATCH, 5, 2)),
        lambda x: x.view(STEPS, BATCH, 5, -1),
        lambda x: x.view(-1, BATCH, 10),
        lambda x: torch.reshape(x, (STEPS, BATCH, 10)),
        lambda x: torch.reshape(x, shape=(STEPS, BATCH, 10)),
        lambda x: x.contiguous(),
    ],
)
def test_changes_of_the_features_stay_spikes(make, change):
    spikes = make()
    changed = change(spikes)
    assert type(changed) is type(spikes)
    assert torch.equal(changed.to_dense(), change(spikes.to_dense()))
    assert changed.shape == change(spikes.to_dense()).shape


@pytest.mark.parametrize("make", [STANDING_FOR_DENSE["times"], STANDING_FOR_DENSE["events"]])
@pytest.mark.parametrize(
    "change",
    [
        lambda x: x.flatten(),
        lambda x: x.flatten(1),
        lambda x: x.flatten(0, 1),
        lambda x: x.reshape(STEPS * BATCH, 10),
        lambda x: x.view(BATCH, STEPS, 10),
        lambda x: x.reshape(-1),
    ],
)
def test_changes_of_time_and_batch_give_a_tensor(make, change):
    changed = change(make())
    assert type(changed) is torch.Tensor
    assert torch.equal(changed, change(make().to_dense()))


@pytest.mark.parametrize("make", [STANDING_FOR_DENSE["times"], STANDING_FOR_DENSE["events"]])
@pytest.mark.parametrize(
    "shape", [(STEPS, BATCH, 3, -1), (STEPS, BATCH, -2, -5), (STEPS, BATCH, 9)]
)
def test_shapes_that_do_not_fit_are_refused_as_by_torch(make, shape):
    with pytest.raises(RuntimeError, match="shape"):
        make().to_dense().reshape(shape)
    with pytest.raises(RuntimeError, match="shape"):
        make().reshape(shape)


def test_an_empty_batch_cannot_be_reshaped_to_an_unknown_size():
    for empty in (
        SpikeTimes(torch.zeros(0, 2, 5, dtype=torch.int8), STEPS),
        SpikeEvents.from_dense(torch.zeros(STEPS, 0, 2, 5)),
    ):
        with pytest.raises(RuntimeError, match="ambiguous"):
            empty.reshape(STEPS, 0, -1)
        assert empty.reshape(STEPS, 0, 10).shape == empty.flatten(2).shape == (STEPS, 0, 10)


@pytest.mark.parametrize("name", ["graded times", "events", "current"])
def test_time_folded_into_the_batch(name):
    spikes = STANDING_FOR_DENSE[name]()
    folded = spikes.fold()
    assert folded.shape == (STEPS * BATCH, *spikes.shape[2:])
    assert torch.equal(folded.to_dense(), spikes.to_dense().flatten(0, 1))
    assert torch.equal(folded.unfold().to_dense(), spikes.to_dense())
    if name != "current":
        assert type(folded.flatten(1)) is type(spikes)
        assert torch.equal(folded.flatten(1).to_dense(), spikes.to_dense().flatten(0, 1).flatten(1))
        again = folded.reshape(STEPS * BATCH, -1)
        assert torch.equal(again.unfold().to_dense(), spikes.to_dense().flatten(2))


@pytest.mark.parametrize("name", ["graded times", "events", "folded times"])
@pytest.mark.parametrize(
    "index",
    [
        slice(1, 3),
        slice(None, None, 2),
        slice(2, 2),
        torch.tensor([2, 0, 0]),
        torch.tensor([True, False, True]),
    ],
    ids=str,
)
def test_samples_of_a_batch(name, index):
    spikes = STANDING_FOR_DENSE[name]().unfold()
    assert torch.equal(spikes.to_dense(), spikes.to_dense())
    spikes.events()  # kept, and not to be mistaken for that of the samples
    some = spikes.samples(index)
    assert torch.equal(some.to_dense(), spikes.to_dense()[:, index])
    assert torch.equal(some.count(), spikes.count()[index])
    assert torch.equal(SpikeEvents.from_dense(some.to_dense()).events()[0], some.events().offsets)
    if name != "events":
        assert not SpikeTimes(
            times_of(), STEPS, height=torch.ones((), requires_grad=True)
        ).samples(index).requires_grad  # fmt: skip


@pytest.mark.parametrize("name", ["graded times", "events", "folded times", "folded events"])
def test_to_a_device_and_detached(name):
    spikes = STANDING_FOR_DENSE[name]()
    for other in (spikes.to("cpu"), spikes.to(torch.device("cpu")), spikes.cpu(), spikes.detach()):
        assert type(other) is type(spikes)
        assert torch.equal(other.to_dense(), spikes.to_dense())
    meta = spikes.to("meta")
    assert meta.device.type == "meta"
    assert meta.shape == spikes.shape
    assert meta.dtype == spikes.dtype


@pytest.mark.parametrize("name", ["times", "events"])
def test_to_a_type_is_refused(name):
    with pytest.raises(TypeError, match=r"\.to_dense\(\)\.to\(torch\.float64\)"):
        STANDING_FOR_DENSE[name]().to(torch.float64)


def test_to_where_it_is_keeps_the_gradient():
    hidden = SingleSpikeLinear(10, 4, 0.9)(SpikeTimes(times_of(), STEPS).flatten(2))
    assert hidden.requires_grad
    assert hidden.to("cpu").requires_grad
    assert not hidden.detach().requires_grad
    assert not hidden.detach().to_dense().requires_grad


# Where a tensor is asked for

OPERATIONS = {
    "add": lambda x: x + 1,
    "radd": lambda x: torch.ones(()) + x,
    "sub": lambda x: x - 2,
    "rsub": lambda x: 1 - x,
    "mul": lambda x: x * 3,
    "rmul": lambda x: 3.0 * x,
    "div": lambda x: x / 2,
    "rdiv": lambda x: 1 / (x + 1),
    "floordiv": lambda x: x // 2,
    "mod": lambda x: x % 2,
    "pow": lambda x: x**2,
    "rpow": lambda x: 2**x,
    "neg": lambda x: -x,
    "abs": lambda x: abs(x),
    "gt": lambda x: x > 0,
    "ge": lambda x: x >= 1,
    "lt": lambda x: x < 1,
    "le": lambda x: x <= 0,
    "eq": lambda x: x == 1,
    "ne": lambda x: x != 1,
    "two": lambda x: x + x,
    "matmul": lambda x: x @ torch.ones(x.shape[-1], 3),
    "rmatmul": lambda x: torch.ones(x.shape[-2], x.shape[-2]) @ x,
    "item": lambda x: x[0],
    "slice": lambda x: x[1:3, ..., -1],
    "iter": lambda x: torch.stack(list(x)),
    "unbind": lambda x: x.unbind(0)[2],
    "sum": lambda x: x.sum(0),
    "torch.sum": lambda x: torch.sum(x, dim=0),
    "keyword": lambda x: torch.sum(input=x, dim=0),
    "mean": lambda x: x.mean(),
    "cat": lambda x: torch.cat([x, x * 2], dim=1),
    "stack": lambda x: torch.stack((x, x)),
    "where": lambda x: torch.where(x > 0, x, -1.0),
    "transpose": lambda x: x.transpose(0, 1),
    "T": lambda x: x.mT,
    "cumsum": lambda x: x.cumsum(0),
    "double": lambda x: x.double(),
    "relu": lambda x: F.relu(x),
    "dropout": lambda x: F.dropout(x, 0.5, training=False) + 0,  # keeps what it is given
    "linear": lambda x: F.linear(x, torch.ones(2, x.shape[-1])) + 0,
    "linear by keywords": lambda x: F.linear(input=x, weight=torch.ones(2, x.shape[-1])) + 0,
    "einsum": lambda x: torch.einsum("...n->...", x),
    "numpy": lambda x: torch.from_numpy(x.numpy()),
    "asarray": lambda x: torch.from_numpy(np.asarray(x)),
    "assigned": lambda x: torch.zeros(x.shape).copy_(x),
}


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("name", STANDING_FOR_DENSE)
def test_torch_is_given_the_dense_tensor(name, operation):
    spikes = STANDING_FOR_DENSE[name]()
    with torch.no_grad():
        result = OPERATIONS[operation](spikes)
        assert type(result) is torch.Tensor
        assert torch.equal(result, OPERATIONS[operation](spikes.to_dense()))


def test_numpy_makes_one_dense_tensor(caplog):
    with caplog.at_level(logging.INFO, "snn_single_spike"):
        array = np.asarray(STANDING_FOR_DENSE["times"]())
    assert array.shape == (STEPS, BATCH, *FEATURES)
    assert len(caplog.messages) == 1


@pytest.mark.parametrize("name", STANDING_FOR_DENSE)
def test_what_is_known_without_the_tensor(name, caplog):
    spikes = STANDING_FOR_DENSE[name]()
    with caplog.at_level(logging.INFO, "snn_single_spike"):
        known = [
            *(spikes.shape, spikes.dtype, spikes.device, spikes.ndim, spikes.dim(), len(spikes)),
            *(spikes.size(), spikes.size(0), spikes.size(-1), spikes.numel()),
            spikes.is_floating_point(),
        ]
        repr(spikes)
        hash(spikes)
    assert caplog.messages == []
    dense = spikes.to_dense()
    assert known == [
        *(dense.shape, dense.dtype, dense.device, dense.ndim, dense.dim(), len(dense)),
        *(dense.size(), dense.size(0), dense.size(-1), dense.numel()),
        dense.is_floating_point(),
    ]


def test_the_log_says_what_wasmade_dense(caplog):
    spikes = STANDING_FOR_DENSE["times"]()
    with caplog.at_level(logging.INFO, "snn_single_spike"):
        torch.cumsum(spikes, 0)
        spikes.mean()
        spikes.flatten(0, 1)
        _ = spikes + 1
        spikes.flatten(2)
        F.linear(spikes.flatten(2), torch.ones(2, 10))
    what = f"SpikeTimes(shape={tuple(spikes.shape)}, times=torch.int8, device='cpu')"
    assert caplog.messages == [
        f"{by} takes dense tensors: {what} made one"
        for by in ("cumsum", "Tensor.mean", "flatten", "__add__")
    ]


def test_other_attributes_are_refused():
    with pytest.raises(AttributeError, match=r"SpikeTimes has no attribute 'spam': \.to_dense\(\)"):
        STANDING_FOR_DENSE["times"]().spam  # noqa: B018
    with pytest.raises(NotImplementedError):
        LazyTensor().to_dense()


def test_what_is_printed():
    assert repr(STANDING_FOR_DENSE["times"]()) == (
        "SpikeTimes(shape=(7, 3, 2, 5), times=torch.int8, device='cpu')"
    )
    leaf = dense_of(times_of(), STEPS).requires_grad_()
    assert repr(SpikeTimes.from_dense(leaf)).endswith("device='cpu', requires_grad=True)")
    assert repr(SpikeEvents.from_dense(torch.ones(2, 1, 3))) == (
        "SpikeEvents(shape=(2, 1, 3), events=6, device='cpu')"
    )
    assert repr(current()).startswith("LazyCurrent(shape=(7, 3, 4), of=SpikeTimes(")


@pytest.mark.parametrize(
    "neuron", [SingleSpikeSynaptic(0.8, 0.9), SingleSpikeAlpha(0.9, 0.8), SingleSpikeLeaky(0.9)]
)
def test_other_neurons_take_a_deferred_current(neuron):
    for mine, right in zip(neuron(current()), neuron(current().to_dense()), strict=True):
        assert torch.equal(mine, right)


def test_a_linear_layer_takes_the_last_of_several_features_as_ever():
    spikes, weight = STANDING_FOR_DENSE["times"](), torch.randn(3, 5)
    assert torch.equal(F.linear(spikes, weight), F.linear(spikes.to_dense(), weight))


# Gradients


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


def test_events_carry_no_gradient():
    assert not SpikeEvents.from_dense(graded().requires_grad_()).requires_grad
    assert not SpikeEvents.from_dense(graded().requires_grad_()).to_dense().requires_grad


@pytest.mark.parametrize("learns", ["weight", "bias", "spikes", "nothing"])
def test_a_current_knows_whether_a_gradient_can_flow_into_it(learns):
    dense = dense_of(times_of(features=(10,)), STEPS).requires_grad_(learns == "spikes")
    weight = torch.randn(4, 10, requires_grad=learns == "weight")
    bias = torch.randn(4, requires_grad=learns == "bias")
    made = F.linear(SpikeTimes.from_dense(dense), weight, bias)
    assert isinstance(made, LazyCurrent)
    assert made.requires_grad == made.to_dense().requires_grad == (learns != "nothing")
    assert not made.detach().requires_grad
    assert not made.detach().to_dense().requires_grad
    if learns != "nothing":
        g = torch.randn(STEPS, BATCH, 4)
        leaf = {"weight": weight, "bias": bias, "spikes": dense}[learns]
        (mine,) = torch.autograd.grad((made.to_dense() * g).sum(), leaf)
        (right,) = torch.autograd.grad((F.linear(dense, weight, bias) * g).sum(), leaf)
        assert torch.allclose(mine, right)


# Recordings


def recordings(number=4, events=60, extent=(3, 4, 2), last=1000.0, dtype="<i8", seed=0):
    make = np.random.default_rng(seed)
    out = []
    for _ in range(number):
        n = int(make.integers(0, events))
        made = np.zeros(n, np.dtype([("t", dtype), ("x", "<i2"), ("y", "<i2"), ("p", "?")]))
        made["t"] = np.sort(make.integers(0, last, n))
        for name, size in zip("xyp", extent, strict=True):
            made[name] = make.integers(0, size, n)
        out.append(made)
    return out


def frames(recordings, extent, num_steps, window, count):
    x, y, p = extent
    out = torch.zeros(num_steps, len(recordings), p, y, x)
    for sample, recording in enumerate(recordings):
        for t, i, j, k in recording:
            step = math.floor(t / window)
            if step < num_steps:
                place = (step, sample, int(k), int(j), int(i))
                out[place] = out[place] + 1 if count else 1
    return out


@pytest.mark.parametrize("count", [False, True])
@pytest.mark.parametrize("dtype", ["<i8", "<u4", "<f8"])
@pytest.mark.parametrize("extent", [(3, 4, 2), (3, 4, 1), (5, 1, 1), (1, 1, 2), (1, 3, 1)])
def test_recordings_make_the_frames_of_a_slow_loop(extent, dtype, count):
    given = recordings(extent=extent, dtype=dtype)
    spikes = SpikeEvents.from_events(given, extent, 10, time_window=100.0, count=count)
    expected = frames(given, extent, 10, 100.0, count)
    features = [size for size in (extent[2], extent[1], extent[0]) if size > 1]
    assert spikes.shape == (10, len(given), *features)
    assert torch.equal(spikes.to_dense(), expected.reshape(spikes.shape))


def test_recordings_beyond_the_last_step_are_dropped_on_request():
    given = recordings()
    with pytest.raises(ValueError, match=r"events beyond step 4, the last at step 9: raise steps"):
        SpikeEvents.from_events(given, (3, 4, 2), 5, time_window=100)
    spikes = SpikeEvents.from_events(given, (3, 4, 2), 5, time_window=100, late="drop")
    assert torch.equal(spikes.to_dense(), frames(given, (3, 4, 2), 5, 100, True))


def test_recordings_of_a_sensor_without_rows_and_polarity():
    made = np.zeros(2, np.dtype([("t", "<i8"), ("x", "<i2")]))
    made["t"], made["x"] = [0, 250], [6, 1]
    spikes = SpikeEvents.from_events([made, made[:0]], (7, 1, 1), 3, time_window=100)
    assert spikes.count().tolist() == [2, 0]
    assert spikes.events().values is None
    assert spikes.to_dense().nonzero().tolist() == [[0, 0, 6], [2, 0, 1]]
    none = SpikeEvents.from_events([], (7, 1, 1), 3, time_window=100)
    assert none.shape == (3, 0, 7)
    half = SpikeEvents.from_events([made], (7,), 3, time_window=100, dtype=torch.float16)
    assert half.to_dense().dtype == torch.float16


def test_recordings_make_the_frames_of_tonic():
    transforms = pytest.importorskip("tonic.transforms")
    given = recordings(number=1, events=500)
    given[0]["t"] -= given[0]["t"][0]  # tonic counts from the first event
    frame = transforms.ToFrame(sensor_size=(3, 4, 2), time_window=100)(given[0])
    spikes = SpikeEvents.from_events(given, (3, 4, 2), len(frame), time_window=100, late="drop")
    assert torch.equal(spikes.to_dense()[:, 0], torch.from_numpy(frame).float())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"late": "keep"}, "late='keep' is not known: use 'raise' or 'drop'"),
        ({"time_window": 0}, "time_window=0 must be positive"),
        ({"time_window": float("nan")}, "time_window=nan must be positive"),
        ({"num_steps": 0}, "num_steps=0 must be a positive number"),
        ({"sensor_size": (2, 4, 2)}, "x from 0 to 2, but sensor_size gives x an extent of 2"),
        ({"sensor_size": (3, 3, 2)}, "y from 0 to 3, but sensor_size gives y an extent of 3"),
    ],
)
def test_recordings_that_do_not_fit(change, message):
    options = {"sensor_size": (3, 4, 2), "num_steps": 10, "time_window": 100} | change
    with pytest.raises(ValueError, match=message):
        SpikeEvents.from_events(recordings(number=1, events=500), **options)


def test_what_is_not_a_list_of_recordings():
    made = np.zeros(2, np.dtype([("t", "<i8"), ("x", "<i2")]))
    with pytest.raises(TypeError, match=r"recording 0 is a tuple.*for events, label in dataset"):
        SpikeEvents.from_events([(made, 3)], (3, 1, 1), 10, time_window=1)
    with pytest.raises(TypeError, match=r"recording 0 is a void.*pass a list.*\[events\]"):
        SpikeEvents.from_events(made, (3, 1, 1), 10, time_window=1)


def test_dense_spikes_in_the_place_of_times():
    with pytest.raises(TypeError, match=r"not torch.float32: round them.*SpikeTimes.from_dense"):
        SpikeTimes(torch.zeros(5, 2, 3), 5)
    with pytest.raises(TypeError, match="not ndarray: use torch.as_tensor"):
        SpikeTimes(np.zeros((2, 3), int), 5)


def test_recordings_with_a_field_missing_or_before_time_0():
    made = np.zeros(1, np.dtype([("t", "<i8"), ("x", "<i2")]))
    with pytest.raises(ValueError, match=r"recording 0 has fields \('t', 'x'\), but \['y'\] is"):
        SpikeEvents.from_events([made], (3, 4, 1), 10, time_window=1)
    with pytest.raises(ValueError, match=r"recording 1 has fields None"):
        SpikeEvents.from_events([made, np.zeros(3)], (3, 1, 1), 10, time_window=1)
    made["t"] = -1
    with pytest.raises(ValueError, match="recording 0 has an event before time 0"):
        SpikeEvents.from_events([made], (3, 1, 1), 10, time_window=1)


# What is refused


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
        (event([0, 2], [0], [0]), "offsets must rise from 0 to the number of events, 1; it is "),
        (event([1, 1], [0], [0]), r"it is \[1, 1\]"),
        (event([0, 2, 1, 2], [0, 1], [0, 0]), "offsets must rise"),
        (event([], [0], [0]), "offsets must rise"),
        (event([0, 1], [5], [0]), "times of the events run from 5 to 5, but must lie between 0 an"),
        (event([0, 1], [-1], [0]), "times of the events run from -1"),
        (event([0, 1], [0], [3]), "units of the events run from 3 to 3, but must lie between 0 an"),
        (event([0, 3], [0, 2, 1], [0, 0, 0]), "event 2 is earlier than the one before it"),
        (event([0, 1], [0, 1], [0]), "events has 2 times and 1 units: one of each"),
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
    assert spikes.count().tolist() == [0, 2, 0, 2, 0]
    assert spikes.to_dense().nonzero().tolist() == [[0, 3, 2], [1, 1, 0], [2, 3, 0], [3, 1, 1]]


def test_a_linear_layer_that_does_not_fit():
    spikes = SpikeTimes(times_of(), STEPS).flatten(2)
    with pytest.raises(
        ValueError, match="the spikes have 10 features, but the linear layer takes 9"
    ):
        F.linear(spikes, torch.ones(4, 9))
    with pytest.raises(ValueError, match=r"weight has shape \(10,\), but \(out, in\) is expected"):
        F.linear(spikes, torch.ones(10))
    with pytest.raises(ValueError, match=r"bias has shape \(1,\), but the linear layer has 4"):
        F.linear(spikes, torch.ones(4, 10), torch.ones(1))
    with pytest.raises(ValueError, match="weight is on meta, but the spikes is on cpu"):
        F.linear(spikes, torch.ones(4, 10, device="meta"))
    with pytest.raises(ValueError, match="bias is on meta, but the spikes is on cpu"):
        F.linear(spikes, torch.ones(4, 10), torch.ones(4, device="meta"))
    with pytest.raises(TypeError, match="weight has dtype torch.int64"):
        F.linear(spikes, torch.ones(4, 10, dtype=torch.int64))


# Copies


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


@pytest.mark.parametrize("index", [1, torch.tensor(1)])
def test_one_sample_is_a_batch_of_one(index):
    spikes = SpikeTimes(torch.zeros(3, 4, dtype=torch.int8), 5)
    for found in (spikes, SpikeEvents.from_dense(spikes.to_dense())):
        with pytest.raises(TypeError, match=r"use samples\(slice\(1, 2\)\) for one of them"):
            found.samples(index)


def test_a_height_must_be_a_tensor():
    with pytest.raises(TypeError, match=r"height must be a tensor, not float: use torch.tensor"):
        SpikeTimes(torch.zeros(3, 4, dtype=torch.int8), 5, height=2.0)


@pytest.mark.parametrize("index", [np.int64(1), torch.tensor(1), 1])
@pytest.mark.parametrize("name", ["times", "events"])
def test_one_sample_is_no_batch(name, index):
    with pytest.raises(TypeError, match=r"use samples\(slice\(1, 2\)\) for one of them"):
        STANDING_FOR_DENSE[name]().samples(index)


@pytest.mark.parametrize("index", [(slice(1), slice(2)), torch.zeros(1, 1, dtype=int), None, 1.5])
@pytest.mark.parametrize("name", ["times", "events"])
def test_only_samples_are_indexed(name, index):
    with pytest.raises(TypeError, match="a list or a tensor of one dimension"):
        STANDING_FOR_DENSE[name]().samples(index)


def times_and_linear():
    return SpikeTimes(torch.randint(-1, 6, (4, 5)), 6), torch.nn.Linear(5, 7)


def test_a_current_of_weights_that_have_changed_is_refused():
    spikes, linear = times_and_linear()
    current = linear(spikes)
    copied = copy.deepcopy(current)
    with torch.no_grad():
        linear.bias.zero_()
    for use in (
        current.to_dense,
        lambda: LeakyReadout(0.9)(current),
        lambda: copy.deepcopy(current),
        lambda: copy.copy(current),
    ):
        with pytest.raises(RuntimeError, match=r"changed in place .* ahead of optimizer.step"):
            use()
    assert copied.to_dense().shape == (6, 4, 7)


def test_a_current_made_without_gradients_has_none():
    spikes, linear = times_and_linear()
    with torch.no_grad():
        current = linear(spikes)
        assert not SpikeTimes.from_dense(spikes.to_dense().requires_grad_()).requires_grad
    assert not current.requires_grad
    assert not LeakyReadout(0.9)(current).requires_grad
    assert linear(spikes).requires_grad


def test_events_out_of_order_in_unsigned_types():
    times = torch.tensor([4, 2, 0], dtype=torch.uint8)
    events = Events(torch.tensor([0, 3]), times, torch.tensor([0, 1, 2]), None)
    with pytest.raises(ValueError, match="earlier than the one before it"):
        SpikeEvents(events, 6, (5,))


def test_types_of_dense_tensors_are_floating_point():
    with pytest.raises(TypeError, match="dtype=torch.int64 must be a floating-point type"):
        SpikeTimes(torch.zeros(2, 3, dtype=int), 4, dtype=torch.int64)


def test_results_are_not_written_where_they_would_be_lost():
    spikes, _ = times_and_linear()
    with pytest.raises(TypeError, match="mul with out= would change .* use mul and"):
        torch.mul(spikes, 5, out=spikes)


@pytest.mark.parametrize("size", [(), 5, (3, None), (3, -1), (3, 4, 2, 1), (0, 4, 2)])
def test_sensors_of_no_size(size):
    with pytest.raises(ValueError, match="sensor_size=.* must be the extents"):
        SpikeEvents.from_events([], size, 4, time_window=1)
