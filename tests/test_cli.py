"""The command line, as a newcomer types it."""

import pytest

from snn_single_spike import cli, demo


def test_info(capsys):
    assert cli.main(["info"]) == 0
    out = capsys.readouterr().out
    for word in ("torch ", "snntorch ", "triton ", "numba ", "threads", "backend on cpu"):
        assert word in out


@pytest.fixture
def _demo_installed():
    for package in ("sklearn", "rich", "matplotlib"):
        pytest.importorskip(package, reason=f"the demo needs {package}")


@pytest.mark.usefixtures("_demo_installed")
def test_demo_trains_draws_and_reports(tmp_path, capsys):
    out = tmp_path / "figure.png"
    assert cli.main(["demo", "--epochs", "2", "--steps", "12", "--out", str(out)]) == 0
    text = capsys.readouterr().out
    for word in ("test accuracy", "hidden spikes per sample", "seconds per epoch", "faster"):
        assert word in text
    assert out.read_bytes().startswith(b"\x89PNG")


@pytest.mark.usefixtures("_demo_installed")
def test_demo_networks_start_alike_and_learn():
    x_train, y_train, x_test, y_test = demo.load_digits(0)
    assert len(x_train) + len(x_test) == 1797
    contestants = demo.build(0)
    first = [demo.observe(contestant, x_test[0], 25).spikes for contestant in contestants]
    once = (first[1] > 0) & (first[1].cumsum(0) == 1)
    assert ((first[0] > 0) == once).all()
    for _ in range(6):
        demo.train_epoch(contestants, x_train, y_train, 25)
    for contestant in contestants:
        demo.evaluate(contestant, x_test, y_test, 25)
        assert contestant.accuracy > 0.8, contestant.label
    single, loop = contestants
    assert single.spikes <= demo.HIDDEN
    assert single.spikes < loop.spikes


@pytest.mark.usefixtures("_demo_installed")
@pytest.mark.parametrize("name", ["missing/figure.png", "figure.txt", "."])
def test_demo_refuses_a_bad_path_before_it_trains(name, tmp_path, capsys):
    assert cli.main(["demo", "--out", str(tmp_path / name)]) == 1
    assert "--out" in capsys.readouterr().err


def test_demo_names_what_is_not_installed(monkeypatch, capsys):
    monkeypatch.setattr(cli.importlib.util, "find_spec", lambda name: None)
    assert cli.main(["demo"]) == 1
    error = capsys.readouterr().err
    assert "scikit-learn" in error
    assert "pip install scikit-learn rich matplotlib" in error


@pytest.mark.parametrize("arguments", [["demo", "--epochs", "0"], ["train"], []])
def test_bad_usage(arguments):
    with pytest.raises(SystemExit) as stop:
        cli.main(arguments)
    assert stop.value.code == 2


def test_latency_code():
    import torch

    coded = demo.latency_code(torch.tensor([[1.0, 0.5, 0.0]]), 9)
    assert coded.shape == (9, 1, 3)
    assert coded.sum(0).tolist() == [[1.0, 1.0, 1.0]]
    assert coded.argmax(0).tolist() == [[0, 4, 8]]
