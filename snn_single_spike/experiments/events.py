"""Recorded events, decoded once into a compact cache.

An event consists of a step and a unit, two int16 where these suffice. The events of the whole
N-MNIST take 1 GB; dense frames would take 80 GB. Several events of one unit in one step are stored
separately, and add up, as in tonic's frames.
"""

from __future__ import annotations

import hashlib
import logging
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .. import SpikeEvents
from ..functional import Events
from . import ExperimentError
from .files import write_atomically
from .recordings import Part

logger = logging.getLogger("snn_single_spike")

_FORMAT = 3
_ARRAYS = ("offsets", "times", "units", "labels", "late")


def load_events(
    name: str,
    part: Part,
    classes: int,
    cache: Path,
    num_steps: int,
    step_us: int,
    features: tuple[int, ...],
    dtype: torch.dtype = torch.float32,
) -> tuple[SpikeEvents, torch.Tensor, torch.Tensor, torch.Tensor]:
    """
    Load a set of recordings, from the cache if the cache was made from these files.

    Step 0 begins at the first event of a recording, as in tonic's frames. Events after the last
    step are left out.

    :param name: name of the set, a part of the name of the cache file
    :param classes: number of classes
    :param step_us: duration of a time step
    :param features: `(units,)` or `(polarities, height, width)`; with one polarity, the events of
        both polarities share a unit
    :return: events, labels, and for each recording the number of events kept and left out
    :raises ExperimentError: a recording is unusable, or the cache cannot be written
    """
    place = hashlib.sha256(str(part.root).encode()).hexdigest()[:8]
    path = cache / f"{name}-{place}-{num_steps}x{step_us}us.npz"
    source = fingerprint(part.files, part.root)
    arrays = _read_cache(path, source)
    if arrays is None:
        logger.info("decoding %s into %s", part.root, path)
        arrays = _bin(part.recordings(), classes, num_steps, step_us, features)
        content: dict[str, Any] = {"source": np.array(source), **arrays}
        write_atomically(path, lambda file: np.savez(file, **content))
    offsets, times, units, labels, late = (torch.from_numpy(arrays[key]) for key in _ARRAYS)
    events = SpikeEvents(Events(offsets, times, units, None), num_steps, features, dtype=dtype)
    return events, labels, offsets.diff(), late


def fingerprint(files: list[Path], root: Path) -> str:
    """A digest that changes when a file is added, removed or rewritten."""
    digest = hashlib.sha256(str(_FORMAT).encode())
    for path in files:
        stat = path.stat()
        digest.update(f"{path.relative_to(root)} {stat.st_size} {stat.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def _bin(
    recordings: Iterable[tuple[str, np.ndarray, int]],
    classes: int,
    num_steps: int,
    step_us: int,
    features: tuple[int, ...],
) -> dict[str, np.ndarray]:
    times, units, labels, offsets, late = [], [], [], [0], []
    step_type, unit_type = _smallest(num_steps), _smallest(math.prod(features))
    for place, events, label in recordings:
        _check(place, events, label, classes, features)
        step = (events["t"] - events["t"].min()) // step_us
        order = step.argsort(kind="stable")
        order = order[step[order] < num_steps]
        times.append(step[order].astype(step_type))
        units.append(_units(events[order], features).astype(unit_type))
        labels.append(label)
        offsets.append(offsets[-1] + len(order))
        late.append(len(events) - len(order))
    return {
        "offsets": np.array(offsets, np.int64),
        "times": np.concatenate(times),
        "units": np.concatenate(units),
        "labels": np.array(labels, np.int64),
        "late": np.array(late, np.int64),
    }


def _smallest(size: int) -> type[np.signedinteger]:
    return np.int16 if size <= 1 << 15 else np.int32


def _extents(features: tuple[int, ...]) -> dict[str, int]:
    """The extent of each field that numbers the units."""
    if len(features) == 1:
        return {"x": features[0]}
    polarities, height, width = features
    return {**({"p": polarities} if polarities > 1 else {}), "y": height, "x": width}


def _units(events: np.ndarray, features: tuple[int, ...]) -> np.ndarray:
    unit = np.zeros(len(events), np.int64)
    for field, extent in _extents(features).items():
        unit = unit * extent + events[field]
    return unit


def _check(
    place: str, events: np.ndarray, label: int, classes: int, features: tuple[int, ...]
) -> None:
    """
    Check a recording. tonic returns what a corrupt file has.

    :raises ExperimentError: names the recording and the value
    """
    again = "it is corrupt, unpack the archive again"
    if not len(events):
        raise ExperimentError(f"{place} has no events: it is truncated, unpack the archive again")
    if not 0 <= label < classes:
        raise ExperimentError(f"{place} has class {label}, but there are {classes}: {again}")
    if events["t"].min() < 0:
        raise ExperimentError(
            f"{place} has an event at {events['t'].min()} us, but times start at 0: {again}"
        )
    for field, extent in _extents(features).items():
        low, high = events[field].min(), events[field].max()
        if low < 0 or high >= extent:
            raise ExperimentError(
                f"{place} has events at {field} from {low} to {high}, but the sensor has {extent} "
                f"of {field}: {again}"
            )


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
