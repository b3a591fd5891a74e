"""The record of a run: one file of JSON lines, and optionally files for TensorBoard.

The first line holds the settings and facts such as the machine. Each further line holds the
metrics of an epoch. The last line of a finished run holds the hidden spikes of a test sample.
Several records may follow each other in one file, for example those of the seeds of one setting:
`cat runs/a-0/run.jsonl runs/a-1/run.jsonl > a.jsonl`.

Every line ends with a checksum of its content and of the lines of its run before it, so that a
changed figure or a missing line is found. A run without checksums is read as it is.
"""

from __future__ import annotations

import hashlib
import json
import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from . import ExperimentError
from .files import write_bytes

NAME = "run.jsonl"

logger = logging.getLogger("snn_single_spike")


@dataclass
class Record:
    """What is written about a run."""

    settings: dict[str, Any]
    facts: dict[str, Any]
    """Data, machine, threads, processes, versions."""
    history: list[dict[str, Any]] = field(default_factory=list)
    """Metrics of each epoch."""
    raster: dict[str, Any] | None = None

    def lines(self) -> list[dict[str, Any]]:
        end = [] if self.raster is None else [{"raster": self.raster}]
        return [{"settings": self.settings, **self.facts}, *self.history, *end]


def read(path: Path) -> list[Record]:
    """
    Read the records in a file.

    :param path: the file, or the folder of a run
    :raises ExperimentError: there is no such file, or it is damaged
    """
    file = path / NAME if path.is_dir() else path
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        raise _not_a_run(path) from None
    records: list[Record] = []
    chain = ""
    for number, text in enumerate(lines, 1):
        try:
            line = json.loads(text)
            chain = _checked(line, "" if "settings" in line else chain)
            if "settings" in line:
                records.append(Record(line.pop("settings"), line))
            elif "raster" in line:
                records[-1].raster = line["raster"]
            else:
                line["test_accuracy"]  # of an epoch
                records[-1].history.append(line)
        except (ValueError, TypeError, KeyError, IndexError) as error:
            raise ExperimentError(
                f"{file} is damaged in line {number} ({error}): restore the file, or rewrite that "
                f"of a run by snn-single-spike train --resume {file.parent}"
            ) from None
    if not records:
        raise ExperimentError(f"{file} is empty: give the {NAME} of a run")
    return records


def read_header(path: Path) -> Record:
    """
    Settings and facts of the first record. Later lines are not read, and may be damaged.

    :param path: the file, or the folder of a run
    :raises ExperimentError: there is no such file, or its first line is damaged
    """
    file = path / NAME if path.is_dir() else path
    try:
        with file.open(encoding="utf-8") as lines:
            header = json.loads(lines.readline())
        _checked(header, "")
        return Record(header.pop("settings"), header)
    except OSError:
        raise _not_a_run(path) from None
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ExperimentError(
            f"{file} is damaged in line 1, which holds the settings ({error}): restore the file, "
            "or start a new run. To change settings, copy them to a .json or .toml file"
        ) from None


def warn_of_changes(folder: Path, history: list[dict[str, Any]]) -> None:
    """Warn if the record of a run is not that of its checkpoint, which replaces it on resume."""
    try:
        found = [metrics for one in read(folder)[-1:] for metrics in one.history]
        if json.dumps(found) == json.dumps(history):
            return
        reason = f"{folder / NAME} has {len(found)} epochs"
        if len(found) == len(history):
            reason += " with other figures"
    except ExperimentError as error:
        reason = str(error).partition(": restore")[0]
    logger.warning("%s: it is rewritten from the checkpoint, of %d epochs", reason, len(history))


def _not_a_run(path: Path) -> ExperimentError:
    """The error of a path without a record."""
    return ExperimentError(
        f"{path} is not a run: there is no {path / NAME if path.suffix != '.jsonl' else path}. "
        "Give the folder that train wrote, or a copy of its " + NAME
    )


def _checksum(line: dict[str, Any], chain: str) -> str:
    """The checksum of a line behind lines with the checksum ``chain``."""
    return hashlib.sha256((chain + json.dumps(line)).encode()).hexdigest()[:16]


def _checked(line: dict[str, Any], chain: str) -> str:
    """Remove the checksum of a line, and return it; ValueError if it does not match."""
    found = line.pop("checksum", "")
    if (found or chain) and found != _checksum(line, chain):
        raise ValueError("its checksum does not match")
    return str(found)


class Log:
    """
    Writes the record of a run, epoch by epoch.

    :param folder: of the run
    :param record: written first; replaces what the file held before
    :param tensorboard: also write files for TensorBoard
    :raises ExperimentError: TensorBoard is not installed, or the folder cannot be written to
    """

    def __init__(self, folder: Path, record: Record, tensorboard: bool) -> None:
        self.writer = None
        if tensorboard:
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError:
                raise ExperimentError(
                    "--tensorboard needs tensorboard: pip install tensorboard"
                ) from None
            self.writer = SummaryWriter(str(folder), purge_step=len(record.history) + 1)
        self.path = folder / NAME
        self._chain = ""
        write_bytes(self.path, "".join(map(self._text, record.lines())).encode())

    def epoch(self, metrics: dict[str, Any]) -> None:
        self._append(metrics)
        if self.writer:
            for name, value in metrics.items():
                if name != "epoch":
                    self.writer.add_scalar(name.replace("_", "/", 1), value, metrics["epoch"])
            self.writer.flush()

    def end(self, raster: dict[str, Any]) -> None:
        self._append({"raster": raster})

    def _append(self, line: dict[str, Any]) -> None:
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(self._text(line))
        except OSError as error:
            raise ExperimentError(
                f"{self.path} cannot be written ({error.strerror or error}): free some space, and "
                f"resume by snn-single-spike train --resume {self.path.parent}"
            ) from None

    def _text(self, line: dict[str, Any]) -> str:
        """The next line of the file, with its checksum."""
        line = json.loads(json.dumps(line))  # as a reader finds it
        self._chain = _checksum(line, self._chain)
        return json.dumps({**line, "checksum": self._chain}) + "\n"

    def __enter__(self) -> Log:
        return self

    def __exit__(self, *_: object) -> None:
        if self.writer:
            self.writer.close()
