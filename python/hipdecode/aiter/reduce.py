# SPDX-License-Identifier: MIT
"""AITER's merges of partial results."""

from __future__ import annotations

from torch import Tensor

from hipdecode.errors import BadArgument
from hipdecode.reduce import mla_reduce


def mla_reduce_v1(
    partial_output: Tensor,
    partial_lse: Tensor,
    reduce_indptr: Tensor,
    reduce_final_map: Tensor | None,
    reduce_partial_map: Tensor,
    max_seqlen_q: int,
    num_kv_splits: int | Tensor = 0,
    final_output: Tensor | None = None,
    final_lse: Tensor | None = None,
) -> None:
    """Merges a planned decode's partial results, in either order of arguments that AITER has had.

    Args:
        partial_output: [partial rows, 1, nhead, head_dim_v] fp32, each normalised.
        partial_lse: [partial rows, 1, nhead, 1] fp32, natural log.
        reduce_indptr: [tiles + 1] int32, partials of each tile.
        reduce_final_map: [tiles, 2] int32, output rows of each tile; None for uniform tiles.
        reduce_partial_map: [partials] int32, first row of each partial.
        max_seqlen_q: query rows of one request at most.
        num_kv_splits: partials of a tile at most, 0 when unknown. A tensor in its place is
            final_output, and what follows is final_lse, as before ROCm/aiter#3391.
        final_output: [rows, nhead, head_dim_v] bf16 or fp16, written in place.
        final_lse: [rows, nhead] fp32, natural log, or None.

    Raises:
        BadArgument: an argument has a wrong type, shape or range; nothing was written.
    """
    if isinstance(num_kv_splits, Tensor):
        outputs = (num_kv_splits, final_lse if final_output is None else final_output)
        most = 0
    else:
        if final_output is None:
            raise BadArgument("final_output: expected a tensor, got None")
        outputs, most = (final_output, final_lse), num_kv_splits
    mla_reduce(
        partial_output,
        partial_lse,
        reduce_indptr,
        reduce_final_map,
        reduce_partial_map,
        max_seqlen_q,
        most,
        *outputs,
    )


def pa_reduce_v1(
    partial_output: Tensor,
    partial_lse: Tensor,
    reduce_indptr: Tensor,
    reduce_final_map: Tensor | None,
    reduce_partial_map: Tensor,
    max_seqlen_q: int,
    final_output: Tensor,
    final_lse: Tensor | None = None,
    num_kv_splits: int = 0,
) -> None:
    """As mla_reduce_v1, in the one order that this entry has had.

    Args:
        partial_output: as mla_reduce_v1.
        partial_lse: likewise.
        reduce_indptr: likewise.
        reduce_final_map: likewise.
        reduce_partial_map: likewise.
        max_seqlen_q: likewise.
        final_output: likewise.
        final_lse: likewise.
        num_kv_splits: likewise.

    Raises:
        BadArgument: an argument has a wrong type, shape or range; nothing was written.
    """
    mla_reduce_v1(
        partial_output,
        partial_lse,
        reduce_indptr,
        reduce_final_map,
        reduce_partial_map,
        max_seqlen_q,
        num_kv_splits,
        final_output,
        final_lse,
    )
