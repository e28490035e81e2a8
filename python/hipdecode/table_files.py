# SPDX-License-Identifier: MIT
"""Reads the dispatch tables `configs/tuned/<family>/<op>.csv`; nothing else in the package does.

What keys and axes are, and what a row may choose, is the `Schema` of an operator.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from types import MappingProxyType
from typing import Generic

from .errors import TableError
from .registry import TILE_ROWS
from .tables import DTYPES, Bound, K, Rect, Row, Table, TableKey, gain_pct

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
# gain_pct is redundant on purpose, so that a row edited by hand on one side only is caught.
_GAIN_ROUNDING_PCT = 0.1


@dataclass(frozen=True, slots=True)
class Schema(Generic[K]):
    """What the tables of an operator are about.

    Attributes:
        read_key: the key of a line.
        key_columns: its columns.
        axes: the two axes of the plane in the names of columns.
        point: what the two numbers of a point are called elsewhere.
        routes: what a row may choose; for each the word that may stand for num_splits, if any,
            and whether a number may.
        tiled: those of which a row may choose the query rows of a tile, in a column of its own;
            without any there is no such column.
    """

    read_key: Callable[[Cells], K]
    key_columns: tuple[str, ...]
    axes: tuple[str, str]
    point: tuple[str, str]
    routes: Mapping[str, tuple[str | None, bool]]
    tiled: tuple[str, ...] = ()

    @property
    def choice_columns(self) -> tuple[str, ...]:
        """What a row chooses."""
        return ("route", "num_splits", "tile_rows") if self.tiled else ("route", "num_splits")

    @property
    def columns(self) -> tuple[str, ...]:
        """The header."""
        bounds = (f"{axis}_{end}" for axis in self.axes for end in ("from", "to"))
        return (*self.key_columns, *bounds, *self.choice_columns, *EVIDENCE_COLUMNS)

    def read_row(self, cells: Cells, line: int) -> Row[K]:
        """One line of a table.

        Raises:
            TableError: a cell breaks a rule.
        """
        route = cells.word("route", tuple(self.routes))
        row = Row(
            key=self.read_key(cells),
            rect=cells.rect(self.axes),
            route=route,
            num_splits=cells.splits(*self.routes[route]),
            tile_rows=cells.tile_rows(route in self.tiled) if self.tiled else "auto",
            us=cells.number("us"),
            runner_up=cells.word("runner_up", tuple(self.routes)) if cells["runner_up"] else None,
            runner_up_us=cells.number("runner_up_us"),
            gain_pct=cells.number("gain_pct", low=-math.inf),
            max_err=cells.number("max_err"),
            machine=cells["machine"],
            date=cells["date"],
            source=cells["source"],
            line=line,
        )
        _check_evidence(cells, row)
        return row


def read_table(path: Path, schema: Schema[K], *, label: str | None = None) -> Table[K]:
    """Read one table file.

    Args:
        path: a CSV file; lines that start with `#` are comments, the first other line is the
            header, and line numbers count all lines.
        schema: of the operator.
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
    return parse_table(text, schema, label=name)


def parse_table(text: str, schema: Schema[K], *, label: str) -> Table[K]:
    """Parse the text of a table file; see `read_table`.

    Raises:
        TableError: a line breaks a rule.
    """
    want = ",".join(schema.columns)
    content = [
        (number, line)
        for number, line in enumerate(text.splitlines(), start=1)
        if line.strip() and not line.startswith("#")
    ]
    if not content:
        raise TableError(f"{label}:1: expected a header, got an empty file; write {want}")
    number, header = content[0]
    if tuple(next(csv.reader([header]))) != schema.columns:
        raise TableError(f"{label}:{number}: expected the header {want}, got {header}; fix it")
    rows = (_parse_row(label, schema, number, line) for number, line in content[1:])
    return Table(label, rows, schema.point)


def _parse_row(label: str, schema: Schema[K], number: int, line: str) -> Row[K]:
    values, columns = next(csv.reader([line])), schema.columns
    if len(values) != len(columns):
        raise TableError(
            f"{label}:{number}: expected {len(columns)} cells, got {len(values)}; "
            "quote cells that hold commas"
        )
    named = dict(zip(columns, (v.strip() for v in values), strict=True))
    return schema.read_row(Cells(f"{label}:{number}", named), number)


class Cells:
    """The cells of one line, read by name; every complaint carries file and line."""

    def __init__(self, where: str, cells: dict[str, str]) -> None:
        """Of a place in a file, for complaints."""
        self._where = where
        self._cells = cells

    def __getitem__(self, name: str) -> str:
        """The text of a cell."""
        return self._cells[name]

    def wrong(self, name: str, expected: str, remedy: str) -> TableError:
        """The error that names a cell."""
        got = self._cells[name] or "an empty cell"
        return TableError(f"{self._where}: {name}: expected {expected}, got {got}; {remedy}")

    def word(self, name: str, words: Sequence[str]) -> str:
        """A cell that must hold one of some words."""
        if self[name] not in words:
            raise self.wrong(name, f"one of {' '.join(words)}", "use one of these words")
        return self[name]

    def integer(self, name: str, low: int) -> int:
        """A cell that must hold an integer of at least `low`."""
        text = self[name]
        if not (text.isascii() and text.isdigit() and len(text) < 19) or int(text) < low:
            raise self.wrong(name, f"an integer >= {low}", "write at most 18 digits, nothing else")
        return int(text)

    def number(self, name: str, low: float = 0.0) -> float | None:
        """A cell that holds a finite number or nothing."""
        if not self[name]:
            return None
        try:
            value = float(self[name])
        except ValueError:
            value = math.nan
        if not math.isfinite(value) or value < low:
            raise self.wrong(name, f"a finite number >= {low:g}", "write it or leave it empty")
        return value

    def rect(self, axes: tuple[str, str]) -> Rect:
        """The rectangle, by the names of its axes."""
        bounds: list[Bound] = []
        for name, low in zip(axes, (1, 0), strict=True):
            start = self.integer(f"{name}_from", low)
            end = self.integer(f"{name}_to", low) if self[f"{name}_to"] else math.inf
            if end <= start:
                raise self.wrong(f"{name}_to", f"more than {start}", "the range is half-open")
            bounds += [start, end]
        return Rect(int(bounds[0]), bounds[1], int(bounds[2]), bounds[3])

    def splits(self, word: str | None, number: bool) -> int | str:
        """The split count: a word, where there is one, or a number, where it may be one."""
        if word is None or (number and self["num_splits"] != word):
            return self.integer("num_splits", 1)
        return self.word("num_splits", (word,))

    def tile_rows(self, number: bool) -> int | str:
        """The query rows of a tile: `auto`, or a number where it may be one."""
        words = ("auto", *(map(str, TILE_ROWS) if number else ()))
        word = self.word("tile_rows", words)
        return word if word == "auto" else int(word)


def _dense_key(cells: Cells) -> TableKey:
    return TableKey(
        q_dtype=cells.word("q_dtype", DTYPES),
        kv_dtype=cells.word("kv_dtype", DTYPES),
        nhead=cells.integer("nhead", 1),
        q_len=cells.integer("q_len", 1),
        page_size=cells.integer("page_size", 1),
    )


MLA_DECODE = Schema(
    read_key=_dense_key,
    key_columns=("q_dtype", "kv_dtype", "nhead", "q_len", "page_size"),
    axes=("batch", "kv"),
    point=("batch", "kv_len"),
    routes=MappingProxyType({"hk": ("auto", True), "persistent": ("plan", False)}),
    tiled=("hk",),
)
"""Tables of dense decode."""


def _check_evidence(cells: Cells, row: Row[K]) -> None:
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
