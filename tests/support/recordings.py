"""Writes files in the published formats of datasets, for tests of the readers."""

import gzip
import struct
from pathlib import Path

import numpy as np


def write_idx(path: Path, array: np.ndarray) -> Path:
    """An IDX file of bytes, gzipped if the name says so."""
    path.parent.mkdir(parents=True, exist_ok=True)
    data = struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
    data += array.astype(np.uint8).tobytes()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def write_images(folder: Path, train: int = 30, test: int = 10, suffix: str = "") -> Path:
    """A small MNIST or Fashion-MNIST."""
    random = np.random.default_rng(0)
    for prefix, size in (("train", train), ("t10k", test)):
        images = random.integers(0, 256, (size, 28, 28))
        write_idx(folder / f"{prefix}-images-idx3-ubyte{suffix}", images)
        write_idx(folder / f"{prefix}-labels-idx1-ubyte{suffix}", np.arange(size) % 10)
    return folder


def write_nmnist_recording(path: Path, t, x, y, p) -> Path:
    """One recording. Overflows of 2^13 us are marked as by the sensor."""
    path.parent.mkdir(parents=True, exist_ok=True)
    data, overflows = bytearray(), 0
    for time, column, row, polarity in zip(t, x, y, p, strict=True):
        while time - (overflows << 13) >= 1 << 23:
            data += bytes((0, 240, 0, 0, 0))
            overflows += 1
        time -= overflows << 13
        data += bytes((column, row, polarity << 7 | time >> 16, time >> 8 & 255, time & 255))
    path.write_bytes(bytes(data))
    return path


def events(number: int, size: int = 200, duration: int = 310_000):
    """Random events t, x, y, p of an N-MNIST recording."""
    random = np.random.default_rng(number)
    t = np.sort(random.integers(0, duration, size))
    x, y = random.integers(0, 34, (2, size))
    return t.tolist(), x.tolist(), y.tolist(), random.integers(0, 2, size).tolist()


def write_nmnist(folder: Path, train: int = 20, test: int = 10) -> Path:
    for part, size, first in (("Train", train, 0), ("Test", test, 1000)):
        for i in range(size):
            path = folder / part / str(i % 10) / f"{i:05}.bin"
            write_nmnist_recording(path, *events(first + i))
    return folder


def write_hsd(folder: Path, name: str, train: int = 12, test: int = 5) -> Path:
    """A small SHD or SSC."""
    import h5py

    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(0)
    for part, size in (("train", train), ("test", test)):
        with h5py.File(folder / f"{name}_{part}.h5", "w") as file:
            times = file.create_dataset("spikes/times", (size,), h5py.vlen_dtype(np.float16))
            units = file.create_dataset("spikes/units", (size,), h5py.vlen_dtype(np.uint16))
            for i in range(size):
                length = int(random.integers(20, 60))
                times[i] = np.sort(random.random(length) * 1.2).astype(np.float16)
                units[i] = random.integers(0, 700, length)
            file["labels"] = np.arange(size) % 20
            file["extra/keys"] = np.array([b"zero"])
            file["extra/speaker"] = np.zeros(size, np.uint16)
    return folder


def _sensor_events(seed: int, sensor: tuple[int, int, int], duration: int, size: int = 60):
    """Random events t, x, y, p in the order of their times, as columns."""
    random = np.random.default_rng(seed)
    columns = [np.sort(random.integers(3, duration, size))]
    return columns + [random.integers(0, extent, size) for extent in sensor]


def write_dvs_gesture(folder: Path) -> Path:
    for part, users in (("Train", (2, 1)), ("Test", (3,))):
        for user in users:
            for label in (10, 0, 3):
                path = folder / f"ibmGesture{part}" / f"user{user:02}_led" / f"{label}.npy"
                path.parent.mkdir(parents=True, exist_ok=True)
                t, x, y, p = _sensor_events(100 * user + label, (128, 128, 2), 4000)
                np.save(path, np.stack((x, y, p, t), 1).astype(np.float64))  # milliseconds
    return folder


def write_poker_dvs(folder: Path) -> Path:
    for part, numbers in (("train", (0, 1, 2)), ("test", (3, 4))):
        for i, suit in enumerate(("cl", "sp", "he", "di")):
            for number in numbers:
                path = folder / f"pips_{part}" / suit / f"{number}.npy"
                path.parent.mkdir(parents=True, exist_ok=True)
                columns = _sensor_events(10 * i + number, (35, 35, 2), 30_000)
                np.save(path, np.stack(columns, 1))
    return folder


def write_n_caltech101(folder: Path, classes: tuple[str, ...] = ("yin_yang", "ant")) -> Path:
    for i, name in enumerate(classes):
        for number in range(5):
            path = folder / "Caltech101" / name / f"image_{number:04}.bin"
            t, x, y, p = _sensor_events(10 * i + number, (230, 170, 2), 310_000)
            x[0], y[0] = 0, 0  # tonic moves the smallest coordinates to 0
            write_nmnist_recording(path, *(column.tolist() for column in (t, x, y, p)))
    return folder


def write_asl_dvs(folder: Path) -> Path:
    from scipy.io import savemat

    for letter in "ya":
        for number in range(5):
            path = folder / letter / f"{letter}_{number:04}.mat"
            path.parent.mkdir(parents=True, exist_ok=True)
            columns = _sensor_events(ord(letter) + number, (240, 180, 2), 90_000)
            names = ("ts", "x", "y", "pol")
            savemat(path, {n: c[:, None] for n, c in zip(names, columns, strict=True)})
    return folder
