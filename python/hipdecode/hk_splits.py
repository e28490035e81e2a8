# SPDX-License-Identifier: MIT
"""Into how many pieces hk cuts each context, from host integers only."""

from __future__ import annotations

from .registry import wanted_rows

GROUP_ROWS = 128
"""Rows that one thread group works on together: what the occupancy rule counts."""
MIN_SPLIT_TOKENS, MAX_AUTO_SPLITS = 256, 32
HOPPER_ROWS, HOPPER_TOKENS, HOPPER_SPLITS = 64, 128, 64
"""On sm_90: rows of the largest block, tokens of a tile, most pieces."""
HOPPER_PARTIALS = 32
"""On sm_90: partial rows per compute unit from which pieces are to have twice the tokens."""
HOPPER_MERGE_TOKENS = {2: 12, 4: 8}
"""On sm_90: tokens attended in the time of merging a row of the tile, from so many pieces on."""
HOPPER_CROWD = 2.5
"""Factor on those where no more than two pieces run at once: the keys come hardly faster then."""


def auto_splits(
    *,
    family: str,
    batch: int,
    nhead: int,
    q_len: int,
    compute_units: int,
    kv_len: int,
    tile_rows: int | None = None,
) -> int:
    """Return how many pieces hk cuts each context into.

    Enough to give each compute unit a group of rows, but at least 256 tokens a piece and at most
    32 pieces: beyond that the merge costs more than the idle units. On sm_90, where pieces that
    run at once merge together, as many as run at once, of half a tile of 128 tokens or more once
    there is more than a tile, at most 64; of 256 tokens where they leave more than 32 partial rows
    per compute unit to write and to merge; and none where a block would attend the tokens that it
    saves in less time than merging takes.
    """
    if family == "sm_90":
        sizes = {"batch": batch, "nhead": nhead, "q_len": q_len, "compute_units": compute_units}
        fit = pieces_at_once(**sizes, tile_rows=tile_rows)
        few = HOPPER_PARTIALS * compute_units // (batch * nhead * q_len)
        long = _ceil_div(kv_len, 2 * HOPPER_TOKENS)
        half_tiles = _ceil_div(kv_len, HOPPER_TOKENS // 2) if kv_len > HOPPER_TOKENS else 1
        pieces = max(1, min(fit, half_tiles, HOPPER_SPLITS, max(few, long)))
        rows = min(wanted_rows(family, nhead * q_len, tile_rows), HOPPER_ROWS)
        return pieces if _saves(kv_len - kv_len // pieces, pieces, fit, rows) else 1
    to_fill = _ceil_div(compute_units, batch * _ceil_div(nhead * q_len, GROUP_ROWS))
    return max(1, min(to_fill, kv_len // MIN_SPLIT_TOKENS, MAX_AUTO_SPLITS))


def pieces_at_once(
    *, batch: int, nhead: int, q_len: int, compute_units: int, tile_rows: int | None
) -> int:
    """Return how many pieces of every context an sm_90 machine runs at once; 0 if not even one."""
    rows = min(tile_rows or HOPPER_ROWS, HOPPER_ROWS)
    return compute_units // (batch * _ceil_div(nhead * q_len, rows))


def _saves(tokens: int, pieces: int, fit: int, rows: int) -> bool:
    """Whether so many tokens less for a block are worth the merge of a tile of rows, on sm_90."""
    each = HOPPER_MERGE_TOKENS[4 if pieces >= 4 else 2]
    return tokens >= each * rows * (HOPPER_CROWD if fit <= 2 else 1)


def _ceil_div(a: int, b: int) -> int:
    return -(-a // b)
