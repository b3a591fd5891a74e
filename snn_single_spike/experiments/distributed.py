"""Training one network in several processes, started by torchrun."""

from __future__ import annotations

import inspect
import os
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel


@dataclass(frozen=True)
class Processes:
    """This process among the processes of the run; a run without torchrun has one."""

    device: torch.device
    rank: int = 0
    count: int = 1

    @property
    def main(self) -> bool:
        """Whether this process writes and prints."""
        return self.rank == 0

    @property
    def share(self) -> slice:
        """The samples of a batch that this process trains on."""
        return slice(self.rank, None, self.count)

    def wrap(self, network: nn.Module) -> nn.Module:
        """The network with gradients averaged over the processes."""
        if self.count == 1:
            return network
        # Buffers hold constants and last membranes, and must not be broadcast. The option has
        # another name in later versions of torch.
        known = inspect.signature(DistributedDataParallel).parameters
        name = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
        options: dict[str, Any] = {name: False}
        return DistributedDataParallel(network, **options)

    def sum(self, value: Tensor) -> Tensor:
        """The sum over all processes."""
        if self.count > 1:
            value = value.clone()
            _all_reduce(value)
        return value

    def any(self, here: bool) -> bool:
        """Whether the flag is set in at least one process."""
        if self.count == 1:
            return here
        return bool(self.sum(torch.tensor(float(here), device=self.device)) > 0)

    def wait(self) -> None:
        """Block until all processes call this."""
        if self.count > 1:
            distributed.barrier()

    @contextmanager
    def main_first(self) -> Iterator[None]:
        """Run the block in the main process first; the others then find the files it wrote."""
        if not self.main:
            self.wait()
        yield
        if self.main:
            self.wait()


def _all_reduce(value: Tensor) -> None:
    """Sum over all processes, in place.

    A thread of gloo holds the tensor for a moment longer. It needs the interpreter to release it,
    and aborts the process where the interpreter has ended by then. So this waits for the thread.
    """
    given = value.detach()
    held, latest = weakref.ref(given), time.monotonic() + 1
    distributed.all_reduce(given)
    del given
    while value.device.type == "cpu" and held() is not None and time.monotonic() < latest:
        time.sleep(0)


@contextmanager
def processes(device: str) -> Iterator[Processes]:
    """
    Join the other processes of torchrun, if there are any.

    :param device: for `"cuda"` each process takes the GPU of its local rank
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield Processes(torch.device(device))
        return
    place = torch.device(device)
    if place.type == "cuda":
        place = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(place)
    distributed.init_process_group("nccl" if place.type == "cuda" else "gloo")
    try:
        among = Processes(place, distributed.get_rank(), distributed.get_world_size())
        yield among
        among.wait()  # keep connections open until no process needs them
    finally:
        distributed.destroy_process_group()
