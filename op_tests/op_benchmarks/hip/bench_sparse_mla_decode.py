#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""p50 of sparse MLA decode beside torch, and on a GPU beside Triton and FlashMLA.

Lists change from round to round and name a small part of a pool that fits no cache.
"""

from __future__ import annotations

import itertools
import sys
from pathlib import Path

import click
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[3] / "python"))

from hipdecode import settings, target
from hipdecode.sparse_cache import FORMATS
from hipdecode.testing import timing
from hipdecode.testing.bench_report import Checked, IntList, print_rows, write_csv
from hipdecode.testing.device_clock import WARMUP, clock_of
from hipdecode.testing.sparse_gpu_peers import CONTENDERS as DEVICE_CONTENDERS
from hipdecode.testing.sparse_peers import CONTENDERS, SparseStep

_COPIES = 4
_BASE = {"cpu": "torch_gather", "device": "torch_batched"}
"""What `ratio` compares with, by the kind of clock."""


def ready(
    steps: list[SparseStep], clock: timing.Clock, where: target.Target
) -> tuple[dict[str, list[timing.Thunk]], dict[str, Checked]]:
    """What is timed, and the errors of the results on the first step.

    Raises:
        click.ClickException: a result of ours is outside the tolerance.
    """
    makers = dict(CONTENDERS)
    if clock.name == "device":
        steps, makers = steps[:1], {"hipdecode": CONTENDERS["hipdecode"], **DEVICE_CONTENDERS}
    want = steps[0].want()
    thunks: dict[str, list[timing.Thunk]] = {}
    errors: dict[str, Checked] = {}
    for name, make in makers.items():
        try:
            calls = [make(step) for step in steps]
            checked = steps[0].check(calls[0](), want, where.name)
        except Exception as error:  # a peer may be absent or refuse the shape in any way
            if name == "hipdecode":
                raise
            click.echo(f"left out: {name} ({str(error).partition(chr(10))[0]})", err=True)
            continue
        if name == "hipdecode" and not checked.within:
            raise click.ClickException(f"expected it in tolerance, got {checked.max_err:.2e} off")
        errors[name] = checked
        thunks[name] = [clock.ready(call) for call in calls]
    return thunks, errors


def time_shape(
    steps: list[SparseStep], where: target.Target, rounds: int, budget_s: float
) -> dict[str, object]:
    """Times all contenders on copies of one step.

    Raises:
        click.ClickException: a result of ours is outside the tolerance.
    """
    clock = clock_of(where)
    thunks, errors = ready(steps, clock, where)
    times = timing.measure(thunks, rounds=rounds, budget_s=budget_s, clock=clock, warmup=WARMUP)
    step, (tokens, nhead, _) = steps[0], steps[0].q.shape
    flop = 2 * tokens * step.keys * nhead * (step.form.head_dim_qk + step.form.head_dim_v)
    mine = times["hipdecode"]
    base = _BASE["device" if clock.name == "device" else "cpu"]
    names = dict.fromkeys([*CONTENDERS, *DEVICE_CONTENDERS])
    return {
        "format": step.form.name,
        "nhead": nhead,
        "topk": step.main.indices.shape[1],
        "extra_topk": step.keys - step.main.indices.shape[1],
        "tokens": tokens,
        **{f"{n}_us": f"{1e3 * times[n].p50:.1f}" if n in times else "" for n in names},
        "ratio": f"{times[base].ratio_to(mine):.2f}",
        "gflops": f"{flop / mine.p50 / 1e6:.0f}",
        **{f"{n}_err": f"{errors[n].max_err:.1e}" if n in errors else "" for n in names},
        "rounds": len(mine.ms),
        "clock": mine.clock,
        "threads": torch.get_num_threads(),
        "target": where.name,
    }


@click.command(context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.option("--format", "form", type=click.Choice(list(FORMATS)), default="v32")
@click.option("--nhead", "nheads", type=IntList(), default="16,64,128", help="Query heads.")
@click.option("--topk", "topks", type=IntList(), default="2048", help="Keys of a token.")
@click.option("--extra-topk", default=0, help="Keys of a token in a second cache (V4).")
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
    extra_topk: int,
    tokens: tuple[int, ...],
    pool_tokens: int,
    sink: bool,
    iters: int,
    budget_s: float,
    threads: int,
    target_name: str | None,
    csv_path: Path | None,
) -> None:
    """Times sparse decode; ratio is that of torch's time to ours.

    On a CPU beside gather, dequantise and products of each token in torch; on a GPU, by graph
    replays with cold caches, beside batched torch, a Triton kernel and, where it is importable,
    FlashMLA.
    """
    where = target.resolve(target_name)
    machine = timing.Machine.here(where.device_type).columns()
    rows = []
    with settings.override(target=where.name), timing.intra_op_threads(threads):
        pool = SparseStep.pool(FORMATS[form], pool_tokens, where.device_type)
        for nhead, topk, count in itertools.product(nheads, topks, tokens):
            steps = [
                SparseStep.draw(
                    pool, tokens=count, nhead=nhead, topk=topk, extra_topk=extra_topk, sink=sink,
                    seed=seed,
                )
                for seed in range(_COPIES if where.device_type == "cpu" else 1)
            ]  # fmt: skip
            rows.append({**time_shape(steps, where, iters, budget_s), **machine})
    shown = [key for key in rows[0] if not key.endswith("_err") and any(row[key] for row in rows)]
    shown = shown[: shown.index("gflops") + 1]
    print_rows(rows, caption="p50; ratio: torch / hipdecode", columns=shown)
    if csv_path is not None:
        write_csv(csv_path, rows)


if __name__ == "__main__":
    main()
