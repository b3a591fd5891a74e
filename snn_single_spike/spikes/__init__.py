"""Spikes as the times they happen at, instead of dense (T, B, N) tensors of zeros."""

from .pooling import AveragedSpikes
from .times import SpikeEvents, SpikeTimes

__all__ = ["AveragedSpikes", "SpikeEvents", "SpikeTimes"]
