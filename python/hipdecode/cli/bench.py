# SPDX-License-Identifier: MIT
"""`hipdecode bench`: kernels beside their peers, interleaved, checked, with the machine's roof."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import click
from rich.progress import Progress
from rich.table import Table

from hipdecode import settings, target
from hipdecode.errors import BadArgument
from hipdecode.testing import bench_table, timing
from hipdecode.testing.bench_case import DecodeCase, Peer
from hipdecode.testing.bench_report import IntList, ShapeList, console, write_csv
from hipdecode.testing.bench_run import Plan, Roof, time_case
from hipdecode.testing.device_clock import clock_of
from hipdecode.testing.gpu_peers import gpu_peers
from hipdecode.testing.peers import Hipdecode, cpu_peers, load_peer
from hipdecode.testing.traces import trace_batches


@dataclass(frozen=True, slots=True)
class Draw:
    """A case to draw; see DecodeCase.draw."""

    q_dtype: str
    kv_dtype: str
    nhead: int
    q_len: int
    page_size: int
    kv_lens: tuple[int, ...]
    device: str

    def case(self) -> DecodeCase:
        """Draws it."""
        return DecodeCase.draw(
            self.kv_lens,
            nhead=self.nhead,
            q_len=self.q_len,
            q_dtype=self.q_dtype,
            kv_dtype=self.kv_dtype,
            page_size=self.page_size,
            device=self.device,
        )


def show(results: Sequence[Sequence[dict[str, object]]]) -> Table:
    """One line per case: the first form of ours, then everyone's time over it."""
    names = list(dict.fromkeys(str(row["contender"]) for rows in results for row in rows))
    table = Table(caption="x: median over rounds of its time / ours; above 1 we are faster")
    for title in ("q/kv", "nhead", "q_len", "batch x ctx", "ms", "GF/s", "% roof", "route"):
        table.add_column(title, justify="right")
    for name in names[1:]:
        table.add_column(name, justify="right", style="cyan", overflow="fold", min_width=7)
    for rows in results:
        ours = rows[0]
        ratio = {row["contender"]: f"{float(str(row['ratio'])):.2f}x" for row in rows}
        table.add_row(
            f"{ours['q_dtype']}/{ours['kv_dtype']}",
            *(str(ours[key]) for key in ("nhead", "q_len")),
            f"{ours['batch']} x {ours['context']}",
            *(str(ours[key]) for key in ("ms_p50", "gflops", "roof_pct", "route")),
            *(ratio.get(name, "-") for name in names[1:]),
        )
    return table


def run_grid(
    grid: Sequence[Draw], plan: Plan, csv_path: Path | None = None
) -> list[list[dict[str, object]]]:
    """Draws and times every case of a grid; one list of rows per case.

    What is there is written to the CSV file after every case, so that an end in between, such as a
    peer that takes the device down, leaves the cases before it.
    """
    results: list[list[dict[str, object]]] = []
    with Progress(console=console(stderr=True), transient=True) as progress:
        task = progress.add_task("cases", total=len(grid))
        for draw in grid:
            requests, longest = len(draw.kv_lens), max(draw.kv_lens)
            progress.update(task, description=f"{draw.kv_dtype} {requests}x{longest}")
            results.append(time_case(draw.case(), plan))
            if csv_path is not None:
                write_csv(csv_path, [row for rows in results for row in rows])
            progress.advance(task)
    return results


def report(results: Sequence[Sequence[dict[str, object]]], plan: Plan) -> None:
    """Prints the table and the machine.

    Raises:
        click.ClickException: one of our results is outside the tolerance.
    """
    screen = console()
    screen.print(show(results))
    facts = plan.machine.columns()
    screen.print(
        f"{facts['machine']}; {results[0][0]['threads']} threads, {results[0][0]['clock']} time, "
        f"torch {facts['torch']}, commit {facts['commit']}, {facts['date']}; "
        f"roof {plan.roof.gflops:.0f} GF/s ({plan.roof.source})",
        highlight=False,
    )
    rows = [row for case_rows in results for row in case_rows]
    wrong = [row for row in rows if row["route"] and not row["within_tolerance"]]
    if wrong:
        raise click.ClickException(f"{len(wrong)} of our results are outside the tolerance")


@click.group(name="bench", invoke_without_command=True)
@click.option("--op", type=click.Choice(["mla_decode"]), default="mla_decode", show_default=True)
@click.option("--target", "target_name", help="Whose kernels; default: HIPDECODE_TARGET or cpu.")
@click.option(
    "--shapes", type=ShapeList(), default="1x512,8x4096", show_default=True, help="BATCHxCONTEXT."
)
@click.option(
    "--trace",
    type=click.Path(path_type=Path, exists=True),
    help="Instead of --shapes: contexts of a serving trace, a CSV with a column context_tokens.",
)
@click.option("--batches", type=IntList(), default="4,16,64", help="Requests drawn from --trace.")
@click.option("--nhead", type=IntList(), default="16", show_default=True, help="Query heads.")
@click.option("--q-len", type=IntList(), default="1", show_default=True, help="Query tokens.")
@click.option("--page-size", default=1, show_default=True, help="Tokens of a KV page.")
@click.option("--q-dtype", default="bf16", show_default=True, help="bf16, fp16 or fp8.")
@click.option("--kv-dtype", default="bf16", show_default=True, help="List; fp8 is the target's.")
@click.option("--routes", default="auto", show_default=True, help="List of auto, hk, persistent.")
@click.option("--peers", is_flag=True, help="Time torch and the engines importable here too.")
@click.option("--peer", "plugins", multiple=True, help="A peer of your own: NAME=MODULE:FUNCTION.")
@click.option("--threads", default=1, show_default=True, help="1: CPU time; more: wall time.")
@click.option("--iters", default=50, show_default=True, help="Most rounds of a case.")
@click.option("--warmup", default=5, show_default=True, help="Most untimed turns.")
@click.option("--budget-s", default=10.0, show_default=True, help="Seconds of a case, about.")
@click.option("--cold", is_flag=True, help="Rotate buffers so that no call finds its KV cached.")
@click.option("--peak-gflops", type=float, help="The roof; default: what torch.mm reaches.")
@click.option("--csv", "csv_path", type=click.Path(path_type=Path), help="Write the rows there.")
@click.pass_context
def command(
    ctx: click.Context,
    *,
    op: str,
    target_name: str | None,
    shapes: tuple[tuple[int, int], ...],
    trace: Path | None,
    batches: tuple[int, ...],
    nhead: tuple[int, ...],
    q_len: tuple[int, ...],
    page_size: int,
    q_dtype: str,
    kv_dtype: str,
    routes: str,
    peers: bool,
    plugins: tuple[str, ...],
    threads: int,
    iters: int,
    warmup: int,
    budget_s: float,
    cold: bool,
    peak_gflops: float | None,
    csv_path: Path | None,
) -> None:
    """Time kernels beside their peers; every output is checked against an fp64 oracle."""
    del op
    if ctx.invoked_subcommand is not None:
        return
    where = target.resolve(target_name)
    dtypes = [(where.dtype(q_dtype), where.dtype(kv)) for kv in kv_dtype.split(",")]
    contexts = trace_batches(trace, batches) if trace else [[kv] * b for b, kv in shapes]
    grid = [
        Draw(*pair, heads, tokens, page_size, tuple(kv_lens), where.device_type)
        for pair, heads, tokens, kv_lens in itertools.product(dtypes, nhead, q_len, contexts)
    ]
    with settings.override(target=where.name), timing.intra_op_threads(threads):
        clock = clock_of(where)
        plan = Plan(
            ours=_ours(routes),
            peers=_peers(peers, plugins, where),
            target=where,
            rounds=iters,
            warmup=warmup,
            budget_s=budget_s,
            cold=cold,
            clock=clock,
            machine=timing.Machine.here(where.device_type),
            roof=Roof.find(peak_gflops, clock, where.device_type),
        )
        results = run_grid(grid, plan, csv_path)
    report(results, plan)


def _ours(routes: str) -> tuple[Hipdecode, ...]:
    words = routes.split(",")
    unknown = [word for word in words if word not in ("auto", "hk", "persistent")]
    if unknown:
        raise BadArgument(f"--routes: expected auto, hk or persistent, got {unknown}; use those")
    return tuple(
        Hipdecode() if word == "auto" else Hipdecode(f"hipdecode_{word}", word) for word in words
    )


def _peers(wanted: bool, plugins: Sequence[str], where: target.Target) -> tuple[Peer, ...]:
    found: list[Peer] = []
    if wanted:
        found, absent = gpu_peers() if where.device_type == "cuda" else cpu_peers()
        for name, why in absent.items():
            click.echo(f"absent: {name} ({why}); --peer names a build of your own", err=True)
    return (*found, *(load_peer(spec) for spec in plugins))


@command.command()
@click.argument("csv_path", type=click.Path(path_type=Path, exists=True))
@click.option("--out", required=True, type=click.Path(path_type=Path), help="The PNG to write.")
def plot(csv_path: Path, out: Path) -> None:
    """Draw a result file.

    Times of a device beside peers and limit; of a CPU peers, or where hk and persistent cross.
    """
    from hipdecode.testing import bench_plot

    routes = bench_plot.read_routes(csv_path)
    if times := bench_plot.read_device(csv_path):
        bench_plot.draw_device(times, out)
    elif routes:
        bench_plot.draw_routes(routes, out)
    else:
        bench_plot.draw_peers(bench_plot.read_peers(csv_path), out)
    click.echo(str(out))


@command.command()
@click.argument("csv_path", type=click.Path(path_type=Path, exists=True), required=False)
@click.option("--nhead", type=IntList(), default=None, help="Only these; default all.")
@click.option("--q-len", type=IntList(), default=None, help="Only these; default all.")
@click.option(
    "--update",
    "page",
    type=click.Path(path_type=Path, exists=True),
    help="Draw the marked blocks of this page anew, by the command that each mark names.",
)
def table(
    csv_path: Path | None,
    nhead: tuple[int, ...] | None,
    q_len: tuple[int, ...] | None,
    page: Path | None,
) -> None:
    """Print a result file as Markdown, or draw a page's tables anew."""
    if (csv_path is None) == (page is None):
        raise BadArgument("bench table: expected a CSV file or --update PAGE, got both or neither")
    if page is not None:
        text, count = bench_table.redrawn(page)
        page.write_text(text, encoding="utf-8")
        click.echo(f"{page}: {count} tables")
    elif csv_path is not None:
        click.echo("\n".join(bench_table.draw(csv_path, nhead or (), q_len or ())))
