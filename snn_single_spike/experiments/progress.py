"""Progress of a run on the terminal."""

from __future__ import annotations

from typing import Any

from .config import Config


class Silent:
    """Shows nothing: for calls from Python, and for all processes but the main one."""

    def __enter__(self) -> Silent:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def begin(self, description: str, done: int) -> None:
        """Called before the first batch, with the number of batches done before a resume."""

    def batch(self, epoch: int, done: int, figures: dict[str, float]) -> None:
        """Called after some batches of an epoch."""

    def epoch(self, record: dict[str, Any]) -> None:
        """Called after an epoch."""

    def end(self, message: str) -> None:
        """Called when the run has finished and is written."""


class Terminal(Silent):
    """
    Shows a bar with loss, accuracy, spikes and speed, and prints a line per epoch.

    :param batches: batches in an epoch
    """

    def __init__(self, config: Config, batches: int) -> None:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeRemainingColumn,
        )

        self.config, self.batches = config, batches
        self.console = Console()
        self.bars = Progress(
            BarColumn(bar_width=10),
            MofNCompleteColumn(),
            TextColumn("{task.fields[figures]}"),
            TimeRemainingColumn(),
            console=self.console,
        )
        self.task: Any = None

    def __enter__(self) -> Terminal:
        self.bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bars.stop()

    def begin(self, description: str, done: int) -> None:
        self.console.print(description, highlight=False, soft_wrap=True)
        total = self.batches * self.config.epochs
        self.task = self.bars.add_task("batch", total=total, completed=done, figures="")

    def batch(self, epoch: int, done: int, figures: dict[str, float]) -> None:
        self.bars.update(
            self.task, completed=(epoch - 1) * self.batches + done, figures=summary(figures)
        )

    def epoch(self, record: dict[str, Any]) -> None:
        # The printed line has the figures of the whole epoch
        self.bars.update(self.task, completed=record["epoch"] * self.batches, figures="")
        self.console.print(
            f"epoch {record['epoch']:>3}/{self.config.epochs}  "
            f"train {summary(record, 'train_')}  "
            f"[bold]test {summary(record, 'test_')}[/bold]  {record['train_seconds']:.1f} s",
            highlight=False,
            soft_wrap=True,
        )

    def end(self, message: str) -> None:
        self.console.print(message, highlight=False, soft_wrap=True)


def summary(figures: dict[str, Any], prefix: str = "") -> str:
    text = (
        f"loss {figures[prefix + 'loss']:.4f}, {figures[prefix + 'accuracy']:.2%}, "
        f"{figures[prefix + 'spikes']:.1f} spikes"
    )
    speed = figures.get(prefix + "samples_per_second")
    return text + (f", {speed:,.0f} samples/s" if speed else "")
