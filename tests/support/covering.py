"""Tables of cases in which every value of one choice meets every value of all others."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence


def spread(values: Sequence[str], *choices: Iterable[str]) -> list[tuple[str, ...]]:
    """
    The product of ``choices``, each row with one of ``values`` at its end.

    Every value occurs together with every value of each choice in some row.
    """
    missing = {
        (value, column, choice)
        for value in values
        for column, column_choices in enumerate(choices)
        for choice in column_choices
    }
    rows = []
    for row in itertools.product(*choices):
        places = list(enumerate(row))
        best = max(values, key=lambda value: len(missing & {(value, *at) for at in places}))
        missing -= {(best, *at) for at in places}
        rows.append((*row, best))
    assert not missing, f"too few rows: {sorted(missing)}"
    return rows
