# SPDX-License-Identifier: MIT
"""Chooses the kernel and the split count of a paged attention call: host integers and a table.

Two kernels are made of one source: `mtp` knows every offset within a block (16 tokens, shuffled
fp8), `general` takes any cache. A call reaches `mtp` through the guards of `GATE`, in order; a row
of `configs/tuned/<family>/paged_attention.csv` may answer for those that do not limit the kernel.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType

from .dispatch import FAMILIES, check_sizes, table_of
from .errors import BadArgument
from .paged_cost import cheapest_cut
from .registry import wanted_rows
from .split_rule import cheapest_splits
from .table_files import Cells, Schema
from .tables import DTYPES, Row, Table

FP8_NAMES = ("fp8_e4m3fn", "fp8_e4m3fnuz")
SCALE_FORMS = ("none", "tensor", "token")
MAX_SPLITS = 64
MERGE_TOKENS = 16
"""What writing and merging one more partial result costs, in keys of the same rows."""
ESTIMATED = frozenset({"sm_90"})
"""Families whose calls are cut as `paged_cost` estimates; elsewhere as `paged_splits` has it."""


@dataclass(frozen=True, slots=True)
class Guard:
    """One condition of the gate.

    Attributes:
        name: of the condition, and of the field of PagedShape that it looks at.
        allowed: the values that pass.
        structural: the `mtp` kernel or the entry could not serve others; no table row overrules it.
    """

    name: str
    allowed: tuple[object, ...]
    structural: bool = True

    def failure(self, shape: PagedShape) -> str:
        """What was expected and what came; empty where the guard holds."""
        got = getattr(shape, self.name)
        if got in self.allowed:
            return ""
        return f"{self.name}: expected {' or '.join(map(str, self.allowed))}, got {got}"


GATE = (
    Guard("mtp", (2, 3, 4), structural=False),
    Guard("gqa", (8, 16), structural=False),
    Guard("block_size", (16,)),
    Guard("head_dim", (128,)),
    Guard("value_dims", (5,)),
    Guard("kv_dtype", FP8_NAMES),
    Guard("q_scale", (False,)),
    Guard("out_scale", (False,)),
    Guard("uniform", (True,)),
    Guard("q_dtype", ("bf16",)),
    Guard("dense", (True,)),
)
"""Multi-token decode as AITER routes it (ROCm/aiter#3302), and what its kernel relies on."""


@dataclass(frozen=True, slots=True, order=True)
class PagedKey:
    """What a group of rows is about; a call finds its own key or none."""

    kv_dtype: str
    head_dim: int
    gqa: int
    mtp: int
    nhead_kv: int
    compute_units: int

    def __str__(self) -> str:
        """Spell the key as the reasons and errors do."""
        return (
            f"{self.kv_dtype} head_dim {self.head_dim} gqa {self.gqa} mtp {self.mtp} nhead_kv "
            f"{self.nhead_kv}, {self.compute_units} compute units"
        )

    def cells(self) -> tuple[str | int, ...]:
        """See `tables.Key`."""
        return (
            self.kv_dtype, self.head_dim, self.gqa, self.mtp, self.nhead_kv, self.compute_units,
        )  # fmt: skip

    def distance(self, have: PagedKey) -> tuple[int, ...] | None:
        """See `tables.Key`: a row speaks for its own key alone."""
        return (0,) if have == self else None


def _key(cells: Cells) -> PagedKey:
    numbers = {name: cells.integer(name, 1) for name in _KEY_COLUMNS[1:]}
    return PagedKey(kv_dtype=cells.word("kv_dtype", DTYPES), **numbers)


_KEY_COLUMNS = ("kv_dtype", "head_dim", "gqa", "mtp", "nhead_kv", "compute_units")
PAGED_ATTENTION = Schema(
    read_key=_key,
    key_columns=_KEY_COLUMNS,
    axes=("batch", "kv"),
    point=("batch", "kv_len"),
    routes=MappingProxyType({"mtp": ("auto", True), "general": ("auto", True)}),
)
"""Tables of paged attention."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PagedShape:
    """All that may influence a route, host integers and words only.

    Attributes:
        family: whose table answers.
        compute_units: of the device (threads on a CPU).
        batch: requests, padding included.
        nhead_kv: kv heads.
        gqa: query heads of a kv head.
        mtp: query tokens of a request, at most.
        kv_len: tokens of a request at most, as the host knows it: a capacity.
        q_dtype: dtype name of q.
        kv_dtype: dtype name of the cache.
        head_dim: columns of a head.
        block_size: tokens of a block.
        value_dims: 5 for shuffled values, 4 for [.., head_dim, block_size].
        scales: `none`, `tensor` or `token`.
        q_scale: the caller names a scale for queries.
        out_scale: the output is to be fp8.
        uniform: rows of q are batch x mtp.
        dense: blocks have no gaps inside.
        num_splits: the caller's own split count.
    """

    family: str
    compute_units: int
    batch: int
    nhead_kv: int
    gqa: int
    mtp: int
    kv_len: int
    q_dtype: str = "bf16"
    kv_dtype: str = "fp8_e4m3fn"
    head_dim: int = 128
    block_size: int = 16
    value_dims: int = 5
    scales: str = "token"
    q_scale: bool = False
    out_scale: bool = False
    uniform: bool = True
    dense: bool = True
    num_splits: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PagedRoute:
    """Which kernel, into how many pieces, and why.

    Attributes:
        route: `mtp` or `general`.
        kernel: the kernel's name; its rows are those that the call asks for.
        num_splits: pieces of a request's keys.
        reason: why this kernel, in words.
        table: what the table says, or that it has no row; empty where it was not asked.
        splits_reason: why so many pieces.
        source: `file:line` of the row that decided; empty when the gate did.
        us: p50 at the row's evidence point; None without evidence.
        runner_up: the other route, where it was measured.
        runner_up_us: its p50.
        evidence: where the times come from: machine, date, source.
    """

    route: str
    kernel: str
    num_splits: int
    reason: str
    table: str = ""
    splits_reason: str = ""
    source: str = ""
    us: float | None = None
    runner_up: str | None = None
    runner_up_us: float | None = None
    evidence: str = ""

    @property
    def tile_rows(self) -> int:
        """Query rows of a tile that the call asks for."""
        return int(self.kernel.rpartition("-")[2])


@lru_cache(maxsize=8192)
def route_paged_attention(shape: PagedShape) -> PagedRoute:
    """Choose the kernel of one call.

    Args:
        shape: host integers; equal shapes always give equal answers.

    Returns:
        The answer. First match wins: a structural guard that fails (general); the table's row for
        exactly this key; the other guards.

    Raises:
        BadArgument: a field makes no sense for any kernel.
        TableError: the family's table is broken.
    """
    _check(shape)
    structural = _failures(shape, structural=True)
    if structural:
        return _answer(shape, "general", structural)
    table = load_paged_table(shape.family)
    want = paged_key(shape)
    if want in table.rows_by_key:
        row = table.find(want, max(shape.batch, 1), shape.kv_len)
        return _answer(shape, row.route, "the table has a row", row=row, table=table.label)
    others = _failures(shape, structural=False)
    missed = f"{table.label}: no row for {want}"
    return _answer(
        shape, "general" if others else "mtp", others or "gate: every guard holds", table=missed
    )


def _failures(shape: PagedShape, *, structural: bool) -> str:
    """The guards of a kind that do not hold; empty where all do."""
    guards = (guard for guard in GATE if guard.structural == structural)
    texts = [text for guard in guards if (text := guard.failure(shape))]
    return f"gate: {'; '.join(texts)}" if texts else ""


def _answer(
    shape: PagedShape,
    route: str,
    reason: str,
    *,
    row: Row[PagedKey] | None = None,
    table: str = "",
) -> PagedRoute:
    splits, why = shape.num_splits, "given by the caller"
    if splits is None and row is not None and isinstance(row.num_splits, int):
        splits, why = row.num_splits, "measured"
    rows, splits, rule = _cut(shape, splits)
    scales = "token" if shape.scales == "token" else "tensor"
    layout = "block16" if route == "mtp" else "any"
    kernel = f"{shape.head_dim}-{shape.q_dtype}-{shape.kv_dtype}-{scales}-{layout}-{rows}"
    return PagedRoute(
        route=route,
        kernel=f"paged_attention/{kernel}",
        num_splits=splits,
        reason=reason,
        table=f"{table}:{row.line}: {row.key}" if row else table,
        splits_reason=rule or why,
        source=f"{table}:{row.line}" if row else "",
        us=row.us if row else None,
        runner_up=row.runner_up if row else None,
        runner_up_us=row.runner_up_us if row else None,
        evidence=row.evidence if row else "",
    )


def _cut(shape: PagedShape, splits: int | None) -> tuple[int, int, str]:
    """Query rows of a tile, pieces of the keys, and by what rule; `splits`: already chosen."""
    packed, heads = shape.mtp * shape.gqa, shape.batch * shape.nhead_kv
    if shape.family in ESTIMATED:
        cut = cheapest_cut(
            heads=heads,
            packed=packed,
            kv_len=shape.kv_len,
            head_dim=shape.head_dim,
            element_bytes=1 if shape.kv_dtype in FP8_NAMES else 2,
            compute_units=shape.compute_units,
            most=MAX_SPLITS,
            splits=splits,
        )
        return cut.rows, cut.splits, "" if splits else "by the estimates of paged_cost"
    rows = wanted_rows(shape.family, packed)
    if splits is not None:
        return rows, splits, ""
    tiles = heads * -(-packed // rows)
    splits = paged_splits(tiles=tiles, compute_units=shape.compute_units, kv_len=shape.kv_len)
    return rows, splits, "by the rule of paged_splits"


@lru_cache(maxsize=8192)
def paged_splits(*, tiles: int, compute_units: int, kv_len: int) -> int:
    """The number of pieces that each request's keys are cut into; see `cheapest_splits`.

    Args:
        tiles: blocks of an unsplit call: requests x kv heads x tiles of packed rows.
        compute_units: workers.
        kv_len: tokens of a request at most.
    """
    return cheapest_splits(
        tiles=tiles,
        compute_units=compute_units,
        keys=kv_len,
        most=MAX_SPLITS,
        merge_each=MERGE_TOKENS,
    )


@lru_cache(maxsize=len(FAMILIES))
def load_paged_table(family: str) -> Table[PagedKey]:
    """Read the table of a family, once; see `dispatch.load_table`.

    Raises:
        TableError: the file is missing or broken.
    """
    return table_of(family, "paged_attention", PAGED_ATTENTION)


def clear_paged_routes() -> None:
    """Forget answers and tables, so that the next call reads the tables again."""
    route_paged_attention.cache_clear()
    load_paged_table.cache_clear()


def paged_key(shape: PagedShape) -> PagedKey:
    """The key under which a table would hold a shape."""
    return PagedKey(
        shape.kv_dtype, shape.head_dim, shape.gqa, shape.mtp, shape.nhead_kv, shape.compute_units
    )


def _check(shape: PagedShape) -> None:
    check_sizes(shape, shape.family, compute_units=1, batch=0, nhead_kv=1, gqa=1, mtp=1, kv_len=0)
    if shape.scales not in SCALE_FORMS:
        known = " ".join(SCALE_FORMS)
        raise BadArgument(f"scales: expected one of {known}, got {shape.scales}")
