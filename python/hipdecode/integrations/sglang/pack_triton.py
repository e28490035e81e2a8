# SPDX-License-Identifier: MIT
"""The page lists of a step on a GPU: one launch, and nothing of the step known to the host."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from .steps import Deal, Step

_PAGES = 512
_WORKERS = 16


@triton.jit  # type: ignore[untyped-decorator]
def _pack(  # type: ignore[no-untyped-def] # noqa: ANN202
    req_to_token,  # noqa: ANN001
    row_stride,  # noqa: ANN001
    req_pool_indices,  # noqa: ANN001
    seq_lens,  # noqa: ANN001
    more,  # noqa: ANN001
    less,  # noqa: ANN001
    kv_indptr,  # noqa: ANN001
    kv_last_page_lens,  # noqa: ANN001
    kv_indices,  # noqa: ANN001
    g_kv_indptr,  # noqa: ANN001
    longest,  # noqa: ANN001
    capacity,  # noqa: ANN001
    batch,  # noqa: ANN001
    HAS_LESS: tl.constexpr,
    PAGE: tl.constexpr,
    RANKS: tl.constexpr,
    RANK: tl.constexpr,
    BATCH: tl.constexpr,
    PAGES: tl.constexpr,
):
    request = tl.program_id(0)
    lane = tl.arange(0, BATCH)
    there = lane < batch
    lengths = tl.load(seq_lens + lane, mask=there, other=0).to(tl.int64) + more
    if HAS_LESS:
        lengths -= tl.load(less + lane, mask=there, other=0).to(tl.int64)
    lengths = tl.where(there, tl.minimum(tl.maximum(lengths, 0), longest), 0)
    held = tl.where(there, (lengths + (RANKS - 1 - RANK)) // RANKS, 0)
    pages = (held + PAGE - 1) // PAGE
    begin = tl.minimum(tl.sum(tl.where(lane < request, pages, 0), 0), capacity)
    count = tl.minimum(tl.sum(tl.where(lane == request, pages, 0), 0), capacity - begin)
    length = tl.sum(tl.where(lane == request, held, 0), 0)
    if tl.program_id(1) == 0:
        tl.store(kv_indptr + request + 1, (begin + count).to(tl.int32))
        tl.store(kv_last_page_lens + request, (length - (count - 1) * PAGE).to(tl.int32))
        upto = tl.sum(tl.where(lane <= request, lengths, 0), 0)
        tl.store(g_kv_indptr + request + 1, upto.to(tl.int32))
        if request == 0:
            tl.store(kv_indptr, 0)
            tl.store(g_kv_indptr, 0)
    row = req_to_token + tl.load(req_pool_indices + request).to(tl.int64) * row_stride
    for first in range(tl.program_id(1) * PAGES, count, tl.num_programs(1) * PAGES):
        page = first + tl.arange(0, PAGES)
        slot = tl.load(row + RANK + page * (PAGE * RANKS), mask=page < count, other=0)
        page_id = (slot // (PAGE * RANKS)).to(tl.int32)
        tl.store(kv_indices + begin + page, page_id, mask=page < count)


def pack(
    req_to_token: Tensor,
    req_pool_indices: Tensor,
    seq_lens: Tensor,
    more: int,
    less: Tensor | None,
    deal: Deal,
    step: Step,
) -> None:
    """As `steps.pack`."""
    batch = seq_lens.shape[0]
    _pack[(batch, _WORKERS)](
        req_to_token,
        req_to_token.stride(0),
        req_pool_indices,
        seq_lens,
        more,
        seq_lens if less is None else less,
        step.kv_indptr,
        step.kv_last_page_lens,
        step.kv_indices,
        step.g_kv_indptr,
        req_to_token.shape[1],
        step.kv_indices.shape[0],
        batch,
        HAS_LESS=less is not None,
        PAGE=deal.page_size,
        RANKS=deal.ranks,
        RANK=deal.rank,
        BATCH=triton.next_power_of_2(batch),
        PAGES=_PAGES,
    )
