"""The command line, ``snn-single-spike``."""

from __future__ import annotations

import argparse
import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path

_DEMO_PACKAGES = {"sklearn": "scikit-learn", "rich": "rich", "matplotlib": "matplotlib"}


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is not a positive number")
    return value


def parser() -> argparse.ArgumentParser:
    out = argparse.ArgumentParser(
        prog="snn-single-spike", description="Single-spike layers for snnTorch."
    )
    commands = out.add_subparsers(dest="command", required=True, metavar="COMMAND")
    commands.add_parser("info", help="versions, devices, and which backend would run and why")
    demo = commands.add_parser(
        "demo",
        help="train a single-spike network next to the same one in a time loop",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    demo.add_argument("--epochs", type=_positive, default=25, help="passes over the data")
    demo.add_argument("--steps", type=_positive, default=50, help="time steps per sample")
    demo.add_argument("--seed", type=int, default=0, help="weights, order and split of the data")
    demo.add_argument(
        "--out", type=Path, default=Path("single_spike_demo.png"), help="where the figure goes"
    )
    return out


def main(arguments: Sequence[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    if options.command == "info":
        from .info import report

        print(report())
        return 0
    absent = [
        package
        for module, package in _DEMO_PACKAGES.items()
        if not importlib.util.find_spec(module)
    ]
    if absent:
        return _fail(f"the demo needs {', '.join(absent)}: pip install {' '.join(absent)}")
    # Before the training, not after it
    if options.out.is_dir() or not options.out.parent.is_dir():
        return _fail(f"--out {options.out}: not a file in an existing folder")
    if options.out.suffix.lower() not in (".png", ".pdf", ".svg"):
        return _fail(f"--out {options.out}: end the name in .png, .pdf or .svg")
    from . import demo

    try:
        demo.run(options.epochs, options.steps, options.seed, options.out)
    except KeyboardInterrupt:
        return _fail("interrupted")
    return 0


def _fail(message: str) -> int:
    print(f"snn-single-spike: {message}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
