"""Turns of a loop over time: the rows of ``U`` steps, loaded one turn ahead.

A kernel loads the rows of the next turn before it computes the steps of this turn. ptxas moves a
load down to the first use of its value, but not into the next turn: a turn waits for the memory
once, and for a part of the latency only. Where a turn loaded its own rows, ptxas mixed loads with
arithmetic, and a turn of 16 steps waited up to 14 times.

The first turn may be partial: its first steps do not exist. They load a row that exists, and are
skipped. All other turns are whole, and need no clamp. The last turn loads rows that are not used.
"""

import triton
import triton.language as tl

from .block import load_row


@triton.jit
def first_turn(T, U: tl.constexpr):
    """The step at which the first turn begins: 0, or less where it is partial."""
    return T - tl.cdiv(T, U) * U


@triton.jit
def first_turn_back(T, U: tl.constexpr):
    """The step at which the first turn backward in time begins: T - 1, or more."""
    return tl.cdiv(T, U) * U - 1


@triton.jit
def whole_turns(T, U: tl.constexpr):
    """The number of turns after the first one."""
    return tl.cdiv(T, U) - 1


@triton.jit
def load_first_turn(row, place, step, missing, U: tl.constexpr):
    """``U`` rows from ``row`` on, ``step`` elements apart; the first one ``missing`` times more."""
    _, lane, inside = place
    rows = ()
    for u in tl.static_range(U):
        rows = rows + (load_row(row, lane, inside),)
        row += tl.where(u < missing, 0, step)
    return rows


@triton.jit
def load_turn(row, place, step, U: tl.constexpr):
    """``U`` rows from ``row`` on, ``step`` elements apart."""
    _, lane, inside = place
    rows = ()
    for _ in tl.static_range(U):
        rows = rows + (load_row(row, lane, inside),)
        row += step
    return rows


@triton.jit
def load_next_turn(stream, place, t0, T, M, U: tl.constexpr):
    """The rows of the turn from step ``t0`` on; row 0 where there is none."""
    start, _, _ = place
    there = t0 < T
    row = tl.where(there, t0, 0).to(tl.int64)
    return load_turn(stream + start + row * M, place, tl.where(there, M, 0), U)
