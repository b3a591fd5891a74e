"""Datasets: the content of their files, and the errors of unusable files."""

import gzip
import os
import re
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from snn_single_spike.experiments import ExperimentError, datasets, idx, recordings, yinyang
from snn_single_spike.experiments import events as recorded

from tests.support.devices import ROOT, SHARED
from tests.support.recordings import (
    write_asl_dvs,
    write_dvs_gesture,
    write_hsd,
    write_idx,
    write_images,
    write_n_caltech101,
    write_nmnist,
    write_nmnist_recording,
    write_poker_dvs,
)

tonic = pytest.importorskip("tonic", reason="tonic is not installed")
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


def test_intensities_are_currents_of_every_step():
    split = datasets.load("digits", 5, coding="current").test
    current = split.batch(torch.arange(3))
    assert current.shape == (5, 3, 1, 8, 8)
    assert current.stride(0) == 0  # one step is stored
    codes = datasets.load("digits", 17, coding="latency").test.batch(torch.arange(3))
    assert torch.equal(((1 - current[4]) * 16).floor().int(), codes.times)


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

WRITERS = {
    "nmnist": write_nmnist,
    "shd": partial(write_hsd, name="shd"),
    "ssc": partial(write_hsd, name="ssc"),
    "dvs-gesture": write_dvs_gesture,
    "n-caltech101": write_n_caltech101,
    "asl-dvs": write_asl_dvs,
    "poker-dvs": write_poker_dvs,
}


def tonic_dataset(name, folder, **options):
    """tonic's dataset of a few files. tonic itself would download them again."""
    original = getattr(tonic.datasets, recordings.SOURCES[name].name)
    folder = folder.resolve()
    small = type(folder.name, (original,), {"_check_exists": lambda self: True})
    return small(str(folder.parent), **options)


def frames(events, features, step_us, num_steps):
    """tonic's frames; with one polarity, those of both polarities together."""
    events = events.reshape(-1).copy()
    sensor = (features[-1], features[-2], features[0]) if len(features) == 3 else (*features, 1, 1)
    if sensor[2] == 1:
        events["p"] = 0
    start = int(events["t"].min())
    window = {"time_window": step_us, "start_time": start}
    made = tonic.transforms.ToFrame(sensor, **window, end_time=start + num_steps * step_us)(events)
    return made.reshape(num_steps, *features)


@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("name", WRITERS)
def test_recordings_have_the_values_of_tonic_s_frames(name, inside, tmp_path):
    source, spec, num_steps = recordings.SOURCES[name], datasets.DATASETS[name], 40
    folder = WRITERS[name](tmp_path / source.name)
    data = folder if inside else tmp_path
    found = datasets.load(name, num_steps, data=data, cache=tmp_path / "cache")
    theirs = {}
    for options in source.parts.values():
        for events, label in (d := tonic_dataset(name, folder, **options)):
            framed = frames(events, spec.features, spec.step_us, num_steps)
            theirs[framed.tobytes()] = (label, options, int(framed.sum()), len(events.reshape(-1)))
        assert len(d)
    assert len(theirs) == len(found.train) + len(found.test)
    parts = list(source.parts.values())
    for split, options in ((found.train, parts[0]), (found.test, parts[-1])):
        dense = split.batch(torch.arange(len(split))).to_dense().to(torch.int16)
        assert dense.any()
        classes = set()
        for i in range(len(split)):
            label, part, kept, size = theirs.pop(dense[:, i].numpy().tobytes())
            assert part == options
            assert int(split.kept[i]) == kept
            assert int(split.late[i]) == size - kept
            classes.add((label, int(split.labels[i])))
        if name == "n-caltech101":
            assert classes == {("ant", 0), ("yin_yang", 1)}
        else:
            assert all(int(label) == ours for label, ours in classes)
    assert "(partial)" in found.describe()


def test_the_units_of_a_large_sensor():
    """More than int16 holds, and more steps."""
    events = np.zeros(2, [("t", int), ("x", int), ("y", int), ("p", int)])
    events["t"], events["x"], events["y"], events["p"] = (5, 40_005), (239, 0), (179, 0), (1, 0)
    made = recorded._bin([("a", events, 0)], 1, 40_001, 1, (2, 180, 240))
    assert made["units"].tolist() == [2 * 180 * 240 - 1, 0]
    assert made["times"].tolist() == [0, 40_000]


def test_events_are_decoded_once_and_again_when_a_file_changes(tmp_path, monkeypatch):
    folder, cache = write_nmnist(tmp_path / "NMNIST"), tmp_path / "cache"
    first = datasets.load("nmnist", 300, data=folder, cache=cache)
    assert len(list(cache.iterdir())) == 2
    read = recordings.Part.recordings
    opened = []
    monkeypatch.setattr(
        recordings.Part, "recordings", lambda part: opened.append(len(part.indices)) or read(part)
    )
    second = datasets.load("nmnist", 300, data=folder, cache=cache)
    assert not opened
    index = torch.arange(20)
    assert torch.equal(first.train.batch(index).to_dense(), second.train.batch(index).to_dense())

    changed = write_nmnist_recording(folder / "Train" / "0" / "00000.bin", [1], [2], [3], [0])
    os.utime(changed, ns=(1, 1))
    third = datasets.load("nmnist", 300, data=folder, cache=cache)
    assert opened == [20]  # the training set only
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


def test_recordings_that_cannot_be_used_are_named(tmp_path, monkeypatch):
    def load(name="nmnist", data=tmp_path):
        datasets.load(name, 300, data=data, cache=tmp_path / "cache")

    with pytest.raises(ExperimentError, match=r"Train/\*/\*.bin is in neither .*--download"):
        load()
    path = write_nmnist(tmp_path) / "Train" / "3" / "00013.bin"
    whole = path.read_bytes()
    for content, message in (
        (whole[:-2], r"00013\.bin cannot be read .*truncated"),
        (b"", r"00013\.bin has no events.*truncated"),
        (bytes((40,)) + whole[1:], r"00013\.bin has events at x from .* to 40, .* has 34 of x"),
    ):
        path.write_bytes(content)
        with pytest.raises(ExperimentError, match=message):
            load()
    with pytest.raises(ExperimentError, match=r"shd: shd_train\.h5 is in neither"):
        load("shd")
    path = write_hsd(tmp_path, "shd") / "shd_train.h5"
    path.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(ExperimentError, match=r"shd_train\.h5 cannot be opened.*fetch it again"):
        load("shd")
    monkeypatch.setitem(sys.modules, "tonic", None)
    with pytest.raises(ExperimentError, match="needs tonic: pip install tonic"):
        load()


def test_values_of_a_corrupt_file_are_named(tmp_path):
    h5py = pytest.importorskip("h5py")
    path = write_hsd(tmp_path, "shd") / "shd_train.h5"
    whole = path.read_bytes()
    for field, value, message in (
        ("spikes/units", [5] * 41 + [700], "recording 2 has events at x from 5 to 700"),
        ("spikes/units", [5, 6], "recording 2 cannot be read"),
        ("spikes/times", [-1.0] + [1.0] * 41, "recording 2 has an event at -1000000 us"),
        ("labels", 20, "recording 2 has class 20, but there are 20"),
    ):
        path.write_bytes(whole)
        with h5py.File(path, "a") as file:
            kind = np.float16 if field == "spikes/times" else np.uint16
            file[field][2] = value if field == "labels" else np.array(value, kind)
        with pytest.raises(ExperimentError, match=message):
            datasets.load("shd", 500, data=tmp_path, cache=tmp_path / "cache")


def test_only_download_lets_tonic_fetch(tmp_path, monkeypatch):
    fetched = []

    def fetch(self):
        fetched.append(self.location_on_system)
        write_nmnist(Path(self.location_on_system))

    monkeypatch.setattr(tonic.datasets.NMNIST, "download", fetch)
    load = partial(datasets.load, "nmnist", 300, data=tmp_path, cache=tmp_path / "cache")
    with pytest.raises(ExperimentError, match="--download"):
        load()
    assert not fetched
    assert len(load(download=True).train) == 20
    assert fetched == [str(tmp_path / "NMNIST")]
    load(download=True)  # the files are there
    assert len(fetched) == 1


def test_a_failed_download_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(tonic.datasets.SHD, "download", lambda self: 1 / 0)
    with pytest.raises(ExperimentError, match=r"could not fetch shd \(division by zero\).*by hand"):
        datasets.load("shd", 300, data=tmp_path, download=True)


@pytest.mark.skipif(not NMNIST.is_dir(), reason=f"N-MNIST recordings are not in {NMNIST}")
def test_real_nmnist(tmp_path):
    found = datasets.load("nmnist", 300, data=NMNIST.parent, cache=tmp_path)
    assert "1,000 of 60,000 (partial) training" in found.describe()
    assert 3000 < found.train.kept[:100].float().mean() < 6000
    size = sum(path.stat().st_size for path in tmp_path.iterdir())
    assert size < 4.01 * (sum(int(s.kept.sum()) for s in (found.train, found.test)) + 9e3)
    theirs = tonic_dataset("nmnist", NMNIST, train=False)
    dense = found.test.batch(torch.arange(7)).to_dense().numpy()
    for i, (events, label) in enumerate(map(theirs.__getitem__, range(7))):
        assert np.array_equal(dense[:, i], frames(events, (1, 34, 34), 1000, 300))
        assert label == found.test.labels[i]


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
    write_idx(tmp_path / "train-images-idx3-ubyte", np.zeros((0, 28, 28), np.uint8))
    write_idx(tmp_path / "train-labels-idx1-ubyte", np.zeros(0, np.uint8))
    with pytest.raises(ExperimentError, match="train-images-idx3-ubyte has no images"):
        datasets.load("mnist", 10, data=tmp_path)
