# SPDX-License-Identifier: MIT
"""Chooses into how many pieces sparse decode cuts the keys of a token: host integers and a table.

`configs/tuned/<family>/sparse_mla_decode.csv` names the number where one was measured to beat that
of the rule, on as many compute units; elsewhere the rule answers. Every answer carries its reason.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache, partial
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
MAX_SPLITS_OF = MappingProxyType({"sm_90": 16})
"""Where the blocks of a token are a cluster, as many as it holds."""
MERGE_KEYS = 16
"""What writing and merging one more partial result costs, in keys of the same heads."""
MERGE_KEYS_OF = MappingProxyType({"sm_90": 4})
"""Measured on an H100: 16 pieces of 128 keys take 4 us less than 8 of 256, 0.03 us a key."""
ROUND_KEYS_OF = MappingProxyType({"sm_90": 256})
"""What it costs until the first keys of a round of blocks are there, in keys: 8 us on an H100."""
CLUSTERS_AT_ONCE = MappingProxyType({1: 132, 2: 66, 3: 39, 4: 30, 5: 22, 6: 17, 8: 15, 16: 7})
"""How many clusters of so many blocks an H100 of 132 multiprocessors runs at the same time."""
_H100_UNITS = 132


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
    splits = by_rule
    rule = f"sparse_splits, the rule, says {by_rule}"
    if key is None:
        return SparseRoute(
            num_splits=by_rule, reason=f"{rule}, since {table.label} has no rows near {want}"
        )
    row = table.find(key, max(shape.tokens, 1), shape.max_keys)
    source = f"{table.label}:{row.line}"
    instead = f" (nearest key of the table to {want})" if key != want else ""
    chosen = rule
    if isinstance(row.num_splits, int):
        chosen = f"{row.num_splits} measured; {rule}"
        if rounds_of(shape, row.num_splits) <= rounds_of(shape, by_rule):
            splits = row.num_splits
        else:
            chosen += f", as here {row.num_splits} do not run at once"
    return SparseRoute(
        num_splits=splits,
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


def clusters_at_once(blocks: int, compute_units: int) -> int:
    """How many clusters of blocks run at the same time on a GPU of sm_90.

    Args:
        blocks: of a cluster, 1..16.
        compute_units: multiprocessors of the GPU.
    """
    counted = next(count for size, count in CLUSTERS_AT_ONCE.items() if size >= blocks)
    return max(counted * compute_units // _H100_UNITS, 1)


def rounds_of(shape: SparseShape, splits: int) -> int:
    """How often the GPU's room for clusters is filled; 1 where a token's blocks are no cluster."""
    most = MAX_SPLITS_OF.get(shape.family)
    if most is None:
        return 1
    tiles = shape.tokens * -(-shape.nhead // GROUP_ROWS_OF[shape.family])
    return -(-tiles // clusters_at_once(min(splits, most), shape.compute_units))


def splits_by_rule(shape: SparseShape) -> int:
    """What `sparse_splits` says with the constants of the shape's family."""
    return sparse_splits(
        tokens=shape.tokens,
        nhead=shape.nhead,
        compute_units=shape.compute_units,
        max_keys=shape.max_keys,
        group_rows=GROUP_ROWS_OF.get(shape.family, GROUP_ROWS),
        merge_keys=MERGE_KEYS_OF.get(shape.family, MERGE_KEYS),
        round_keys=ROUND_KEYS_OF.get(shape.family, 0),
        clusters_of=MAX_SPLITS_OF.get(shape.family),
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
    round_keys: int = 0,
    clusters_of: int | None = None,
) -> int:
    """The number of pieces that each token's keys are cut into; see `cheapest_splits`.

    Args:
        tokens: rows of q.
        nhead: query heads.
        compute_units: workers.
        max_keys: keys of a token at most.
        group_rows: heads that one thread group works on together, at most.
        merge_keys: what one more piece costs, in keys.
        round_keys: what a round of blocks costs besides, in keys.
        clusters_of: blocks of a cluster at most, where a token's pieces are one.
    """
    at_once = partial(clusters_at_once, compute_units=compute_units) if clusters_of else None
    return cheapest_splits(
        tiles=tokens * -(-nhead // group_rows),
        compute_units=compute_units,
        keys=max_keys,
        most=clusters_of or MAX_SPLITS,
        merge_each=merge_keys,
        round_start=round_keys,
        at_once=at_once,
    )


def _check(shape: SparseShape) -> None:
    check_sizes(shape, shape.family, compute_units=1, tokens=0, nhead=1, max_keys=0)
    if shape.format not in FORMAT_NAMES:
        known = " ".join(FORMAT_NAMES)
        raise BadArgument(f"format: expected one of {known}, got {shape.format}; use one of these")
