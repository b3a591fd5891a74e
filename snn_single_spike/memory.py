"""The memory of large CPU tensors that the layers return.

A layer returns CPU tensors of 0.5 MB and more in memory that is kept, and lent to the next result
when the tensor is gone: page faults on fresh memory take longer than the arithmetic. Unused memory
never exceeds the most that was in use at once since the last :func:`release`.

Example::

    from snn_single_spike import memory

    memory.release()                # return unused memory to the system, e.g. after training
    memory.set_allocator("torch")   # from now on as torch.empty; or SNN_SINGLE_SPIKE_MEMORY=torch
"""

from .backends.memory import allocator, release, set_allocator

__all__ = ["allocator", "release", "set_allocator"]
