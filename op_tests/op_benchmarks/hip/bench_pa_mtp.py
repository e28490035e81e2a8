#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""p50 of paged attention of one to several tokens, routed and by the general kernel, beside torch.

On a GPU, by graph replays with cold caches, beside FlashInfer where it is importable.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable
from pathlib import Path

import click
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[3] / "python"))

from hipdecode import ops, settings, target
from hipdecode.testing import timing
from hipdecode.testing.bench_report import Checked, IntList, print_rows, write_csv
from hipdecode.testing.device_clock import WARMUP, clock_of
from hipdecode.testing.paged_gpu_peers import CONTENDERS as DEVICE_CONTENDERS
from hipdecode.testing.paged_peers import CONTENDERS, PagedStep

_OURS = ("hipdecode", "general")
Make = Callable[[PagedStep], Callable[[], Tensor]]


def makers_of(clock: timing.Clock) -> dict[str, Make]:
    """The contenders on a machine."""
    if clock.name != "device":
        return CONTENDERS
    ours: dict[str, Make] = {name: CONTENDERS[name] for name in _OURS}
    return ours | DEVICE_CONTENDERS | {"torch_sdpa_dense": CONTENDERS["torch_sdpa_dense"]}


def ready(
    steps: list[PagedStep], clock: timing.Clock, where: target.Target
) -> tuple[dict[str, list[timing.Thunk]], dict[str, Checked]]:
    """What is timed, and the errors of the results on the first step.

    Raises:
        click.ClickException: a result of ours is outside the tolerance.
    """
    want = steps[0].want()
    thunks: dict[str, list[timing.Thunk]] = {}
    errors: dict[str, Checked] = {}
    for name, make in makers_of(clock).items():
        try:
            calls = [make(step) for step in steps]
            checked = steps[0].check(calls[0](), want, where.name)
        except Exception as error:  # a peer may be absent or refuse the shape in any way
            if name in _OURS:
                raise
            click.echo(f"left out: {name} ({str(error).partition(chr(10))[0]})", err=True)
            continue
        if name in _OURS and not checked.within:
            raise click.ClickException(f"expected it in tolerance, got {checked.max_err:.2e} off")
        errors[name] = checked
        # in one round no contender finds in a cache what the one before it has read
        first = 2 * len(thunks) % len(calls)
        thunks[name] = [clock.ready(call) for call in calls[first:] + calls[:first]]
    return thunks, errors


def time_shape(
    steps: list[PagedStep], where: target.Target, rounds: int, budget_s: float
) -> dict[str, object]:
    """Times all contenders on copies of one step."""
    clock = clock_of(where)
    thunks, errors = ready(steps, clock, where)
    times = timing.measure(thunks, rounds=rounds, budget_s=budget_s, clock=clock, warmup=WARMUP)
    step, mine = steps[0], times["hipdecode"]
    others = [name for name in times if name not in _OURS]
    best = min(others, key=lambda name: times[name].p50)
    names = [name for name in makers_of(clock) if name in times]
    return {
        "kv": "bf16" if step.k_scale is None else "fp8",
        "gqa": step.gqa,
        "mtp": step.mtp,
        "ctx": step.context,
        "batch": len(step.context_lens),
        "nhead_kv": step.key_cache.shape[1],
        **{f"{name}_us": f"{1e3 * times[name].p50:.1f}" for name in names},
        "best_peer": best,
        "ratio": f"{times[best].ratio_to(mine):.2f}",
        "ratio_general": f"{times['general'].ratio_to(mine):.2f}",
        "gb_s": f"{step.kv_bytes / mine.p50 / 1e6:.1f}",
        **{f"{name}_err": f"{errors[name].max_err:.1e}" for name in names},
        "kernels": " ".join(k for k in ops.loaded_kernels() if k.startswith("paged_attention")),
        "rounds": len(mine.ms),
        "clock": mine.clock,
        "threads": torch.get_num_threads(),
        "target": where.name,
    }


@click.command(context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.option("--kv", "kinds", default="fp8,bf16", help="Types of the cache.")
@click.option("--gqa", "gqas", type=IntList(), default="8,10,16", help="Heads of a kv head.")
@click.option("--mtp", "mtps", type=IntList(), default="1,2,3,4", help="Tokens of a step.")
@click.option("--ctx", "contexts", type=IntList(), default="128,4097,16384", help="Contexts.")
@click.option("--batch", "batches", type=IntList(), default="4", help="Requests.")
@click.option("--nhead-kv", default=1, help="kv heads.")
@click.option("--block-size", default=16, help="Tokens of a block.")
@click.option("--iters", default=60, help="Most timed rounds of a shape.")
@click.option("--budget-s", default=5.0, help="Seconds of a shape, about.")
@click.option("--threads", default=1, help="1: CPU time of the thread; more: wall time.")
@click.option("--target", "target_name", help="Default: HIPDECODE_TARGET or cpu.")
@click.option("--csv", "csv_path", type=click.Path(path_type=Path), help="Write the rows there.")
def main(
    *,
    kinds: str,
    gqas: tuple[int, ...],
    mtps: tuple[int, ...],
    contexts: tuple[int, ...],
    batches: tuple[int, ...],
    nhead_kv: int,
    block_size: int,
    iters: int,
    budget_s: float,
    threads: int,
    target_name: str | None,
    csv_path: Path | None,
) -> None:
    """Times paged attention; ratio is that of the best peer's time to ours."""
    where = target.resolve(target_name)
    machine = timing.Machine.here(where.device_type).columns()
    copies = 4 if where.device_type == "cpu" else 1
    rows = []
    with settings.override(target=where.name), timing.intra_op_threads(threads):
        shapes = itertools.product(kinds.split(","), gqas, mtps, contexts, batches)
        for kind, gqa, mtp, context, batch in shapes:
            steps = [
                PagedStep.draw(
                    batch=batch, context=context, gqa=gqa, nhead_kv=nhead_kv, mtp=mtp,
                    fp8=kind == "fp8", block_size=block_size, device=where.device_type, seed=seed,
                )
                for seed in range(copies)
            ]  # fmt: skip
            rows.append({**time_shape(steps, where, iters, budget_s), **machine})
    shown = list(rows[0])[: list(rows[0]).index("gb_s") + 1]
    print_rows(rows, caption="p50; ratio: best peer / hipdecode", columns=shown)
    if csv_path is not None:
        write_csv(csv_path, rows)


if __name__ == "__main__":
    main()
