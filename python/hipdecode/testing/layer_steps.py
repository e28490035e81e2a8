# SPDX-License-Identifier: MIT
"""Decode steps of all attention layers of a model inside a serving engine, contenders in turns.

An engine's script builds its own layers, pools and batches; here are the contexts, the clock, the
check and the table.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import torch
from rich.table import Table
from torch import Tensor

from hipdecode import target
from hipdecode.testing import compare, reference, timing
from hipdecode.testing.bench_report import Checked, IntList, console, write_csv
from hipdecode.testing.traces import trace_batches

OURS = "hipdecode"
KV_DTYPES = ("bf16", "fp8")
_SHOWN = (
    "nhead", "kv_dtype", "batch", "kv_len_mean", "kv_len_max", "contender", "tokens_per_s",
    "ms_per_step", "us_per_layer", "over_peer", "max_err", "within_tolerance",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Setup:
    """What the contenders of one measurement share.

    Attributes:
        lengths: tokens of each request, the one that the step decodes included.
        layers: attention layers of the model.
        nhead: query heads.
        page_size: tokens of a page.
        kv_dtype: `bf16` or `fp8`.
        device: where all of it lies.
    """

    lengths: tuple[int, ...]
    layers: int
    nhead: int
    page_size: int
    kv_dtype: str
    device: torch.device


@dataclass(frozen=True, slots=True)
class Contender:
    """One backend of an engine, ready to decode.

    Attributes:
        begin: once, before its graph is captured.
        prepare: what the engine does before every step: lengths, pages, plans.
        layers: all attention layers once; captured where there is a GPU.
        check: the first layer's output of the last step against fp64.
    """

    begin: Callable[[], object]
    prepare: Callable[[], object]
    layers: Callable[[], object]
    check: Callable[[], Checked]


Build = Callable[[Setup], Mapping[str, Callable[[], Contender]]]
"""By name, with `hipdecode` among them; of another one that fails the row has the error."""


def check_first_and_last(
    out: Tensor, q: Tensor, keys_of: Callable[[int], Tensor], sm_scale: float
) -> Checked:
    """Compares the first and the last request of a step of one row a request.

    Args:
        out: [batch, nhead, head_dim_v].
        q: [batch, nhead, head_dim_qk].
        keys_of: the rows of a request's keys, [kv_len, head_dim_qk], in order.
        sm_scale: of the scores.
    """
    requests = sorted({0, len(q) - 1})
    keys = [keys_of(request).cpu() for request in requests]
    bounds = torch.tensor([0, *(len(rows) for rows in keys)], dtype=torch.int32).cumsum(0).int()
    as_bytes = [rows.view(torch.uint8) if rows.element_size() == 1 else rows for rows in keys]
    want = reference.mla_decode(
        q[requests].cpu(),
        torch.cat(as_bytes).view(keys[0].dtype)[:, None, None],
        torch.arange(len(requests) + 1, dtype=torch.int32),
        bounds,
        torch.arange(int(bounds[-1]), dtype=torch.int32),
        max_seqlen_q=1,
        sm_scale=sm_scale,
    )
    got = out[requests].cpu()
    difference = (got.double() - want.o).abs()
    allowed = compare.allowed_output(want, got.dtype, target.current().name, q.dtype)
    return Checked(float(difference.max()), bool((difference <= allowed).all()))


def options(command: Callable[..., None]) -> Callable[..., None]:
    """The options that `run` takes."""
    for option in reversed(
        (
            click.option("--layers", default=61, show_default=True, help="Of the model."),
            click.option("--nhead", type=IntList(), default="16,128", show_default=True),
            click.option("--batch-sizes", type=IntList(), default="1,16,64", show_default=True),
            click.option(
                "--trace", type=click.Path(path_type=Path, exists=True), help="Contexts of it."
            ),
            click.option("--kv-len", default=4096, show_default=True, help="Without --trace."),
            click.option("--kv-dtype", default=",".join(KV_DTYPES), show_default=True),
            click.option("--page-size", default=64, show_default=True),
            click.option("--rounds", default=7, show_default=True),
            click.option("--steps", default=10, show_default=True, help="Of a round."),
            click.option("--csv", "out", type=click.Path(path_type=Path), help="Write rows there."),
        )
    ):
        command = option(command)
    return command


def run(
    build: Build,
    versions: Mapping[str, str],
    *,
    layers: int,
    nhead: Sequence[int],
    batch_sizes: Sequence[int],
    trace: Path | None,
    kv_len: int,
    kv_dtype: str,
    page_size: int,
    rounds: int,
    steps: int,
    out: Path | None,
) -> None:
    """Times all contenders over all batches, dtypes and head counts, and prints them."""
    device = torch.device(target.current().device_type)
    drawn = trace_batches(trace, batch_sizes) if trace else [[kv_len] * b for b in batch_sizes]
    facts = {**versions, **timing.Machine.here(device.type).columns()}
    rows: list[dict[str, object]] = []
    table = Table(*_SHOWN)
    for heads in nhead:
        for lengths in drawn:
            for dtype in kv_dtype.split(","):
                setup = Setup(tuple(lengths), layers, heads, page_size, dtype, device)
                for row in _bench(setup, build(setup), rounds, steps):
                    table.add_row(*(str(row[key]) for key in _SHOWN))
                    rows.append({"trace": trace.stem if trace else ""} | row | facts)
                if out is not None:
                    write_csv(out, rows)  # a run may be cut short
    console().print(table)


@torch.no_grad()
def _bench(
    setup: Setup, contenders: Mapping[str, Callable[[], Contender]], rounds: int, steps: int
) -> list[dict[str, object]]:
    runs: dict[str, tuple[Contender, Callable[[], object]]] = {}
    failed: dict[str, str] = {}
    for name, make in contenders.items():
        try:
            made = make()
            runs[name] = (made, _captured(made))
        except Exception as error:
            if name.startswith(OURS):
                raise
            failed[name] = f"{type(error).__name__}: {error}"[:120]
    checks: dict[str, Checked] = {}
    for name, (made, layers) in runs.items():
        made.prepare()
        layers()
        checks[name] = made.check()
    whole, alone = _timed(runs, rounds, steps, setup.device)
    p50 = {name: statistics.median(seconds) for name, seconds in whole.items()}
    peer = min((p50[name] for name in p50 if not name.startswith(OURS)), default=None)
    rows = []
    for name in contenders:
        row: dict[str, object] = {
            "layers": setup.layers,
            "nhead": setup.nhead,
            "page_size": setup.page_size,
            "kv_dtype": setup.kv_dtype,
            "batch": len(setup.lengths),
            "kv_len_mean": round(sum(setup.lengths) / len(setup.lengths)),
            "kv_len_max": max(setup.lengths),
            "contender": name,
        }
        row |= dict.fromkeys(
            ("ms_per_step", "ms_best", "us_per_layer", "over_peer", "max_err", "within_tolerance"),
            "",
        ) | {"tokens_per_s": failed.get(name, "")}
        if name in runs:
            row |= {
                "tokens_per_s": f"{len(setup.lengths) / p50[name]:.0f}",
                "ms_per_step": f"{p50[name] * 1e3:.3f}",
                "ms_best": f"{min(whole[name]) * 1e3:.3f}",
                "us_per_layer": f"{statistics.median(alone[name]) / setup.layers * 1e6:.2f}",
                "over_peer": f"{peer / p50[name]:.2f}" if peer else "",
                "max_err": f"{checks[name].max_err:.1e}",
                "within_tolerance": checks[name].within,
            }
        rows.append(row | {"rounds": rounds, "steps": steps})
    return rows


def _captured(contender: Contender) -> Callable[[], object]:
    """The layers as an engine runs them: a graph's replay on a GPU."""
    contender.begin()
    if target.current().device_type == "cpu":
        return contender.layers
    make: Any = torch.cuda.Stream
    stream = make()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(2):
            contender.layers()
    stream.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        contender.layers()
    return graph.replay


def _timed(
    runs: Mapping[str, tuple[Contender, Callable[[], object]]],
    rounds: int,
    steps: int,
    device: torch.device,
) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Seconds of a step and of its layers alone, by round."""
    wait: Any = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    whole: dict[str, list[float]] = {name: [] for name in runs}
    alone: dict[str, list[float]] = {name: [] for name in runs}
    orders = random.Random(0)
    for _ in range(rounds):
        for name in orders.sample(list(runs), len(runs)):
            made, layers = runs[name]
            for taken, prepares in ((alone, False), (whole, True)):
                wait()
                begin = time.perf_counter()
                for _ in range(steps):
                    if prepares:
                        made.prepare()
                    layers()
                wait()
                taken[name].append((time.perf_counter() - begin) / steps)
    return whole, alone
