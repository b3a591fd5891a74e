"""The state of a run in one file, from which it goes on as if it had not stopped."""

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
    """Where in the training a run is. The order of the samples follows from seed and epoch."""

    history: list[dict[str, Any]]
    """Metrics of the completed epochs."""
    batch: int
    """Batches of the next epoch that are done, too."""
    totals: list[float] | None
    """Sums over these batches."""
    seconds: float
    """Time these batches took."""


def after(history: list[dict[str, Any]]) -> Position:
    """The position between two epochs."""
    return {"history": history, "batch": 0, "totals": None, "seconds": 0.0}


def save(
    folder: Path, network: nn.Module, optimizer: torch.optim.Optimizer, position: Position
) -> None:
    """
    Write the checkpoint of a run; an interrupted write leaves the one before.

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
    Bring network, optimizer and random numbers to the state of the checkpoint.

    :raises ExperimentError: no checkpoint, or one that is corrupt or of another network
    """
    path = folder / NAME
    if not path.is_file():
        raise ExperimentError(
            f"--resume {folder}: there is no {NAME}; give the folder of a run that was begun, or, "
            "if it was stopped before its first epoch ended, train again with the same --out"
        )
    try:
        state = torch.load(path, map_location=device, weights_only=True)
        if state["format"] != _FORMAT:
            raise ExperimentError(
                f"{path} has format {state['format']}, but this version reads {_FORMAT}: go on "
                "with the version that wrote it, or train anew"
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
            f"{path} is corrupt or of another network ({reason}): bring the file back, or train "
            "anew with another --out"
        ) from None
    return position


def _set_random(state: Tensor, cuda: list[Tensor]) -> None:
    torch.set_rng_state(state.cpu())
    if len(cuda) and torch.cuda.is_available() and len(cuda) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all([one.cpu() for one in cuda])
