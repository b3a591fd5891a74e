"""scikit-learn's digits: 1,797 images of 8 x 8 pixels, installed with the library."""

from __future__ import annotations

import torch
from torch import Tensor


def load_digits(seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """
    Split the digits into a training set and a test set.

    :param seed: of the split, which holds a fifth of each class for the test
    :return: training pixels `(N, 64)` in [0, 1], training labels, test pixels, test labels
    """
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    x, y = load_digits(return_X_y=True)
    parts = train_test_split(x / 16.0, y, test_size=0.2, random_state=seed, stratify=y)
    x_train, x_test, y_train, y_test = (torch.as_tensor(part) for part in parts)
    return x_train.float(), y_train, x_test.float(), y_test
