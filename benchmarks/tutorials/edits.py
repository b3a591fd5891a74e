"""The lines of each tutorial script that a conversion changes."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import NamedTuple

FOLDER = Path(__file__).parent

Edits = dict[str, str]
"""A line of the script, and the lines that replace it."""

_IMPORT = {"import torch\n": "import torch\nfrom snn_single_spike import convert\n"}


class Tutorial(NamedTuple):
    """A script, and two ways to convert it."""

    file: str
    title: str
    every_spike: Edits
    """All spikes, as before."""
    single_spike: Edits
    """At most one spike per neuron."""
    epochs: int
    """Epochs and samples of the training that gives the accuracies."""
    train_samples: int = 10_000
    test_samples: int = 2000

    def source(self, version: str) -> str:
        """The script: `"loop"` as it is, or `"every spike"` or `"single spike"`."""
        text = (FOLDER / self.file).read_text()
        for line, replacement in self.edits(version).items():
            assert text.count(line) == 1, (self.file, line)
            text = text.replace(line, replacement)
        return text

    def edits(self, version: str) -> Edits:
        known = {"loop": {}, "every spike": self.every_spike, "single spike": self.single_spike}
        return known[version]

    def lines(self, version: str) -> int:
        """Number of lines added, removed or rewritten."""
        before, after = (self.source(x).splitlines() for x in ("loop", version))
        blocks = difflib.SequenceMatcher(None, before, after, autojunk=False).get_opcodes()
        return sum(max(i2 - i1, j2 - j1) for kind, i1, i2, j1, j2 in blocks if kind != "equal")


def _class(call: str) -> tuple[Edits, Edits]:
    """Edits of a class with its loop in `forward`."""
    before = f"net = {call}.to(device)\n"
    return (
        _IMPORT | {before: f"net = convert({call}, refractory=0).to(device)\n"},
        _IMPORT | {before: f"net = convert({call}).to(device)\n"},
    )


def _sequential(forward: str, static: bool) -> tuple[Edits, Edits]:
    """Edits of an `nn.Sequential` and its function `forward_pass`."""
    steps = ", num_steps=num_steps" if static else ""
    loop = (FOLDER / forward).read_text()
    start = loop.index("def forward_pass")
    body = loop[start : loop.index("\n\n\n", start)]
    *_, last = body.splitlines()
    result = "net(data)" if "mem_rec" in last else "net(data)[0]"
    called = f"{body.splitlines()[0]}\n    return {result}"

    def edits(option: str) -> Edits:
        return _IMPORT | {
            "net = nn.Sequential(\n": "net = convert(nn.Sequential(\n",
            ").to(device)\n": f"){steps}{option}).to(device)\n",
            body: called,
        }

    return edits(", refractory=0"), edits("")


# A neuron that fires once reaches no rate: the loss and the decision read the membrane.
_MEMBRANE = {
    "import torch\n": "import torch\nfrom snn_single_spike import convert, metrics\n",
    "loss_fn(spk_rec, targets)": "loss_fn(mem_rec.sum(0), targets)",
    "SF.accuracy_rate(spk_rec, targets)": "metrics.accuracy_membrane(mem_rec, targets)",
}
_SIX_MEMBRANE = _MEMBRANE | {
    "SF.ce_rate_loss()": "nn.CrossEntropyLoss()",
}
_SEVEN_MEMBRANE = _MEMBRANE | {
    "SF.mse_count_loss(correct_rate=0.8, incorrect_rate=0.2)": "nn.CrossEntropyLoss()",
    "lr=2e-2": "lr=2e-3",
    "net.train()\n        spk_rec = ": "net.train()\n        spk_rec, mem_rec = ",
    "targets.to(device)\n        spk_rec = ": "targets.to(device)\n        spk_rec, mem_rec = ",
    "net(data)[0]": "net(data)",
}

_five, _five_once = _class("Net()")
_regress, _regress_once = _class("Net()")
_six, _six_once = _sequential("tutorial_6.py", static=True)
_seven, _seven_once = _sequential("tutorial_7.py", static=False)
_population, _population_once = _sequential("population.py", static=True)

TUTORIALS = {
    "tutorial_5": Tutorial(
        "tutorial_5.py",
        "tutorial 5: 784-1000-10, static image, T=25",
        _five,
        _five_once | {"spk_rec.sum(dim=0).max(1)\n": "mem_rec.sum(dim=0).max(1)\n"},
        3,
    ),
    "tutorial_6": Tutorial(
        "tutorial_6.py",
        "tutorial 6: 12C5-P2-64C5-P2-10, static image, T=50",
        _six,
        _six_once | _SIX_MEMBRANE,
        1,
        2000,
        300,
    ),
    "tutorial_7": Tutorial(
        "tutorial_7.py",
        "tutorial 7: N-MNIST, 12C5-P2-32C5-P2-10, T=30",
        _seven,
        _seven_once | _SEVEN_MEMBRANE,
        2,
    ),
    "population": Tutorial(
        "population.py",
        "population: 784-128-500, T=1",
        _population,
        _population_once,
        3,
    ),
    "regression": Tutorial(
        "regression.py",
        "regression: 1-128-128-1, T=50",
        _regress,
        _regress_once,
        10,
    ),
}
VERSIONS = ("loop", "every spike", "single spike")
