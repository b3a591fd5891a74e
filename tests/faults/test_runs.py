"""Runs that are killed, run out of disk, share a folder, or whose files are damaged."""

import os
import random
import time

import pytest
import torch

from snn_single_spike.experiments import ExperimentError, checkpoint, datasets, record, training

from tests.support.faults import flipped, kill_after, needs_fork, result_of, start
from tests.support.recordings import write_nmnist
from tests.support.runs import recorded, same, settings, state, without_times

pytest.importorskip("sklearn", reason="scikit-learn has the digits")
pytestmark = pytest.mark.faults

EPOCHS = "6"


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    """As in the forked processes, so that sums have the same order."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def whole(tmp_path_factory, _one_thread):
    """The folder of an uninterrupted run, and its seconds."""
    folder = tmp_path_factory.mktemp("whole")
    train(folder, "1")  # compiles
    begin = time.perf_counter()
    train(folder)
    return folder, time.perf_counter() - begin


def resumes(folder):
    return (folder / checkpoint.NAME).exists()


def train(folder, epochs=EPOCHS):
    return training.train(settings(epochs=epochs), folder, resume=resumes(folder))


def check_equal(folder, whole):
    assert same(state(folder), state(whole))
    assert without_times(recorded(folder).history) == without_times(recorded(whole).history)
    names = {path.name for path in folder.iterdir()}
    assert names == {checkpoint.NAME, checkpoint.PREVIOUS, record.NAME}


@needs_fork
@pytest.mark.parametrize("seed", range(3))
def test_a_run_that_is_killed_resumes_bit_for_bit(seed, whole, tmp_path):
    folder, seconds = whole
    moments, killed = random.Random(seed), 0
    for _ in range(4):
        process, _ = start(train, tmp_path)
        killed += kill_after(moments.uniform(0, seconds / 2), process)
    assert killed
    process, connection = start(train, tmp_path)
    assert len(result_of(process, connection)) == int(EPOCHS)
    check_equal(tmp_path, folder)


@needs_fork
def test_a_disk_that_fills_keeps_the_checkpoint(whole, tmp_path):
    resource = pytest.importorskip("resource")
    train(tmp_path, "2")
    before = (tmp_path / checkpoint.NAME).read_bytes()

    def without_room(size):
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
        return train(tmp_path)

    for size in (0, 600, len(before) - 1):
        process, connection = start(without_room, size)
        error = result_of(process, connection)
        assert isinstance(error, ExperimentError), error
        assert "cannot be written" in str(error)
        assert (tmp_path / checkpoint.NAME).read_bytes() == before
        assert not list(tmp_path.glob(".checkpoint*"))
    process, connection = start(train, tmp_path)
    result_of(process, connection)
    check_equal(tmp_path, whole[0])


def test_a_checkpoint_with_changed_bytes_is_refused(whole, tmp_path):
    train(tmp_path, "3")
    path, previous = tmp_path / checkpoint.NAME, tmp_path / checkpoint.PREVIOUS
    content = path.read_bytes()
    places = [*range(0, len(content), len(content) // 25), len(content) - 1]
    for length in (1, 20):
        for place in places:
            path.write_bytes(flipped(content, place, length))
            with pytest.raises(ExperimentError, match="is corrupt") as raised:
                checkpoint.restore(tmp_path, None, None, None)  # before anything is loaded
            assert f"{previous} is the checkpoint before it, and intact" in str(raised.value)
            assert path.read_bytes() == flipped(content, place, length)
    with pytest.raises(ExperimentError, match="is corrupt"):
        train(tmp_path)
    with pytest.raises(ExperimentError, match="holds a run"):
        training.train(settings(), tmp_path)
    os.replace(previous, path)  # the way back
    assert len(state(tmp_path)["position"]["history"]) == 2
    process, connection = start(train, tmp_path)
    result_of(process, connection)
    check_equal(tmp_path, whole[0])


def test_two_damaged_checkpoints(tmp_path):
    train(tmp_path, "2")
    for name in (checkpoint.NAME, checkpoint.PREVIOUS):
        path = tmp_path / name
        path.write_bytes(flipped(path.read_bytes(), 1000, 4))
    with pytest.raises(ExperimentError, match="is corrupt: .* restore the file, or start a new"):
        train(tmp_path)
    (tmp_path / checkpoint.NAME).unlink()
    with pytest.raises(ExperimentError, match=r"there is no checkpoint\.pt\. restore the file"):
        training.train(settings(), tmp_path, resume=True)


@needs_fork
def test_two_runs_in_one_folder(whole, tmp_path):
    both = [start(train, tmp_path) for _ in range(2)]
    results = sorted((result_of(*each) for each in both), key=lambda found: type(found).__name__)
    refused = [found for found in results if isinstance(found, ExperimentError)]
    assert len(refused) == 1, results
    assert "training now" in str(refused[0]) or "holds a run" in str(refused[0])
    check_equal(tmp_path, whole[0])


def test_a_cache_of_events_with_changed_bytes_is_made_again(tmp_path):
    recordings, cache = write_nmnist(tmp_path / "NMNIST"), tmp_path / "cache"

    def load():
        sets = datasets.load("nmnist", 300, data=recordings, cache=cache)
        return [each.batch(torch.arange(len(each))).to_dense() for each in (sets.train, sets.test)]

    first = load()
    for path in cache.iterdir():
        content = path.read_bytes()
        for place in range(0, len(content), len(content) // 12):
            path.write_bytes(flipped(content, place, 8))
            assert all(map(torch.equal, load(), first))
