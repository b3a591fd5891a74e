"""The papers' settings for each dataset (arXiv:2205.15286 v2, and its public code)."""

from __future__ import annotations

from typing import Any

# Keys are fields of Config. The papers use neither digits nor the datasets after SHD.
RECIPES: dict[str, dict[str, Any]] = {
    "yinyang": {
        "layers": "120",
        "epochs": 150,
        "milestones": (50, 100),
        # With four inputs only large weights drive a neuron to its threshold
        "weight_scale": (4.0, 1.0),
    },
    "digits": {
        "layers": "128",
        "num_steps": 50,
        "lr": 2e-3,
        "epochs": 30,
        # Chosen on held-out samples: longer decays, and scores that do not saturate
        "surrogate": "atan:2",
        "beta": 0.97,
        "readout_beta": 0.97,
        "score_scale": 0.06,
    },
    "mnist": {
        "layers": "800",
        "epochs": 150,
        "milestones": (15, 90, 120),
        "augment": ("perspective:0.4:0.7", "crop:3", "noise:0.05"),
    },
    "fashion-mnist": {
        "layers": "1000",
        "epochs": 150,
        "milestones": (15, 90, 120),
        "augment": ("perspective:0.1:0.3", "flip", "crop:1", "noise:0.05"),
    },
    "nmnist": {"layers": "300", "num_steps": 300, "epochs": 140, "milestones": (30, 60, 90)},
    "shd": {
        "layers": "300",
        "num_steps": 500,
        "lr": 2e-4,
        "epochs": 140,
        "milestones": (30, 60, 90),
    },
    "ssc": {"layers": "300", "num_steps": 500, "lr": 2e-4, "epochs": 50, "milestones": (30, 40)},
    "dvs-gesture": {"layers": "300", "num_steps": 150, "epochs": 50, "milestones": (30,)},
    "n-caltech101": {"layers": "300", "epochs": 50, "milestones": (30,)},
    "asl-dvs": {"layers": "300", "epochs": 20, "milestones": (10,)},
    "poker-dvs": {"layers": "100", "batch": 8, "epochs": 50},
}
