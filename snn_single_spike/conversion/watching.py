"""Modes that see the functions of torch between the layers, and not those inside of a neuron."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch.overrides import TorchFunctionMode

__all__ = ["Watching"]


class Watching(TorchFunctionMode):
    """A mode that pauses while a neuron runs."""

    def __init__(self) -> None:
        super().__init__()
        self._paused = False

    @contextmanager
    def paused(self) -> Iterator[None]:
        before, self._paused = self._paused, True
        try:
            yield
        finally:
            self._paused = before
