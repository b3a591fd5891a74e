"""Small runs of the digits, and what they leave in their folder."""

import torch

from snn_single_spike.experiments import checkpoint, record
from snn_single_spike.experiments.sources import make

SMALL = {
    "dataset": "digits",
    "layers": "20",
    "num_steps": "10",
    "batch": "64",
    "epochs": "3",
    "lr": "5e-3",
    "weight_scale": "3",
    "train_samples": "200",
    "test_samples": "50",
}
TIMES = ("train_seconds", "train_samples_per_second")


def settings(**flags):
    return make({**SMALL, **flags})


def without_times(history):
    return [{k: v for k, v in metrics.items() if k not in TIMES} for metrics in history]


def recorded(folder):
    (found,) = record.read(folder)
    return found


def state(folder):
    return torch.load(folder / checkpoint.NAME, weights_only=True)


def same(a, b):
    """Check that states are equal bit for bit, except for run times."""
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        keys = [key for key in a if key not in (*TIMES, "seconds")]
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in keys)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b
