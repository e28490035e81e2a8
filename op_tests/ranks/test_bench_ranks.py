# SPDX-License-Identifier: MIT
"""The benchmark of several ranks runs from a checkout, over gloo where there are no GPUs."""

from __future__ import annotations

import csv
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from hipdecode import settings

SCRIPT = Path(__file__).parents[1] / "op_benchmarks" / "bench_ranks.py"


def test_bench_ranks_holds_every_layout_against_the_oracle(tmp_path: Path) -> None:
    if torch.cuda.device_count() == 1:
        pytest.skip("bench_ranks: a machine with two GPUs or none runs it")
    out = tmp_path / "ranks.csv"
    options = ["--shapes", "2x200", "--nhead", "16", "--q-len", "4", "--rounds", "2"]
    done = subprocess.run(
        [sys.executable, str(SCRIPT), *options, "--kv-dtype", "bf16", "--csv", str(out)],
        capture_output=True,
        text=True,
        env=settings.child_environment(PYTHONPATH=":".join(sys.path)),
    )
    assert done.returncode == 0, done.stderr[-2000:]
    with out.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["layout"] for row in rows] == ["one", "gather", "scatter"]
    assert [row["devices"] for row in rows] == ["1", "2", "2"]
    assert all(row["within"] == "True" and float(row["us_p50"]) > 0 for row in rows)
    assert all(row["machine"] and row["commit"] and "2x200" in row["command"] for row in rows)
