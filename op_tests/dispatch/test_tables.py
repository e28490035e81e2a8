# SPDX-License-Identifier: MIT
"""Tables: the tiling proof, what the reader refuses, and the nearest key."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hipdecode.dispatch import FAMILIES, load_table
from hipdecode.errors import TableError
from hipdecode.table_files import MLA_DECODE, parse_table, read_table
from hipdecode.tables import Flaw, Rect, Row, Table, TableKey, find_flaw

COLUMNS = MLA_DECODE.columns
KEY = TableKey("bf16", "bf16", 16, 1, 1)
HEADER = ",".join(COLUMNS)
PLANE = Rect(1, math.inf, 0, math.inf)
quick = settings(max_examples=150, deadline=None)


@st.composite
def tilings(draw: st.DrawFn) -> list[Rect]:
    """Cuts the plane into 1..10 rectangles, one random cut at a time, and shuffles them."""
    rects = [PLANE]
    for _ in range(draw(st.integers(0, 9))):
        rect = rects.pop(draw(st.integers(0, len(rects) - 1)))
        axis = draw(st.sampled_from(("batch", "kv")))
        start, end = getattr(rect, f"{axis}_from"), getattr(rect, f"{axis}_to")
        if end - start < 2:
            rects.append(rect)
            continue
        most = start + 9 if end == math.inf else end - 1
        cut = draw(st.integers(start + 1, most))
        rects += [replace(rect, **{f"{axis}_to": cut}), replace(rect, **{f"{axis}_from": cut})]
    return draw(st.permutations(rects))


@st.composite
def broken_tilings(draw: st.DrawFn) -> list[Rect]:
    """Takes a tiling and drops, repeats, grows or shrinks one rectangle."""
    rects = draw(tilings())
    index = draw(st.integers(0, len(rects) - 1))
    rect = rects[index]
    grown_or_shrunk = [
        changed
        for name, lowest in (("batch_from", 1), ("batch_to", 1), ("kv_from", 0), ("kv_to", 0))
        for step in (-1, 1)
        if getattr(rect, name) != math.inf
        and getattr(rect, name) + step >= lowest
        and (changed := replace(rect, **{name: getattr(rect, name) + step}))
        and changed.batch_from < changed.batch_to
        and changed.kv_from < changed.kv_to
    ]
    others = rects[:index] + rects[index + 1 :]
    options = [others, [*rects, rect], *([*others, changed] for changed in grown_or_shrunk)]
    return draw(st.sampled_from(options))


def brute_force_flaw(rects: list[Rect]) -> Flaw | None:
    """Looks at every point up to one past the last finite edge, in order."""
    batch_ends = [b for r in rects for b in (r.batch_from, r.batch_to) if b != math.inf]
    kv_ends = [k for r in rects for k in (r.kv_from, r.kv_to) if k != math.inf]
    points = itertools.product(
        range(1, int(max(batch_ends, default=1)) + 2), range(int(max(kv_ends, default=0)) + 2)
    )
    for batch, kv_len in points:
        covers = tuple(i for i, rect in enumerate(rects) if rect.holds(batch, kv_len))
        if len(covers) != 1:
            return Flaw(batch, kv_len, covers)
    return None


@quick
@given(tilings())
def test_find_flaw_accepts_every_tiling(rects: list[Rect]) -> None:
    assert find_flaw(rects) is None


@quick
@given(broken_tilings())
def test_find_flaw_names_the_smallest_point_when_a_tiling_is_broken(rects: list[Rect]) -> None:
    flaw = find_flaw(rects)
    assert flaw is not None
    assert flaw == brute_force_flaw(rects)


def test_find_flaw_accepts_a_pinwheel() -> None:
    """No straight cut separates these five: a check by columns or rows alone would fail."""
    pinwheel = [Rect(1, 3, 0, 1), Rect(3, math.inf, 0, 2), Rect(2, math.inf, 2, math.inf)]
    pinwheel += [Rect(1, 2, 1, math.inf), Rect(2, 3, 1, 2)]
    assert find_flaw(pinwheel) is None
    assert find_flaw(pinwheel[:-1]) == Flaw(2, 1, ())


def test_find_flaw_finds_a_gap_at_infinity() -> None:
    assert find_flaw([Rect(1, 1000, 0, math.inf)]) == Flaw(1000, 0, ())
    assert find_flaw([Rect(1, math.inf, 0, 1000)]) == Flaw(1, 1000, ())
    assert find_flaw([]) == Flaw(1, 0, ())


@pytest.mark.parametrize("family", FAMILIES)
def test_shipped_tables_are_proven(family: str) -> None:
    for rows in load_table(family).rows_by_key.values():
        assert find_flaw([row.rect for row in rows]) is None


@quick
@given(batch=st.integers(1, 10**7), kv_len=st.integers(0, 10**9))
def test_shipped_tables_hold_every_point_once(batch: int, kv_len: int) -> None:
    for family in FAMILIES:
        table = load_table(family)
        for key, rows in table.rows_by_key.items():
            holding = [row for row in rows if row.rect.holds(batch, kv_len)]
            assert holding == [table.find(key, batch, kv_len)]


def row_text(**cells: str) -> str:
    """One line that covers the plane, with some cells replaced."""
    plain = {
        **dict(zip(COLUMNS[:5], ("bf16", "bf16", "16", "1", "1"), strict=True)),
        **{"batch_from": "1", "kv_from": "0", "route": "hk", "num_splits": "auto"},
        "tile_rows": "auto",
    }
    return ",".join((plain | cells).get(name, "") for name in COLUMNS)


def test_reader_accepts_comments_and_counts_their_lines() -> None:
    table = parse_table(f"# why\n\n{HEADER}\n{row_text()}\n", MLA_DECODE, label="t.csv")
    assert table.find(KEY, 1, 0).line == 4
    assert table.rows_by_key[KEY][0].rect == PLANE


TIMES = {"us": "9", "runner_up": "persistent", "runner_up_us": "10", "gain_pct": "10"}
ORIGIN = {"machine": "here", "date": "2026-11-21", "source": "test"}


@pytest.mark.parametrize(
    ("cells", "complaint"),
    [
        ({"route": "asm"}, "route: expected one of hk persistent, got asm"),
        ({"q_dtype": "int8"}, "q_dtype: expected one of"),
        ({"nhead": "0"}, "nhead: expected an integer >= 1, got 0"),
        ({"nhead": "1_6"}, "nhead: expected an integer >= 1, got 1_6"),
        ({"batch_from": "0"}, "batch_from: expected an integer >= 1, got 0"),
        ({"kv_from": "-1"}, "kv_from: expected an integer >= 0, got -1"),
        ({"kv_from": ""}, "kv_from: expected an integer >= 0, got an empty cell"),
        ({"batch_from": "5", "batch_to": "5"}, "batch_to: expected more than 5, got 5"),
        ({"num_splits": "plan"}, "num_splits: expected an integer >= 1, got plan"),
        ({"route": "persistent", "num_splits": "4"}, "num_splits: expected one of plan, got 4"),
        ({"tile_rows": "48"}, "tile_rows: expected one of auto 16 32 64 128, got 48"),
        (
            {"route": "persistent", "num_splits": "plan", "tile_rows": "32"},
            "tile_rows: expected one of auto, got 32",
        ),
        ({"us": "nan"}, "us: expected a finite number >= 0, got nan"),
        ({"us": "9"}, "machine: expected where a time comes from"),
        ({**ORIGIN, **TIMES, "gain_pct": "11"}, "gain_pct: expected 10.00, got 11"),
        ({**ORIGIN, **TIMES, "gain_pct": ""}, "gain_pct: expected a gain exactly when both"),
        ({**ORIGIN, **TIMES, "runner_up": "hk"}, "runner_up: expected another route"),
        ({**ORIGIN, **TIMES, "runner_up": ""}, "runner_up: expected the route that took"),
        ({**ORIGIN, **TIMES, "us": "0"}, "us: expected a time above 0, got 0"),
        ({"date": "21.11.2026"}, "date: expected YYYY-MM-DD, got 21.11.2026"),
    ],
)
def test_reader_names_file_line_and_cell(cells: dict[str, str], complaint: str) -> None:
    with pytest.raises(TableError) as error:
        parse_table(f"{HEADER}\n{row_text(**cells)}\n", MLA_DECODE, label="t.csv")
    assert str(error.value).startswith(f"t.csv:2: {complaint}")


def test_reader_accepts_complete_evidence() -> None:
    table = parse_table(f"{HEADER}\n{row_text(**ORIGIN, **TIMES)}\n", MLA_DECODE, label="t.csv")
    assert table.find(KEY, 3, 3).gain_pct == 10.0


@pytest.mark.parametrize(
    ("lines", "complaint"),
    [
        ([row_text(batch_to="9")], "t.csv:2: .*got none for .batch 9, kv_len 0.; add"),
        ([row_text(kv_to="7"), row_text(kv_from="8")], "t.csv:2: .*none for .batch 1, kv_len 7."),
        (
            [row_text(kv_to="7"), row_text(kv_from="6")],
            r"t.csv:3: .*got 2 for .batch 1, kv_len 6. \(lines 2, 3\); shrink",
        ),
        (["bf16,bf16"], "t.csv:2: expected 20 cells, got 2"),
    ],
)
def test_reader_names_the_point_when_rows_do_not_tile(lines: list[str], complaint: str) -> None:
    with pytest.raises(TableError, match=complaint):
        parse_table("\n".join([HEADER, *lines]), MLA_DECODE, label="t.csv")


def test_reader_names_the_file_when_it_is_missing_or_without_header(tmp_path: Path) -> None:
    with pytest.raises(TableError, match=r"none\.csv: expected a readable table"):
        read_table(tmp_path / "none.csv", MLA_DECODE)
    with pytest.raises(TableError, match=r"t\.csv:1: expected a header, got an empty file"):
        parse_table("", MLA_DECODE, label="t.csv")
    with pytest.raises(TableError, match=r"t\.csv:2: expected the header q_dtype,.*got a,b"):
        parse_table("# c\na,b\n", MLA_DECODE, label="t.csv")


def whole_plane(key: TableKey) -> Row[TableKey]:
    return Row(key, PLANE, "persistent", "plan")


@pytest.mark.parametrize(
    ("want", "near"),
    [
        (("bf16", "bf16", 16, 1, 1), ("bf16", "bf16", 16, 1, 1)),
        (("bf16", "bf16", 12, 1, 1), ("bf16", "bf16", 16, 1, 1)),
        (("bf16", "bf16", 17, 1, 1), ("bf16", "bf16", 32, 1, 1)),
        (("bf16", "bf16", 64, 1, 1), ("bf16", "bf16", 32, 1, 1)),
        (("bf16", "bf16", 32, 3, 1), ("bf16", "bf16", 32, 4, 1)),
        (("bf16", "bf16", 32, 8, 64), ("bf16", "bf16", 32, 4, 64)),
        (("fp16", "bf16", 16, 1, 1), ("bf16", "bf16", 16, 1, 1)),
        (("fp16", "fp16", 16, 1, 1), ("bf16", "bf16", 16, 1, 1)),
        (("bf16", "fp8_e4m3fn", 16, 1, 1), None),
    ],
)
def test_nearest_key_follows_the_documented_order(
    want: tuple[str, str, int, int, int], near: tuple[str, str, int, int, int] | None
) -> None:
    keys = [("bf16", "bf16", 16, 1, 1), ("bf16", "bf16", 32, 1, 1)]
    keys += [("bf16", "bf16", 32, 4, 1), ("bf16", "bf16", 32, 4, 64)]
    table = Table("t.csv", [whole_plane(TableKey(*key)) for key in keys])
    assert table.nearest_key(TableKey(*want)) == (TableKey(*near) if near else None)
