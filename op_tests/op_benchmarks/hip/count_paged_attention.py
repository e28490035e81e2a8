#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Counts what a KV token costs in paged attention on gfx950 or gfx942, and what cutting costs.

Executed in the simulator and compared with float64 in the same runs. Counts are not time.
"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import click

sys.path.insert(0, str(Path(__file__).resolve().parents[3] / "python"))

from hipdecode.paged_route import paged_splits
from hipdecode.testing.bench_report import IntList, print_rows, write_csv
from hipdecode.testing.paged_cases import PagedCase
from hipdecode.testing.sim_counts import Costs, own_paged

_COMPUTE_UNITS = {"sim:gfx950": 256, "sim:gfx942": 304}
_PARTITION = 256  # tokens of a workgroup in AITER's HIP path
_TILES = (8, 64, 512)  # requests x kv heads of a call
_FORMS = {
    "fp8, 8 rows": PagedCase(nhead_kv=1, gqa=8),
    "fp8, 32 rows": PagedCase(nhead_kv=1, gqa=8, mtp=4),
    "fp8, 64 rows": PagedCase(nhead_kv=1, gqa=16, mtp=4),
    "bf16, 8 rows": PagedCase(nhead_kv=1, gqa=8, kv_dtype="bf16", scales="none"),
    "bf16, 32 rows": PagedCase(nhead_kv=1, gqa=8, mtp=4, kv_dtype="bf16", scales="none"),
}
_SHOWN = {
    "instructions": "instructions",
    "mfma": "class mfma",
    "mfma passes": "mfma_passes",
    "valu": "class valu",
    "transcendental": "class transcendental",
    "vmem": "class vmem",
    "smem": "class smem",
    "lds": "class lds",
    "salu": "class salu",
    "wait": "class wait",
    "branch": "class branch",
    "barriers": "barriers",
    "global bytes read": "global_bytes_read",
    "lds bytes read": "lds_bytes_read",
}
_CUT = {name: _SHOWN[name] for name in ("instructions", "barriers", "global bytes read")} | {
    "global bytes written": "global_bytes_written"
}


def count_of(costs: Costs, name: str) -> tuple[float, float]:
    """What a token and a call cost."""
    row = next((row for row in costs.rows if row.name == name), None)
    return (0.0, 0.0) if row is None else (row.per_token, row.fixed)


def loop_rows(target: str, lens: tuple[int, int]) -> list[dict[str, object]]:
    """One workgroup walks all keys: what a token costs, and a call beside its tokens."""
    found = {form: own_paged(target, case, lens) for form, case in _FORMS.items()}
    rows: list[dict[str, object]] = [
        {"per_token": title, **{f: f"{count_of(c, name)[0]:.4g}" for f, c in found.items()}}
        for title, name in _SHOWN.items()
    ]
    fixed = {f: f"{count_of(c, 'instructions')[1]:.0f}" for f, c in found.items()}
    rows.append({"per_token": "instructions, fixed", **fixed})
    rows.append({"per_token": "error / maximum", **{f: f"{c.error:.1e}" for f, c in found.items()}})
    return rows


def cut_rows(target: str, tokens: int) -> list[dict[str, object]]:
    """The same kernel with the cuts of others: a whole call over its tokens, merge included."""
    case = dataclasses.replace(_FORMS["fp8, 32 rows"], lens=(tokens,))
    cuts = {"one workgroup": 1, f"partitions of {_PARTITION}": -(-tokens // _PARTITION)}
    for tiles in _TILES:
        units = _COMPUTE_UNITS[target]
        splits = paged_splits(tiles=tiles, compute_units=units, kv_len=tokens)
        cuts[f"ours, {tiles} requests x kv heads"] = splits
    rows: list[dict[str, object]] = []
    for title, splits in cuts.items():
        costs = own_paged(target, case, (tokens, tokens + _PARTITION), splits)
        cells: dict[str, object] = {"cut": title, "workgroups": splits}
        cells["longest walk"] = -(-tokens // splits)
        for name, key in _CUT.items():
            each, fixed = count_of(costs, key)
            cells[f"{name} / token"] = f"{(each * tokens + fixed) / tokens:.4g}"
        rows.append(cells)
    return rows


@click.command(context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.option("--target", type=click.Choice(list(_COMPUTE_UNITS)), default="sim:gfx950")
@click.option("--lens", type=IntList(), default="1024,3072", help="Two context lengths.")
@click.option("--tokens", default=4096, help="Context of the comparison of cuts; 0: without it.")
@click.option("--csv", "csv_path", type=click.Path(path_type=Path), help="Write the counts there.")
def main(*, target: str, lens: tuple[int, ...], tokens: int, csv_path: Path | None) -> None:
    """Wave instructions of all workgroups of a request and one kv head of 128 columns."""
    short, long = lens
    loop = loop_rows(target, (short, long))
    for rows in (loop, cut_rows(target, tokens) if tokens else []):
        print_rows(rows, caption=f"counted by execution on {target}")
    if csv_path is not None:
        write_csv(csv_path, loop)


if __name__ == "__main__":
    main()
