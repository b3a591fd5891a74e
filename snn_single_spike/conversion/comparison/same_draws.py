"""The same random numbers in a loop over time, and in one call for all of its steps.

A folded model draws `(T * B, ...)` numbers at once where a loop draws `(B, ...)` at every step.
:class:`FoldedDraws` draws the rows of each step on their own, from a seed of that draw and step.
:class:`StepDraws` draws from the same seeds, step after step. So networks with random numbers can
be compared exactly.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from ..refusals.chance import generator_of, is_random, wrong_size
from ..source.place import user_line

__all__ = ["FoldedDraws", "StepDraws"]

Place = tuple[int, int, int]
"""The number of a loop over time, its steps and its batch; the steps are 0 outside of loops."""


class _Seeded(TorchDispatchMode):
    """Seeds every draw, and sets the generators back at the end."""

    supports_higher_order_operators = True

    def __init__(self) -> None:
        super().__init__()
        self._before: list[tuple[torch.Generator, Tensor]] = []

    def __exit__(self, *exception: Any) -> None:
        super().__exit__(*exception)
        for generator, state in reversed(self._before):
            generator.set_state(state)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        generator = generator_of(args, kwargs) if is_random(func) else None
        if generator is None:
            return func(*args, **kwargs)
        self._before.append((generator, generator.get_state()))
        return self._draw(func, args, kwargs, generator)

    def _draw(self, func: Any, args: Any, kwargs: Any, generator: torch.Generator) -> Any:
        raise NotImplementedError


def _seeded(
    key: tuple[int, int], generator: torch.Generator, func: Any, args: Any, kwargs: Any
) -> tuple[Any, bool]:
    """What an operator returns, and whether it has drawn: dropout with p=0 has not."""
    draw, step = key
    generator.manual_seed(1_000_003 * draw + step + 1)
    before = generator.get_state()
    out = func(*args, **kwargs)
    return out, not torch.equal(before, generator.get_state())


class FoldedDraws(_Seeded):
    """Draws of all steps at once.

    :param place: returns where the model is
    """

    def __init__(self, model: Any, place: Callable[[], Place]) -> None:
        super().__init__()
        self.model, self.place = model, place
        self.order: list[Place] = []

    def _draw(self, func: Any, args: Any, kwargs: Any, generator: torch.Generator) -> Any:
        draw, place = len(self.order), self.place()
        whole, has_drawn = _seeded((draw, 0), generator, func, args, kwargs)
        self.order.append(place)
        _, num_steps, batch = place
        if not (num_steps and has_drawn):
            return whole
        shape = next(x.shape for x in tree_leaves(whole) if isinstance(x, Tensor))
        if _dimension(shape, num_steps * batch) is None:
            where = user_line(sys._getframe(), self.model)
            raise wrong_size(where, tuple(shape), num_steps * batch)

        def rows(x: Any, step: int) -> Any:
            return _rows_of_step(x, step, num_steps, num_steps * batch)

        parts = [
            _seeded(
                (draw, step),
                generator,
                func,
                [rows(x, step) for x in args],
                {name: rows(x, step) for name, x in kwargs.items()},
            )[0]
            for step in range(num_steps)
        ]
        written = [x for x in (*args, *kwargs.values()) if isinstance(x, Tensor)]

        def joined(x: Any, *xs: Any) -> Any:
            if any(x is argument for argument in written):
                return x  # the parts are views of it
            return _joined(x, xs, num_steps * batch)

        return tree_map(joined, whole, *parts)


def _dimension(shape: Iterable[int], rows: int) -> int | None:
    """The first dimension with an entry for each row, or several."""
    return next((d for d, size in enumerate(shape) if size and rows and size % rows == 0), None)


def _rows_of_step(x: Any, step: int, num_steps: int, rows: int) -> Any:
    """The part of an argument that belongs to one step: a part of a tensor, or of a size."""
    if isinstance(x, Tensor):
        dim = _dimension(x.shape, rows)
        if dim is None:
            return x
        size = x.shape[dim] // num_steps
        return x.narrow(dim, step * size, size)
    if isinstance(x, (list, tuple)) and all(type(size) is int for size in x):
        dim = _dimension(x, rows)
        return [size // num_steps if d == dim else size for d, size in enumerate(x)]
    return x


def _joined(whole: Any, parts: Sequence[Any], rows: int) -> Any:
    if not isinstance(whole, Tensor):
        return whole
    dim = _dimension(whole.shape, rows)
    return parts[-1] if dim is None else torch.cat(list(parts), dim)


class StepDraws(_Seeded):
    """Draws of a loop over time.

    :param order: where the folded model has drawn
    """

    def __init__(self, order: Sequence[Place]) -> None:
        super().__init__()
        self._keys = list(_keys(order))[::-1]
        self._expected = len(self._keys)
        self.drawn = 0

    def _draw(self, func: Any, args: Any, kwargs: Any, generator: torch.Generator) -> Any:
        key = self._keys[-1] if self._keys else (-1, self.drawn)
        self.drawn += 1
        del self._keys[-1:]
        return _seeded(key, generator, func, args, kwargs)[0]

    @property
    def difference(self) -> str:
        """How the number of draws differs; "" if it does not."""
        if self.drawn == self._expected:
            return ""
        return f"the loop draws random numbers {self.drawn} times, not {self._expected} times"


def _keys(order: Sequence[Place]) -> Iterator[tuple[int, int]]:
    """Draws and steps, in the order in which a loop comes to them."""
    for (_, num_steps, _), group in itertools.groupby(enumerate(order), lambda pair: pair[1]):
        draws = [draw for draw, _ in group]
        yield from (
            itertools.product(draws, [0])
            if not num_steps
            else ((draw, step) for step in range(num_steps) for draw in draws)
        )
