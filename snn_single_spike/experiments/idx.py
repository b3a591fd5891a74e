"""Reader of IDX files, the format of MNIST and Fashion-MNIST, plain or gzipped."""

from __future__ import annotations

import gzip
import math
import zlib
from pathlib import Path

import numpy as np

from . import ExperimentError

_UNSIGNED_BYTE = 0x08


def read_idx(path: Path, dimensions: int) -> np.ndarray:
    """
    Read the array of bytes in an IDX file.

    :param dimensions: 3 for images, 1 for labels
    :raises ExperimentError: another format; a truncated or corrupt file; a wrong length
    """
    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:  # gzip's own error is an OSError
        raise ExperimentError(
            f"{path} cannot be read ({error}), it may be truncated or corrupt: fetch it again"
        ) from None
    header = 4 + 4 * dimensions
    magic = bytes((0, 0, _UNSIGNED_BYTE, dimensions))
    if len(data) < header or data[:4] != magic:
        raise ExperimentError(
            f"{path} starts with {data[:4].hex() or 'nothing'}, but an IDX file of bytes in "
            f"{dimensions} dimensions starts with {magic.hex()}: it is another file, fetch it "
            "again"
        )
    shape = tuple(int(n) for n in np.frombuffer(data, ">u4", dimensions, 4))
    if len(data) != header + math.prod(shape):
        raise ExperimentError(
            f"{path} has {len(data)} bytes (uncompressed), but its header announces "
            f"{header + math.prod(shape)}, an array of shape {shape}: it is truncated or corrupt, "
            "fetch it again"
        )
    return np.frombuffer(data, np.uint8, offset=header).reshape(shape)
