# SPDX-License-Identifier: MIT
"""Dispatch tables, proven: what `configs/tuned/<family>/<op>.csv` holds.

A table says which route is fastest where. Its rows are grouped by key, for dense decode dtypes,
heads, query tokens and page size; inside a key each row is a half-open rectangle of the (batch,
kv_len) plane. `Table` refuses rows that do not cover batch >= 1, kv_len >= 0 exactly once, so the
order of rows never matters and no shape is left without an answer. `table_files` reads them.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Generic, Protocol, Self, TypeVar

from .errors import TableError

ROUTES = ("hk", "persistent")
DTYPES = ("bf16", "fp16", "fp8_e4m3fn", "fp8_e4m3fnuz")

Bound = int | float
"""An upper bound of a rectangle: an integer, or `math.inf` for an empty cell."""


class Key(Protocol):
    """What a group of rows is about: a frozen, ordered dataclass of words and integers."""

    def distance(self, have: Self, /) -> tuple[int, ...] | None:
        """How far the rows of another key are from this one's; None: they say nothing of it."""
        ...

    def cells(self) -> tuple[str | int, ...]:
        """What lines of files hold of it, in the order of the columns."""
        ...

    def __lt__(self, other: Self, /) -> bool:
        """Orders the groups of a file."""
        ...


K = TypeVar("K", bound=Key)


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

    def cells(self) -> tuple[str | int, ...]:
        """See `Key`."""
        return self.q_dtype, self.kv_dtype, self.nhead, self.q_len, self.page_size

    def distance(self, have: TableKey) -> tuple[int, ...] | None:
        """See `Key`. The order, most important first: the same dtypes; the same kv_dtype; kv
        elements of the same width (a key of another width moves twice or half the bytes, so it is
        never near). Then nhead, q_len and page_size in turn, see `size_distance`.
        """
        if have.kv_dtype == self.kv_dtype:
            rank = 0 if have.q_dtype == self.q_dtype else 1
        elif have.kv_dtype.startswith("fp8") == self.kv_dtype.startswith("fp8"):
            rank = 2
        else:
            return None
        pairs = [(getattr(have, n), getattr(self, n)) for n in ("nhead", "q_len", "page_size")]
        return rank, *(step for pair in pairs for step in size_distance(*pair))


def size_distance(have: int, want: int) -> tuple[int, int]:
    """Orders sizes by nearness: equal; else the smallest one above; else the largest below."""
    delta = have - want
    return 0 if delta == 0 else 1 if delta > 0 else 2, abs(delta)


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
class Row(Generic[K]):
    """One line of a table: where it holds, what it chooses, and the evidence for it.

    Times are p50 microseconds of one decode call, reduce included, at the point named in `source`.
    """

    key: K
    rect: Rect
    route: str
    num_splits: int | str
    tile_rows: int | str = "auto"
    us: float | None = None
    runner_up: str | None = None
    runner_up_us: float | None = None
    gain_pct: float | None = None
    max_err: float | None = None
    machine: str = ""
    date: str = ""
    source: str = ""
    line: int = 0

    @property
    def evidence(self) -> str:
        """Where the times come from: machine, date, source, as far as the row says."""
        return " ".join(word for word in (self.machine, self.date, self.source) if word)


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


class Table(Generic[K]):
    """The proven rows of one file.

    Args:
        label: how reasons and errors name the file, e.g. `configs/tuned/cpu/mla_decode.csv`.
        rows: all rows; each key must tile the plane.
        point: what the two numbers of a point are called.

    Raises:
        TableError: a key has a gap or an overlap; names file, line and the smallest such point.
    """

    def __init__(
        self, label: str, rows: Iterable[Row[K]], point: tuple[str, str] = ("batch", "kv_len")
    ) -> None:
        """Group the rows by key and prove each group."""
        groups: dict[K, list[Row[K]]] = {}
        for row in rows:
            groups.setdefault(row.key, []).append(row)
        for key, group in groups.items():
            flaw = find_flaw([row.rect for row in group])
            if flaw is not None:
                raise TableError(_flaw_message(label, key, group, flaw, point))
        self.label = label
        self.rows_by_key: Mapping[K, tuple[Row[K], ...]] = MappingProxyType(
            {key: tuple(group) for key, group in groups.items()}
        )

    def find(self, key: K, batch: int, kv_len: int) -> Row[K]:
        """Return the one row of `key` that holds (batch >= 1, kv_len >= 0 tokens).

        Raises:
            KeyError: the table has no such key; `nearest_key` finds one it has.
        """
        return next(row for row in self.rows_by_key[key] if row.rect.holds(batch, kv_len))

    def nearest_key(self, want: K) -> K | None:
        """Return the key whose rows stand in for `want`, or None when none is near enough."""
        near = [(far, key) for key in self.rows_by_key if (far := want.distance(key)) is not None]
        return min(near, default=(None, None))[1]


def _flaw_message(
    label: str, key: K, group: Sequence[Row[K]], flaw: Flaw, names: tuple[str, str]
) -> str:
    point = f"({names[0]} {flaw.batch}, {names[1]} {flaw.kv_len})"
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


def gain_pct(us: float | None, runner_up_us: float | None) -> float | None:
    """Return by how many percent `us` undercuts `runner_up_us`, or None without both."""
    if us is None or runner_up_us is None:
        return None
    return 100.0 * (1.0 - us / runner_up_us)
