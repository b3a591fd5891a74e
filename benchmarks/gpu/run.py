"""Everything that a GPU can show, in one command and within twelve minutes.

    python benchmarks/gpu/run.py [--out gpu.json]

The pieces are the files `*_gpu.py` of this folder. `check` comes first: it compares every kernel
with plain torch. The others time layers and scripts. Each piece runs in a process of its own, so a
piece that fails or hangs costs only its share of the time. The results so far are in the file
after every piece. A second run with the same `--out` runs what is missing; `--again` runs all.

`--only check linear` runs some pieces, `--list` shows them. `--quick --device cpu` runs the same
path on tiny shapes, with Triton's interpreter, as a test of the command.
"""

from __future__ import annotations

import argparse
import ast
import json
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # run as a file, from any folder

import torch

from benchmarks.gpu.results import save
from benchmarks.harness import machine

SUFFIX = "_gpu"
FIRST = "check"


def pieces() -> dict[str, str]:
    """Name and first line of the description of every piece, in the order of the run."""
    found = {}
    for path in sorted(Path(__file__).parent.glob(f"*{SUFFIX}.py")):
        text = ast.get_docstring(ast.parse(path.read_text())) or ""
        found[path.stem.removesuffix(SUFFIX)] = text.partition("\n")[0]
    return dict(sorted(found.items(), key=lambda item: item[0] != FIRST))


def run_piece(name: str, quick: bool, seconds: float, figures: Path) -> dict[str, Any]:
    """Run a piece; its figures so far are kept if it fails or takes longer than its seconds."""
    command = [sys.executable, "-m", f"benchmarks.gpu.{name}{SUFFIX}", "--out", str(figures)]
    command += ["--smoke"] if quick else []
    start = time.perf_counter()
    process = subprocess.Popen(command, cwd=ROOT)
    try:
        code = process.wait(seconds)
        state = "done" if code == 0 else f"failed with status {code}"
    except subprocess.TimeoutExpired:
        state = f"stopped after {seconds:.0f} s"
    finally:
        process.kill()
        process.wait()
    taken = round(time.perf_counter() - start, 1)
    content = json.loads(figures.read_text()) if figures.is_file() else {}
    return {"state": state, "seconds": taken, "figures": content}


def run(names: list[str], out: Path, minutes: float, quick: bool, again: bool) -> dict[str, Any]:
    """The results of the pieces. `out` has those of the pieces that have ended."""
    results: dict[str, Any] = {"machine": machine.describe(), "quick": quick, "pieces": {}}
    if out.is_file() and not again:
        results["pieces"] = json.loads(out.read_text())["pieces"]
    done = results["pieces"]
    waiting = [name for name in names if done.get(name, {}).get("state") != "done"]
    end = time.monotonic() + 60 * minutes
    with tempfile.TemporaryDirectory() as folder:
        while waiting:
            name = waiting.pop(0)
            share = (end - time.monotonic()) / (len(waiting) + 1)
            if share < 1:
                print(f"no time left for {', '.join([name, *waiting])}: run the command again")
                break
            print(f"\n== {name}: {pieces()[name]} (at most {share:.0f} s)", flush=True)
            done[name] = run_piece(name, quick, share, Path(folder) / f"{name}.json")
            save(out, results)
    return results


def main() -> int:
    known = pieces()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--out", type=Path, help="the results (default: gpu-<name of the GPU>.json)"
    )
    parser.add_argument("--only", nargs="+", choices=known, default=list(known), metavar="PIECE")
    parser.add_argument("--minutes", type=float, default=12, help="time of all pieces")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--quick", action="store_true", help="tiny shapes")
    parser.add_argument("--again", action="store_true", help="run finished pieces again")
    parser.add_argument("--list", action="store_true", help="show the pieces, and end")
    options = parser.parse_args()
    if options.list:
        for name, text in known.items():
            print(f"{name:12s}{text}")
        return 0
    if options.device == "cpu" and not options.quick:
        parser.error("--device cpu needs --quick: Triton's interpreter is slow")
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("no GPU found; --device cpu --quick tests the command on a CPU")
    if options.device == "cuda" and options.quick:
        parser.error("--quick is for --device cpu; on a GPU run some pieces by --only")
    card = "cpu" if options.quick else torch.cuda.get_device_name().replace(" ", "-")
    out = (options.out or Path(f"gpu-{card}.json")).resolve()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        results = run(options.only, out, options.minutes, options.quick, options.again)
    except KeyboardInterrupt:
        print(f"\nstopped; {out} has the pieces before, and the same command runs the others")
        return 130
    print()
    for name, piece in results["pieces"].items():
        print(f"{name:12s}{piece['seconds']:8.1f} s  {piece['state']}")
    print(f"\nresults: {out}; docs/gpu-day.md says where to send them")
    return int(any(piece["state"] != "done" for piece in results["pieces"].values()))


if __name__ == "__main__":
    sys.exit(main())
