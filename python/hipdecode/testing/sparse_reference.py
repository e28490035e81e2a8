# SPDX-License-Identifier: MIT
"""The fp64 oracle of sparse MLA decode, and readers of both cache formats.

Written from the byte layouts alone: it shares no code with the writers or the kernels. The contract
of a key is that of the published readers: fp8 value * scale in fp32, rounded to bf16.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from hipdecode.testing.cases import one_thread
from hipdecode.testing.reference import Attention, attend, fp8_table, scale_values

_BF16_BYTES = 128  # of the rotary part


def _bytes_at(cache: Tensor, address: Tensor, count: int) -> Tensor:
    """[n, count] int64 values of the bytes from each address on, counted from the cache's first."""
    blocks, _, *_ = cache.shape
    length = (blocks - 1) * cache.stride(0) + cache[0].numel() if blocks else 0
    memory = cache.view(torch.uint8).as_strided((length,), (1,))
    return memory[address[:, None] + torch.arange(count)].long()


def _bf16(pairs: Tensor) -> Tensor:
    """float64 values of little-endian bf16 bytes [n, 2 * columns]."""
    low, high = pairs[:, 0::2], pairs[:, 1::2]
    bits = (low | (high << 8)) << 16
    bits = torch.where(bits >= 2**31, bits - 2**32, bits).to(torch.int32)
    return bits.view(torch.float32).double()


def _rounded(exact: Tensor) -> Tensor:
    """What is left of a product after fp32 and bf16."""
    return exact.float().to(torch.bfloat16).double()


def read_v32(cache: Tensor, slots: Tensor, dtype: torch.dtype) -> Tensor:
    """Keys [n, 576] float64 of a DeepSeek-V3.2 cache.

    A token is 656 bytes: 512 fp8; four fp32 scales, one for each 128 of them; 64 bf16.

    Args:
        cache: [num_blocks, block_size, 656] uint8, blocks cache.stride(0) bytes apart.
        slots: [n] int64, all valid.
        dtype: fp8 flavour.
    """
    block_size = cache.shape[1]
    start = slots // block_size * cache.stride(0) + slots % block_size * 656
    codes = _bytes_at(cache, start, 512)
    words = _bytes_at(cache, start + 512, 16).view(-1, 4, 4)
    bits = (words << torch.tensor([0, 8, 16, 24])).sum(2)
    bits = torch.where(bits >= 2**31, bits - 2**32, bits).to(torch.int32)
    scale = bits.view(torch.float32).double().repeat_interleave(128, dim=1)
    latent = _rounded(fp8_table(dtype)[codes] * scale)
    return torch.cat((latent, _bf16(_bytes_at(cache, start + 528, _BF16_BYTES))), dim=1)


def read_v4(cache: Tensor, slots: Tensor, dtype: torch.dtype) -> Tensor:
    """Keys [n, 512] float64 of a DeepSeek-V4 cache.

    A block is block_size tokens of 448 fp8 and 64 bf16, then block_size records of seven UE8M0
    scales, one for each 64 fp8, and a byte that means nothing.

    Args:
        cache: [num_blocks, block_size, 584] uint8, blocks cache.stride(0) bytes apart.
        slots: [n] int64, all valid.
        dtype: fp8 flavour.
    """
    block_size = cache.shape[1]
    block, position = slots // block_size * cache.stride(0), slots % block_size
    codes = _bytes_at(cache, block + position * 576, 448)
    biased = _bytes_at(cache, block + block_size * 576 + position * 8, 7)
    scale = torch.pow(2.0, (biased - 127).double())
    scale = torch.where(biased == 255, torch.full_like(scale, math.nan), scale)
    latent = _rounded(fp8_table(dtype)[codes] * scale.repeat_interleave(64, dim=1))
    return torch.cat((latent, _bf16(_bytes_at(cache, block + position * 576 + 448, 128))), dim=1)


READERS = {656: read_v32, 584: read_v4}


def token_slots(
    token: int,
    indices: Tensor,
    *,
    indptr: Tensor | None = None,
    lengths: Tensor | None = None,
) -> list[int]:
    """The entries of one token's list.

    Args:
        token: row of q.
        indices: [any] ragged with indptr [tokens + 1], else a table [tokens, topk].
        indptr: where each token's entries begin; what lies outside of indices does not exist.
        lengths: [tokens / n] entries of a table row that count, for each n tokens; None: all.
    """
    if indptr is not None:
        count = indices.numel()
        begin = min(max(int(indptr[token]), 0), count)
        end = min(max(int(indptr[token + 1]), begin), count)
        return [int(slot) for slot in indices.reshape(-1)[begin:end]]
    row = indices[token]
    length = row.numel()
    if lengths is not None:
        step = indices.shape[0] // lengths.numel()
        length = min(max(int(lengths[token // step]), 0), length)
    return [int(slot) for slot in row[:length]]


def keys_of(cache: Tensor, slots: list[int], dtype: torch.dtype) -> Tensor:
    """The keys of a list, without what is no slot of the cache."""
    limit = cache.shape[0] * cache.shape[1]
    held = torch.tensor([slot for slot in slots if 0 <= slot < limit], dtype=torch.int64)
    return READERS[cache.shape[-1]](cache, held, dtype)


def with_sink(part: Attention, sink: Tensor | None) -> Attention:
    """Adds the sink to the denominator of each head, once; the LSE stays that of the keys.

    Args:
        part: rows of [rows, nhead, head_dim_v].
        sink: [nhead], a logit without a value; None: none.
    """
    if sink is None:
        return part
    logit = sink.double().expand(part.lse.shape)
    share = torch.sigmoid(part.lse - logit)
    share = torch.where((part.lse == -math.inf) | (logit == math.inf), 0.0, share)
    share = torch.where(logit == -math.inf, 1.0, share)[..., None]
    scaled = scale_values(part, 1.0)
    for name in ("o", "l1", "l2"):
        getattr(scaled, name).mul_(share)
    scaled.faint.mul_(share[..., None])
    return scaled


@one_thread()
def sparse_mla_decode(
    q: Tensor,
    cache: Tensor,
    indices: Tensor,
    *,
    indptr: Tensor | None = None,
    lengths: Tensor | None = None,
    extra_cache: Tensor | None = None,
    extra_indices: Tensor | None = None,
    extra_indptr: Tensor | None = None,
    extra_lengths: Tensor | None = None,
    attn_sink: Tensor | None = None,
    sm_scale: float | None = None,
    kv_dtype: torch.dtype = torch.float8_e4m3fn,
    extra_kv_dtype: torch.dtype | None = None,
) -> Attention:
    """The fp64 result of `hipdecode.sparse_mla_decode`; same arguments.

    Each row of q attends to the keys that its own list names, in the main and the extra cache: as
    often as they are named, and not at all where an entry is no slot. V is the first 512 columns.
    """
    tokens, nhead, width = q.shape
    scale = width**-0.5 if sm_scale is None else sm_scale
    result = Attention.blank(tokens, nhead, 512)
    for token in range(tokens):
        slots = token_slots(token, indices, indptr=indptr, lengths=lengths)
        keys = keys_of(cache, slots, kv_dtype)
        if extra_cache is not None and extra_indices is not None:
            more = token_slots(token, extra_indices, indptr=extra_indptr, lengths=extra_lengths)
            found = keys_of(extra_cache, more, extra_kv_dtype or kv_dtype)
            keys = torch.cat((keys, found))
        visible = torch.ones(1, keys.shape[0], dtype=torch.bool)
        row = q[token : token + 1].double()
        part = attend(row, keys, visible, scale=scale, head_dim_v=512)
        result.put(slice(token, token + 1), with_sink(part, attn_sink))
    return result
