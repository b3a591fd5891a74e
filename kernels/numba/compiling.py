"""How loops are compiled, and the numbers that encode options in them."""

from __future__ import annotations

import functools
import hashlib
from pathlib import Path
from typing import Any

import numba

SUBTRACT, ZERO_BEFORE, ZERO_AFTER = 1, 2, 3
RESETS = {"none": 0, "subtract": SUBTRACT, "zero_before": ZERO_BEFORE, "zero_after": ZERO_AFTER}
MASKED, PRE_SPIKE, STRAIGHT_THROUGH, NO_RULE = range(4)
RULES = {
    "masked": MASKED,
    "pre_spike": PRE_SPIKE,
    "straight_through": STRAIGHT_THROUGH,
    "none": NO_RULE,
}
SUM, MAX, LAST = range(3)
REDUCTIONS = {"sum": SUM, "max": MAX, "last": LAST}


_FILES = sorted(Path(__file__).parent.glob("*.py"))
_DIGEST = hashlib.sha256(b"".join(path.read_bytes() for path in _FILES)).hexdigest()[:8]


def compiled(function: Any, **options: Any) -> Any:
    """Compile a loop, in numba's cache if there is one."""
    # The cache sees changes of the loop's own file, and not of those that it calls: so they are
    # in the name that it is filed under.
    function.__qualname__ += f"_{_DIGEST}"
    options |= {"nogil": True, "error_model": "numpy"}
    try:
        return numba.njit(cache=True, **options)(function)
    except RuntimeError:  # nowhere to write a cache: compile again in every process
        return numba.njit(**options)(function)


inlined = numba.njit(forceinline=True, error_model="numpy")

# Numba copies the statements into the caller before it infers types, so that a part of a loop, or a
# single expression, takes no compilation of its own.
part_of_caller = numba.njit(inline="always", error_model="numpy")

# Numba counts references to the arrays among the arguments, with atomic instructions that take
# longer than a row. Functions that allocate no arrays need no counts.
helper = functools.partial(compiled, _nrt=False)
inlined_helper = functools.partial(compiled, _nrt=False, forceinline=True)
