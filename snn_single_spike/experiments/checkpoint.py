"""The state of a run in one file. A run resumed from it equals an uninterrupted one.

torch.load reads the file, which ends with a checksum. The checkpoint before it is kept.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import pickle
import zipfile
from pathlib import Path
from typing import IO, Any, TypedDict

import torch
from torch import Tensor, nn

from . import ExperimentError
from .files import write_atomically, write_bytes

NAME = "checkpoint.pt"
PREVIOUS = "checkpoint-previous.pt"
_FORMAT = 1
_LABEL = b"\nsha256 "  # torch.load ignores what follows its file


class Position(TypedDict):
    """The position of a run in its training. Seed and epoch give the order of the samples."""

    history: list[dict[str, Any]]
    """Metrics of the completed epochs."""
    batch: int
    """Completed batches of the next epoch."""
    totals: list[float] | None
    """Sums over these batches."""
    seconds: float
    """Seconds spent on these batches."""


def after(history: list[dict[str, Any]]) -> Position:
    """The position between two epochs."""
    return {"history": history, "batch": 0, "totals": None, "seconds": 0.0}


def save(
    folder: Path, network: nn.Module, optimizer: torch.optim.Optimizer, position: Position
) -> None:
    """
    Write the checkpoint of a run, and keep the one before it as `checkpoint-previous.pt`. An
    interrupted write changes neither.

    :raises ExperimentError: the folder cannot be written to
    """
    state = {
        "format": _FORMAT,
        "network": network.state_dict(),
        "optimizer": optimizer.state_dict(),
        # Some surrogates draw random numbers
        "random": torch.get_rng_state(),
        "random_cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "position": dict(position),
    }
    content = io.BytesIO()
    torch.save(state, content)

    def write(file: IO[bytes]) -> None:
        file.write(sealed(content.getvalue()))
        file.flush()
        os.fsync(file.fileno())
        _keep_previous(folder)  # now the new checkpoint only needs its name

    write_atomically(folder / NAME, write)


def _keep_previous(folder: Path) -> None:
    """Give the checkpoint a second name. It has its first name all the time."""
    path, previous = folder / NAME, folder / PREVIOUS
    if not path.is_file():
        return
    temporary = previous.with_name(f".{PREVIOUS}.{os.getpid()}")
    try:
        os.link(path, temporary)
        os.replace(temporary, previous)
    except OSError:  # a file system without links
        write_bytes(previous, path.read_bytes())
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def sealed(content: bytes) -> bytes:
    """The content, followed by its checksum."""
    return content + _LABEL + hashlib.sha256(content).hexdigest().encode()


def _intact(path: Path) -> bytes | None:
    """The content of a file whose checksum matches; None if it does not."""
    content, label, _ = (whole := path.read_bytes()).rpartition(_LABEL)
    return content if label and sealed(content) == whole else None


def _way_back(folder: Path) -> str:
    """How to resume without the checkpoint, as the end of a message."""
    previous = folder / PREVIOUS
    with contextlib.suppress(OSError):
        if _intact(previous) is not None:
            return (
                f"{previous} is the checkpoint before it, and intact: rename it to {NAME}, and "
                "resume again"
            )
    return "restore the file, or start a new run with another --out"


def restore(
    folder: Path, network: nn.Module, optimizer: torch.optim.Optimizer, device: torch.device
) -> Position:
    """
    Restore network, optimizer and random state from the checkpoint.

    :raises ExperimentError: the checkpoint is missing, corrupt or of another network
    """
    path = folder / NAME
    if not path.is_file():
        if (folder / PREVIOUS).is_file():
            raise ExperimentError(f"--resume {folder}: there is no {NAME}. {_way_back(folder)}")
        raise ExperimentError(
            f"--resume {folder}: there is no {NAME}; give the folder of a run, or, if the run was "
            "stopped before its first epoch ended, start it again with the same --out"
        )
    try:
        content = _intact(path)
    except OSError as error:
        raise ExperimentError(
            f"{path} cannot be read ({error.strerror or error}). {_way_back(folder)}"
        ) from None
    if content is None:
        raise ExperimentError(
            f"{path} is corrupt: its checksum does not match its content. {_way_back(folder)}"
        )
    try:
        state = torch.load(io.BytesIO(content), map_location=device, weights_only=True)
        if state["format"] != _FORMAT:
            raise ExperimentError(
                f"{path} has format {state['format']}, but this version reads {_FORMAT}: "
                "resume with the version that wrote it, or start a new run"
            )
        network.load_state_dict(state["network"])
        optimizer.load_state_dict(state["optimizer"])
        position: Position = state["position"]
        _set_random(state["random"], state["random_cuda"])
    except (
        RuntimeError,
        KeyError,
        TypeError,
        ValueError,
        EOFError,
        pickle.UnpicklingError,
        zipfile.BadZipFile,
    ) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ExperimentError(
            f"{path} is of another network or another version ({reason}): restore the file, or "
            "start a new run with another --out"
        ) from None
    return position


def _set_random(state: Tensor, cuda: list[Tensor]) -> None:
    torch.set_rng_state(state.cpu())
    if len(cuda) and torch.cuda.is_available() and len(cuda) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all([one.cpu() for one in cuda])
