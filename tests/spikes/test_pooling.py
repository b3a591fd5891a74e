"""Average pooling of spike times."""

import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from snn_single_spike import LeakyReadout, MaterializationWarning, SpikeEvents, SpikeTimes
from snn_single_spike.spikes import LazyCurrent
from snn_single_spike.spikes.lazy import LazyTensor
from snn_single_spike.spikes.pooling import AveragedSpikes

from tests.support.networks import loss_of

POOLS = {
    "2d": (nn.AvgPool2d(2), (3, 6, 8)),
    "2d, rows and columns cut off": (nn.AvgPool2d(3), (2, 7, 8)),
    "2d, oblong": (nn.AvgPool2d((2, 3), stride=(2, 3)), (2, 6, 6)),
    "2d, one map": (nn.AvgPool2d(2), (5, 6)),
    "1d": (nn.AvgPool1d(2), (4, 7)),
    "1d, all": (nn.AvgPool1d(7), (4, 7)),
}
DENSE_POOLS = {
    "overlapping": (nn.AvgPool2d(3, stride=2), (2, 7, 7)),
    "padded": (nn.AvgPool2d(2, padding=1, count_include_pad=False), (2, 6, 6)),
    "ceil": (nn.AvgPool2d(2, ceil_mode=True), (2, 7, 7)),
    "divisor": (nn.AvgPool2d(2, divisor_override=3), (2, 6, 6)),
    "1d, padded": (nn.AvgPool1d(3, padding=1, count_include_pad=False), (4, 7)),
}


def pooled(pool, maps, weight):
    """Pooled maps, and the summed membrane of a linear layer behind them."""
    maps = pool(maps)
    current = F.linear(maps.flatten(1), weight)
    deferred = isinstance(current, LazyTensor)
    current = current.unfold() if deferred else current.unflatten(0, (6, 4))
    return maps, LeakyReadout(0.9)(current)


@pytest.mark.parametrize("fits", [True, False], ids=["from times", "dense"])
@pytest.mark.parametrize("name", [*POOLS, *DENSE_POOLS])
def test_average_pooling(name, fits, monkeypatch):
    monkeypatch.setattr(AveragedSpikes, "prefer_events", lambda spikes: fits)
    pool, shape = (POOLS | DENSE_POOLS)[name]
    spikes = SpikeTimes(torch.randint(-1, 6, (4, *shape)), 6, dtype=torch.float64)
    units = pool(spikes.to_dense().flatten(0, 1)).flatten(1).shape[1]
    weight = torch.randn(9, units, dtype=torch.float64)
    found = []
    for times in (True, False):
        source, w = spikes.to_dense().requires_grad_(), weight.clone().requires_grad_()
        given = SpikeTimes.from_dense(source).fold() if times else source.flatten(0, 1)
        maps, scores = pooled(pool, given, w)
        assert isinstance(maps, AveragedSpikes) == (times and name in POOLS)
        loss_of([scores]).backward()
        found.append(
            (maps.to_dense() if isinstance(maps, LazyTensor) else maps, source.grad, w.grad)
        )
        found[-1] = (*found[-1], scores)
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


def test_average_pooling_of_what_is_not_one_spike_of_height_1_is_dense():
    events = SpikeEvents.from_dense(torch.poisson(torch.full((6, 4, 2, 4, 4), 0.3)))
    graded = SpikeTimes(torch.randint(-1, 6, (4, 2, 4, 4)), 6, height=torch.tensor(0.5))
    for spikes in (events, graded):
        with pytest.warns(MaterializationWarning, match="avg_pool2d of "):
            maps = F.avg_pool2d(spikes.fold(), 2)
        assert torch.equal(maps, F.avg_pool2d(spikes.to_dense().flatten(0, 1), 2))
        with (
            pytest.warns(MaterializationWarning),
            pytest.raises(RuntimeError, match="Expected 3D or 4D|3D or 4D"),
        ):
            F.avg_pool2d(spikes, 2)  # as of a dense (T, B, C, H, W)


def test_averaged_spikes_are_tensors_to_everything_else():
    spikes = SpikeTimes(torch.randint(-1, 6, (4, 2, 4, 4)), 6)
    maps = F.avg_pool2d(spikes.fold(), 2)
    dense = F.avg_pool2d(spikes.to_dense().flatten(0, 1), 2)
    assert maps.shape == dense.shape == (24, 2, 2, 2)
    assert torch.equal(maps + 1, dense + 1)
    assert torch.equal(F.avg_pool2d(maps, 2), F.avg_pool2d(dense, 2))
    assert torch.equal(maps.unfold().to_dense(), dense.unflatten(0, (6, 4)))
    assert torch.equal(maps.view(24, -1).to_dense(), dense.view(24, -1))
    assert torch.equal(maps.detach().mean(0), dense.mean(0))
    assert "AveragedSpikes(shape=(24, 2, 2, 2), of=SpikeTimes(" in repr(maps)


def test_where_events_are_slower_the_pooled_maps_are_dense():
    times = torch.zeros(4, 2, 4, 4, dtype=torch.int8)
    for num_steps, pays in ((10, False), (30, True)):
        maps = F.avg_pool2d(SpikeTimes(times, num_steps).fold(), 2)
        current = F.linear(maps.flatten(1), torch.randn(3, 8))
        assert isinstance(current, LazyCurrent) == pays


def test_windows_that_torch_refuses_or_takes():
    spikes = SpikeTimes(torch.randint(-1, 30, (2, 3, 6, 6)), 30).fold()
    dense = spikes.to_dense()
    for size in ((2, 2, 2), 0):
        with pytest.raises(RuntimeError):
            F.avg_pool2d(dense, size)
        with pytest.raises(RuntimeError):
            F.avg_pool2d(spikes, size)
    pooled = F.avg_pool2d(spikes, np.int64(2))
    assert torch.equal(pooled.to_dense(), F.avg_pool2d(dense, 2))


def test_a_height_of_ones_is_pooled_from_times():
    spikes = SpikeTimes(torch.randint(-1, 30, (4, 2, 4, 4)), 30, height=torch.ones(2, 4, 4))
    with warnings.catch_warnings():
        warnings.simplefilter("error", MaterializationWarning)
        maps = F.avg_pool2d(spikes.fold(), 2)
    assert isinstance(maps, AveragedSpikes)
    assert torch.equal(maps.to_dense(), F.avg_pool2d(spikes.to_dense().flatten(0, 1), 2))


def test_averaged_spikes_stay_on_their_device():
    maps = F.avg_pool2d(SpikeTimes(torch.randint(-1, 6, (4, 2, 4, 4)), 6).fold(), 2)
    assert maps.to("cpu") is maps
    assert maps.cpu() is maps
    moved = maps.to("meta")
    assert isinstance(moved, AveragedSpikes)
    assert moved.device.type == moved.spikes.device.type == "meta"
