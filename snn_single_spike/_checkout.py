"""Makes ``snn_single_spike.kernels`` importable in a source checkout."""

from __future__ import annotations

import sys
from importlib.machinery import ModuleSpec
from importlib.util import module_from_spec
from pathlib import Path

_NAME = f"{__package__}.kernels"


def expose_kernels() -> None:
    """Register the checkout's ``kernels/`` folder, which lies beside this package.

    A wheel holds the folder inside the package, where Python finds it by itself. Nothing else of a
    checkout becomes importable through this package.
    """
    folder = Path(__file__).parent.parent / "kernels"
    if _NAME in sys.modules or not (folder / "triton").is_dir():
        return
    spec = ModuleSpec(_NAME, None, is_package=True)
    spec.submodule_search_locations = [str(folder)]
    sys.modules[_NAME] = module_from_spec(spec)
