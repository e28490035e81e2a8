# SPDX-License-Identifier: MIT
"""Merging of partial results, on its own."""

from __future__ import annotations

import torch
from torch import Tensor

from . import ops
from .arguments import check_int, check_lse, check_output, check_tensor, describe
from .errors import BadArgument


def mla_reduce(
    partial_output: Tensor,
    partial_lse: Tensor,
    reduce_indptr: Tensor,
    reduce_final_map: Tensor | None,
    reduce_partial_map: Tensor,
    max_seqlen_q: int,
    num_kv_splits: int,
    final_output: Tensor,
    final_lse: Tensor | None = None,
) -> None:
    """Merges the partial results of a planned decode by their log-sum-exp.

    Tiles with one partial or none are left alone: the decode has written them.

    Args:
        partial_output: [partial rows, 1, nhead, head_dim_v] or [partial rows, nhead, head_dim_v]
            fp32, each normalised. Not read where its LSE is -inf.
        partial_lse: [partial rows, nhead] (any shape of that size) fp32, natural log.
        reduce_indptr: [tiles + 1] int32, partials of each tile.
        reduce_final_map: [tiles, 2] int32, output rows of each tile; None for uniform tiles.
        reduce_partial_map: [partials] int32, first row of each partial.
        max_seqlen_q: query rows of one request at most.
        num_kv_splits: partials of a tile at most; 0 when unknown.
        final_output: [rows, nhead, head_dim_v] bf16 or fp16, written in place.
        final_lse: [rows, nhead] fp32, natural log, or None.

    Raises:
        BadArgument: an argument has a wrong type, shape or range; nothing was written.
    """
    if not isinstance(partial_output, Tensor) or partial_output.dim() not in (3, 4):
        raise BadArgument(
            f"partial_output: expected a 3-D or 4-D tensor, got {describe(partial_output)}"
        )
    nhead, head_dim_v = partial_output.shape[-2:]
    device = partial_output.device
    check_tensor("partial_output", partial_output, torch.float32, device, contiguous=True)
    rows = partial_output.numel() // max(nhead * head_dim_v, 1)
    check_tensor("partial_lse", partial_lse, torch.float32, device, contiguous=True)
    if partial_lse.numel() < rows * nhead:
        raise BadArgument(
            f"partial_lse: expected {rows * nhead} elements, got {partial_lse.numel()}"
        )
    for name, index in (
        ("reduce_indptr", reduce_indptr),
        ("reduce_final_map", reduce_final_map),
        ("reduce_partial_map", reduce_partial_map),
    ):
        if index is not None:
            check_tensor(name, index, torch.int32, device, contiguous=True)
    tiles = reduce_indptr.numel() - 1
    if tiles < 0 or (reduce_final_map is not None and reduce_final_map.numel() < 2 * tiles):
        raise BadArgument(
            f"reduce_indptr, reduce_final_map: expected [tiles + 1] and [tiles, 2], got "
            f"{describe(reduce_indptr)} and {describe(reduce_final_map)}"
        )
    check_int("max_seqlen_q", max_seqlen_q, 1)
    check_int("num_kv_splits", num_kv_splits, 0)
    check_output("final_output", final_output, None, nhead, head_dim_v, device)
    check_lse(final_lse, final_output.shape[0], nhead, device, name="final_lse")
    ops.ensure_kernel("mla_reduce", device)
    torch.ops.hipdecode.mla_reduce(
        partial_output,
        partial_lse,
        reduce_indptr,
        reduce_final_map,
        reduce_partial_map,
        final_output,
        final_lse,
        max_seqlen_q,
        num_kv_splits,
    )
