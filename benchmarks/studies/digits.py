"""Single-spike networks, a multi-spike snn.Leaky network and its converted checkpoint, on digits.

    python -m benchmarks.studies.digits [--threads 1] [--out benchmarks/results/digits.json]

The data are scikit-learn's digits, latency-coded (every input spikes once), with T=25. The network
is 64-128-10, trained for 30 epochs with Adam at 5e-3. There is one split, and its test part serves
the final figures only. Beta (a number, or learned for each neuron) and the loss of the multi-spike
network are chosen on a validation part of the training set, with other seeds. Every method chooses
from the same list of betas. (The list was extended once, because the largest beta was always the
best. Test figures had been seen by then.) Losses, regularizers and neurons have their defaults.

- multi-spike: snn.Leaky in a loop over time, as in snnTorch's tutorials 5 and 6.
- single spike: the same network of SingleSpikeLeaky, classified by its earliest spike or, with a
  LeakyReadout as its last layer, by the summed membrane.
- checkpoint: the trained multi-spike network, loaded with strict=True into a converted network. The
  table gives the accuracy without and with some epochs of fine-tuning.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable
from pathlib import Path

import snntorch as snn
import snntorch.functional as SF
import torch
from snntorch import utils
from torch import Tensor, nn

from snn_single_spike import LeakyReadout, SingleSpikeLeaky, convert, losses, metrics
from snn_single_spike.experiments.demo import latency_code
from snn_single_spike.experiments.digits import load_digits

from benchmarks.harness import machine

STEPS, HIDDEN, CLASSES, BATCH, EPOCHS = 25, 128, 10, 128, 30
SPLIT = 0
SEEDS = (0, 1, 2)
CHOOSING_SEEDS = (10, 11)
RATE = 5e-3
FINE_TUNING = (1, 3, 10)  # epochs

Output = tuple[Tensor, Tensor, Tensor]  # hidden spikes, output spikes, output membrane or scores
Loss = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]  # an Output and the targets
Data = tuple[Tensor, Tensor]
Leak = Callable[[int], dict[str, object]]  # arguments of a layer, from its number of neurons


def fixed(beta: float) -> Leak:
    return lambda neurons: {"beta": beta}


def learned(beta: float) -> Leak:
    return lambda neurons: {"beta": torch.full((neurons,), beta), "learn_beta": True}


LEAKS: dict[str, Leak] = {
    "0.9": fixed(0.9),
    "0.95": fixed(0.95),
    "0.99": fixed(0.99),
    "learned, from 0.95": learned(0.95),
}


class Step(nn.Module):
    """One time step, as snnTorch's users write it."""

    def __init__(self, leak: Leak) -> None:
        super().__init__()
        self.fc1 = nn.Linear(64, HIDDEN)
        self.lif1 = snn.Leaky(**leak(HIDDEN), init_hidden=True)
        self.fc2 = nn.Linear(HIDDEN, CLASSES)
        self.lif2 = snn.Leaky(**leak(CLASSES), init_hidden=True, output=True)

    def forward(self, x: Tensor) -> Output:
        spk1 = self.lif1(self.fc1(x))
        return spk1, *self.lif2(self.fc2(spk1))


class MultiSpike(nn.Module):
    """The loop over time."""

    def __init__(self, leak: Leak) -> None:
        super().__init__()
        self.step = Step(leak)

    def forward(self, x: Tensor) -> Output:
        utils.reset(self.step)
        spk1, spk2, mem2 = zip(*(self.step(frame) for frame in x), strict=True)
        return torch.stack(spk1), torch.stack(spk2), torch.stack(mem2)


class SingleSpike(nn.Module):
    def __init__(self, leak: Leak) -> None:
        super().__init__()
        self.fc1 = nn.Linear(64, HIDDEN)
        self.lif1 = SingleSpikeLeaky(**leak(HIDDEN))
        self.fc2 = nn.Linear(HIDDEN, CLASSES)
        self.lif2 = SingleSpikeLeaky(**leak(CLASSES))

    def forward(self, x: Tensor) -> Output:
        spk1, _ = self.lif1(self.fc1(x))
        return spk1, *self.lif2(self.fc2(spk1))


class SingleSpikeReadout(SingleSpike):
    """A network whose last layer never fires."""

    def __init__(self, leak: Leak) -> None:
        super().__init__(leak)
        self.lif2 = LeakyReadout(**leak(CLASSES))

    def forward(self, x: Tensor) -> Output:
        spk1, _ = self.lif1(self.fc1(x))
        scores = self.lif2(self.fc2(spk1))
        return spk1, torch.zeros(STEPS, *scores.shape), scores


def on_spikes(loss: Callable[[Tensor, Tensor], Tensor]) -> Loss:
    return lambda spk1, spk2, mem2, targets: loss(spk2, targets)


def on_membrane(loss: Callable[[Tensor, Tensor], Tensor]) -> Loss:
    return lambda spk1, spk2, mem2, targets: loss(mem2, targets)


def regularized(loss: Loss) -> Loss:
    revive = losses.firing_regularizer()
    return lambda spk1, *rest: loss(spk1, *rest) + revive(spk1)


def tutorial_5(mem2: Tensor, targets: Tensor) -> Tensor:
    """Cross entropy on the membrane at every step, summed."""
    return sum(nn.functional.cross_entropy(mem, targets) for mem in mem2)


# Accuracy, classified by the quantity that the loss trains
def by_count(out: Output, targets: Tensor) -> float:
    return (out[1].sum(0).argmax(1) == targets).float().mean().item()


def by_membrane(out: Output, targets: Tensor) -> float:
    return metrics.accuracy_membrane(out[2], targets)


def by_first_spike(out: Output, targets: Tensor) -> float:
    return metrics.accuracy_temporal(out[1], targets, mem_out=out[2])


Read = Callable[[Output, Tensor], float]
Method = tuple[type[nn.Module], Loss, Read]

CE_TEMPORAL = on_spikes(losses.ce_temporal_loss())
MSE_TEMPORAL = on_spikes(losses.mse_temporal_loss())
CE_MEMBRANE = on_membrane(losses.ce_membrane_loss())

MULTI: dict[str, Method] = {
    "SF.ce_rate_loss()": (MultiSpike, on_spikes(SF.ce_rate_loss()), by_count),
    "SF.ce_count_loss()": (MultiSpike, on_spikes(SF.ce_count_loss()), by_count),
    "cross entropy on the membrane": (MultiSpike, on_membrane(tutorial_5), by_membrane),
}
SINGLE: dict[str, Method] = {
    "LeakyReadout, ce_membrane_loss()": (SingleSpikeReadout, CE_MEMBRANE, by_membrane),
    "ce_temporal_loss()": (SingleSpike, CE_TEMPORAL, by_first_spike),
    "ce_temporal_loss(), firing_regularizer() on the hidden layer": (
        SingleSpike,
        regularized(CE_TEMPORAL),
        by_first_spike,
    ),
    "mse_temporal_loss()": (SingleSpike, MSE_TEMPORAL, by_first_spike),
    "mse_temporal_loss(), firing_regularizer() on the hidden layer": (
        SingleSpike,
        regularized(MSE_TEMPORAL),
        by_first_spike,
    ),
}
FINE_TUNED: dict[str, tuple[Loss, Read]] = {
    "ce_temporal_loss()": (CE_TEMPORAL, by_first_spike),
    "mse_temporal_loss()": (MSE_TEMPORAL, by_first_spike),
    "ce_membrane_loss()": (CE_MEMBRANE, by_membrane),
}


def train(net: nn.Module, loss_fn: Loss, data: Data, epochs: int) -> None:
    x, y = data
    optimizer = torch.optim.Adam(net.parameters(), lr=RATE)
    for _ in range(epochs):
        for batch in torch.randperm(len(y)).split(BATCH):
            loss = loss_fn(*net(x[:, batch]), y[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()


def fit(method: Method, leak: str, data: Data, seed: int) -> nn.Module:
    make, loss_fn, _ = method
    torch.manual_seed(seed)
    net = make(LEAKS[leak])
    train(net, loss_fn, data, EPOCHS)
    return net


@torch.no_grad()
def measure(net: nn.Module, read: Read, data: Data) -> dict[str, float]:
    """Accuracy in %, and spikes per sample of both layers."""
    x, y = data
    out = net(x)
    return {
        "accuracy": 100 * read(out, y),
        "hidden": out[0].sum().item() / len(y),
        "output": out[1].sum().item() / len(y),
    }


def choose(method: Method, fitting: Data, validation: Data) -> dict[str, float]:
    """Mean accuracy on the validation part with each leak."""
    found = {}
    for leak in LEAKS:
        nets = [fit(method, leak, fitting, seed) for seed in CHOOSING_SEEDS]
        found[leak] = statistics.mean(
            measure(net, method[2], validation)["accuracy"] for net in nets
        )
    return found


def convert_checkpoint(trained: MultiSpike, leak: Leak) -> nn.Module:
    """Convert the trained network through its state_dict, as from a file."""
    net = convert(Step(leak))
    net.load_state_dict(trained.step.state_dict(), strict=True)
    return net


def summarize(runs: list[dict[str, float]], dense: dict[str, float] | None) -> dict[str, object]:
    """Means, the accuracy of each seed, and the reduction of spikes in %."""
    mean = {name: statistics.mean(run[name] for run in runs) for name in runs[0]}
    out: dict[str, object] = {
        "accuracy": mean["accuracy"],
        "accuracy_of_seeds": [run["accuracy"] for run in runs],
        "hidden_spikes": mean["hidden"],
        "output_spikes": mean["output"],
    }
    if dense:
        both, both_dense = (m["hidden"] + m["output"] for m in (mean, dense))
        out["fewer_hidden_spikes"] = 100 * (1 - mean["hidden"] / dense["hidden"])
        out["fewer_spikes"] = 100 * (1 - both / both_dense)
    return out


def show(name: str, result: dict[str, object]) -> None:
    seeds = " ".join(f"{accuracy:.1f}" for accuracy in result["accuracy_of_seeds"])  # type: ignore
    spikes = f"{result['hidden_spikes']:.1f} + {result['output_spikes']:.1f}"
    fewer = f"{result['fewer_hidden_spikes']:.0f} %" if "fewer_hidden_spikes" in result else ""
    print(f"| {name} | {result['accuracy']:.1f} ({seeds}) | {spikes} | {fewer} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, help="write the results as JSON")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)

    x, y, x_test, y_test = load_digits(SPLIT)
    coded = latency_code(x, STEPS)
    training, test = (coded, y), (latency_code(x_test, STEPS), y_test)
    # A quarter of the training samples, already shuffled by the split
    held = len(y) // 4
    validation, fitting = (coded[:, :held], y[:held]), (coded[:, held:], y[held:])

    tried = {name: choose(method, fitting, validation) for name, method in (MULTI | SINGLE).items()}
    chosen = {name: max(found, key=found.__getitem__) for name, found in tried.items()}
    for name, leak in chosen.items():
        print(f"{name}: beta {leak}, {tried[name][leak]:.1f} % on the validation part")
    reference = max(MULTI, key=lambda name: tried[name][chosen[name]])
    print(f"multi-spike network of the comparison: {reference}\n")

    results: dict[str, dict[str, object]] = {}
    nets: dict[str, list[nn.Module]] = {}
    runs: dict[str, list[dict[str, float]]] = {}
    for name, method in (MULTI | SINGLE).items():
        nets[name] = [fit(method, chosen[name], training, seed) for seed in SEEDS]
        runs[name] = [measure(net, method[2], test) for net in nets[name]]
    dense = {
        key: statistics.mean(run[key] for run in runs[reference]) for key in runs[reference][0]
    }

    def report(name: str, of: list[dict[str, float]], compare: bool = True) -> None:
        results[name] = summarize(of, dense if compare else None)
        show(name, results[name])

    print("| | accuracy (seeds) | spikes, hidden + output | fewer hidden spikes |")
    print("|---|--:|--:|--:|")
    for name in MULTI:
        report(f"multi-spike, {name}", runs[name], compare=False)
    for name in SINGLE:
        report(f"single spike, {name}", runs[name])

    trained_with = LEAKS[chosen[reference]]
    first = [measure(net, by_first_spike, test) for net in nets[reference]]
    report("multi-spike checkpoint, by its first spike", first, compare=False)

    def converted() -> list[nn.Module]:
        return [convert_checkpoint(net, trained_with) for net in nets[reference]]

    for read in (by_first_spike, by_membrane):
        as_is = [measure(net, read, test) for net in converted()]
        report(f"checkpoint converted as it is, {read.__name__}", as_is)
    for name, (loss_fn, read) in FINE_TUNED.items():
        for epochs in FINE_TUNING:
            tuned = converted()
            for seed, net in zip(SEEDS, tuned, strict=True):
                torch.manual_seed(seed)
                train(net, loss_fn, training, epochs)
            label = f"checkpoint converted, {epochs} epochs of {name}, {read.__name__}"
            report(label, [measure(net, read, test) for net in tuned])

    if options.out:
        report_ = {
            "machine": machine.describe() | {"threads": torch.get_num_threads()},
            "task": {"num_steps": STEPS, "hidden": HIDDEN, "epochs": EPOCHS, "seeds": SEEDS},
            "chosen_beta": chosen,
            "validation_accuracy": tried,
            "reference": reference,
            "test": results,
        }
        options.out.write_text(json.dumps(report_, indent=1) + "\n")


if __name__ == "__main__":
    main()
