# SPDX-License-Identifier: MIT
"""The end-to-end scripts: columns of the times, and bits per byte that stay within their bounds."""

import csv
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from test_benchmarks import load_script

pytest.importorskip("transformers", reason="needs the demo extra: pip install 'hipdecode[demo]'")

from hipdecode.errors import BadArgument
from hipdecode.testing.traces import trace_batches

SCORE = Path(__file__).with_name("score_end_to_end.py")


def read_rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_bench_end_to_end_times_all_on_contexts_of_a_trace(tmp_path: Path) -> None:
    trace, out = tmp_path / "trace.csv", tmp_path / "out.csv"
    trace.write_text("kv_lens\n70\n3 40 65\n")
    options = ("--model", "tiny", "--layers", "2", "--rounds", "1", "--steps", "2")
    ran = CliRunner().invoke(
        load_script("bench_end_to_end").main, [*options, "--trace", str(trace), "--csv", str(out)]
    )
    assert ran.exit_code == 0, ran.output
    rows = read_rows(out)
    assert {(row["batch"], row["kv_len_max"]) for row in rows} == {("1", "70"), ("3", "65")}
    names = {"hipdecode bf16", "hipdecode fp8", "transformers dynamic"}
    assert {row["contender"] for row in rows} == names
    assert all(row["commit"] and float(row["tokens_per_s"]) > 0 for row in rows)
    assert all(float(row["logits_err"]) < 0.05 for row in rows)


@pytest.mark.slow
def test_score_end_to_end_holds_its_bounds_on_two_ranks(tmp_path: Path) -> None:
    out = tmp_path / "score.csv"
    options = ("--rows", "8", "--length", "64", "--ranks", "2", "--csv", str(out))
    ran = subprocess.run(
        [sys.executable, SCORE, *options], capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr[-3000:]
    rows = read_rows(out)
    caches = [row["cache"] for row in rows]
    assert caches.count("fp8") == caches.count("bf16") > 2
    assert any("2 ranks" in row["how"] for row in rows)


def test_trace_batches_reads_both_forms_and_refuses_others(tmp_path: Path) -> None:
    path = tmp_path / "trace.csv"
    path.write_text("context_tokens,generated_tokens\n5,1\n7,1\n")
    drawn = trace_batches(path, [1, 4])
    assert [len(batch) for batch in drawn] == [1, 4]
    assert {length for batch in drawn for length in batch} <= {5, 7}
    assert trace_batches(path, [1, 4]) == drawn
    path.write_text("tokens\n5\n")
    with pytest.raises(BadArgument, match="expected a column kv_lens or context_tokens, got"):
        trace_batches(path, [1])
