"""Numba's cache of compiled loops: damaged files, and folders that cannot be written."""

import errno
import warnings
from pathlib import Path

import pytest

numba = pytest.importorskip("numba")

from numba.core import caching  # noqa: E402

from snn_single_spike.kernels.numba import cache, compiling  # noqa: E402


@pytest.fixture(autouse=True)
def _folder(tmp_path, monkeypatch):
    """A cache folder, and a process that has not warned."""
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path / "cache"))
    cache._warn_once.cache_clear()


def new_loop():
    """A loop as in a new process: nothing of it is compiled."""

    def add_one(x):
        return x + 1

    return compiling.compiled(add_one)


def hits(loop):
    return sum(loop.stats.cache_hits.values())


def files(tmp_path, ending):
    return sorted(tmp_path.glob(f"cache/**/*.{ending}"))


def fill(tmp_path):
    assert new_loop()(1) == 2
    (index,), (code,) = files(tmp_path, "nbi"), files(tmp_path, "nbc")
    loop = new_loop()
    assert loop(1) == 2
    assert hits(loop) == 1
    return {"nbi": index, "nbc": code}


def damages(content):
    yield b""
    for length in (1, 10, len(content) // 2, len(content) - 1):
        yield content[:length]
    yield bytes(len(content))
    for start in range(0, len(content), len(content) // 16):
        yield (
            content[:start]
            + bytes(b ^ 0xFF for b in content[start : start + 16])
            + content[start + 16 :]
        )


@pytest.mark.parametrize("ending", ["nbi", "nbc"])
def test_damaged_files_are_replaced(ending, tmp_path):
    path = fill(tmp_path)[ending]
    content = path.read_bytes()
    warned = 0
    for damaged in damages(content):
        path.write_bytes(damaged)
        cache._warn_once.cache_clear()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            assert [new_loop()(1), new_loop()(1.5)] == [2, 2.5]
        assert len(caught) <= 1
        warned += len(caught)
        assert all("cannot read numba's cache in" in str(w.message) for w in caught)
        again = new_loop()
        assert (again(1), again(1.5), hits(again)) == (2, 2.5, 2)
    assert warned > 10


def test_code_of_other_types_is_not_run(tmp_path):
    """Two processes that write at once may give the files of two types one name."""
    loop = new_loop()
    assert (loop(1), loop(1.5)) == (2, 2.5)
    one, other = files(tmp_path, "nbc")
    one.write_bytes(other.read_bytes())
    loop = new_loop()
    assert (loop(1), loop(1.5)) == (2, 2.5)
    assert hits(loop) == 1


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS])
def test_a_full_disk(number, tmp_path, monkeypatch):
    def full(self, data):
        raise OSError(number, "no space")

    monkeypatch.setattr(caching.IndexDataCacheFile, "_dump", full)
    with pytest.warns(
        UserWarning, match="cannot write numba's cache in .*Set NUMBA_CACHE_DIR"
    ) as w:
        assert [new_loop()(1), new_loop()(2)] == [2, 3]
    assert len(w) == 1
    monkeypatch.undo()
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path / "cache"))
    fill(tmp_path)  # with space again, the cache is written


def test_no_folder_can_be_written(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path / "file"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    monkeypatch.setenv("HOME", str(tmp_path / "file"))
    with pytest.warns(UserWarning, match="finds no folder for numba's cache") as caught:
        assert [new_loop()(1), new_loop()(2)] == [2, 3]
    assert len(caught) == 1


def test_the_cache_is_in_the_folder_of_the_user(tmp_path, monkeypatch):
    monkeypatch.setattr(numba.config, "CACHE_DIR", "")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user"))
    loop = new_loop()
    assert Path(loop._cache.cache_path).is_relative_to(tmp_path / "user")
    assert loop(1) == 2
    assert list(tmp_path.glob("user/**/*.nbc"))


def test_code_of_other_sources_is_not_run(tmp_path, monkeypatch):
    fill(tmp_path)
    monkeypatch.setattr(compiling, "_DIGEST", "another")
    loop = new_loop()
    assert (loop(1), hits(loop)) == (2, 0)
