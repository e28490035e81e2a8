#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Decode steps on one device beside the same steps on several that share the keys.

Every rank is a process, its keys every `ranks`-th token. What is timed on GPUs is a replay of the
captured step, collectives and merge included, with cold caches; ranks start it together, and the
slowest counts. `gather` gives every rank all heads, `scatter` each its own. Every result is held
against the fp64 oracle, with room for one rounding more: partial results travel in 16 bits.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import torch
import torch.distributed as dist
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "python"))

import hipdecode
from hipdecode import target
from hipdecode.testing import compare, device_clock, reference, timing
from hipdecode.testing.bench_case import DecodeCase
from hipdecode.testing.bench_report import IntList, ShapeList, print_rows, write_csv
from hipdecode.testing.cases import MlaInputs

PAGE_SIZE, WARMUP = 64, 8
DTYPES = {"bf16": ("bf16", "bf16"), "fp8": ("bf16", "fp8_e4m3fn")}
LAYOUTS = {"gather": False, "scatter": True}


@dataclass(frozen=True)
class Options:
    """What the command line asks for; sent to every process."""

    shapes: tuple[tuple[int, int], ...]
    nheads: tuple[int, ...]
    q_lens: tuple[int, ...]
    kv_dtypes: tuple[str, ...]
    ranks: int
    rounds: int
    eager: bool
    out: Path | None


class TogetherOnHost:
    """Wall time of a call that all ranks start together."""

    name = "wall"

    def ready(self, thunk: timing.Thunk) -> timing.Thunk:
        """See timing.Clock; a call is timed as it is."""
        thunk()
        return thunk

    def start(self, thunk: timing.Thunk) -> Callable[[], float]:
        """See timing.Clock; runs to its end at once."""
        dist.barrier()
        begin = time.perf_counter_ns()
        thunk()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        took = (time.perf_counter_ns() - begin) * 1e-6
        return lambda: took


class TogetherOnDevice(device_clock.DeviceClock):
    """Replays that all ranks' devices start together."""

    name = "device"

    def __init__(self) -> None:
        """Captures the sweep."""
        super().__init__()
        alone, token = self._sweep, torch.zeros(1, device="cuda")

        def sweep() -> None:
            alone()
            dist.all_reduce(token)

        self._sweep = sweep


class Held:
    """The fp64 result of the first and the last request."""

    def __init__(self, case: DecodeCase) -> None:
        requests = sorted({0, case.batch - 1})
        self.rows = case.rows_of(requests)
        with case.device:
            self.want = reference.mla_decode(**case.pick(requests))
        dtype, q_dtype = case.spec.out_dtype, case.inputs["q"].dtype
        rounding = compare.tolerances()["output"]["bf16"]["u_out"]
        where = target.of_gpu(case.device.index or 0) if case.device.type == "cuda" else None
        name = where.name if where else target.current().name
        self.allowed = compare.allowed_output(self.want, dtype, name, q_dtype)
        self.allowed += rounding * self.want.l1.clamp(max=float(self.want.o.abs().max()))

    def check(self, out: Tensor, heads: slice) -> tuple[float, bool]:
        """The largest difference, and whether all are within the roundings."""
        difference = (out[self.rows].double() - self.want.o[:, heads]).abs()
        return float(difference.max()), bool((difference <= self.allowed[:, heads]).all())


def share_of(case: DecodeCase, ranks: int, rank: int) -> dict[str, Any]:
    """A rank's keys in pages of its own, and lengths over all ranks."""
    whole, device = case.inputs, case.device
    lengths = torch.tensor([0, *case.spec.kv_lens], device=device).cumsum(0).to(torch.int32)
    last = torch.empty(case.batch, dtype=torch.int32, device=device)
    indptr = hipdecode.shard_indptr(lengths, ranks, rank, page_size=PAGE_SIZE, last_page_lens=last)
    ends = indptr.tolist()
    pool = whole["kv_buffer"]
    raw = pool.view(torch.uint8) if pool.dtype.itemsize == 1 else pool
    mine = raw.new_zeros(ends[-1], PAGE_SIZE, 1, raw.shape[-1])
    starts = whole["kv_indptr"].tolist()
    for b, kv_len in enumerate(case.spec.kv_lens):
        pages = whole["kv_indices"][starts[b] : starts[b + 1]].long()
        tokens = raw[pages].flatten(0, 1)[:kv_len][rank::ranks]
        mine[ends[b] : ends[b + 1]].view(-1, 1, raw.shape[-1])[: len(tokens)] = tokens
    return {
        **{name: whole[name] for name in ("q", "qo_indptr", "max_seqlen_q", "sm_scale")},
        "kv_buffer": mine.view(pool.dtype),
        "kv_indptr": indptr,
        "kv_indices": torch.arange(ends[-1], dtype=torch.int32, device=device),
        "kv_last_page_lens": last,
        "g_kv_indptr": lengths,
        "kv_len": -(-sum(case.spec.kv_lens) // (case.batch * ranks)),
    }


@dataclass
class Contender:
    """A step and the memory it writes."""

    thunk: timing.Thunk
    out: Tensor
    heads: slice


def contenders(case: DecodeCase, ranks: int, rank: int) -> dict[str, Contender]:
    """The step on this device alone, then on all ranks."""
    whole: MlaInputs = case.inputs
    rows, nhead, _ = whole["q"].shape
    device = case.device

    def output(heads: int) -> Tensor:
        return torch.empty(rows, heads, 512, dtype=case.spec.out_dtype, device=device)

    alone, scratch = output(nhead), hipdecode.Workspace(device)
    found = {
        "one": Contender(
            lambda: hipdecode.mla_decode(
                **whole, kv_len=case.spec.kv_lens[0], out=alone, workspace=scratch
            ),
            alone,
            slice(None),
        )
    }
    share = share_of(case, ranks, rank)
    for layout, scatter in LAYOUTS.items():
        if scatter and nhead % ranks:
            continue
        ranked = hipdecode.RankedDecode(
            rows, nhead, dtype=case.spec.out_dtype, device=device, scatter_heads=scatter
        )
        heads = ranked.own_heads
        out, own = output(heads), hipdecode.Workspace(device)
        first = rank * heads if scatter else 0

        def step(
            ranked: hipdecode.RankedDecode = ranked,
            out: Tensor = out,
            own: hipdecode.Workspace = own,
        ) -> None:
            ranked.decode(**share, out=out, workspace=own)

        found[layout] = Contender(step, out, slice(first, first + heads))
    return found


def run_case(
    case: DecodeCase, options: Options, rank: int, clock: timing.Clock
) -> list[dict[str, object]]:
    """Rows of one shape: checked, then timed."""
    held, spec = Held(case), case.spec
    found = contenders(case, options.ranks, rank)
    ready = {name: [clock.ready(each.thunk)] for name, each in found.items()}
    took = timing.measure(ready, rounds=options.rounds, warmup=WARMUP, clock=clock)
    rows = []
    for name, each in found.items():
        each.out.fill_(float("nan"))
        ready[name][0]()
        err, within = held.check(each.out, each.heads)
        facts = torch.tensor([took[name].p50, err, float(not within)], dtype=torch.float64)
        facts = facts.to(case.device)
        dist.all_reduce(facts, op=dist.ReduceOp.MAX)  # the slowest rank, the largest error
        p50, worst, wrong = facts.tolist()
        one = float(rows[0]["us_p50"]) if rows else 1e3 * p50
        rows.append(
            {
                "batch": case.batch, "kv_len": spec.kv_lens[0], "nhead": spec.nhead,
                "q_len": spec.q_lens[0], "q_dtype": spec.q_dtype, "kv_dtype": spec.kv_dtype,
                "devices": 1 if name == "one" else options.ranks, "layout": name,
                "us_p50": f"{1e3 * p50:.2f}", "vs_one": f"{one / (1e3 * p50):.2f}",
                "max_err": f"{worst:.3g}", "within": not wrong, "rounds": options.rounds,
                "clock": clock.name, "backend": dist.get_backend(),
            }
        )  # fmt: skip
    return rows


def worker(rank: int, options: Options, folder: str, command: str) -> None:
    """One rank: all shapes, in the order of the command line."""
    gpu = torch.cuda.device_count() >= options.ranks
    device = torch.device("cuda", rank) if gpu else torch.device("cpu")
    if gpu:
        torch.cuda.set_device(device)
    else:
        torch.set_num_threads(1)
    dist.init_process_group(
        "nccl" if gpu else "gloo", init_method=f"file://{folder}/store", rank=rank,
        world_size=options.ranks, device_id=device if gpu else None,
    )  # fmt: skip
    clock = TogetherOnDevice() if gpu and not options.eager else TogetherOnHost()
    machine = timing.Machine.here(device.type).columns()
    rows: list[dict[str, object]] = []
    for batch, kv_len in options.shapes:
        for nhead in options.nheads:
            for q_len in options.q_lens:
                for dtype in options.kv_dtypes:
                    q_dtype, kv_dtype = DTYPES[dtype]
                    case = DecodeCase.draw(
                        [kv_len] * batch, nhead=nhead, q_len=q_len, q_dtype=q_dtype,
                        kv_dtype=kv_dtype, page_size=PAGE_SIZE, device=str(device),
                    )  # fmt: skip
                    found = run_case(case, options, rank, clock)
                    rows += [{**row, "command": command, **machine} for row in found]
                    if rank == 0 and options.out is not None:
                        write_csv(options.out, rows)
    if rank == 0:
        show(rows)
    dist.destroy_process_group()
    if not all(row["within"] for row in rows):
        raise SystemExit("a result is further from the oracle than its roundings explain")


def show(rows: list[dict[str, object]]) -> None:
    """Prints what the CSV holds of the shapes."""
    names = list(rows[0])[: list(rows[0]).index("rounds")]
    caption = f"{rows[0]['machine']}, {rows[0]['backend']}, {rows[0]['clock']}"
    print_rows(rows, caption=caption, columns=names)


@click.command(help=__doc__)
@click.option("--shapes", type=ShapeList(), default="1x8192,1x131072,8x32768", show_default=True)
@click.option("--nhead", "nheads", type=IntList(), default="16,128", show_default=True)
@click.option("--q-len", "q_lens", type=IntList(), default="1", show_default=True)
@click.option("--kv-dtype", default="bf16,fp8", show_default=True, help="Beside bf16 queries.")
@click.option("--ranks", default=2, show_default=True, help="Processes, a GPU each if there are.")
@click.option("--rounds", default=30, show_default=True, help="Replays of each.")
@click.option("--eager", is_flag=True, help="Calls by the host's clock instead of graphs.")
@click.option("--csv", "out", type=click.Path(path_type=Path), help="Write the rows there.")
def main(kv_dtype: str, **given: Any) -> None:
    """Starts the ranks and waits."""
    options = Options(kv_dtypes=tuple(kv_dtype.split(",")), **given)
    command = " ".join(["bench_ranks.py", *sys.argv[1:]])
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(worker, (options, folder, command), nprocs=options.ranks)


if __name__ == "__main__":
    main()
