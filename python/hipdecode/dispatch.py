# SPDX-License-Identifier: MIT
"""Chooses the route of an MLA decode call: a pure function of host integers and a table.

The answer follows from `DecodeShape` and `configs/tuned/<family>/mla_decode.csv` alone; tensors are
never looked at and no environment variable changes it (the `HIPDECODE_TABLES` setting names another
folder of tables, read once). Every answer carries its reason.
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from functools import cache, lru_cache

from . import paths, settings
from .errors import BadArgument
from .hk_splits import GROUP_ROWS, auto_splits, pieces_at_once
from .registry import LEAST_ROWS, TILE_ROWS
from .support import check_supported
from .table_files import MLA_DECODE, Schema, read_table
from .tables import ROUTES, K, Row, Table, TableKey, gain_pct

logger = logging.getLogger("hipdecode.dispatch")

FAMILIES = ("cpu", "gfx950", "gfx942", "sm_90")
MAX_SPLITS = 1024
INVARIANT_SPLITS = 8
FILL_GROUPS = 2
"""Groups per compute unit from which the occupancy rule trusts hk to even out ragged contexts."""
NOISE_PCT = 3.0
RAGGED_TOKENS = {"sm_90": 512}
"""By how many tokens the longest piece of hk may exceed the average one: beyond that the balance of
a plan is worth its launches. Measured on an H100 on batches of two serving traces."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodeShape:
    """All that may influence a route, host integers and words only.

    Attributes:
        family: whose table answers: `cpu`, `gfx950`, `gfx942` or `sm_90`.
        compute_units: compute units of the device (threads on a CPU).
        batch: requests, padding included.
        nhead: query heads of this rank, 1..128.
        q_len: query tokens per request, 1..16.
        kv_len: average context per request in tokens, rounded up; None when the host knows only
            a capacity, as under a captured graph.
        max_kv_len: longest context, where the host knows it; None: all are taken to be alike.
        q_dtype: dtype name of q.
        kv_dtype: dtype name of the KV cache.
        page_size: tokens per page, a power of two.
        head_dim_qk: columns of q and of the cache.
        head_dim_v: leading columns of the cache that are V.
        batch_invariant: the result of a request must not depend on its neighbours.
        route: the caller's own choice; None lets the table choose.
        num_splits: the caller's own split count; asking for one asks for `hk`.
        tile_rows: the caller's own query rows of a tile; asking for them asks for `hk`.
    """

    family: str
    compute_units: int
    batch: int
    nhead: int
    q_len: int
    kv_len: int | None
    q_dtype: str
    kv_dtype: str
    page_size: int = 1
    head_dim_qk: int = 576
    head_dim_v: int = 512
    batch_invariant: bool = False
    route: str | None = None
    num_splits: int | None = None
    tile_rows: int | None = None
    max_kv_len: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """What to launch and why.

    Attributes:
        route: `hk` or `persistent`; the kernel module is `mla_decode_` + route.
        num_splits: KV pieces per request (hk); None where the plan decides (persistent).
        tile_rows: query rows of a tile that a table or the caller asks for (hk); None: the fewest
            that hold a request's, or the most that the target has.
        padded_nhead: nhead rounded up to whole tiles; metadata sizes use it.
        packing: how heads and query tokens fill tiles, in words.
        reason: why this route, in words.
        source: `file:line` of the row that decided; empty when a rule did.
        us: p50 of this route at the row's evidence point; None without evidence.
        runner_up: the route that came second there.
        runner_up_us: its p50.
        evidence: where the times come from: machine, date, source.
    """

    route: str
    num_splits: int | None
    tile_rows: int | None
    padded_nhead: int
    packing: str
    reason: str
    source: str = ""
    us: float | None = None
    runner_up: str | None = None
    runner_up_us: float | None = None
    evidence: str = ""


@lru_cache(maxsize=8192)
def route_mla_decode(shape: DecodeShape) -> Route:
    """Choose the route of one decode call.

    Args:
        shape: host integers; equal shapes always give equal routes.

    Returns:
        The route. First match wins: the caller's choice; batch invariance (hk, constant splits);
        one compute unit (hk, unsplit); an unknown context (persistent); the table; occupancy. The
        last two give way to persistent where contexts differ by more than RAGGED_TOKENS a piece.

    Raises:
        BadArgument: a field makes no sense for any kernel.
        UnsupportedShape: no kernel for this shape; lists required, supported and missing.
        TableError: the family's table is broken.
    """
    _connect_log()
    _check_arguments(shape)
    check_supported(
        nhead=shape.nhead,
        q_len=shape.q_len,
        dtypes=(shape.q_dtype, shape.kv_dtype),
        head_dims=(shape.head_dim_qk, shape.head_dim_v),
        page_size=shape.page_size,
    )
    if any(asked is not None for asked in (shape.route, shape.num_splits, shape.tile_rows)):
        return _asked(shape)
    if shape.batch_invariant:
        return _answer(
            shape,
            "hk",
            f"batch_invariant: hk, always {INVARIANT_SPLITS} splits: bits depend on own data only",
            splits=INVARIANT_SPLITS,
        )
    if shape.compute_units == 1:
        return _answer(shape, "hk", "one compute unit: nothing to balance or to split", splits=1)
    if shape.kv_len is None:
        return _answer(
            shape,
            "persistent",
            "the context is not known to the host (a captured graph knows only the capacity of "
            "kv_indices): persistent follows its plan at any length",
        )
    table = load_table(shape.family)
    row = _nearest_row(shape, table, shape.kv_len)
    route = _by_row(shape, table, row) if row else _by_occupancy(shape, table.label)
    return _unless_ragged(shape, route, shape.kv_len)


def clear_route_cache() -> None:
    """Forget routes and tables, so that the next call reads the tables again."""
    route_mla_decode.cache_clear()
    load_table.cache_clear()


@lru_cache(maxsize=len(FAMILIES))
def load_table(family: str) -> Table[TableKey]:
    """Read the table of a family, once.

    Args:
        family: one of `FAMILIES`.

    Returns:
        `mla_decode.csv` of the family's folder, shipped or under HIPDECODE_TABLES.

    Raises:
        TableError: the file is missing or broken.
    """
    return table_of(family, "mla_decode", MLA_DECODE)


def table_of(family: str, op: str, schema: Schema[K]) -> Table[K]:
    """Read the table of a family and an operator."""
    name = f"{family}/{op}.csv"
    folder = paths.tables_dir()
    shipped = folder == paths.configs_dir() / "tuned"
    label = f"configs/tuned/{name}" if shipped else None
    return read_table(folder / name, schema, label=label)


def _asked(shape: DecodeShape) -> Route:
    route = shape.route or "hk"
    if route == "persistent":
        return _answer(shape, route, "route given by the caller")
    rows = shape.tile_rows
    if shape.num_splits is not None:
        reason = f"route or split count given by the caller ({shape.num_splits} splits)"
        return _answer(shape, route, reason, splits=shape.num_splits, tile_rows=rows)
    if shape.batch_invariant or shape.kv_len is None:
        why = "batch_invariant" if shape.batch_invariant else "context not known to the host"
        reason = f"route given by the caller; {why}: always {INVARIANT_SPLITS} splits"
        return _answer(shape, route, reason, splits=INVARIANT_SPLITS, tile_rows=rows)
    if rows is not None:  # a row's splits are for its own tiles
        splits, reason = _hk_splits(shape, None), "rows of a tile given by the caller"
        return _answer(shape, route, reason, splits=splits, tile_rows=rows)
    row = _nearest_row(shape, load_table(shape.family), shape.kv_len)
    splits = _hk_splits(shape, row)
    return _answer(
        shape, route, "route given by the caller", splits=splits, tile_rows=_hk_rows(row)
    )


def _nearest_row(shape: DecodeShape, table: Table[TableKey], kv_len: int) -> Row[TableKey] | None:
    key = table.nearest_key(table_key(shape))
    return table.find(key, shape.batch, kv_len) if key else None


def _hk_splits(shape: DecodeShape, row: Row[TableKey] | None) -> int:
    """The number that the row names, else that of the rule.

    Pieces that merge together must run at once: there a row's number, measured at the row's own
    batches, is cut to what does for this batch.
    """
    rows = _hk_rows(row) or shape.tile_rows
    sizes = {name: getattr(shape, name) for name in ("batch", "nhead", "q_len", "compute_units")}
    if row and isinstance(row.num_splits, int):
        if shape.family != "sm_90":
            return row.num_splits
        return max(1, min(row.num_splits, pieces_at_once(**sizes, tile_rows=rows)))
    return auto_splits(family=shape.family, **sizes, kv_len=shape.kv_len or 0, tile_rows=rows)


def _hk_rows(row: Row[TableKey] | None) -> int | None:
    """The query rows of a tile that the row names."""
    return row.tile_rows if row and isinstance(row.tile_rows, int) else None


def _by_row(shape: DecodeShape, table: Table[TableKey], row: Row[TableKey]) -> Route:
    source = f"{table.label}:{row.line}"
    rect = row.rect
    where = (
        f"batch {_span(rect.batch_from, rect.batch_to)}, kv_len {_span(rect.kv_from, rect.kv_to)}"
    )
    reason = f"{source}: {row.key}, {where}"
    if row.key != table_key(shape):
        reason += f" (nearest key of the table to {table_key(shape)})"
    gain = gain_pct(row.us, row.runner_up_us)
    if gain is not None and gain < NOISE_PCT:
        reason += f"; its gain of {gain:.1f} % is within {NOISE_PCT:.0f} %, taken as noise"
    splits = _hk_splits(shape, row) if row.route == "hk" else None
    if splits is not None and isinstance(row.num_splits, int) and splits < row.num_splits:
        reason += f"; {splits} of its {row.num_splits} splits, as many as run at once"
    rows = _hk_rows(row)
    if rows is not None:
        reason += f"; tiles of {rows} query rows"
    evidence = row.evidence
    if evidence and row.key != table_key(shape):
        evidence += f", measured for {row.key}"
    return _answer(
        shape,
        row.route,
        reason,
        splits=splits,
        tile_rows=rows,
        row=row,
        source=source,
        evidence=evidence,
    )


def _by_occupancy(shape: DecodeShape, label: str) -> Route:
    groups = shape.batch * _ceil_div(shape.nhead * shape.q_len, GROUP_ROWS)
    fills = groups >= FILL_GROUPS * shape.compute_units
    reason = (
        f"occupancy rule, since {label} has no rows near {table_key(shape)}: {groups} groups of "
        f"{GROUP_ROWS} rows {'fill' if fills else 'do not fill'} {shape.compute_units} compute "
        f"units {FILL_GROUPS} times, so contexts {'need not' if fills else 'must'} be split"
    )
    if not fills:
        return _answer(shape, "persistent", reason)
    return _answer(shape, "hk", reason, splits=_hk_splits(shape, None))


def _unless_ragged(shape: DecodeShape, route: Route, kv_len: int) -> Route:
    """hk's time is that of its longest piece, the table's that of equal ones."""
    allowed = RAGGED_TOKENS.get(shape.family)
    if route.route != "hk" or shape.max_kv_len is None or allowed is None:
        return route
    excess = (shape.max_kv_len - kv_len) // (route.num_splits or 1)
    if excess <= allowed:
        return route
    reason = (
        f"ragged: the longest of hk's pieces has {excess} tokens more than the average one, over "
        f"{allowed}; alike they would take hk ({route.reason})"
    )
    return _answer(shape, "persistent", reason)


def _answer(
    shape: DecodeShape,
    route: str,
    reason: str,
    *,
    splits: int | None = None,
    tile_rows: int | None = None,
    row: Row[TableKey] | None = None,
    source: str = "",
    evidence: str = "",
) -> Route:
    return Route(
        route=route,
        num_splits=splits,
        tile_rows=tile_rows,
        padded_nhead=_ceil_div(shape.nhead, LEAST_ROWS) * LEAST_ROWS,
        packing=_packing(shape.nhead, shape.q_len),
        reason=reason,
        source=source,
        us=row.us if row else None,
        runner_up=row.runner_up if row else None,
        runner_up_us=row.runner_up_us if row else None,
        evidence=evidence,
    )


def _packing(nhead: int, q_len: int) -> str:
    rows = nhead * q_len
    tiles = _ceil_div(rows, LEAST_ROWS)
    masked = tiles * LEAST_ROWS - rows or "none"
    word = "tile" if tiles == 1 else "tiles"
    return f"rows = nhead {nhead} x q_len {q_len} = {rows} -> {tiles} {word} of 16, {masked} masked"


def table_key(shape: DecodeShape) -> TableKey:
    """The key under which a table would hold a shape."""
    return TableKey(shape.q_dtype, shape.kv_dtype, shape.nhead, shape.q_len, shape.page_size)


def _span(start: int, end: int | float) -> str:
    return f"{start}.." if end == math.inf else f"{start}..{int(end) - 1}"


def _ceil_div(a: int, b: int) -> int:
    return -(-a // b)


def check_sizes(shape: object, family: str, **least: int) -> None:
    """Requires a known family, and fields of a shape that are as large as is said of them.

    Raises:
        BadArgument: one is not.
    """
    if family not in FAMILIES:
        known = " ".join(FAMILIES)
        raise BadArgument(f"family: expected one of {known}, got {family}; use one of these")
    for name, bound in least.items():
        if (got := getattr(shape, name)) < bound:
            raise BadArgument(f"{name}: expected at least {bound}, got {got}; pass a larger one")


def _check_arguments(shape: DecodeShape) -> None:
    check_sizes(shape, shape.family, compute_units=1, batch=1, nhead=1, q_len=1)
    if shape.max_kv_len is not None and shape.max_kv_len < (shape.kv_len or 0):
        raise BadArgument(
            f"max_kv_len: expected kv_len {shape.kv_len} or more, got {shape.max_kv_len}"
        )
    if shape.kv_len is not None and shape.kv_len < 0:
        raise BadArgument(f"kv_len: expected tokens >= 0 or None, got {shape.kv_len}; pass either")
    if shape.route is not None and shape.route not in ROUTES:
        known = " ".join(ROUTES)
        raise BadArgument(f"route: expected one of {known}, got {shape.route}; or leave it out")
    if shape.num_splits is not None and not 1 <= shape.num_splits <= MAX_SPLITS:
        raise BadArgument(f"num_splits: expected 1 to {MAX_SPLITS}, got {shape.num_splits}")
    rows = shape.tile_rows
    if rows is not None and not (isinstance(rows, int) and rows in TILE_ROWS):
        raise BadArgument(f"tile_rows: expected one of {TILE_ROWS}, got {rows}; or leave it out")
    given = {name: getattr(shape, name) for name in ("num_splits", "tile_rows")}
    asked = [f"{name}={value}" for name, value in given.items() if value is not None]
    if shape.route == "persistent" and (shape.batch_invariant or asked):
        got = "batch_invariant" if shape.batch_invariant else " ".join(asked)
        raise BadArgument(
            f"route: expected hk with {got}, got persistent, whose splits follow the plan of the "
            "whole batch; leave route out"
        )


@cache
def _connect_log() -> None:
    """HIPDECODE_LOG=1 shows the shape log even where the application set up no logging."""
    if settings.current().log >= settings.LOG_ROUTES:
        logger.setLevel(logging.INFO)
        if not logger.hasHandlers():
            logger.addHandler(logging.StreamHandler())
