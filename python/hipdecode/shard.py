# SPDX-License-Identifier: MIT
"""One rank's share of a KV cache: which tokens it holds, and how many of a request's."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .arguments import check_int, check_tensor, describe
from .errors import BadArgument

_MAX_ROUND = 1 << 30  # tokens; kernels count them with 32 bits


class KvShard(NamedTuple):
    """The tokens of a cache that this rank holds: groups of them are dealt to the ranks in turn.

    Token t of a request lies on rank (t // kv_interleave) % cp_world_size, in order.

    Attributes:
        g_kv_indptr: [batch + 1] int32 on the device of q, tokens of each request over all ranks.
            Read by the kernels at every call or replay, where causal masks several query rows;
            None will do otherwise.
        cp_world_size: ranks that share the cache.
        cp_rank: which of them this one is.
        kv_interleave: tokens of a group.
    """

    g_kv_indptr: Tensor | None
    cp_world_size: int
    cp_rank: int
    kv_interleave: int = 1


def check_deal(world_size: int, rank: int, interleave: int) -> None:
    """Requires a rank of some ranks, and groups that can be counted.

    Raises:
        BadArgument: a number is out of its range.
    """
    check_int("cp_world_size", world_size, 1, _MAX_ROUND)
    check_int("cp_rank", rank, 0, world_size - 1)
    check_int("kv_interleave", interleave, 1, _MAX_ROUND // world_size)


def check_shard(
    shard: KvShard | None, batch: int, device: torch.device, *, causal: bool, max_seqlen_q: int
) -> None:
    """Checks a decode's share against its checked inputs.

    Raises:
        BadArgument: a field has a wrong type, shape or range.
    """
    if shard is None:
        return
    if not isinstance(shard, KvShard):
        raise BadArgument(f"shard: expected a KvShard or None, got {describe(shard)}")
    check_deal(*shard[1:])
    lengths = shard.g_kv_indptr
    if lengths is None:
        if shard.cp_world_size > 1 and causal and max_seqlen_q > 1:
            raise BadArgument(
                f"g_kv_indptr: expected lengths over all ranks where cp_world_size is "
                f"{shard.cp_world_size} and causal masks {max_seqlen_q} query rows, got None"
            )
        return
    check_tensor("g_kv_indptr", lengths, torch.int32, device, contiguous=True)
    if lengths.numel() < batch + 1:
        raise BadArgument(f"g_kv_indptr: expected [{batch + 1}], got {describe(lengths)}")


def shard_lengths(
    lengths: Tensor,
    world_size: int,
    rank: int,
    *,
    interleave: int = 1,
    out: Tensor | None = None,
) -> Tensor:
    """Tokens of each request that one rank holds.

    Args:
        lengths: int32, tokens over all ranks.
        world_size: ranks that share the cache.
        rank: which of them.
        interleave: tokens of a group.
        out: int32 of the same shape, written in place.

    Returns:
        int32 like `lengths`, on its device; nothing synchronises.

    Raises:
        BadArgument: a number is out of its range.
    """
    check_deal(world_size, rank, interleave)
    rest = lengths.remainder(world_size * interleave)
    held = (lengths - rest) // world_size  # whole rounds
    held += rest.sub_(rank * interleave).clamp_(0, interleave)
    return held if out is None else out.copy_(held)


def shard_indptr(
    g_kv_indptr: Tensor,
    world_size: int,
    rank: int,
    *,
    interleave: int = 1,
    page_size: int = 1,
    out: Tensor | None = None,
    last_page_lens: Tensor | None = None,
) -> Tensor:
    """Pages of each request that one rank holds, as the kv_indptr of its decodes.

    Args:
        g_kv_indptr: [batch + 1] int32, tokens of each request over all ranks.
        world_size: ranks that share the cache.
        rank: which of them.
        interleave: tokens of a group.
        page_size: tokens of a page of this rank's cache.
        out: [batch + 1] int32, written in place.
        last_page_lens: [batch] int32, written: tokens in each last page, 0 where there is none.

    Returns:
        [batch + 1] int32, page offsets; nothing synchronises.

    Raises:
        BadArgument: a number is out of its range.
    """
    check_int("page_size", page_size, 1)
    held = shard_lengths(g_kv_indptr.diff(), world_size, rank, interleave=interleave)
    pages = (held + (page_size - 1)) // page_size
    if last_page_lens is not None:
        last_page_lens.copy_(held - (pages - 1).clamp_(min=0) * page_size)
    if out is None:
        out = torch.empty_like(g_kv_indptr)
    out[:1].zero_()
    out[1:].copy_(pages.cumsum(0))
    return out
