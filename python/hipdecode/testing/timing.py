# SPDX-License-Identifier: MIT
"""The one timing function of the project, and the facts of the machine that go beside its numbers.

Contenders run in interleaved rounds (A B C, B C A, ...), so that a neighbour on the same machine or
a drifting clock reaches all of them alike; what is compared is the median of per-round ratios. Each
call yields two times: the calling thread's CPU time, blind to preemption and right for one thread,
and wall time, right for more.
"""

from __future__ import annotations

import datetime
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

Thunk = Callable[[], object]

_ISA_FLAGS = ("avx2", "avx512f", "avx512_bf16", "avx512_fp16", "avx512_vnni", "amx_bf16")
_LLC_BYTES_WHEN_UNKNOWN = 32 << 20


@dataclass(frozen=True, slots=True)
class Timing:
    """Times of one contender, one value per round, in milliseconds.

    Attributes:
        cpu_ms: CPU time of the calling thread.
        wall_ms: wall time.
        threads: torch's intra-op threads during the run; it decides which of the two counts.
    """

    cpu_ms: tuple[float, ...]
    wall_ms: tuple[float, ...]
    threads: int

    @property
    def clock(self) -> str:
        """`cpu` with one thread, else `wall`."""
        return "cpu" if self.threads == 1 else "wall"

    @property
    def ms(self) -> tuple[float, ...]:
        """The times of the clock that counts."""
        return self.cpu_ms if self.threads == 1 else self.wall_ms

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
        """Median over the rounds of this time / `base`'s time; above 1: `base` is faster."""
        return statistics.median(a / b for a, b in zip(self.ms, base.ms, strict=True))


def measure(
    contenders: Mapping[str, Sequence[Thunk]],
    *,
    rounds: int,
    warmup: int = 1,
    budget_s: float | None = None,
    min_rounds: int = 3,
    on_round: Callable[[], object] | None = None,
) -> dict[str, Timing]:
    """Times contenders against each other in interleaved rounds.

    Args:
        contenders: name to the thunks of one piece of work. Several thunks are copies of it on
            buffers of their own: round r runs copy r modulo their number, which keeps caches cold.
        rounds: rounds wanted; every contender runs once in each.
        warmup: untimed rounds before.
        budget_s: when given, warm-up and rounds are cut to about this many seconds, warm-up to a
            fifth of it but at least two turns, rounds never below min_rounds.
        min_rounds: see budget_s.
        on_round: called after each timed round (progress).

    Returns:
        Name to its times, in the order given.
    """
    names = list(contenders)
    if budget_s is None:
        _turns(contenders, warmup)
    else:
        # The first turn builds, loads and touches memory: it tells nothing of the speed.
        _turns(contenders, 1)
        round_s = _turns(contenders, 1)
        fit = budget_s / max(round_s, 1e-9)
        _turns(contenders, min(warmup, int(0.2 * fit)))
        rounds = max(min(rounds, int(0.8 * fit)), min(rounds, min_rounds))
    cpu: dict[str, list[float]] = {name: [] for name in names}
    wall: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(rounds):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            thunk = contenders[name][turn % len(contenders[name])]
            wall_from, cpu_from = time.perf_counter_ns(), time.thread_time_ns()
            thunk()
            cpu_to, wall_to = time.thread_time_ns(), time.perf_counter_ns()
            cpu[name].append((cpu_to - cpu_from) * 1e-6)
            wall[name].append((wall_to - wall_from) * 1e-6)
        if on_round is not None:
            on_round()
    threads = torch.get_num_threads()
    return {name: Timing(tuple(cpu[name]), tuple(wall[name]), threads) for name in names}


def _turns(contenders: Mapping[str, Sequence[Thunk]], count: int) -> float:
    """Runs every contender `count` times, untimed; returns the seconds it took."""
    started = time.perf_counter()
    for turn in range(count):
        for thunks in contenders.values():
            thunks[turn % len(thunks)]()
    return time.perf_counter() - started


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
    """

    cpu: str
    isa: str
    cores: int
    llc_bytes: int
    torch: str
    commit: str
    date: str

    @staticmethod
    def here() -> Machine:
        """The facts of this machine and checkout, now."""
        model, flags = _cpu_model_and_flags()
        return Machine(
            cpu=model,
            isa=" ".join(flag for flag in _ISA_FLAGS if flag in flags),
            cores=len(os.sched_getaffinity(0)),
            llc_bytes=_llc_bytes(),
            torch=torch.__version__,
            commit=_commit(),
            date=datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%MZ"),
        )

    def columns(self) -> dict[str, str]:
        """The CSV columns that every result file of the project ends with."""
        return {
            "machine": f"{self.cpu}, {self.cores} CPUs, {self.isa}",
            "torch": self.torch,
            "commit": self.commit,
            "date": self.date,
        }


def copies_for_cold(nbytes: int, llc_bytes: int, most: int = 8) -> int:
    """How many copies of a case to rotate so that one is evicted before its next turn."""
    return max(1, min(most, 2 * llc_bytes // max(nbytes, 1) + 1))


def gemm_gflops(dtype: torch.dtype = torch.float32, size: int = 768, repeats: int = 8) -> float:
    """GFLOP/s of `torch.mm` with the current threads: a lower bound of the machine's roof.

    Args:
        dtype: of both operands.
        size: the matrices are size x size; the default fits the L2 cache of no core, the L3 of all.
        repeats: the fastest of so many counts.
    """
    a = torch.randn(size, size).to(dtype)
    out = torch.empty_like(a)
    timing = measure({"mm": [lambda: torch.mm(a, a, out=out)]}, rounds=repeats, warmup=2)["mm"]
    return 2e-6 * size**3 / timing.best


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
