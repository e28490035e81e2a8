#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Counts what a key costs in sparse decode on gfx950, beside the published structure.

Both are executed in the simulator and compared with float64 in the same runs. The compiler and the
flags of `sparse_structure.hip` are those of our kernels. Counts are not time.
"""

from __future__ import annotations

import dataclasses
import math
import struct
import subprocess
import sys
import tempfile
from pathlib import Path

import click
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[3] / "python"))

from hipdecode import registry, sim
from hipdecode.jit import toolchain
from hipdecode.testing import sparse_reference
from hipdecode.testing.bench_report import IntList, print_rows, write_csv
from hipdecode.testing.sim_counts import Costs, Run, costs, error_of, own_sparse
from hipdecode.testing.sparse_cases import SparseCase, make_sparse_inputs

_SOURCE = Path(__file__).with_name("sparse_structure.hip")
_THREADS, _HEADS = 256, 16
_SHOWN = {
    "instructions": "instructions",
    "mfma": "class mfma",
    "mfma passes": "mfma_passes",
    "valu": "class valu",
    "transcendental": "class transcendental",
    "lds": "class lds",
    "lds transpose": "class lds_transpose",
    "vmem": "class vmem",
    "salu": "class salu",
    "wait": "class wait",
    "branch": "class branch",
    "barriers": "barriers",
    "global bytes read": "global_bytes_read",
    "lds bytes read": "lds_bytes_read",
    "lds bytes written": "lds_bytes_written",
}


def build(folder: Path) -> sim.Program:
    """The published structure as a code object."""
    target = registry.default().targets["gfx950"]
    out = folder / "sparse_structure.hsaco"
    command = (*toolchain.find("hip").command, *target.flags, "-x", "hip", _SOURCE, "-o", out)
    subprocess.run([str(word) for word in command], check=True)
    return sim.Program(out)


def published(program: sim.Program, case: SparseCase, lens: tuple[int, int]) -> Costs:
    """Costs of the published structure: as many blocks as there are groups of 16 heads."""

    def run(length: int) -> Run:
        inputs = make_sparse_inputs(dataclasses.replace(case, lens=(length,)))
        q, cache, slots = inputs["q"], inputs["cache"], inputs["indices"]
        out = torch.full((1, case.nhead, 512), float("nan"), dtype=torch.bfloat16)
        kernarg = struct.pack(
            "<4Qqiiif", q.data_ptr(), cache.data_ptr(), slots.data_ptr(), out.data_ptr(),
            cache.stride(0), length, cache.shape[1].bit_length() - 1,
            cache.shape[0] * cache.shape[1], 512**-0.5 / math.log(2),
        )  # fmt: skip
        counts = program.launch(
            "sparse_structure", kernarg, blocks=(case.nhead // _HEADS, 1, 1), threads=_THREADS
        )
        want = sparse_reference.sparse_mla_decode(**inputs).o
        return "sparse_structure", error_of(out, want), counts

    return costs(run, lens)


@click.command(context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.option("--nhead", "nheads", type=IntList(), default="16,64,128", help="Query heads.")
@click.option("--lens", type=IntList(), default="512,1536", help="Two numbers of keys.")
@click.option("--csv", "csv_path", type=click.Path(path_type=Path), help="Write the rows there.")
def main(*, nheads: tuple[int, ...], lens: tuple[int, ...], csv_path: Path | None) -> None:
    """Per key of one token: wave instructions of all blocks, ours / the published structure."""
    short, long = lens
    rows: list[dict[str, object]] = []
    with tempfile.TemporaryDirectory() as folder:
        program = build(Path(folder))
        for nhead in nheads:
            case = SparseCase("v4", nhead, layout="ragged")
            theirs = published(program, case, (short, long))
            ours = own_sparse("sim:gfx950", case, (short, long))
            for title, name in _SHOWN.items():
                pair = [next((r for r in c.rows if r.name == name), None) for c in (ours, theirs)]
                values = [0.0 if row is None else row.per_token for row in pair]
                cells = {"ours": f"{values[0]:.4g}", "published_structure": f"{values[1]:.4g}"}
                rows.append({"nhead": nhead, "per_key": title, **cells})
            errors = {"ours": f"{ours.error:.1e}", "published_structure": f"{theirs.error:.1e}"}
            rows.append({"nhead": nhead, "per_key": "error / maximum", **errors})
    print_rows(rows, caption="counted by execution on sim:gfx950; per key of one token")
    if csv_path is not None:
        write_csv(csv_path, rows)


if __name__ == "__main__":
    main()
