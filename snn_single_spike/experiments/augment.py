"""Light augmentation of images, before they are coded as spike times.

What moves pixels (perspective, flip, crop) is one homography per image and one resampling. The
random numbers are drawn for a whole batch at once, whichever part of it is then transformed: so
processes that share a batch see the images that one process would.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from . import ExperimentError

# Strength (None: it has none) and probability where the option does not give them
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

    :raises ExperimentError: an unknown name; a strength or probability that cannot be
    """
    name, *numbers = text.split(":")
    if name not in DEFAULTS:
        raise ExperimentError(f"--augment {text}: {name!r} is not known, use {', '.join(DEFAULTS)}")
    strength, probability = DEFAULTS[name]
    try:
        values = [float(number) for number in numbers]
    except ValueError:
        raise ExperimentError(
            f"--augment {text}: write {name}:STRENGTH:PROBABILITY with numbers"
        ) from None
    if len(values) > (2 if strength is not None else 0):
        takes = "STRENGTH and PROBABILITY" if strength is not None else "nothing more"
        raise ExperimentError(f"--augment {text}: {name} takes {takes}")
    made = Augmentation(
        name,
        values[0] if values else strength or 0.0,
        values[1] if len(values) > 1 else probability,
    )
    if not 0 <= made.probability <= 1:
        raise ExperimentError(f"--augment {text}: the probability must lie between 0 and 1")
    allowed, expected = _STRENGTHS.get(name, _STRENGTHS[""])
    if not allowed(made.strength):
        raise ExperimentError(f"--augment {text}: the strength must be {expected}")
    return made


@dataclass(frozen=True)
class Transform:
    """What happens to each image of a batch."""

    corners: Tensor | None
    """(B, 3, 3): homography from places in the new image to places in the old one."""
    noise: Tensor | None
    """(B, C, H, W), to be added."""

    def samples(self, part: slice) -> Transform:
        """That of some images of the batch."""
        return Transform(*(None if x is None else x[part] for x in (self.corners, self.noise)))

    def __call__(self, images: Tensor) -> Tensor:
        """Images `(B, C, H, W)` in [0, 1], transformed; what comes in from outside is 0."""
        if self.corners is not None and len(images):
            images = F.grid_sample(
                images, _grid(self.corners.to(images), images), align_corners=False
            )
        if self.noise is not None:
            images = images + self.noise.to(images)
        return images.clamp(0, 1)


def draw(
    augmentations: Sequence[Augmentation], shape: Sequence[int], generator: torch.Generator
) -> Transform:
    """The transform of a batch of this shape, `(B, C, H, W)`."""
    batch, _, height, width = shape
    corners = noise = None

    def happens(probability: float) -> Tensor:
        return torch.rand(batch, generator=generator) < probability

    for one in augmentations:
        chosen = happens(one.probability)
        if one.name == "noise":
            # As in the papers' code the strength is the largest deviation, not that of all
            deviation = one.strength * torch.rand(batch, generator=generator) * chosen
            more = torch.randn(*shape, generator=generator) * deviation.view(-1, 1, 1, 1)
            noise = more if noise is None else noise + more
            continue
        if one.name == "perspective":
            # Each corner moves inwards by up to this part of half the image
            inwards = 1 - one.strength * torch.rand(batch, 4, 2, generator=generator)
            step = homography(torch.where(chosen[:, None, None], inwards, 1.0))
        elif one.name == "flip":
            step = torch.eye(3).repeat(batch, 1, 1)
            step[:, 0, 0] = torch.where(chosen, -1.0, 1.0)
        else:
            most = int(one.strength)
            shift = torch.randint(-most, most + 1, (batch, 2), generator=generator)
            step = torch.eye(3).repeat(batch, 1, 1)
            step[:, :2, 2] = shift * chosen[:, None] * 2 / torch.tensor([width, height])
        corners = step if corners is None else corners @ step
    return Transform(corners, noise)


_SIGNS = torch.tensor([[-1.0, -1.0], [1.0, -1.0], [-1.0, 1.0], [1.0, 1.0]])


def homography(inwards: Tensor) -> Tensor:
    """(B, 3, 3) maps that take corners of the square [-1, 1]^2 from `inwards * corner`."""
    target, source = _SIGNS.expand_as(inwards), inwards * _SIGNS
    x, y = source.unbind(-1)
    one, zero = torch.ones_like(x), torch.zeros_like(x)
    # u (g x + h y + 1) = a x + b y + c, and likewise v
    u, v = target.unbind(-1)
    rows = torch.cat(
        (
            torch.stack((x, y, one, zero, zero, zero, -u * x, -u * y), -1),
            torch.stack((zero, zero, zero, x, y, one, -v * x, -v * y), -1),
        ),
        1,
    )
    solution = torch.linalg.solve(rows.double(), torch.cat((u, v), 1).double())
    return F.pad(solution, (0, 1), value=1.0).float().view(-1, 3, 3)


def _grid(corners: Tensor, images: Tensor) -> Tensor:
    """(B, H, W, 2): where in the old image each pixel of the new one lies."""
    identity = torch.eye(2, 3).to(corners).expand(len(images), 2, 3)
    places = F.affine_grid(identity, list(images.shape), align_corners=False)
    mapped = F.pad(places, (0, 1), value=1.0).flatten(1, 2) @ corners.transpose(1, 2)
    return (mapped[..., :2] / mapped[..., 2:]).view(places.shape)
