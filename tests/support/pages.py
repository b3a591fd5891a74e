"""The Markdown pages: their Python blocks, sections and links."""

from __future__ import annotations

import linecache
import re
from pathlib import Path
from typing import Any

import torch

from tests.support.devices import ROOT

PAGES = sorted(
    [
        *(*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")),
        *(ROOT / "benchmarks" / "NOTES.md", ROOT / "examples" / "README.md"),
    ]
)


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def blocks_of(text: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", text, re.S | re.M)


def sections_of(text: str) -> dict[str, str]:
    """Text of the second-level sections by title."""
    return dict(re.findall(r"^## (.*?)\n(.*?)(?=^## |\Z)", text, re.M | re.S))


def run_blocks(blocks: list[str], **given: Any) -> dict[str, Any]:
    """The names that the blocks leave behind, run in order as one program."""
    torch.manual_seed(0)
    space = dict(given)
    for block in blocks:
        execute(block, space)
    return space


def execute(code: str, space: dict[str, Any]) -> None:
    """Run code whose source Python can show, as a notebook does."""
    name = f"<block {hash(code)}>"
    linecache.cache[name] = (len(code), None, code.splitlines(keepends=True), name)
    exec(compile(code, name, "exec"), space)


def anchors_of(text: str) -> set[str]:
    """The anchors that GitHub gives to the headings of a page."""
    prose = re.sub(r"^```.*?^```", "", text, flags=re.S | re.M)
    headings = re.findall(r"^#+ (.*)$", prose, re.M)
    return {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings}


def links_of(text: str) -> list[str]:
    """Targets of the relative links of a page."""
    prose = re.sub(r"^```.*?^```", "", text, flags=re.S | re.M)
    targets = re.findall(r"\]\(([^)\s]+)\)", prose)
    return [target for target in targets if not re.match(r"[a-z]+:", target)]
