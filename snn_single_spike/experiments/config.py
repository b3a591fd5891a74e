"""The settings of a run, and their validation."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal, get_origin

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    field_validator,
    model_validator,
)

from ..functional import GRADIENT_RULES, REDUCTIONS, SPIKE_FORMATS
from . import rules
from .datasets import DATASETS

Decay = Annotated[float, Field(ge=0, le=1)]


class Config(BaseModel):
    """
    Every setting of a run. A field `x_y` is the flag `--x-y` and the key `x_y` of a saved file.

    The defaults are the papers'; :data:`snn_single_spike.experiments.recipes.RECIPES` holds the
    settings that differ between datasets.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, strict=False)

    dataset: Literal[tuple(DATASETS)] = Field(description="dataset to train on")  # type: ignore
    data: str | None = Field(None, description="folder with the dataset's files")
    download: bool = Field(
        False, strict=True, description="let tonic fetch recordings that are not in --data"
    )
    cache: str | None = Field(
        None, description="folder for decoded events (default: in the user's cache folder)"
    )
    train_samples: PositiveInt | None = Field(
        None, description="train on this many samples only, always the same ones"
    )
    test_samples: PositiveInt | None = Field(
        None, description="test on this many samples only, always the same ones"
    )
    hold_out: PositiveInt | None = Field(
        None, description="hold this many training samples out, and test on them"
    )
    num_steps: PositiveInt = Field(100, description="time steps per sample")
    coding: Literal["latency", "current"] = Field(
        "latency",
        description="how intensities enter the network: one spike of each pixel, the earlier the "
        "brighter; or as a constant current, with the first layer of weights computed once",
    )

    layers: str = Field(
        "100",
        description="hidden layers: 300-100 means two layers of 300 and 100 neurons; 12C5-P2-100 "
        "means 12 feature maps (5 x 5), the maximum of their currents (2 x 2) and 100 neurons; "
        "AP2 in place of P2 is the average of spikes",
    )
    padding: Literal["valid", "same"] = Field(
        "valid",
        description="padding of convolutions: none, or zeros that keep the size of the maps",
    )
    neuron: Literal["single-spike", "multi-spike", "multi-spike-loop", "single-spike-loop"] = Field(
        "single-spike",
        description="hidden neurons: SingleSpikeLeaky; FusedLeaky, with every spike; snn.Leaky in "
        "a loop over time; the same loop with only the first spike of each neuron",
    )
    spike_format: Literal[SPIKE_FORMATS] = Field(  # type: ignore[valid-type]
        "times",
        description="what layers pass on: dense tensors, or spike times; multi-spike layers "
        "pass on all their spikes as events where few entries are spikes",
    )
    gradient: Literal[GRADIENT_RULES] = Field(  # type: ignore[valid-type]
        "masked", description="gradient rule"
    )
    surrogate: str = Field(
        "fast_sigmoid:10",
        description=f"NAME[:PARAMETER], from snnTorch: {', '.join(rules.SURROGATES)}",
    )
    readout: Literal[REDUCTIONS] = Field(  # type: ignore[valid-type]
        "sum", description="reduction of the last membrane over time"
    )
    score_scale: PositiveFloat = Field(
        1.0, description="factor of the scores before the cross-entropy"
    )
    beta: Decay = Field(math.exp(-1 / 10), description="initial decay of hidden neurons")
    readout_beta: Decay = Field(math.exp(-1 / 20), description="initial decay of the readout")
    learn_beta: bool = Field(True, strict=True, description="learn the decay of each neuron")
    delays: PositiveFloat | None = Field(
        None,
        description="learn a delay of each unit in front of every linear layer, the readout "
        "included; the initial delays are uniform between 0 and this number of steps",
    )
    weight_scale: tuple[PositiveFloat, ...] = Field(
        (1.0,), description="factors of the initial weights, one per layer or one for all layers"
    )
    calibrate: Annotated[float, Field(gt=0, lt=1)] | None = Field(
        None,
        description="scale the initial weights so that each hidden neuron fires for this share of "
        "the first training samples, a batch",
    )

    seed: Annotated[int, Field(ge=0, lt=1 << 63)] = Field(
        0, description="seed of weights, sample order and augmentation"
    )
    device: str = Field("cpu", description="cpu, cuda or cuda:N")
    precision: Literal["float32", "float64", "bfloat16"] = Field(
        "float32", description="bfloat16 uses autocast"
    )
    epochs: PositiveInt = Field(100, description="passes over the training set")
    batch: PositiveInt = Field(128, description="samples per step, over all processes")
    lr: PositiveFloat = Field(1e-3, description="learning rate of Adam")
    delay_lr: PositiveFloat = Field(
        0.1, description="learning rate of the delays, which are numbers of steps"
    )
    weight_decay: NonNegativeFloat = Field(0.0, description="L2 penalty of Adam")
    spike_penalty: NonNegativeFloat = Field(
        0.0, description="cost per hidden spike, added to the cross-entropy of each sample"
    )
    schedule: Literal["milestones", "cosine"] = Field(
        "milestones",
        description="how the learning rate falls: by --lr-decay at each milestone; or in every "
        "step along half a cosine, to 0 at the end of the last epoch",
    )
    milestones: tuple[PositiveInt, ...] = Field((), description="epochs after which lr is decayed")
    lr_decay: PositiveFloat = Field(0.1, description="factor of lr at each milestone")
    augment: tuple[str, ...] = Field(
        (),
        description="augmentation of training images: perspective, flip, crop, noise, each "
        "NAME[:STRENGTH[:PROBABILITY]]",
    )
    tensorboard: bool = Field(False, strict=True, description="write TensorBoard files too")

    @field_validator("*", mode="before")
    @classmethod
    def _from_text(cls, value: Any, info: Any) -> Any:
        """Split lists at commas; reject booleans for numbers, since int(True) is 1."""
        kind = cls.model_fields[info.field_name].annotation
        if kind is not bool and any(
            isinstance(v, bool) for v in (value if isinstance(value, list | tuple) else [value])
        ):
            raise ValueError("must not be true or false")
        if get_origin(kind) is tuple and isinstance(value, str):
            return [part for part in value.split(",") if part]
        return value

    @model_validator(mode="after")
    def _check_rules(self) -> Config:
        rules.check(self)
        return self


# Settings that may change when a run is resumed
RESUMABLE = ("data", "download", "cache", "device", "epochs", "tensorboard")


def flag(name: str) -> str:
    return "--" + name.replace("_", "-")
