"""What the README shows has to run."""

import re
from pathlib import Path

import pytest
import torch

from snn_single_spike import SingleSpikeLeaky

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def swap():
    """The network before and after, from the diff on the first screen."""
    lines = re.search(r"```diff\n(.*?)```", README, re.S).group(1).splitlines()
    header = "import torch\nfrom torch import nn\n"
    networks = []
    for sign in "-+":
        code = "\n".join(line[2:] for line in lines if line[:1] in (" ", sign))
        space: dict = {}
        exec(header + code, space)
        networks.append(space["Net"]())
    return networks


def test_the_swap_runs_and_keeps_checkpoints():
    before, after = swap()
    x = (torch.rand(8, 2, 784) > 0.8).float()
    spk_before, mem_before = before(x)
    after.load_state_dict(before.state_dict(), strict=True)
    before.load_state_dict(after.state_dict(), strict=True)
    spk, mem = after(x)
    assert spk.shape == spk_before.shape == (8, 2, 10)
    assert mem.shape == mem_before.shape
    # The first layer's first spikes are the loop's: until then both outputs are the same.
    assert torch.equal(after.lif1(after.fc1(x))[0].sum(0) <= 1, torch.ones(2, 1000) > 0)
    spk.sum().backward()
    assert after.fc1.weight.grad is not None


def test_the_program_shown_learns():
    pytest.importorskip("sklearn", reason="scikit-learn is not installed")
    space: dict = {}
    exec(re.search(r"```python\n(import torch\n.*?)```", README, re.S).group(1), space)
    assert space["accuracy"] > 0.9


def test_the_functions_shown_run():
    block = re.search(r"```python\n(from snn_single_spike import.*?)```", README, re.S).group(1)
    current, fc2 = torch.randn(6, 2, 5), torch.nn.Linear(5, 3)
    space = {"beta": 0.9, "threshold": 1.0, "current": current, "fc2": fc2}
    exec(block, space)
    assert space["scores"].shape == (2, 3)
    assert space["times"].shape == (2, 5)


def test_the_conversion_shown_runs():
    import snntorch as snn

    block = re.search(r"```python\n(from snn_single_spike import convert.*?)```", README, re.S)
    net = torch.nn.Sequential(torch.nn.Linear(5, 4), snn.Leaky(0.9, init_hidden=True, output=True))
    space = {"net": net, "data": torch.rand(6, 2, 5), "images": torch.rand(2, 5)}
    exec(block.group(1), space)
    assert space["spk_rec"].shape == (25, 2, 4)
    assert isinstance(space["net"][1], snn.Leaky)


def test_the_losses_shown_run():
    page = (Path(__file__).parent.parent / "docs" / "losses.md").read_text()
    block = re.search(r"```python\n(from snn_single_spike import losses.*?)```", page, re.S)

    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.fc1, self.fc2 = torch.nn.Linear(5, 8), torch.nn.Linear(8, 3)
            self.lif1, self.lif2 = SingleSpikeLeaky(0.9), SingleSpikeLeaky(0.9)

    x = (torch.rand(6, 2, 5) > 0.5).float()
    space = {"net": Net(), "x": x, "targets": torch.tensor([0, 2])}
    exec(block.group(1), space)
    space["loss"].backward()


def test_no_placeholder_is_left():
    assert not re.search(r"[A-Z]+_TABLE", README)


def test_the_results_are_those_of_the_report():
    """The rows of the table, under the headings of their datasets."""
    report = (ROOT / "benchmarks" / "results" / "report" / "report.md").read_text()
    table = re.search(r"\| \| network \|.*?\n\|[-:|]+\|\n(.*?)\n\n", README, re.S).group(1)
    rows = [[cell.strip() for cell in row.strip("|").split("|")] for row in table.splitlines()]
    assert len(rows) > 5
    for dataset, network, *cells in rows:
        tables = [
            part for part in report.split("\n## ") if part.startswith(f"{dataset}, {network}")
        ]
        assert any(f"\n| {' | '.join(cells)} |" in part for part in tables), (dataset, cells)
