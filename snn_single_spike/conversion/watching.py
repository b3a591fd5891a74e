"""Modes that see the functions of torch between the layers, and not those inside of a neuron."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch.overrides import TorchFunctionMode, _get_current_function_mode

__all__ = ["Watching"]


class Watching(TorchFunctionMode):
    """A mode that pauses while a neuron runs."""

    def __init__(self) -> None:
        super().__init__()
        self._paused = False
        self.watches = True
        """Whether the mode is in use."""

    @contextmanager
    def paused(self) -> Iterator[None]:
        # Torch calls a mode at every function and property of a tensor. The user's code may have
        # entered another mode since, such as a device, and only the innermost one can be left.
        innermost = _get_current_function_mode() is self
        before, self._paused = self._paused, True
        if innermost:
            self.__exit__(None, None, None)
        try:
            yield
        finally:
            self._paused = before
            if innermost:
                self.__enter__()
