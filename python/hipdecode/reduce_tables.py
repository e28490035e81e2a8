# SPDX-License-Identifier: MIT
"""The route `reduce`: split decode whose pieces a kernel of their own merges, chosen by a table.

`configs/tuned/<family>/mla_decode_reduce.csv` says for which steps it is taken and how the merge
goes about it; the number of pieces follows from the batch and the machine alone.
"""

from __future__ import annotations

import csv
import re
from dataclasses import dataclass, fields
from functools import lru_cache
from pathlib import Path

from . import paths
from .errors import TableError

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
