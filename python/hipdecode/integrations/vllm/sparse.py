# SPDX-License-Identifier: MIT
"""vLLM's entries of DeepSeek-V4 sparse decode, as its ROCm path calls them.

Positions and names of the arguments are vLLM's. Later versions add keyword arguments: those that
only advise are taken, None and False ask for nothing, and any other is refused by its name.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from hipdecode.errors import BadArgument
from hipdecode.sparse import sparse_mla_decode
from hipdecode.sparse_cache import V4

ADVICE = ("extra_cache_nan_free", "adaptive_splits")
"""Keyword arguments that say how to compute, not what: the kernel needs no advice."""


def rocm_sparse_attn_decode(
    q: Tensor,
    kv_cache: Tensor | None,
    swa_k_cache: Tensor,
    swa_only: bool,
    topk_indices: Tensor | None,
    topk_lens: Tensor | None,
    swa_indices: Tensor | None,
    swa_lens: Tensor | None,
    swa_ragged_indices: Tensor | None,
    swa_ragged_indptr: Tensor | None,
    topk_ragged_indices: Tensor | None,
    topk_ragged_indptr: Tensor | None,
    attn_sink: Tensor | None,
    scale: float,
    head_dim: int,
    nope_head_dim: int,
    rope_head_dim: int,
    output: Tensor,
    **extras: object,
) -> None:
    """Attention over the sliding window and, unless swa_only, the compressed top-k cache.

    Args:
        q: [tokens, nhead, 512] bf16, one row per query token.
        kv_cache: compressed cache, [blocks, block_size, 584] uint8.
        swa_k_cache: sliding window cache likewise.
        swa_only: the compressed cache is not looked at.
        topk_indices: [tokens, ..., topk] int32 slots of kv_cache, used without a ragged list.
        topk_lens: [tokens] int32 of them that count; None: all.
        swa_indices: likewise for swa_k_cache.
        swa_lens: likewise.
        swa_ragged_indices: slots of swa_k_cache of all tokens, preferred to swa_indices.
        swa_ragged_indptr: [tokens + 1] int32 where each token's begin.
        topk_ragged_indices: likewise for kv_cache.
        topk_ragged_indptr: likewise.
        attn_sink: [nhead or more] fp32, or None.
        scale: softmax scale.
        head_dim: 512.
        nope_head_dim: 448.
        rope_head_dim: 64.
        output: [tokens, nhead, 512] bf16 or fp16, written in place.
        extras: see the module.

    Raises:
        BadArgument: an argument has a wrong type, shape or value; nothing was written.
    """
    _answer("rocm_sparse_attn_decode", extras)
    _check_dims(head_dim, nope_head_dim, rope_head_dim)
    extra_cache = None if swa_only else kv_cache
    if extra_cache is None and not swa_only:
        raise BadArgument("kv_cache: expected a tensor where swa_only is False, got None")
    main = _side(swa_k_cache, swa_indices, swa_lens, swa_ragged_indices, swa_ragged_indptr)
    extra = _Side()
    if extra_cache is not None:
        extra = _side(extra_cache, topk_indices, topk_lens, topk_ragged_indices, topk_ragged_indptr)
    _decode(q, main, extra, attn_sink, scale, output)


def decode_single(
    q: Tensor,
    main_cache: Tensor,
    main_indices: Tensor,
    main_indptr: Tensor,
    extra_cache: Tensor,
    extra_indices: Tensor,
    extra_indptr: Tensor,
    attn_sink: Tensor | None,
    output: Tensor,
    main_block_size: int,
    extra_block_size: int,
    main_num_rows: int,
    extra_num_rows: int,
    scale: float,
    has_extra: bool,
    **extras: object,
) -> None:
    """As torch.ops.vllm_sparse_mla_hip.decode_single: ragged lists, no split.

    Args:
        q: [tokens, nhead, 512] bf16.
        main_cache: [blocks, block_size, 584] uint8.
        main_indices: slots, int32.
        main_indptr: [tokens + 1] int32.
        extra_cache: as main_cache; not looked at unless has_extra.
        extra_indices: as main_indices.
        extra_indptr: as main_indptr.
        attn_sink: [nhead or more] fp32, or None.
        output: [tokens, nhead, 512] bf16 or fp16, written in place.
        main_block_size: tokens of a block.
        extra_block_size: likewise.
        main_num_rows: slots from here on are masked.
        extra_num_rows: likewise.
        scale: softmax scale.
        has_extra: there is an extra cache.
        extras: see the module.

    Raises:
        BadArgument: an argument has a wrong type, shape or value; nothing was written.
    """
    _answer("decode_single", extras)
    main = _Ragged(main_cache, main_indices, main_indptr, main_block_size, main_num_rows)
    extra = _Ragged(extra_cache, extra_indices, extra_indptr, extra_block_size, extra_num_rows)
    _decode_ragged(q, main, extra if has_extra else None, attn_sink, scale, output, 1)


def decode_split(
    q: Tensor,
    main_cache: Tensor,
    main_indices: Tensor,
    main_indptr: Tensor,
    extra_cache: Tensor,
    extra_indices: Tensor,
    extra_indptr: Tensor,
    attn_sink: Tensor | None,
    output: Tensor,
    scratch_m: Tensor,
    scratch_l: Tensor,
    scratch_acc: Tensor,
    main_block_size: int,
    extra_block_size: int,
    main_num_rows: int,
    extra_num_rows: int,
    scale: float,
    has_extra: bool,
    split_k: int,
    **extras: object,
) -> None:
    """As torch.ops.vllm_sparse_mla_hip.decode_split: decode_single in split_k pieces.

    Args:
        q: as in decode_single, and so are all that are not named here.
        main_cache: see q.
        main_indices: see q.
        main_indptr: see q.
        extra_cache: see q.
        extra_indices: see q.
        extra_indptr: see q.
        attn_sink: see q.
        output: see q.
        scratch_m: left alone: partial results are fp32 and lie in this thread's workspace, which
            does not allocate once it is warm.
        scratch_l: see scratch_m.
        scratch_acc: see scratch_m.
        main_block_size: see q.
        extra_block_size: see q.
        main_num_rows: see q.
        extra_num_rows: see q.
        scale: see q.
        has_extra: see q.
        split_k: pieces of each token's keys, 1 to 1024.
        extras: see the module.

    Raises:
        BadArgument: an argument has a wrong type, shape or value; nothing was written.
    """
    del scratch_m, scratch_l, scratch_acc
    _answer("decode_split", extras)
    main = _Ragged(main_cache, main_indices, main_indptr, main_block_size, main_num_rows)
    extra = _Ragged(extra_cache, extra_indices, extra_indptr, extra_block_size, extra_num_rows)
    _decode_ragged(q, main, extra if has_extra else None, attn_sink, scale, output, split_k)


def _decode_sparse_mla_hip(
    q: Tensor,
    main_cache: Tensor,
    main_indices: Tensor,
    main_indptr: Tensor,
    scale: float,
    attn_sink: Tensor | None,
    nope_head_dim: int,
    rope_head_dim: int,
    extra_cache: Tensor | None = None,
    extra_indices: Tensor | None = None,
    extra_indptr: Tensor | None = None,
    max_main_len: int | None = None,
    max_extra_len: int | None = None,
    **extras: object,
) -> Tensor:
    """The helper that vLLM's tests call: ragged lists, splits by the host's own lengths.

    Args:
        q: [tokens, nhead, 512] bf16.
        main_cache: [blocks, block_size, 584] uint8.
        main_indices: slots, int32.
        main_indptr: [tokens + 1] int32.
        scale: softmax scale.
        attn_sink: [nhead or more] fp32, or None.
        nope_head_dim: 448.
        rope_head_dim: 64.
        extra_cache: as main_cache, or None.
        extra_indices: as main_indices.
        extra_indptr: as main_indptr.
        max_main_len: slots of a token at most, for the number of splits alone.
        max_extra_len: likewise.
        extras: see the module.

    Returns:
        [tokens, nhead, 512] bf16.

    Raises:
        BadArgument: an argument has a wrong type, shape or value.
    """
    _answer("_decode_sparse_mla_hip", extras)
    _check_dims(q.shape[-1], nope_head_dim, rope_head_dim)
    output = torch.empty(q.shape, dtype=torch.bfloat16, device=q.device)
    main = _Side(main_cache, _int32(main_indices), _int32(main_indptr))
    extra = _Side()
    if extra_cache is not None and extra_indices is not None and extra_indptr is not None:
        extra = _Side(extra_cache, _int32(extra_indices), _int32(extra_indptr))
    known = max_main_len is not None and (extra.cache is None or max_extra_len is not None)
    keys = (max_main_len or 0) + (max_extra_len or 0) if known else None
    _decode(q, main, extra, attn_sink, scale, output, max_keys=keys)
    return output


class _Side(NamedTuple):
    """A cache and its lists, in the order of sparse_mla_decode."""

    cache: Tensor | None = None
    indices: Tensor | None = None
    indptr: Tensor | None = None
    lengths: Tensor | None = None


class _Ragged(NamedTuple):
    """A cache and its ragged lists, as the registered ops of vLLM take them."""

    cache: Tensor
    indices: Tensor
    indptr: Tensor
    block_size: int
    num_rows: int


def _decode_ragged(
    q: Tensor,
    main: _Ragged,
    extra: _Ragged | None,
    attn_sink: Tensor | None,
    scale: float,
    output: Tensor,
    num_splits: int,
) -> None:
    more = _Side() if extra is None else _ragged_side("extra", extra)
    _decode(q, _ragged_side("main", main), more, attn_sink, scale, output, num_splits=num_splits)


def _ragged_side(name: str, side: _Ragged) -> _Side:
    return _Side(_blocks(name, side), _int32(side.indices), _int32(side.indptr))


def _decode(
    q: Tensor,
    main: _Side,
    extra: _Side,
    attn_sink: Tensor | None,
    scale: float,
    output: Tensor,
    *,
    num_splits: int | None = None,
    max_keys: int | None = None,
) -> None:
    cache, indices, indptr, lengths = main
    if cache is None or indices is None:
        raise BadArgument("indices: expected a list or a table of the sliding window, got None")
    sparse_mla_decode(
        q,
        cache,
        indices,
        indptr=indptr,
        lengths=lengths,
        extra_cache=extra.cache,
        extra_indices=extra.indices,
        extra_indptr=extra.indptr,
        extra_lengths=extra.lengths,
        attn_sink=attn_sink,
        sm_scale=scale,
        out=output,
        num_splits=num_splits,
        max_keys=max_keys,
    )


def _side(
    cache: Tensor,
    indices: Tensor | None,
    lens: Tensor | None,
    ragged_indices: Tensor | None,
    ragged_indptr: Tensor | None,
) -> _Side:
    """Ragged lists where they are given, else the table."""
    if ragged_indices is not None and ragged_indptr is not None:
        return _Side(cache, _int32(ragged_indices), _int32(ragged_indptr))
    table = None if indices is None else _int32(indices).flatten(1)
    return _Side(cache, table, None, None if lens is None else _int32(lens))


def _int32(index: Tensor) -> Tensor:
    return index.to(torch.int32).contiguous()  # both return what fits already


def _blocks(name: str, side: _Ragged) -> Tensor:
    """The blocks of a cache that hold its first num_rows slots."""
    cache = side.cache
    if cache.dim() == 2:
        cache = cache.view(cache.shape[0], side.block_size, V4.token_bytes)
    if cache.shape[1] != side.block_size or side.num_rows % side.block_size:
        raise BadArgument(
            f"{name}_block_size, {name}_num_rows: expected {cache.shape[1]} and a multiple of it, "
            f"got {side.block_size} and {side.num_rows}"
        )
    return cache[: side.num_rows // side.block_size]


def _check_dims(head_dim: int, nope_head_dim: int, rope_head_dim: int) -> None:
    have = (V4.head_dim_qk, V4.latent, V4.rope)
    if (head_dim, nope_head_dim, rope_head_dim) != have:
        raise BadArgument(
            f"head_dim, nope_head_dim, rope_head_dim: expected {have}, got "
            f"{(head_dim, nope_head_dim, rope_head_dim)}"
        )


def _answer(name: str, extras: dict[str, object]) -> None:
    """Refuses keyword arguments that ask for something else.

    Raises:
        BadArgument: names them.
    """
    asked = {
        key: value
        for key, value in extras.items()
        if key not in ADVICE and value is not None and value is not False
    }
    if asked:
        words = ", ".join(f"{key}={value!r}" for key, value in asked.items())
        raise BadArgument(f"{name}: expected no further keyword arguments, got {words}; leave out")
