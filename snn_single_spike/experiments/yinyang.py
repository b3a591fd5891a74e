"""Generator of the Yin-Yang dataset of Kriener, Göltz and Petrovici (arXiv:2102.08211)."""

from __future__ import annotations

import math

import numpy as np

RADIUS, DOT = 0.5, 0.1
YIN, YANG, DOTS = 1, 0, 2  # numbered as in the published generator


def classify(x: float, y: float) -> int | None:
    """Class of a point of the unit square, None outside the symbol."""
    if math.hypot(x - RADIUS, y - RADIUS) > RADIUS:
        return None
    right = math.hypot(x - 1.5 * RADIUS, y - RADIUS)
    left = math.hypot(x - 0.5 * RADIUS, y - RADIUS)
    if right < DOT or left < DOT:
        return DOTS
    lower_head = DOT < left <= 0.5 * RADIUS
    upper_half = y > RADIUS and right > 0.5 * RADIUS
    return YIN if right <= DOT or lower_head or upper_half else YANG


def generate(size: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """
    Generate the samples of the published generator for this seed.

    :return: `(size, 4)` float64 of x, y, 1 - x and 1 - y, and `(size,)` int64 classes
    """
    random = np.random.RandomState(seed)  # the published samples come from its stream
    points, classes = np.empty((size, 2)), np.empty(size, np.int64)
    for i in range(size):
        # The class is drawn first, so that all three classes are equally frequent
        classes[i] = random.randint(3)
        found = None
        while found != classes[i]:
            points[i] = random.rand(2)
            found = classify(*points[i].tolist())
    return np.concatenate((points, 1 - points), 1), classes
