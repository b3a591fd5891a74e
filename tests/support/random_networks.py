"""Random small networks of every kind of layer that a model may have before its conversion."""

from __future__ import annotations

import math
import random

import snntorch as snn
import torch
from snntorch import surrogate
from torch import Tensor, nn

SURROGATES = {
    "default": None,
    "atan": surrogate.atan(alpha=3.0),
    "fast_sigmoid": surrogate.fast_sigmoid(slope=10),
    "sigmoid": surrogate.sigmoid(slope=5),
    "straight_through_estimator": surrogate.straight_through_estimator(),
    "triangular": surrogate.triangular(),
    "custom": lambda u: torch.sigmoid(4 * u) + ((u > 0).to(u) - torch.sigmoid(4 * u)).detach(),
}
RESETS = ("subtract", "zero", "none")


class Skip(nn.Module):
    """x + f(x)."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return x + self.inner(x)


class Branches(nn.Module):
    """The outputs of two parts side by side."""

    def __init__(self, left: nn.Module, right: nn.Module) -> None:
        super().__init__()
        self.left, self.right = left, right

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat((self.left(x), self.right(x)), dim=1)


class Outputs(nn.Module):
    """A body, and a last neuron that is called without states and returns them."""

    def __init__(self, body: nn.Module, neuron: nn.Module) -> None:
        super().__init__()
        self.body, self.neuron = body, neuron

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        hidden = self.body(x)
        return (*self.neuron(hidden), hidden)


class Maker:
    """Draws a network; ``shape`` is the shape of a sample behind the layers drawn so far."""

    def __init__(self, seed: int) -> None:
        self.draw = random.Random(seed)
        torch.manual_seed(seed)
        image = self.draw.random() < 0.5
        side = self.draw.randint(5, 8)
        self.input = (self.draw.randint(1, 2), side, side) if image else (self.draw.randint(3, 9),)
        self.shape = self.input

    def network(self) -> nn.Module:
        body = nn.Sequential(*(self._block() for _ in range(self.draw.randint(0, 2))))
        last = [*self._flatten(), self._affine()]
        neuron = self.neuron(init_hidden=False)
        if self.draw.random() < 0.5:
            return Outputs(nn.Sequential(body, *last), neuron).eval()
        return nn.Sequential(body, *last, self.neuron(output=True)).eval()

    def neuron(self, **options: object) -> nn.Module:
        kind = self.draw.choice(
            ("Leaky", "Leaky", "Leaky", "Synaptic", "Alpha", "Lapicque", "RLeaky")
        )
        options = {
            "init_hidden": True,
            "threshold": self._value(0.3, 1.2),
            "reset_mechanism": self.draw.choice(RESETS),
            "spike_grad": SURROGATES[self.draw.choice(list(SURROGATES))],
            "learn_threshold": self.draw.random() < 0.3,
            **options,
        }
        if kind in ("Leaky", "Synaptic", "RLeaky"):
            options["learn_beta"] = self.draw.random() < 0.5
            options["beta"] = self._value(0.0, 1.0)
        if kind == "Leaky":
            options["graded_spikes_factor"] = self.draw.choice((1.0, 0.5, 2.0))
        if kind == "Synaptic":
            options["alpha"] = self._value(0.1, 0.9)
        if kind == "Alpha":
            options |= {"alpha": self.draw.uniform(0.6, 0.9), "beta": self.draw.uniform(0.1, 0.5)}
        if kind == "Lapicque":
            options |= {"R": self.draw.uniform(1, 2), "C": self.draw.uniform(1, 3)}
        if kind == "RLeaky":
            options |= {"V": self._value(-0.5, 0.5), "all_to_all": False}
            if options["spike_grad"] is SURROGATES["custom"]:  # feedback needs a fused surrogate
                options["spike_grad"] = None
        return getattr(snn, kind)(**options)

    def _value(self, low: float, high: float) -> float | Tensor:
        """One number, or one for each neuron or channel."""
        if self.draw.random() < 0.5:
            return self.draw.uniform(low, high)
        size = (self.shape[0], *[1] * (len(self.shape) - 1))
        return torch.rand(size) * (high - low) + low

    def _block(self) -> nn.Module:
        if self.draw.random() < 0.3:
            return self._joined()
        if len(self.shape) == 3 and self.draw.random() < 0.3:
            flat = self._flatten()
            return nn.Sequential(*flat, self._affine(), self.neuron())
        layers = [self._affine(), *self._norm(), *self._pool(), self.neuron()]
        between = ([nn.Identity()], [nn.Dropout(0.5)], [nn.Tanh()], [], [])
        return nn.Sequential(*layers, *self.draw.choice(between), *self._pool())

    def _joined(self) -> nn.Module:
        before = self.shape
        parts = []
        for _ in range(2):
            self.shape = before
            parts.append(nn.Sequential(self._same_size(), self.neuron()))
        if self.draw.random() < 0.5:
            return Skip(parts[0])
        self.shape = (2 * before[0], *before[1:])
        return Branches(*parts)

    def _same_size(self) -> nn.Module:
        size = self.shape[0]
        if len(self.shape) == 1:
            return self._scaled(nn.Linear(size, size))
        return self._scaled(nn.Conv2d(size, size, 3, padding=1))

    def _affine(self) -> nn.Module:
        size, out, bias = self.shape[0], self.draw.randint(2, 6), self.draw.random() < 0.7
        if len(self.shape) == 1:
            self.shape = (out,)
            return self._scaled(nn.Linear(size, out, bias=bias))
        side = self.shape[1]
        kernel = self.draw.choice([k for k in (1, 2, 3) if k <= side])
        layer = nn.Conv2d(size, out, kernel, bias=bias, stride=self.draw.choice((1, 1, 2)))
        self.shape = (out, *layer(torch.zeros(1, *self.shape)).shape[2:])
        return self._scaled(layer)

    def _scaled(self, layer: nn.Module) -> nn.Module:
        layer.weight.data *= self.draw.uniform(2, 5)  # so that neurons fire
        return layer

    def _flatten(self) -> list[nn.Module]:
        if len(self.shape) == 1:
            return []
        self.shape = (math.prod(self.shape),)
        return [nn.Flatten()]

    def _norm(self) -> list[nn.Module]:
        size = self.shape[0]
        batch_norm = nn.BatchNorm1d(size) if len(self.shape) == 1 else nn.BatchNorm2d(size)
        batch_norm.running_mean.uniform_(-0.2, 0.2)
        return self.draw.choice(([batch_norm], [nn.GroupNorm(1, size)], [], [], []))

    def _pool(self) -> list[nn.Module]:
        if len(self.shape) == 1 or min(self.shape[1:]) < 2 or self.draw.random() < 0.5:
            return []
        pool = self.draw.choice((nn.AvgPool2d(2), nn.MaxPool2d(2), nn.AvgPool2d(2, ceil_mode=True)))
        self.shape = (self.shape[0], *pool(torch.zeros(1, *self.shape)).shape[2:])
        return [pool]
