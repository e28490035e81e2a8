#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""p50 of decode and reduce of the hk and the persistent kernel over a grid, or over a trace.

The grid and the options are those of aiter#3003. The plan of the persistent kernel is made before
the clock starts, as an engine makes it once per step for all layers. On a CPU the grid's far corner
would take hours: `--max-kv-tokens` and `--budget-s` bound it, and what they leave out is listed.
"""

from __future__ import annotations

import itertools
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import click
import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parents[3] / "python"))

from hipdecode import settings, target
from hipdecode.testing import timing
from hipdecode.testing.bench_case import DecodeCase
from hipdecode.testing.bench_report import IntList, Oracle, console, write_csv
from hipdecode.testing.device_clock import clock_of
from hipdecode.testing.peers import Hipdecode, route_of
from hipdecode.testing.traces import trace_batches

KERNELS = (Hipdecode("persistent", "persistent"), Hipdecode("hk", "hk"))


@dataclass(frozen=True, slots=True)
class Shape:
    """One line of the table.

    Attributes:
        page_size: tokens of a KV page.
        kv_lens: tokens of each request.
    """

    page_size: int
    kv_lens: tuple[int, ...]

    @property
    def batch(self) -> int:
        """Requests."""
        return len(self.kv_lens)

    @property
    def context(self) -> int:
        """Average tokens of a request."""
        return round(sum(self.kv_lens) / self.batch)


@dataclass(frozen=True, slots=True)
class Setup:
    """What all lines share.

    Attributes:
        target: whose kernels.
        nhead: query heads.
        q_len: query tokens of a request.
        q_dtype: dtype name of q.
        kv_dtype: dtype name of the cache.
        warmup: most untimed turns.
        iters: most rounds.
        machine: facts of this machine.
        clock: what a time is.
    """

    target: target.Target
    nhead: int
    q_len: int
    q_dtype: str
    kv_dtype: str
    warmup: int
    iters: int
    machine: timing.Machine
    clock: timing.Clock


def grid(batches: Sequence[int], pages: Sequence[int], contexts: Sequence[int]) -> list[Shape]:
    """Every batch with every page size and context."""
    return [
        Shape(page, (context,) * batch)
        for page, batch, context in itertools.product(pages, batches, contexts)
    ]


def from_trace(path: Path, batches: Sequence[int], pages: Sequence[int], q_len: int) -> list[Shape]:
    """Ragged batches of a trace.

    Args:
        path: a CSV with a column `kv_lens` (one batch a row, lengths separated by spaces) or
            `context_tokens` (one request a row, of which batches of the sizes asked for are drawn).
        batches: sizes to draw; unused with kv_lens.
        pages: page sizes.
        q_len: shorter contexts are lengthened to it.

    Raises:
        BadArgument: neither column is there, or the file holds no rows.
    """
    drawn = trace_batches(path, batches)
    batches_of = [tuple(max(q_len, length) for length in lens) for lens in drawn if lens]
    return [Shape(page, lens) for page in pages for lens in batches_of]


def time_shape(shape: Shape, setup: Setup, budget_s: float) -> dict[str, object]:
    """Times both kernels on one shape and checks both results.

    Raises:
        click.ClickException: a result is outside the tolerance.
    """
    case = DecodeCase.draw(
        shape.kv_lens,
        nhead=setup.nhead,
        q_len=setup.q_len,
        q_dtype=setup.q_dtype,
        kv_dtype=setup.kv_dtype,
        page_size=shape.page_size,
        device=setup.target.device_type,
    )
    thunks = {kernel.name: kernel.prepare(case) for kernel in KERNELS}
    oracle = Oracle(case)
    errors = []
    for name, thunk in thunks.items():
        checked = oracle.check(thunk(), setup.target.name)
        if not checked.within:
            raise click.ClickException(
                f"{name}, batch {shape.batch}, ctx {shape.context}: expected a result within the "
                f"tolerance, got an error of {checked.max_err:.2e}; do not use these times"
            )
        errors.append(checked.max_err)
    times = timing.measure(
        {name: [setup.clock.ready(thunk)] for name, thunk in thunks.items()},
        rounds=setup.iters,
        warmup=setup.warmup,
        budget_s=budget_s,
        clock=setup.clock,
    )
    persistent, hk = times["persistent"], times["hk"]
    return {
        "batch": shape.batch,
        "ctx": shape.context,
        "total_kv": case.tokens,
        "page_size": shape.page_size,
        "persistent_us": f"{1e3 * persistent.p50:.3f}",
        "hk_us": f"{1e3 * hk.p50:.3f}",
        "gain_pct": f"{100 * (1 - hk.p50 / persistent.p50):.2f}",
        "route": route_of(case, setup.target, None).route,
        "max_err": f"{max(errors):.2e}",
        "rounds": len(hk.ms),
        "clock": hk.clock,
        "threads": torch.get_num_threads(),
        "nhead": setup.nhead,
        "q_len": setup.q_len,
        "q_dtype": setup.q_dtype,
        "kv_dtype": setup.kv_dtype,
        "target": setup.target.name,
        **setup.machine.columns(),
    }


def run(
    shapes: Sequence[Shape], setup: Setup, max_kv_tokens: int, budget_s: float
) -> tuple[list[dict[str, object]], list[tuple[Shape, str]]]:
    """Times the shapes within the bounds.

    Returns:
        The rows, and what was left out and why.
    """
    rows, skipped = [], []
    started = time.monotonic()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    screen = console(stderr=True)
    with Progress(*columns, TimeElapsedColumn(), console=screen, transient=True) as bar:
        task = bar.add_task("shapes", total=len(shapes))
        for done, shape in enumerate(shapes):
            bar.update(task, description=f"batch {shape.batch} ctx {shape.context}")
            left = budget_s - (time.monotonic() - started)
            if sum(shape.kv_lens) > max_kv_tokens:
                skipped.append((shape, f"above --max-kv-tokens {max_kv_tokens}"))
            elif left <= 0:
                skipped.append((shape, f"--budget-s {budget_s:g} was spent"))
            else:
                rows.append(time_shape(shape, setup, left / (len(shapes) - done)))
            bar.advance(task)
    return rows, skipped


def show(rows: Sequence[dict[str, object]]) -> Table:
    """The table of aiter#3003, with the route that the dispatch tables choose."""
    table = Table(caption="p50 of decode and reduce; positive gain: hk is faster")
    for title in ("batch", "ctx", "page", "persistent (us)", "hk (us)", "gain (%)", "route"):
        table.add_column(title, justify="right")
    for row in rows:
        keys = ("batch", "ctx", "page_size", "persistent_us", "hk_us", "gain_pct", "route")
        table.add_row(*(str(row[key]) for key in keys))
    return table


def list_skipped(skipped: Sequence[tuple[Shape, str]]) -> Iterator[str]:
    """One line per reason, with the shapes it left out as BATCHxCONTEXT."""
    for why, group in itertools.groupby(
        sorted(skipped, key=lambda one: one[1]), lambda one: one[1]
    ):
        shapes = [f"{shape.batch}x{shape.context}" for shape, _ in group]
        yield f"skipped, {why}: {' '.join(shapes)}"


@click.command(context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.option("--nhead", default=32, help="Query heads of a rank.")
@click.option("--batch-sizes", type=IntList(), default="1,3,5,16,32,64,128,256")
@click.option("--decode-qlen", default=4, help="Query tokens of each request.")
@click.option("--page-sizes", type=IntList(), default="1")
@click.option("--ctx-lens", type=IntList(), default="21,64,256,512,1200,3200,5200,8192")
@click.option("--warmup", default=20, help="Most untimed turns of a shape.")
@click.option("--iters", default=100, help="Most timed rounds of a shape.")
@click.option("--csv", "csv_path", type=click.Path(path_type=Path), help="Write the rows there.")
@click.option("--target", "target_name", help="Default: HIPDECODE_TARGET or cpu.")
@click.option("--dtype", default="fp8", help="q and KV; or Q/KV such as bf16/fp8.")
@click.option("--threads", default=1, help="1: CPU time of the thread; more: wall time.")
@click.option("--max-kv-tokens", default=131072, help="Larger shapes are skipped.")
@click.option("--budget-s", default=600.0, help="Seconds of the whole run, about.")
@click.option("--trace", type=click.Path(path_type=Path, exists=True), help="Ragged batches of it.")
def main(
    *,
    nhead: int,
    batch_sizes: tuple[int, ...],
    decode_qlen: int,
    page_sizes: tuple[int, ...],
    ctx_lens: tuple[int, ...],
    warmup: int,
    iters: int,
    csv_path: Path | None,
    target_name: str | None,
    dtype: str,
    threads: int,
    max_kv_tokens: int,
    budget_s: float,
    trace: Path | None,
) -> None:
    """Times hk against persistent; positive gain means that hk is faster."""
    where = target.resolve(target_name)
    q_dtype, _, kv_dtype = dtype.partition("/")
    setup = Setup(
        target=where,
        nhead=nhead,
        q_len=decode_qlen,
        q_dtype=where.dtype(q_dtype),
        kv_dtype=where.dtype(kv_dtype or q_dtype),
        warmup=warmup,
        iters=iters,
        machine=timing.Machine.here(where.device_type),
        clock=clock_of(where),
    )
    if trace is None:
        shapes = grid(batch_sizes, page_sizes, ctx_lens)
    else:
        shapes = from_trace(trace, batch_sizes, page_sizes, decode_qlen)
    with settings.override(target=where.name), timing.intra_op_threads(threads):
        rows, skipped = run(shapes, setup, max_kv_tokens, budget_s)
    screen = console()
    screen.print(show(rows))
    for line in list_skipped(skipped):
        screen.print(line, highlight=False)
    if csv_path is not None:
        write_csv(csv_path, rows)


if __name__ == "__main__":
    main()
