"""Recordings of event cameras and silicon cochleas, read into events."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch

from ..backends._events import Events
from ._base import check_num_steps


def read_recordings(
    recordings: Sequence[np.ndarray],
    sensor_size: Sequence[int],
    num_steps: int,
    time_window: float,
    *,
    count: bool,
    late: str,
    dtype: torch.dtype,
) -> tuple[Events, list[int]]:
    """The events of all recordings, and the shape of the units.

    :meth:`SpikeEvents.from_events` describes the arguments.
    """
    if late not in ("raise", "drop"):
        raise ValueError(f"late={late!r} is not known: use 'raise' or 'drop'")
    if not time_window > 0:
        raise ValueError(f"time_window={time_window!r} must be positive")
    check_num_steps(num_steps)
    extents = sensor_size if isinstance(sensor_size, Sequence) else ()
    sound = all(isinstance(n, int | np.integer) and n > 0 for n in extents)
    if not sound or not 1 <= len(extents) <= 3:
        raise ValueError(
            f"sensor_size={sensor_size!r} must be the extents of x, y and polarity, positive "
            "integers: pass 1 for a field that the recordings do not have"
        )
    extent = {name: int(n) for name, n in zip("xyp", extents, strict=False)}
    axes = [name for name in "pyx" if extent.get(name, 1) > 1] or ["x"]
    features = [extent[name] for name in axes]
    parts, offsets = [], [0]
    for number, recording in enumerate(recordings):
        keys = _event_keys(number, recording, axes, extent, num_steps, time_window, late)
        keys, heights = np.unique(keys, return_counts=True) if len(keys) else (keys, keys)
        parts.append((keys, heights))
        offsets.append(offsets[-1] + len(keys))
    keys = np.concatenate([keys for keys, _ in parts]) if parts else np.zeros(0, np.int64)
    heights = np.concatenate([n for _, n in parts]) if parts else keys
    units = math.prod(features)
    values = torch.from_numpy(heights).to(dtype) if count and (heights != 1).any() else None
    events = Events(
        torch.tensor(offsets, device="cpu"),
        torch.from_numpy((keys // units).astype(np.int32)),
        torch.from_numpy((keys % units).astype(np.int32)),
        values,
    )
    return events, features


def _event_keys(
    number: int,
    recording: np.ndarray,
    axes: Sequence[str],
    extent: Mapping[str, int],
    num_steps: int,
    time_window: float,
    late: str,
) -> np.ndarray:
    """step * units + unit, for every event of one recording."""
    if not isinstance(recording, np.ndarray) or recording.ndim != 1:
        fix = "pass a list of recordings, [events]"
        if isinstance(recording, tuple):
            fix = "drop the labels of a dataset, [events for events, label in dataset]"
        raise TypeError(
            f"recording {number} is a {type(recording).__name__}, but a structured array of its "
            f"events is expected: {fix}"
        )
    missing = {"t", *axes} - set(recording.dtype.names or ())
    if missing:
        raise ValueError(
            f"recording {number} has fields {recording.dtype.names}, but {sorted(missing)} is "
            f"missing: pass an extent of 1 in sensor_size for a field that is missing"
        )
    step = np.floor_divide(recording["t"].astype(np.float64), time_window).astype(np.int64)
    if len(step) and step.min() < 0:
        raise ValueError(
            f"recording {number} has an event before time 0, at step {int(step.min())}: subtract "
            "the smallest t"
        )
    inside = step < num_steps
    if late == "raise" and not inside.all():
        raise ValueError(
            f"recording {number} has {int((~inside).sum())} events beyond step {num_steps - 1}, "
            f"the last at step {int(step.max())}: raise num_steps or time_window, or pass "
            "late='drop'"
        )
    unit = np.zeros(len(step), np.int64)
    for name in axes:
        place = recording[name].astype(np.int64)
        if len(place) and (place.min() < 0 or place.max() >= extent[name]):
            raise ValueError(
                f"recording {number} has {name} from {place.min()} to {place.max()}, but "
                f"sensor_size gives {name} an extent of {extent[name]}: raise this extent"
            )
        unit = unit * extent[name] + place
    return (step * math.prod(extent[name] for name in axes) + unit)[inside]
