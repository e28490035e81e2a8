# SPDX-License-Identifier: MIT
"""What a decode costs, by execution: `hipdecode sim per-token`, and sparse beside a structure."""

from __future__ import annotations

import csv
import json
import runpy
from pathlib import Path

import pytest
from click.testing import CliRunner

from hipdecode.cli.sim import command
from hipdecode.errors import BadArgument
from hipdecode.testing import sim_counts
from hipdecode.testing.cases import Case
from hipdecode.testing.paged_cases import PagedCase

_TOKENS, _DEPTH, _VALUES = 64, 576, 512
_COUNT = Path(__file__).parents[1] / "op_benchmarks" / "hip" / "count_sparse_structure.py"


def test_a_token_costs_the_matrix_work_and_the_memory_of_its_shape(simulated: None) -> None:
    words = ["per-token", "--nhead", "16", "--q-len", "1", "--dtype", "bf16", "--json",
             "--kv-lens", f"{4 * _TOKENS},{12 * _TOKENS}"]  # fmt: skip
    done = CliRunner().invoke(command, words, catch_exceptions=False)
    (column,) = json.loads(done.output)
    per_token = {row["name"]: row["per_token"] for row in column["rows"]}
    assert column["error"] < 0.02
    assert per_token["direct_to_lds_bytes"] == _DEPTH * 2
    # 16 rows of a 16x16x32 product are 4 passes; a token is a sixteenth of a tile's columns.
    passes = (_DEPTH + _VALUES) / 32 / 16 * 4
    assert per_token["mfma_passes"] >= passes
    assert per_token["opcode s_endpgm"] == 0


def test_objects_that_are_not_persistent_are_refused(simulator: None, tmp_path: Path) -> None:
    with pytest.raises(BadArgument, match=r"a.co: expected a persistent MLA decode kernel"):
        sim_counts.aiter_object(tmp_path / "a.co", Case(), (64, 128))


def test_sparse_decode_takes_fewer_instructions_a_key_than_the_published_structure(
    simulated: None, tmp_path: Path
) -> None:
    out = tmp_path / "counts.csv"
    main = runpy.run_path(str(_COUNT))["main"]
    words = ["--nhead", "16,64", "--lens", "64,192", "--csv", str(out)]
    done = CliRunner().invoke(main, words, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    with out.open(newline="") as file:
        rows = {(row["nhead"], row["per_key"]): row for row in csv.DictReader(file)}
    for nhead in ("16", "64"):
        for name in ("instructions", "valu", "lds", "wait", "barriers", "lds bytes written"):
            row = rows[nhead, name]
            assert float(row["ours"]) < float(row["published_structure"]), row
    for name in ("mfma", "mfma passes"):
        row = rows["64", name]
        assert float(row["ours"]) == float(row["published_structure"])


def test_paged_attention_reads_its_cache_once_and_multiplies_no_more_than_it_must(
    simulated: None,
) -> None:
    case = PagedCase(nhead_kv=1, gqa=8)
    found = sim_counts.own_paged("sim:gfx950", case, (512, 1536))
    per_token = {row.name: row.per_token for row in found.rows}
    assert found.error < 0.01
    # 16 rows: a product 32 deep for 16 tokens of keys, one for 16 columns of 32 tokens' values
    assert per_token["class mfma"] == 128 / 32 / 16 + 128 / 16 / 32
    cache, scales, table = 2 * 128, 2 * 4, 4 / 16
    assert per_token["global_bytes_read"] <= cache + scales + table
    assert per_token["barriers"] == per_token["class lds"] == 0
