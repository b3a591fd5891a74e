"""Events from recordings of sensors."""

import math

import numpy as np
import pytest
import torch

from snn_single_spike import SpikeEvents, SpikeTimes
from snn_single_spike.functional import spike_count


def recordings(number=4, events=60, extent=(3, 4, 2), last=1000.0, dtype="<i8", seed=0):
    make = np.random.default_rng(seed)
    out = []
    for _ in range(number):
        n = int(make.integers(0, events))
        made = np.zeros(n, np.dtype([("t", dtype), ("x", "<i2"), ("y", "<i2"), ("p", "?")]))
        made["t"] = np.sort(make.integers(0, last, n))
        for name, size in zip("xyp", extent, strict=True):
            made[name] = make.integers(0, size, n)
        out.append(made)
    return out


def frames(recordings, extent, num_steps, window, count):
    x, y, p = extent
    out = torch.zeros(num_steps, len(recordings), p, y, x)
    for sample, recording in enumerate(recordings):
        for t, i, j, k in recording:
            step = math.floor(t / window)
            if step < num_steps:
                place = (step, sample, int(k), int(j), int(i))
                out[place] = out[place] + 1 if count else 1
    return out


@pytest.mark.parametrize("count", [False, True])
@pytest.mark.parametrize("dtype", ["<i8", "<u4", "<f8"])
@pytest.mark.parametrize("extent", [(3, 4, 2), (3, 4, 1), (5, 1, 1), (1, 1, 2), (1, 3, 1)])
def test_recordings_make_the_frames_of_a_slow_loop(extent, dtype, count):
    given = recordings(extent=extent, dtype=dtype)
    spikes = SpikeEvents.from_events(given, extent, 10, time_window=100.0, count=count)
    expected = frames(given, extent, 10, 100.0, count)
    features = [size for size in (extent[2], extent[1], extent[0]) if size > 1]
    assert spikes.shape == (10, len(given), *features)
    assert torch.equal(spikes.to_dense(), expected.reshape(spikes.shape))


def test_recordings_beyond_the_last_step_are_dropped_on_request():
    given = recordings()
    with pytest.raises(ValueError, match=r"events beyond step 4, the last at step 9: raise num"):
        SpikeEvents.from_events(given, (3, 4, 2), 5, time_window=100)
    spikes = SpikeEvents.from_events(given, (3, 4, 2), 5, time_window=100, late="drop")
    assert torch.equal(spikes.to_dense(), frames(given, (3, 4, 2), 5, 100, True))


def test_recordings_of_a_sensor_without_rows_and_polarity():
    made = np.zeros(2, np.dtype([("t", "<i8"), ("x", "<i2")]))
    made["t"], made["x"] = [0, 250], [6, 1]
    spikes = SpikeEvents.from_events([made, made[:0]], (7, 1, 1), 3, time_window=100)
    assert spike_count(spikes, per="sample").tolist() == [2, 0]
    assert spikes.events().values is None
    assert spikes.to_dense().nonzero().tolist() == [[0, 0, 6], [2, 0, 1]]
    none = SpikeEvents.from_events([], (7, 1, 1), 3, time_window=100)
    assert none.shape == (3, 0, 7)
    half = SpikeEvents.from_events([made], (7,), 3, time_window=100, dtype=torch.float16)
    assert half.to_dense().dtype == torch.float16


def test_recordings_make_the_frames_of_tonic():
    transforms = pytest.importorskip("tonic.transforms")
    given = recordings(number=1, events=500)
    given[0]["t"] -= given[0]["t"][0]  # tonic counts from the first event
    frame = transforms.ToFrame(sensor_size=(3, 4, 2), time_window=100)(given[0])
    spikes = SpikeEvents.from_events(given, (3, 4, 2), len(frame), time_window=100, late="drop")
    assert torch.equal(spikes.to_dense()[:, 0], torch.from_numpy(frame).float())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"late": "keep"}, "late='keep' is not known: use 'raise' or 'drop'"),
        ({"time_window": 0}, "time_window=0 must be positive"),
        ({"time_window": float("nan")}, "time_window=nan must be positive"),
        ({"num_steps": 0}, "num_steps=0 must be a positive number"),
        ({"sensor_size": (2, 4, 2)}, "x from 0 to 2, but sensor_size gives x an extent of 2"),
        ({"sensor_size": (3, 3, 2)}, "y from 0 to 3, but sensor_size gives y an extent of 3"),
    ],
)
def test_recordings_that_do_not_fit(change, message):
    options = {"sensor_size": (3, 4, 2), "num_steps": 10, "time_window": 100} | change
    with pytest.raises(ValueError, match=message):
        SpikeEvents.from_events(recordings(number=1, events=500), **options)


def test_what_is_not_a_list_of_recordings():
    made = np.zeros(2, np.dtype([("t", "<i8"), ("x", "<i2")]))
    with pytest.raises(TypeError, match=r"recording 0 is a tuple.*for events, label in dataset"):
        SpikeEvents.from_events([(made, 3)], (3, 1, 1), 10, time_window=1)
    with pytest.raises(TypeError, match=r"recording 0 is a void.*pass a list.*\[events\]"):
        SpikeEvents.from_events(made, (3, 1, 1), 10, time_window=1)


def test_dense_spikes_in_the_place_of_times():
    with pytest.raises(TypeError, match=r"not torch.float32: round them.*SpikeTimes.from_dense"):
        SpikeTimes(torch.zeros(5, 2, 3), 5)
    with pytest.raises(TypeError, match="not ndarray: use torch.as_tensor"):
        SpikeTimes(np.zeros((2, 3), int), 5)


def test_recordings_with_a_field_missing_or_before_time_0():
    made = np.zeros(1, np.dtype([("t", "<i8"), ("x", "<i2")]))
    with pytest.raises(ValueError, match=r"recording 0 has fields \('t', 'x'\), but \['y'\] is"):
        SpikeEvents.from_events([made], (3, 4, 1), 10, time_window=1)
    with pytest.raises(ValueError, match=r"recording 1 has fields None"):
        SpikeEvents.from_events([made, np.zeros(3)], (3, 1, 1), 10, time_window=1)
    made["t"] = -1
    with pytest.raises(ValueError, match="recording 0 has an event before time 0"):
        SpikeEvents.from_events([made], (3, 1, 1), 10, time_window=1)


@pytest.mark.parametrize("size", [(), 5, (3, None), (3, -1), (3, 4, 2, 1), (0, 4, 2)])
def test_sensors_of_no_size(size):
    with pytest.raises(ValueError, match="sensor_size=.* must be the extents"):
        SpikeEvents.from_events([], size, 4, time_window=1)
