# SPDX-License-Identifier: MIT
"""What a call of paged attention costs where two thread groups share a compute unit: estimates.

From them follow the query rows of a tile and the pieces of the keys together: fewer rows make more
groups of less work each, which read the same keys again; more pieces have to be merged. The figures
are those of an H100, cold caches, from the times of calls with all of them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from types import MappingProxyType

MIN_PIECE = 64
"""Keys of a piece are a multiple of it, but for the last."""
_FIXED_US = MappingProxyType({16: 8.0, 32: 8.6, 64: 9.6})
"""Of a group, by rows of its tile: the launch, its first keys, its output."""
_TOKEN_US = MappingProxyType({
    (16, 2): 0.0108, (32, 2): 0.0135, (64, 2): 0.0243,
    (16, 1): 0.0101, (32, 1): 0.0173, (64, 1): 0.0323,
})  # fmt: skip
"""Of a token of 128 columns, by rows and by bytes of an element of the cache."""
_TWO_US = 1.3
"""What it costs besides that two groups share a compute unit."""
_TWO_RATE = 1.58
"""How many times as long each then takes for a token."""
_ROUND_US = 4.9
"""Of each further round of groups: their beginning and end, which nothing hides."""
_MERGE_US, _PIECE_US = 1.7, 0.019
"""Of merging pieces, whatever they hold; of each."""
_PARTIAL_BYTES_OF_A_US = 2.2e6
"""Of partial results, which are written and read again; a tile's unused rows count."""
_BYTES_OF_A_US = 3.5e6
"""What the memory delivers; beside the work, neither quite hides the other."""


@dataclass(frozen=True, slots=True)
class Cut:
    """How a call is cut.

    Attributes:
        rows: query rows of a tile.
        splits: pieces of the keys.
        us: what the call takes, about.
    """

    rows: int
    splits: int
    us: float


def cheapest_cut(
    *,
    heads: int,
    packed: int,
    kv_len: int,
    head_dim: int,
    element_bytes: int,
    compute_units: int,
    most: int,
    splits: int | None = None,
) -> Cut:
    """The cut that takes the least time; of equals that of the fewest rows, then pieces.

    Args:
        heads: requests x kv heads.
        packed: query rows of each: query tokens x query heads of a kv head.
        kv_len: tokens of a request at most.
        head_dim: columns of a head.
        element_bytes: of an element of the cache.
        compute_units: of the device.
        most: pieces at most.
        splits: the only number of pieces to look at; None: any.
    """
    pieces = min(most, max(1, -(-kv_len // MIN_PIECE)))
    found = []
    for rows in _FIXED_US:
        if rows > min(_FIXED_US) and rows >= 2 * packed:
            continue
        tiles = max(heads, 1) * -(-packed // rows)
        for count in range(1, pieces + 1) if splits is None else (splits,):
            piece = -(-kv_len // (count * MIN_PIECE)) * MIN_PIECE
            fits = count * tiles <= 2 * compute_units and (count - 1) * piece < kv_len
            if splits is None and count > 1 and not fits:
                continue  # pieces without keys, or groups that cannot wait for each other
            read = max(heads, 1) * kv_len * 2 * head_dim * element_bytes / _BYTES_OF_A_US
            us = _work_us(rows, element_bytes, piece * head_dim / 128, tiles * count, compute_units)
            merge = 0.0
            if count > 1:
                partial = tiles * count * rows * head_dim * 4 / _PARTIAL_BYTES_OF_A_US
                merge = _MERGE_US + _PIECE_US * count + partial
            found.append(Cut(rows, count, _FIXED_US[rows] + math.hypot(us, read) + merge))
    return min(found, key=lambda cut: cut.us)


def _work_us(
    rows: int, element_bytes: int, tokens: float, groups: int, compute_units: int
) -> float:
    """Of all groups, each with so many tokens of 128 columns."""
    alone = _TOKEN_US[rows, element_bytes] * tokens
    if groups <= compute_units:
        return alone
    rounds = -(-groups // (2 * compute_units))
    return rounds * _TWO_RATE * alone + _TWO_US + (rounds - 1) * _ROUND_US
