"""Metrics of a run as JSON lines, and for TensorBoard."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from . import ExperimentError
from .files import write_bytes

NAME = "metrics.jsonl"


class MetricsLog:
    """
    One line for each epoch.

    :param folder: of the run
    :param history: what the file is to hold at first; lines beyond it, of epochs that a
        checkpoint does not know, are dropped
    :param tensorboard: write files for TensorBoard beside it
    :raises ExperimentError: TensorBoard is not installed, or the folder cannot be written to
    """

    def __init__(self, folder: Path, history: list[dict[str, Any]], tensorboard: bool) -> None:
        self.writer = None
        if tensorboard:
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError:
                raise ExperimentError(
                    "--tensorboard needs tensorboard: pip install tensorboard"
                ) from None
            self.writer = SummaryWriter(str(folder), purge_step=len(history) + 1)
        self.path = folder / NAME
        text = "".join(json.dumps(record) + "\n" for record in history)
        write_bytes(self.path, text.encode())

    def write(self, record: dict[str, Any]) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
        if self.writer:
            for name, value in record.items():
                if name != "epoch":
                    self.writer.add_scalar(name.replace("_", "/", 1), value, record["epoch"])
            self.writer.flush()

    def __enter__(self) -> MetricsLog:
        return self

    def __exit__(self, *_: object) -> None:
        if self.writer:
            self.writer.close()
