"""What the tutorial scripts run with: device, epochs, and loaders that take the time of a step."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from snn_single_spike.experiments.datasets import load

device = "cuda" if torch.cuda.is_available() else "cpu"
epochs = 1
data = Path("data")
"""Folder with FashionMNIST/ and NMNIST/, in the layouts of torchvision and tonic."""
random = False
"""Random samples instead of data, for times without accuracies."""
quick = False
"""Few and tiny random samples, for a test of the scripts."""
train_samples, test_samples = 10_000, 2000
clock: Callable[[], float] = time.perf_counter
batches: int | None = None
"""Stop an epoch after this number of batches."""


class Timed:
    """A loader that notes when each of its batches is taken, until the last is done."""

    batch = 0
    """The number of the batch that runs."""

    def __init__(self, loader: Iterable[Any], stop: bool = False) -> None:
        self.loader, self.stop = loader, stop
        self.stamps: list[float] = []

    def __iter__(self) -> Iterator[Any]:
        for i, batch in enumerate(self.loader):
            if self.stop and i == batches:
                break
            self._stamp()
            Timed.batch = i
            yield batch
        self._stamp()

    def _stamp(self) -> None:
        if device.startswith("cuda"):
            torch.cuda.synchronize()
        self.stamps.append(clock())

    def seconds(self) -> list[float]:
        """The time of each batch but the first, whose step compiles and checks."""
        return np.diff(self.stamps)[1:].tolist()


def _loaders(train: TensorDataset, test: TensorDataset, size: int, **options: Any) -> list[Timed]:
    return [
        Timed(DataLoader(train, size, shuffle=True, drop_last=True, **options), stop=True),
        Timed(DataLoader(test, 8 if quick else 50, **options)),
    ]


def fashion_mnist(batch_size: int) -> list[Timed]:
    """Loaders of images (batch, 1, 28, 28) from 0 to 1, and labels: training and test."""
    return _loaders(*_images(data, quick, train_samples, test_samples), 4 if quick else batch_size)


def nmnist(batch_size: int, time_window: int) -> list[Timed]:
    """Loaders of frames (time, batch, 2, 34, 34) as tonic makes them, and labels."""
    parts = _frames(data, quick, time_window)

    def collate(samples: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        frames, labels = zip(*samples, strict=True)
        return torch.stack(frames, 1), torch.stack(labels)

    return _loaders(*parts, 4 if quick else batch_size, collate_fn=collate)


@cache
def _images(folder: Path, small: bool, *samples: int) -> list[TensorDataset]:
    if random or small:
        return _random(small, 1, 28, 28)
    train, test = samples
    found = load("fashion-mnist", 1, data=folder, train_samples=train, test_samples=test)
    return [TensorDataset(x.values / 255, x.labels) for x in (found.train, found.test)]  # type: ignore


@cache
def _frames(folder: Path, small: bool, time_window: int) -> list[TensorDataset]:
    num_steps = 300_000 // time_window
    if random or small:
        return _random(small, 5 if small else num_steps, 2, 34, 34)
    import tonic

    start: Callable[..., Any] = partial(
        tonic.transforms.ToFrame, tonic.datasets.NMNIST.sensor_size, time_window=time_window
    )
    parts = []
    for part in ("Train", "Test"):
        frames, labels = [], []
        for path in sorted((folder / "NMNIST" / part).glob("*/*.bin")):
            events = tonic.io.read_mnist_file(str(path), dtype=tonic.datasets.NMNIST.dtype)
            first = events["t"].min()
            cut = start(start_time=first, end_time=first + num_steps * time_window)
            frames.append(torch.from_numpy(cut(events)).to(torch.float32))
            labels.append(int(path.parent.name))
        parts.append(TensorDataset(torch.stack(frames), torch.tensor(labels)))
    return parts


def _random(small: bool, *shape: int) -> list[TensorDataset]:
    size = 16 if small else 1000
    draw, labels = torch.Generator().manual_seed(0), torch.arange(size) % 10
    images = [torch.rand(size, *shape, generator=draw) for _ in range(2)]
    if len(shape) == 4:  # frames have few events
        images = [(x > (0.8 if small else 0.98)).float() for x in images]
    return [TensorDataset(x, labels) for x in images]


def curves(batch_size: int, num_steps: int) -> list[Timed]:
    """Loaders of ramps (time, batch, 1) and their square roots, with random slopes."""
    draw = torch.Generator().manual_seed(0)
    slopes = 0.5 + 0.5 * torch.rand(32 if quick else 2048 + 200, 1, 1, generator=draw)
    ramps = slopes * torch.linspace(0, 1, 5 if quick else num_steps).view(1, -1, 1)
    whole = TensorDataset(ramps, ramps.sqrt())
    train = TensorDataset(*(x[:-200] if not quick else x[:16] for x in whole.tensors))
    test = TensorDataset(*(x[-200:] if not quick else x[16:] for x in whole.tensors))

    def collate(samples: list[tuple[Tensor, Tensor]]) -> list[Tensor]:
        return [torch.stack(x, 1) for x in zip(*samples, strict=True)]

    return _loaders(train, test, 4 if quick else batch_size, collate_fn=collate)
