# SPDX-License-Identifier: MIT
"""Times of a GPU: graph replays between two events, each after a sweep that empties the caches.

A replay launches what a call launches and nothing of what the host does for it, as a serving engine
runs it. The sweep reads more memory than the last-level cache holds, so no call finds its KV there,
nor its code: a kernel as large as the instruction caches goes before, whoever went before that.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from hipdecode.target import Target
from hipdecode.testing.timing import Clock, HostClock, Thunk, measure

SWEEP_BYTES = 256 << 20
WARMUP = 8
"""Turns before the first that counts: a GPU that was idle takes seven to reach its clock."""
_CEILING_BYTES = 1 << 30
_CEILING_ROUNDS = 30


class DeviceClock:
    """Times graph replays on the current device, caches cold; see `timing.Clock`.

    Without Triton the instruction caches keep what they hold.
    """

    name = "device"

    def __init__(self) -> None:
        """Captures the sweep."""
        read = reader(torch.zeros(SWEEP_BYTES // 4, dtype=torch.int32, device="cuda"))
        evict = code_evictor()

        def sweep() -> None:
            evict()
            read()

        self._sweep = self.ready(sweep)

    def ready(self, thunk: Thunk) -> Thunk:
        """Warms a call up and captures it."""
        thunk()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            thunk()

        return _Replay(graph, thunk)

    def start(self, thunk: Thunk) -> Callable[[], float]:
        """See timing.Clock; only the reading waits for the device."""
        begin, end = (torch.Event("cuda", enable_timing=True) for _ in range(2))
        self._sweep()
        begin.record()
        thunk()
        end.record()

        def reading() -> float:
            end.synchronize()
            return float(begin.elapsed_time(end))

        return reading


class WarmDeviceClock(DeviceClock):
    """Times graph replays back to back: code is warm, and caches hold what they hold."""

    name = "device_warm"

    def __init__(self) -> None:
        """Sweeps nothing."""
        self._sweep = lambda: None


@dataclass(frozen=True, slots=True)
class _Replay:
    """A captured call with the thunk that holds its tensors."""

    graph: torch.cuda.CUDAGraph
    thunk: Thunk

    def __call__(self) -> None:
        self.graph.replay()


def clock_of(where: Target) -> Clock:
    """The clock that is right for a target's kernels."""
    return DeviceClock() if where.device_type == "cuda" else HostClock.here()


def reader(buffer: Tensor) -> Thunk:
    """A thunk that reads an int32 buffer once and writes next to nothing.

    By a kernel of Triton where that is installed, as it is beside torch on NVIDIA GPUs; torch's own
    reductions are up to a fifth slower.
    """
    try:
        from hipdecode.testing.triton_kernels import read
    except ImportError:
        return lambda: torch.amax(buffer)
    sink = torch.zeros(1, dtype=torch.int32, device=buffer.device)
    return lambda: read(buffer, sink)


def code_evictor() -> Thunk:
    """A thunk that walks through more code than an instruction cache holds, on every SM."""
    try:
        from hipdecode.testing.triton_kernels import WALK_LANES, walk_code
    except ImportError:
        return lambda: None
    units = torch.cuda.get_device_properties(0).multi_processor_count
    sink = torch.zeros(WALK_LANES, device="cuda")
    return lambda: walk_code(sink, 2 * units)


def read_gbs(clock: Clock) -> float:
    """GB/s at which this GPU reads 1 GiB that no cache holds."""
    buffer = torch.zeros(_CEILING_BYTES // 4, dtype=torch.int32, device="cuda")
    took = measure(
        {"read": [clock.ready(reader(buffer))]}, rounds=_CEILING_ROUNDS, warmup=WARMUP, clock=clock
    )
    return 1e-6 * _CEILING_BYTES / took["read"].p50


def empty_us(clock: Clock) -> float:
    """Microseconds of a replay that launches one kernel with nothing to do."""
    one = torch.zeros(1, device="cuda")
    took = measure(
        {"empty": [clock.ready(one.zero_)]}, rounds=_CEILING_ROUNDS, warmup=WARMUP, clock=clock
    )
    return 1e3 * took["empty"].p50
