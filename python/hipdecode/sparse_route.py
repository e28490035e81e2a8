# SPDX-License-Identifier: MIT
"""Chooses into how many pieces sparse decode cuts the keys of a token: host integers and a table.

`configs/tuned/<family>/sparse_mla_decode.csv` names the number where one was measured to beat that
of the rule, on as many compute units; elsewhere the rule answers. Every answer carries its reason.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType

from .dispatch import FAMILIES, check_sizes, table_of
from .errors import BadArgument
from .split_rule import cheapest_splits
from .table_files import Cells, Schema
from .tables import Table, size_distance

FORMAT_NAMES = ("v32", "v4")
GROUP_ROWS = 128
"""Heads that one thread group works on together, at most."""
GROUP_ROWS_OF = MappingProxyType({"sm_90": 64})
MAX_SPLITS = 32
MERGE_KEYS = 16
"""What writing and merging one more partial result costs, in keys of the same heads."""
MERGE_KEYS_OF = MappingProxyType({"sm_90": 27})
"""Measured on an H100, one token of 64 heads: 1.55 us a split, 0.0575 us a key."""


@dataclass(frozen=True, slots=True, order=True)
class SparseKey:
    """What a group of rows is about.

    Attributes:
        format: of the cache, `v32` or `v4`.
        nhead: query heads.
        compute_units: of the machine that was measured; its split counts fit no other.
    """

    format: str
    nhead: int
    compute_units: int

    def __str__(self) -> str:
        """Spell the key as the reasons and errors do."""
        return f"{self.format} nhead {self.nhead}, {self.compute_units} compute units"

    def cells(self) -> tuple[str | int, ...]:
        """See `tables.Key`."""
        return self.format, self.nhead, self.compute_units

    def distance(self, have: SparseKey) -> tuple[int, ...] | None:
        """See `tables.Key`: another format or another machine says nothing of this one."""
        if (have.format, have.compute_units) != (self.format, self.compute_units):
            return None
        return size_distance(have.nhead, self.nhead)


def _key(cells: Cells) -> SparseKey:
    return SparseKey(
        format=cells.word("format", FORMAT_NAMES),
        nhead=cells.integer("nhead", 1),
        compute_units=cells.integer("compute_units", 1),
    )


SPARSE_MLA_DECODE = Schema(
    read_key=_key,
    key_columns=("format", "nhead", "compute_units"),
    axes=("tokens", "keys"),
    point=("tokens", "keys"),
    routes=MappingProxyType({"rule": ("auto", False), "fixed": (None, True)}),
)
"""Tables of sparse decode."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SparseShape:
    """All that may influence the split count.

    Attributes:
        family: whose table answers.
        compute_units: of the device (threads on a CPU).
        format: of the cache, `v32` or `v4`.
        tokens: rows of q.
        nhead: query heads, 1..128.
        max_keys: keys of a token at most, as the host knows it.
        num_splits: the caller's own.
    """

    family: str
    compute_units: int
    format: str
    tokens: int
    nhead: int
    max_keys: int
    num_splits: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SparseRoute:
    """Into how many pieces, and why.

    Attributes:
        num_splits: pieces of a token's keys; one is one launch without partial results.
        reason: why, in words.
        source: `file:line` of the row that decided; empty when the rule did without one.
        us: p50 at the row's evidence point; None without evidence.
        runner_up: `rule` or `fixed`, whichever the row did not choose.
        runner_up_us: its p50.
        evidence: where the times come from: machine, date, source.
    """

    num_splits: int
    reason: str
    source: str = ""
    us: float | None = None
    runner_up: str | None = None
    runner_up_us: float | None = None
    evidence: str = ""


@lru_cache(maxsize=8192)
def route_sparse_mla_decode(shape: SparseShape) -> SparseRoute:
    """Choose the split count of one call.

    Args:
        shape: host integers; equal shapes always give equal answers.

    Returns:
        The answer. First match wins: the caller's number; the table; the rule.

    Raises:
        BadArgument: a field makes no sense for any kernel.
        TableError: the family's table is broken.
    """
    _check(shape)
    if shape.num_splits is not None:
        return SparseRoute(num_splits=shape.num_splits, reason="split count given by the caller")
    table = load_sparse_table(shape.family)
    want = SparseKey(shape.format, shape.nhead, shape.compute_units)
    key = table.nearest_key(want)
    by_rule = splits_by_rule(shape)
    rule = f"sparse_splits, the rule, says {by_rule}"
    if key is None:
        return SparseRoute(
            num_splits=by_rule, reason=f"{rule}, since {table.label} has no rows near {want}"
        )
    row = table.find(key, max(shape.tokens, 1), shape.max_keys)
    source = f"{table.label}:{row.line}"
    instead = f" (nearest key of the table to {want})" if key != want else ""
    chosen = rule if row.route == "rule" else f"{row.num_splits} measured; {rule}"
    return SparseRoute(
        num_splits=row.num_splits if isinstance(row.num_splits, int) else by_rule,
        reason=f"{source}: {key}{instead}: {chosen}",
        source=source,
        us=row.us,
        runner_up=row.runner_up,
        runner_up_us=row.runner_up_us,
        evidence=row.evidence,
    )


@lru_cache(maxsize=len(FAMILIES))
def load_sparse_table(family: str) -> Table[SparseKey]:
    """Read the table of a family, once; see `dispatch.load_table`.

    Raises:
        TableError: the file is missing or broken.
    """
    return table_of(family, "sparse_mla_decode", SPARSE_MLA_DECODE)


def clear_sparse_routes() -> None:
    """Forget answers and tables, so that the next call reads the tables again."""
    route_sparse_mla_decode.cache_clear()
    load_sparse_table.cache_clear()


def splits_by_rule(shape: SparseShape) -> int:
    """What `sparse_splits` says with the constants of the shape's family."""
    return sparse_splits(
        tokens=shape.tokens,
        nhead=shape.nhead,
        compute_units=shape.compute_units,
        max_keys=shape.max_keys,
        group_rows=GROUP_ROWS_OF.get(shape.family, GROUP_ROWS),
        merge_keys=MERGE_KEYS_OF.get(shape.family, MERGE_KEYS),
    )


@lru_cache(maxsize=8192)
def sparse_splits(
    *,
    tokens: int,
    nhead: int,
    compute_units: int,
    max_keys: int,
    group_rows: int = GROUP_ROWS,
    merge_keys: int = MERGE_KEYS,
) -> int:
    """The number of pieces that each token's keys are cut into; see `cheapest_splits`.

    Args:
        tokens: rows of q.
        nhead: query heads.
        compute_units: workers.
        max_keys: keys of a token at most.
        group_rows: heads that one thread group works on together, at most.
        merge_keys: what one more piece costs, in keys.
    """
    return cheapest_splits(
        tiles=tokens * -(-nhead // group_rows),
        compute_units=compute_units,
        keys=max_keys,
        most=MAX_SPLITS,
        merge_each=merge_keys,
    )


def _check(shape: SparseShape) -> None:
    check_sizes(shape, shape.family, compute_units=1, tokens=0, nhead=1, max_keys=0)
    if shape.format not in FORMAT_NAMES:
        known = " ".join(FORMAT_NAMES)
        raise BadArgument(f"format: expected one of {known}, got {shape.format}; use one of these")
