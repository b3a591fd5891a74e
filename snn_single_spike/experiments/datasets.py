"""Datasets behind one interface: batches of spike times or events, and labels.

Files are read from the folder `--data`, in the layouts of torchvision and tonic. Nothing is
downloaded unless `--download` asks tonic for it.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from .. import SpikeEvents, SpikeTimes
from . import ExperimentError, digits, events, idx, recordings, yinyang

Transform = Callable[[Tensor], Tensor]
"""From images `(B, C, H, W)` in [0, 1] to the same."""

Batch = SpikeTimes | SpikeEvents | Tensor
"""Spikes, or constant currents: an expanded tensor. The shape is `(T, B, *features)`."""

# For the split of digits, held-out samples and parts: the same samples for every seed of a run
SPLIT_SEED = 0
# The published generator's seeds for training and test samples
YINYANG_SEEDS = 42, 40


class Spec(NamedTuple):
    """Properties of a dataset, known before its files are read."""

    features: tuple[int, ...]
    classes: int
    sizes: tuple[int, int]
    """Samples of the whole training and test set."""
    recorded: bool = False
    """Whether samples are recorded events. Others are intensities."""
    step_us: int = 0
    """Duration of a time step of events."""


DATASETS = {
    "yinyang": Spec((4,), 3, (20_000, 10_000)),
    "digits": Spec((1, 8, 8), 10, (1437, 360)),
    "mnist": Spec((1, 28, 28), 10, (60_000, 10_000)),
    "fashion-mnist": Spec((1, 28, 28), 10, (60_000, 10_000)),
    "nmnist": Spec((1, 34, 34), 10, (60_000, 10_000), True, 1000),
    "shd": Spec((700,), 20, (8156, 2264), True, 2000),
    "ssc": Spec((700,), 35, (75_466, 20_382), True, 2000),
    "dvs-gesture": Spec((2, 128, 128), 11, (1077, 264), True, 20_000),
    "n-caltech101": Spec((2, 180, 240), 101, (6968, 1741), True, 3000),
    # tonic numbers the letters from a to z. There are no recordings of j and z.
    "asl-dvs": Spec((2, 180, 240), 26, (80_640, 20_160), True, 1000),
    "poker-dvs": Spec((2, 35, 35), 4, (48, 20), True, 250),
}
NEEDS_FILES = ("mnist", "fashion-mnist", *recordings.SOURCES)


class Split:
    """The samples of a training set or a test set."""

    labels: Tensor
    """(N,) int64."""

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, index: Tensor, transform: Transform | None = None) -> Batch:
        """The input of the samples with these indices."""
        raise NotImplementedError

    def samples(self, index: Tensor) -> Split:
        """Only these samples."""
        raise NotImplementedError

    def to(self, device: torch.device) -> Split:
        """The same on another device."""
        raise NotImplementedError


@dataclass
class Intensities(Split):
    """
    Samples of intensities. With latency codes each unit spikes once: at floor((1 - x)(T - 1)) for
    an intensity x. Otherwise x is the current at every step.

    Intensities are stored, because augmentation transforms intensities.
    """

    values: Tensor
    """(N, *features) uint8 from 0 to 255, or floating-point in [0, 1]."""
    labels: Tensor
    num_steps: int
    dtype: torch.dtype = torch.float32
    coding: str = "latency"

    def batch(self, index: Tensor, transform: Transform | None = None) -> Batch:
        x = self.values[index]
        x = x.float() / 255 if x.dtype == torch.uint8 else x
        if transform is not None:
            x = transform(x)
        if self.coding == "current":
            return x.to(self.dtype).expand(self.num_steps, *x.shape)
        times = ((1 - x) * (self.num_steps - 1)).floor()
        return SpikeTimes(times.int(), self.num_steps, dtype=self.dtype)

    def samples(self, index: Tensor) -> Intensities:
        return replace(self, values=self.values[index], labels=self.labels[index])

    def to(self, device: torch.device) -> Intensities:
        return replace(self, values=self.values.to(device), labels=self.labels.to(device))


@dataclass
class Recordings(Split):
    """Samples of recorded events."""

    events: SpikeEvents
    labels: Tensor
    kept: Tensor
    """(N,) int64: number of events."""
    late: Tensor
    """(N,) int64: number of further events, which come after the last step and are left out."""

    def batch(self, index: Tensor, transform: Transform | None = None) -> SpikeEvents:
        return self.events.samples(index)

    def samples(self, index: Tensor) -> Recordings:
        counts = (x[index] for x in (self.labels, self.kept, self.late))
        return Recordings(self.events.samples(index), *counts)

    def to(self, device: torch.device) -> Recordings:
        counts = (x.to(device) for x in (self.labels, self.kept, self.late))
        return Recordings(self.events.to(device), *counts)


@dataclass
class Dataset:
    """A training and a test set."""

    name: str
    train: Split
    test: Split
    held_out: bool = False
    """Whether the test set consists of samples held out of the training set."""

    def describe(self) -> str:
        """Name and sizes, and whether it is only a part of the dataset."""
        whole_train, whole_test = DATASETS[self.name].sizes
        train = _size(self.train, whole_train)
        if self.held_out:
            return f"{self.name}: {train} training and {len(self.test):,} held-out samples"
        return f"{self.name}: {train} training and {_size(self.test, whole_test)} test samples"

    def left_out(self) -> str:
        """The end of a sentence with the number of events left out, empty if there are none."""
        recorded = [s for s in (self.train, self.test) if isinstance(s, Recordings)]
        late = sum(int(split.late.sum()) for split in recorded)
        if not late:
            return ""
        events = late + sum(int(split.kept.sum()) for split in recorded)
        return f"; {late:,} of {events:,} events come after the last step and are left out"


def _size(split: Split, whole: int) -> str:
    return f"{len(split):,}" + (f" of {whole:,} (partial)" if len(split) != whole else "")


def load(
    name: str,
    num_steps: int,
    *,
    data: Path | None = None,
    cache: Path | None = None,
    dtype: torch.dtype = torch.float32,
    train_samples: int | None = None,
    test_samples: int | None = None,
    hold_out: int | None = None,
    download: bool = False,
    coding: str = "latency",
) -> Dataset:
    """
    Open a dataset.

    Example::

        dataset = load("fashion-mnist", num_steps=100, data=Path("data"))
        spikes = dataset.train.batch(torch.arange(128))     # SpikeTimes (100, 128, 1, 28, 28)
        spikes.to_dense()                                      # a tensor of that shape

    :param name: one of `DATASETS`
    :param num_steps: number of time steps T
    :param data: folder in which its files are
    :param cache: folder for decoded events. Defaults to :func:`default_cache`
    :param dtype: type of the dense tensors. Defaults to float32
    :param train_samples, test_samples: use only this many samples, always the same ones.
        Defaults to None: all
    :param hold_out: hold this many samples out of the training set, always the same ones, and
        use them as the test set. Defaults to None: the test set itself
    :param download: let tonic fetch recordings that are missing. Defaults to False
    :param coding: how intensities enter the network, `latency` or `current`; see
        :class:`Intensities`. Defaults to `latency`
    :raises ExperimentError: a file is missing, truncated or corrupt; `data` is missing; the
        set has fewer samples than requested
    """
    if name not in DATASETS:
        raise ExperimentError(f"dataset {name!r} is not known: use one of {', '.join(DATASETS)}")
    if num_steps < 1:
        raise ExperimentError(f"num_steps={num_steps}: use at least one")
    data = None if data is None else Path(data).expanduser()
    if name in NEEDS_FILES and data is None:
        raise ExperimentError(f"--dataset {name} needs --data DIR, the folder with its files")
    if name in ("mnist", "fashion-mnist"):
        splits = _images(name, Path(data or ""), num_steps, dtype, coding)
    elif name in recordings.SOURCES:
        parts = recordings.open_parts(name, Path(data or ""), download)
        splits = _recordings(name, parts, cache or default_cache(), num_steps, dtype)
    elif name == "digits":
        splits = _digits(num_steps, dtype, coding)
    else:
        splits = _yinyang(num_steps, dtype, coding)
    if hold_out is not None:
        if hold_out >= len(splits[0]):
            raise ExperimentError(
                f"--hold-out {hold_out}: there are {len(splits[0]):,} training samples; hold out "
                "fewer"
            )
        splits = [_some(splits[0], slice(hold_out, None)), _some(splits[0], slice(hold_out))]
    train = _first(splits[0], train_samples, "--train-samples")
    test = _first(splits[1], test_samples, "--test-samples")
    return Dataset(name, train, test, held_out=hold_out is not None)


def _first(split: Split, number: int | None, option: str) -> Split:
    """This number of samples, always the same ones; all samples if the number is None."""
    if number is None:
        return split
    if number > len(split):
        raise ExperimentError(f"{option} {number}: there are {len(split):,}; use fewer")
    return _some(split, slice(number))


def _some(split: Split, part: slice) -> Split:
    """A random part of the samples, since files may be sorted by class."""
    order = torch.randperm(len(split), generator=torch.Generator().manual_seed(SPLIT_SEED))
    return split.samples(order[part].sort().values)


def default_cache() -> Path:
    """The folder for decoded events, in the user's cache folder."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "snn-single-spike"


def _yinyang(num_steps: int, dtype: torch.dtype, coding: str) -> list[Split]:
    made: list[Split] = []
    for size, seed in zip(DATASETS["yinyang"].sizes, YINYANG_SEEDS, strict=True):
        values, classes = yinyang.generate(size, seed)
        samples = torch.from_numpy(values), torch.from_numpy(classes)
        made.append(Intensities(*samples, num_steps, dtype, coding))
    return made


def _digits(num_steps: int, dtype: torch.dtype, coding: str) -> list[Split]:
    try:
        x_train, y_train, x_test, y_test = digits.load_digits(SPLIT_SEED)
    except ImportError:
        raise ExperimentError(
            "--dataset digits needs scikit-learn: pip install scikit-learn"
        ) from None
    return [
        Intensities(x.view(-1, 1, 8, 8), y.long(), num_steps, dtype, coding)
        for x, y in ((x_train, y_train), (x_test, y_test))
    ]


_IDX_FOLDERS = {"mnist": "MNIST", "fashion-mnist": "FashionMNIST"}


def _images(name: str, data: Path, num_steps: int, dtype: torch.dtype, coding: str) -> list[Split]:
    folders = [data / _IDX_FOLDERS[name] / "raw", data / _IDX_FOLDERS[name], data / "raw", data]
    made: list[Split] = []
    for prefix in ("train", "t10k"):
        images_path = _find_idx(name, folders, f"{prefix}-images-idx3-ubyte")
        labels_path = _find_idx(name, folders, f"{prefix}-labels-idx1-ubyte")
        images, labels = idx.read_idx(images_path, 3), idx.read_idx(labels_path, 1)
        features = DATASETS[name].features
        if images.shape[1:] != features[1:]:
            raise ExperimentError(
                f"{images_path} has images of shape {images.shape[1:]}, but those of {name} have "
                f"{features[1:]}: the file belongs to another dataset"
            )
        if len(images) != len(labels):
            raise ExperimentError(
                f"{images_path} has {len(images)} images, but {labels_path} has {len(labels)} "
                "labels: the files do not belong together, fetch both again"
            )
        if not len(images):
            raise ExperimentError(f"{images_path} has no images: fetch it again")
        if labels.max() >= DATASETS[name].classes:
            raise ExperimentError(
                f"{labels_path} has a label {labels.max()}, but {name} has classes 0 to "
                f"{DATASETS[name].classes - 1}: it is corrupt, fetch it again"
            )
        values = torch.from_numpy(images.copy()).unsqueeze(1)
        classes = torch.from_numpy(labels.astype(np.int64))
        made.append(Intensities(values, classes, num_steps, dtype, coding))
    return made


def _find_idx(name: str, folders: list[Path], file: str) -> Path:
    for folder in folders:
        for path in (folder / file, folder / f"{file}.gz"):
            if path.is_file():
                return path
    looked = ", ".join(map(str, folders))
    raise ExperimentError(
        f"{name}: {file} or {file}.gz is not in any of {looked}. Point --data at the folder that "
        f"has it, or get it: torchvision.datasets.{_IDX_FOLDERS[name]}(DIR, download=True)"
    )


def _recordings(
    name: str,
    parts: tuple[recordings.Part, recordings.Part],
    cache: Path,
    num_steps: int,
    dtype: torch.dtype,
) -> list[Split]:
    spec = DATASETS[name]
    made: list[Split] = []
    for label, part in zip(("train", "test"), parts, strict=True):
        loaded = events.load_events(
            f"{name}-{label}",
            part,
            spec.classes,
            cache,
            num_steps,
            spec.step_us,
            spec.features,
            dtype,
        )
        made.append(Recordings(*loaded))
    return made
