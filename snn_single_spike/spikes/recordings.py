"""Recordings of event cameras and silicon cochleas, read into events."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch

from ..backends._events import Events
from ._base import check_num_steps

# Rounding of a time, in units of its last place: of the window, of the product or sum that made the
# time, and of the division.
_ULPS = 4


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
    if isinstance(time_window, str) or time_window is None:
        raise TypeError(f"time_window={time_window!r} must be a number, the duration of a step")
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
    times = recording["t"]
    if times.dtype.kind not in "biufmM":
        raise TypeError(
            f"recording {number} has times of type {times.dtype}, but numbers are expected: "
            "convert the field t, e.g. to int64 microseconds"
        )
    if times.dtype.kind == "f" and not np.isfinite(times).all():
        first = int(np.flatnonzero(~np.isfinite(times))[0])
        raise ValueError(
            f"recording {number} has the time {times[first]} at event {first}: remove the events "
            "that have no finite time, events[np.isfinite(events['t'])]"
        )
    step = _steps(times, time_window)
    if len(step) and step.min() < 0:
        raise ValueError(
            f"recording {number} has an event before time 0, at step {step.min():.0f}: subtract "
            "the smallest t"
        )
    inside = step < num_steps
    if late == "raise" and not inside.all():
        raise ValueError(
            f"recording {number} has {int((~inside).sum())} events beyond step {num_steps - 1}, "
            f"the last at step {step.max():.0f}: raise num_steps or time_window, or pass "
            "late='drop'"
        )
    step = step.clip(0, num_steps).astype(np.int64)
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


def _steps(times: np.ndarray, time_window: float) -> np.ndarray:
    """The step of each time, as integers or as whole floats.

    Integer times are divided exactly, by a window that is a whole number. A floating-point time
    and its window carry rounding errors: 0.3 / 0.1 is 2.9999999999999996. So a time a few units
    in the last place below the start of a step belongs to this step.
    """
    exact = times.dtype.kind != "f"
    if exact:
        # Dates and durations are integers of their unit. uint64 is not within int64.
        times = times.astype(np.uint64 if times.dtype == np.uint64 else np.int64)
        if float(time_window).is_integer() and int(time_window) <= np.iinfo(np.int64).max:
            return times // times.dtype.type(int(time_window))
    types = [np.dtype(np.float64), np.asarray(time_window).dtype]
    types += [] if exact else [times.dtype]
    rounding = _ULPS * max(float(np.finfo(t).eps) for t in types if t.kind == "f")
    # A tiny window: the quotient is infinite, beyond the last step.
    with np.errstate(over="ignore", invalid="ignore"):
        quotient = times.astype(np.float64) / float(time_window)
        step, nearest = np.floor(quotient), np.rint(quotient)
        # A time below 0 is the rounded difference of two times, as large as the others.
        largest = np.abs(quotient).max(initial=1.0)
        error = rounding * np.where(nearest == 0, largest, np.abs(quotient))
        return np.where(nearest - quotient <= error, nearest, step)
