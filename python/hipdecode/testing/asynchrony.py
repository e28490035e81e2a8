# SPDX-License-Identifier: MIT
"""Whether a call on a GPU returns at once: it allocates nothing and waits for nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

LONG_CYCLES = 2_000_000_000  # about a second of a GPU's clock
ATTEMPTS = 8


def assert_asynchronous(step: Callable[[], object]) -> None:
    """Run a warm step of the current CUDA device behind a second of work.

    Args:
        step: called 20 times at each attempt.

    Raises:
        AssertionError: the step waited for the stream, or took memory from torch's allocator or,
            at every attempt, from the device. Memory of the device is everybody's, so that of
            another process may come and go during a few attempts, not during all.
        RuntimeError: torch itself synchronised.
    """
    assert any(_takes_no_memory_of_the_device(step) for _ in range(ATTEMPTS))


def _takes_no_memory_of_the_device(step: Callable[[], object]) -> bool:
    torch.cuda.synchronize()
    requests = torch.cuda.memory_stats()["allocation.all.allocated"]
    free = torch.cuda.mem_get_info()[0]
    torch.cuda._sleep(LONG_CYCLES)  # type: ignore[no-untyped-call]
    behind = torch.cuda.Event()  # type: ignore[no-untyped-call]
    behind.record()
    with _no_waiting():
        for _ in range(20):
            step()
    waited = behind.query()  # type: ignore[no-untyped-call]
    assert not waited, "the call waited for what the stream had to do before it"
    assert torch.cuda.memory_stats()["allocation.all.allocated"] == requests
    unchanged = torch.cuda.mem_get_info()[0] == free
    torch.cuda.synchronize()
    return unchanged


@contextmanager
def _no_waiting() -> Iterator[None]:
    """torch raises on every synchronising call of its own."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")
