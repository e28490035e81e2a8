# SPDX-License-Identifier: MIT
"""The benchmark of all layers of a step, on a model of two."""

from __future__ import annotations

import csv
import importlib.util
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

pytest.importorskip("sglang", reason="needs the clients extra: make test-clients")

SCRIPT = Path(__file__).resolve().parents[1] / "op_benchmarks/bench_sglang_layers.py"


def test_all_layers_are_timed_beside_sglangs_backend_and_right(tmp_path: Path, device) -> None:
    if device.type != "cpu":
        pytest.skip("times SGLang's CPU backend: needs a CPU")
    spec = importlib.util.spec_from_file_location(SCRIPT.stem, SCRIPT)
    script = sys.modules[SCRIPT.stem] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    trace, out = tmp_path / "trace.csv", tmp_path / "out.csv"
    trace.write_text("kv_lens\n3 40 65\n")
    options = ("--layers", "2", "--nhead", "4", "--page-size", "16", "--rounds", "1")
    options += ("--steps", "1", "--trace", str(trace), "--csv", str(out))
    ran = CliRunner().invoke(script.main, options, catch_exceptions=False)
    assert ran.exit_code == 0, ran.output
    with out.open(newline="") as file:
        rows = list(csv.DictReader(file))
    names = [(row["kv_dtype"], row["contender"]) for row in rows]
    assert names == [
        (dtype, name) for dtype in ("bf16", "fp8") for name in ("hipdecode", "torch_native")
    ]
    assert all(row["within_tolerance"] == "True" and row["sglang"] for row in rows)
    assert all(float(row["tokens_per_s"]) > 0 and row["layers"] == "2" for row in rows)
