# SPDX-License-Identifier: MIT
"""Reads and proves the dispatch tables `configs/tuned/<family>/<op>.csv`.

A table says which route is fastest where. Its rows are grouped by key (dtypes, heads, query tokens,
page size); inside a key each row is a half-open rectangle of the (batch, kv_len) plane. `Table`
refuses rows that do not cover batch >= 1, kv_len >= 0 exactly once, so the order of rows never
matters and no shape is left without an answer. Nothing else in the package parses these files.
"""

from __future__ import annotations

import csv
import math
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from types import MappingProxyType

from .errors import TableError

ROUTES = ("hk", "persistent")
DTYPES = ("bf16", "fp16", "fp8_e4m3fn", "fp8_e4m3fnuz")
KEY_COLUMNS = ("q_dtype", "kv_dtype", "nhead", "q_len", "page_size")
RECT_COLUMNS = ("batch_from", "batch_to", "kv_from", "kv_to")
CHOICE_COLUMNS = ("route", "num_splits")
EVIDENCE_COLUMNS = (
    "us",
    "runner_up",
    "runner_up_us",
    "gain_pct",
    "max_err",
    "machine",
    "date",
    "source",
)
COLUMNS = KEY_COLUMNS + RECT_COLUMNS + CHOICE_COLUMNS + EVIDENCE_COLUMNS
# gain_pct is redundant on purpose, so that a row edited by hand on one side only is caught.
_GAIN_ROUNDING_PCT = 0.1

Bound = int | float
"""An upper bound of a rectangle: an integer, or `math.inf` for an empty cell."""


@dataclass(frozen=True, slots=True, order=True)
class TableKey:
    """What a group of rows is about; every field must match for an exact hit."""

    q_dtype: str
    kv_dtype: str
    nhead: int
    q_len: int
    page_size: int

    def __str__(self) -> str:
        """Spell the key as the reasons and errors do."""
        return (
            f"{self.q_dtype}/{self.kv_dtype} nhead {self.nhead} q_len {self.q_len} "
            f"page_size {self.page_size}"
        )


@dataclass(frozen=True, slots=True, order=True)
class Rect:
    """`batch_from <= batch < batch_to` and `kv_from <= kv_len < kv_to`; kv_len in tokens."""

    batch_from: int
    batch_to: Bound
    kv_from: int
    kv_to: Bound

    def holds(self, batch: int, kv_len: int) -> bool:
        """Tell whether the point lies inside."""
        return self.batch_from <= batch < self.batch_to and self.kv_from <= kv_len < self.kv_to


@dataclass(frozen=True, slots=True)
class Row:
    """One line of a table: where it holds, what it chooses, and the evidence for it.

    Times are p50 microseconds of one decode call, reduce included, at the point named in `source`.
    """

    key: TableKey
    rect: Rect
    route: str
    num_splits: int | str
    us: float | None = None
    runner_up: str | None = None
    runner_up_us: float | None = None
    gain_pct: float | None = None
    max_err: float | None = None
    machine: str = ""
    date: str = ""
    source: str = ""
    line: int = 0


@dataclass(frozen=True, slots=True)
class Flaw:
    """The smallest (batch, kv_len) that is not covered exactly once, and the rectangles there."""

    batch: int
    kv_len: int
    rects: tuple[int, ...]


def find_flaw(rects: Sequence[Rect]) -> Flaw | None:
    """Decide exactly whether rectangles tile batch >= 1 x kv_len >= 0.

    Between two neighbouring edges nothing changes, so the plane falls into finitely many cells
    (coordinate compression); counting the rectangles over each cell decides every integer point.

    Args:
        rects: any rectangles, in any order.

    Returns:
        None when each point is covered exactly once, else the lexicographically smallest
        point that is not, with the indices of the rectangles that cover it (none for a gap).
    """
    batch_edges: list[Bound] = sorted({1, *(b for r in rects for b in (r.batch_from, r.batch_to))})
    kv_edges: list[Bound] = sorted({0, *(k for r in rects for k in (r.kv_from, r.kv_to))})
    spans = [
        (
            bisect_left(batch_edges, r.batch_from),
            bisect_left(batch_edges, r.batch_to),
            bisect_left(kv_edges, r.kv_from),
            bisect_left(kv_edges, r.kv_to),
        )
        for r in rects
    ]
    for i, batch in enumerate(batch_edges):
        if batch == math.inf:
            continue
        covers: list[list[int]] = [[] for _ in kv_edges]
        for index, (batch_lo, batch_hi, kv_lo, kv_hi) in enumerate(spans):
            if batch_lo <= i < batch_hi:
                for j in range(kv_lo, kv_hi):
                    covers[j].append(index)
        for j, kv_len in enumerate(kv_edges):
            if kv_len != math.inf and len(covers[j]) != 1:
                return Flaw(int(batch), int(kv_len), tuple(covers[j]))
    return None


class Table:
    """The proven rows of one file.

    Args:
        label: how reasons and errors name the file, e.g. `configs/tuned/cpu/mla_decode.csv`.
        rows: all rows; each key must tile the plane.

    Raises:
        TableError: a key has a gap or an overlap; names file, line and the smallest such point.
    """

    def __init__(self, label: str, rows: Iterable[Row]) -> None:
        """Group the rows by key and prove each group."""
        groups: dict[TableKey, list[Row]] = {}
        for row in rows:
            groups.setdefault(row.key, []).append(row)
        for key, group in groups.items():
            flaw = find_flaw([row.rect for row in group])
            if flaw is not None:
                raise TableError(_flaw_message(label, key, group, flaw))
        self.label = label
        self.rows_by_key: Mapping[TableKey, tuple[Row, ...]] = MappingProxyType(
            {key: tuple(group) for key, group in groups.items()}
        )

    def find(self, key: TableKey, batch: int, kv_len: int) -> Row:
        """Return the one row of `key` that holds (batch >= 1, kv_len >= 0 tokens).

        Raises:
            KeyError: the table has no such key; `nearest_key` finds one it has.
        """
        return next(row for row in self.rows_by_key[key] if row.rect.holds(batch, kv_len))

    def nearest_key(self, want: TableKey) -> TableKey | None:
        """Return the key whose rows stand in for `want`, or None when none is near enough.

        The order, most important first: the same dtypes; the same kv_dtype; kv elements of the
        same width (a key of another width moves twice or half the bytes, so it is never near).
        Then for nhead, q_len and page_size in turn: equal; else the smallest one above; else the
        largest one below.
        """
        near = [key for key in self.rows_by_key if _dtype_rank(key, want) is not None]
        return min(near, key=lambda key: (_distance(key, want), key), default=None)


def _dtype_rank(have: TableKey, want: TableKey) -> int | None:
    if have.kv_dtype == want.kv_dtype:
        return 0 if have.q_dtype == want.q_dtype else 1
    return 2 if have.kv_dtype.startswith("fp8") == want.kv_dtype.startswith("fp8") else None


def _distance(have: TableKey, want: TableKey) -> tuple[int, ...]:
    distance = [_dtype_rank(have, want) or 0]
    for name in ("nhead", "q_len", "page_size"):
        delta = getattr(have, name) - getattr(want, name)
        distance += [0 if delta == 0 else 1 if delta > 0 else 2, abs(delta)]
    return tuple(distance)


def _flaw_message(label: str, key: TableKey, group: Sequence[Row], flaw: Flaw) -> str:
    point = f"(batch {flaw.batch}, kv_len {flaw.kv_len})"
    if not flaw.rects:
        return (
            f"{label}:{group[0].line}: {key}: expected one row for every point, got none for "
            f"{point}; add a rectangle that holds it"
        )
    lines = [group[index].line for index in flaw.rects]
    return (
        f"{label}:{lines[-1]}: {key}: expected one row for every point, got {len(lines)} for "
        f"{point} (lines {', '.join(map(str, lines))}); shrink all but one of them"
    )


def read_table(path: Path, *, label: str | None = None) -> Table:
    """Read one table file.

    Args:
        path: a CSV file; lines that start with `#` are comments, the first other line is the
            header, and line numbers count all lines.
        label: how to name the file in reasons and errors; default the path as given.

    Returns:
        The table; without rows when the file has a header only.

    Raises:
        TableError: the file cannot be read, or a line breaks a rule; names file, line and rule.
    """
    name = label or str(path)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise TableError(f"{name}: expected a readable table, got {error}; restore it") from error
    return parse_table(text, label=name)


def parse_table(text: str, *, label: str) -> Table:
    """Parse the text of a table file; see `read_table`.

    Raises:
        TableError: a line breaks a rule.
    """
    content = [
        (number, line)
        for number, line in enumerate(text.splitlines(), start=1)
        if line.strip() and not line.startswith("#")
    ]
    if not content:
        raise TableError(f"{label}:1: expected a header, got an empty file; write {_header()}")
    number, header = content[0]
    if tuple(next(csv.reader([header]))) != COLUMNS:
        raise TableError(f"{label}:{number}: expected the header {_header()}, got {header}; fix it")
    return Table(label, (_parse_row(label, number, line) for number, line in content[1:]))


def _header() -> str:
    return ",".join(COLUMNS)


def _parse_row(label: str, number: int, line: str) -> Row:
    values = next(csv.reader([line]))
    if len(values) != len(COLUMNS):
        raise TableError(
            f"{label}:{number}: expected {len(COLUMNS)} cells, got {len(values)}; "
            "quote cells that hold commas"
        )
    cells = _Cells(
        f"{label}:{number}", dict(zip(COLUMNS, (v.strip() for v in values), strict=True))
    )
    key = TableKey(
        q_dtype=cells.word("q_dtype", DTYPES),
        kv_dtype=cells.word("kv_dtype", DTYPES),
        nhead=cells.integer("nhead", 1),
        q_len=cells.integer("q_len", 1),
        page_size=cells.integer("page_size", 1),
    )
    route = cells.word("route", ROUTES)
    row = Row(
        key=key,
        rect=cells.rect(),
        route=route,
        num_splits=cells.splits(route),
        us=cells.number("us"),
        runner_up=cells.word("runner_up", ROUTES) if cells["runner_up"] else None,
        runner_up_us=cells.number("runner_up_us"),
        gain_pct=cells.number("gain_pct", low=-math.inf),
        max_err=cells.number("max_err"),
        machine=cells["machine"],
        date=cells["date"],
        source=cells["source"],
        line=number,
    )
    _check_evidence(cells, row)
    return row


class _Cells:
    """The cells of one line, read by name; every complaint carries file and line."""

    def __init__(self, where: str, cells: dict[str, str]) -> None:
        self._where = where
        self._cells = cells

    def __getitem__(self, name: str) -> str:
        return self._cells[name]

    def wrong(self, name: str, expected: str, remedy: str) -> TableError:
        got = self._cells[name] or "an empty cell"
        return TableError(f"{self._where}: {name}: expected {expected}, got {got}; {remedy}")

    def word(self, name: str, words: Sequence[str]) -> str:
        if self[name] not in words:
            raise self.wrong(name, f"one of {' '.join(words)}", "use one of these words")
        return self[name]

    def integer(self, name: str, low: int) -> int:
        text = self[name]
        if not (text.isascii() and text.isdigit() and len(text) < 19) or int(text) < low:
            raise self.wrong(name, f"an integer >= {low}", "write at most 18 digits, nothing else")
        return int(text)

    def number(self, name: str, low: float = 0.0) -> float | None:
        if not self[name]:
            return None
        try:
            value = float(self[name])
        except ValueError:
            value = math.nan
        if not math.isfinite(value) or value < low:
            raise self.wrong(name, f"a finite number >= {low:g}", "write it or leave it empty")
        return value

    def rect(self) -> Rect:
        bounds: list[Bound] = []
        for name, low in (("batch", 1), ("kv", 0)):
            start = self.integer(f"{name}_from", low)
            end = self.integer(f"{name}_to", low) if self[f"{name}_to"] else math.inf
            if end <= start:
                raise self.wrong(f"{name}_to", f"more than {start}", "the range is half-open")
            bounds += [start, end]
        return Rect(int(bounds[0]), bounds[1], int(bounds[2]), bounds[3])

    def splits(self, route: str) -> int | str:
        if route == "hk" and self["num_splits"] != "auto":
            return self.integer("num_splits", 1)
        wanted = "auto" if route == "hk" else "plan"
        return self.word("num_splits", (wanted,))


def _check_evidence(cells: _Cells, row: Row) -> None:
    if row.runner_up == row.route:
        raise cells.wrong("runner_up", "another route than the row's own", "or leave it empty")
    if row.us == 0 or row.runner_up_us == 0:
        zero = "us" if row.us == 0 else "runner_up_us"
        raise cells.wrong(zero, "a time above 0", "write the measured microseconds")
    if row.runner_up_us is not None and row.runner_up is None:
        raise cells.wrong("runner_up", "the route that took runner_up_us", "name it")
    for name in ("machine", "date", "source"):
        if row.us is not None and not cells[name]:
            raise cells.wrong(name, "where a time comes from", "a time needs machine, date, source")
    if row.date:
        try:
            date.fromisoformat(row.date)
        except ValueError as error:
            raise cells.wrong("date", "YYYY-MM-DD", "write an ISO date") from error
    gain = gain_pct(row.us, row.runner_up_us)
    if (gain is None) != (row.gain_pct is None):
        raise cells.wrong("gain_pct", "a gain exactly when both times are given", "complete it")
    if gain is not None and abs(gain - (row.gain_pct or 0.0)) > _GAIN_ROUNDING_PCT:
        raise cells.wrong("gain_pct", f"{gain:.2f}", "it is 100 * (1 - us / runner_up_us)")


def gain_pct(us: float | None, runner_up_us: float | None) -> float | None:
    """Return by how many percent `us` undercuts `runner_up_us`, or None without both."""
    if us is None or runner_up_us is None:
        return None
    return 100.0 * (1.0 - us / runner_up_us)
