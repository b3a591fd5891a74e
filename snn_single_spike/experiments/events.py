"""Event recordings, N-MNIST and SHD, decoded once into a compact cache of events.

An event consists of a step and a unit, two int16. The events of the whole N-MNIST take 1 GB; dense
frames would take 80 GB. Several events of one unit in one step are stored separately, and add up.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .. import SpikeEvents
from ..functional import Events
from . import ExperimentError
from .files import write_atomically

logger = logging.getLogger("snn_single_spike")

_FORMAT = 2
_ARRAYS = ("offsets", "times", "units", "labels", "late")

Recording = tuple[np.ndarray, np.ndarray, int]
"""Times, units in the order of the times, and the label."""

NMNIST_SIDE = 34
_OVERFLOW_ROW, _OVERFLOW = 240, 1 << 13
SHD_UNITS, SHD_CLASSES = 700, 20


def read_nmnist(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """
    Read one N-MNIST recording: times in microseconds, and units that both polarities share.

    An event has 40 bits: x (8), y (8), polarity (1), time (23). A y of 240 marks an overflow of
    the sensor's clock by 2^13 us instead of an event.

    :raises ExperimentError: the length is not a multiple of 5 bytes, or an event is off the sensor
    """
    raw = np.fromfile(path, np.uint8)
    if len(raw) % 5 or not len(raw):
        raise ExperimentError(
            f"{path} has {len(raw)} bytes, but an event has 5 bytes: it is truncated, unpack "
            "the archive again"
        )
    x, y, high, middle, low = raw.reshape(-1, 5).astype(np.int64).T
    overflow = y == _OVERFLOW_ROW
    times = (high & 0x7F) << 16 | middle << 8 | low
    times += _OVERFLOW * overflow.cumsum()
    x, y, times = (a[~overflow] for a in (x, y, times))
    if len(x) and max(x.max(), y.max()) >= NMNIST_SIDE:
        raise ExperimentError(
            f"{path} has an event at x={x.max()}, y={y.max()} at most, but the sensor has "
            f"{NMNIST_SIDE} x {NMNIST_SIDE} pixels: it is corrupt, unpack the archive again"
        )
    order = times.argsort(kind="stable")
    return times[order], (y * NMNIST_SIDE + x)[order]


def nmnist_files(root: Path, part: str) -> list[Path]:
    """
    List the recordings of one part, `"Train"` or `"Test"`, in tonic's layout.

    :raises ExperimentError: the folder is missing or holds no recordings
    """
    found = sorted((root / part).glob("[0-9]/*.bin"))
    if not found:
        raise ExperimentError(
            f"{root / part} has no recordings: files <digit>/<number>.bin are expected, from "
            f"{part}.zip of N-MNIST"
        )
    return found


def nmnist_recordings(files: list[Path]) -> Iterator[Recording]:
    for path in files:
        yield *read_nmnist(path), int(path.parent.name)


def shd_recordings(path: Path) -> Iterator[Recording]:
    """
    Read one HDF5 file of the Spiking Heidelberg Digits, with times in microseconds.

    :raises ExperimentError: h5py is not installed; the file has another form or is truncated
    """
    try:
        import h5py
    except ImportError:
        raise ExperimentError("--dataset shd needs h5py: pip install h5py") from None
    try:
        with h5py.File(path, "r") as file:
            times, units = file["spikes/times"], file["spikes/units"]
            labels = file["labels"][:]
            if not len(times) == len(units) == len(labels):
                raise ExperimentError(
                    f"{path} has {len(times)} spikes/times, {len(units)} spikes/units and "
                    f"{len(labels)} labels: equal numbers are expected, fetch it again"
                )
            if not len(labels):
                raise ExperimentError(f"{path} has no recordings: fetch it again")
            for i, label in enumerate(labels):
                unit, second = units[i].astype(np.int64), times[i].astype(np.float64)
                if not 0 <= label < SHD_CLASSES or (len(unit) and unit.max() >= SHD_UNITS):
                    raise ExperimentError(
                        f"{path}, recording {i}: label {label}, units up to "
                        f"{unit.max(initial=0)}, but {SHD_CLASSES} classes and {SHD_UNITS} units "
                        "are expected: it is corrupt, fetch it again"
                    )
                if len(unit) != len(second) or not ((second >= 0) & (second < np.inf)).all():
                    raise ExperimentError(
                        f"{path}, recording {i}: {len(unit)} units and {len(second)} times, from "
                        f"{second.min(initial=0)} to {second.max(initial=0)} s, but a time from 0 "
                        "on is expected for each: it is corrupt, fetch it again"
                    )
                # Seconds, as half floats in the published files
                time = np.rint(second * 1e6).astype(np.int64)
                order = time.argsort(kind="stable")
                yield time[order], unit[order], int(label)
    except (OSError, KeyError) as error:
        raise ExperimentError(
            f"{path} is not an HDF5 file with spikes/times, spikes/units and labels, or is "
            f"truncated ({error}): fetch it again"
        ) from None


def fingerprint(files: list[Path], root: Path) -> str:
    """A digest that changes when a file is added, removed or rewritten."""
    digest = hashlib.sha256(str(_FORMAT).encode())
    for path in files:
        stat = path.stat()
        digest.update(f"{path.relative_to(root)} {stat.st_size} {stat.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def load_events(
    name: str,
    root: Path,
    files: list[Path],
    decode: Callable[[], Iterator[Recording]],
    cache: Path,
    num_steps: int,
    step_us: int,
    features: tuple[int, ...],
    dtype: torch.dtype = torch.float32,
) -> tuple[SpikeEvents, torch.Tensor, torch.Tensor, torch.Tensor]:
    """
    Load a set of recordings, from the cache if the cache was made from these files.

    Events after the last step are left out.

    :param name: name of the set, a part of the name of the cache file
    :param decode: yields the recordings, with times in microseconds
    :param step_us: duration of a time step
    :return: events, labels, and for each recording the number of events kept and left out
    :raises ExperimentError: from `decode`, or the cache cannot be written
    """
    place = hashlib.sha256(str(root.resolve()).encode()).hexdigest()[:8]
    path = cache / f"{name}-{place}-{num_steps}x{step_us}us.npz"
    source = fingerprint(files, root)
    arrays = _read_cache(path, source)
    if arrays is None:
        logger.info("decoding %s into %s", root, path)
        arrays = _bin(decode(), num_steps, step_us)
        content: dict[str, Any] = {"source": np.array(source), **arrays}
        write_atomically(path, lambda file: np.savez(file, **content))
    offsets, times, units, labels, late = (torch.from_numpy(arrays[key]) for key in _ARRAYS)
    events = SpikeEvents(Events(offsets, times, units, None), num_steps, features, dtype=dtype)
    return events, labels, offsets.diff(), late


def _bin(recordings: Iterator[Recording], num_steps: int, step_us: int) -> dict[str, np.ndarray]:
    times, units, labels, offsets, late = [], [], [], [0], []
    for time, unit, label in recordings:
        step = time // step_us
        inside = step < num_steps
        times.append(step[inside].astype(np.int16))
        units.append(unit[inside].astype(np.int16))
        labels.append(label)
        offsets.append(offsets[-1] + len(times[-1]))
        late.append(len(time) - len(times[-1]))
    return {
        "offsets": np.array(offsets, np.int64),
        "times": np.concatenate(times),
        "units": np.concatenate(units),
        "labels": np.array(labels, np.int64),
        "late": np.array(late, np.int64),
    }


def _read_cache(path: Path, source: str) -> dict[str, np.ndarray] | None:
    """The arrays, or None if the file is missing, damaged or made from other recordings."""
    if not path.is_file():
        return None
    try:
        with np.load(path) as held:
            if str(held["source"]) == source:
                return {key: held[key] for key in _ARRAYS}
        logger.info("%s was made from files that have changed since", path)
    except Exception as error:  # numpy and zipfile raise many types on damaged files
        logger.warning("%s cannot be read (%s) and is rewritten", path, error)
    return None
