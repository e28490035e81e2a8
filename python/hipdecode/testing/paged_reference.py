# SPDX-License-Identifier: MIT
"""The fp64 oracle of paged attention, and readers of its caches.

Written from the layouts alone: it shares no code with the writers or the kernels. An element's
address is spelled out from the strides of the tensor, one column at a time.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hipdecode.testing.cases import one_thread
from hipdecode.testing.reference import Attention, attend, dequantise


def _elements(cache: Tensor, address: Tensor) -> Tensor:
    """float64 values of the elements `address` counts from the cache's first."""
    span = 1 + sum((n - 1) * s for n, s in zip(cache.shape, cache.stride(), strict=True))
    width = torch.uint8 if cache.element_size() == 1 else torch.int16
    memory = cache.view(width).as_strided((span,), (1,), cache.storage_offset())
    return dequantise(memory[address].view(cache.dtype))


def read_keys(cache: Tensor, block: Tensor, position: Tensor, head: int) -> Tensor:
    """[n, head_dim] float64 keys of tokens.

    Args:
        cache: [num_blocks, nhead_kv, head_dim / x, block_size, x].
        block: [n] int64, all valid.
        position: [n] int64, within the block.
        head: kv head.
    """
    x = 16 // cache.element_size()
    d = torch.arange(cache.shape[2] * x)
    start = block * cache.stride(0) + head * cache.stride(1) + position * cache.stride(3)
    return _elements(cache, start[:, None] + (d // x * cache.stride(2) + d % x)[None])


def read_values(cache: Tensor, block: Tensor, position: Tensor, head: int) -> Tensor:
    """[n, head_dim] float64 values of tokens.

    Args:
        cache: [num_blocks, nhead_kv, block_size / x, head_dim, x], or [num_blocks, nhead_kv,
            head_dim, block_size].
        block: [n] int64, all valid.
        position: [n] int64, within the block.
        head: kv head.
    """
    x = 16 // cache.element_size()
    start = block * cache.stride(0) + head * cache.stride(1)
    if cache.dim() == 5:
        start = start + position // x * cache.stride(2) + position % x
        columns = torch.arange(cache.shape[3]) * cache.stride(3)
    else:
        start = start + position
        columns = torch.arange(cache.shape[2]) * cache.stride(2)
    return _elements(cache, start[:, None] + columns[None])


def _scaled(
    values: Tensor, scale: Tensor | None, block: Tensor, position: Tensor, head: int
) -> Tensor:
    if scale is None:
        return values
    if scale.numel() == 1:
        return values * scale.double().reshape(())
    return values * scale.double()[block, head, position].reshape(-1, 1)


@one_thread()
def paged_attention(
    q: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    block_tables: Tensor,
    context_lens: Tensor,
    *,
    max_seqlen_q: int = 1,
    qo_indptr: Tensor | None = None,
    k_scale: Tensor | None = None,
    v_scale: Tensor | None = None,
    sm_scale: float | None = None,
) -> Attention:
    """The fp64 result of `hipdecode.paged_attention`; same arguments.

    Token t of the n tokens of a request sees the keys before context_len - n + t + 1 whose block
    exists. Scales count for fp8 caches alone.
    """
    rows, nhead, head_dim = q.shape
    num_blocks, nhead_kv, _, block_size, _ = key_cache.shape
    gqa = nhead // nhead_kv
    result = Attention.blank(rows, nhead, head_dim)
    scales = (k_scale, v_scale) if key_cache.element_size() == 1 else (None, None)
    for request in range(block_tables.shape[0]):
        first, end = request * max_seqlen_q, (request + 1) * max_seqlen_q
        if qo_indptr is not None:
            first, end = int(qo_indptr[request]), int(qo_indptr[request + 1])
        count = end - first
        context = min(int(context_lens[request]), block_tables.shape[1] * block_size)
        token = torch.arange(max(context, 0))
        block = block_tables[request].long()[token // block_size]
        exists = (block >= 0) & (block < num_blocks)
        token, block = token[exists], block[exists]
        limit = context - count + torch.arange(count) + 1
        visible = token[None, :] < limit[:, None]
        at = (block, token % block_size)
        for head in range(nhead_kv):
            heads = slice(head * gqa, (head + 1) * gqa)
            k = _scaled(read_keys(key_cache, *at, head), scales[0], *at, head)
            v = _scaled(read_values(value_cache, *at, head), scales[1], *at, head)
            part = _attend(
                q[first:end, heads].double(),
                k, v, visible, head_dim**-0.5 if sm_scale is None else sm_scale,
            )  # fmt: skip
            for name in ("o", "lse", "l1", "l2", "faint", "logit_bound"):
                getattr(result, name)[first:end, head * gqa : (head + 1) * gqa] = getattr(
                    part, name
                )
        result.written[first:end] = True
    return result


def _attend(q: Tensor, k: Tensor, v: Tensor, visible: Tensor, scale: float) -> Attention:
    """attend() of keys that are no part of their values: queries are zero in the columns of v."""
    joined = torch.cat((v, k), dim=1)
    wide = torch.cat((torch.zeros_like(q), q), dim=2)
    part = attend(wide, joined, visible, scale=scale, head_dim_v=v.shape[1])
    if k.shape[0]:
        norm = k.nan_to_num().norm(dim=1)[None, :].masked_fill(~visible, 0.0).amax(1)
        part.logit_bound[:] = q.norm(dim=-1) * norm[:, None] * abs(scale)
    return part
