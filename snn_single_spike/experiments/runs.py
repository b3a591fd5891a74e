"""Recorded runs, and groups of runs that differ only in their seed."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import ExperimentError, record
from .config import Config
from .sources import make


@dataclass
class Run:
    """A recorded run."""

    name: str
    config: Config
    facts: dict[str, Any]
    history: list[dict[str, Any]]
    raster: dict[str, Any] | None

    @property
    def last(self) -> dict[str, Any]:
        return self.history[-1]

    @property
    def seconds(self) -> float:
        """Median training time of an epoch, without the first one, which also compiles."""
        times = [metrics["train_seconds"] for metrics in self.history]
        return statistics.median(times[1:] or times)

    @property
    def place(self) -> tuple[Any, ...]:
        """Where the run trained. Times from different places are not compared."""
        return tuple(self.facts[key] for key in ("machine", "threads", "processes"))


def read_runs(path: Path) -> list[Run]:
    """
    Read the runs that a file records.

    :param path: the file, or the folder of a run
    :raises ExperimentError: no such file, the file is damaged, or no epoch is finished
    """
    runs = []
    for found in record.read(path):
        if not found.history:
            raise ExperimentError(
                f"{path} has no finished epoch: wait for the first one, or resume the run"
            )
        try:
            config = make(found.settings)
        except ExperimentError as error:
            raise ExperimentError(f"{path}: {error}") from None
        runs.append(Run(str(path), config, found.facts, found.history, found.raster))
    if len(runs) > 1:
        for number, run in enumerate(runs, 1):
            run.name += f", {number}"
    return runs


@dataclass
class Group:
    """Runs that differ only in their seed."""

    runs: list[Run]
    label: str = ""

    @property
    def config(self) -> Config:
        return self.runs[0].config

    def values(self, of: Callable[[Run], float]) -> list[float]:
        return [of(run) for run in self.runs]

    @property
    def accuracy(self) -> float:
        return statistics.mean(self.values(lambda run: 100 * run.last["test_accuracy"]))

    @property
    def spikes(self) -> float:
        return statistics.mean(self.values(lambda run: run.last["test_spikes"]))

    @property
    def seconds(self) -> float:
        return statistics.median(self.values(lambda run: run.seconds))

    @property
    def raster(self) -> dict[str, Any] | None:
        """The raster of the first finished run."""
        return next((run.raster for run in self.runs if run.raster), None)

    @property
    def places(self) -> set[tuple[Any, ...]]:
        return {run.place for run in self.runs}
