"""Figures of one piece of the GPU benchmarks, on the disk after every cell."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any


def save(path: Path | None, content: dict[str, Any]) -> None:
    """Write JSON beside the file and rename it, so that a stop leaves the cells before."""
    if path is None:
        return
    temporary = path.with_name(f".{path.name}.new")
    temporary.write_text(json.dumps(content, indent=1) + "\n")
    os.replace(temporary, path)
