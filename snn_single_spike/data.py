"""Transforms of datasets: recordings and images to spikes, without dense frames.

The transforms take one sample and return spikes with a batch of one. A ``DataLoader`` collates the
samples, with any number of workers, and pins the batch. :func:`collate` also takes recordings
without events, for which tonic's ``Compose`` runs no transform.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import default_collate

from .spikes import SpikeEvents, SpikeTimes
from .spikes._base import check_num_steps

__all__ = ["ToSpikeEvents", "ToSpikeTimes", "collate"]


@dataclass(frozen=True)
class ToSpikeEvents:
    """
    Convert a recording of an event sensor to :class:`snn_single_spike.SpikeEvents`.

    A transform for the datasets of `tonic <https://tonic.readthedocs.io>`_, in the place of
    `tonic.transforms.ToFrame`. It composes with tonic's other transforms. The first steps hold the
    values of tonic's frames.

    Example::

        from snn_single_spike.data import ToSpikeEvents, collate

        sensor_size = tonic.datasets.NMNIST.sensor_size
        transform = tonic.transforms.Compose([
            tonic.transforms.Denoise(filter_time=10_000),
            ToSpikeEvents(sensor_size, num_steps=300, time_window=1000),   # microseconds per step
        ])
        dataset = tonic.datasets.NMNIST("data", transform=transform)
        loader = DataLoader(dataset, batch_size=64, num_workers=2, collate_fn=collate)
        for spikes, targets in loader:
            scores = net(spikes)                     # SpikeEvents (300, 64, 2, 34, 34)

    A `tonic.DiskCachedDataset` stores arrays, and would store dense frames. Pass the transform to
    the cache, not to the dataset before it: `DiskCachedDataset(dataset, path, transform=...)`.

    :param sensor_size: extent of `x`, `y` and `p`, as in tonic
    :type sensor_size: sequence of int

    :param num_steps: number of time steps T. Required with `time_window`
    :type num_steps: int, optional

    :param time_window: duration of a step in the unit of `t`. Step 0 begins at the first event
    :type time_window: float, optional

    :param n_time_bins: divide each recording into this number of steps of equal duration, a whole
        number of units of `t`. Events after the last step are dropped, as tonic drops them
    :type n_time_bins: int, optional

    :param count: n events of a unit in one step make a spike of height n, as in tonic's frames. If
        False, they make a spike of height 1. Defaults to True
    :type count: bool, optional

    :param late: with `time_window`: `"raise"` an error for events beyond the last step, or `"drop"`
        these events. Defaults to `"raise"`
    :type late: str, optional

    :param dtype: type of the dense tensor. Defaults to float32
    :type dtype: torch.dtype, optional

    Calling the transform with a structured array with the fields `t`, `x`, `y`, `p` that the sensor
    has returns :class:`~snn_single_spike.SpikeEvents` of shape `(T, 1, *features)`.

    :raises ValueError: not exactly one of `time_window` and `n_time_bins` is given, or `num_steps`
        does not fit; when called: as :meth:`snn_single_spike.SpikeEvents.from_events`, or a
        recording is shorter than `n_time_bins` units of time
    :raises TypeError: when called: as :meth:`snn_single_spike.SpikeEvents.from_events`
    """

    sensor_size: Sequence[int]
    num_steps: int | None = None
    time_window: float | None = None
    n_time_bins: int | None = None
    count: bool = True
    late: str = "raise"
    dtype: torch.dtype = torch.float32

    def __post_init__(self) -> None:
        if (self.time_window is None) == (self.n_time_bins is None):
            raise ValueError(
                f"time_window={self.time_window} and n_time_bins={self.n_time_bins}: pass exactly "
                "one of the two"
            )
        if self.n_time_bins is not None:
            if self.num_steps not in (None, self.n_time_bins):
                raise ValueError(
                    f"num_steps={self.num_steps} differs from n_time_bins={self.n_time_bins}, "
                    "which is the number of steps: leave num_steps out"
                )
            check_num_steps(self.n_time_bins)
        elif self.num_steps is None:
            raise ValueError(
                "time_window needs num_steps, so that the samples of a batch have one length: pass "
                "num_steps=, and late='drop' to cut longer recordings"
            )
        else:
            check_num_steps(self.num_steps)

    def __call__(self, events: np.ndarray) -> SpikeEvents:
        num_steps, window, late = self.num_steps, self.time_window, self.late
        if isinstance(events, np.ndarray) and "t" in (events.dtype.names or ()) and len(events):
            first, last = events["t"].min(), events["t"].max()
            events = events.copy()
            events["t"] -= first
            if self.n_time_bins is not None:
                window = (last - first) // self.n_time_bins
                if not window > 0:
                    raise ValueError(
                        f"a recording lasts {last - first} units of time, less than n_time_bins="
                        f"{self.n_time_bins} steps: remove it, or pass fewer bins"
                    )
        if self.n_time_bins is not None:
            num_steps, late, window = self.n_time_bins, "drop", 1 if window is None else window
        assert num_steps is not None
        assert window is not None
        return SpikeEvents.from_events(
            [events],
            self.sensor_size,
            num_steps,
            time_window=window,
            count=self.count,
            late=late,
            dtype=self.dtype,
        )


def collate(samples: Sequence[tuple[Any, ...]]) -> Any:
    """
    Collate samples of a dataset with :class:`ToSpikeEvents`, as the ``collate_fn`` of a
    ``DataLoader``.

    It does what torch's default does, and makes spikes of recordings without events. tonic's
    ``Compose`` stops at an array without events, so such a recording is still an array.

    :param samples: samples `(spikes, target, ...)`
    :type samples: sequence of tuple
    :return: `(spikes, targets, ...)` of the batch
    :rtype: list
    :raises ValueError: no recording of the batch has events
    """
    made = next((sample[0] for sample in samples if isinstance(sample[0], SpikeEvents)), None)

    def spikes_of(recording: Any) -> Any:
        if not isinstance(recording, np.ndarray) or len(recording):
            return recording
        if made is None:
            raise ValueError(
                f"none of the {len(samples)} recordings of a batch has events, so their shape is "
                "unknown: remove recordings without events from the dataset"
            )
        return SpikeEvents.from_dense(torch.zeros(made.num_steps, 1, *made.features).to(made.dtype))

    return default_collate([(spikes_of(first), *others) for first, *others in samples])


@dataclass(frozen=True)
class ToSpikeTimes:
    """
    Convert an image to :class:`snn_single_spike.SpikeTimes`, by latency: bright pixels fire first.

    .. math::

            t = \\text{round}((1 - x) (T - 1)), \\text{ silent where } x \\leq \\text{threshold}

    Example::

        from torchvision import datasets, transforms
        from snn_single_spike.data import ToSpikeTimes

        transform = transforms.Compose([transforms.ToTensor(), ToSpikeTimes(num_steps=100)])
        dataset = datasets.FashionMNIST("data", transform=transform)
        for spikes, targets in DataLoader(dataset, batch_size=64):
            scores = net(spikes)                     # SpikeTimes (100, 64, 1, 28, 28)

    :param num_steps: number of time steps T
    :type num_steps: int

    :param threshold: pixels up to this intensity are silent. Defaults to 0
    :type threshold: float, optional

    Calling the transform with a tensor `(*features)` of intensities between 0 and 1 returns
    :class:`~snn_single_spike.SpikeTimes` of shape `(T, 1, *features)`.

    :raises ValueError: `num_steps` is not positive; when called: an intensity is NaN or outside of
        0 ... 1
    :raises TypeError: when called: the image is not a floating-point tensor
    """

    num_steps: int
    threshold: float = 0.0

    def __post_init__(self) -> None:
        check_num_steps(self.num_steps)

    def __call__(self, image: Tensor) -> SpikeTimes:
        if not isinstance(image, Tensor) or not image.is_floating_point():
            found = image.dtype if isinstance(image, Tensor) else type(image).__name__
            raise TypeError(
                f"the image is {found}, but a floating-point tensor is expected: put "
                "torchvision.transforms.ToTensor() before ToSpikeTimes"
            )
        if not bool(((image >= 0) & (image <= 1)).all()):
            raise ValueError(
                f"the image runs from {image.min():g} to {image.max():g}, but intensities between "
                "0 and 1 are expected: convert to spike times before transforms.Normalize"
            )
        steps = ((1 - image) * (self.num_steps - 1)).round().to(torch.int64)
        return SpikeTimes(torch.where(image > self.threshold, steps, -1)[None], self.num_steps)
