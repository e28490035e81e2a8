# SPDX-License-Identifier: MIT
"""`hipdecode tune`: measures the routes on this machine and writes the family's dispatch table."""

from __future__ import annotations

import contextlib
import itertools
import math
import random
import shlex
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import click
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)

from hipdecode import paths, settings, target
from hipdecode.dispatch import NOISE_PCT, auto_splits, clear_route_cache
from hipdecode.errors import HipdecodeError, TargetError
from hipdecode.models import split_dtypes
from hipdecode.support import check_supported
from hipdecode.tables import TableKey, read_table
from hipdecode.testing import timing
from hipdecode.testing.bench_case import DecodeCase
from hipdecode.testing.bench_report import Checked, IntList, Oracle, console
from hipdecode.testing.device_clock import WARMUP, clock_of
from hipdecode.testing.peers import Hipdecode
from hipdecode.tuning import HK, PERSISTENT, Choice, Measurement, Point, Trial, grid, sweep
from hipdecode.tuning_rows import format_table, rows_from_grid

_MIN_ROUNDS = 5
_ENOUGH_ROUNDS = 25
_QUIET_SHARE = 0.02
"""Of a round's time: threads waited less than this for a CPU."""
_GPU_BLOCK_ROWS = 64
_GPU_WAVES = 4
_GPU_SPLIT_TOKENS = 64
_GPU_SPLIT_POWERS = 6
"""Splits of hk to try on a GPU: powers of two up to 32, 64 tokens or more each, 4 waves at most."""


@click.command()
@click.option("--target", "target_name", default="cpu", show_default=True, help="Whose table.")
@click.option("--op", type=click.Choice(["mla_decode"]), default="mla_decode", show_default=True)
@click.option("--nhead", "nheads", type=IntList(), default="16,32,128", show_default=True)
@click.option("--q-len", "q_lens", type=IntList(), default="1,4", show_default=True)
@click.option("--dtypes", default="bf16,bf16/fp8", show_default=True, help="q or q/kv, ...")
@click.option("--page-size", type=int, default=64, show_default=True)
@click.option("--batches", type=IntList(), default="1,3,8,16", show_default=True)
@click.option("--kv-lens", type=IntList(), default="128,1024,4096", show_default=True)
@click.option("--spread", type=click.FloatRange(0, 0.9), default=0.5, show_default=True)
@click.option("--budget-s", type=float, default=600.0, show_default=True, help="Seconds in all.")
@click.option("--out", type=click.Path(path_type=Path), default=None, help="Table to write.")
@click.option("--raw", type=click.Path(path_type=Path), help="Keep every time in this CSV file.")
@click.option("--fresh", is_flag=True, help="Forget the results of a run that was interrupted.")
def command(
    *,
    target_name: str,
    op: str,
    nheads: tuple[int, ...],
    q_lens: tuple[int, ...],
    dtypes: str,
    page_size: int,
    batches: tuple[int, ...],
    kv_lens: tuple[int, ...],
    spread: float,
    budget_s: float,
    out: Path | None,
    raw: Path | None,
    fresh: bool,
) -> None:
    """Measure the routes on this machine and write dispatch tables.

    Both routes run in turns over a grid of requests and contexts, through the public call, with the
    plan made beforehand as an engine makes it once per step; contexts of a batch are spread around
    their mean by --spread. On a GPU hk runs with several split counts, every call as a graph
    replay between two events, caches cold. Results are kept as they come: run the same command
    again after an interruption, or to retry points that other work disturbed. Rows of other keys
    stay.
    """
    where = target.resolve(target_name)
    if not where.runs_here():
        raise TargetError(
            f"tune: expected a target that this machine runs, got {where.name}; run it there"
        )
    pairs = [split_dtypes(text) for text in dtypes.split(",")]
    keys = [
        TableKey(where.dtype(q), where.dtype(kv), nhead, q_len, page_size)
        for q, kv in pairs
        for nhead in nheads
        for q_len in q_lens
    ]
    for key in keys:
        _check_key(key)
    points = grid(keys, batches, kv_lens)
    machine = timing.Machine.here(where.device_type)
    table = out or paths.tables_dir() / where.family / f"{op}.csv"
    kept = paths.cache_dir() / "tune" / f"{where.name}-{where.compute_units()}-{op}.csv"
    results = raw or kept
    if fresh:
        results.unlink(missing_ok=True)
    if results.is_file():
        click.echo(f"resuming from {results}; --fresh measures all points anew", err=True)
    with settings.override(target=where.name):
        taken = _sweep(points, results, where, machine, budget_s, spread)
    _write_table(table, taken, where, machine)
    busy = sum(one.rounds == 0 for one in taken)
    click.echo(f"{table}: {len(points) - busy} of {len(points)} points measured")
    if busy:
        click.echo(f"the machine was too busy for {busy} points: run this again to retry them")
    elif raw is None:
        results.unlink()


def _write_table(
    table: Path, taken: Sequence[Measurement], where: target.Target, machine: timing.Machine
) -> None:
    """Writes the rows of what was measured; those of other keys stay."""
    name = _name(where, machine)
    rows = rows_from_grid(taken, machine=name, date=machine.date.partition("T")[0])
    new = {row.key for row in rows}
    before = read_table(table).rows_by_key if table.is_file() else {}
    rows += [row for key, group in before.items() if key not in new for row in group]
    table.parent.mkdir(parents=True, exist_ok=True)
    table.write_text(format_table(rows, comments=_comments(name, machine)), encoding="utf-8")
    clear_route_cache()


def choices(point: Point, where: target.Target) -> tuple[Choice, ...]:
    """What is timed at a point: both routes, on a GPU also split counts beside that of the rule."""
    if where.device_type == "cpu":
        return HK, PERSISTENT
    blocks = point.batch * -(-point.key.nhead * point.key.q_len // _GPU_BLOCK_ROWS)
    most = min(_GPU_WAVES * where.compute_units() // blocks, point.kv_len // _GPU_SPLIT_TOKENS)
    splits = [2**power for power in range(_GPU_SPLIT_POWERS) if power == 0 or 2**power <= most]
    by_rule = _splits(HK, point, where)
    return HK, *(Choice("hk", count) for count in splits if count != by_rule), PERSISTENT


def _splits(choice: Choice, point: Point, where: target.Target) -> int | None:
    """The number that a choice comes down to at a point; None for persistent."""
    if choice == HK:
        return auto_splits(
            family=where.family,
            batch=point.batch,
            nhead=point.key.nhead,
            q_len=point.key.q_len,
            compute_units=where.compute_units(),
            kv_len=point.kv_len,
        )
    return choice.num_splits if isinstance(choice.num_splits, int) else None


def measure(
    point: Point,
    where: target.Target,
    budget_s: float,
    spread: float = 0.0,
    clock: timing.Clock | None = None,
) -> Measurement:
    """Time all choices at one point in interleaved rounds and check them against the oracle.

    Rounds in which a thread of this process had to wait for a CPU tell of the machine's other
    users, and punish the route with more launches: they do not count, unless the clock is the
    device's own. Without enough others the point counts as not measured.

    Args:
        point: the shape.
        where: the target whose kernels run; it decides the tolerance.
        budget_s: seconds to find enough quiet rounds in, about.
        spread: see `context_lengths`.
        clock: default that of the target.

    Raises:
        HipdecodeError: a choice is not within its tolerance: no speed excuses a wrong result.
    """
    key, clock = point.key, clock or clock_of(where)
    case = DecodeCase.draw(
        context_lengths(point, spread),
        nhead=key.nhead,
        q_len=key.q_len,
        q_dtype=key.q_dtype,
        kv_dtype=key.kv_dtype,
        page_size=key.page_size,
        device=where.device_type,
    )
    oracle = Oracle(case)
    checks: dict[Choice, Checked] = {}
    thunks: dict[str, list[timing.Thunk]] = {}
    for choice in choices(point, where):
        forced = Hipdecode(str(choice), choice.route, _splits(choice, point, where))
        call = forced.prepare(case)
        checks[choice] = oracle.check(call(), where.name)
        if not checks[choice].within:
            raise HipdecodeError(
                f"tune: expected {choice} within its tolerance at {key} batch {point.batch} kv_len "
                f"{point.kv_len}, got an error of {checks[choice].max_err:.2e}; fix the kernel "
                "first"
            )
        thunks[str(choice)] = [clock.ready(call)]
    rounds = _time_rounds(thunks, budget_s, clock)
    quiet = [one for one in rounds if one.waited_share <= _QUIET_SHARE]
    enough = len(quiet) >= _MIN_ROUNDS
    counted = quiet if enough else rounds
    times = {choice: [one.ms[str(choice)] for one in counted] for choice in checks}
    fastest = min(times, key=lambda choice: statistics.median(times[choice]))
    trials = {
        choice: _trial(ms, times[fastest], checks[choice].max_err) for choice, ms in times.items()
    }
    return Measurement(point, trials, len(quiet) if enough else 0)


def _trial(ms: Sequence[float], fastest: Sequence[float], max_err: float) -> Trial:
    ratios = [a / b for a, b in zip(ms, fastest, strict=True)]
    us, least = 1e3 * statistics.median(ms), 1e3 * min(ms)
    return Trial(us, least, statistics.median(ratios), noise_pct(ratios), max_err)


def context_lengths(point: Point, spread: float) -> tuple[int, ...]:
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


def _time_rounds(
    thunks: dict[str, list[timing.Thunk]], budget_s: float, clock: timing.Clock
) -> list[_Round]:
    """Time rounds until enough were quiet or the seconds are spent."""
    on_device = clock.name == "device"
    deadline = time.monotonic() + budget_s
    timing.measure(thunks, rounds=1, warmup=WARMUP if on_device else 2, clock=clock)
    rounds: list[_Round] = []
    waits: list[float] = []
    while True:
        waits[:] = [_waited_ms()]
        times = timing.measure(
            thunks,
            rounds=_MIN_ROUNDS,
            warmup=0,
            on_round=lambda: waits.append(waits[-1] if on_device else _waited_ms()),
            clock=clock,
        )
        for index, (before, after) in enumerate(itertools.pairwise(waits)):
            ms = {name: times[name].ms[index] for name in thunks}
            rounds.append(_Round(ms, (after - before) / sum(ms.values())))
        quiet = sum(one.waited_share <= _QUIET_SHARE for one in rounds)
        if quiet >= _ENOUGH_ROUNDS or time.monotonic() > deadline:
            return rounds


def _waited_ms() -> float:
    """Milliseconds that threads of this process were ready but had no CPU; 0 where not counted."""
    waited_ns = 0
    for stat in Path("/proc/self/task").glob("*/schedstat"):
        with contextlib.suppress(OSError, IndexError, ValueError):  # a thread may just have ended
            waited_ns += int(stat.read_text().split()[1])
    return waited_ns * 1e-6


def noise_pct(ratios: list[float]) -> float:
    """Return what the median of per-round ratios may be off by, in percent of it.

    Twice the standard error of a median, estimated from the quartiles, which a few disturbed rounds
    do not move; never less than the floor that routes call noise.
    """
    low, middle, high = statistics.quantiles(ratios, n=4)
    standard_error = 1.2533 * (high - low) / 1.349 / math.sqrt(len(ratios))
    return max(NOISE_PCT, 200 * standard_error / middle)


def _sweep(
    points: tuple[Point, ...],
    results: Path,
    where: target.Target,
    machine: timing.Machine,
    budget_s: float,
    spread: float,
) -> list[Measurement]:
    deadline, clock = time.monotonic() + budget_s, clock_of(where)

    def timed(point: Point, left: int) -> Measurement:
        return measure(point, where, max(0.0, deadline - time.monotonic()) / left, spread, clock)

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    screen = console(stderr=True)
    with Progress(*columns, TimeRemainingColumn(), console=screen, transient=True) as progress:
        task = progress.add_task("points", total=len(points))

        def done(one: Measurement) -> None:
            progress.update(task, advance=1, description=f"{one.point.key}")

        return sweep(points, timed, results, facts=machine.columns(), done=done)


def _check_key(key: TableKey) -> None:
    check_supported(
        nhead=key.nhead,
        q_len=key.q_len,
        dtypes=(key.q_dtype, key.kv_dtype),
        head_dims=(576, 512),
        page_size=key.page_size,
    )


def _name(where: target.Target, machine: timing.Machine) -> str:
    if where.device_type == "cuda":
        return machine.gpu
    return f"{machine.cpu}, {where.compute_units()} threads, {where.name}"


def _comments(name: str, machine: timing.Machine) -> list[str]:
    context = click.get_current_context()
    words = ["hipdecode", "tune"]
    for option in context.command.params:
        value = context.params[str(option.name)]
        if option.name not in ("out", "raw", "fresh"):
            text = ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
            words += [option.opts[0], text]
    return [
        shlex.join(words),
        f"{name}; torch {machine.torch}; commit {machine.commit}; {machine.date}",
        "p50 of a whole call, plan made beforehand, over rounds that interleave the choices;",
        "runner_up_us is us over the median ratio. A row shows its decided point of least gain.",
    ]
