# SPDX-License-Identifier: MIT
"""The benchmark of vLLM's layers: its columns, its caches, and outputs held against fp64."""

from __future__ import annotations

import csv
import importlib.util
import os
import sys
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

if os.environ.get("HIPDECODE_TARGET", "cpu").startswith("cpu"):
    os.environ["VLLM_TARGET_DEVICE"] = "cpu"
pytest.importorskip("vllm", reason="needs the clients extra: make test-clients")

from vllm.platforms import current_platform

SCRIPT = Path(__file__).parents[1] / "op_benchmarks" / "bench_vllm_layers.py"


def test_bench_vllm_layers_times_steps_on_contexts_of_a_trace(
    tmp_path: Path, device: torch.device
) -> None:
    if device.type != current_platform.device_type:
        pytest.skip("tensors on a GPU and vLLM's CPU platform: runs where vLLM finds the GPU")
    spec = importlib.util.spec_from_file_location("bench_vllm_layers", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules["bench_vllm_layers"] = module
    spec.loader.exec_module(module)
    trace, out = tmp_path / "trace.csv", tmp_path / "out.csv"
    trace.write_text("kv_lens\n70\n3 64 65\n")
    options = ("--nhead", "4", "--layers", "2", "--rounds", "2", "--peers", "TRITON_MLA")
    more = ("--kv-cache-dtype", "auto,fp8,fp8_ds_mla", "--trace", str(trace), "--csv", str(out))
    ran = CliRunner().invoke(module.main, [*options, *more])
    assert ran.exit_code == 0, ran.output
    with out.open(newline="") as file:
        rows = list(csv.DictReader(file))
    ours = [row for row in rows if row["contender"] == "hipdecode"]
    assert {row["kv_cache"] for row in ours} == {"auto", "fp8", "fp8_ds_mla"}
    assert {(row["batch"], row["kv_len_max"]) for row in ours} == {("1", "70"), ("3", "65")}
    assert all(float(row["us_per_layer"]) > 0 and row["commit"] for row in ours)
    assert all(float(row["error"]) < 0.01 for row in ours)
    assert {row["contender"] for row in rows} == {"hipdecode", "TRITON_MLA", "FLASHMLA_SPARSE"}
