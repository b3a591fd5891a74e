"""Numba's cache of compiled loops, in the user's folder, and safe from damaged files."""

from __future__ import annotations

import functools
import hashlib
import pickle
import warnings
from typing import Any

from numba.core.caching import CompileResultCacheImpl, FunctionCache
from numba.core.serialize import dumps

_SLOW = "the loops are compiled in this process, which takes up to a minute"


@functools.cache
def _warn_once(problem: str, fix: str) -> None:
    """Warn once in a process, not once for each of the loops."""
    warnings.warn(f"snn_single_spike {problem}: {_SLOW}. {fix}", stacklevel=2)


_ELSEWHERE = "Set NUMBA_CACHE_DIR to a folder that can be written"


def warn_of_no_cache() -> None:
    """Warn that no folder for a cache can be written."""
    _warn_once("finds no folder for numba's cache", _ELSEWHERE)


class _CheckedImplementation(CompileResultCacheImpl):
    """Compiled code with a checksum. It lies in NUMBA_CACHE_DIR or in the user's cache folder.

    Numba's default is the folder of the source. Files of the cache would be left behind there when
    the package is uninstalled, and Python would import the folder that they keep.
    """

    _locator_classes = [  # noqa: RUF012
        locator
        for locator in CompileResultCacheImpl._locator_classes
        if "InTree" not in locator.__name__
    ]

    def reduce(self, data: Any) -> tuple[bytes, bytes]:
        code = dumps(super().reduce(data))
        return hashlib.sha256(code).digest(), code

    def rebuild(self, target_context: Any, reduced_data: tuple[bytes, bytes]) -> Any:
        digest, code = reduced_data
        if hashlib.sha256(code).digest() != digest:
            raise ValueError("the compiled code does not match its checksum")
        return super().rebuild(target_context, pickle.loads(code))


class CheckedCache(FunctionCache):
    """A cache whose damaged files are replaced, and whose folder may be full or read-only."""

    _impl_class = _CheckedImplementation

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        """The compiled loop; None if there is none, or if a file of the cache is damaged."""
        try:
            found = super().load_overload(sig, target_context)
        except Exception as error:  # a damaged file raises nearly every type
            problem = f"cannot read numba's cache in {self.cache_path} ({_described(error)})"
            _warn_once(problem, "The damaged files are replaced where they can be")
            return None
        # Two processes that write at once may give the files of two types one name.
        return found if found is None or tuple(found.signature.args) == tuple(sig) else None

    def save_overload(self, sig: Any, data: Any) -> None:
        """Write the compiled loop, over a damaged file too."""
        try:
            try:
                super().save_overload(sig, data)
            except OSError:
                raise
            except Exception:  # a damaged index
                self.flush()
                super().save_overload(sig, data)
        except Exception as error:
            problem = f"cannot write numba's cache in {self.cache_path} ({_described(error)})"
            _warn_once(problem, _ELSEWHERE)


def _described(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".removesuffix(": ")
