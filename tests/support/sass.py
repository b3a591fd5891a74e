"""Memory round trips of the loops of an NVIDIA disassembly, as ``nvdisasm -c -hex`` prints it.

An instruction of unknown duration, as a load, sets one of six scoreboards of its warp. Others wait
for scoreboards. Both are in the control bits of each instruction. A turn of a loop makes one round
trip if its loads are in flight together, and a round trip for each load if every value is waited
for before the next load.
"""

from __future__ import annotations

import functools
import re
from typing import NamedTuple

LINE = r"\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)(.*);\s*/\* 0x([0-9a-f]{16}) \*/"
BRANCH = r"`\((\.L_x_\d+)\)"
WARM, COUNTED = 4, 8
SHORT = 25  # cycles of all that is not a load from global memory


class Instruction(NamedTuple):
    name: str
    operands: str
    target: str | None
    """The label of a branch."""
    stall: int
    """Cycles to the next instruction."""
    scoreboards: tuple[int, int]
    """Set until the result is there, and until the operands are read; 7 is none."""
    waits: int
    """A bit for each scoreboard."""


def read(text: str) -> tuple[list[Instruction], dict[str, int]]:
    """The instructions, and the index of the instruction behind each label."""
    found: list[Instruction] = []
    labels = {}
    lines = iter(text.splitlines())
    for line in lines:
        if label := re.match(r"(\.L_x_\d+):", line):
            labels[label.group(1)] = len(found)
        elif match := re.match(LINE, line):
            target = re.search(BRANCH, match.group(2))
            high = re.search(r"0x([0-9a-f]{16})", next(lines))
            assert high, line
            control = int(high.group(1), 16) >> 41
            scoreboards = control >> 5 & 7, control >> 8 & 7
            name, label_ = match.group(1), target and target.group(1)
            bits = control & 15, scoreboards, control >> 11 & 63
            found.append(Instruction(name, match.group(2), label_ or None, *bits))
    return found, labels


def loops(code: list[Instruction], labels: dict[str, int]) -> list[list[Instruction]]:
    """The bodies of the outermost loops that load from global memory."""
    spans: list[tuple[int, int]] = []
    for last, instruction in enumerate(code):
        first = labels.get(instruction.target or "", last)
        # The last instruction of a program is a branch to itself.
        if instruction.name.startswith("BRA") and first < last - 1:
            spans = [(a, b) for a, b in spans if a < first] + [(first, last)]
    bodies = [code[first : last + 1] for first, last in spans]
    return [body for body in bodies if any(i.name.startswith("LDG") for i in body)]


def _cycles(body: list[Instruction], latency: int) -> int:
    """Cycles of ``COUNTED`` turns of one warp, each instruction once."""
    ready = [0] * 8
    now = begin = 0
    for turn in range(WARM + COUNTED):
        if turn == WARM:
            begin = now
        for name, _, _, stall, (result, operands), waits in body:
            now = max(now, *(ready[i] for i in range(6) if waits >> i & 1), 0)
            done = now + (latency if name.startswith("LDG") else SHORT)
            ready[result] = max(ready[result], done)
            ready[operands] = max(ready[operands], now + SHORT)
            now += max(stall, 1)
    return now - begin


def round_trips(text: str) -> list[int]:
    """Memory round trips of one turn of each outermost loop that loads."""
    code, labels = read(text)
    low, high = 20_000, 40_000  # the trips dominate
    return [
        round((_cycles(body, high) - _cycles(body, low)) / (high - low) / COUNTED)
        for body in loops(code, labels)
    ]


@functools.cache
def _registers(operands: str) -> frozenset[int]:
    return frozenset(map(int, re.findall(r"\bR(\d+)\b", operands)))


def loads_not_waited_for(text: str) -> int:
    """Loads from global memory whose first use does not wait for the scoreboard of the load.

    There are none in working code: a number above 0 says that the control bits are read wrongly.
    Only straight code is followed.
    """
    code, _ = read(text)
    found = 0
    for i, load in enumerate(code):
        board = load.scoreboards[0]
        if not load.name.startswith("LDG."):
            continue
        first = min(_registers(load.operands.split(",")[0]), default=None)
        width = 4 if ".128" in load.name else 2 if ".64" in load.name else 1
        loaded = set() if first is None else set(range(first, first + width))
        waited = False
        for later in code[i + 1 :]:
            waited |= bool(later.waits >> board & 1)
            if later.name.startswith(("BRA", "EXIT", "RET")):
                break
            if loaded & _registers(later.operands):
                found += not waited
                break
    return found
