"""Settings of a run: where they come from, and which are refused."""

import argparse
import dataclasses
import json
import math

import pytest
import torch

from snn_single_spike.experiments import ExperimentError, config
from snn_single_spike.experiments.config import Config, check_device, make
from snn_single_spike.experiments.network import Network
from snn_single_spike.experiments.recipes import RECIPES

DATA = {"data": "somewhere"}


def test_defaults_are_the_papers():
    made = make({"dataset": "fashion-mnist", **DATA})
    assert (made.layers, made.num_steps, made.batch, made.lr) == ("1000", 100, 128, 1e-3)
    assert made.beta == math.exp(-1 / 10)
    assert made.readout_beta == math.exp(-1 / 20)
    assert made.surrogate == "fast_sigmoid:10"
    assert made.augment == ("perspective:0.1:0.3", "flip", "crop:1", "noise:0.05")
    assert make({"dataset": "yinyang"}).weight_scale == (4.0, 1.0)
    assert make({"dataset": "shd", **DATA}).lr == 2e-4


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_can_be_run(name):
    needs = {} if name in ("yinyang", "digits") else DATA
    made = make({"dataset": name, **needs})
    Network(made)
    for key, value in RECIPES[name].items():
        assert getattr(made, key) == value


def test_spikes_are_handed_on_as_times_where_they_can_be():
    assert make({"dataset": "digits"}).spike_format == "times"
    for flags in ({"neuron": "multi-spike"}, {"precision": "bfloat16"}):
        assert make({"dataset": "digits", **flags}).spike_format == "dense"


def test_flags_win_over_the_file_and_the_file_over_the_recipe(tmp_path):
    file = tmp_path / "run.toml"
    file.write_text('dataset = "digits"\nnum_steps = 12\nepochs = 3\nlr = 1\nmilestones = [1, 2]\n')
    made = make({"epochs": "7"}, file)
    assert (made.dataset, made.num_steps, made.epochs, made.lr) == ("digits", 12, 7, 1.0)
    assert made.milestones == (1, 2)
    assert made.layers == RECIPES["digits"]["layers"]


def test_settings_survive_their_file(tmp_path):
    made = make(
        {
            "dataset": "yinyang",
            "weight_scale": "0.1",
            "milestones": "3,5",
            "learn_beta": False,
            "beta": "0.875",
            "train_samples": "100",
        }
    )
    assert made.weight_scale == (0.1,)
    file = tmp_path / "config.json"
    file.write_text(config.to_json(made))
    assert make({}, file) == made


def test_every_setting_has_a_flag():
    parser = argparse.ArgumentParser()
    config.add_flags(parser)
    text = parser.format_help()
    for f in dataclasses.fields(Config):
        assert config.flag(f.name) in text
        assert f.metadata["help"].split()[0] in text
    given = vars(parser.parse_args(["--weight-scale", "4,1", "--no-learn-beta", "--lr", "0.5"]))
    assert given == {"weight_scale": "4,1", "learn_beta": False, "lr": "0.5"}


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"dataset": None}, "--dataset is missing: use one of yinyang, digits"),
        ({"dataset": "cifar"}, "--dataset cifar: use one of yinyang"),
        ({"dataset": 3}, "--dataset 3: a text is expected"),
        ({"epochs": "0"}, "--epochs 0: a whole number from 1 on is expected"),
        ({"epochs": "1.5"}, "--epochs 1.5: a whole number"),
        ({"epochs": 1.5}, "--epochs 1.5: a whole number"),
        ({"epochs": True}, "--epochs True: a whole number"),
        ({"num_steps": "many"}, "--num-steps many: a whole number"),
        ({"seed": "-1"}, "--seed -1: a whole number from 0 to 2\\^63 - 1 is expected"),
        ({"seed": str(1 << 63)}, "--seed 9223372036854775808: a whole number from 0 to 2"),
        ({"epochs": math.inf}, "--epochs inf: a whole number from 1 on is expected"),
        ({"stesp": 3}, "stesp is not known, use dataset, data"),
        ({"lr": "0"}, "--lr 0: a number above 0 is expected"),
        ({"lr": "nan"}, "--lr nan: a number above 0"),
        ({"lr": [1]}, r"--lr \[1\]: a number above 0"),
        ({"weight_decay": "-1"}, "--weight-decay -1: a number from 0 on"),
        ({"spike_penalty": "-1"}, "--spike-penalty -1: a number from 0 on"),
        (
            {"spike_penalty": "0.1", "gradient": "spike_time"},
            "--spike-penalty 0.1: the number of spikes has no gradient by --gradient spike_time",
        ),
        ({"beta": "1.5"}, "--beta 1.5: a number from 0 to 1"),
        ({"weight_scale": "1,x"}, "--weight-scale 1,x: a number above 0"),
        ({"weight_scale": 4}, "--weight-scale 4: a list, separated by commas"),
        ({"learn_beta": "yes"}, "--learn-beta yes: true or false"),
        ({"neuron": "lapicque"}, "--neuron lapicque: use one of single-spike, multi-spike"),
        ({"readout": "mean"}, "--readout mean: use one of sum, max, last"),
        ({"gradient": "exact"}, "--gradient exact: use one of masked"),
        ({"precision": "float16"}, "--precision float16: use one of float32, float64, bfloat16"),
        ({"spike_format": "events"}, "--spike-format events: use one of dense, times"),
        ({"surrogate": "tanh"}, "--surrogate tanh: use one of fast_sigmoid, atan"),
        ({"surrogate": "atan:0"}, "--surrogate atan:0: a number above 0"),
        (
            {"surrogate": "straight_through_estimator:1"},
            "straight_through_estimator has no parameter",
        ),
        (
            {"neuron": "multi-spike", "gradient": "pre_spike"},
            "--gradient pre_spike: a loop over time .*use --neuron single-spike",
        ),
        (
            {"neuron": "single-spike-loop", "spike_format": "times"},
            "--spike-format times: a loop over time .*or --spike-format dense",
        ),
        (
            {"precision": "bfloat16", "spike_format": "times"},
            "--spike-format times: .* not computed in bfloat16.*or --spike-format dense",
        ),
        ({"milestones": "5,3"}, "--milestones 5,3: write them in rising order"),
        ({"milestones": "3,3"}, "--milestones 3,3: write them in rising order"),
        ({"augment": "turn"}, "--augment turn: 'turn' is not known"),
        ({"augment": "crop:8"}, "--augment crop:8: images of digits have 8 pixels a side"),
        ({"dataset": "yinyang", "augment": "noise"}, "--augment noise: yinyang has no images"),
        (
            {"dataset": "nmnist", "augment": "flip", **DATA},
            "--augment flip: nmnist has no images",
        ),
        ({"dataset": "mnist"}, "--dataset mnist needs --data DIR"),
        ({"data": "x"}, "--data x: digits needs no files, leave it out"),
        ({"device": "tpu"}, "--device tpu: use cpu, cuda or cuda:N"),
        ({"device": "meta"}, "--device meta: use cpu, cuda or cuda:N"),
    ],
)
def test_impossible_settings_are_refused(flags, message):
    with pytest.raises(ExperimentError, match=message):
        make({"dataset": "digits", **flags})


def test_gpus_that_are_not_there_are_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ExperimentError, match="--device cuda: no GPU was found, use --device cpu"):
        check_device("cuda")
    assert make({"dataset": "digits", "device": "cuda"}).device == "cuda"  # a run to be read
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    check_device("cuda:1")
    with pytest.raises(ExperimentError, match="--device cuda:2: there are GPUs 0 to 1"):
        check_device("cuda:2")


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("run.yaml", "", r"run\.yaml: end the name in \.toml or \.json"),
        ("missing.json", None, r"missing\.json: No such file"),
        ("run.json", "{", r"run\.json is not valid json"),
        ("run.toml", "num_steps =", r"run\.toml is not valid toml"),
        ("run.json", "[1]", r"run\.json: settings by name are expected"),
        ("run.json", '{"stesp": 1}', "stesp is not known, use dataset, data"),
    ],
)
def test_files_that_cannot_be_used_are_named(tmp_path, name, text, message):
    file = tmp_path / name
    if text is not None:
        file.write_text(text)
    with pytest.raises(ExperimentError, match=message):
        make({"dataset": "digits"}, file)


def test_what_makes_another_run_is_refused_when_one_goes_on(tmp_path):
    file = tmp_path / "config.json"
    file.write_text(json.dumps({"dataset": "digits", "epochs": 3}))
    assert config.resumed(file, {"epochs": "9", "num_steps": "50"}).epochs == 9
    with pytest.raises(ExperimentError, match="--num-steps 20: the run was begun with 50"):
        config.resumed(file, {"num_steps": "20"})


def test_large_seeds_are_taken_as_they_are():
    assert make({"dataset": "digits", "seed": "9007199254740993"}).seed == (1 << 53) + 1
