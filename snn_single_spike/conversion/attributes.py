"""What a converted model holds: its options, and what its first calls have found out."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import Any

from .refusals.order import Order
from .time_axis import Time

__all__ = ["Conversion", "Decision"]


@dataclass
class Conversion:
    """The attributes that conversion adds to a model."""

    time: Time
    num_steps: int | None
    time_dim: int = 0
    decisions: dict[bool, Decision] = field(default_factory=dict)  # by training or not
    records: set[Any] = field(default_factory=set)  # attributes that the model only writes
    order: Order = field(default_factory=Order)
    looped: bool = False
    """Whether the model has its own loop over time, which runs all steps at once."""
    check: bool | None = None
    """Whether the first calls compare the model with its author's; None where it has own code."""
    fixed_batch: bool = False
    """Whether a forward reshapes with a batch size that it does not take from a tensor."""
    auto: bool = False
    """Whether the model chooses the format of spikes: ``spike_format="auto"``."""
    keep_loop: Any = None
    """A function that turns the model back if its first calls fail; None if they then raise."""
    formats: dict[Any, Any] = field(default_factory=dict)
    """The formats that follow from the first calls, by what the readers of spikes depend on."""
    comparisons: dict[bool, int] = field(default_factory=dict)  # by training or not
    compared_steps: dict[bool, int] = field(default_factory=dict)
    """Steps of the longest loop of the last comparison."""
    comparing: threading.Lock = field(default_factory=threading.Lock)
    """Held by the thread that compares: the others go on."""

    def __reduce__(self) -> Any:
        decided: tuple[Any, ...] = ({}, set(), Order())
        options = (self.looped, self.check, self.fixed_batch, self.auto, self.keep_loop)
        return Conversion, (self.time, self.num_steps, self.time_dim, *decided, *options)


@dataclass
class Decision:
    """How a model draws random numbers, found in its first call."""

    draws: bool
    expand: bool
    """Whether a static input is expanded over time before the model, not at the first neuron."""
    loops: Any = None
    """Sizes of the batch in loops of the model's own, and names that their steps index."""
    sizes: Any = None
    """The shapes of the inputs that these sizes are for."""
    settings: dict[Any, Any] = field(default_factory=dict)
    """The numbers and flags of the model that the decision holds for."""
