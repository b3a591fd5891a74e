"""Atomic writes: a file holds either its old or its new content, never a part."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

from . import ExperimentError


def write_atomically(path: Path, write: Callable[[IO[bytes]], Any]) -> None:
    """
    Write a temporary file beside `path`, flush it to the disk, and rename it.

    :param write: called with the open file
    :raises ExperimentError: the folder cannot be written to, or the disk is full
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except OSError as error:
        raise ExperimentError(
            f"{path} cannot be written ({error.strerror or error}): free some space, or choose "
            "another folder"
        ) from None
    finally:
        if temporary.exists():
            temporary.unlink()


def remove_leftovers(folder: Path) -> None:
    """Remove the temporary files of interrupted writes."""
    for path in folder.glob(".*.[0-9]*"):
        path.unlink(missing_ok=True)


def write_bytes(path: Path, data: bytes) -> None:
    """
    Write the whole content of a file.

    :raises ExperimentError: as :func:`write_atomically`
    """
    write_atomically(path, lambda file: file.write(data))


def _sync_folder(folder: Path) -> None:
    """Flush the rename to the disk. Windows cannot open a folder."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
