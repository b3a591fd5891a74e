"""Files that are either the old or the new, whenever the writing stops."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

from . import ExperimentError


def write_atomically(path: Path, write: Callable[[IO[bytes]], Any]) -> None:
    """
    Write beside `path`, to the disk itself, then rename.

    :param write: is given the open file
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
    """What writing left of files in a folder, that was killed."""
    for path in folder.glob(".*.[0-9]*"):
        path.unlink(missing_ok=True)


def write_bytes(path: Path, data: bytes) -> None:
    """
    The whole content of a file.

    :raises ExperimentError: as :func:`write_atomically`
    """
    write_atomically(path, lambda file: file.write(data))


def _sync_folder(folder: Path) -> None:
    """So that the rename is on the disk, too. Windows cannot open a folder."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
