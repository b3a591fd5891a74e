"""Views of spike times and events: shapes, samples, devices."""

import numpy as np
import pytest
import torch

from snn_single_spike import SingleSpikeLinear, SpikeEvents, SpikeTimes
from snn_single_spike.functional import spike_count

from tests.support.spikes import BATCH, STANDING_FOR_DENSE, STEPS, times_of


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
    assert torch.equal(spike_count(some, "sample"), spike_count(spikes, "sample")[index])
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


@pytest.mark.parametrize("index", [1, torch.tensor(1)])
def test_one_sample_is_a_batch_of_one(index):
    spikes = SpikeTimes(torch.zeros(3, 4, dtype=torch.int8), 5)
    for found in (spikes, SpikeEvents.from_dense(spikes.to_dense())):
        with pytest.raises(TypeError, match=r"use samples\(slice\(1, 2\)\) for one of them"):
            found.samples(index)


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
