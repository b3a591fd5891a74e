"""Settings of a run: their sources, and the rejection of invalid ones."""

import argparse
import json
import math
from pathlib import Path

import pytest
import torch

from snn_single_spike.experiments import ExperimentError, config, sources
from snn_single_spike.experiments.config import Config
from snn_single_spike.experiments.network import Network
from snn_single_spike.experiments.recipes import RECIPES
from snn_single_spike.experiments.rules import check_device
from snn_single_spike.experiments.sources import make

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


FILES = sorted((Path(__file__).parents[2] / "benchmarks" / "recipes").glob("*.toml"))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_every_recipe_for_convolutions_can_be_run(file):
    made = make(DATA, file)
    Network(made)
    assert "C" in made.layers
    assert made.spike_format == "times"


def test_spike_times_are_the_default_where_they_are_supported():
    assert make({"dataset": "digits"}).spike_format == "times"
    assert make({"dataset": "digits", "neuron": "multi-spike"}).spike_format == "times"
    for flags in ({"neuron": "multi-spike-loop"}, {"precision": "bfloat16"}):
        assert make({"dataset": "digits", **flags}).spike_format == "dense"


def test_flags_precede_the_file_and_the_file_precedes_the_recipe(tmp_path):
    file = tmp_path / "run.toml"
    file.write_text('dataset = "digits"\nnum_steps = 12\nepochs = 3\nlr = 1\nmilestones = [1, 2]\n')
    made = make({"epochs": "7"}, file)
    assert (made.dataset, made.num_steps, made.epochs, made.lr) == ("digits", 12, 7, 1.0)
    assert made.milestones == (1, 2)
    assert made.layers == RECIPES["digits"]["layers"]


def test_the_cosine_schedule_replaces_the_milestones_of_the_recipe():
    assert make({"dataset": "yinyang", "schedule": "cosine"}).milestones == ()
    assert make({"dataset": "yinyang"}).milestones == (50, 100)


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
    for file, content in (
        (tmp_path / "config.json", made.model_dump_json()),
        (tmp_path / "run.jsonl", json.dumps({"settings": made.model_dump()}) + "\ncut off"),
    ):
        file.write_text(content)
        assert make({}, file) == made


def test_every_setting_has_a_flag():
    parser = argparse.ArgumentParser()
    sources.add_flags(parser)
    text = parser.format_help()
    for name, field in Config.model_fields.items():
        assert config.flag(name) in text
        assert field.description.split()[0] in text
    given = vars(parser.parse_args(["--weight-scale", "4,1", "--no-learn-beta", "--lr", "0.5"]))
    assert given == {"weight_scale": "4,1", "learn_beta": False, "lr": "0.5"}


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"dataset": None}, "--dataset is missing: use one of yinyang, digits"),
        ({"dataset": "cifar"}, "--dataset cifar: use one of yinyang"),
        ({"dataset": 3}, "--dataset 3: use one of yinyang"),
        ({"epochs": "0"}, "--epochs 0: must be greater than 0"),
        ({"epochs": "1.5"}, "--epochs 1.5: must be a valid integer"),
        ({"epochs": 1.5}, "--epochs 1.5: must be a valid integer"),
        ({"epochs": True}, "--epochs True: must not be true or false"),
        ({"lr": True}, "--lr True: must not be true or false"),
        ({"weight_scale": [True]}, r"--weight-scale \[True\]: must not be true or false"),
        ({"layers": 100}, "--layers 100: must be a valid string"),
        ({"hold_out": "0"}, "--hold-out 0: must be greater than 0"),
        ({"num_steps": "many"}, "--num-steps many: must be a valid integer"),
        ({"seed": "-1"}, "--seed -1: must be greater than or equal to 0"),
        (
            {"seed": str(1 << 63)},
            "--seed 9223372036854775808: must be less than",
        ),
        ({"epochs": math.inf}, "--epochs inf: must be a finite number"),
        ({"stesp": 3}, "stesp is not a setting: use dataset, data"),
        ({"lr": "0"}, "--lr 0: must be greater than 0"),
        ({"lr": "nan"}, "--lr nan: must be a finite number"),
        ({"lr": [1]}, r"--lr \[1\]: must be a valid number"),
        ({"weight_decay": "-1"}, "--weight-decay -1: must be greater than or equal to 0"),
        ({"spike_penalty": "-1"}, "--spike-penalty -1: must be greater than or equal to 0"),
        (
            {"spike_penalty": "0.1", "gradient": "spike_time"},
            "--spike-penalty 0.1: --gradient spike_time has no gradient that removes a spike",
        ),
        ({"score_scale": "0"}, "--score-scale 0: must be greater than 0"),
        ({"padding": "reflect"}, "--padding reflect: use one of valid, same"),
        ({"coding": "rate"}, "--coding rate: use one of latency, current"),
        (
            {"dataset": "nmnist", "data": "x", "coding": "current"},
            "--coding current: the samples of nmnist are recorded spikes; omit --coding",
        ),
        ({"calibrate": "1"}, "--calibrate 1: must be less than 1"),
        (
            {"calibrate": "0.5", "neuron": "multi-spike-loop"},
            "--calibrate 0.5: multi-spike-loop is a loop of snnTorch's neurons",
        ),
        ({"beta": "1.5"}, "--beta 1.5: must be less than or equal to 1"),
        ({"weight_scale": "1,x"}, "--weight-scale 1,x: must be a valid number"),
        ({"weight_scale": 4}, "--weight-scale 4: must be a list, separated by commas"),
        ({"learn_beta": "yes"}, "--learn-beta yes: must be a valid boolean"),
        ({"neuron": "lapicque"}, "--neuron lapicque: use one of single-spike, multi-spike"),
        ({"readout": "mean"}, "--readout mean: use one of sum, max, last"),
        ({"gradient": "exact"}, "--gradient exact: use one of masked"),
        ({"precision": "float16"}, "--precision float16: use one of float32, float64, bfloat16"),
        ({"spike_format": "events"}, "--spike-format events: use one of dense, times"),
        ({"surrogate": "tanh"}, "--surrogate tanh: use one of fast_sigmoid, atan"),
        ({"surrogate": "atan:0"}, "--surrogate atan:0: the parameter must be a number above 0"),
        (
            {"surrogate": "straight_through_estimator:1"},
            "straight_through_estimator has no parameter",
        ),
        (
            {"neuron": "multi-spike", "gradient": "pre_spike"},
            "--gradient pre_spike: this rule is defined.*--neuron multi-spike is not.*use --neuron",
        ),
        (
            {"neuron": "single-spike-loop", "spike_format": "times"},
            "--spike-format times: single-spike-loop is a loop over time.*or --spike-format dense",
        ),
        (
            {"precision": "bfloat16", "spike_format": "times"},
            "--spike-format times: .* do not support bfloat16.*or --spike-format dense",
        ),
        ({"milestones": "5,3"}, "--milestones 5,3: must be in rising order"),
        ({"milestones": "3,3"}, "--milestones 3,3: must be in rising order"),
        (
            {"milestones": "3", "schedule": "cosine"},
            "--milestones 3: --schedule cosine has none; omit --milestones",
        ),
        ({"augment": "turn"}, "--augment turn: 'turn' is not known"),
        (
            {"augment": "crop:8"},
            "--augment crop:8: images of digits are 8 pixels wide; use a shift of at most 7",
        ),
        ({"dataset": "yinyang", "augment": "noise"}, "--augment noise: yinyang has no images"),
        (
            {"dataset": "nmnist", "augment": "flip", **DATA},
            "--augment flip: nmnist has no images",
        ),
        ({"dataset": "mnist"}, "--dataset mnist needs --data DIR"),
        ({"data": "x"}, "--data x: digits needs no files; omit --data"),
        ({"device": "tpu"}, "--device tpu: use cpu, cuda or cuda:N"),
        ({"device": "meta"}, "--device meta: use cpu, cuda or cuda:N"),
    ],
)
def test_invalid_settings_are_rejected(flags, message):
    with pytest.raises(ExperimentError, match=message):
        make({"dataset": "digits", **flags})


def test_missing_gpus_are_rejected(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ExperimentError, match="--device cuda: no GPU was found; use --device cpu"):
        check_device("cuda")
    assert make({"dataset": "digits", "device": "cuda"}).device == "cuda"  # a run to be read
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    check_device("cuda:1")
    with pytest.raises(ExperimentError, match="--device cuda:2: the GPUs are cuda:0 to cuda:1"):
        check_device("cuda:2")


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("run.yaml", "", r"run\.yaml: the name must end in \.toml, \.json or \.jsonl"),
        ("missing.json", None, r"missing\.json: No such file"),
        ("run.json", "{", r"run\.json is not valid json"),
        ("run.jsonl", "{", r"run\.jsonl is damaged in line 1"),
        ("run.jsonl", "[]", r"run\.jsonl is damaged in line 1"),
        ("run.jsonl", None, r"run\.jsonl is not a run: there is no"),
        ("run.toml", "num_steps =", r"run\.toml is not valid toml"),
        ("run.json", "[1]", r"run\.json: an object of settings by name is expected"),
        (
            "run.json",
            '{"stesp": 1}',
            r"run\.json: stesp is not a setting: use dataset, data",
        ),
        ("run.json", '{"epochs": 0}', r"--config .*run\.json: --epochs 0: must be greater"),
    ],
)
def test_unusable_files_are_named(tmp_path, name, text, message):
    file = tmp_path / name
    if text is not None:
        file.write_text(text)
    with pytest.raises(ExperimentError, match=message):
        make({"dataset": "digits"}, file)


def test_a_resumed_run_keeps_its_settings(tmp_path):
    file = tmp_path / "run.jsonl"
    file.write_text(json.dumps({"settings": {"dataset": "digits", "epochs": 3}}))
    assert sources.resumed(tmp_path, {"epochs": "9", "num_steps": "50"}).epochs == 9
    with pytest.raises(ExperimentError, match="--num-steps 20: the run was started with 50"):
        sources.resumed(tmp_path, {"num_steps": "20"})
    saved = {"dataset": "digits", "epochs": 3, "schedule": "cosine"}
    file.write_text(json.dumps({"settings": saved}))
    with pytest.raises(ExperimentError, match="--epochs 9: --schedule cosine has brought"):
        sources.resumed(tmp_path, {"epochs": "9"})


def test_large_seeds_keep_their_value():
    assert make({"dataset": "digits", "seed": "9007199254740993"}).seed == (1 << 53) + 1
