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
    with pytest.raises(TypeError, match="time_window='1ms' must be a number"):
        SpikeEvents.from_events([made], (3, 1, 1), 10, time_window="1ms")


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


def steps(times, window, num_steps=1000, late="raise"):
    """The step of each time: every event has a unit of its own."""
    made = np.zeros(len(times), np.dtype([("t", times.dtype), ("x", "<i4")]))
    made["t"], made["x"] = times, np.arange(len(times))
    events = SpikeEvents.from_events(
        [made], (len(times),), num_steps, time_window=window, late=late
    ).events()
    return events.times[events.units.argsort()].tolist()


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.longdouble])
@pytest.mark.parametrize("window", [0.001, 0.1, 1 / 3, 33.3, 1000])
def test_a_float_time_at_the_start_of_a_step_is_in_this_step(window, dtype):
    number = np.arange(1000)
    computed = number.astype(dtype) * dtype(window)
    decimal = (number * window).astype(dtype)
    divided = number.astype(dtype) / dtype(1 / window)
    for times in (computed, decimal, np.nextafter(decimal, dtype(0)), divided):
        assert steps(times, window) == number.tolist()
    halfway = ((number + 0.5) * window).astype(dtype)
    assert steps(halfway, window) == number.tolist()
    early = (number[1:] - 0.01) * window
    assert steps(early.astype(dtype), window) == (number[1:] - 1).tolist()


def test_a_float_window_of_low_precision():
    number = np.arange(1000)
    assert steps(number * 0.1, np.float32(0.1)) == number.tolist()
    assert steps(number, np.float32(1.0)) == number.tolist()
    assert steps(number * 33, 3.3, 10_000) == (10 * number).tolist()
    half = np.arange(64, dtype=np.float16) * np.float16(0.001)
    assert steps(half, 0.001) == list(range(64))


@pytest.mark.parametrize("dtype", ["<i8", ">i8", "<u8", "<m8[us]", "<M8[us]"])
def test_integer_times_are_divided_exactly(dtype):
    window = 10**15
    boundary = 1_700 * window  # nanoseconds since 1970, beyond the integers of a float64
    assert boundary > 2**53
    times = np.array([boundary - 1, boundary, boundary + 1]).astype(dtype)
    for given in (window, float(window)):
        assert steps(times, given, 2000) == [1699, 1700, 1700]
    assert steps(np.array([999, 1000], np.int16), 100_000) == [0, 0]
    assert steps(np.array([2**64 - 1], np.uint64), 2**62) == [3]


def test_the_ends_of_a_recording_with_float_times():
    below = np.array([0.3 - 3 * 0.1, 0.0, 99.9])  # -5.6e-17
    assert steps(below, 0.001, 10**5) == [0, 0, 99_900]
    with pytest.raises(ValueError, match="before time 0, at step -1: subtract"):
        steps(np.array([-1e-6, 0.5]), 0.001)
    ends = np.array([0.5, 0.9999, 0.7 + 0.2 + 0.1])  # the last is 0.9999999999999999
    with pytest.raises(ValueError, match="1 events beyond step 9, the last at step 10"):
        steps(ends, 0.1, 10)
    assert steps(ends, 0.1, 10, late="drop") == [5, 9]
    with pytest.raises(ValueError, match="2 events beyond step 9"):
        steps(np.array([1e300, 0.0, 1.0]), 1e-300, 10)


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
@pytest.mark.parametrize("late", ["raise", "drop"])
def test_times_that_are_not_finite(value, late):
    times = np.array([0.0, float(value)], np.float32)
    with pytest.raises(ValueError, match=f"recording 0 has the time {value} at event 1: remove"):
        steps(times, 0.1, late=late)


def test_times_that_are_not_numbers():
    with pytest.raises(TypeError, match="times of type object, but numbers.*convert the field t"):
        steps(np.array([1, 2], object), 1)
