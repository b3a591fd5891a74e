"""Spike times, events and lazy tensors to test with."""

import numpy as np
import torch
from torch.nn import functional as F

from snn_single_spike import SingleSpikeLeaky, SpikeEvents, SpikeTimes
from snn_single_spike.backends._events import Events

STEPS, BATCH, FEATURES = 7, 3, (2, 5)


def times_of(num_steps=STEPS, batch=BATCH, features=FEATURES, seed=0):
    make = torch.Generator().manual_seed(seed)
    return torch.randint(-1, num_steps, (batch, *features), generator=make)


def dense_of(times, num_steps):
    """The dense spikes, written one spike at a time."""
    spikes = torch.zeros(num_steps, *times.shape)
    for place in np.ndindex(*times.shape):
        if times[place] >= 0:
            spikes[(int(times[place]), *place)] = 1
    return spikes


def graded(num_steps=STEPS, batch=BATCH, features=FEATURES, seed=0):
    """Several spikes per unit, of several heights."""
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
