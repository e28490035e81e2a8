# SPDX-License-Identifier: MIT
"""The split count of sparse decode: table before rule, whose table, reasons, tuning."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from hipdecode import settings
from hipdecode.cli import tune
from hipdecode.dispatch import FAMILIES
from hipdecode.errors import BadArgument, TableError
from hipdecode.sparse_route import (
    SPARSE_MLA_DECODE,
    SparseKey,
    SparseShape,
    clear_sparse_routes,
    load_sparse_table,
    rounds_of,
    route_sparse_mla_decode,
    splits_by_rule,
)
from hipdecode.table_files import parse_table, read_table
from hipdecode.tables import find_flaw
from hipdecode.testing import tune_sparse
from hipdecode.tuning import RULE, Choice, Measurement, Point, Trial, read_results, sweep
from hipdecode.tuning_rows import format_table, rows_from_grid

KEY = SparseKey("v32", 64, 132)
SHAPE = SparseShape(
    family="sm_90", compute_units=132, format="v32", tokens=4, nhead=64, max_keys=2048
)
HEADER = ",".join(SPARSE_MLA_DECODE.columns)
ROWS = (
    "v32,64,132,1,9,0,,fixed,5,9,rule,10,10,1e-3,H100,2026-11-21,tokens 4 keys 2048",
    "v32,64,132,9,,0,,rule,auto,,,,,,,,",
)


@pytest.fixture
def tables(tmp_path: Path) -> Iterator[Path]:
    """A folder of tables with ROWS for sm_90."""
    (tmp_path / "sm_90").mkdir()
    (tmp_path / "sm_90" / "sparse_mla_decode.csv").write_text("\n".join([HEADER, *ROWS]) + "\n")
    with settings.override(tables=tmp_path):
        clear_sparse_routes()
        yield tmp_path
    clear_sparse_routes()


@pytest.mark.usefixtures("tables")
def test_row_of_the_table_decides_and_says_so() -> None:
    route = route_sparse_mla_decode(SHAPE)
    assert (route.num_splits, route.us, route.runner_up) == (5, 9.0, "rule")
    assert route.source.endswith("sparse_mla_decode.csv:2")
    assert "v32 nhead 64, 132 compute units: 5 measured; sparse_splits, the rule" in route.reason
    assert route.evidence == "H100 2026-11-21 tokens 4 keys 2048"


@pytest.mark.usefixtures("tables")
def test_row_may_leave_it_to_the_rule() -> None:
    route = route_sparse_mla_decode(replace(SHAPE, tokens=40))
    rule = splits_by_rule(replace(SHAPE, tokens=40))
    assert route.num_splits == rule
    assert f"132 compute units: sparse_splits, the rule, says {rule}" in route.reason


@pytest.mark.usefixtures("tables")
@pytest.mark.parametrize("nhead", [1, 16, 128])
def test_rows_of_other_heads_stand_in_and_are_named(nhead: int) -> None:
    route = route_sparse_mla_decode(replace(SHAPE, nhead=nhead))
    assert route.num_splits == 5
    assert f"(nearest key of the table to v32 nhead {nhead}, 132 compute units)" in route.reason


@pytest.mark.usefixtures("tables")
@pytest.mark.parametrize("change", [{"format": "v4"}, {"compute_units": 114}])
def test_rule_answers_for_another_format_or_machine(change: dict[str, object]) -> None:
    shape = replace(SHAPE, **change)  # type: ignore[arg-type]
    route = route_sparse_mla_decode(shape)
    assert route.source == ""
    assert "has no rows near" in route.reason
    assert route.num_splits == splits_by_rule(shape)


@pytest.mark.usefixtures("tables")
@pytest.mark.parametrize(("tokens", "splits"), [(8, 5), (9, 8)])
def test_number_of_a_row_is_left_where_its_clusters_would_not_run_at_once(
    tables: Path, tokens: int, splits: int
) -> None:
    # 22 clusters of 5 run at once, 7 of 16
    row = ROWS[0].replace("1,9,0", "1,99,0")
    if tokens == 9:
        row = row.replace("fixed,5", "fixed,16")
    (tables / "sm_90" / "sparse_mla_decode.csv").write_text(
        "\n".join([HEADER, row, ROWS[1].replace(",9,,0", ",99,,0")]) + "\n"
    )
    clear_sparse_routes()
    route = route_sparse_mla_decode(replace(SHAPE, tokens=tokens))
    assert route.num_splits == splits
    assert ("do not run at once" in route.reason) == (tokens == 9)


@pytest.mark.parametrize(
    ("tokens", "nhead", "keys", "splits"),
    [
        (1, 64, 2048, 16), (1, 64, 640, 10), (7, 64, 2048, 16), (8, 64, 2048, 8),
        (16, 64, 2048, 6), (32, 64, 2048, 3), (64, 64, 2048, 2), (80, 64, 2048, 1),
        (128, 64, 2048, 1), (16, 128, 2048, 3), (64, 128, 2048, 1), (1, 64, 1, 1),
    ],
)  # fmt: skip
def test_rule_of_sm_90_fills_the_gpu_with_clusters_once(
    tokens: int, nhead: int, keys: int, splits: int
) -> None:
    shape = replace(SHAPE, tokens=tokens, nhead=nhead, max_keys=keys)
    assert splits_by_rule(shape) == splits
    assert rounds_of(shape, splits) == 1


@pytest.mark.usefixtures("tables")
def test_split_count_of_the_caller_comes_first() -> None:
    route = route_sparse_mla_decode(replace(SHAPE, num_splits=3))
    assert (route.num_splits, route.reason) == (3, "split count given by the caller")


def test_step_without_tokens_has_a_split_count() -> None:
    assert route_sparse_mla_decode(replace(SHAPE, tokens=0)).num_splits >= 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"family": "gfx90a"}, "family: expected one of cpu"),
        ({"format": "v3"}, "format: expected one of v32 v4, got v3"),
        ({"compute_units": 0}, "compute_units: expected at least 1"),
        ({"tokens": -1}, "tokens: expected at least 0"),
        ({"nhead": 0}, "nhead: expected at least 1"),
        ({"max_keys": -1}, "max_keys: expected at least 0"),
    ],
)
def test_shapes_that_make_no_sense_are_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(BadArgument, match=message):
        route_sparse_mla_decode(replace(SHAPE, **change))  # type: ignore[arg-type]


@pytest.mark.parametrize("family", FAMILIES)
def test_shipped_tables_of_sparse_decode_are_proven(family: str) -> None:
    for rows in load_sparse_table(family).rows_by_key.values():
        assert find_flaw([row.rect for row in rows]) is None


@pytest.mark.parametrize(
    ("row", "complaint"),
    [
        (ROWS[0].replace("fixed,5", "fixed,auto"), "num_splits: expected an integer >= 1"),
        (ROWS[1].replace("rule,auto", "rule,4"), "num_splits: expected one of auto, got 4"),
        (ROWS[1].replace("rule", "hk"), "route: expected one of rule fixed, got hk"),
        (ROWS[1].replace("v32", "v33"), "format: expected one of v32 v4, got v33"),
        (ROWS[1].replace(",9,,0", ",0,,0"), "tokens_from: expected an integer >= 1"),
        (ROWS[1], "got none for .tokens 1, keys 0."),
    ],
)
def test_reader_refuses_rows_that_break_a_rule(row: str, complaint: str) -> None:
    with pytest.raises(TableError, match=complaint):
        parse_table(f"{HEADER}\n{row}\n", SPARSE_MLA_DECODE, label="t.csv")


@pytest.mark.parametrize(
    ("tokens", "nhead", "keys", "rule", "numbers"),
    [
        (1, 64, 2048, 16, [1, 8, 10, 12]),
        (1, 128, 128, 2, [1]),
        (1, 16, 1, 1, [2]),
        (128, 128, 2048, 1, [2]),
        (16, 64, 2048, 6, [1, 3, 4, 5]),
    ],
)
def test_choices_are_the_rule_and_other_split_counts(
    tokens: int, nhead: int, keys: int, rule: int, numbers: list[int]
) -> None:
    point = Point(replace(KEY, nhead=nhead), tokens, keys)
    found = tune_sparse.choices(point, "sm_90")
    assert found == {RULE: rule, **{Choice("fixed", n): n for n in numbers}}


def timed(point: Point[SparseKey], us: dict[Choice, float]) -> Measurement[SparseKey]:
    least = min(us.values())
    trials = {choice: Trial(t, t, t / least, 3.0, 1e-3) for choice, t in us.items()}
    return Measurement(point, trials, 9)


def test_rows_take_a_number_only_where_it_beats_the_rule() -> None:
    two, four = Choice("fixed", 2), Choice("fixed", 4)
    times = {
        (1, 128): {RULE: 10.0, two: 10.1, four: 12.0},
        (1, 2048): {RULE: 20.0, two: 30.0, four: 15.0},
        (64, 128): {RULE: 10.0, two: 20.0, four: 40.0},
        (64, 2048): {RULE: 10.2, two: 10.0, four: 40.0},
    }
    taken = [timed(Point(KEY, *at), us) for at, us in times.items()]
    rows = rows_from_grid(taken, machine="here", date="2026-11-21", point=("tokens", "keys"))
    text = format_table(rows, SPARSE_MLA_DECODE, comments=["why"])
    table = parse_table(text, SPARSE_MLA_DECODE, label="t.csv")
    found = {at: table.find(KEY, *at) for at in times}
    assert [row.num_splits for row in found.values()] == ["auto", 4, "auto", "auto"]
    chosen = found[1, 2048]
    assert (chosen.us, chosen.runner_up, chosen.runner_up_us) == (15.0, "rule", 20.0)
    assert chosen.source == "tokens 1 keys 2048, of 1 measured"
    assert (chosen.rect.batch_to, chosen.rect.kv_to) == (9, math.inf)


def test_sweep_resumes_points_of_sparse_decode(tmp_path: Path) -> None:
    points = [Point(KEY, tokens, 2048) for tokens in (1, 8, 64)]
    results, seen = tmp_path / "r.csv", []

    def measure(point: Point[SparseKey], left: int) -> Measurement[SparseKey]:
        seen.append((point.batch, left))
        return timed(point, {RULE: 10.0, Choice("fixed", 2): 11.0})

    first = sweep(points[:2], measure, results, schema=SPARSE_MLA_DECODE)
    assert read_results(results, SPARSE_MLA_DECODE) == first
    sweep(points, measure, results, schema=SPARSE_MLA_DECODE)
    assert seen == [(1, 2), (8, 1), (64, 1)]


def test_tune_command_measures_sparse_decode_and_keeps_other_keys(tmp_path: Path) -> None:
    table = tmp_path / "cpu" / "sparse_mla_decode.csv"
    sizes = ["--nhead", "4", "--batches", "1,2", "--kv-lens", "70", "--rounds", "5"]
    common = ["--op", "sparse_mla_decode", *sizes, "--budget-s", "4", "--out", str(table)]
    with settings.override(cache_dir=tmp_path / "cache"), pytest.MonkeyPatch.context() as patch:
        patch.setattr(tune_sparse, "POOL_TOKENS", 1000)
        patch.setattr("hipdecode.testing.tune_run._QUIET_SHARE", math.inf)
        for name in ("v4", "v32"):
            ran = CliRunner().invoke(
                tune.command, [*common, "--formats", name], catch_exceptions=False
            )
            assert ran.exit_code == 0, ran.output
    rows = read_table(table, SPARSE_MLA_DECODE).rows_by_key
    assert {(key.format, key.nhead) for key in rows} == {("v32", 4), ("v4", 4)}
    text = table.read_text()
    first = text.splitlines()[0]
    assert first.startswith("# hipdecode tune --target cpu --op sparse_mla_decode --nhead 4")
    assert "--page-size" not in first
    errors = [row.max_err for row in itertools.chain(*rows.values())]
    assert all(error is not None and error < 0.1 for error in errors)
