"""Recordings of event sensors, through tonic's datasets, from files on the disk.

tonic has the layout of the files and decodes them. This module finds the files, splits a dataset
that is published in one piece, orders the recordings independently of the file system, and names
a recording that cannot be used.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from . import ExperimentError

_TEST_EVERY = 5


class Source(NamedTuple):
    """A dataset of tonic."""

    name: str
    """Its class, and the name of its folder."""
    parts: dict[str, dict[str, Any]]
    """Files of each part, as a pattern, and the arguments of the class that select the part."""


SOURCES = {
    "nmnist": Source(
        "NMNIST", {"Train/*/*.bin": {"train": True}, "Test/*/*.bin": {"train": False}}
    ),
    "shd": Source("SHD", {"shd_train.h5": {"train": True}, "shd_test.h5": {"train": False}}),
    "ssc": Source("SSC", {"ssc_train.h5": {"split": "train"}, "ssc_test.h5": {"split": "test"}}),
    "dvs-gesture": Source(
        "DVSGesture",
        {"ibmGestureTrain/*/*.npy": {"train": True}, "ibmGestureTest/*/*.npy": {"train": False}},
    ),
    "n-caltech101": Source("NCALTECH101", {"Caltech101/*/*.bin": {}}),
    "asl-dvs": Source("ASLDVS", {"**/*.mat": {}}),
    "poker-dvs": Source(
        "POKERDVS", {"pips_train/*/*.npy": {"train": True}, "pips_test/*/*.npy": {"train": False}}
    ),
}


@dataclass(frozen=True)
class Part:
    """The training or the test set of a dataset."""

    root: Path
    files: list[Path]
    """The files with the recordings."""
    dataset: Any
    """tonic's dataset."""
    indices: Sequence[int]
    """The recordings of this part in the dataset."""
    classes: dict[Any, int]
    """The class of each label of tonic. Empty if tonic's labels are classes."""

    def recordings(self) -> Iterator[tuple[str, np.ndarray, int]]:
        """
        Yield a name for messages, the events, and the class of each recording.

        :raises ExperimentError: tonic cannot read a recording
        """
        paths = self.dataset.data
        for index in self.indices:
            path = paths[index] if len(paths) else None
            place = path if isinstance(path, str) else f"{self.root}, recording {index}"
            try:
                events, label = self.dataset[index]
            except Exception as error:  # numpy, h5py and scipy raise what they find
                raise ExperimentError(
                    f"{place} cannot be read ({error}): it is truncated or corrupt, unpack the "
                    "archive again"
                ) from error
            yield place, events.reshape(-1), self.classes[label] if self.classes else int(label)


def open_parts(name: str, data: Path, download: bool) -> tuple[Part, Part]:
    """
    Open the training and the test set. A dataset in one piece gives every fifth recording of the
    order of classes and file names to the test set.

    :param name: one of `SOURCES`
    :param data: the folder that holds tonic's folder of the dataset, or this folder itself
    :param download: let tonic download missing files
    :raises ExperimentError: tonic is not installed; files are missing or cannot be opened
    """
    source = SOURCES[name]
    found = [_open(name, pattern, data, download) for pattern in source.parts]
    if len(found) == 2:
        return found[0], found[1]
    whole = found[0]
    tests = set(whole.indices[_TEST_EVERY - 1 :: _TEST_EVERY])
    return (
        replace(whole, indices=[i for i in whole.indices if i not in tests]),
        replace(whole, indices=[i for i in whole.indices if i in tests]),
    )


def _open(name: str, pattern: str, data: Path, download: bool) -> Part:
    try:
        import tonic
    except ImportError:
        raise ExperimentError(f"--dataset {name} needs tonic: pip install tonic") from None
    source = SOURCES[name]
    original, options = getattr(tonic.datasets, source.name), source.parts[pattern]
    root, files = _find(pattern, data, source.name)
    if not files and download:
        try:
            original(str(data), **options)
        except Exception as error:  # of the network, the disk, the archive
            raise ExperimentError(
                f"--download: tonic.datasets.{source.name} could not fetch {name} ({error}): get "
                f"its files by hand, into {data / source.name}"
            ) from error
        root, files = _find(pattern, data, source.name)
    if not files:
        raise ExperimentError(
            f"{name}: {pattern} is in neither {data} nor {data / source.name}. Point --data at "
            f"the folder that has it, or pass --download: tonic.datasets.{source.name} fetches it"
        )
    # tonic looks for a folder with the name of the class, and downloads unless all recordings and
    # their archive are there.
    on_disk = type(root.name, (original,), {"_check_exists": lambda self: True})
    try:
        dataset = on_disk(str(root.parent), **options)
        size = len(dataset)
    except Exception as error:
        raise ExperimentError(
            f"{root / pattern} cannot be opened ({error}): it is truncated, corrupt or of another "
            "form, fetch it again"
        ) from error
    labels, paths = dataset.targets, dataset.data  # empty for recordings that share a file
    classes = {} if _numbered(labels) else {x: i for i, x in enumerate(sorted(set(labels)))}
    indices = sorted(range(size), key=lambda i: _place(i, labels, paths))
    return Part(root, files, dataset, indices, classes)


def _find(pattern: str, data: Path, folder: str) -> tuple[Path, list[Path]]:
    """The folder of the dataset, and its files that match. No files: they are missing."""
    for root in (data / folder, data):
        files = sorted(root.resolve().glob(pattern))
        if files:
            break
    return root.resolve(), files


def _numbered(labels: Sequence[Any]) -> bool:
    return all(isinstance(label, int) for label in labels)


def _place(index: int, labels: Sequence[Any], paths: Sequence[Any]) -> tuple[Any, ...]:
    """Sorts recordings. tonic lists folders, and some files, in the order of the file system."""
    if not len(labels):
        return (index,)
    path = paths[index]
    return (labels[index], path if isinstance(path, str) else "", index)
