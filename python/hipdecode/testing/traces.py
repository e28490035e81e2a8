# SPDX-License-Identifier: MIT
"""Contexts of real requests, out of serving traces."""

from __future__ import annotations

import csv
import random
from collections.abc import Sequence
from pathlib import Path

from hipdecode.errors import BadArgument


def trace_batches(path: Path, batches: Sequence[int]) -> list[list[int]]:
    """Context lengths of batches.

    Args:
        path: a CSV with a column `kv_lens` (one batch a row, lengths separated by spaces) or
            `context_tokens` (one request a row, of which batches are drawn, always the same).
        batches: sizes to draw; unused with kv_lens.

    Raises:
        BadArgument: neither column is there, or the file holds no rows.
    """
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    columns = list(rows[0]) if rows else []
    if "kv_lens" in columns:
        drawn = [[int(word) for word in row["kv_lens"].split()] for row in rows]
    elif "context_tokens" in columns:
        pool, rng = [int(row["context_tokens"]) for row in rows], random.Random(0)
        drawn = [rng.choices(pool, k=batch) for batch in batches]
    else:
        raise BadArgument(
            f"{path}: expected a column kv_lens or context_tokens, got {columns}; name one so"
        )
    return drawn
