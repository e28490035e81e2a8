# SPDX-License-Identifier: MIT
"""Tuning: grid points to rows, resuming, noise; all under a made-up clock."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from hipdecode import settings as package_settings
from hipdecode import target as targets
from hipdecode.cli import tune
from hipdecode.errors import TableError
from hipdecode.table_files import MLA_DECODE, parse_table, read_table
from hipdecode.tables import Rect, Table, TableKey
from hipdecode.testing import tune_run
from hipdecode.testing.bench_report import Checked, Oracle
from hipdecode.testing.timing import HostClock
from hipdecode.testing.tune_run import context_lengths, noise_pct
from hipdecode.tuning import (
    HK,
    PERSISTENT,
    Choice,
    Measurement,
    Point,
    Trial,
    grid,
    read_results,
    sweep,
)
from hipdecode.tuning_rows import choose, format_table, rows_from_grid, spans

KEY = TableKey("bf16", "bf16", 16, 1, 64)
OTHER_KEY = replace(KEY, nhead=128)
quick = settings(max_examples=100, deadline=None)


def measured(point: Point, ratio: float, noise_pct: float = 3.0) -> Measurement:
    """hk took `ratio` of persistent's time."""
    us = 10.0 * point.batch + 0.01 * point.kv_len
    return timed(point, {HK: us * ratio, PERSISTENT: us}, noise_pct)


def timed(point: Point, us: dict[Choice, float], noise_pct: float = 3.0) -> Measurement:
    least = min(us.values())
    trials = {
        choice: Trial(t, t, t / least, noise_pct, 1e-3 if choice.route == "hk" else 2e-3)
        for choice, t in us.items()
    }
    return Measurement(point, trials, 9)


def table_of(taken: list[Measurement]) -> Table:
    rows = rows_from_grid(taken, machine="a machine, with a comma", date="2026-11-21")
    return parse_table(format_table(rows, MLA_DECODE, comments=["why"]), MLA_DECODE, label="t.csv")


@st.composite
def measured_grids(draw: st.DrawFn) -> list[Measurement]:
    values = st.lists(st.integers(1, 5000), min_size=1, max_size=4, unique=True)
    points = grid([KEY, OTHER_KEY], draw(values), draw(values))
    ratios = st.sampled_from([0.2, 0.9, 0.99, 1.0, 1.01, 1.1, 5.0])
    return [measured(point, draw(ratios)) for point in points]


@quick
@given(measured_grids())
def test_rows_tile_the_plane_and_keep_decided_choices(taken: list[Measurement]) -> None:
    table = table_of(taken)  # the table itself proves the tiling
    for one in taken:
        row = table.find(one.point.key, one.point.batch, one.point.kv_len)
        if one.decided:
            assert row.route == one.faster
        assert row.us is not None
        assert row.max_err == (1e-3 if row.route == "hk" else 2e-3)


@quick
@given(st.lists(st.integers(1, 10**6), min_size=1, max_size=8, unique=True).map(sorted))
def test_spans_hold_their_own_values_and_meet(values: list[int]) -> None:
    got = spans(values, 0)
    assert (got[0][0], got[-1][1]) == (0, math.inf)
    for value, (start, end) in zip(values, got, strict=True):
        assert start <= value < end
    for (_, end), (start, _) in itertools.pairwise(got):
        assert end == start


def test_spans_meet_at_the_geometric_mean() -> None:
    assert spans([16, 64, 1024], 1) == [(1, 33), (33, 257), (257, math.inf)]


def crossover(point: Point) -> float:
    return 0.5 if point.batch * point.kv_len <= 1024 else 1.5


def test_rows_follow_a_crossover_and_merge_alike_bands() -> None:
    taken = [measured(p, crossover(p)) for p in grid([KEY], [1, 2, 64], [16, 256, 4096])]
    rows = rows_from_grid(taken, machine="here", date="2026-11-21")
    got = [
        (r.rect.batch_from, r.rect.batch_to, r.rect.kv_from, r.rect.kv_to, r.route) for r in rows
    ]
    assert got == [
        (1, 12, 0, 1025, "hk"),
        (1, 12, 1025, math.inf, "persistent"),
        (12, math.inf, 0, 65, "hk"),
        (12, math.inf, 65, math.inf, "persistent"),
    ]
    assert [row.num_splits for row in rows] == ["auto", "plan", "auto", "plan"]


def test_row_shows_its_least_decided_gain_and_the_paired_ratio() -> None:
    points = grid([KEY], [1], [64, 512, 4096])
    taken = [measured(p, r) for p, r in zip(points, (0.5, 0.8, 0.99), strict=True)]
    (row,) = rows_from_grid(taken, machine="here", date="2026-11-21")
    assert row.route == "hk"
    assert row.us == pytest.approx(0.8 * (10 + 5.12), abs=1e-3)
    assert row.gain_pct == pytest.approx(20.0, abs=0.01)
    assert row.source == "batch 1 ctx 512, of 3 measured"


def test_row_says_when_no_gain_exceeds_the_noise() -> None:
    points = grid([KEY], [1], [64, 512])
    taken = [measured(p, r, noise_pct=7.5) for p, r in zip(points, (1.02, 0.99), strict=True)]
    (row,) = rows_from_grid(taken, machine="here", date="2026-11-21")
    assert row.route == "persistent"
    assert row.source == "batch 1 ctx 64, of 2 measured; gain within the noise of 7.5 %"


@pytest.mark.parametrize(
    ("ratios", "routes"),
    [
        ([0.5, 1.01, 2.0], "hk hk persistent"),
        ([1.01, 1.01, 0.5], "hk hk hk"),
        ([0.99, 2.0, 0.99], "persistent persistent persistent"),
        ([2.0, 1.01, 0.5], "persistent persistent hk"),
        ([0.99, 0.98, 1.02], "persistent persistent persistent"),
        ([1.0], "persistent"),
        ([0.975, 0.972, 0.971], "hk hk hk"),
        ([1.02, 0.98, 1.029], "persistent persistent persistent"),
    ],
)
def test_choose_lets_undecided_points_follow(ratios: list[float], routes: str) -> None:
    column = [measured(Point(KEY, 1, 2**i), ratio) for i, ratio in enumerate(ratios)]
    assert [choice.route for choice in choose(column)] == routes.split()


def splits(**us: float) -> Measurement:
    """hk1=3.0: hk took 3 us with 1 split; `plan` is persistent's time."""
    choices = {
        PERSISTENT if name == "plan" else Choice("hk", int(name[2:])): t for name, t in us.items()
    }
    return timed(Point(KEY, 1, 64), choices)


def test_choose_takes_the_split_count_that_serves_the_longest_stretch() -> None:
    column = [
        splits(hk1=10, plan=20),
        splits(hk1=10.1, hk2=10, plan=20),
        splits(hk1=15, hk2=10.1, hk4=10, plan=20),
        splits(hk1=40, hk2=20, hk4=10, plan=10.1),
        splits(hk1=80, hk2=40, hk4=20, plan=10),
    ]
    assert [str(choice) for choice in choose(column)] == [
        "hk/1", "hk/1", "hk/4", "hk/4", "persistent",
    ]  # fmt: skip


def test_choose_prefers_the_rule_within_the_noise() -> None:
    def one(auto: float) -> Measurement:
        four = Choice("hk", 4)
        return timed(Point(KEY, 1, 64), {HK: auto, four: 10, PERSISTENT: 20})

    assert [str(choice) for choice in choose([one(10.2), one(10.3)])] == ["hk/auto"] * 2
    assert [str(choice) for choice in choose([one(10.2), one(12)])] == ["hk/4"] * 2


@pytest.mark.parametrize(
    ("batch", "nhead", "kv_len", "numbers"),
    [
        (1, 16, 4096, [8, 16, 32]),  # the rule takes 64
        (1, 128, 256, [2, 4]),  # the rule takes 1
        (16, 128, 4096, [1, 2]),
        (64, 16, 32768, [1]),
        (256, 128, 32768, []),
    ],
)
def test_choices_on_a_gpu_are_the_rule_and_other_split_counts(
    batch: int, nhead: int, kv_len: int, numbers: list[int]
) -> None:
    point = Point(replace(KEY, nhead=nhead), batch, kv_len)
    found = tune_run.choices(point, targets.resolve("sm_90"))
    usual = tuple(choice for choice in found if choice.tile_rows == "auto")
    assert usual == (HK, *(Choice("hk", number) for number in numbers), PERSISTENT)
    assert tune_run.choices(point, targets.resolve("cpu")) == (HK, PERSISTENT)


def test_choices_on_a_gpu_have_tiles_of_fewer_rows_where_all_run_at_once() -> None:
    def rows_of(nhead: int, batch: int, kv_len: int) -> list[Choice]:
        point = Point(replace(KEY, nhead=nhead), batch, kv_len)
        found = tune_run.choices(point, targets.resolve("sm_90"))
        return [choice for choice in found if choice.tile_rows != "auto"]

    assert rows_of(16, 1, 1024) == []
    assert rows_of(32, 8, 4096) == [Choice("hk", "auto", 16)]
    assert rows_of(128, 1, 1024) == [
        Choice("hk", "auto", 16),
        Choice("hk", "auto", 32),
    ]
    assert rows_of(128, 32, 1024) == [Choice("hk", "auto", 32)]
    assert rows_of(128, 64, 1024) == []


def test_row_has_the_split_count_and_gains_over_the_other_route() -> None:
    (row,) = rows_from_grid(
        [splits(hk1=20, hk4=10, hk8=10.2, plan=12.5)], machine="here", date="2026-11-21"
    )
    assert (row.route, row.num_splits, row.us) == ("hk", 4, 10)
    assert (row.runner_up, row.gain_pct) == ("persistent", pytest.approx(20))
    assert table_of([splits(hk1=20, hk4=10, plan=12.5)]).find(KEY, 1, 64).num_splits == 4


def test_rows_refuse_an_incomplete_grid() -> None:
    taken = [measured(p, 0.5) for p in grid([KEY], [1, 8], [64, 512])][:-1]
    with pytest.raises(TableError, match=r"got none for \(batch 8, kv_len 512\)"):
        rows_from_grid(taken, machine="here", date="2026-11-21")


def test_grid_lifts_contexts_to_the_query_tokens() -> None:
    points = grid([replace(KEY, q_len=4)], [1], [1, 2, 64])
    assert [point.kv_len for point in points] == [4, 64]


def test_batches_without_a_measured_point_leave_their_place() -> None:
    points = grid([KEY, OTHER_KEY], [1, 8], [64, 512])
    busy = [
        replace(measured(p, 0.5), rounds=0 if p.batch == 8 or p.key == OTHER_KEY else 9)
        for p in points
    ]
    (row,) = rows_from_grid(busy, machine="here", date="2026-11-21")
    assert (row.key, row.rect, row.route) == (KEY, Rect(1, math.inf, 0, math.inf), "hk")
    assert row.source == "batch 1 ctx 64, of 2 measured"


def test_unmeasured_points_follow_and_are_no_evidence() -> None:
    points = grid([KEY], [1], [64, 512, 4096])
    taken = [measured(p, r) for p, r in zip(points, (0.5, 0.8, 5.0), strict=True)]
    taken[2] = replace(taken[2], rounds=0)
    (row,) = rows_from_grid(taken, machine="here", date="2026-11-21")
    assert (row.route, row.source) == ("hk", "batch 1 ctx 512, of 2 measured")


def test_sweep_retries_points_that_were_disturbed(tmp_path: Path) -> None:
    points, results = grid([KEY], [1], [64, 512]), tmp_path / "r.csv"
    sweep(
        points,
        lambda p, _: replace(measured(p, 0.5), rounds=9 * (p.kv_len > 64)),
        results,
        schema=MLA_DECODE,
    )
    seen: list[tuple[Point, int]] = []
    taken = sweep(points, counting(crossover, seen), results, schema=MLA_DECODE)
    assert seen == [(points[0], 1)]
    assert [one.rounds for one in taken] == [9, 9]
    assert [one.rounds for one in read_results(results, MLA_DECODE)] == [9, 9]


def counting(clock: Callable[[Point], float], seen: list[tuple[Point, int]], stop_after: int = 99):
    def measure(point: Point, left: int) -> Measurement:
        if len(seen) == stop_after:
            raise KeyboardInterrupt
        seen.append((point, left))
        return measured(point, clock(point))

    return measure


def test_sweep_resumes_where_it_was_interrupted(tmp_path: Path) -> None:
    points, results = grid([KEY, OTHER_KEY], [1, 8], [64, 512]), tmp_path / "deep" / "r.csv"
    first: list[tuple[Point, int]] = []
    with pytest.raises(KeyboardInterrupt):
        sweep(points, counting(crossover, first, stop_after=5), results, schema=MLA_DECODE)
    assert [taken.point for taken in read_results(results, MLA_DECODE)] == list(points[:5])
    with results.open("a") as file:
        # The machine died while it wrote: one of two choices of a point, and a part of a line.
        file.write(line_of(points[5], results) + "\nbf16,bf16,12")
    kept = read_results(results, MLA_DECODE)
    assert [one.point for one in kept] == list(points[:5])
    second: list[tuple[Point, int]] = []
    done: list[Measurement] = []
    taken = sweep(points, counting(crossover, second), results, schema=MLA_DECODE, done=done.append)
    assert taken[:5] == kept
    assert second == [(points[5], 3), (points[6], 2), (points[7], 1)]
    assert done == taken
    assert [one.point for one in taken] == list(points)
    assert table_of(taken).find(OTHER_KEY, 8, 512).route == "persistent"


def line_of(point: Point, results: Path) -> str:
    """What the file says about its first point, put as if it were about another."""
    cells = results.read_text().splitlines()[1].split(",")
    cells[2], cells[5:7] = str(point.key.nhead), [str(point.batch), str(point.kv_len)]
    return ",".join(cells)


def test_noise_ignores_a_few_disturbed_rounds() -> None:
    calm = [1.0] * 30
    assert noise_pct(calm) == 3.0
    assert noise_pct([*calm, 9.0, 9.0, 9.0]) == 3.0
    assert noise_pct(calm, floor=1.0) == 1.0
    assert noise_pct([0.5, 1.0, 1.5, 2.0, 0.7]) > 50


def test_tune_command_writes_a_proven_table_and_keeps_other_keys(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    budgets = []

    def fake(point: Point, how: tune_run.How, budget_s: float) -> Measurement:
        assert how.spread == 0.5
        budgets.append(budget_s)
        return measured(point, crossover(point))

    monkeypatch.setattr(tune, "measure", fake)
    table = tmp_path / "cpu" / "mla_decode.csv"
    common = ["--batches", "1,8", "--kv-lens", "64,512", "--budget-s", "80", "--out", str(table)]
    with package_settings.override(cache_dir=tmp_path / "cache"):
        for key in (["--nhead", "16", "--dtypes", "bf16,bf16/fp8"], ["--nhead", "64"]):
            arguments = [*key, "--q-len", "1", *common]
            ran = CliRunner().invoke(tune.command, arguments, catch_exceptions=False)
            assert ran.exit_code == 0, ran.output
    rows = read_table(table, MLA_DECODE).rows_by_key
    assert {(key.kv_dtype, key.nhead) for key in rows} == {
        ("bf16", 16),
        ("fp8_e4m3fn", 16),
        ("bf16", 64),
        ("fp8_e4m3fn", 64),
    }
    first = table.read_text().splitlines()[0]
    assert first.startswith("# hipdecode tune --target cpu --op mla_decode --nhead 64 --q-len 1")
    assert len(budgets) == 16
    assert all(9 < budget <= 80 for budget in budgets)
    assert not list((tmp_path / "cache" / "tune").iterdir())


def test_a_device_without_seconds_left_measures_no_more_and_has_rows_for_what_it_did() -> None:
    clock = SimpleNamespace(name="device")
    how = tune_run.How(targets.resolve("sm_90"), clock)  # type: ignore[arg-type]
    points = grid([KEY, OTHER_KEY], [1], [64, 512])
    taken = [measured(points[0], 0.5), *(tune_run.measure(p, how, 0.0) for p in points[1:])]
    assert [one.rounds for one in taken] == [9, 0, 0, 0]
    (row,) = rows_from_grid(taken, machine="here", date="2026-11-21")
    assert (row.key, row.rect, row.route) == (KEY, Rect(1, math.inf, 0, math.inf), "hk")


@pytest.mark.parametrize("wrong", ["hk", "persistent"])
def test_a_choice_outside_its_tolerance_is_not_timed_and_named(
    wrong: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    checked = iter(Checked(0.5, within=choice.route != wrong) for choice in (HK, PERSISTENT))
    monkeypatch.setattr(Oracle, "check", lambda *_: next(checked))
    how = tune_run.How(targets.resolve("cpu"), HostClock.here())
    with package_settings.override(target="cpu"):
        taken = tune_run.measure(Point(KEY, 1, 64), how, 1.0)
    assert (taken.trials, taken.rounds) == ({}, 0)
    (said,) = how.wrong
    assert said.startswith(wrong)
    assert said.endswith("page_size 64 batch 1 kv_len 64: an error of 5.00e-01")


@quick
@given(batch=st.integers(1, 300), kv_len=st.integers(4, 10**5), spread=st.sampled_from([0.0, 0.5]))
def test_context_lengths_spread_around_their_mean(batch: int, kv_len: int, spread: float) -> None:
    lengths = context_lengths(Point(KEY, batch, kv_len), spread)
    assert len(lengths) == batch
    assert abs(sum(lengths) / batch - kv_len) <= 1
    assert all(abs(length / kv_len - 1) <= spread + 0.5 / kv_len for length in lengths)
