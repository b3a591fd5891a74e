"""Augmentation of images."""

import pytest
import torch

from snn_single_spike.experiments import ExperimentError, augment


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def transform(images, *texts, seed=0):
    drawn = augment.draw([augment.parse(text) for text in texts], images.shape, generator(seed))
    return drawn(images)


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


def test_a_homography_takes_the_moved_corners_to_the_corners():
    inwards = 1 - 0.4 * torch.rand(5, 4, 2)
    corners = torch.tensor([[-1.0, -1.0], [1.0, -1.0], [-1.0, 1.0], [1.0, 1.0]])
    places = torch.nn.functional.pad(inwards * corners, (0, 1), value=1.0)
    mapped = places @ augment.homography(inwards).transpose(1, 2)
    assert torch.allclose(mapped[..., :2] / mapped[..., 2:], corners.expand(5, 4, 2), atol=1e-5)


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


def test_shares_of_a_batch_see_what_the_whole_batch_sees(images):
    parsed = [augment.parse(text) for text in ("perspective", "flip", "crop", "noise")]
    whole = augment.draw(parsed, images.shape, generator())(images)
    for rank in range(3):
        share = slice(rank, None, 3)
        drawn = augment.draw(parsed, images.shape, generator()).samples(share)
        assert torch.equal(drawn(images[share]), whole[share])


def test_one_resampling_does_what_one_after_the_other_does(images):
    crop, flip = augment.parse("crop:3"), augment.parse("flip")
    both = augment.draw([crop, flip], images.shape, generator())(images)
    source = generator()
    first = augment.draw([crop], images.shape, source)
    second = augment.draw([flip], images.shape, source)
    assert torch.allclose(both, second(first(images)), atol=1e-5)
    assert not torch.allclose(both, first(images), atol=1e-2)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("rotate", "'rotate' is not known, use perspective, flip, crop, noise"),
        ("crop:much", "write crop:STRENGTH:PROBABILITY with numbers"),
        ("flip:1", "flip takes nothing more"),
        ("crop:1:1:1", "crop takes STRENGTH and PROBABILITY"),
        ("noise:0.1:2", "the probability must lie between 0 and 1"),
        ("noise:-1", "the strength must be a number from 0 on"),
        ("perspective:1", "the strength must be from 0 to below 1"),
    ],
)
def test_what_cannot_be_is_refused(text, message):
    with pytest.raises(ExperimentError, match=message) as error:
        augment.parse(text)
    assert f"--augment {text}" in str(error.value)


@pytest.mark.parametrize("text", ["crop:0.9", "crop:nan", "crop:inf", "noise:nan", "noise:inf"])
def test_strengths_that_are_no_numbers_of_their_kind(text):
    with pytest.raises(ExperimentError, match=f"--augment {text}: the strength must be a "):
        augment.parse(text)


def test_two_noises_add_up_and_no_images_stay_none():
    made = [augment.parse(text) for text in ("noise:0.5:1", "noise:0:1", "crop:1")]
    transform = augment.draw(made, (3, 1, 8, 8), torch.Generator().manual_seed(0))
    assert transform.noise.std() > 0.05
    assert transform.samples(slice(0, 0))(torch.rand(0, 1, 8, 8)).shape == (0, 1, 8, 8)
