# SPDX-License-Identifier: MIT
"""FlashMLA's entry of sparse decode over an fp8 cache."""

from __future__ import annotations

import math

from torch import Tensor

from hipdecode.errors import BadArgument
from hipdecode.sparse import sparse_mla_decode


def flash_mla_with_kvcache(
    q: Tensor,
    k_cache: Tensor,
    block_table: Tensor | None,
    cache_seqlens: Tensor | None,
    head_dim_v: int,
    tile_scheduler_metadata: object,
    num_splits: None = None,
    softmax_scale: float | None = None,
    causal: bool = False,
    is_fp8_kvcache: bool = False,
    indices: Tensor | None = None,
    attn_sink: Tensor | None = None,
    extra_k_cache: Tensor | None = None,
    extra_indices_in_kvcache: Tensor | None = None,
    topk_length: Tensor | None = None,
    extra_topk_length: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Sparse attention over packed keys, positions and names of the arguments as FlashMLA's.

    Args:
        q: [batch, q_len, nhead, 576 or 512] bf16.
        k_cache: [num_blocks, block_size, 1, 656 or 584] uint8 or fp8.
        block_table: not used: indices name slots.
        cache_seqlens: not used.
        head_dim_v: 512.
        tile_scheduler_metadata: not used: nothing is planned.
        num_splits: None.
        softmax_scale: default 1 / sqrt(columns of q).
        causal: False: the indices say what is seen.
        is_fp8_kvcache: True.
        indices: [batch, q_len, topk] int32 slots of k_cache; what is no slot is skipped.
        attn_sink: [nhead] fp32, a logit without a value; does not enter the log-sum-exp.
        extra_k_cache: a second cache, [num_blocks, block_size, 1, bytes].
        extra_indices_in_kvcache: [batch, q_len, topk] int32 slots of it.
        topk_length: [batch] int32, leading indices that count.
        extra_topk_length: likewise.

    Returns:
        out [batch, q_len, nhead, 512] bf16 and lse [batch, nhead, q_len] fp32, natural log; rows
        that see nothing are zeros with lse inf.

    Raises:
        BadArgument: the call is not one of sparse decode, or an argument is wrong.
    """
    del block_table, cache_seqlens, tile_scheduler_metadata
    if indices is None or not is_fp8_kvcache or causal or num_splits is not None:
        raise BadArgument(
            "indices, is_fp8_kvcache, causal, num_splits: expected sparse decode (a tensor, True, "
            f"False, None), got {'None' if indices is None else 'a tensor'}, {is_fp8_kvcache}, "
            f"{causal}, {num_splits}; dense decode is hipdecode.mla_decode"
        )
    if q.dim() != 4 or head_dim_v != 512:
        raise BadArgument(
            f"q, head_dim_v: expected [batch, q_len, nhead, columns] and 512, got "
            f"{list(q.shape)} and {head_dim_v}"
        )
    batch, q_len = q.shape[:2]
    found = sparse_mla_decode(
        q.flatten(0, 1),
        k_cache,
        indices,
        lengths=topk_length,
        extra_cache=extra_k_cache,
        extra_indices=extra_indices_in_kvcache,
        extra_lengths=extra_topk_length,
        attn_sink=attn_sink,
        sm_scale=softmax_scale,
        return_lse=True,
    )
    out, lse = found
    lse.masked_fill_(lse == -math.inf, math.inf)
    rows = out.view(batch, q_len, *out.shape[1:])
    return rows, lse.view(batch, q_len, -1).transpose(1, 2)
