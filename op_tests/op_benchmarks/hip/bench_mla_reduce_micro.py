#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Time of merging partial results: mla_decode_reduce beside mla_reduce behind its planner.

One query row a request, contexts of one length. Launches go round over copies of the buffers,
back to back, so that code is warm and times are those of the kernels.
"""

from __future__ import annotations

import itertools
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import click
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[3] / "python"))

import hipdecode
from hipdecode import ops, settings, target
from hipdecode.reduce_route import BLOCK_TOKENS, adaptive_splits
from hipdecode.testing import compare, reference, timing
from hipdecode.testing.bench_report import IntList, print_rows, write_csv
from hipdecode.testing.device_clock import WarmDeviceClock

_SHOWN = ("T", "kernel", "tiles", "us", "GB/s", "vs_stock", "%peak")
_ROUNDS = 9
STOCK = "stock"


@dataclass(frozen=True)
class Partials:
    """What one merge reads and writes, and its launch.

    Attributes:
        output: [rows, nhead, head_dim_v] fp32; poison where nothing may be read.
        lse: [rows, nhead] fp32.
        indptr: [T + 1] int32, partials of each row; those of row t are rows[indptr[t]: ...].
        rows: int32, the row of each partial that is read.
        reduced: [T, nhead, head_dim_v] bf16.
        launch: merges them.
    """

    output: Tensor
    lse: Tensor
    indptr: Tensor
    rows: Tensor
    reduced: Tensor
    launch: Callable[[], object]

    @property
    def bytes_moved(self) -> int:
        """Bytes that a merge has to read and write."""
        nhead, head_dim_v = self.output.shape[1:]
        read = self.rows.numel() * nhead * (head_dim_v + 1) * 4
        return read + self.reduced.nbytes

    def check(self, where: target.Target) -> None:
        """Merges once and compares with the oracle.

        Raises:
            Mismatch: a result is outside the tolerance.
        """
        self.reduced.fill_(math.nan)
        self.launch()
        tiles = torch.arange(self.reduced.shape[0] + 1, dtype=torch.int32)
        final = torch.stack([tiles[:-1], tiles[1:]], 1)
        want = reference.mla_reduce(
            self.output.cpu(), self.lse.cpu(), self.indptr.cpu(), final, self.rows.cpu(),
            rows=self.reduced.shape[0],
        )  # fmt: skip
        done = want.written.nonzero().flatten()
        merged = reference.Attention(*(getattr(want, name)[done] for name in want.__slots__))
        allowed = compare.allowed_output(merged, self.reduced.dtype, where.name)
        compare.assert_close(self.reduced.cpu()[done], merged.o, allowed, what="reduced")


@dataclass(frozen=True)
class Step:
    """The shapes of one comparison.

    Attributes:
        tokens: requests, with one query row each.
        kv_len: tokens of each context.
        nhead: query heads.
        head_dim_v: columns of the output.
        device: where the tensors lie.
        most: pieces of a context at most.
    """

    tokens: int
    kv_len: int
    nhead: int
    head_dim_v: int
    device: str
    most: int

    def kv_indptr(self) -> Tensor:
        """[T + 1] int32, pages of one token."""
        ends = torch.arange(self.tokens + 1, dtype=torch.int32, device=self.device)
        return ends * self.kv_len

    def _reduced(self) -> Tensor:
        shape = (self.tokens, self.nhead, self.head_dim_v)
        return torch.empty(shape, dtype=torch.bfloat16, device=self.device)

    def stock(self) -> Partials:
        """mla_reduce over the partials that the planner makes of this step."""
        qo_indptr = torch.arange(self.tokens + 1, dtype=torch.int32, device=self.device)
        plan = hipdecode.plan_mla_decode(
            qo_indptr, self.kv_indptr(), nhead=self.nhead, max_seqlen_q=1,
            head_dim_v=self.head_dim_v, max_split_per_batch=self.most,
        )  # fmt: skip
        indptr = plan.reduce_indptr.cpu()
        count = int(indptr[-1])
        plan.partial_output.normal_()
        plan.partial_lse.normal_()
        reduced = self._reduced()
        arguments = (
            plan.partial_output, plan.partial_lse, plan.reduce_indptr, plan.reduce_final_map,
            plan.reduce_partial_map, reduced, None, 1, 0,
        )  # fmt: skip
        # a tile that was not split has no partial here, and its row is not written
        return Partials(
            plan.partial_output, plan.partial_lse, indptr, plan.reduce_partial_map[:count], reduced,
            lambda: torch.ops.hipdecode.mla_reduce.default(*arguments),
        )  # fmt: skip

    def decode_reduce(self, splits: int, batch: int, vec: int) -> Partials:
        """mla_decode_reduce over `splits` pieces, those without tokens poisoned."""
        used = min(-(-self.kv_len // BLOCK_TOKENS), splits)
        output = torch.randn(
            (self.tokens * splits, self.nhead, self.head_dim_v), device=self.device
        )
        lse = torch.randn(output.shape[:2], device=self.device)
        unused = torch.arange(output.shape[0], device=self.device) % splits >= used
        output[unused] = math.nan
        lse[unused] = math.nan
        rows = (~unused).nonzero().flatten().to(torch.int32)
        indptr = torch.arange(self.tokens + 1, dtype=torch.int32) * used
        reduced = self._reduced()
        arguments = (output, lse, reduced, self.kv_indptr(), self.tokens, batch, vec, splits)
        return Partials(
            output, lse, indptr, rows, reduced,
            lambda: torch.ops.hipdecode.mla_decode_reduce.default(*arguments),
        )  # fmt: skip


def contenders(
    step: Step, units: int, batches: tuple[int, ...], vecs: tuple[int, ...], rotate: int
) -> dict[str, list[Partials]]:
    """Copies of each merge: the stock one, and every form at the adaptive number of pieces."""
    splits = adaptive_splits(step.tokens, units, step.most)
    found = {STOCK: [step.stock() for _ in range(rotate)]}
    for batch, vec in dict.fromkeys(
        (min(b, splits), v) for b, v in itertools.product(batches, vecs)
    ):
        name = f"splits{splits}_BATCH{batch}_VEC{vec}"
        found[name] = [step.decode_reduce(splits, batch, vec) for _ in range(rotate)]
    return found


def time_all(
    found: dict[str, list[Partials]], clock: timing.Clock, iters: int, warmup: int
) -> dict[str, float]:
    """Microseconds of a launch of each contender: the median over interleaved rounds."""

    def launches(copies: list[Partials], count: int) -> Callable[[], object]:
        def run() -> None:
            for i in range(count):
                copies[i % len(copies)].launch()

        return run

    for copies in found.values():
        launches(copies, warmup)()
    ready = {name: [clock.ready(launches(copies, iters))] for name, copies in found.items()}
    times = timing.measure(ready, rounds=_ROUNDS, warmup=2, clock=clock)
    return {name: 1e3 * took.p50 / iters for name, took in times.items()}


def rows_of(
    step: Step, found: dict[str, list[Partials]], us: dict[str, float], peak_gbs: float
) -> list[dict[str, object]]:
    """The lines of one T."""
    rows: list[dict[str, object]] = []
    for name, copies in found.items():
        rate = copies[0].bytes_moved / us[name] * 1e-3
        rows.append({
            "T": step.tokens,
            "kernel": name,
            "tiles": copies[0].rows.numel(),
            "us": f"{us[name]:.2f}",
            "GB/s": f"{rate:.0f}",
            "vs_stock": f"{us[STOCK] / us[name]:.2f}",
            "%peak": f"{100 * rate / peak_gbs:.1f}",
        })  # fmt: skip
    return rows


@click.command(context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.option("--tokens", type=IntList(), default="32,64,128", help="Requests, a query row each.")
@click.option("--batches", type=IntList(), default="2,4,8", help="Partials in flight.")
@click.option("--vecs", type=IntList(), default="1,2,4", help="Columns a lane reads as one.")
@click.option("--kv-len", default=2048, help="Tokens of each context.")
@click.option("--max-split-cap", default=16, help="Pieces of a context at most, of both.")
@click.option("--nhead", default=16, help="Query heads.")
@click.option("--head-dim-v", default=512, help="Columns of the output.")
@click.option("--iters", default=200, help="Launches of a round.")
@click.option("--warmup", default=10, help="Launches before.")
@click.option("--rotate", default=4, help="Copies of the buffers.")
@click.option("--peak-bw", default=3350.0, help="GB/s that %peak is of.")
@click.option("--no-check", is_flag=True, help="Do not compare with the oracle.")
@click.option("--target", "target_name", help="Default: HIPDECODE_TARGET or cpu.")
@click.option("--csv", "csv_path", type=click.Path(path_type=Path), help="Write the rows there.")
def main(
    *,
    tokens: tuple[int, ...],
    batches: tuple[int, ...],
    vecs: tuple[int, ...],
    kv_len: int,
    max_split_cap: int,
    nhead: int,
    head_dim_v: int,
    iters: int,
    warmup: int,
    rotate: int,
    peak_bw: float,
    no_check: bool,
    target_name: str | None,
    csv_path: Path | None,
) -> None:
    """Times mla_decode_reduce; vs_stock is how many times faster than mla_reduce it is."""
    where = target.resolve(target_name)
    machine = timing.Machine.here(where.device_type).columns()
    rows: list[dict[str, object]] = []
    with settings.override(target=where.name):
        ops.load_binding()
        on_gpu = where.device_type == "cuda"
        clock: timing.Clock = WarmDeviceClock() if on_gpu else timing.HostClock.here()
        for count in tokens:
            step = Step(count, kv_len, nhead, head_dim_v, where.device_type, max_split_cap)
            units = ops.compute_units(where.device_type)
            found = contenders(step, units, batches, vecs, rotate)
            if not no_check:
                for copies in found.values():
                    copies[0].check(where)
            us = time_all(found, clock, iters, warmup)
            rows += rows_of(step, found, us, peak_bw)
    print_rows(rows, caption="median of a launch, back to back", columns=_SHOWN)
    if csv_path is not None:
        write_csv(csv_path, [{**row, **machine} for row in rows])


if __name__ == "__main__":
    main()
