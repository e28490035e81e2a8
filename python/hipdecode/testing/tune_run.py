# SPDX-License-Identifier: MIT
"""Measures one point of a tuning grid: every choice, interleaved and checked."""

from __future__ import annotations

import contextlib
import itertools
import math
import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from hipdecode import registry, target
from hipdecode.dispatch import NOISE_PCT
from hipdecode.hk_splits import auto_splits
from hipdecode.tables import K, TableKey
from hipdecode.testing import timing
from hipdecode.testing.bench_case import DecodeCase
from hipdecode.testing.bench_report import Checked, Oracle
from hipdecode.testing.device_clock import WARMUP
from hipdecode.testing.peers import Hipdecode
from hipdecode.testing.reference import Attention
from hipdecode.tuning import HK, PERSISTENT, Choice, Measurement, Point, Trial, other

Call = Callable[[], Tensor]


class Step(Protocol):
    """One decode step over a pool of keys, as `race_steps` knows it."""

    @property
    def out(self) -> Tensor:
        """Written by every contender."""

    def want(self) -> Attention:
        """The oracle's answer for a part of it."""

    def check(self, out: Tensor, want: Attention, target: str) -> Checked:
        """Holds a result against what `want` has said."""


S = TypeVar("S", bound=Step)

_COPIES = 4
"""Of a step where the clock clears no caches: a call finds the keys of others there."""
_MIN_ROUNDS = 5
_QUIET_SHARE = 0.02
"""Of a round's time: threads waited less than this for a CPU."""
_BYTES_OF_A_TOKEN = 576 * (4 + 2)
_DEVICE_NOISE_PCT = 1.0
"""What a device's medians differ by from run to run, whatever the rounds say."""
_GPU_BLOCK_ROWS = 64
_GPU_SPLIT_TOKENS = 64
_GPU_SPLITS = (1, 2, 4, 8, 16, 32, 64)
_GPU_SPLITS_TRIED = 4
"""Splits of hk to try on a GPU: the largest few that run at once and have 64 tokens each."""


def choices(point: Point[TableKey], where: target.Target) -> tuple[Choice, ...]:
    """What is timed at a point: both routes, on a GPU also split counts beside that of the rule.

    Where all of them run at once also tiles of fewer query rows, of which there are more.
    """
    if where.device_type == "cpu":
        return HK, PERSISTENT
    most = _most_splits(point, where, _GPU_BLOCK_ROWS)
    splits = [count for count in _GPU_SPLITS if count <= max(most, 1)][-_GPU_SPLITS_TRIED:]
    by_rule = _splits(HK, point, where)
    found = [HK, *(Choice("hk", count) for count in splits if count != by_rule)]
    for rows in _fewer_rows(point.key, where):
        most = _most_splits(point, where, rows)
        if most > 0:
            rule = Choice("hk", "auto", rows)
            found.append(rule)
            if most != _splits(rule, point, where):
                found.append(Choice("hk", most, rows))
    return *found, PERSISTENT


def _most_splits(point: Point[TableKey], where: target.Target, rows: int) -> int:
    """Splits that run at once in tiles of so many rows, of 64 tokens or more; 0: not even one."""
    blocks = point.batch * -(-point.key.nhead * point.key.q_len // rows)
    fit = where.compute_units() // blocks
    return min(fit, max(point.kv_len // _GPU_SPLIT_TOKENS, 1))


def _fewer_rows(key: TableKey, where: target.Target) -> list[int]:
    """Tiles that the target has of fewer query rows than a call takes by itself."""
    held = registry.default()
    types = f"576-512-{key.q_dtype}-{key.kv_dtype}"

    def fitting(rows: int) -> int:
        return held.fit(f"mla_decode_hk/{types}-{rows}", where.artefact).rows or 0

    usual = fitting(registry.wanted_rows(where.family, key.nhead * key.q_len))
    return [rows for rows in registry.TILE_ROWS if fitting(rows) == rows < usual]


def _splits(choice: Choice, point: Point[TableKey], where: target.Target) -> int | None:
    """The number that a choice comes down to at a point; None for persistent."""
    if choice.num_splits == "auto":
        return auto_splits(
            family=where.family,
            batch=point.batch,
            nhead=point.key.nhead,
            q_len=point.key.q_len,
            compute_units=where.compute_units(),
            kv_len=point.kv_len,
            tile_rows=_rows(choice),
        )
    return choice.num_splits if isinstance(choice.num_splits, int) else None


def _rows(choice: Choice) -> int | None:
    return choice.tile_rows if isinstance(choice.tile_rows, int) else None


@dataclass(frozen=True, slots=True)
class How:
    """How points are measured.

    Attributes:
        target: whose kernels run; it decides the tolerance.
        clock: what a time is.
        spread: see `context_lengths`.
        rounds: rounds that are enough.
        wrong: filled with what was outside its tolerance.
    """

    target: target.Target
    clock: timing.Clock
    spread: float = 0.0
    rounds: int = 25
    wrong: list[str] = field(default_factory=list)


def measure(point: Point[TableKey], how: How, budget_s: float) -> Measurement[TableKey]:
    """Time all choices at one point in interleaved rounds and check them against the oracle.

    Rounds in which a thread of this process had to wait for a CPU tell of the machine's other
    users, and punish the route with more launches: they do not count, unless the clock is the
    device's own. Without enough others the point counts as not measured, nor does one on a device
    that has no memory for its KV cache, or no seconds left. A choice outside its tolerance is not
    timed, since no speed excuses a wrong result; without one choice of each route nothing is.

    Args:
        point: the shape.
        how: see How.
        budget_s: seconds to find enough quiet rounds in, about; a device only asks for some.
    """
    key, where = point.key, how.target
    on_device = how.clock.name == "device"
    if on_device and (budget_s <= 0 or not _fits(point)):
        return Measurement(point, {}, 0)
    case = DecodeCase.draw(
        context_lengths(point, how.spread),
        nhead=key.nhead,
        q_len=key.q_len,
        q_dtype=key.q_dtype,
        kv_dtype=key.kv_dtype,
        page_size=key.page_size,
        device=where.device_type,
    )
    oracle = Oracle(case)
    forced = {
        choice: Hipdecode(str(choice), choice.route, _splits(choice, point, where), _rows(choice))
        for choice in choices(point, where)
    }
    calls = {choice: [ours.prepare(case)] for choice, ours in forced.items()}
    return race(point, calls, lambda call: oracle.check(call(), where.name), how, budget_s)


def race_steps(
    point: Point[K],
    how: How,
    budget_s: float,
    draw: Callable[[int], S],
    calls: Callable[[S], Mapping[Choice, Call]],
) -> Measurement[K]:
    """Check and time the choices of a point on steps over a pool that no cache holds.

    Args:
        point: the shape.
        how: see How.
        budget_s: see `measure`.
        draw: a step of that shape from a seed.
        calls: what to time of a step.
    """
    on_device = how.clock.name == "device"
    if on_device and budget_s <= 0:
        return Measurement(point, {}, 0)
    steps = [draw(seed) for seed in range(1 if on_device else _COPIES)]
    first, want = steps[0], steps[0].want()

    def check(call: Call) -> Checked:
        first.out.fill_(float("nan"))
        return first.check(call(), want, how.target.name)

    copies = [calls(step) for step in steps]
    turns = {choice: [each[choice] for each in copies] for choice in copies[0]}
    return race(point, turns, check, how, budget_s)


def race(
    point: Point[K],
    calls: Mapping[Choice, Sequence[Call]],
    check: Callable[[Call], Checked],
    how: How,
    budget_s: float,
) -> Measurement[K]:
    """Check and time the calls of a point, see `measure`.

    Args:
        point: the shape.
        calls: what to time, of each choice the same copies, which take turns; two choices of a
            round take different ones, lest one finds in a cache what the other has read.
        check: runs a call and holds its result against the oracle.
        how: see How.
        budget_s: see `measure`.
    """
    on_device = how.clock.name == "device"
    checks: dict[Choice, Checked] = {}
    thunks: dict[str, list[timing.Thunk]] = {}
    for number, (choice, copies) in enumerate(calls.items()):
        checked = check(copies[0])
        if checked.within:
            first = number % len(copies)
            turns = (*copies[first:], *copies[:first])
            checks[choice] = checked
            thunks[str(choice)] = [how.clock.ready(call) for call in turns]
        else:
            at = f"{point.key} batch {point.batch} kv_len {point.kv_len}"
            how.wrong.append(f"{choice} at {at}: an error of {checked.max_err:.2e}")
    routes = {choice.route for choice in checks}
    if not routes or {other(route) for route in routes} != routes:
        return Measurement(point, {}, 0)
    rounds = _time_rounds(thunks, budget_s, how)
    quiet = [one for one in rounds if one.waited_share <= _QUIET_SHARE]
    enough = len(quiet) >= _MIN_ROUNDS
    counted = quiet if enough else rounds
    times = {choice: [one.ms[str(choice)] for one in counted] for choice in checks}
    fastest = min(times, key=lambda choice: statistics.median(times[choice]))
    trials = {
        choice: _trial(ms, times[fastest], checks[choice].max_err, on_device)
        for choice, ms in times.items()
    }
    return Measurement(point, trials, len(quiet) if enough else 0)


def _fits(point: Point[TableKey]) -> bool:
    """Whether the GPU holds the cache and the numbers it is drawn from."""
    return point.batch * point.kv_len * _BYTES_OF_A_TOKEN < torch.cuda.mem_get_info()[1]


def _trial(ms: Sequence[float], fastest: Sequence[float], max_err: float, on_device: bool) -> Trial:
    ratios = [a / b for a, b in zip(ms, fastest, strict=True)]
    us, least = 1e3 * statistics.median(ms), 1e3 * min(ms)
    noise = noise_pct(ratios, _DEVICE_NOISE_PCT if on_device else NOISE_PCT)
    return Trial(us, least, statistics.median(ratios), noise, max_err)


def context_lengths(point: Point[TableKey], spread: float) -> tuple[int, ...]:
    """Return the context of each request: evenly spread over kv_len * (1 +- spread), shuffled.

    Their mean is the point's kv_len; none is shorter than the key's q_len.
    """
    batch = point.batch
    lengths = [
        max(point.key.q_len, round(point.kv_len * (1 + spread * (2 * (i + 0.5) / batch - 1))))
        for i in range(batch)
    ]
    random.Random(0).shuffle(lengths)
    return tuple(lengths)


@dataclass(frozen=True, slots=True)
class _Round:
    ms: dict[str, float]
    waited_share: float


def _time_rounds(thunks: dict[str, list[timing.Thunk]], budget_s: float, how: How) -> list[_Round]:
    """Time rounds until enough were quiet or the seconds are spent; a device has no others."""
    clock = how.clock
    if clock.name == "device":
        times = timing.measure(thunks, rounds=how.rounds, warmup=WARMUP, clock=clock)
        each = zip(*(times[name].ms for name in thunks), strict=True)
        return [_Round(dict(zip(thunks, ms, strict=True)), 0.0) for ms in each]
    deadline = time.monotonic() + budget_s
    timing.measure(thunks, rounds=1, warmup=2, clock=clock)
    rounds: list[_Round] = []
    waits: list[float] = []
    while True:
        waits[:] = [_waited_ms()]
        times = timing.measure(
            thunks,
            rounds=_MIN_ROUNDS,
            warmup=0,
            on_round=lambda: waits.append(_waited_ms()),
            clock=clock,
        )
        for index, (before, after) in enumerate(itertools.pairwise(waits)):
            ms = {name: times[name].ms[index] for name in thunks}
            rounds.append(_Round(ms, (after - before) / sum(ms.values())))
        quiet = sum(one.waited_share <= _QUIET_SHARE for one in rounds)
        if quiet >= how.rounds or time.monotonic() > deadline:
            return rounds


def _waited_ms() -> float:
    """Milliseconds that threads of this process were ready but had no CPU; 0 where not counted."""
    waited_ns = 0
    for stat in Path("/proc/self/task").glob("*/schedstat"):
        with contextlib.suppress(OSError, IndexError, ValueError):  # a thread may just have ended
            waited_ns += int(stat.read_text().split()[1])
    return waited_ns * 1e-6


def noise_pct(ratios: list[float], floor: float = NOISE_PCT) -> float:
    """Return what the median of per-round ratios may be off by, in percent of it.

    Twice the standard error of a median, estimated from the quartiles, which a few disturbed rounds
    do not move; never less than the floor, by default what routes call noise.
    """
    low, middle, high = statistics.quantiles(ratios, n=4)
    standard_error = 1.2533 * (high - low) / 1.349 / math.sqrt(len(ratios))
    return max(floor, 200 * standard_error / middle)
