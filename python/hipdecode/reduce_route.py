# SPDX-License-Identifier: MIT
"""The route `reduce`: split decode whose pieces a kernel of their own merges, chosen by a table.

`configs/tuned/<family>/mla_decode_reduce.csv` says for which steps it is taken and how the merge
goes about it; the number of pieces follows from the batch and the machine alone. Its columns are
AITER's, and a row holds for one step or for any number of tokens: no rectangles as elsewhere.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from functools import lru_cache
from pathlib import Path

from . import paths
from .dispatch import FAMILIES, DecodeShape, Route, logger, route_mla_decode
from .errors import BadArgument, TableError
from .support import check_supported

SPLIT_COUNTS = (1, 2, 4, 8, 16)
"""Pieces that a context can be cut into for `mla_decode_reduce`."""
BLOCK_TOKENS = 64
"""Tokens of a block: pieces are whole blocks, so that a context has at most one piece a block."""
ANY_TOKEN = 0
"""In the column `token`: the row holds for every number of tokens that has no row of its own."""
_KERNEL = re.compile(r"mla_reduce_BATCH([1248])(?:_VEC([124]))?")


@dataclass(frozen=True, slots=True)
class ReduceRow:
    """One line of a table: the step it is about, then how its partials are merged.

    Attributes:
        cu_num: compute units of the device.
        token: query tokens of the step; 0: any.
        num_heads: query heads.
        kv_lora_rank: columns of V in the cache.
        v_head_dim: columns of the output.
        num_kv_splits: pieces of each context.
        reduce_kernel: `mla_reduce_BATCH<batch>`, with `_VEC<vec>` where vec is not 1.
    """

    cu_num: int
    token: int
    num_heads: int
    kv_lora_rank: int
    v_head_dim: int
    num_kv_splits: int
    reduce_kernel: str
    line: int = 0

    @property
    def batch_and_vec(self) -> tuple[int, int]:
        """Partials on their way at a time; columns that a lane reads as one."""
        found = _KERNEL.fullmatch(self.reduce_kernel)
        if found is None:
            raise TableError(f"reduce_kernel: expected mla_reduce_BATCH4, got {self.reduce_kernel}")
        return int(found[1]), int(found[2] or 1)


_COLUMNS = tuple(field.name for field in fields(ReduceRow) if field.name != "line")


@dataclass(frozen=True, slots=True)
class ReduceTable:
    """The rows of one file.

    Attributes:
        label: how reasons and errors name the file.
        rows: by all columns but the last.
    """

    label: str
    rows: dict[tuple[int, ...], ReduceRow]

    def find(
        self,
        cu_num: int,
        token: int,
        num_heads: int,
        kv_lora_rank: int,
        v_head_dim: int,
        num_kv_splits: int,
    ) -> ReduceRow | None:
        """The row of exactly this step, else that of any number of tokens, else None."""
        rest = (num_heads, kv_lora_rank, v_head_dim, num_kv_splits)
        exact = self.rows.get((cu_num, token, *rest))
        return exact or self.rows.get((cu_num, ANY_TOKEN, *rest))


def adaptive_splits(batch: int, compute_units: int, most: int = SPLIT_COUNTS[-1]) -> int:
    """The number of pieces whose blocks fill the rounds of a machine best; of equals the least.

    Args:
        batch: requests of the step, 1 or more.
        compute_units: blocks that run at once.
        most: pieces at most, 1 or more.
    """

    def occupancy(pieces: int) -> float:
        blocks = batch * pieces
        return blocks / (-(-blocks // compute_units) * compute_units)

    return max((n for n in SPLIT_COUNTS if n <= most), key=occupancy)


@lru_cache(maxsize=8)
def load_reduce_table(family: str) -> ReduceTable:
    """Read the table of a family, once.

    Raises:
        TableError: the file is missing or broken.
    """
    name = f"{family}/mla_decode_reduce.csv"
    folder = paths.tables_dir()
    shipped = folder == paths.configs_dir() / "tuned"
    return read_reduce_table(folder / name, f"configs/tuned/{name}" if shipped else None)


def read_reduce_table(path: Path, label: str | None = None) -> ReduceTable:
    """Read one file: comments (`#`), a header, rows of which no two are about the same step.

    Raises:
        TableError: it cannot be read, or a line breaks a rule; names file and line.
    """
    name = label or str(path)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise TableError(f"{name}: expected a readable table, got {error}; restore it") from error
    lines = [
        (number, line)
        for number, line in enumerate(text.splitlines(), start=1)
        if line.strip() and not line.startswith("#")
    ]
    header = lines[0] if lines else (1, "an empty file")
    if tuple(header[1].split(",")) != _COLUMNS:
        raise TableError(
            f"{name}:{header[0]}: expected the header {','.join(_COLUMNS)}, got {header[1]}; fix it"
        )
    rows: dict[tuple[int, ...], ReduceRow] = {}
    for number, line in lines[1:]:
        row = _parse_row(f"{name}:{number}", number, line)
        key = (row.cu_num, row.token, row.num_heads, row.kv_lora_rank, row.v_head_dim)
        first = rows.setdefault((*key, row.num_kv_splits), row)
        if first is not row:
            raise TableError(
                f"{name}:{number}: expected one row for each step, got that of line {first.line} "
                "again; keep one"
            )
    return ReduceTable(name, rows)


def format_reduce_table(rows: Iterable[ReduceRow], comments: Sequence[str] = ()) -> str:
    """The text of a table file: rows in the order of what they are about."""
    ordered = sorted(rows, key=lambda row: tuple(getattr(row, name) for name in _COLUMNS))
    lines = [",".join(str(getattr(row, name)) for name in _COLUMNS) for row in ordered]
    return "\n".join([*(f"# {text}" for text in comments), ",".join(_COLUMNS), *lines, ""])


def _parse_row(where: str, number: int, line: str) -> ReduceRow:
    cells = [cell.strip() for cell in next(csv.reader([line]))]
    if len(cells) != len(_COLUMNS):
        raise TableError(f"{where}: expected {len(_COLUMNS)} cells, got {len(cells)}; fix the line")
    *numbers, kernel = cells
    for column, text in zip(_COLUMNS, numbers, strict=False):
        least = 0 if column == "token" else 1
        if not (text.isascii() and text.isdigit() and len(text) < 10) or int(text) < least:
            raise TableError(
                f"{where}: {column}: expected an integer >= {least}, got {text or 'an empty cell'}"
            )
    units, token, heads, rank, width, splits = map(int, numbers)
    row = ReduceRow(units, token, heads, rank, width, splits, kernel, number)
    if row.num_kv_splits not in SPLIT_COUNTS:
        raise TableError(
            f"{where}: num_kv_splits: expected one of {SPLIT_COUNTS}, got {row.num_kv_splits}"
        )
    if _KERNEL.fullmatch(kernel) is None:
        raise TableError(
            f"{where}: reduce_kernel: expected mla_reduce_BATCH1, 2, 4 or 8, with _VEC1, 2 or 4 "
            f"or without, got {kernel or 'an empty cell'}"
        )
    return row


@dataclass(frozen=True, slots=True, kw_only=True)
class ReduceShape:
    """All that may influence the route, host integers and words only.

    Attributes:
        family: whose table answers.
        compute_units: compute units of the device (threads on a CPU).
        batch: requests, padding included.
        nhead: query heads of this rank.
        q_len: query tokens per request.
        q_dtype: dtype name of q.
        kv_dtype: dtype name of the KV cache.
        page_size: tokens per page.
        head_dim_qk: columns of q and of the cache.
        kv_lora_rank: columns of V in the cache.
        v_head_dim: columns of the output.
        num_splits: the caller's own number of pieces; None: that of `adaptive_splits`.
    """

    family: str
    compute_units: int
    batch: int
    nhead: int
    q_len: int
    q_dtype: str
    kv_dtype: str
    page_size: int = 1
    head_dim_qk: int = 576
    kv_lora_rank: int = 512
    v_head_dim: int = 512
    num_splits: int | None = None

    def ordinary(self, kv_len: int | None) -> Route:
        """How the same step is decoded where this route does not take it."""
        return route_mla_decode(
            DecodeShape(
                family=self.family,
                compute_units=self.compute_units,
                batch=self.batch,
                nhead=self.nhead,
                q_len=self.q_len,
                kv_len=kv_len,
                q_dtype=self.q_dtype,
                kv_dtype=self.kv_dtype,
                page_size=self.page_size,
                head_dim_qk=self.head_dim_qk,
                head_dim_v=self.kv_lora_rank,
            )
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ReduceRoute:
    """Whether the route takes a step, how, and why.

    Attributes:
        num_splits: pieces of each context.
        batch: partials that a lane has on their way; None: the route does not take the step.
        vec: columns that a lane reads as one.
        reason: the row, or what was expected and what came.
    """

    num_splits: int
    batch: int | None
    vec: int
    reason: str


@lru_cache(maxsize=8192)
def route_mla_reduce(shape: ReduceShape) -> ReduceRoute:
    """Choose whether and how a step is split and merged; equal shapes give equal routes.

    Raises:
        BadArgument: a field makes no sense for any kernel.
        UnsupportedShape: no kernel for this shape.
        TableError: the family's table is broken.
    """
    if shape.family not in FAMILIES or min(shape.compute_units, shape.batch, shape.nhead) < 1:
        raise BadArgument(f"family, compute_units, batch, nhead: expected a step, got {shape}")
    check_supported(
        nhead=shape.nhead,
        q_len=shape.q_len,
        dtypes=(shape.q_dtype, shape.kv_dtype),
        head_dims=(shape.head_dim_qk, shape.kv_lora_rank),
        page_size=shape.page_size,
    )
    splits = shape.num_splits or adaptive_splits(shape.batch, shape.compute_units)
    row, reason = None, _mismatch(shape, splits)
    if not reason:
        table = load_reduce_table(shape.family)
        key = (
            shape.compute_units, shape.batch, shape.nhead, shape.kv_lora_rank, shape.v_head_dim,
            splits,
        )  # fmt: skip
        row = table.find(*key)
        words = ("compute units", "tokens", "heads", "kv_lora_rank", "v_head_dim", "splits")
        step = ", ".join(f"{value} {word}" for word, value in zip(words, key, strict=True))
        if row is None:
            reason = f"{table.label} has no row for {step}"
        else:
            whose = "any number of tokens" if row.token == ANY_TOKEN else "exactly this step"
            reason = f"{table.label}:{row.line}: {row.reduce_kernel} for {whose}: {step}"
    batch, vec = row.batch_and_vec if row else (None, 1)
    found = ReduceRoute(num_splits=splits, batch=batch, vec=vec, reason=reason)
    logger.info("mla_reduce_decode: %s: %s", "reduce" if row else "ordinary decode", reason)
    return found


def clear_reduce_routes() -> None:
    """Forget answers and tables, so that the next call reads the tables again."""
    route_mla_reduce.cache_clear()
    load_reduce_table.cache_clear()


def _mismatch(shape: ReduceShape, splits: int) -> str:
    """What of a step no row could make right; empty where nothing is."""
    for name, got, expected in (
        ("q_len", shape.q_len, (1,)),
        ("page_size", shape.page_size, (1,)),
        ("v_head_dim", shape.v_head_dim, (shape.kv_lora_rank,)),
        ("num_splits", splits, SPLIT_COUNTS),
    ):
        if got not in expected:
            return f"{name}: expected {' or '.join(map(str, expected))}, got {got}"
    return ""
