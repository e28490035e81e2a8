# SPDX-License-Identifier: MIT
"""Measures grid points one by one and keeps the results. Pure: the clock is the caller's."""

from __future__ import annotations

import csv
import dataclasses
import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic

from .table_files import Cells, Schema
from .tables import K, TableKey


@dataclass(frozen=True, slots=True, order=True)
class Choice:
    """What a row may choose.

    Attributes:
        route: `hk` or `persistent`; of sparse decode `rule` or `fixed`; of paged attention `mtp`
            or `general`; of split decode with a merge of its own `reduce` or `ordinary`.
        num_splits: of hk: a number, or `auto`; of persistent: `plan`; of rule: `auto`; of fixed: a
            number; of reduce: its kernel; of the others: a number, or `auto`.
        tile_rows: of hk: query rows of a tile, or `auto`; of all else `auto`.
    """

    route: str
    num_splits: int | str
    tile_rows: int | str = "auto"

    def __str__(self) -> str:
        """Spell it as progress and errors do."""
        if self.num_splits == "plan":
            return self.route
        rows = "" if self.tile_rows == "auto" else f"/{self.tile_rows} rows"
        return f"{self.route}/{self.num_splits}{rows}"


HK = Choice("hk", "auto")
PERSISTENT = Choice("persistent", "plan")
RULE = Choice("rule", "auto")
_PAIRS = (("hk", "persistent"), ("rule", "fixed"), ("mtp", "general"), ("reduce", "ordinary"))
_OTHER = {a: b for pair in _PAIRS for a, b in (pair, pair[::-1])}


@dataclass(frozen=True, slots=True, order=True)
class Point(Generic[K]):
    """One shape to measure: a key, requests, and tokens of context of each.

    Of sparse decode `batch` is the query tokens and `kv_len` the keys of each.
    """

    key: K
    batch: int
    kv_len: int


@dataclass(frozen=True, slots=True)
class Trial:
    """One choice at one point.

    Attributes:
        us: p50, microseconds of a whole call.
        us_min: the least.
        ratio: median over the rounds of its time over the time of the point's fastest choice.
        noise_pct: what the ratio may be off by, in percent.
        max_err: largest absolute error against the oracle.
    """

    us: float
    us_min: float
    ratio: float
    noise_pct: float
    max_err: float

    @property
    def in_noise(self) -> bool:
        """Whether the fastest choice's gain over this one is within the noise."""
        return 100 * (1 - 1 / self.ratio) <= self.noise_pct


@dataclass(frozen=True, slots=True)
class Measurement(Generic[K]):
    """All choices at one point, timed in interleaved rounds and checked against the oracle.

    Attributes:
        point: where.
        trials: what was timed; both routes are among them.
        rounds: rounds that counted; 0 where the machine was too busy, then the times mean nothing.
    """

    point: Point[K]
    trials: Mapping[Choice, Trial]
    rounds: int

    def best(self, route: str) -> Choice:
        """The fastest choice of a route."""
        mine = [choice for choice in self.trials if choice.route == route]
        return min(mine, key=lambda choice: self.trials[choice].ratio)

    @property
    def faster(self) -> str:
        """The route that took less, be it by noise."""
        return min(self.trials, key=lambda choice: self.trials[choice].ratio).route

    @property
    def decided(self) -> bool:
        """Whether the faster route's gain over the other exceeds the noise."""
        return self.rounds > 0 and not self.trials[self.best(other(self.faster))].in_noise

    @property
    def acceptable(self) -> frozenset[Choice]:
        """The choices that are as fast as any but for noise."""
        return frozenset(choice for choice, trial in self.trials.items() if trial.in_noise)

    def ratio(self, choice: Choice) -> float:
        """A choice's time over that of the best choice of the other route."""
        return self.trials[choice].ratio / self.trials[self.best(other(choice.route))].ratio

    def noise_pct(self, choice: Choice) -> float:
        """What `ratio` may be off by; the fastest choice itself has no noise of its own."""
        rival = self.best(other(choice.route))
        return max(self.trials[choice].noise_pct, self.trials[rival].noise_pct)


def other(route: str) -> str:
    """The other route."""
    return _OTHER[route]


def grid(
    keys: Iterable[TableKey], batches: Sequence[int], kv_lens: Sequence[int]
) -> tuple[Point[TableKey], ...]:
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
    points: Sequence[Point[K]],
    measure: Callable[[Point[K], int], Measurement[K]],
    results: Path,
    *,
    schema: Schema[K],
    facts: Mapping[str, str] | None = None,
    done: Callable[[Measurement[K]], object] = lambda _: None,
) -> list[Measurement[K]]:
    """Measure points, keeping each result on disk as soon as it is there.

    Args:
        points: what to measure; those that `results` has measured are taken from there.
        measure: called with a point and the number of points left, itself included.
        results: CSV file to resume from and append to.
        schema: of the tables that the points are for.
        facts: `machine`, `commit` and `date` for its lines.
        done: called after each point, also those resumed.

    Returns:
        One measurement per point, in the order of the points.
    """
    have = {taken.point: taken for taken in read_results(results, schema) if taken.rounds}
    left = sum(point not in have for point in points)
    for point in points:
        if point not in have:
            have[point] = measure(point, left)
            left -= 1
            _append_result(results, schema, have[point], facts or {})
        done(have[point])
    return [have[point] for point in points]


_TRIAL_FIELDS = tuple(field.name for field in dataclasses.fields(Trial))


def _result_columns(schema: Schema[K]) -> tuple[str, ...]:
    made = (*_TRIAL_FIELDS, "rounds", "of", "machine", "commit", "date")
    return (*schema.key_columns, *schema.point, *schema.choice_columns, *made)


def read_results(path: Path, schema: Schema[K]) -> list[Measurement[K]]:
    """Read what `sweep` kept; a missing file holds nothing, a point cut short is left out."""
    if not path.is_file():
        return []
    columns = _result_columns(schema)
    with path.open(newline="", encoding="utf-8") as file:
        lines = [line for line in csv.reader(file) if len(line) == len(columns)]
    found: dict[Point[K], dict[Choice, Trial]] = {}
    rounds: dict[Point[K], int] = {}
    wanted: dict[Point[K], int] = {}
    for line in lines[1:]:
        cells = dict(zip(columns, line, strict=True))
        batch, kv_len = (int(cells[name]) for name in schema.point)
        point = Point(schema.read_key(Cells(str(path), cells)), batch, kv_len)
        made = (cells[name] for name in schema.choice_columns)
        route, *counts = (int(cell) if cell.isdigit() else cell for cell in made)
        choice = Choice(str(route), *counts)
        found.setdefault(point, {})[choice] = Trial(*(float(cells[name]) for name in _TRIAL_FIELDS))
        rounds[point], wanted[point] = int(cells["rounds"]), int(cells["of"])
    return [
        Measurement(point, trials, rounds[point])
        for point, trials in found.items()
        if len(trials) == wanted[point]
    ]


def _append_result(
    path: Path, schema: Schema[K], taken: Measurement[K], facts: Mapping[str, str]
) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    before = path.read_text(encoding="utf-8") if path.is_file() else ""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    if not before:
        writer.writerow(_result_columns(schema))
    elif not before.endswith("\n"):
        text.write("\n")  # end the line that an interruption cut short
    point = taken.point
    shape = (*point.key.cells(), point.batch, point.kv_len)
    for choice, trial in taken.trials.items():
        numbers = (format(value, ".6g") for value in dataclasses.astuple(trial))
        counts = (taken.rounds, len(taken.trials))
        names = (facts.get(name, "") for name in ("machine", "commit", "date"))
        made = (getattr(choice, name) for name in schema.choice_columns)
        writer.writerow([*shape, *made, *numbers, *counts, *names])
    with path.open("a", newline="", encoding="utf-8") as file:
        file.write(text.getvalue())
