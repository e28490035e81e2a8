#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Cosine distances of the hk kernel from the persistent one and from a causal fp64 reference.

Shapes and columns are those of aiter#3003: nhead 32, 4 query tokens, page size 1. The bounds are
the largest distances measured there; the exit status is 1 where one is exceeded.
"""

from __future__ import annotations

import sys
from pathlib import Path

import click
import torch
from rich.progress import track
from rich.table import Table
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[3] / "python"))

from hipdecode import settings, target
from hipdecode.testing import reference, timing
from hipdecode.testing.bench_case import DecodeCase
from hipdecode.testing.bench_report import ShapeList, console, write_csv
from hipdecode.testing.peers import Hipdecode

NHEAD, Q_LEN = 32, 4
PERSISTENT_BOUND = 0.0018
REFERENCE_BOUND = 0.000135


def cosine_distance(a: Tensor, b: Tensor) -> float:
    """1 - <a, b> / (|a| |b|) in float64; NaN where either holds one."""
    x, y = a.double().flatten(), b.double().flatten()
    return abs(1.0 - float(x @ y / (x.norm() * y.norm())))  # rounding may leave it below 0


def compare_shape(
    batch: int, context: int, dtype: str, where: target.Target, machine: timing.Machine
) -> dict[str, object]:
    """Runs both kernels and the reference on one shape."""
    q_dtype, _, kv_dtype = dtype.partition("/")
    case = DecodeCase.draw(
        (context,) * batch,
        nhead=NHEAD,
        q_len=Q_LEN,
        q_dtype=where.dtype(q_dtype),
        kv_dtype=where.dtype(kv_dtype or q_dtype),
        device=where.device_type,
    )
    hk = Hipdecode("hk", "hk").prepare(case)()
    persistent = Hipdecode("persistent", "persistent").prepare(case)()
    with case.device:
        want = reference.mla_decode(**case.inputs).o
    to_persistent, to_reference = cosine_distance(hk, persistent), cosine_distance(hk, want)
    # NaN must fail: `not (distance <= bound)`.
    passed = to_persistent <= PERSISTENT_BOUND and to_reference <= REFERENCE_BOUND
    return {
        "batch": batch,
        "ctx": context,
        "total_kv": case.tokens,
        "hk_persistent_cosine_distance": f"{to_persistent:.6f}",
        "hk_reference_cosine_distance": f"{to_reference:.6f}",
        "passed": passed,
        "q_dtype": case.spec.q_dtype,
        "kv_dtype": case.spec.kv_dtype,
        "target": where.name,
        **machine.columns(),
    }


@click.command(context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.option("--shapes", type=ShapeList(), default="1x512,2x2048,4x8192,4x16384")
@click.option("--csv", "csv_path", type=click.Path(path_type=Path), help="Write the rows there.")
@click.option("--target", "target_name", help="Default: HIPDECODE_TARGET or cpu.")
@click.option("--dtype", default="fp8", help="q and KV; or Q/KV such as bf16/fp8.")
@click.option("--max-kv-tokens", default=131072, help="Larger shapes are skipped.")
def main(
    *,
    shapes: tuple[tuple[int, int], ...],
    csv_path: Path | None,
    target_name: str | None,
    dtype: str,
    max_kv_tokens: int,
) -> None:
    """Compares hk with persistent and with the reference."""
    where = target.resolve(target_name)
    machine = timing.Machine.here(where.device_type)
    fits = [shape for shape in shapes if shape[0] * shape[1] <= max_kv_tokens]
    table = Table(caption=f"bounds: {PERSISTENT_BOUND} and {REFERENCE_BOUND}")
    for title in ("batch", "ctx", "total_kv", "hk/persistent", "hk/reference", "passed"):
        table.add_column(title, justify="right")
    with settings.override(target=where.name), torch.inference_mode():
        rows = [
            compare_shape(*shape, dtype, where, machine)
            for shape in track(fits, "shapes", console=console(stderr=True), transient=True)
        ]
    for row in rows:
        table.add_row(*(str(value) for value in list(row.values())[:6]))
    for batch, context in (shape for shape in shapes if shape not in fits):
        table.add_row(str(batch), str(context), str(batch * context), "skipped", style="dim")
    console().print(table)
    if csv_path is not None:
        write_csv(csv_path, rows)
    if not all(row["passed"] for row in rows):
        raise click.ClickException("a cosine distance is above its bound")


if __name__ == "__main__":
    main()
