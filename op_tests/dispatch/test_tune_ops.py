# SPDX-License-Identifier: MIT
"""What `hipdecode tune` measures of paged attention and of the route `reduce`, and the rows."""

from __future__ import annotations

from pathlib import Path

import pytest

from hipdecode.paged_route import PagedKey
from hipdecode.reduce_route import format_reduce_table, read_reduce_table
from hipdecode.tables import TableKey
from hipdecode.testing import tune_paged
from hipdecode.testing.tune_reduce import ORDINARY, ReduceStep, rows_of, summary, winner
from hipdecode.tuning import Choice, Measurement, Point, Trial, other

STEP = ReduceStep(32, 16, (("bf16", "bf16"),), (512, 2048))
FORMS = tuple(row.reduce_kernel for row in rows_of(STEP, 132))


def measured(us: dict[str, float], kv_len: int = 512, noise_pct: float = 1.0) -> Measurement:
    """One point of STEP: microseconds of each form, and of the ordinary decode as ''."""
    least = min(us.values())
    trials = {
        Choice("reduce", name) if name else ORDINARY: Trial(t, t, t / least, noise_pct, 1e-3)
        for name, t in us.items()
    }
    return Measurement(Point(TableKey("bf16", "bf16", 16, 1, 1), 32, kv_len), trials, 9)


def test_routes_come_in_pairs() -> None:
    for route in ("hk", "persistent", "rule", "fixed", "mtp", "general", "reduce", "ordinary"):
        assert other(other(route)) == route != other(route)


@pytest.mark.parametrize(
    ("batch", "kv_len", "most"), [(4, 16384, 64), (4, 128, 2), (128, 4097, 2), (1, 16, 1)]
)
def test_paged_points_try_few_splits_beside_the_rule(batch: int, kv_len: int, most: int) -> None:
    point = Point(PagedKey("fp8_e4m3fn", 128, 16, 1, 1, 132), batch, kv_len)
    found = tune_paged.choices(point, "sm_90")
    assert found[:2] == (Choice("mtp", "auto"), Choice("general", "auto"))
    tried = [choice.num_splits for choice in found[2:]]
    assert {choice.route for choice in found[2:]} <= {"mtp"}
    assert len(set(tried)) == len(tried) <= 4
    assert set(tried) <= {n for n in (1, 2, 4, 8, 16, 32, 64) if n <= most}


def test_forms_of_a_step_have_no_more_in_flight_than_there_are_splits() -> None:
    assert FORMS[0] == "mla_reduce_BATCH2_VEC2"
    assert "mla_reduce_BATCH8_VEC4" not in FORMS
    assert {row.num_kv_splits for row in rows_of(STEP, 132)} == {4}


def test_a_row_needs_a_form_that_wins_everywhere() -> None:
    one, two = FORMS[:2]
    first = measured({"": 30, one: 20, two: 25}, 512)
    assert winner(STEP, [first], 132).reduce_kernel == one
    second = measured({"": 30, one: 31, two: 25}, 2048)
    assert winner(STEP, [first, second], 132).reduce_kernel == two
    assert winner(STEP, [first, measured({"": 30, one: 31, two: 30}, 2048)], 132) is None
    assert winner(STEP, [measured({"": 30, one: 29}, noise_pct=5.0)], 132) is None
    nothing = Measurement(first.point, {}, 0)
    assert winner(STEP, [first, nothing], 132) is None
    assert summary(nothing) == []
    assert "token 32, kv_len 512: 30.0" in summary(first)[0]


def test_tables_of_the_reduce_route_read_back(tmp_path: Path) -> None:
    rows = rows_of(STEP, 132)[:1]
    path = tmp_path / "mla_decode_reduce.csv"
    path.write_text(format_reduce_table(rows, ["why"]), encoding="utf-8")
    found = read_reduce_table(path).find(132, 32, 16, 512, 512, 4)
    assert found is not None
    assert found.reduce_kernel == rows[0].reduce_kernel
