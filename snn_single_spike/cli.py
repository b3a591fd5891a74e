"""The command line, ``snn-single-spike``."""

from __future__ import annotations

import argparse
import ast
import importlib.util
import os
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

# What each command imports beyond the core installation: module and package
_EXTRAS = {
    "demo": {"sklearn": "scikit-learn", "rich": "rich", "matplotlib": "matplotlib"},
    "train": {"pydantic": "pydantic", "rich": "rich", "filelock": "filelock"},
    "report": {"pydantic": "pydantic", "matplotlib": "matplotlib"},
}
_INTERRUPTED = 130  # exit status of a shell's command after Ctrl-C
_NO_READER = 141  # and of one that writes to a pipe without a reader


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} must be at least 1")
    return value


def _seed(text: str) -> int:
    value = int(text)
    if not 0 <= value < 2**32:
        raise argparse.ArgumentTypeError(f"{value} must be between 0 and 2^32 - 1")
    return value


def _target(text: str) -> tuple[Path, str]:
    file, _, name = text.rpartition(":")
    if not file.endswith(".py") or not name.isidentifier():
        raise argparse.ArgumentTypeError(f"{text!r} must be FILE.py:CLASS, such as net.py:Net")
    if not Path(file).is_file():
        raise argparse.ArgumentTypeError(f"{file} is not a file")
    return Path(file), name


def _argument(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals or not name.isidentifier():
        raise argparse.ArgumentTypeError(f"{text!r} must be NAME=VALUE, such as hidden=100")
    try:
        return name, ast.literal_eval(value)
    except (SyntaxError, ValueError):
        return name, value


def _shape(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(size) for size in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} must be sizes, such as 100,4,784") from None


def parser(train_flags: bool = True) -> argparse.ArgumentParser:
    """The parser of all commands; the flags of `train` need its packages."""
    out = argparse.ArgumentParser(
        prog="snn-single-spike", description="Single-spike layers for snnTorch."
    )
    out.add_argument(
        "--version", action="version", version=f"%(prog)s {version('snn-single-spike')}"
    )
    commands = out.add_subparsers(dest="command", required=True, metavar="COMMAND")
    commands.add_parser(
        "info", help="show versions, devices, and which backend each device uses and why"
    )
    demo = commands.add_parser(
        "demo",
        help="train a single-spike network beside the same network in a loop over time",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    demo.add_argument("--epochs", type=_positive, default=25, help="passes over the data")
    demo.add_argument("--num-steps", type=_positive, default=50, help="time steps per sample")
    demo.add_argument(
        "--seed", type=_seed, default=0, help="seed of weights, sample order and split"
    )
    demo.add_argument(
        "--out", type=Path, default=Path("single_spike_demo.png"), help="file of the figure"
    )
    train = commands.add_parser(
        "train",
        help="train a network on one of the papers' datasets",
        description="A setting is taken from its flag, the file of --config, the recipe of the "
        "dataset, or the default below, in this order. On several GPUs: torchrun "
        "--nproc-per-node 2 --no-python snn-single-spike train ...",
    )
    train.add_argument(
        "--config",
        type=Path,
        metavar="FILE",
        help="settings as TOML or JSON, or the run.jsonl of a run",
    )
    train.add_argument(
        "--out", type=Path, metavar="DIR", help="folder of the run (default: in runs/)"
    )
    train.add_argument("--resume", type=Path, metavar="RUN", help="resume the run in this folder")
    if train_flags:
        from .experiments.sources import add_flags

        add_flags(train)
    explain = commands.add_parser(
        "explain",
        help="say what convert() would do with a snnTorch model, for each loop and each neuron",
        description="The file is run as a module, and the class is made with its defaults. The "
        "exit status is 0 if the model converts.",
    )
    explain.add_argument(
        "target", type=_target, metavar="FILE.py:CLASS", help="a class, or a function that makes it"
    )
    explain.add_argument(
        "--arg",
        type=_argument,
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="an argument of the class, a Python literal or else a string; may be repeated",
    )
    explain.add_argument(
        "--input",
        type=_shape,
        action="append",
        default=[],
        metavar="SIZES",
        help="run a converted copy on a random input of this shape, such as 100,4,784",
    )
    page = commands.add_parser("report", help="write one page with tables and figures from runs")
    page.add_argument(
        "runs", type=Path, nargs="+", metavar="RUN", help="folders of runs, or run.jsonl files"
    )
    page.add_argument(
        "--out", type=Path, default=Path("report"), metavar="DIR", help="folder of the page"
    )
    return out


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command. The output may go to a program that ends before it, such as ``head``."""
    try:
        status = _run(arguments)
    except SystemExit:  # as --help does
        if not _has_lost_reader():
            raise
    except BrokenPipeError:  # of the output, or of a process that trains
        if not _has_lost_reader("\n"):
            raise
    else:
        if not _has_lost_reader():
            return status
    return _NO_READER


def _has_lost_reader(probe: str = "") -> bool:
    """Whether nobody reads the output any more, which is then discarded."""
    try:
        print(end=probe, flush=True)
    except BrokenPipeError:
        # Python flushes the output again when it ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return True
    return False


def _run(arguments: Sequence[str] | None) -> int:
    given = list(sys.argv[1:] if arguments is None else arguments)
    command = given[0] if given else ""
    absent = [
        package
        for module, package in _EXTRAS.get(command, {}).items()
        if not importlib.util.find_spec(module)
    ]
    if absent:
        return _fail(f"{command} needs {', '.join(absent)}: pip install {' '.join(absent)}")
    options = parser(train_flags=command == "train").parse_args(given)
    run = {"info": _info, "demo": _demo, "train": _train, "explain": _explain, "report": _report}
    return run[options.command](options)


def _info(options: argparse.Namespace) -> int:
    from .info import report

    print(report())
    return 0


def _train(options: argparse.Namespace) -> int:
    from .experiments import ExperimentError, sources, training
    from .experiments.config import Config
    from .experiments.progress import Terminal

    flags = {name: value for name, value in vars(options).items() if name in Config.model_fields}
    out: Path = options.resume
    try:
        if options.resume is None:
            settings = sources.make(flags, options.config)
            name = f"{settings.dataset}-{settings.neuron}-{settings.gradient}-{settings.seed}"
            out = options.out or Path("runs") / name
        elif options.config or options.out:
            return _fail("--resume RUN reuses settings and folder: omit --config and --out")
        else:
            settings = sources.resumed(out, flags)
        training.train(
            settings,
            out,
            resume=options.resume is not None,
            show=lambda batches: Terminal(settings, batches),
        )
    except ExperimentError as error:
        return _fail(str(error))
    except training.Interrupted as error:
        return _fail(f"{error}; to resume: snn-single-spike train --resume {out}", _INTERRUPTED)
    except KeyboardInterrupt:
        return _fail("interrupted; nothing was saved", _INTERRUPTED)
    return 0


def _explain(options: argparse.Namespace) -> int:
    import torch

    from .conversion.api import explain

    path, name = options.target
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # as an import does
    sys.path.insert(0, str(path.parent.resolve()))
    try:
        spec.loader.exec_module(module)
        make = getattr(module, name, None)
        if not callable(make):
            return _fail(f"{path} has no class {name}")
        model = make(**dict(options.arg))
    except Exception as error:
        missing = isinstance(error, TypeError) and "argument" in str(error)
        advice = ". Pass it with --arg NAME=VALUE" if missing else ""
        return _fail(f"{path}:{name} cannot be made: {type(error).__name__}: {error}{advice}")
    finally:
        sys.path.pop(0)
    try:
        report = explain(model, *map(torch.rand, options.input))
    except TypeError as error:  # not a module
        return _fail(f"{path}:{name}: {error}")
    print(report)
    return 0 if report.converts else 1


def _report(options: argparse.Namespace) -> int:
    from .experiments import ExperimentError
    from .experiments.report import write

    try:
        print(write(options.runs, options.out))
    except ExperimentError as error:
        return _fail(str(error))
    return 0


def _demo(options: argparse.Namespace) -> int:
    # Checked before training
    if options.out.is_dir() or not options.out.parent.is_dir():
        return _fail(f"--out {options.out}: must be a file in an existing folder")
    if options.out.suffix.lower() not in (".png", ".pdf", ".svg"):
        return _fail(f"--out {options.out}: the name must end in .png, .pdf or .svg")
    from .experiments import demo

    try:
        demo.run(options.epochs, options.num_steps, options.seed, options.out)
    except KeyboardInterrupt:
        return _fail("interrupted")
    return 0


def _fail(message: str, code: int = 1) -> int:
    print(f"snn-single-spike: {message}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
