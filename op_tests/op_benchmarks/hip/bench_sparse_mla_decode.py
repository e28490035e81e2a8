#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""p50 of sparse MLA decode beside gather, dequantise and bf16 products in torch.

Lists change from round to round and name a small part of a pool that fits no cache.
"""

from __future__ import annotations

import itertools
import sys
from pathlib import Path

import click
import torch
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parents[3] / "python"))

from hipdecode import settings, target
from hipdecode.sparse_cache import FORMATS
from hipdecode.testing import timing
from hipdecode.testing.bench_report import IntList, console, write_csv
from hipdecode.testing.device_clock import clock_of
from hipdecode.testing.sparse_peers import CONTENDERS, SparseStep

_COPIES = 4
_SHOWN = ("format", "nhead", "topk", "tokens", "hipdecode_us", "torch_gather_us",
          "torch_products_us", "ratio", "gflops")  # fmt: skip


def time_shape(
    steps: list[SparseStep], where: target.Target, rounds: int, budget_s: float
) -> dict[str, object]:
    """Times all contenders on copies of one step and checks the results of ours.

    Raises:
        click.ClickException: a result is outside the tolerance.
    """
    clock = clock_of(where)
    thunks = {name: [make(step) for step in steps] for name, make in CONTENDERS.items()}
    thunks["hipdecode"][0]()
    checked = steps[0].check(where.name, steps[0].want())
    if not checked.within:
        raise click.ClickException(f"expected a result in tolerance, got {checked.max_err:.2e} off")
    times = timing.measure(
        {name: [clock.ready(thunk) for thunk in copies] for name, copies in thunks.items()},
        rounds=rounds,
        budget_s=budget_s,
        clock=clock,
    )
    form, (tokens, nhead, _) = steps[0].form, steps[0].q.shape
    topk = steps[0].indices.shape[1]
    flop = 2 * tokens * topk * nhead * (form.head_dim_qk + form.head_dim_v)
    mine = times["hipdecode"]
    return {
        "format": form.name,
        "nhead": nhead,
        "topk": topk,
        "tokens": tokens,
        **{f"{name}_us": f"{1e3 * found.p50:.1f}" for name, found in times.items()},
        "ratio": f"{times['torch_gather'].ratio_to(mine):.2f}",
        "gflops": f"{flop / mine.p50 / 1e6:.0f}",
        "max_err": f"{checked.max_err:.2e}",
        "rounds": len(mine.ms),
        "clock": mine.clock,
        "threads": torch.get_num_threads(),
        "target": where.name,
    }


@click.command(context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.option("--format", "form", type=click.Choice(list(FORMATS)), default="v32")
@click.option("--nhead", "nheads", type=IntList(), default="16,64,128", help="Query heads.")
@click.option("--topk", "topks", type=IntList(), default="2048", help="Keys of a token.")
@click.option("--tokens", type=IntList(), default="1,4", help="Query tokens of a step.")
@click.option("--pool-tokens", default=131072, help="Tokens of the cache.")
@click.option("--sink", is_flag=True, help="With an attention sink.")
@click.option("--iters", default=60, help="Most timed rounds of a shape.")
@click.option("--budget-s", default=10.0, help="Seconds of a shape, about.")
@click.option("--threads", default=1, help="1: CPU time of the thread; more: wall time.")
@click.option("--target", "target_name", help="Default: HIPDECODE_TARGET or cpu.")
@click.option("--csv", "csv_path", type=click.Path(path_type=Path), help="Write the rows there.")
def main(
    *,
    form: str,
    nheads: tuple[int, ...],
    topks: tuple[int, ...],
    tokens: tuple[int, ...],
    pool_tokens: int,
    sink: bool,
    iters: int,
    budget_s: float,
    threads: int,
    target_name: str | None,
    csv_path: Path | None,
) -> None:
    """Times sparse decode; ratio is that of torch_gather's time to ours."""
    where = target.resolve(target_name)
    machine = timing.Machine.here(where.device_type).columns()
    rows = []
    with settings.override(target=where.name), timing.intra_op_threads(threads):
        pool = SparseStep.pool(FORMATS[form], pool_tokens, where.device_type)
        for nhead, topk, count in itertools.product(nheads, topks, tokens):
            steps = [
                SparseStep.draw(form, pool, tokens=count, nhead=nhead, topk=topk, sink=sink, seed=i)
                for i in range(_COPIES)
            ]
            rows.append({**time_shape(steps, where, iters, budget_s), **machine})
    table = Table(caption="p50; ratio: torch_gather / hipdecode")
    for title in _SHOWN:
        table.add_column(title, justify="right")
    for row in rows:
        table.add_row(*(str(row[key]) for key in _SHOWN))
    console().print(table)
    if csv_path is not None:
        write_csv(csv_path, rows)


if __name__ == "__main__":
    main()
