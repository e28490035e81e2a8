# SPDX-License-Identifier: MIT
"""The one timing function of the project, and the facts of the machine that go beside its numbers.

Contenders run in interleaved rounds, each in an order of its own, so that a neighbour on the same
machine or a drifting clock reaches all of them alike and none always finds the caches that another
one left; what is compared is the median of per-round ratios. A `Clock` says what a time is: of the
host here, of a GPU in `device_clock`.
"""

from __future__ import annotations

import datetime
import os
import platform
import random
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch

Thunk = Callable[[], object]

_ISA_FLAGS = ("avx2", "avx512f", "avx512_bf16", "avx512_fp16", "avx512_vnni", "amx_bf16")
_LLC_BYTES_WHEN_UNKNOWN = 32 << 20


class Clock(Protocol):
    """What a time is, and how a piece of work is brought into the form that is timed."""

    @property
    def name(self) -> str:
        """Its name in result files."""
        ...

    def ready(self, thunk: Thunk) -> Thunk:
        """Brings work into the form that `start` times; the slow part, once per contender."""
        ...

    def start(self, thunk: Thunk) -> Callable[[], float]:
        """Starts work that is ready; what it returns waits for its end and gives milliseconds."""
        ...


@dataclass(frozen=True, slots=True)
class HostClock:
    """Times a call as it runs: CPU time of the calling thread, or wall time.

    CPU time is blind to preemption and right for one thread; wall time is right for more.

    Attributes:
        name: `cpu` or `wall`.
    """

    name: str

    @staticmethod
    def here() -> HostClock:
        """The clock that is right for torch's intra-op threads now."""
        return HostClock("cpu" if torch.get_num_threads() == 1 else "wall")

    def ready(self, thunk: Thunk) -> Thunk:
        """See Clock; a call is timed as it is."""
        return thunk

    def start(self, thunk: Thunk) -> Callable[[], float]:
        """See Clock; runs to its end at once."""
        now = time.thread_time_ns if self.name == "cpu" else time.perf_counter_ns
        begin = now()
        thunk()
        took = (now() - begin) * 1e-6
        return lambda: took


@dataclass(frozen=True, slots=True)
class Timing:
    """Times of one contender, one value per round, in milliseconds.

    Attributes:
        ms: the times.
        clock: name of the clock that they were taken on.
    """

    ms: tuple[float, ...]
    clock: str

    @property
    def p50(self) -> float:
        """Median, ms."""
        return statistics.median(self.ms)

    @property
    def best(self) -> float:
        """Minimum, ms."""
        return min(self.ms)

    def quantile(self, q: float) -> float:
        """The `q` quantile (0 to 1) by linear interpolation, ms."""
        ordered = sorted(self.ms)
        at = q * (len(ordered) - 1)
        low = int(at)
        high = min(low + 1, len(ordered) - 1)
        return ordered[low] + (ordered[high] - ordered[low]) * (at - low)

    def ratio_to(self, base: Timing) -> float:
        """Median over the common rounds of this time / `base`'s; above 1: `base` is faster."""
        return statistics.median(a / b for a, b in zip(self.ms, base.ms, strict=False))


def measure(
    contenders: Mapping[str, Sequence[Thunk]],
    *,
    rounds: int,
    warmup: int = 1,
    budget_s: float | None = None,
    min_rounds: int = 3,
    on_round: Callable[[], object] | None = None,
    clock: Clock | None = None,
) -> dict[str, Timing]:
    """Times contenders against each other in interleaved rounds.

    Args:
        contenders: name to the thunks of one piece of work, ready for the clock. Several thunks are
            copies of it on buffers of their own: round r runs copy r modulo their number, which
            keeps caches cold.
        rounds: rounds wanted; every contender runs once in each, unless its seconds are spent.
        warmup: untimed rounds before.
        budget_s: when given, warm-up and rounds are cut to about this many seconds: warm-up to a
            fifth of it but at least two turns, the rounds of each contender to an equal share of
            the rest but at least min_rounds, so that a slow one leaves the others theirs.
        min_rounds: see budget_s.
        on_round: called after each timed round was started (progress).
        clock: default HostClock.here().

    Returns:
        Name to its times, in the order given.
    """
    names, clock = list(contenders), clock or HostClock.here()
    turns = dict.fromkeys(names, rounds)
    if budget_s is None:
        _turns(contenders, warmup, clock)
    else:
        # The first turn builds, loads and touches memory: it tells nothing of the speed.
        _turns(contenders, 1, clock)
        took = _turns(contenders, 1, clock)
        _turns(contenders, min(warmup, int(0.2 * budget_s / sum(took.values()))), clock)
        share = 0.8 * budget_s / len(names)
        least = min(rounds, min_rounds)
        turns = {name: max(least, min(rounds, int(share / took[name]))) for name in names}
    readings: dict[str, list[Callable[[], float]]] = {name: [] for name in names}
    orders = random.Random(0)
    for turn in range(max(turns.values())):
        for name in orders.sample(names, len(names)):
            if turn >= turns[name]:
                continue
            thunk = contenders[name][turn % len(contenders[name])]
            readings[name].append(clock.start(thunk))
        if on_round is not None:
            on_round()
    return {
        name: Timing(tuple(reading() for reading in taken), clock.name)
        for name, taken in readings.items()
    }


def _turns(contenders: Mapping[str, Sequence[Thunk]], count: int, clock: Clock) -> dict[str, float]:
    """Runs every contender `count` times, uncounted; returns the seconds that each took."""
    readings = [
        (name, clock.start(thunks[turn % len(thunks)]))
        for turn in range(count)
        for name, thunks in contenders.items()
    ]
    took = dict.fromkeys(contenders, 1e-9)
    for name, reading in readings:
        took[name] += 1e-3 * reading()
    return took


@contextmanager
def intra_op_threads(count: int) -> Iterator[None]:
    """Runs a block with `count` intra-op threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@dataclass(frozen=True, slots=True)
class Machine:
    """What a number depends on besides the code.

    Attributes:
        cpu: model name.
        isa: the vector extensions that matter here, space separated.
        cores: CPUs this process may use.
        llc_bytes: size of the last-level cache.
        torch: version of torch.
        commit: short commit id of the checkout, `+` appended when the tree differs from it, or
            `none` outside a checkout.
        date: UTC, ISO 8601, to the minute.
        gpu: model of the GPU that is timed and its driver; empty where the CPU is.
    """

    cpu: str
    isa: str
    cores: int
    llc_bytes: int
    torch: str
    commit: str
    date: str
    gpu: str = ""

    @staticmethod
    def here(device_type: str = "cpu") -> Machine:
        """The facts of this machine and checkout, now, for numbers of torch's `device_type`."""
        model, flags = _cpu_model_and_flags()
        return Machine(
            cpu=model,
            isa=" ".join(flag for flag in _ISA_FLAGS if flag in flags),
            cores=len(os.sched_getaffinity(0)),
            llc_bytes=_llc_bytes(),
            torch=torch.__version__,
            commit=_commit(),
            date=datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%MZ"),
            gpu=_gpu() if device_type == "cuda" else "",
        )

    def columns(self) -> dict[str, str]:
        """The CSV columns that every result file of the project ends with."""
        return {
            "machine": self.gpu or f"{self.cpu}, {self.cores} CPUs, {self.isa}",
            "torch": self.torch,
            "commit": self.commit,
            "date": self.date,
        }


def copies_for_cold(nbytes: int, llc_bytes: int, most: int = 8) -> int:
    """How many copies of a case to rotate so that one is evicted before its next turn."""
    return max(1, min(most, 2 * llc_bytes // max(nbytes, 1) + 1))


def gemm_gflops(
    dtype: torch.dtype = torch.float32,
    size: int = 768,
    repeats: int = 8,
    clock: Clock | None = None,
    device: str = "cpu",
) -> float:
    """GFLOP/s of `torch.mm`: a lower bound of the machine's roof.

    Args:
        dtype: of both operands.
        size: the matrices are size x size; 768 fits the L2 cache of no core, the L3 of all.
        repeats: the fastest of so many counts on a CPU; on a GPU, whose clock drops under load,
            the median of so many after as many more.
        clock: see measure.
        device: where the matrices live.
    """
    a = torch.randn(size, size, device=device).to(dtype)
    out = torch.empty_like(a)
    clock = clock or HostClock.here()
    multiply = clock.ready(lambda: torch.mm(a, a, out=out))
    on_cpu = device == "cpu"
    took = measure({"mm": [multiply]}, rounds=repeats, warmup=2 if on_cpu else repeats, clock=clock)
    return 2e-6 * size**3 / (took["mm"].best if on_cpu else took["mm"].p50)


def _cpu_model_and_flags() -> tuple[str, frozenset[str]]:
    facts: dict[str, str] = {}
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            key, _, value = line.partition(":")
            facts.setdefault(key.strip(), value.strip())
    flags = frozenset((facts.get("flags") or facts.get("Features") or "").split())
    model = facts.get("model name") or platform.processor() or platform.machine()
    family = facts.get("cpu family")
    return (f"{model} (family {family} model {facts['model']})" if family else model), flags


def _gpu() -> str:
    facts = torch.cuda.get_device_properties(0)
    return f"{facts.name}, {facts.multi_processor_count} SMs, CUDA {torch.version.cuda}"


def _llc_bytes() -> int:
    largest = 0
    for size in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        text = size.read_text().strip()
        unit = {"K": 1 << 10, "M": 1 << 20}.get(text[-1:], 1)
        largest = max(largest, int(text.rstrip("KM")) * unit)
    return largest or _LLC_BYTES_WHEN_UNKNOWN


def _commit() -> str:
    def git(*words: str) -> str:
        command = ["git", "-C", str(Path(__file__).parent), *words]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        dirty = "+" if git("status", "--porcelain", "--untracked-files=no") else ""
        return git("rev-parse", "--short=10", "HEAD") + dirty
    except (OSError, subprocess.CalledProcessError):
        return "none"
