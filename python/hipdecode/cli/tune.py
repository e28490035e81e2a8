# SPDX-License-Identifier: MIT
"""`hipdecode tune`: measures the routes on this machine and writes the family's dispatch table."""

from __future__ import annotations

import itertools
import shlex
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic

import click
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)

from hipdecode import paths, settings, target
from hipdecode.dispatch import clear_route_cache
from hipdecode.errors import HipdecodeError, TargetError
from hipdecode.models import split_dtypes
from hipdecode.paged_route import PAGED_ATTENTION, PagedKey, clear_paged_routes
from hipdecode.reduce_route import clear_reduce_routes, format_reduce_table, read_reduce_table
from hipdecode.sparse_route import FORMAT_NAMES, SPARSE_MLA_DECODE, SparseKey, clear_sparse_routes
from hipdecode.support import check_supported
from hipdecode.table_files import MLA_DECODE, Schema, read_table
from hipdecode.tables import K, TableKey
from hipdecode.testing import timing
from hipdecode.testing.bench_report import IntList, console
from hipdecode.testing.device_clock import clock_of
from hipdecode.testing.tune_paged import PagedPoints
from hipdecode.testing.tune_reduce import ReduceStep, measure_step, summary, winner
from hipdecode.testing.tune_run import How, measure
from hipdecode.testing.tune_sparse import SparsePoints
from hipdecode.tuning import Measurement, Point, grid, sweep
from hipdecode.tuning_rows import format_table, rows_from_grid

_GRIDS: dict[tuple[str, str], dict[str, Any]] = {
    ("mla_decode", "cpu"): {
        "nheads": (16, 32, 128),
        "q_lens": (1, 4),
        "batches": (1, 3, 8, 16),
        "kv_lens": (128, 1024, 4096),
        "spread": 0.5,
    },
    ("mla_decode", "cuda"): {
        "nheads": (16, 32, 64, 128),
        "q_lens": (1, 2, 4),
        "batches": (1, 4, 16, 32, 64, 128, 256),
        "kv_lens": (21, 256, 1024, 4096, 16384, 32768),
        "spread": 0.0,
    },
    ("sparse_mla_decode", "cpu"): {
        "nheads": (16, 64, 128),
        "batches": (1, 3, 8),
        "kv_lens": (128, 640, 2048),
    },
    ("sparse_mla_decode", "cuda"): {
        "nheads": (16, 64, 128),
        "batches": (1, 4, 16, 32, 64, 128, 256),
        "kv_lens": (128, 640, 1152, 2048),
    },
    ("paged_attention", "cpu"): {
        "gqas": (8, 16),
        "mtps": (1, 4),
        "batches": (1, 4),
        "kv_lens": (128, 4097),
    },
    ("paged_attention", "cuda"): {
        "gqas": (8, 10, 16),
        "mtps": (1, 2, 3, 4),
        "batches": (1, 4, 32, 128),
        "kv_lens": (128, 4097, 16384),
    },
    ("mla_decode_reduce", "cpu"): {
        "nheads": (16,),
        "batches": (1, 4, 32),
        "kv_lens": (512, 2048),
    },
    ("mla_decode_reduce", "cuda"): {
        "nheads": (16,),
        "batches": (1, 8, 32, 64, 128),
        "kv_lens": (512, 2048),
    },
}
"""What is measured by default, by where tensors live; a GPU's takes a few minutes."""
_OF_OP = {
    "mla_decode": ("q_lens", "dtypes", "page_size", "spread"),
    "sparse_mla_decode": ("formats",),
    "paged_attention": ("gqas", "mtps", "nheads_kv"),
    "mla_decode_reduce": ("dtypes",),
}
"""Options that not every operator has."""
_FLAGS = {"nheads": "nhead", "q_lens": "q-len", "kv_lens": "kv-lens", "gqas": "gqa", "mtps": "mtp"}


def _defaults() -> str:
    """The grids, for the help: a line each, which click is told not to fold."""
    lines = ["\b", "Measured by default:"]
    for (op, device), grid_of in _GRIDS.items():
        lines.append(f"  {op}, {'GPU' if device == 'cuda' else 'CPU'}:")
        for name, values in grid_of.items():
            shown = values if isinstance(values, float) else ",".join(map(str, values))
            lines.append(f"    --{_FLAGS.get(name, name)} {shown}")
    return "\n".join(lines)


_REDUCE_COMMENTS = (
    "A row: this form is faster than the ordinary decode at all points of the step, by more than",
    "the noise. p50 of the ordinary decode and of the fastest form at each point, us:",
)


@dataclass(frozen=True, slots=True)
class Job(Generic[K]):
    """What is to be measured.

    Attributes:
        schema: of the table.
        points: the grid.
        measure: called with a point and seconds.
        point: what rows call the two numbers of a point.
    """

    schema: Schema[K]
    points: tuple[Point[K], ...]
    measure: Callable[[Point[K], float], Measurement[K]]
    point: tuple[str, str]


@click.command(epilog=_defaults())
@click.option("--target", "target_name", default="cpu", show_default=True, help="Whose table.")
@click.option("--op", type=click.Choice(list(_OF_OP)), default="mla_decode", show_default=True)
@click.option("--nhead", "nheads", type=IntList(), help="Query heads.")
@click.option(
    "--formats", default=",".join(FORMAT_NAMES), show_default=True, help="Of sparse caches."
)
@click.option("--q-len", "q_lens", type=IntList(), help="Query tokens.")
@click.option("--dtypes", default="bf16,bf16/fp8", show_default=True, help="Of q, or of q/kv.")
@click.option("--page-size", type=int, default=64, show_default=True, help="Tokens of a page.")
@click.option("--gqa", "gqas", type=IntList(), help="Of paged: query heads of a kv head.")
@click.option("--mtp", "mtps", type=IntList(), help="Of paged: query tokens.")
@click.option(
    "--nhead-kv", "nheads_kv", type=IntList(), default="1", help="Of paged: kv heads. [1]"
)
@click.option("--batches", type=IntList(), help="Requests; of sparse: query tokens.")
@click.option("--kv-lens", type=IntList(), help="Tokens of a context; of sparse: keys of a token.")
@click.option("--spread", type=click.FloatRange(0, 0.9), help="Of contexts.")
@click.option("--rounds", default=25, show_default=True, help="Of a point, those that count.")
@click.option("--budget-s", default=600.0, show_default=True, help="Seconds in all.")
@click.option("--out", type=click.Path(path_type=Path), default=None, help="Table to write.")
@click.option("--raw", type=click.Path(path_type=Path), help="Keep every time in this CSV file.")
@click.option("--fresh", is_flag=True, help="Forget the results of a run that was interrupted.")
def command(
    *,
    target_name: str,
    op: str,
    rounds: int,
    budget_s: float,
    out: Path | None,
    raw: Path | None,
    fresh: bool,
    **chosen: object,
) -> None:
    """Measure the routes on this machine and write dispatch tables.

    Both routes run in turns over a grid of requests and contexts, through the public call, with the
    plan made beforehand as an engine makes it once per step; contexts of a batch are spread around
    their mean by --spread. On a GPU hk runs with several split counts, every call as a graph
    replay between two events, caches cold. Of sparse decode it is split counts beside that of the
    rule, everywhere; of paged attention the kernels of fp8 caches. Results are kept as they come:
    run the same command again after an interruption, or to retry points that other work disturbed.
    Rows of other keys stay.
    """
    where = target.resolve(target_name)
    if not where.runs_here():
        raise TargetError(
            f"tune: expected a target that this machine runs, got {where.name}; run it there"
        )
    default = _GRIDS[op, where.device_type]
    extent = default | {name: value for name, value in chosen.items() if value is not None}
    click.get_current_context().params.update(extent)
    how = How(where, clock_of(where), extent.get("spread", 0.0), rounds)
    machine = timing.Machine.here(where.device_type)
    table = out or paths.tables_dir() / where.family / f"{op}.csv"
    kept = paths.cache_dir() / "tune" / f"{where.name}-{where.compute_units()}-{op}.csv"
    results = raw or kept
    if fresh:
        results.unlink(missing_ok=True)
    if results.is_file():
        click.echo(f"resuming from {results}; --fresh measures all points anew", err=True)
    with settings.override(target=where.name):
        if op == "mla_decode":
            taken = _fill(_dense_job(how, extent), table, results, machine, budget_s)
        elif op == "mla_decode_reduce":
            taken = _fill_reduce(how, extent, table, machine, budget_s)
        elif op == "sparse_mla_decode":
            taken = _fill(_sparse_job(how, extent), table, results, machine, budget_s)
        else:
            taken = _fill(_paged_job(how, extent), table, results, machine, budget_s)
    if all(rounds for rounds in taken) and raw is None:
        results.unlink(missing_ok=True)
    _report(table, taken, how)


def _dense_job(how: How, extent: Mapping[str, Any]) -> Job[TableKey]:
    where = how.target
    pairs = [split_dtypes(text) for text in extent["dtypes"].split(",")]
    sizes = itertools.product(pairs, extent["nheads"], extent["q_lens"])
    keys = [
        TableKey(where.dtype(q), where.dtype(kv), nhead, q_len, extent["page_size"])
        for (q, kv), nhead, q_len in sizes
    ]
    for key in keys:
        _check_key(key)
    points = grid(keys, extent["batches"], extent["kv_lens"])
    return Job(MLA_DECODE, points, lambda point, s: measure(point, how, s), ("batch", "ctx"))


def _sparse_job(how: How, extent: Mapping[str, Any]) -> Job[SparseKey]:
    unknown = sorted(set(names := extent["formats"].split(",")) - set(FORMAT_NAMES))
    if unknown:
        raise click.BadParameter(f"expected some of {', '.join(FORMAT_NAMES)}, got {unknown[0]}")
    units = how.target.compute_units()
    sizes = itertools.product(names, extent["nheads"], extent["batches"], extent["kv_lens"])
    points = tuple(
        Point(SparseKey(name, nhead, units), tokens, keys) for name, nhead, tokens, keys in sizes
    )
    return Job(SPARSE_MLA_DECODE, points, SparsePoints(how).measure, ("tokens", "keys"))


def _paged_job(how: How, extent: Mapping[str, Any]) -> Job[PagedKey]:
    """Of fp8 caches, which two kernels can read."""
    units, kv_dtype = how.target.compute_units(), how.target.dtype("fp8")
    sizes = itertools.product(extent["gqas"], extent["mtps"], extent["nheads_kv"])
    points = tuple(
        Point(PagedKey(kv_dtype, 128, gqa, mtp, nhead_kv, units), batch, max(kv_len, mtp))
        for gqa, mtp, nhead_kv in sizes
        for batch, kv_len in itertools.product(extent["batches"], extent["kv_lens"])
    )
    return Job(PAGED_ATTENTION, points, PagedPoints(how).measure, ("batch", "kv_len"))


def _fill_reduce(
    how: How, extent: Mapping[str, Any], table: Path, machine: timing.Machine, budget_s: float
) -> list[int]:
    """Measures all steps in one go and writes the table, which has no rectangles."""
    pairs = [split_dtypes(text) for text in extent["dtypes"].split(",")]
    dtypes = tuple((how.target.dtype(q), how.target.dtype(kv)) for q, kv in pairs)
    units = how.target.compute_units()
    steps = [
        ReduceStep(tokens, nhead, dtypes, tuple(extent["kv_lens"]))
        for nhead, tokens in itertools.product(extent["nheads"], extent["batches"])
    ]
    found = {step: measure_step(step, how, budget_s / len(steps)) for step in steps}
    measured = [one for points in found.values() for one in points]
    winners = (winner(step, points, units) for step, points in found.items())
    rows = [row for row in winners if row is not None]
    seen = [line for one in measured for line in summary(one)]
    before = read_reduce_table(table).rows.values() if table.is_file() else ()
    kept = [row for row in before if row.cu_num != units]
    comments = [*_comments(_name(how.target, machine), machine)[:2], *_REDUCE_COMMENTS, *seen]
    table.parent.mkdir(parents=True, exist_ok=True)
    table.write_text(format_reduce_table([*kept, *rows], comments), encoding="utf-8")
    clear_reduce_routes()
    return [one.rounds for one in measured]


def _fill(
    job: Job[K], table: Path, results: Path, machine: timing.Machine, budget_s: float
) -> list[int]:
    """Measures and writes the table; returns the rounds of each point that counted."""
    taken = _sweep(job, results, machine, budget_s)
    _write_table(job, table, taken, machine)
    return [one.rounds for one in taken]


def _report(table: Path, taken: Sequence[int], how: How) -> None:
    """Says what was measured.

    Raises:
        HipdecodeError: something was outside its tolerance.
    """
    lacking = sum(rounds == 0 for rounds in taken)
    click.echo(f"{table}: {len(taken) - lacking} of {len(taken)} points measured")
    if lacking:
        click.echo(
            f"the machine was too busy or too small, or the seconds too few, for {lacking} points: "
            "run this again to retry them"
        )
    if how.wrong:
        listed = "\n  ".join(how.wrong)
        raise HipdecodeError(
            f"tune: expected every result within its tolerance, got\n  {listed}\nfix the kernels; "
            "the table does without these"
        )


def _write_table(
    job: Job[K], table: Path, taken: Sequence[Measurement[K]], machine: timing.Machine
) -> None:
    """Writes the rows of what was measured; those of other keys stay."""
    name = _name(target.current(), machine)
    date = machine.date.partition("T")[0]
    rows = rows_from_grid(taken, machine=name, date=date, point=job.point)
    new = {row.key for row in rows}
    before = read_table(table, job.schema).rows_by_key if table.is_file() else {}
    rows += [row for key, group in before.items() if key not in new for row in group]
    table.parent.mkdir(parents=True, exist_ok=True)
    text = format_table(rows, job.schema, comments=_comments(name, machine))
    table.write_text(text, encoding="utf-8")
    clear_route_cache()
    clear_sparse_routes()
    clear_paged_routes()


def _sweep(
    job: Job[K], results: Path, machine: timing.Machine, budget_s: float
) -> list[Measurement[K]]:
    deadline = time.monotonic() + budget_s

    def timed(point: Point[K], left: int) -> Measurement[K]:
        return job.measure(point, max(0.0, deadline - time.monotonic()) / left)

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    screen = console(stderr=True)
    with Progress(*columns, TimeRemainingColumn(), console=screen, transient=True) as progress:
        task = progress.add_task("points", total=len(job.points))

        def done(one: Measurement[K]) -> None:
            progress.update(task, advance=1, description=f"{one.point.key}")

        facts = machine.columns()
        return sweep(job.points, timed, results, schema=job.schema, facts=facts, done=done)


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
        own = _OF_OP[context.params["op"]]
        others = {name for of in _OF_OP.values() for name in of if name not in own}
        if value is not None and option.name not in ("out", "raw", "fresh", *others):
            text = ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
            words += [option.opts[0], text]
    return [
        shlex.join(words),
        f"{name}; torch {machine.torch}; commit {machine.commit}; {machine.date}",
        "p50 of a whole call, a plan made beforehand, over rounds that interleave the choices;",
        "runner_up_us is us over the median ratio. A row shows its decided point of least gain.",
    ]
