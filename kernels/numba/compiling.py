"""Compiles the loops, and numbers their options."""

from __future__ import annotations

import functools
import hashlib
from pathlib import Path
from typing import Any

import numba

from .cache import CheckedCache, warn_of_no_cache

SUBTRACT, ZERO_BEFORE, ZERO_AFTER = 1, 2, 3
RESETS = {"none": 0, "subtract": SUBTRACT, "zero_before": ZERO_BEFORE, "zero_after": ZERO_AFTER}
MASKED, PRE_SPIKE, STRAIGHT_THROUGH, NO_RULE = range(4)
RULES = {
    "masked": MASKED,
    "pre_spike": PRE_SPIKE,
    "straight_through": STRAIGHT_THROUGH,
    "none": NO_RULE,
}
FREE, SPIKED, RESET_NOW = 1, 2, 4  # bits of a phase, as in backends/_types.py
SUM, MAX, LAST = range(3)
REDUCTIONS = {"sum": SUM, "max": MAX, "last": LAST}


_FILES = sorted(Path(__file__).parent.glob("*.py"))
_DIGEST = hashlib.sha256(b"".join(path.read_bytes() for path in _FILES)).hexdigest()[:8]


def compiled(function: Any, **options: Any) -> Any:
    """Compile a loop on its first call, with a cache if the process can write one."""
    # Numba's cache detects changes of the file of the loop only. The digest in the name detects
    # changes of all other files.
    function.__qualname__ += f"_{_DIGEST}"
    options |= {"nogil": True, "error_model": "numpy"}
    loop = numba.njit(**options)(function)
    try:
        loop._cache = CheckedCache(function)  # as njit(cache=True) does with numba's own class
    except (RuntimeError, OSError):
        warn_of_no_cache()
    return loop


inlined = numba.njit(forceinline=True, error_model="numpy")

# Numba copies the statements of a part into its caller before type inference, so the part needs no
# separate compilation.
part_of_caller = numba.njit(inline="always", error_model="numpy")

# Numba counts references to array arguments with atomic instructions, which take longer than a row.
# A function that allocates no arrays does not need the counts.
helper = functools.partial(compiled, _nrt=False)
inlined_helper = functools.partial(compiled, _nrt=False, forceinline=True)
