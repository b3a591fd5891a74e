"""Light augmentation of images with kornia, before the images are coded as spike times."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from . import ExperimentError

# Default strength (None: the augmentation has none) and default probability
DEFAULTS: dict[str, tuple[float | None, float]] = {
    "perspective": (0.2, 0.5),
    "flip": (None, 0.5),
    "crop": (2.0, 1.0),
    "noise": (0.05, 0.5),
}

_STRENGTHS: dict[str, tuple[Callable[[float], bool], str]] = {
    "perspective": (lambda x: 0 <= x < 1, "from 0 to below 1"),
    "crop": (lambda x: x >= 0 and x.is_integer(), "a whole number of pixels"),
    "": (lambda x: 0 <= x < math.inf, "a number from 0 on"),
}


@dataclass(frozen=True)
class Augmentation:
    """One of `DEFAULTS`, as written in `--augment`: `NAME[:STRENGTH[:PROBABILITY]]`."""

    name: str
    strength: float
    probability: float


def parse(text: str) -> Augmentation:
    """
    Example: `crop:3`, `perspective:0.4:0.7`, `flip`.

    :raises ExperimentError: an unknown name; an invalid strength or probability
    """
    name, *numbers = text.split(":")
    if name not in DEFAULTS:
        raise ExperimentError(f"--augment {text}: {name!r} is not known; use {', '.join(DEFAULTS)}")
    strength, probability = DEFAULTS[name]
    try:
        values = [float(number) for number in numbers]
    except ValueError:
        raise ExperimentError(
            f"--augment {text}: write {name}:STRENGTH:PROBABILITY with numbers"
        ) from None
    if len(values) > (2 if strength is not None else 0):
        takes = "STRENGTH and PROBABILITY" if strength is not None else "no numbers"
        raise ExperimentError(f"--augment {text}: {name} takes {takes}")
    made = Augmentation(
        name,
        values[0] if values else strength or 0.0,
        values[1] if len(values) > 1 else probability,
    )
    if not 0 <= made.probability <= 1:
        raise ExperimentError(f"--augment {text}: the probability must be between 0 and 1")
    allowed, expected = _STRENGTHS.get(name, _STRENGTHS[""])
    if not allowed(made.strength):
        raise ExperimentError(f"--augment {text}: the strength must be {expected}")
    return made


def check_installed() -> None:
    """
    Check that kornia is installed.

    :raises ExperimentError: it is not
    """
    if not importlib.util.find_spec("kornia"):
        raise ExperimentError("--augment needs kornia: pip install kornia")


def augment(images: Tensor, augmentations: Sequence[Augmentation], seed: int) -> Tensor:
    """
    Transform a batch of images, one augmentation after the other.

    The result follows from the images and the seed; torch's own random state is left as it was.

    :param images: `(B, C, H, W)` in [0, 1]
    :return: images of the same shape, in [0, 1]; pixels from outside of the image are 0
    """
    if not len(images):  # kornia 0.8 rejects empty batches
        return images
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed seeds GPUs too
        for one in augmentations:
            images = _TRANSFORMS[one.name](images, one)
    return images.clamp(0, 1)


def _perspective(images: Tensor, one: Augmentation) -> Tensor:
    from kornia.augmentation import RandomPerspective

    # With align_corners=False kornia 0.8 moves pixels even where no corner moves
    return RandomPerspective(one.strength, p=one.probability, align_corners=True)(images)


def _flip(images: Tensor, one: Augmentation) -> Tensor:
    from kornia.augmentation import RandomHorizontalFlip

    return RandomHorizontalFlip(p=one.probability)(images)


def _crop(images: Tensor, one: Augmentation) -> Tensor:
    from kornia.augmentation import RandomCrop

    height, width = images.shape[-2:]
    cropped = RandomCrop((height, width), padding=int(one.strength))(images)
    # kornia's own probability is one for the whole batch
    return torch.where(_chosen(images, one), cropped, images)


def _noise(images: Tensor, one: Augmentation) -> Tensor:
    """As in the papers' code, `strength` bounds the deviation; kornia has one for all images."""
    deviation = one.strength * torch.rand(len(images), 1, 1, 1) * _chosen(images, one).cpu()
    return images + (deviation * torch.randn(images.shape)).to(images)


def _chosen(images: Tensor, one: Augmentation) -> Tensor:
    """(B, 1, 1, 1): the images that are transformed."""
    return (torch.rand(len(images), 1, 1, 1) < one.probability).to(images.device)


_TRANSFORMS: dict[str, Callable[[Tensor, Augmentation], Tensor]] = {
    "perspective": _perspective,
    "flip": _flip,
    "crop": _crop,
    "noise": _noise,
}
