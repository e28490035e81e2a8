# SPDX-License-Identifier: MIT
"""The gate of multi-token paged attention: a hit, a miss of the table, each guard failing."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from hipdecode import settings
from hipdecode.cli.route import command
from hipdecode.dispatch import FAMILIES
from hipdecode.errors import BadArgument, TableError
from hipdecode.paged_route import (
    GATE,
    PAGED_ATTENTION,
    PagedShape,
    clear_paged_routes,
    load_paged_table,
    paged_splits,
    route_paged_attention,
)

SHAPE = PagedShape(
    family="gfx950", compute_units=256, batch=4, nhead_kv=1, gqa=8, mtp=2, kv_len=4096
)
COMMAND = "--op paged_attention --target gfx950 --batch 4 --nhead 8 --q-len 2"
# guard, field value, words of the command
FAILURES: list[tuple[str, object, str]] = [
    ("mtp", 1, "--q-len 1"),
    ("mtp", 5, "--q-len 5"),
    ("gqa", 10, "--nhead 10"),
    ("block_size", 32, "--page-size 32"),
    ("head_dim", 64, "--head-dims 64/64"),
    ("value_dims", 4, "--value-dims 4"),
    ("kv_dtype", "bf16", "--dtype bf16/bf16"),
    ("q_scale", True, "--q-scale"),
    ("out_scale", True, "--fp8-out-scale"),
    ("uniform", False, "--rows 7"),
    ("q_dtype", "fp16", "--dtype fp16/fp8"),
    ("dense", False, ""),
]


@pytest.fixture
def tables(tmp_path: Path) -> Iterator[Path]:
    """A folder of tables that routes are read from."""
    with settings.override(tables=tmp_path):
        clear_paged_routes()
        yield tmp_path
    clear_paged_routes()


def write(folder: Path, *rows: str) -> None:
    (folder / "gfx950").mkdir(exist_ok=True)
    text = "\n".join([",".join(PAGED_ATTENTION.columns), *rows]) + "\n"
    (folder / "gfx950" / "paged_attention.csv").write_text(text)
    clear_paged_routes()


def run(words: str) -> list[str]:
    result = CliRunner().invoke(command, words.split(), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output.splitlines()


@pytest.mark.parametrize("family", FAMILIES)
def test_the_shipped_tables_are_read(family: str) -> None:
    assert load_paged_table(family).label == f"configs/tuned/{family}/paged_attention.csv"


@pytest.mark.parametrize("gqa", [8, 16])
@pytest.mark.parametrize("mtp", [2, 3, 4])
def test_what_every_guard_lets_through_takes_the_multi_token_kernel(gqa: int, mtp: int) -> None:
    route = route_paged_attention(replace(SHAPE, gqa=gqa, mtp=mtp))
    assert route.route == "mtp"
    assert "-block16-" in route.kernel
    assert "every guard holds" in route.reason


def test_every_guard_of_the_gate_is_among_the_failures_below() -> None:
    assert {name for name, _, _ in FAILURES} == {guard.name for guard in GATE}


@pytest.mark.parametrize(("name", "value", "words"), FAILURES)
def test_each_guard_that_fails_is_named_and_sends_the_call_to_the_general_kernel(
    name: str, value: object, words: str
) -> None:
    change: dict[str, Any] = {name: value}
    route = route_paged_attention(replace(SHAPE, **change))
    assert route.route == "general"
    assert "-any-" in route.kernel
    assert f"gate: {name}: expected" in route.reason
    assert route.reason.count(": expected") == 1
    if words:
        lines = run(f"{COMMAND} {words}")
        assert lines[0] == "general"
        assert f"gate: {name}: expected" in lines[1]


def test_a_row_of_the_table_may_send_other_groups_to_the_multi_token_kernel(tables: Path) -> None:
    evidence = "20.0,general,25.0,20.0,1e-3,MI355X,2026-11-21,batch 4 kv 4096"
    write(tables, f"fp8_e4m3fn,128,10,3,1,256,1,,0,,mtp,6,{evidence}")
    route = route_paged_attention(replace(SHAPE, gqa=10, mtp=3))
    assert (route.route, route.num_splits, route.us) == ("mtp", 6, 20.0)
    assert route.source.endswith("paged_attention.csv:2")
    lines = run("--op paged_attention --target gfx950 --batch 4 --nhead 10 --q-len 3")
    assert lines[0] == "mtp"
    assert "20.0 us (MI355X" in "\n".join(lines)
    assert "general 25.0 us (mtp takes 20.0 % less)" in lines[-1]


def test_a_row_of_the_table_may_keep_a_call_off_the_multi_token_kernel(tables: Path) -> None:
    write(tables, "fp8_e4m3fn,128,8,2,1,256,1,,0,,general,auto,,,,,,,,")
    assert route_paged_attention(SHAPE).route == "general"


def test_no_row_overrules_what_the_kernel_is_made_for(tables: Path) -> None:
    write(tables, "fp8_e4m3fn,128,8,2,1,256,1,,0,,mtp,auto,,,,,,,,")
    assert route_paged_attention(SHAPE).route == "mtp"
    assert route_paged_attention(replace(SHAPE, block_size=32)).route == "general"


def test_a_miss_of_the_table_says_which_key_it_lacks(tables: Path) -> None:
    write(tables, "fp8_e4m3fn,128,8,2,1,304,1,,0,,general,auto,,,,,,,,")
    route = route_paged_attention(SHAPE)
    assert route.route == "mtp"
    assert "no row for fp8_e4m3fn head_dim 128 gqa 8 mtp 2 nhead_kv 1, 256" in route.table


def test_a_broken_table_is_an_error(tables: Path) -> None:
    write(tables, "fp8_e4m3fn,128,8,2,1,256,1,,0,,asm,auto,,,,,,,,")
    with pytest.raises(TableError, match="route: expected one of mtp general"):
        route_paged_attention(SHAPE)


def test_the_rule_of_splits_fills_the_machine_and_no_more() -> None:
    assert paged_splits(tiles=1, compute_units=1, kv_len=1 << 20) == 1
    assert paged_splits(tiles=256, compute_units=256, kv_len=16384) == 1
    assert paged_splits(tiles=8, compute_units=256, kv_len=16384) > 8
    assert paged_splits(tiles=1, compute_units=256, kv_len=100) <= 2
    assert paged_splits(tiles=0, compute_units=256, kv_len=0) == 1


@pytest.mark.parametrize(
    ("field", "value"),
    [("family", "h100"), ("scales", "row"), ("batch", -1), ("gqa", 0), ("mtp", 0), ("kv_len", -1)],
)
def test_a_shape_that_means_nothing_is_refused_by_field(field: str, value: Any) -> None:
    with pytest.raises(BadArgument, match=rf"^{field}: expected"):
        route_paged_attention(replace(SHAPE, **{field: value}))


def test_route_command_prints_one_json_object() -> None:
    found = json.loads("\n".join(run(f"{COMMAND} --json")))
    assert found["route"] == "mtp"
    assert found["shape"]["gqa"] == 8
    assert found["kernel"].startswith("paged_attention/128-bf16-fp8_e4m3fn-token-block16-")


@pytest.mark.parametrize(
    ("batch", "nhead_kv", "kv_len", "rows"),
    [(4, 1, 128, 16), (4, 1, 4097, 16), (4, 1, 16384, 32), (32, 8, 128, 64), (32, 1, 4096, 32)],
)
def test_rows_are_tiled_where_a_hopper_has_room_for_more_blocks(
    batch: int, nhead_kv: int, kv_len: int, rows: int
) -> None:
    shape = replace(
        SHAPE, family="sm_90", compute_units=132, batch=batch, nhead_kv=nhead_kv, gqa=16, mtp=4,
        kv_len=kv_len,
    )  # fmt: skip
    assert route_paged_attention(shape).tile_rows == rows
