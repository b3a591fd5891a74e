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


def write_shd(folder: Path, train: int = 12, test: int = 5) -> Path:
    import h5py

    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(0)
    for part, size in (("train", train), ("test", test)):
        with h5py.File(folder / f"shd_{part}.h5", "w") as file:
            times = file.create_dataset("spikes/times", (size,), h5py.vlen_dtype(np.float16))
            units = file.create_dataset("spikes/units", (size,), h5py.vlen_dtype(np.uint16))
            for i in range(size):
                length = int(random.integers(20, 60))
                times[i] = np.sort(random.random(length) * 1.2).astype(np.float16)
                units[i] = random.integers(0, 700, length)
            file["labels"] = np.arange(size) % 20
    return folder
