"""The state of a run in one file. A run resumed from it equals an uninterrupted one."""

from __future__ import annotations

import pickle
import zipfile
from pathlib import Path
from typing import Any, TypedDict

import torch
from torch import Tensor, nn

from . import ExperimentError
from .files import write_atomically

NAME = "checkpoint.pt"
_FORMAT = 1


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
    Write the checkpoint of a run. An interrupted write keeps the previous checkpoint.

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
    write_atomically(folder / NAME, lambda file: torch.save(state, file))


def restore(
    folder: Path, network: nn.Module, optimizer: torch.optim.Optimizer, device: torch.device
) -> Position:
    """
    Restore network, optimizer and random state from the checkpoint.

    :raises ExperimentError: the checkpoint is missing, corrupt or of another network
    """
    path = folder / NAME
    if not path.is_file():
        raise ExperimentError(
            f"--resume {folder}: there is no {NAME}; give the folder of a run, or, if the run was "
            "stopped before its first epoch ended, start it again with the same --out"
        )
    try:
        state = torch.load(path, map_location=device, weights_only=True)
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
        EOFError,
        OSError,
        pickle.UnpicklingError,
        zipfile.BadZipFile,
    ) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ExperimentError(
            f"{path} is corrupt or of another network ({reason}): restore the file, or start "
            "a new run with another --out"
        ) from None
    return position


def _set_random(state: Tensor, cuda: list[Tensor]) -> None:
    torch.set_rng_state(state.cpu())
    if len(cuda) and torch.cuda.is_available() and len(cuda) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all([one.cpu() for one in cuda])
