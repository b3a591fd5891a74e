"""Augmentation of images."""

import pytest
import torch

from snn_single_spike.experiments import ExperimentError, augment

pytest.importorskip("kornia", reason="kornia transforms the images")


def transform(images, *texts, seed=0):
    return augment.augment(images, [augment.parse(text) for text in texts], seed)


@pytest.fixture
def images():
    return torch.rand(16, 1, 12, 10)


def test_nothing_happens_at_probability_or_strength_0(images):
    for text in ("perspective:0.5:0", "perspective:0:1", "crop:0", "noise:0.1:0", "noise:0"):
        assert torch.allclose(transform(images, text), images, atol=1e-5), text


def test_flip_turns_about_half_of_the_images_over(images):
    out = transform(images, "flip")
    turned = [torch.allclose(a, b.flip(-1), atol=1e-5) for a, b in zip(out, images, strict=True)]
    kept = [torch.allclose(a, b, atol=1e-5) for a, b in zip(out, images, strict=True)]
    assert all(a != b for a, b in zip(turned, kept, strict=True))
    assert 3 < sum(turned) < 13


def test_crop_shifts_by_whole_pixels_and_fills_with_0(images):
    seen = set()
    for out, image in zip(transform(images, "crop:2"), images, strict=True):
        padded = torch.nn.functional.pad(image, (2, 2, 2, 2))
        found = [
            (dy, dx)
            for dy in range(5)
            for dx in range(5)
            if torch.allclose(out, padded[:, dy : dy + 12, dx : dx + 10], atol=1e-5)
        ]
        assert len(found) == 1
        seen.update(found)
    assert len(seen) > 5


def test_perspective_shrinks_towards_the_middle():
    images = torch.ones(8, 1, 28, 28)
    out = transform(images, "perspective:0.4:1")
    assert torch.allclose(out[:, :, 14, 14], torch.ones(8, 1), atol=1e-5)
    assert (out.mean((1, 2, 3)) < 0.95).all()
    assert (out.mean((1, 2, 3)) > 0.6**2).all()


def test_noise_is_as_strong_as_asked_and_stays_in_range():
    out = transform(torch.full((400, 1, 28, 28), 0.5), "noise:0.2:0.75")
    deviation = out.std((1, 2, 3))
    assert 0.6 < (deviation > 0).float().mean() < 0.9
    # Uniform between 0 and 0.2
    assert deviation[deviation > 0].mean() == pytest.approx(0.1, abs=0.015)
    assert deviation.max() < 0.21
    assert transform(torch.ones(4, 1, 8, 8), "noise:0.5:1").max() == 1


def test_a_seed_gives_the_same_images_and_leaves_the_random_state(images):
    names = ("perspective", "flip", "crop", "noise")
    first = transform(images, *names, seed=1 << 63)
    before = torch.get_rng_state()
    assert torch.equal(transform(images, *names, seed=1 << 63), first)
    assert torch.equal(torch.get_rng_state(), before)
    assert not torch.allclose(transform(images, *names, seed=1), first)


def test_crop_shifts_as_many_images_as_asked():
    out = transform(torch.rand(1000, 1, 6, 6) + 0.001, "crop:1:0.3")
    still = out[:, :, 1:-1, 1:-1].ne(0).all(-1).all(-1).sum()
    assert still == 1000
    moved = (out == 0).flatten(1).any(1).float().mean()
    assert 0.2 < moved < 0.33  # 3 in 10 are shifted, and 8 in 9 of these by at least one pixel


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("rotate", "'rotate' is not known; use perspective, flip, crop, noise"),
        ("crop:much", "write crop:STRENGTH:PROBABILITY with numbers"),
        ("flip:1", "flip takes no numbers"),
        ("crop:1:1:1", "crop takes STRENGTH and PROBABILITY"),
        ("noise:0.1:2", "the probability must be between 0 and 1"),
        ("noise:-1", "the strength must be a number from 0 on"),
        ("perspective:1", "the strength must be from 0 to below 1"),
    ],
)
def test_invalid_augmentations_are_rejected(text, message):
    with pytest.raises(ExperimentError, match=message) as error:
        augment.parse(text)
    assert f"--augment {text}" in str(error.value)


@pytest.mark.parametrize("text", ["crop:0.9", "crop:nan", "crop:inf", "noise:nan", "noise:inf"])
def test_invalid_strengths_are_rejected(text):
    with pytest.raises(ExperimentError, match=f"--augment {text}: the strength must be a "):
        augment.parse(text)


def test_two_noises_add_up_and_no_images_stay_none():
    flat = torch.full((3, 1, 8, 8), 0.5)
    once = transform(flat, "noise:0.05:1") - flat
    both = transform(flat, "noise:0.05:1", "noise:0.5:1", "noise:0:1", "crop:0") - flat
    assert both.std() > 2 * once.std() > 0
    for text in ("crop:1", "perspective", "flip", "noise"):
        assert transform(torch.rand(0, 1, 8, 8), text).shape == (0, 1, 8, 8)


def test_a_missing_kornia_is_reported(monkeypatch):
    monkeypatch.setattr(augment.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ExperimentError, match="--augment needs kornia: pip install kornia"):
        augment.check_installed()
