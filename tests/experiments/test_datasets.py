"""Datasets: the content of their files, and the errors of unusable files."""

import gzip
import os
import re
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from snn_single_spike import SpikeEvents
from snn_single_spike.experiments import ExperimentError, datasets, idx, yinyang
from snn_single_spike.experiments import events as recorded

from tests.support.devices import ROOT, SHARED
from tests.support.recordings import (
    events,
    write_idx,
    write_images,
    write_nmnist,
    write_nmnist_recording,
    write_shd,
)

FASHION, NMNIST = SHARED / "data" / "FashionMNIST" / "raw", SHARED / "data" / "NMNIST"


# Yin-Yang


def published_samples(size, seed):
    """The definition of Kriener et al., written independently from their description."""
    random = np.random.RandomState(seed)
    samples, classes = [], []
    for _ in range(size):
        goal = random.randint(3)
        while True:
            x, y = random.rand(2)
            right = np.sqrt((x - 0.75) ** 2 + (y - 0.5) ** 2)
            left = np.sqrt((x - 0.25) ** 2 + (y - 0.5) ** 2)
            yin = right <= 0.1 or 0.1 < left <= 0.25 or (y > 0.5 and right > 0.25)
            found = 2 if min(right, left) < 0.1 else int(yin)
            if np.sqrt((x - 0.5) ** 2 + (y - 0.5) ** 2) <= 0.5 and found == goal:
                break
        samples.append((x, y, 1 - x, 1 - y))
        classes.append(goal)
    return np.array(samples), np.array(classes)


def test_yinyang_has_the_published_samples():
    values, classes = yinyang.generate(300, 42)
    expected, expected_classes = published_samples(300, 42)
    assert np.array_equal(values, expected)
    assert np.array_equal(classes, expected_classes)


def test_yinyang_is_balanced_and_symmetric():
    classes = yinyang.generate(3000, 1)[1]
    assert np.bincount(classes).min() > 900
    # Turned by half a turn yin becomes yang, and the dots themselves
    random = np.random.default_rng(0)
    swapped = {yinyang.YIN: yinyang.YANG, yinyang.YANG: yinyang.YIN, 2: 2, None: None}
    for x, y in random.random((200, 2)):
        assert yinyang.classify(1 - x, 1 - y) == swapped[yinyang.classify(x, y)]


# Latency coding


@pytest.mark.parametrize("values", [torch.tensor([[255, 128, 0]], dtype=torch.uint8)])
def test_intensities_spike_once_at_the_papers_time(values):
    split = datasets.Intensities(values, torch.tensor([1]), num_steps=9)
    batch = split.batch(torch.tensor([0]))
    assert batch.times.tolist() == [[0, 3, 8]]  # floor((1 - x) 8)
    assert batch.to_dense().sum(0).tolist() == [[1.0, 1.0, 1.0]]


def test_intensities_in_float64_make_float64_spikes():
    split = datasets.Intensities(torch.rand(3, 4), torch.zeros(3), 5, torch.float64)
    assert split.batch(torch.arange(2)).to_dense().dtype == torch.float64


# IDX files


def test_idx_plain_and_gzipped_hold_the_same(tmp_path):
    array = np.arange(24).reshape(4, 3, 2)
    for name in ("x-idx3-ubyte", "x-idx3-ubyte.gz"):
        assert np.array_equal(idx.read_idx(write_idx(tmp_path / name, array), 3), array)


def damage(name, path):
    data = path.read_bytes()
    raw = gzip.decompress(data) if path.suffix == ".gz" else data
    changed = {
        "cut gzip": data[: len(data) // 2],
        "no gzip": b"<html>not found</html>",
        "broken gzip": data[:30] + bytes(8) + data[38:],
        "cut": raw[:-5],
        "cut in the header": raw[:6],
        "empty": b"",
        "longer": raw + b"\0",
        "another magic": b"\0\0\x0d\x03" + raw[4:],
    }
    path.write_bytes(changed[name])


@pytest.mark.parametrize(
    ("file", "name", "message"),
    [
        ("a.gz", "cut gzip", "truncated or corrupt"),
        ("a.gz", "no gzip", "truncated or corrupt"),
        ("a.gz", "broken gzip", "truncated or corrupt"),
        ("a", "cut", "header announces 800.*fetch it again"),
        ("a", "cut in the header", "starts with 00000803"),
        ("a", "empty", "starts with nothing"),
        ("a", "longer", "header announces"),
        ("a", "another magic", "starts with 00000d03, but an IDX file.*00000803"),
    ],
)
def test_damaged_idx_files_are_named(tmp_path, file, name, message):
    path = write_idx(tmp_path / file, np.random.default_rng(0).integers(0, 256, (1, 28, 28)))
    damage(name, path)
    with pytest.raises(ExperimentError, match=message) as error:
        idx.read_idx(path, 3)
    assert str(path) in str(error.value)


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize("folder", ["", "raw", "FashionMNIST", "FashionMNIST/raw"])
def test_fashion_mnist_is_found_in_the_usual_folders(tmp_path, folder, suffix):
    write_images(tmp_path / folder, suffix=suffix)
    found = datasets.load("fashion-mnist", 10, data=tmp_path)
    assert found.describe() == (
        "fashion-mnist: 30 of 60,000 (partial) training and 10 of 10,000 (partial) test samples"
    )
    assert found.train.batch(torch.arange(4)).shape == (10, 4, 1, 28, 28)
    assert found.train.labels[:11].tolist() == [*range(10), 0]


def test_mnist_is_not_read_from_the_folder_of_fashion_mnist(tmp_path):
    write_images(tmp_path / "FashionMNIST" / "raw")
    with pytest.raises(ExperimentError, match=r"mnist: train-images.* not in any of .*MNIST\(DIR"):
        datasets.load("mnist", 10, data=tmp_path)


def test_a_missing_file_is_named_with_where_it_was_looked_for(tmp_path):
    folder = write_images(tmp_path / "FashionMNIST" / "raw")
    (folder / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(ExperimentError) as error:
        datasets.load("fashion-mnist", 10, data=tmp_path)
    for word in ("t10k-labels-idx1-ubyte.gz", str(folder), "--data", "download=True"):
        assert word in str(error.value)


def test_images_that_do_not_fit_are_refused(tmp_path):
    folder = write_images(tmp_path)
    labels = folder / "train-labels-idx1-ubyte"
    write_idx(labels, np.arange(29) % 10)
    with pytest.raises(ExperimentError, match="30 images, but .* has 29 labels"):
        datasets.load("mnist", 10, data=tmp_path)
    write_idx(labels, np.arange(30))
    with pytest.raises(ExperimentError, match="has a label 29, but mnist has classes 0 to 9"):
        datasets.load("mnist", 10, data=tmp_path)
    write_idx(folder / "train-images-idx3-ubyte", np.zeros((30, 8, 8)))
    with pytest.raises(ExperimentError, match=r"shape \(8, 8\), but those of mnist have \(28, 28"):
        datasets.load("mnist", 10, data=tmp_path)


def test_data_is_asked_for():
    with pytest.raises(ExperimentError, match="--dataset mnist needs --data DIR"):
        datasets.load("mnist", 10)


@pytest.mark.skipif(not FASHION.is_dir(), reason=f"Fashion-MNIST is not in {FASHION}")
def test_real_fashion_mnist():
    found = datasets.load("fashion-mnist", 100, data=FASHION.parent.parent)
    assert found.describe() == "fashion-mnist: 60,000 training and 10,000 test samples"
    assert found.train.values.float().mean() / 255 == pytest.approx(0.2860, abs=1e-4)
    assert torch.bincount(found.test.labels).tolist() == [1000] * 10


# Events


def test_nmnist_recordings_are_read_past_the_overflow_of_the_clock(tmp_path):
    t = [5, 1 << 22, (1 << 23) - 1, (1 << 23) + 3, (1 << 23) + 20_000]
    path = write_nmnist_recording(
        tmp_path / "r.bin", t, [0, 33, 1, 2, 3], [0, 33, 4, 5, 6], [0, 1, 1, 0, 1]
    )
    times, units = recorded.read_nmnist(path)
    assert times.tolist() == t
    # Polarity is folded
    assert units.tolist() == [0, 33 * 34 + 33, 4 * 34 + 1, 5 * 34 + 2, 6 * 34 + 3]


@pytest.mark.parametrize("folder", ["", "NMNIST"])
def test_nmnist_has_the_events_of_its_recordings(tmp_path, folder):
    write_nmnist(tmp_path / folder)
    found = datasets.load("nmnist", 300, data=tmp_path, cache=tmp_path / "cache")
    assert found.describe() == (
        "nmnist: 20 of 60,000 (partial) training and 10 of 10,000 (partial) test samples"
    )
    assert found.train.labels.tolist() == [label for label in range(10) for _ in range(2)]
    # Sample 3 is the second of digit 1, number 11; as tonic's frames would have it, folded
    t, x, y, _ = events(11)
    structured = np.zeros(len(t), dtype=[("t", int), ("x", int), ("y", int), ("p", int)])
    structured["t"], structured["x"], structured["y"] = t, x, y
    expected = SpikeEvents.from_events(
        [structured], (34, 34, 1), 300, time_window=1000, late="drop"
    )
    batch = found.train.batch(torch.tensor([3]))
    assert batch.shape == (300, 1, 1, 34, 34)
    assert torch.equal(batch.to_dense()[:, :, 0], expected.to_dense())
    assert batch.to_dense().sum() == found.train.kept[3] == sum(time < 300_000 for time in t) > 150


def test_events_are_decoded_once_and_again_when_a_file_changes(tmp_path, monkeypatch):
    folder, cache = write_nmnist(tmp_path / "NMNIST"), tmp_path / "cache"
    first = datasets.load("nmnist", 300, data=folder, cache=cache)
    assert len(list(cache.iterdir())) == 2
    read = recorded.read_nmnist
    opened = []
    monkeypatch.setattr(recorded, "read_nmnist", lambda path: opened.append(path) or read(path))
    second = datasets.load("nmnist", 300, data=folder, cache=cache)
    assert not opened
    index = torch.arange(20)
    assert torch.equal(first.train.batch(index).to_dense(), second.train.batch(index).to_dense())

    changed = write_nmnist_recording(folder / "Train" / "0" / "00000.bin", [1], [2], [3], [0])
    os.utime(changed, ns=(1, 1))
    third = datasets.load("nmnist", 300, data=folder, cache=cache)
    assert len(opened) == 20  # the training set only
    assert third.train.batch(index[:1]).to_dense().sum() == third.train.kept[0] == 1
    assert len(list(cache.iterdir())) == 2
    datasets.load("nmnist", 200, data=folder, cache=cache)  # other steps, another file
    assert len(list(cache.iterdir())) == 4


@pytest.mark.parametrize("cut", [0, 40, 2000])
def test_a_damaged_cache_is_made_again(tmp_path, cut):
    folder, cache = write_nmnist(tmp_path / "NMNIST"), tmp_path / "cache"
    first = datasets.load("nmnist", 300, data=folder, cache=cache)
    for path in cache.iterdir():
        path.write_bytes(path.read_bytes()[:cut])
    again = datasets.load("nmnist", 300, data=folder, cache=cache)
    index = torch.arange(20)
    assert torch.equal(first.train.batch(index).to_dense(), again.train.batch(index).to_dense())
    assert all(np.load(path)["labels"].size for path in cache.iterdir())


def test_the_cache_is_in_the_users_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert datasets.default_cache() == tmp_path / "snn-single-spike"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert datasets.default_cache() == Path.home() / ".cache" / "snn-single-spike"


def test_nmnist_files_that_cannot_be_used_are_named(tmp_path):
    cache = tmp_path / "cache"
    with pytest.raises(ExperimentError, match=r"nmnist: Train is in neither .*tonic"):
        datasets.load("nmnist", 300, data=tmp_path, cache=cache)
    (tmp_path / "Train").mkdir()
    with pytest.raises(ExperimentError, match=r"no recordings: files <digit>/<number>\.bin"):
        datasets.load("nmnist", 300, data=tmp_path, cache=cache)
    write_nmnist(tmp_path)
    path = tmp_path / "Train" / "3" / "00013.bin"
    whole = path.read_bytes()
    path.write_bytes(whole[:-2])
    with pytest.raises(ExperimentError, match=r"00013\.bin has 998 bytes.*truncated"):
        datasets.load("nmnist", 300, data=tmp_path, cache=cache)
    path.write_bytes(bytes((40,)) + whole[1:])
    with pytest.raises(ExperimentError, match=r"00013\.bin has an event at x=40.*34 x 34"):
        datasets.load("nmnist", 300, data=tmp_path, cache=cache)


@pytest.mark.skipif(not NMNIST.is_dir(), reason=f"N-MNIST recordings are not in {NMNIST}")
def test_real_nmnist(tmp_path):
    found = datasets.load("nmnist", 300, data=NMNIST.parent, cache=tmp_path)
    assert "1,000 of 60,000 (partial) training" in found.describe()
    assert 3000 < found.train.kept[:100].float().mean() < 6000
    size = sum(path.stat().st_size for path in tmp_path.iterdir())
    assert size < 4.01 * (sum(int(s.kept.sum()) for s in (found.train, found.test)) + 9e3)


def test_nmnist_is_read_as_tonic_reads_it(tmp_path):
    io = pytest.importorskip("tonic.io", reason="tonic is not installed")
    path = write_nmnist_recording(tmp_path / "r.bin", *events(3, duration=9_000_000))
    theirs = io.read_mnist_file(
        path, dtype=np.dtype([("x", int), ("y", int), ("t", int), ("p", int)])
    )
    times, units = recorded.read_nmnist(path)
    order = theirs["t"].argsort(kind="stable")
    assert np.array_equal(times, theirs["t"][order])
    assert np.array_equal(units, (theirs["y"] * 34 + theirs["x"])[order])


@pytest.mark.parametrize("folder", ["", "SHD"])
def test_shd_has_the_events_of_its_recordings(tmp_path, folder):
    h5py = pytest.importorskip("h5py", reason="h5py is not installed")
    write_shd(tmp_path / folder)
    found = datasets.load("shd", 500, data=tmp_path, cache=tmp_path / "cache")
    assert found.describe() == (
        "shd: 12 of 8,156 (partial) training and 5 of 2,264 (partial) test samples"
    )
    assert found.test.labels.tolist() == [0, 1, 2, 3, 4]
    with h5py.File(tmp_path / folder / "shd_train.h5") as file:
        times, units = file["spikes/times"][7].astype(float), file["spikes/units"][7]
    expected = torch.zeros(500, 700)
    for time, unit in zip(times, units, strict=True):
        step = round(time * 1e6) // 2000
        if step < 500:
            expected[step, unit] += 1
    assert expected.sum() < len(times)  # some are beyond the last step
    late = re.match(r"; (\d+) of (\d+) events come after the last step", found.left_out())
    kept = sum(int(split.kept.sum()) for split in (found.train, found.test))
    assert int(late[1]) > 0
    assert int(late[2]) - int(late[1]) == kept
    whole = datasets.load("shd", 2000, data=tmp_path, cache=tmp_path / "cache")
    assert whole.left_out() == ""
    assert torch.equal(found.train.batch(torch.tensor([7])).to_dense()[:, 0], expected)


def test_shd_files_that_cannot_be_used_are_named(tmp_path, monkeypatch):
    h5py = pytest.importorskip("h5py", reason="h5py is not installed")

    def load():
        datasets.load("shd", 500, data=tmp_path, cache=tmp_path / "cache")

    with pytest.raises(ExperimentError, match=r"shd: shd_train\.h5 is in neither"):
        load()
    path = write_shd(tmp_path) / "shd_train.h5"
    whole = path.read_bytes()
    path.write_bytes(whole[:3000])
    with pytest.raises(ExperimentError, match=r"shd_train\.h5 is not an HDF5 file.*truncated"):
        load()
    path.write_bytes(whole)
    with h5py.File(path, "a") as file:
        del file["spikes/units"]
    with pytest.raises(ExperimentError, match=r"not an HDF5 file with spikes/times"):
        load()
    path.write_bytes(whole)
    with h5py.File(path, "a") as file:
        del file["labels"]
        file["labels"] = np.arange(3)
    with pytest.raises(ExperimentError, match="12 spikes/units and 3 labels"):
        load()
    path.write_bytes(whole)
    with h5py.File(path, "a") as file:
        file["spikes/units"][2] = np.array([5, 700], np.uint16)
    with pytest.raises(ExperimentError, match=r"recording 2: label 2, units up to 700"):
        load()
    for units in ([5], range(100)):
        with h5py.File(path, "a") as file:
            file["spikes/units"][2] = np.array(units, np.uint16)
        with pytest.raises(ExperimentError, match=rf"recording 2: {len(units)} units and 42 times"):
            load()
    path.write_bytes(whole)
    with h5py.File(path, "a") as file:
        file["spikes/times"][2] = np.full(len(file["spikes/units"][2]), np.nan, np.float16)
    with pytest.raises(ExperimentError, match=r"recording 2: .*a time from 0 on is expected"):
        load()
    monkeypatch.setitem(__import__("sys").modules, "h5py", None)
    with pytest.raises(ExperimentError, match="needs h5py: pip install h5py"):
        load()


@pytest.mark.parametrize("name", ["digits", "yinyang"])
def test_a_part_of_the_samples(name):
    if name == "digits":
        pytest.importorskip("sklearn", reason="scikit-learn has the digits")
    load = partial(datasets.load, name, 20)
    found, again = (load(train_samples=50, test_samples=7) for _ in range(2))
    whole = load()
    assert (len(found.train), len(found.test)) == (50, 7)
    assert "50 of" in found.describe()
    assert "partial" not in whole.describe()
    assert torch.equal(found.train.values, again.train.values)
    held = {tuple(x) for x in whole.test.values.flatten(1).tolist()}
    assert {tuple(x) for x in found.test.values.flatten(1).tolist()} <= held


def test_the_example_of_the_page_runs():
    pytest.importorskip("sklearn", reason="scikit-learn has the digits")
    page = (ROOT / "docs" / "experiments.md").read_text()
    space: dict = {}
    exec(re.search(r"```python\n(.*?)```", page, re.S).group(1), space)
    assert space["spikes"].shape == (50, 128, 1, 8, 8)


def test_the_table_of_the_page_is_that_of_the_datasets():
    page = (ROOT / "docs" / "experiments.md").read_text()
    for name, spec in datasets.DATASETS.items():
        assert f"| `{name}` | {spec.sizes[0]:,} + {spec.sizes[1]:,} |" in page


def test_a_part_of_the_recordings_is_of_several_classes(tmp_path):
    """The files of the dataset are in the order of the classes."""
    write_nmnist(tmp_path)
    few = datasets.load(
        "nmnist", 300, data=tmp_path, cache=tmp_path / "cache", train_samples=4, test_samples=3
    )
    assert (len(few.train), len(few.test)) == (4, 3)
    assert len(few.train.labels.unique()) > 2
    assert len(few.test.labels.unique()) > 1


def test_no_steps():
    with pytest.raises(ExperimentError, match="num_steps=0: use at least one"):
        datasets.load("digits", 0)


def test_an_unknown_dataset():
    with pytest.raises(
        ExperimentError, match="'fashion_mnist' is not known: use one of yinyang, digits"
    ):
        datasets.load("fashion_mnist", 10)


@pytest.mark.parametrize("name", ["yinyang", "nmnist"])
def test_samples_held_out_are_not_trained_on(name, tmp_path):
    if name == "nmnist":
        write_nmnist(tmp_path)
    load = partial(datasets.load, name, 300, cache=tmp_path / "cache")
    load = partial(load, data=tmp_path) if name == "nmnist" else load
    whole, found = load(), load(hold_out=3)
    samples = len(whole.train)
    assert (len(found.train), len(found.test)) == (samples - 3, 3)
    assert found.describe().endswith("training and 3 held-out samples")

    def codes(split):
        return sorted(
            split.batch(torch.arange(len(split))).to_dense().flatten(2).transpose(0, 1).tolist()
        )

    if name == "nmnist":
        assert sorted(codes(found.train) + codes(found.test)) == codes(whole.train)
        assert len({*found.test.labels.tolist(), *found.train.labels.tolist()}) > 1
    else:
        values = torch.cat((found.train.values, found.test.values))
        assert torch.equal(values.sort(0).values, whole.train.values.sort(0).values)
    again = load(hold_out=3)
    assert torch.equal(again.test.labels, found.test.labels)
    with pytest.raises(ExperimentError, match=rf"--hold-out {samples}: there are {samples:,} "):
        load(hold_out=samples)


def test_empty_files_are_not_samples(tmp_path):
    write_nmnist(tmp_path)
    (tmp_path / "Train" / "3" / "00003.bin").write_bytes(b"")
    with pytest.raises(ExperimentError, match="00003.bin has 0 bytes.*truncated"):
        datasets.load("nmnist", 300, data=tmp_path, cache=tmp_path / "cache")
    write_idx(tmp_path / "train-images-idx3-ubyte", np.zeros((0, 28, 28), np.uint8))
    write_idx(tmp_path / "train-labels-idx1-ubyte", np.zeros(0, np.uint8))
    with pytest.raises(ExperimentError, match="train-images-idx3-ubyte has no images"):
        datasets.load("mnist", 10, data=tmp_path)
