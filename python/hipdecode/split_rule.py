# SPDX-License-Identifier: MIT
"""Into how many pieces keys are cut where nothing was measured, from host integers alone."""

from __future__ import annotations

from collections.abc import Callable

MIN_PIECE = 64
"""Keys of a piece are a multiple of it, but for the last."""


def cheapest_splits(
    *,
    tiles: int,
    compute_units: int,
    keys: int,
    most: int,
    merge_each: int,
    round_start: int = 0,
    at_once: Callable[[int], int] | None = None,
) -> int:
    """The number of pieces with the least work on the busiest compute unit, the least of equals.

    Work is whole rounds of blocks times the keys of a piece, and what merging costs.

    Args:
        tiles: blocks of an unsplit call.
        compute_units: workers.
        keys: of a tile at most.
        most: pieces at most.
        merge_each: what writing and merging one more piece costs, in keys of the same rows.
        round_start: what a round of blocks costs besides its keys.
        at_once: tiles of so many pieces that run at the same time, where that is not what the
            compute units have room for.
    """
    tiles = max(tiles, 1)
    pieces = max(1, min(most, -(-keys // MIN_PIECE)))

    def cost(splits: int) -> int:
        if at_once is None:
            rounds = -(-tiles * splits // compute_units)
        else:
            rounds = -(-tiles // at_once(splits))
        piece = -(-keys // (splits * MIN_PIECE)) * MIN_PIECE
        merge = merge_each * splits if splits > 1 else 0
        return rounds * (round_start + piece + merge)

    return min(range(1, pieces + 1), key=cost)
