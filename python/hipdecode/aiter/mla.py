# SPDX-License-Identifier: MIT
"""AITER's `aiter.mla`: decode over a paged latent cache, by its names and argument positions."""

from __future__ import annotations

from torch import Tensor

from hipdecode.decode import mla_decode
from hipdecode.errors import BadArgument

from .meta_param import get_meta_param
from .metadata import plan_of, shard_of

__all__ = ["get_meta_param", "mla_decode_fwd"]


def mla_decode_fwd(
    q: Tensor,
    kv_buffer: Tensor,
    o: Tensor,
    qo_indptr: Tensor,
    kv_indptr: Tensor,
    kv_indices: Tensor,
    kv_last_page_lens: Tensor | None,
    max_seqlen_q: int,
    page_size: int = 1,
    nhead_kv: int = 1,
    sm_scale: float | None = None,
    logit_cap: float = 0.0,
    num_kv_splits: int | None = None,
    num_kv_splits_indptr: Tensor | None = None,
    work_meta_data: Tensor | None = None,
    work_indptr: Tensor | None = None,
    work_info_set: Tensor | None = None,
    reduce_indptr: Tensor | None = None,
    reduce_final_map: Tensor | None = None,
    reduce_partial_map: Tensor | None = None,
    q_scale: Tensor | None = None,
    kv_scale: Tensor | None = None,
    intra_batch_mode: bool = False,
    return_logits: bool = False,
    return_lse: bool = False,
    g_kv_indptr: Tensor | None = None,
    cp_world_size: int = 1,
    cp_rank: int = 0,
    causal: bool = True,
) -> tuple[Tensor, Tensor | None]:
    """One decode step of multi-head latent attention; `hipdecode.mla_decode` under AITER's name.

    Args:
        q: [rows, nhead, head_dim_qk] bf16, fp16 or fp8.
        kv_buffer: [num_pages, page_size, 1, head_dim_qk] bf16, fp16 or fp8.
        o: [rows, nhead, head_dim_v] bf16 or fp16, written in place, in the caller's storage always.
        qo_indptr: [batch + 1] int32; says how many requests there are.
        kv_indptr: [batch + 1 or more] int32, pages.
        kv_indices: int32 page ids; what lies past kv_indptr[batch] is ignored.
        kv_last_page_lens: [batch or more] int32; ignored where page_size is 1.
        max_seqlen_q: query rows of one request at most.
        page_size: that of kv_buffer.
        nhead_kv: 1.
        sm_scale: default 1 / sqrt(head_dim_qk).
        logit_cap: 0 or less: no cap.
        num_kv_splits: advice; the split count is that of the tuned tables.
        num_kv_splits_indptr: advice likewise.
        work_meta_data: with the five below: the plan of get_mla_metadata_v1. None: none is used.
        work_indptr: see work_meta_data.
        work_info_set: see work_meta_data.
        reduce_indptr: see work_meta_data.
        reduce_final_map: see work_meta_data.
        reduce_partial_map: see work_meta_data.
        q_scale: fp32, one element on the device, for an fp8 q.
        kv_scale: likewise for an fp8 cache.
        intra_batch_mode: advice: the plan says how it cuts.
        return_logits: False.
        return_lse: also return the log-sum-exp.
        g_kv_indptr: [batch + 1] int32, tokens over all ranks, where each holds every
            cp_world_size-th: the j-th key here is token j * cp_world_size + cp_rank. Needed where
            causal masks several query rows.
        cp_world_size: ranks that share the keys.
        cp_rank: which of them this is.
        causal: row i of n sees all keys but the last n - 1 - i.

    Returns:
        (o, lse), lse [rows, nhead] fp32, natural log, or None unless return_lse.

    Raises:
        BadArgument: an argument is wrong or asks for what is not done, by its name.
        UnsupportedShape: no kernel for this shape.
    """
    _refuse(kv_buffer, page_size, nhead_kv, logit_cap, return_logits)
    lists = (work_meta_data, work_indptr, work_info_set)
    maps = (reduce_indptr, reduce_final_map, reduce_partial_map)
    plan = None
    if work_meta_data is not None:
        batch, page = qo_indptr.numel() - 1, kv_buffer.shape[1]
        plan = plan_of((*lists, *maps), batch, q.shape[1], max_seqlen_q, page, o.shape[-1])
    result = mla_decode(
        q,
        kv_buffer,
        qo_indptr,
        kv_indptr,
        kv_indices,
        max_seqlen_q=max_seqlen_q,
        kv_last_page_lens=kv_last_page_lens,
        sm_scale=sm_scale,
        causal=causal,
        q_scale=q_scale,
        kv_scale=kv_scale,
        shard=shard_of(g_kv_indptr, cp_world_size, cp_rank),
        out=o,
        return_lse=return_lse,
        plan=plan,
        route=None if plan is None else "persistent",
    )
    return (o, result[1]) if return_lse else (o, None)


def _refuse(
    kv_buffer: Tensor, page_size: int, nhead_kv: int, logit_cap: float, return_logits: bool
) -> None:
    if nhead_kv != 1:
        raise BadArgument(f"nhead_kv: expected 1, got {nhead_kv}; the latent row serves all heads")
    if logit_cap > 0:
        raise BadArgument(f"logit_cap: expected 0 (no cap), got {logit_cap}; it is not done")
    if return_logits:
        raise BadArgument("return_logits: expected False, got True; partial results stay inside")
    if kv_buffer.dim() != 4 or kv_buffer.shape[1] != page_size:
        raise BadArgument(
            f"page_size: expected that of kv_buffer [num_pages, page_size, 1, head_dim_qk], got "
            f"{page_size} and {list(kv_buffer.shape)}"
        )
