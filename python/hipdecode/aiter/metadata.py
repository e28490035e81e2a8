# SPDX-License-Identifier: MIT
"""AITER's planner calls: six tensors of the caller's, filled on the device.

A plan of hipdecode's is those six tensors and scratch for partial results. Callers know nothing of
the scratch, so it is this thread's workspace, and the plan is remembered with the caller's tensors.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import Tensor

from hipdecode.errors import BadArgument
from hipdecode.plan import MlaPlan, plan_mla_decode
from hipdecode.plan_sizes import TILE_ROWS, Six, mla_metadata_info
from hipdecode.shard import KvShard
from hipdecode.workspace import default_workspace

HEAD_DIM_V = 512

_NAMES = (
    "work_metadata_ptrs", "work_indptr", "work_info_set",
    "reduce_indptr", "reduce_final_map", "reduce_partial_map",
)  # fmt: skip
_MAX_KEPT = 16


class _Kept(threading.local):
    """Plans of this thread, the last used last. They hold their tensors, so no address returns."""

    def __init__(self) -> None:
        self.plans: OrderedDict[tuple[object, ...], MlaPlan] = OrderedDict()


_kept = _Kept()


def get_mla_metadata_info_v1(
    batch_size: int,
    max_seqlen_qo: int,
    num_head_qo: int,
    q_dtype: torch.dtype,
    kv_dtype: torch.dtype,
    is_sparse: bool = False,
    fast_mode: bool = True,
    num_kv_splits: int = 32,
    intra_batch_mode: bool = False,
    max_split_per_batch: int = -1,
) -> Six:
    """Sizes of the six tensors, for every batch within the arguments.

    Args:
        batch_size: requests at most.
        max_seqlen_qo: query rows of one request at most.
        num_head_qo: query heads, 1 to 128.
        q_dtype: sizes do not depend on it.
        kv_dtype: likewise.
        is_sparse: each query token is planned as a request of its own.
        fast_mode: the balanced planner.
        num_kv_splits: works per tile at most, intra-batch planner only.
        intra_batch_mode: the intra-batch planner.
        max_split_per_batch: -1, or cuts per request on average.

    Returns:
        (size, dtype) of work_metadata_ptrs, work_indptr, work_info_set, reduce_indptr,
        reduce_final_map, reduce_partial_map.

    Raises:
        BadArgument: an argument is out of its range.
    """
    return mla_metadata_info(
        batch_size,
        max_seqlen_qo,
        num_head_qo,
        q_dtype,
        kv_dtype,
        is_sparse=is_sparse,
        fast_mode=fast_mode,
        num_kv_splits=num_kv_splits,
        intra_batch_mode=intra_batch_mode,
        max_split_per_batch=max_split_per_batch,
    )


def get_mla_metadata_v1(
    seqlens_qo_indptr: Tensor,
    seqlens_kv_indptr: Tensor,
    kv_last_page_lens: Tensor | None,
    num_heads_per_head_k: int,
    num_heads_k: int,
    is_causal: bool,
    work_metadata_ptrs: Tensor,
    work_info_set: Tensor,
    work_indptr: Tensor,
    reduce_indptr: Tensor,
    reduce_final_map: Tensor,
    reduce_partial_map: Tensor,
    page_size: int = 1,
    kv_granularity: int = 16,
    max_seqlen_qo: int = -1,
    uni_seqlen_qo: int = -1,
    fast_mode: bool = True,
    topk: int = -1,
    max_split_per_batch: int = -1,
    intra_batch_mode: bool = False,
    is_cp_round_robin: bool = False,
    mla_version: object = 0,
    dtype_q_nope: torch.dtype | None = None,
    dtype_q_rope: torch.dtype | None = None,
    dtype_kv_nope: torch.dtype | None = None,
    dtype_kv_rope: torch.dtype | None = None,
    dtype_q: torch.dtype | None = None,
    dtype_kv: torch.dtype | None = None,
) -> None:
    """Plans a step on the device into the caller's tensors; `work_info_set` is the first of two.

    Callers differ in whether they tell the planner about the causal mask, and decode is told
    again: so a plan here serves both, and `is_causal` changes nothing. Nor do dtypes.

    Args:
        seqlens_qo_indptr: [batch + 1] int32.
        seqlens_kv_indptr: [batch + 1 or more] int32, pages.
        kv_last_page_lens: [batch or more] int32; not read where page_size is 1.
        num_heads_per_head_k: query heads, 1 to 128.
        num_heads_k: 1.
        is_causal: see above.
        work_metadata_ptrs: as get_mla_metadata_info_v1 says.
        work_info_set: likewise.
        work_indptr: likewise; its length says how many clusters share the work.
        reduce_indptr: likewise.
        reduce_final_map: likewise.
        reduce_partial_map: likewise.
        page_size: tokens per page.
        kv_granularity: keys are cut at multiples of it, in pages of one token; advice for others.
        max_seqlen_qo: query rows of one request at most; -1: as many as the tensors have room for.
        uni_seqlen_qo: where each request has that many; the lengths are read all the same.
        fast_mode: the balanced planner, unless intra_batch_mode.
        topk: -1, or the keys per query token at most, with kv_indices laid out [rows, topk].
        max_split_per_batch: -1, or cuts per request on average.
        intra_batch_mode: cut every tile into equally many works.
        is_cp_round_robin: the keys are a rank's share; no key is left out here anyway.
        mla_version: 0 (V32).
        dtype_q_nope: see above.
        dtype_q_rope: see above.
        dtype_kv_nope: see above.
        dtype_kv_rope: see above.
        dtype_q: see above.
        dtype_kv: see above.

    Raises:
        BadArgument: an argument has a wrong type, shape, device or range.
        WorkspaceError: the six tensors are too small.
    """
    del is_causal, uni_seqlen_qo, is_cp_round_robin, dtype_q, dtype_kv
    del dtype_q_nope, dtype_q_rope, dtype_kv_nope, dtype_kv_rope
    if num_heads_k != 1:
        raise BadArgument(f"num_heads_k: expected 1, got {num_heads_k}")
    if getattr(mla_version, "value", mla_version) != 0:
        raise BadArgument(f"mla_version: expected V32, got {mla_version!r}")
    lists = (work_metadata_ptrs, work_indptr, work_info_set)
    maps = (reduce_indptr, reduce_final_map, reduce_partial_map)
    nhead, batch = num_heads_per_head_k, seqlens_qo_indptr.numel() - 1
    intra = intra_batch_mode and not fast_mode
    if topk >= 0 or max_seqlen_qo < 1:
        rows = 1 if topk >= 0 else max(TILE_ROWS // max(nhead, 1), 1)
        room = reduce_final_map.shape[0] // max(batch, 1) * rows
        max_seqlen_qo = max(max_seqlen_qo, room, 1)
    plan_mla_decode(
        seqlens_qo_indptr,
        seqlens_kv_indptr,
        nhead=nhead,
        max_seqlen_q=max_seqlen_qo,
        page_size=page_size,
        kv_last_page_lens=kv_last_page_lens,
        causal=False,
        compute_units=work_indptr.numel() - 1,
        max_split_per_batch=max_split_per_batch,
        intra_batch_mode=intra,
        kv_granularity=kv_granularity if page_size == 1 else None,
        topk=topk,
        out=plan_of(
            (*lists, *maps), batch, nhead, max_seqlen_qo, page_size, HEAD_DIM_V, intra=intra
        ),
    )


def shard_of(g_kv_indptr: Tensor | None, cp_world_size: int, cp_rank: int) -> KvShard | None:
    """The share of a cache that AITER's three arguments are; None for all of it."""
    if cp_world_size == 1 and cp_rank == 0:
        return None
    return KvShard(g_kv_indptr, cp_world_size, cp_rank)


def plan_of(
    six: Sequence[Tensor | None],
    batch: int,
    nhead: int,
    max_seqlen_q: int,
    page_size: int,
    head_dim_v: int,
    *,
    intra: bool = False,
) -> MlaPlan:
    """The plan that six tensors of a caller are; the same object for the same tensors and step.

    Raises:
        BadArgument: one of the six is missing.
    """
    lists = []
    for name, tensor in zip(_NAMES, six, strict=True):
        if not isinstance(tensor, Tensor):
            raise BadArgument(f"{name}: expected a tensor, as the other five, got {tensor!r}")
        lists.append(tensor)
    workspace = default_workspace(lists[1].device)
    places = tuple((tensor.data_ptr(), tensor.numel()) for tensor in lists)
    step = (batch, nhead, max_seqlen_q, page_size, head_dim_v, intra)
    key = (*places, *step, id(workspace))
    plan = _kept.plans.get(key)
    if plan is not None:
        _kept.plans.move_to_end(key)
        return plan
    rows = lists[5].numel() * min(max(TILE_ROWS // max(nhead, 1), 1), max_seqlen_q)
    partials = workspace.partials(rows, nhead, head_dim_v)
    facts = (batch, nhead, max_seqlen_q, page_size, False, intra, 32)
    plan = MlaPlan(*lists, *partials, *facts)  # type: ignore[call-arg,arg-type]  # six lists
    _kept.plans[key] = plan
    while len(_kept.plans) > _MAX_KEPT:
        _kept.plans.popitem(last=False)
    return plan
