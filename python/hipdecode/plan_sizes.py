# SPDX-License-Identifier: MIT
"""How large the tensors of a plan must be, whatever the lengths of the batch."""

from functools import partial
from typing import NamedTuple

import torch

from . import ops
from .errors import BadArgument

TILE_ROWS = 128
"""(query token x head) rows of one work at most, on every target and for every dtype."""

MetadataSize = tuple[int | tuple[int, int], torch.dtype]
Six = tuple[MetadataSize, MetadataSize, MetadataSize, MetadataSize, MetadataSize, MetadataSize]


class Bounds(NamedTuple):
    """What no schedule exceeds, whatever the lengths."""

    clusters: int
    tiles: int
    works: int
    partials: int
    partial_rows: int


def bounds(
    batch: int,
    max_seqlen_q: int,
    nhead: int,
    *,
    is_sparse: bool,
    intra_batch_mode: bool,
    num_kv_splits: int,
    max_split_per_batch: int,
    clusters: int,
) -> Bounds:
    """The proof is in `mla_metadata_info`."""
    if is_sparse:
        batch, max_seqlen_q = batch * max_seqlen_q, 1
    rows_cap = max(TILE_ROWS // nhead, 1)
    tiles = batch * -(-max_seqlen_q // rows_cap)
    tile_rows = min(rows_cap, max_seqlen_q)
    if intra_batch_mode:
        cuts = num_kv_splits if max_split_per_batch < 0 else min(num_kv_splits, max_split_per_batch)
        works = min(tiles * cuts, clusters + tiles - 1)
        partials = works
        split_tiles = min(tiles, clusters - 1)
        pieces = min(split_tiles * cuts, clusters + split_tiles - 1)
    else:
        budget = clusters if max_split_per_batch < 0 else min(clusters, max_split_per_batch * batch)
        cuts = max(budget - 1, 0)
        works = tiles + cuts
        partials = pieces = cuts + min(tiles, cuts)
    return Bounds(
        clusters=clusters,
        tiles=max(tiles, 1),
        works=max(works, 1),
        partials=max(partials, 1),
        partial_rows=max(pieces * tile_rows, 1),
    )


def check_int(name: str, value: int, low: int, high: int = 2**31 - 1) -> None:
    """Requires an int, and no bool, in [low, high]."""
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise BadArgument(f"{name}: expected an int from {low} to {high}, got {value!r}")


def check_max_split(value: int) -> None:
    """Requires -1 or a number of cuts."""
    if value != -1:
        check_int("max_split_per_batch (-1 for no limit)", value, 1)


def mla_metadata_info(
    batch_size: int,
    max_seqlen_qo: int,
    num_head_qo: int,
    q_dtype: torch.dtype,
    kv_dtype: torch.dtype,
    *,
    is_sparse: bool = False,
    fast_mode: bool = True,
    num_kv_splits: int = 32,
    intra_batch_mode: bool = False,
    max_split_per_batch: int = -1,
    compute_units: int | None = None,
) -> Six:
    """Sizes of the six metadata tensors, enough for every batch within the arguments.

    Buffers of these sizes serve any smaller batch, any lengths and ragged query lengths.

    Let C be the clusters, R = max(128 // heads, 1) the query rows of a tile and
    N = batch * ceil(max_seqlen_qo / R) the tiles (sparse: one per query token, R = 1). A request
    of q rows has ceil(q / R) tiles of at most min(R, max_seqlen_qo) rows, so N bounds any batch.

    Balanced planner: let b = min(C, max_split_per_batch * batch), or C without that limit. A cut
    ends its cluster, and every cluster that is ended advances the line of blocks by at least its
    share ceil(total / b), so cluster b at the latest reaches the end of the line: at most b - 1
    cuts. Each cut adds one work to the N of uncut tiles: works <= N + b - 1. A tile with k cuts
    has k + 1 partials, uncut ones have none: partials <= (b - 1) + min(N, b - 1).

    Intra-batch planner: n <= N tiles get s <= min(num_kv_splits, max_split_per_batch, ceil(C / n))
    works each, and n * ceil(C / n) <= C + n - 1, so works <= min(N * that, C + N - 1). An uncut
    tile is one partial of -1, so partials = works. Tiles are cut only where n < C.

    The partial buffers need min(R, max_seqlen_qo) rows per partial that is not -1: for the balanced
    planner at most 2 * (C - 1) * 128 rows of one head, whatever the batch, heads and context.

    Args:
        batch_size: requests at most.
        max_seqlen_qo: query rows of one request at most.
        num_head_qo: query heads, 1 to 128.
        q_dtype: accepted as AITER's callers pass it; sizes do not depend on it.
        kv_dtype: as q_dtype.
        is_sparse: each query token is planned as a request of its own.
        fast_mode: size for the balanced planner, also where neither mode is set.
        num_kv_splits: works per tile at most, intra-batch planner only.
        intra_batch_mode: size for the intra-batch planner; with `fast_mode` for either of them.
        max_split_per_batch: -1, or the number of cuts allowed per request on average.
        compute_units: clusters; by default those of the current GPU, else torch's CPU threads.

    Returns:
        (size, dtype) of work_metadata_ptrs, work_indptr, work_info_set, reduce_indptr,
        reduce_final_map, reduce_partial_map; a size is an int or a pair.

    Raises:
        BadArgument: an argument is out of its range.

    Source: AITER, get_mla_metadata_info_v1 (order and meaning; the bounds are ours).
    """
    check_int("batch_size", batch_size, 0)
    check_int("max_seqlen_qo", max_seqlen_qo, 1)
    check_int("num_head_qo", num_head_qo, 1, TILE_ROWS)
    check_int("num_kv_splits", num_kv_splits, 1)
    check_max_split(max_split_per_batch)
    for name, dtype in (("q_dtype", q_dtype), ("kv_dtype", kv_dtype)):
        if not isinstance(dtype, torch.dtype):
            raise BadArgument(f"{name}: expected a torch.dtype, got {dtype!r}")
    if compute_units is None:
        compute_units = ops.compute_units("cuda" if torch.cuda.is_available() else "cpu")
    check_int("compute_units", compute_units, 1)

    within = partial(
        bounds,
        batch_size,
        max_seqlen_qo,
        num_head_qo,
        is_sparse=is_sparse,
        num_kv_splits=num_kv_splits,
        max_split_per_batch=max_split_per_batch,
        clusters=compute_units,
    )
    need = within(intra_batch_mode=intra_batch_mode)
    if intra_batch_mode and fast_mode:
        balanced = within(intra_batch_mode=False)
        need = Bounds(*(max(pair) for pair in zip(need, balanced, strict=True)))
    return sizes(need)


def sizes(need: Bounds) -> Six:
    """(size, dtype) of the six metadata tensors, in the order of `mla_metadata_info`."""
    return (
        (2, torch.uint64),
        (need.clusters + 1, torch.int32),
        ((need.works, 8), torch.int32),
        (need.tiles + 1, torch.int32),
        ((need.tiles, 2), torch.int32),
        (need.partials, torch.int32),
    )
