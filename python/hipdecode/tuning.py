# SPDX-License-Identifier: MIT
"""From timed grid points to the rows of a dispatch table. Pure: the clock is the caller's.

Each key is measured on a grid of (batch, kv_len). Its rectangles meet at the geometric mean of
neighbouring grid points, so they tile the plane by construction; neighbours with the same route are
merged. A point whose gain is within its noise does not vote while another of its batch does. A
batch without a measured point leaves its place to its neighbours, a key without one gets no rows.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import itertools
import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from .errors import TableError
from .tables import COLUMNS, Bound, Rect, Row, TableKey, gain_pct, parse_table

OTHER = {"hk": "persistent", "persistent": "hk"}


@dataclass(frozen=True, slots=True, order=True)
class Point:
    """One shape to measure: a key, requests, and tokens of context of each."""

    key: TableKey
    batch: int
    kv_len: int


@dataclass(frozen=True, slots=True)
class Measurement:
    """Both routes at one point, timed in interleaved rounds and checked against the oracle.

    Attributes:
        point: where.
        hk_us: p50 of hk, microseconds of a whole call.
        persistent_us: p50 of persistent.
        ratio: median over the rounds of hk / persistent; below 1 hk is faster.
        noise_pct: what the ratio may be off by, in percent.
        hk_err: largest absolute error of hk.
        persistent_err: largest absolute error of persistent.
        rounds: rounds that counted; 0 where the machine was too busy, then the times mean nothing.
    """

    point: Point
    hk_us: float
    persistent_us: float
    ratio: float
    noise_pct: float
    hk_err: float
    persistent_err: float
    rounds: int

    @property
    def faster(self) -> str:
        """The route that took less, be it by noise."""
        return "hk" if self.ratio < 1 else "persistent"

    @property
    def decided(self) -> bool:
        """Whether the gain exceeds the noise."""
        return self.rounds > 0 and self.gain(self.faster) > self.noise_pct

    def us(self, route: str) -> float:
        """The p50 of a route."""
        return self.hk_us if route == "hk" else self.persistent_us

    def gain(self, route: str) -> float:
        """By how many percent a route undercuts the other, from the paired ratio."""
        return 100 * (1 - (self.ratio if route == "hk" else 1 / self.ratio))


def grid(
    keys: Iterable[TableKey], batches: Sequence[int], kv_lens: Sequence[int]
) -> tuple[Point, ...]:
    """Return every point, key by key; contexts shorter than the key's q_len are lifted to it."""
    return tuple(
        dict.fromkeys(
            Point(key, batch, max(kv_len, key.q_len))
            for key in keys
            for batch in sorted(set(batches))
            for kv_len in sorted(set(kv_lens))
        )
    )


def sweep(
    points: Sequence[Point],
    measure: Callable[[Point, int], Measurement],
    results: Path,
    *,
    done: Callable[[Measurement], object] = lambda _: None,
) -> list[Measurement]:
    """Measure points, keeping each result on disk as soon as it is there.

    Args:
        points: what to measure; those that `results` has measured are taken from there.
        measure: called with a point and the number of points left, itself included.
        results: CSV file to resume from and append to.
        done: called after each point, also those resumed.

    Returns:
        One measurement per point, in the order of the points.
    """
    have = {taken.point: taken for taken in read_results(results) if taken.rounds}
    left = sum(point not in have for point in points)
    for point in points:
        if point not in have:
            have[point] = measure(point, left)
            left -= 1
            _append_result(results, have[point])
        done(have[point])
    return [have[point] for point in points]


_KEY_FIELDS = tuple(field.name for field in dataclasses.fields(TableKey))
_NUMBERS = ("hk_us", "persistent_us", "ratio", "noise_pct", "hk_err", "persistent_err")
_RESULT_COLUMNS = (*_KEY_FIELDS, "batch", "kv_len", *_NUMBERS, "rounds")


def read_results(path: Path) -> list[Measurement]:
    """Read what `sweep` kept; a missing file holds nothing, a line cut short is left out."""
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        lines = [line for line in csv.reader(file) if len(line) == len(_RESULT_COLUMNS)]
    found = []
    for line in lines[1:]:
        cells = dict(zip(_RESULT_COLUMNS, line, strict=True))
        q_dtype, kv_dtype, *sizes = (cells[name] for name in _KEY_FIELDS)
        nhead, q_len, page_size = map(int, sizes)
        key = TableKey(q_dtype, kv_dtype, nhead, q_len, page_size)
        point = Point(key, int(cells["batch"]), int(cells["kv_len"]))
        numbers = {name: float(cells[name]) for name in _NUMBERS}
        found.append(Measurement(point=point, rounds=int(cells["rounds"]), **numbers))
    return found


def _append_result(path: Path, taken: Measurement) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    before = path.read_text(encoding="utf-8") if path.is_file() else ""
    with path.open("a", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        if not before:
            writer.writerow(_RESULT_COLUMNS)
        elif not before.endswith("\n"):
            file.write("\n")  # end the line that an interruption cut short
        point = taken.point
        numbers = (repr(getattr(taken, name)) for name in _NUMBERS)
        key = dataclasses.astuple(point.key)
        writer.writerow([*key, point.batch, point.kv_len, *numbers, taken.rounds])


@dataclass(frozen=True, slots=True)
class _Patch:
    """A rectangle with the route chosen for it and the measurements inside."""

    rect: Rect
    route: str
    inside: tuple[Measurement, ...]


def rows_from_grid(taken: Iterable[Measurement], *, machine: str, date: str) -> list[Row]:
    """Turn the measurements of complete grids into rows that tile the plane.

    A row's evidence is its decided point of least gain, since the others speak for the route more
    clearly; without a decided one, the point of least noise. `us` is the route's p50 there,
    `runner_up_us` is that times the paired ratio, so that the gain is that of the rounds.

    Args:
        taken: for each key, one measurement per (batch, kv_len) of its own grid.
        machine: goes into the rows.
        date: ISO date, goes into the rows.

    Raises:
        TableError: a key lacks a point of its grid; names the first.
    """
    keys: dict[TableKey, dict[tuple[int, int], Measurement]] = {}
    for one in taken:
        keys.setdefault(one.point.key, {})[one.point.batch, one.point.kv_len] = one
    return [
        _row(key, patch, machine, date)
        for key, cells in keys.items()
        for patch in _patches(key, cells)
    ]


def _patches(key: TableKey, cells: dict[tuple[int, int], Measurement]) -> list[_Patch]:
    batches = sorted({batch for batch, _ in cells})
    kv_lens = sorted({kv_len for _, kv_len in cells})
    lacking = [(b, k) for b in batches for k in kv_lens if (b, k) not in cells]
    if lacking:
        batch, kv_len = lacking[0]
        raise TableError(
            f"{key}: expected a measurement of each point of its grid, got none for (batch "
            f"{batch}, kv_len {kv_len}); measure it"
        )
    batches = [b for b in batches if any(cells[b, k].rounds for k in kv_lens)]
    bands: list[list[_Patch]] = []
    for batch, (batch_from, batch_to) in zip(batches, spans(batches, 1), strict=True):
        band: list[_Patch] = []
        column = [cells[batch, kv_len] for kv_len in kv_lens]
        routes = choose(column)
        for one, route, (kv_from, kv_to) in zip(column, routes, spans(kv_lens, 0), strict=True):
            patch = _Patch(Rect(batch_from, batch_to, kv_from, kv_to), route, (one,))
            if band and band[-1].route == route:
                patch = _join(band.pop(), patch)
            band.append(patch)
        if bands and [_outline(p) for p in bands[-1]] == [_outline(p) for p in band]:
            band = [_join(low, high) for low, high in zip(bands.pop(), band, strict=True)]
        bands.append(band)
    return [patch for band in bands for patch in band]


def _outline(patch: _Patch) -> tuple[int, Bound, str]:
    return patch.rect.kv_from, patch.rect.kv_to, patch.route


def _join(low: _Patch, high: _Patch) -> _Patch:
    rect = Rect(low.rect.batch_from, high.rect.batch_to, low.rect.kv_from, high.rect.kv_to)
    return _Patch(rect, low.route, low.inside + high.inside)


def spans(values: Sequence[int], lowest: int) -> list[tuple[int, Bound]]:
    """Return the half-open range that stands for each grid value.

    Neighbours meet just above their geometric mean; the first starts at `lowest`, the last never
    ends.

    Args:
        values: ascending, above 0.
        lowest: the smallest integer of the axis.
    """
    cuts: list[Bound] = [math.isqrt(a * b) + 1 for a, b in itertools.pairwise(values)]
    starts = [lowest, *(int(cut) for cut in cuts)]
    return list(zip(starts, [*cuts, math.inf], strict=True)) if values else []


def choose(column: Sequence[Measurement]) -> list[str]:
    """Choose a route for each context of one batch, in ascending order of context.

    A decided point takes its faster route; an undecided one follows the nearest decided point (the
    shorter context on a tie). Without any decided point all measured ones vote together; where that
    is within their noise too, `persistent`, whose plan also evens out contexts more ragged than
    the measured ones.
    """
    decided = [index for index, one in enumerate(column) if one.decided]
    if not decided:
        measured = [one for one in column if one.rounds]
        gain = 100 * (1 - math.exp(statistics.fmean(math.log(one.ratio) for one in measured)))
        noise = math.hypot(*(one.noise_pct for one in measured)) / len(measured)
        return ["hk" if gain > noise else "persistent"] * len(column)
    nearest = (min((abs(at - index), at) for at in decided)[1] for index in range(len(column)))
    return [column[at].faster for at in nearest]


def _row(key: TableKey, patch: _Patch, machine: str, date: str) -> Row:
    route = patch.route
    # Never empty: a band has a measured point, and undecided ones join a decided neighbour.
    measured = [one for one in patch.inside if one.rounds]
    decided = [one for one in measured if one.decided and one.faster == route]
    if decided:
        shown = min(decided, key=lambda one: one.gain(route))
    else:
        shown = min(measured, key=lambda one: one.noise_pct)
    us = round(shown.us(route), 3)
    runner_up_us = round(us / (1 - shown.gain(route) / 100), 3)
    source = f"batch {shown.point.batch} ctx {shown.point.kv_len}, of {len(measured)} measured"
    if not decided:
        source += f"; gain within the noise of {shown.noise_pct:.1f} %"
    return Row(
        key=key,
        rect=patch.rect,
        route=route,
        num_splits="auto" if route == "hk" else "plan",
        us=us,
        runner_up=OTHER[route],
        runner_up_us=runner_up_us,
        gain_pct=gain_pct(us, runner_up_us),
        max_err=shown.hk_err if route == "hk" else shown.persistent_err,
        machine=machine,
        date=date,
        source=source,
    )


def format_table(rows: Iterable[Row], *, comments: Sequence[str] = ()) -> str:
    """Return the text of a table file, header included, after reading it back.

    Args:
        rows: rows of complete keys, in any order.
        comments: lines to write above the header, without the `# `.

    Raises:
        TableError: the rows would not read back (a gap, an overlap, a bad cell).
    """
    out = io.StringIO()
    for comment in comments:
        out.write(f"# {comment}\n")
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(COLUMNS)
    ordered = sorted(rows, key=lambda row: (row.key, row.rect))
    writer.writerows(_cells(row) for row in ordered)
    parse_table(out.getvalue(), label="new table")
    return out.getvalue()


def _cells(row: Row) -> list[str | int]:
    def bound(value: Bound) -> str | int:
        return "" if value == math.inf else int(value)

    def number(value: float | None, digits: str) -> str:
        return "" if value is None else format(value, digits)

    rect = row.rect
    return [
        *(row.key.q_dtype, row.key.kv_dtype, row.key.nhead, row.key.q_len, row.key.page_size),
        *(rect.batch_from, bound(rect.batch_to), rect.kv_from, bound(rect.kv_to)),
        *(row.route, row.num_splits, number(row.us, ".3f"), row.runner_up or ""),
        *(number(row.runner_up_us, ".3f"), number(row.gain_pct, ".2f"), number(row.max_err, ".2e")),
        *(row.machine, row.date, row.source),
    ]
