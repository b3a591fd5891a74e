"""What the pieces of the GPU benchmarks share: their options, their machine, and their figures."""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

import torch

__all__ = ["save", "started"]


def started(doc: str, smoke: str) -> tuple[Path | None, dict[str, str]]:
    """Reads the options of a piece: the file of its figures, and the machine it runs on.

    Without a GPU only ``--smoke`` runs, which does ``smoke`` in Triton's interpreter.
    """
    import triton  # after the piece has chosen the interpreter

    parser = argparse.ArgumentParser(description=doc.splitlines()[0])
    parser.add_argument("--smoke", action="store_true", help="tiny, interpreted, without a GPU")
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    options = parser.parse_args()
    if not options.smoke and not torch.cuda.is_available():
        parser.error(f"no GPU found; --smoke {smoke} in Triton's interpreter")
    name = "interpreter" if options.smoke else torch.cuda.get_device_name()
    print(f"{name}, torch {torch.__version__}, triton {triton.__version__}")
    machine = {"gpu": name, "torch": torch.__version__, "triton": triton.__version__}
    return options.out, machine


def save(path: Path | None, content: dict[str, Any]) -> None:
    """Write JSON beside the file and rename it, so that a stop leaves the cells before."""
    if path is None:
        return
    temporary = path.with_name(f".{path.name}.new")
    temporary.write_text(json.dumps(content, indent=1) + "\n")
    os.replace(temporary, path)
