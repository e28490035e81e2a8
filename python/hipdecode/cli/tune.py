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
from dataclasses import dataclass
from pathlib import Path

import click
from rich.progress import Progress

from hipdecode import paths, target
from hipdecode.dispatch import NOISE_PCT, clear_route_cache
from hipdecode.errors import HipdecodeError, TargetError
from hipdecode.models import split_dtypes
from hipdecode.support import check_supported
from hipdecode.tables import ROUTES, TableKey, read_table
from hipdecode.testing import timing
from hipdecode.testing.bench_case import DecodeCase
from hipdecode.testing.bench_report import IntList, Oracle, console
from hipdecode.testing.peers import Hipdecode
from hipdecode.tuning import Measurement, Point, format_table, grid, rows_from_grid, sweep

_MIN_ROUNDS = 5
_ENOUGH_ROUNDS = 25
_QUIET_SHARE = 0.02
"""Of a round's time: threads waited less than this for a CPU."""


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
    fresh: bool,
) -> None:
    """Measure the routes on this machine and write dispatch tables.

    Both routes run in turns over a grid of requests and contexts, through the public call, with the
    plan made beforehand as an engine makes it once per step; contexts of a batch are spread around
    their mean by --spread. Results are kept as they come: run the same command again after an
    interruption, or to retry points that other work disturbed. Rows of other keys stay.
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
    machine = _machine(where)
    table = out or paths.tables_dir() / where.family / f"{op}.csv"
    results = paths.cache_dir() / "tune" / f"{where.name}-{where.compute_units()}-{op}.csv"
    if fresh:
        results.unlink(missing_ok=True)
    if results.is_file():
        click.echo(f"resuming from {results}; --fresh measures all points anew", err=True)
    taken = _sweep(points, results, where, budget_s, spread)
    when = timing.Machine.here().date
    rows = rows_from_grid(taken, machine=machine, date=when.partition("T")[0])
    kept = read_table(table).rows_by_key if table.is_file() else {}
    rows += [row for key, group in kept.items() if key not in set(keys) for row in group]
    table.parent.mkdir(parents=True, exist_ok=True)
    table.write_text(format_table(rows, comments=_comments(machine, when)), encoding="utf-8")
    clear_route_cache()
    busy = sum(one.rounds == 0 for one in taken)
    click.echo(f"{table}: {len(rows)} rows; {len(points) - busy} of {len(points)} points measured")
    if busy:
        click.echo(f"the machine was too busy for {busy} points: run this again to retry them")
    else:
        results.unlink()


def measure(
    point: Point, where: target.Target, budget_s: float, spread: float = 0.0
) -> Measurement:
    """Time both routes at one point in interleaved rounds and check both against the oracle.

    Rounds in which a thread of this process had to wait for a CPU tell of the machine's other
    users, and punish the route with more launches: they do not count. Without enough others the
    point counts as not measured.

    Args:
        point: the shape.
        where: the target whose kernels run; it decides the tolerance.
        budget_s: seconds to find enough quiet rounds in, about.
        spread: see `context_lengths`.

    Raises:
        HipdecodeError: a route is not within its tolerance: no speed excuses a wrong result.
    """
    key = point.key
    case = DecodeCase.draw(
        context_lengths(point, spread),
        nhead=key.nhead,
        q_len=key.q_len,
        q_dtype=key.q_dtype,
        kv_dtype=key.kv_dtype,
        page_size=key.page_size,
    )
    calls = {route: Hipdecode(route, route).prepare(case) for route in ROUTES}
    oracle = Oracle(case)
    checks = {route: oracle.check(call(), where.name) for route, call in calls.items()}
    for route, check in checks.items():
        if not check.within:
            raise HipdecodeError(
                f"tune: expected {route} within its tolerance at {key} batch {point.batch} kv_len "
                f"{point.kv_len}, got an error of {check.max_err:.2e}; fix the kernel first"
            )
    rounds = _time_rounds({route: [call] for route, call in calls.items()}, budget_s)
    quiet = [one for one in rounds if one.waited_share <= _QUIET_SHARE]
    enough = len(quiet) >= _MIN_ROUNDS
    counted = quiet if enough else rounds
    ratios = [one.ms["hk"] / one.ms["persistent"] for one in counted]
    p50_us = {route: 1e3 * statistics.median(one.ms[route] for one in counted) for route in ROUTES}
    return Measurement(
        point=point,
        hk_us=p50_us["hk"],
        persistent_us=p50_us["persistent"],
        ratio=statistics.median(ratios),
        noise_pct=noise_pct(ratios),
        hk_err=checks["hk"].max_err,
        persistent_err=checks["persistent"].max_err,
        rounds=len(quiet) if enough else 0,
    )


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


def _time_rounds(thunks: dict[str, list[timing.Thunk]], budget_s: float) -> list[_Round]:
    """Time rounds until enough were quiet or the seconds are spent."""
    deadline = time.monotonic() + budget_s
    timing.measure(thunks, rounds=1, warmup=2)
    rounds: list[_Round] = []
    waits: list[float] = []
    while True:
        waits[:] = [_waited_ms()]
        times = timing.measure(
            thunks, rounds=_MIN_ROUNDS, warmup=0, on_round=lambda: waits.append(_waited_ms())
        )
        for index, (before, after) in enumerate(itertools.pairwise(waits)):
            ms = {route: times[route].ms[index] for route in thunks}
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
    points: tuple[Point, ...], results: Path, where: target.Target, budget_s: float, spread: float
) -> list[Measurement]:
    deadline = time.monotonic() + budget_s

    def timed(point: Point, left: int) -> Measurement:
        return measure(point, where, max(0.0, deadline - time.monotonic()) / left, spread)

    with Progress(console=console(stderr=True), transient=True) as progress:
        task = progress.add_task("points", total=len(points))

        def done(one: Measurement) -> None:
            progress.update(task, advance=1, description=f"{one.point.key}")

        return sweep(points, timed, results, done=done)


def _check_key(key: TableKey) -> None:
    check_supported(
        nhead=key.nhead,
        q_len=key.q_len,
        dtypes=(key.q_dtype, key.kv_dtype),
        head_dims=(576, 512),
        page_size=key.page_size,
    )


def _machine(where: target.Target) -> str:
    return f"{timing.Machine.here().cpu}, {where.compute_units()} threads, {where.name}"


def _comments(machine: str, when: str) -> list[str]:
    context = click.get_current_context()
    words = ["hipdecode", "tune"]
    for option in context.command.params:
        value = context.params[str(option.name)]
        if option.name not in ("out", "fresh"):
            text = ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
            words += [option.opts[0], text]
    return [
        shlex.join(words),
        f"{machine}; torch {timing.Machine.here().torch}; {when}",
        "p50 of a whole call, plan made beforehand, over quiet rounds that interleave the routes;",
        "runner_up_us is us times the median ratio. A row shows its decided point of least gain.",
    ]
