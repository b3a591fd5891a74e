"""Transforms of datasets, with tonic's own frames, caches and loaders."""

import functools
import warnings

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader

from snn_single_spike import (
    LeakyReadout,
    MaterializationWarning,
    SingleSpikeLinear,
    SpikeEvents,
    SpikeTimes,
)
from snn_single_spike.data import ToSpikeEvents, ToSpikeTimes, collate

tonic = pytest.importorskip("tonic")
SIZE = (6, 5, 2)
TYPE = np.dtype([("t", "<i8"), ("x", "<i2"), ("y", "<i2"), ("p", "?")])


@functools.cache
def recording(seed, events=400, last=5000):
    make = np.random.default_rng(seed)
    made = np.zeros(events, TYPE)
    made["t"] = np.sort(make.integers(37, last, events))
    for name, size in zip("xyp", SIZE, strict=True):
        made[name] = make.integers(0, size, events)
    return made


class Recordings:
    """A dataset as tonic's are: a list of recordings, with a transform."""

    def __init__(self, transform=None):
        self.transform = transform or (lambda events: events)

    def __len__(self):
        return 6

    def __getitem__(self, index):
        if index >= len(self):
            raise IndexError(index)
        return self.transform(recording(index).copy()), index % 3


@pytest.mark.parametrize("count", [True, False])
def test_the_values_of_tonic_s_frames(count):
    for seed in range(3):
        events = recording(seed)
        frames = tonic.transforms.ToFrame(SIZE, time_window=300, include_incomplete=True)(events)
        spikes = ToSpikeEvents(SIZE, num_steps=20, time_window=300, count=count)(events)
        right = np.minimum(frames, np.iinfo("i2").max if count else 1)
        assert spikes.shape == (20, 1, 2, 5, 6)
        assert np.array_equal(spikes.to_dense()[: len(right), 0].numpy(), right)
        assert spikes.to_dense()[len(right) :].sum() <= 1  # tonic drops the very last event
        assert np.array_equal(events, recording(seed))  # not changed

        frames = tonic.transforms.ToFrame(SIZE, n_time_bins=7)(events)
        spikes = ToSpikeEvents(SIZE, n_time_bins=7)(events)
        assert np.array_equal(spikes.to_dense()[:, 0].numpy(), frames)


def test_in_a_chain_of_tonic_s_transforms():
    before = [
        tonic.transforms.CropTime(max=4000),
        tonic.transforms.Denoise(filter_time=400),
        tonic.transforms.RefractoryPeriod(delta=50),
    ]
    chain = tonic.transforms.Compose([*before, ToSpikeEvents(SIZE, num_steps=10, time_window=400)])
    frames = tonic.transforms.Compose([*before, tonic.transforms.ToFrame(SIZE, time_window=400)])
    spikes, right = chain(recording(1).copy()), frames(recording(1).copy())
    assert right.any()
    assert np.array_equal(spikes.to_dense()[: len(right), 0].numpy(), right)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("where", ["dataset", "disk cache", "memory cache"])
def test_loaders_and_caches_give_events(where, workers, tmp_path):
    transform = ToSpikeEvents(SIZE, num_steps=17, time_window=300)
    dataset = Recordings(transform)
    if where == "disk cache":
        dataset = tonic.DiskCachedDataset(Recordings(), str(tmp_path), transform=transform)
    elif where == "memory cache":
        dataset = tonic.MemoryCachedDataset(dataset)
    with warnings.catch_warnings():
        warnings.simplefilter("error", MaterializationWarning)
        for _ in range(2):  # the second time from the cache
            batches = list(DataLoader(dataset, batch_size=4, num_workers=workers))
            assert [type(spikes) for spikes, _ in batches] == [SpikeEvents] * 2
            assert [spikes.shape for spikes, _ in batches] == [(17, 4, 2, 5, 6), (17, 2, 2, 5, 6)]
            assert torch.cat([targets for _, targets in batches]).tolist() == [0, 1, 2, 0, 1, 2]
    dense = torch.cat([spikes.to_dense() for spikes, _ in batches], 1)
    for i in range(6):
        assert torch.equal(dense[:, i], transform(recording(i)).to_dense()[:, 0])


def test_two_workers_feed_training_without_a_dense_tensor(monkeypatch):
    torch.manual_seed(0)
    hidden, output = SingleSpikeLinear(60, 5, beta=0.9), nn.Linear(5, 3)
    net = nn.Sequential(nn.Flatten(2), hidden, output, LeakyReadout(0.95))
    transform = ToSpikeEvents(SIZE, num_steps=17, time_window=300)
    loader = DataLoader(Recordings(transform), batch_size=4, num_workers=2, collate_fn=collate)

    def trained(batches):
        losses = [cross_entropy(net(spikes), targets) for spikes, targets in batches]
        return torch.autograd.grad(sum(losses), [hidden.weight, output.weight])

    expected = trained([(spikes.to_dense(), targets) for spikes, targets in loader])
    for spikes in (SpikeEvents, SpikeTimes):
        monkeypatch.setattr(spikes, "to_dense", lambda self: pytest.fail("spikes became dense"))
    with warnings.catch_warnings():
        warnings.simplefilter("error", MaterializationWarning)
        gradients = trained(loader)
    assert expected[0].any()
    for gradient, right in zip(gradients, expected, strict=True):
        assert torch.allclose(gradient, right, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_recordings_that_lose_all_their_events(order):
    chain = tonic.transforms.Compose(
        [tonic.transforms.CropTime(max=100), ToSpikeEvents(SIZE, num_steps=3, time_window=50)]
    )
    early, late = recording(0).copy(), recording(0).copy()
    late["t"] += 1000
    samples = [(chain((early, late)[i].copy()), i) for i in order]
    spikes, targets = collate(samples)
    assert type(spikes) is SpikeEvents
    assert spikes.shape == (3, 2, 2, 5, 6)
    assert spikes.to_dense().sum((0, 2, 3, 4)).bool().tolist() == [i == 0 for i in order]
    assert targets.tolist() == list(order)
    with pytest.raises(ValueError, match=r"none of the 1 recordings .* has events"):
        collate([(chain(late.copy()), 0)])


def test_what_is_rejected():
    for options, message in (
        ({}, "pass exactly one"),
        ({"time_window": 3, "n_time_bins": 4}, "pass exactly one"),
        ({"time_window": 3}, "needs num_steps"),
        ({"n_time_bins": 3, "num_steps": 4}, "leave num_steps out"),
        ({"n_time_bins": 0}, "positive"),
        ({"time_window": 3, "num_steps": 0}, "positive"),
    ):
        with pytest.raises(ValueError, match=message):
            ToSpikeEvents(SIZE, **options)
    with pytest.raises(ValueError, match=r"events beyond step 2.*late='drop'"):
        ToSpikeEvents(SIZE, num_steps=3, time_window=10)(recording(0))
    short = ToSpikeEvents(SIZE, num_steps=3, time_window=10, late="drop")(recording(0))
    assert short.shape[0] == 3
    with pytest.raises(ValueError, match=r"lasts 0 units of time.*fewer bins"):
        ToSpikeEvents(SIZE, n_time_bins=3)(recording(0)[:1])
    for transform in (
        ToSpikeEvents(SIZE, n_time_bins=3),
        ToSpikeEvents(SIZE, num_steps=3, time_window=10),
    ):
        assert not transform(recording(0)[:0]).to_dense().any()
        with pytest.raises(TypeError, match="structured array"):
            transform((recording(0), 1))


def test_images_become_spike_times():
    image = torch.tensor([[[0.0, 1.0], [0.5, 0.01]]])
    spikes = ToSpikeTimes(num_steps=11)(image)
    assert spikes.shape == (11, 1, 1, 2, 2)
    assert spikes.times.tolist() == [[[[-1, 0], [5, 10]]]]
    assert ToSpikeTimes(11, threshold=0.1)(image).times.tolist() == [[[[-1, 0], [5, -1]]]]
    batch, _ = next(iter(DataLoader([(ToSpikeTimes(11)(image), 0)] * 3, batch_size=3)))
    assert type(batch) is SpikeTimes
    assert batch.shape == (11, 3, 1, 2, 2)
    with pytest.raises(TypeError, match="ToTensor"):
        ToSpikeTimes(11)(np.zeros((2, 2)))
    with pytest.raises(ValueError, match="before transforms.Normalize"):
        ToSpikeTimes(11)(image * 2)
    with pytest.raises(ValueError, match="before transforms.Normalize"):
        ToSpikeTimes(11)(image * torch.nan)
    with pytest.raises(ValueError, match="positive"):
        ToSpikeTimes(0)
