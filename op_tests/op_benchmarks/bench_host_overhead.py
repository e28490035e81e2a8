#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Microseconds that the host spends in one call of hipdecode, beside `torch.add(out=)`.

What is timed is the Python call until it returns, one thread, every call by itself: the p50 of many
thousands. `out`, the workspace and (where a row says so) the plan are given, as an engine has them.
On a GPU nothing waits for the kernels: the queue is emptied every few calls, outside the clock, so
the launches are in the number and the kernels are not. On a CPU the kernel runs inside the call;
its request has no tokens there, so that little but the call itself is left.
What the driver takes of a launch is the difference between a call with a plan (two launches) and
one of hk (one). Calls of all kinds take turns, so that a drifting clock reaches them alike.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import click
import torch
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "python"))

import hipdecode
from hipdecode import target
from hipdecode.testing import timing
from hipdecode.testing.bench_report import console, write_csv

NHEAD, PAGE_SIZE, CALLS_BEFORE_WAITING, ROUNDS = 16, 64, 16, 10


def calls(device: torch.device, tokens: int) -> dict[str, Callable[[], object]]:
    """What is timed, by name: one request of `tokens` tokens, 16 heads, bf16."""
    pages = -(-tokens // PAGE_SIZE)
    i32 = {"dtype": torch.int32, "device": device}
    q = torch.randn(1, NHEAD, 576, device=device).bfloat16()
    kv_buffer = torch.randn(64, PAGE_SIZE, 1, 576, device=device).bfloat16()
    qo_indptr, kv_indptr = torch.tensor([0, 1], **i32), torch.tensor([0, pages], **i32)
    kv_indices = torch.arange(64, **i32)
    last = torch.full((1,), tokens - (pages - 1) * PAGE_SIZE if pages else 0, **i32)
    lengths = {"kv_last_page_lens": last, "max_seqlen_q": 1}
    sizes = {"nhead": NHEAD, "page_size": PAGE_SIZE}
    plan = hipdecode.plan_mla_decode(qo_indptr, kv_indptr, **lengths, **sizes)
    options = {
        "out": torch.empty(1, NHEAD, 512, dtype=torch.bfloat16, device=device),
        "workspace": hipdecode.Workspace(device),
        "sm_scale": 192**-0.5,
    }

    def decode(**more: object) -> Callable[[], object]:
        fixed = {**lengths, **options, **more}
        return lambda: hipdecode.mla_decode(q, kv_buffer, qo_indptr, kv_indptr, kv_indices, **fixed)

    total = torch.empty_like(q)
    return sparse_calls(device, tokens) | {
        "nothing": lambda: None,
        "torch.add": lambda: torch.add(q, q, out=total),
        "mla_decode, hk, 1 split": decode(route="hk", num_splits=1),
        "mla_decode, hk, 8 splits": decode(route="hk", num_splits=8),
        "mla_decode, free route": decode(),
        "mla_decode, free route, kv_len": decode(kv_len=tokens),
        "mla_decode, persistent": decode(route="persistent"),
        "mla_decode, plan": decode(plan=plan),
        "plan_mla_decode, out": lambda: hipdecode.plan_mla_decode(
            qo_indptr, kv_indptr, **lengths, **sizes, out=plan
        ),
    }


def sparse_calls(device: torch.device, tokens: int) -> dict[str, Callable[[], object]]:
    """Sparse decode of one token in DeepSeek-V3.2's form, and over two caches in V4's."""

    def call(form: str, num_splits: int, **more: object) -> Callable[[], object]:
        cache = hipdecode.new_sparse_cache(form, 64, PAGE_SIZE, device=device)
        width = 576 if form == "v32" else 512
        q = torch.randn(1, NHEAD, width, device=device).bfloat16()
        slots = torch.arange(tokens, dtype=torch.int32, device=device)[None]
        lengths = torch.full((1,), tokens, dtype=torch.int32, device=device)
        lists = {"lengths": lengths, "attn_sink": torch.zeros(NHEAD, device=device)}
        if form == "v4":
            lists |= {"extra_cache": cache, "extra_indices": slots, "extra_lengths": lengths}
        out = torch.empty(1, NHEAD, 512, dtype=torch.bfloat16, device=device)
        fixed = {**lists, "out": out, "num_splits": num_splits, **more}
        return lambda: hipdecode.sparse_mla_decode(q, cache, slots, **fixed)

    return {
        "sparse_mla_decode, v32, 1 split": call("v32", 1),
        "sparse_mla_decode, v4, 1 split": call("v4", 1),
        "sparse_mla_decode, v4, 8 splits": call("v4", 8, workspace=hipdecode.Workspace(device)),
        "sparse_mla_decode, v4, 8 splits, own scratch": call("v4", 8),
    }


def times_of(call: Callable[[], object], device: torch.device, count: int) -> list[float]:
    """Microseconds of each of `count` calls."""
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    for _ in range(100):
        call()
    taken = []
    for index in range(count):
        if index % CALLS_BEFORE_WAITING == 0:
            wait()
        start = time.perf_counter_ns()
        call()
        taken.append((time.perf_counter_ns() - start) / 1e3)
    wait()
    return taken


@click.command(help=__doc__)
@click.option("--count", default=5000, show_default=True, help="Calls of each row.")
@click.option("--tokens", default=None, type=int, help="Context; default 512, on a CPU 0.")
@click.option("--csv", "out", type=click.Path(path_type=Path), help="Write the rows there.")
def main(count: int, tokens: int | None, out: Path | None) -> None:
    """Times all rows and prints them."""
    where = target.current()
    device = torch.device(where.device_type)
    if tokens is None:
        tokens = 0 if device.type == "cpu" else 512
    torch.set_num_threads(1)
    table = Table("call", "p10 us", "p50 us", "p90 us", title=f"{where.name}, {tokens} tokens")
    rows = []
    timed = calls(device, tokens)
    taken: dict[str, list[float]] = {name: [] for name in timed}
    for _ in range(ROUNDS):
        for name, call in timed.items():
            taken[name] += times_of(call, device, -(-count // ROUNDS))
    for name, times in taken.items():
        deciles = statistics.quantiles(times, n=10)
        numbers = {f"p{p}_us": f"{deciles[p // 10 - 1]:.2f}" for p in (10, 50, 90)}
        table.add_row(name, *numbers.values())
        rows.append(
            {"call": name, **numbers, "count": count, "tokens": tokens, "target": where.name,
             **timing.Machine.here().columns()}
        )  # fmt: skip
    console().print(table)
    if out is not None:
        write_csv(out, rows)


if __name__ == "__main__":
    main()
