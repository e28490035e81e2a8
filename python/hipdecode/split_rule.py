# SPDX-License-Identifier: MIT
"""Into how many pieces keys are cut where nothing was measured, from host integers alone."""

MIN_PIECE = 64
"""Keys of a piece are a multiple of it, but for the last."""


def cheapest_splits(
    *,
    tiles: int,
    compute_units: int,
    keys: int,
    most: int,
    merge_each: int,
    merge_start: int = 0,
) -> int:
    """The number of pieces with the least work on the busiest compute unit, the least of equals.

    Work is whole rounds of blocks times the keys of a piece, and what merging costs.

    Args:
        tiles: blocks of an unsplit call.
        compute_units: workers.
        keys: of a tile at most.
        most: pieces at most.
        merge_each: what writing and merging one more piece costs, in keys of the same rows.
        merge_start: what merging costs besides, however many pieces.
    """
    tiles = max(tiles, 1)
    pieces = max(1, min(most, -(-keys // MIN_PIECE)))

    def cost(splits: int) -> int:
        rounds = -(-tiles * splits // compute_units)
        piece = -(-keys // (splits * MIN_PIECE)) * MIN_PIECE
        merge = merge_start + merge_each * splits if splits > 1 else 0
        return rounds * (piece + merge)

    return min(range(1, pieces + 1), key=cost)
