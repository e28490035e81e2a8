# SPDX-License-Identifier: MIT
"""The route `reduce`: adaptive pieces, the table, what it refuses, and the answer on the screen."""

from __future__ import annotations

import dataclasses
import logging
import shutil
from fractions import Fraction
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

import hipdecode
from hipdecode import ops, paths, reduce_route, registry
from hipdecode.cli.route import command
from hipdecode.dispatch import FAMILIES
from hipdecode.errors import TableError
from hipdecode.reduce_route import (
    SPLIT_COUNTS,
    ReduceShape,
    ReduceTable,
    adaptive_splits,
    load_reduce_table,
    read_reduce_table,
    route_mla_reduce,
)

HEADER = "cu_num,token,num_heads,kv_lora_rank,v_head_dim,num_kv_splits,reduce_kernel"
STEP = ReduceShape(
    family="gfx950", compute_units=256, batch=64, nhead=16, q_len=1, q_dtype="bf16", kv_dtype="bf16"
)


@pytest.mark.parametrize("units", [1, 80, 132, 256, 304])
def test_adaptive_splits_fill_the_machine_best_and_ties_take_the_fewest(units: int) -> None:
    def occupancy(blocks: int) -> Fraction:
        return Fraction(blocks, -(-blocks // units) * units)

    for batch in range(1, 700):
        best = max(occupancy(batch * n) for n in SPLIT_COUNTS)
        fewest = min(n for n in SPLIT_COUNTS if occupancy(batch * n) == best)
        assert adaptive_splits(batch, units) == fewest, batch


def _read(tmp_path: Path, *lines: str) -> ReduceTable:
    path = tmp_path / "mla_decode_reduce.csv"
    path.write_text("\n".join(["# a comment", HEADER, *lines]), encoding="utf-8")
    return read_reduce_table(path)


def test_table_takes_the_exact_row_before_the_wildcard(tmp_path: Path) -> None:
    wildcard, exact = (
        "256,0,16,512,512,4,mla_reduce_BATCH4",
        "256,64,16,512,512,4,mla_reduce_BATCH2_VEC4",
    )
    for lines in ((wildcard, exact), (exact, wildcard)):
        table = _read(tmp_path, *lines)
        found = table.find(256, 64, 16, 512, 512, 4)
        assert found
        assert found.batch_and_vec == (2, 4)
        other = table.find(256, 32, 16, 512, 512, 4)
        assert other
        assert other.batch_and_vec == (4, 1)
        for miss in (
            (255, 64, 16, 512, 512, 4),
            (256, 64, 8, 512, 512, 4),
            (256, 64, 16, 512, 512, 8),
        ):
            assert table.find(*miss) is None


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ("256,0,16,512,512,4", "7 cells"),
        ("256,0,16,512,512,3,mla_reduce_BATCH4", "num_kv_splits"),
        ("256,0,16,512,512,4,mla_reduce_BATCH3", "reduce_kernel"),
        ("256,-1,16,512,512,4,mla_reduce_BATCH4", "token"),
        ("0,0,16,512,512,4,mla_reduce_BATCH4", "cu_num"),
    ],
)
def test_table_names_the_line_that_is_wrong(line: str, named: str, tmp_path: Path) -> None:
    with pytest.raises(TableError, match=rf"csv:3: [\s\S]*{named}"):
        _read(tmp_path, line)


def test_table_refuses_two_rows_for_one_step(tmp_path: Path) -> None:
    line = "256,0,16,512,512,4,mla_reduce_BATCH4"
    with pytest.raises(TableError, match="csv:4: expected one row for each step"):
        _read(tmp_path, line, line)


@pytest.mark.parametrize("family", FAMILIES)
def test_shipped_tables_can_be_read(family: str) -> None:
    load_reduce_table(family)


def test_route_takes_a_step_that_the_table_has() -> None:
    found = route_mla_reduce(STEP)
    assert (found.num_splits, found.batch) == (4, 4)
    assert "configs/tuned/gfx950/mla_decode_reduce.csv:" in found.reason


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"q_len": 2}, "q_len: expected 1, got 2"),
        ({"page_size": 64}, "page_size: expected 1, got 64"),
        ({"v_head_dim": 128}, "v_head_dim: expected 512, got 128"),
        ({"num_splits": 3}, "num_splits: expected 1 or 2 or 4 or 8 or 16, got 3"),
        ({"nhead": 24}, "has no row for 256 compute units, 64 tokens, 24 heads"),
        ({"family": "cpu", "compute_units": 2}, "has no row for 2 compute units"),
    ],
)
def test_route_says_why_it_leaves_a_step_alone(change: dict[str, object], named: str) -> None:
    found = route_mla_reduce(dataclasses.replace(STEP, **change))  # type: ignore[arg-type]
    assert found.batch is None
    assert named in found.reason


def _screen(arguments: str) -> list[str]:
    ran = CliRunner().invoke(command, arguments.split(), catch_exceptions=False)
    assert ran.exit_code == 0, ran.output
    return ran.output.splitlines()


def test_cli_shows_a_hit_and_on_a_miss_the_ordinary_decode() -> None:
    asked = "--op mla_reduce_decode --target gfx950 --nhead 16 --batch 64 --kv-len 2048"
    lines = _screen(asked)
    assert lines[0] == "reduce"
    assert "mla_decode_reduce.csv:" in lines[1]
    assert "4 per request" in "".join(lines)
    lines = _screen(f"{asked} --q-len 2")
    assert lines[0] in ("hk", "persistent")
    assert "not reduce: q_len: expected 1, got 2" in lines[1]


@pytest.fixture
def own_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, device: torch.device) -> Path:
    """A table with rows for this machine, at any number of pieces."""
    family, units = ops.family_and_units(device)
    rows = [f"{units},0,16,512,512,{n},mla_reduce_BATCH2_VEC4" for n in SPLIT_COUNTS]
    text = "\n".join([HEADER, *rows])
    shutil.copytree(paths.configs_dir() / "tuned" / family, tmp_path / family, dirs_exist_ok=True)
    (tmp_path / family / "mla_decode_reduce.csv").write_text(text, encoding="utf-8")
    monkeypatch.setattr("hipdecode.paths.tables_dir", lambda: tmp_path)
    for cached in (load_reduce_table, route_mla_reduce):
        cached.cache_clear()
    yield tmp_path
    for cached in (load_reduce_table, route_mla_reduce):
        cached.cache_clear()


def _call(device: torch.device, **changes: object) -> tuple[torch.Tensor | None, torch.Tensor]:
    gen = torch.Generator().manual_seed(3)
    q = torch.randn(3, 16, 576, generator=gen).to(device, torch.bfloat16)
    kv = torch.randn(700, 1, 1, 576, generator=gen).to(device, torch.bfloat16)
    rows = torch.arange(4, dtype=torch.int32, device=device)
    tokens = torch.tensor([0, 300, 300, 690], dtype=torch.int32, device=device)
    pages = torch.randperm(700, generator=gen)[:690].to(device, torch.int32)
    arguments: dict[str, object] = {
        "cu_seqlens_q": rows, "kv_indptr": tokens, "kv_indices": pages, "kv_last_page_lens": None,
        "max_seqlen_q": 1, "scale": None, "q_scale": None, "k_scale": None, "kv_lora_rank": 512,
        "v_head_dim": 512,
    }  # fmt: skip
    got = hipdecode.mla_reduce_decode(q, kv, None, **(arguments | changes))
    want = hipdecode.mla_decode(
        q, kv, rows, tokens, pages, max_seqlen_q=1, route="hk", num_splits=1
    )
    return got, want


@pytest.mark.usefixtures("own_tables")
@pytest.mark.parametrize("num_splits", [None, 1, 2, 16])
def test_mla_reduce_decode_equals_mla_decode(num_splits: int | None, device: torch.device) -> None:
    got, want = _call(device, num_splits=num_splits)
    assert got is not None
    torch.testing.assert_close(got.float(), want.float(), atol=0.02, rtol=0.02)


@pytest.mark.usefixtures("own_tables")
def test_mla_reduce_decode_gives_none_and_says_why(
    device: torch.device, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, logger="hipdecode.dispatch"):
        got, _ = _call(device, v_head_dim=128)
    assert got is None
    assert "ordinary decode: v_head_dim: expected 512, got 128" in caplog.text


def test_route_has_the_split_counts_of_the_kernels() -> None:
    allowed = registry.default().module("mla_decode_reduce").allowed
    assert {n for entry in allowed for n in entry["num_splits"]} == set(reduce_route.SPLIT_COUNTS)


def test_aiter_finds_the_row_of_a_step(own_tables: Path, device: torch.device) -> None:
    from hipdecode.aiter.mla_decode_reduce import get_mla_decode_reduce_cfg

    _, units = ops.family_and_units(device)
    row = get_mla_decode_reduce_cfg(units, 9, 16, 512, 512, 4)
    assert row
    assert row.batch_and_vec == (2, 4)
    assert get_mla_decode_reduce_cfg(units, 9, 17, 512, 512, 4) is None
