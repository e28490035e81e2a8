# SPDX-License-Identifier: MIT
"""AITER's entries that decode and leave the merge to the caller."""

from __future__ import annotations

import torch
from torch import Tensor

from hipdecode import ops
from hipdecode.arguments import DTYPE_NAMES, check_inputs, check_options, check_tensor
from hipdecode.errors import BadArgument
from hipdecode.registry import wanted_rows
from hipdecode.shard import check_shard

from .metadata import shard_of


def hk_mla_v32_decode_fwd(
    query: Tensor,
    kv_buffer: Tensor,
    qo_indptr: Tensor,
    kv_indptr: Tensor,
    kv_page_indices: Tensor,
    kv_last_page_lens: Tensor | None,
    work_indptr: Tensor,
    work_info_set: Tensor,
    max_seqlen_q: int,
    softmax_scale: float,
    split_output: Tensor,
    split_lse: Tensor,
    final_output: Tensor,
) -> None:
    """Walks a plan: whole tiles go to final_output, pieces to split_output for mla_reduce_v1.

    Args:
        query: [rows, nhead, head_dim_qk] bf16, fp16 or fp8, of scale 1.
        kv_buffer: [num_pages, page_size, 1, head_dim_qk] bf16, fp16 or fp8, of scale 1.
        qo_indptr: [batch + 1] int32.
        kv_indptr: [batch + 1] int32, pages.
        kv_page_indices: int32 page ids.
        kv_last_page_lens: [batch] int32, or None where page_size is 1.
        work_indptr: of the plan of get_mla_metadata_v1.
        work_info_set: likewise.
        max_seqlen_q: query rows of one request at most.
        softmax_scale: of the scores.
        split_output: [partial rows, 1, nhead, head_dim_v] fp32.
        split_lse: [partial rows, 1, nhead, 1] fp32, natural log.
        final_output: [rows, nhead, head_dim_v] bf16 or fp16.

    Raises:
        BadArgument: an argument has a wrong type, shape or range; nothing was written.
        UnsupportedShape: no kernel for this shape.
    """
    mla_decode_stage1_asm_fwd(
        query,
        kv_buffer,
        qo_indptr,
        kv_indptr,
        kv_page_indices,
        kv_last_page_lens,
        None,
        None,
        work_indptr,
        work_info_set,
        max_seqlen_q,
        kv_buffer.shape[1],
        1,
        softmax_scale,
        split_output,
        split_lse,
        final_output,
    )


hk_mla_decode_fwd = hk_mla_v32_decode_fwd
"""The name before AITER had a second layout."""


def mla_decode_stage1_asm_fwd(
    Q: Tensor,
    KV: Tensor,
    qo_indptr: Tensor,
    kv_indptr: Tensor,
    kv_page_indices: Tensor,
    kv_last_page_lens: Tensor | None,
    num_kv_splits_indptr: Tensor | None,
    work_meta_data: Tensor | None,
    work_indptr: Tensor | None,
    work_info_set: Tensor | None,
    max_seqlen_q: int,
    page_size: int,
    nhead_kv: int,
    softmax_scale: float,
    splitData: Tensor,
    splitLse: Tensor,
    output: Tensor,
    lse: Tensor | None = None,
    q_scale: Tensor | None = None,
    kv_scale: Tensor | None = None,
    g_kv_indptr: Tensor | None = None,
    cp_world_size: int = 1,
    cp_rank: int = 0,
    valid_split_count: Tensor | None = None,
    use_valid_split_count_reduce: int = 0,
    causal: bool = True,
) -> None:
    """Walks a plan: whole tiles go to output and lse, pieces to splitData and splitLse.

    Args:
        Q: [rows, nhead, head_dim_qk] bf16, fp16 or fp8.
        KV: [num_pages, page_size, 1, head_dim_qk] bf16, fp16 or fp8.
        qo_indptr: [batch + 1] int32.
        kv_indptr: [batch + 1] int32, pages.
        kv_page_indices: int32 page ids.
        kv_last_page_lens: [batch] int32, or None where page_size is 1.
        num_kv_splits_indptr: None: without a plan, call mla_decode_fwd.
        work_meta_data: not read: addresses on the device, of the next two.
        work_indptr: of the plan of get_mla_metadata_v1.
        work_info_set: likewise.
        max_seqlen_q: query rows of one request at most.
        page_size: that of KV.
        nhead_kv: 1.
        softmax_scale: of the scores.
        splitData: [partial rows, 1, nhead, head_dim_v] fp32.
        splitLse: [partial rows, 1, nhead, 1] fp32, natural log.
        output: [rows, nhead, head_dim_v] bf16 or fp16.
        lse: [rows, nhead] fp32, natural log, or None.
        q_scale: fp32, one element on the device, for an fp8 Q.
        kv_scale: likewise for an fp8 cache.
        g_kv_indptr: as mla_decode_fwd.
        cp_world_size: likewise.
        cp_rank: likewise.
        valid_split_count: None.
        use_valid_split_count_reduce: 0.
        causal: row i of n sees all keys but the last n - 1 - i.

    Raises:
        BadArgument: an argument has a wrong type, shape or range; nothing was written.
        UnsupportedShape: no kernel for this shape.
    """
    given = (
        ("num_kv_splits_indptr", num_kv_splits_indptr),
        ("valid_split_count", valid_split_count),
    )
    for name, tensor in given:
        if tensor is not None:
            raise BadArgument(f"{name}: expected None, got a tensor; call mla_decode_fwd")
    if nhead_kv != 1 or use_valid_split_count_reduce:
        raise BadArgument(
            "nhead_kv, use_valid_split_count_reduce: expected 1, 0, got "
            f"{nhead_kv}, {use_valid_split_count_reduce}; call mla_decode_fwd"
        )
    if not isinstance(work_indptr, Tensor) or not isinstance(work_info_set, Tensor):
        raise BadArgument("work_indptr, work_info_set: expected those of a plan, got None")
    check_inputs(Q, KV, qo_indptr, kv_indptr, kv_page_indices, max_seqlen_q)
    check_options(Q, output, lse, kv_last_page_lens, q_scale, kv_scale, qo_indptr.numel() - 1)
    shard = shard_of(g_kv_indptr, cp_world_size, cp_rank)
    batch = qo_indptr.numel() - 1
    check_shard(shard, batch, Q.device, causal=causal, max_seqlen_q=max_seqlen_q)
    if page_size != KV.shape[1]:
        raise BadArgument(f"page_size: expected that of KV, {KV.shape[1]}, got {page_size}")
    for name, tensor in (("splitData", splitData), ("splitLse", splitLse)):
        check_tensor(name, tensor, torch.float32, Q.device, contiguous=True)
    nhead, head_dim_v = output.shape[1:]
    rows = splitData.numel() // (nhead * head_dim_v)
    if splitData.numel() != rows * nhead * head_dim_v or splitLse.numel() < rows * nhead:
        raise BadArgument(
            f"splitData, splitLse: expected [rows, 1, {nhead}, {head_dim_v}] and [rows, 1, "
            f"{nhead}, 1], got {list(splitData.shape)} and {list(splitLse.shape)}"
        )
    dims = f"{Q.shape[2]}-{head_dim_v}-{DTYPE_NAMES[Q.dtype]}-{DTYPE_NAMES[KV.dtype]}"
    tile_rows = wanted_rows(ops.family_and_units(Q.device)[0], nhead * max_seqlen_q)
    ops.ensure_kernel(f"mla_decode_persistent/{dims}-{tile_rows}", Q.device)
    torch.ops.hipdecode.mla_decode_persistent(
        Q,
        KV,
        output,
        lse,
        qo_indptr,
        kv_indptr,
        kv_page_indices,
        kv_last_page_lens,
        work_indptr,
        work_info_set,
        splitData.view(rows, nhead, head_dim_v),
        splitLse.view(-1)[: rows * nhead].view(rows, nhead),
        q_scale,
        kv_scale,
        max_seqlen_q,
        softmax_scale,
        causal,
        *(shard or ()),
    )
