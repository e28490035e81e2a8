# SPDX-License-Identifier: MIT
"""Shares of a cache: what each rank is given of a step, and the fp64 oracle of its decode.

Written from the contract: token t of a request lies on rank (t // interleave) % ranks. Nothing here
counts tokens by a formula, so it shares none with the kernels.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hipdecode.shard import KvShard
from hipdecode.testing import cases, reference
from hipdecode.testing.cases import Case, MlaInputs
from hipdecode.testing.reference import Attention


def tokens_of(kv_len: int, ranks: int, rank: int, interleave: int = 1) -> list[int]:
    """The tokens of a request that a rank holds, in order."""
    return [t for t in range(kv_len) if t // interleave % ranks == rank]


def global_lengths(case: Case) -> Tensor:
    """[batch + 1] int32, tokens of each request over all ranks."""
    return torch.tensor([0, *case.kv_lens], dtype=torch.int32).cumsum(0).to(torch.int32)


@cases.one_thread()
def share_of(
    case: Case, inputs: MlaInputs, ranks: int, rank: int, *, interleave: int = 1, page_size: int = 1
) -> MlaInputs:
    """What a rank is given: its tokens alone, in permuted pages of its own, NaN elsewhere.

    Args:
        case: where the inputs come from.
        inputs: of all ranks together.
        ranks: how many there are.
        rank: which of them.
        interleave: tokens of a group.
        page_size: of the rank's own pages.

    Returns:
        The keyword arguments of one call, on the CPU.
    """
    pool, source = inputs["kv_buffer"], inputs["kv_buffer"].shape[1]
    held = [tokens_of(n, ranks, rank, interleave) for n in case.kv_lens]
    pages = [-(-len(tokens) // page_size) for tokens in held]
    gen = torch.Generator("cpu").manual_seed(case.seed + rank)
    ids = torch.randperm(sum(pages) + 2, generator=gen)[: sum(pages)]
    shape = (sum(pages) + 2, page_size, 1, case.head_dim_qk)
    mine = torch.zeros(shape, dtype=torch.bfloat16).to(pool.dtype)
    cases.poison(mine, torch.ones(shape[:2], dtype=torch.bool))
    to, from_ = (t.view(torch.uint8) if t.dtype.itemsize == 1 else t for t in (mine, pool))
    first = 0
    for b, tokens in enumerate(held):
        where = torch.tensor(tokens, dtype=torch.int64)
        slot = torch.arange(len(tokens))
        page = inputs["kv_indices"][int(inputs["kv_indptr"][b]) + where // source].long()
        to[ids[first + slot // page_size], slot % page_size] = from_[page, where % source]
        first += pages[b]
    ends = torch.tensor([0, *pages], dtype=torch.int32).cumsum(0).to(torch.int32)
    last = [len(t) - (p - 1) * page_size if p else 0 for t, p in zip(held, pages, strict=True)]
    return MlaInputs(
        q=inputs["q"],
        kv_buffer=mine,
        qo_indptr=inputs["qo_indptr"],
        kv_indptr=ends,
        kv_indices=ids.to(torch.int32),
        max_seqlen_q=inputs["max_seqlen_q"],
        kv_last_page_lens=torch.tensor(last, dtype=torch.int32),
        sm_scale=inputs["sm_scale"],
        causal=inputs["causal"],
        q_scale=inputs["q_scale"],
        kv_scale=inputs["kv_scale"],
    )


@cases.one_thread()
def decode_share(
    case: Case, inputs: MlaInputs, ranks: int, rank: int, interleave: int
) -> Attention:
    """The fp64 result of one rank's decode: row i of n sees its tokens up to kv_len - n + i.

    Args:
        case: where the inputs come from.
        inputs: of all ranks together, on the CPU.
        ranks: how many there are.
        rank: which of them.
        interleave: tokens of a group.
    """
    q, pool = inputs["q"], inputs["kv_buffer"]
    scale, value_scale = reference.scales(
        q, pool, inputs["sm_scale"], inputs["q_scale"], inputs["kv_scale"]
    )
    result = Attention.blank(q.shape[0], case.nhead, case.head_dim_v)
    result.written[:] = True
    first = 0
    for b, kv_len in enumerate(case.kv_lens):
        rows, begin = case.q_lens[b], int(inputs["kv_indptr"][b])
        keys, valid = reference.gather_tokens(pool, inputs["kv_indices"][begin:], kv_len)
        mine = torch.tensor(tokens_of(kv_len, ranks, rank, interleave), dtype=torch.int64)
        last = torch.full((rows,), kv_len)
        if inputs["causal"]:
            last = kv_len - rows + torch.arange(rows)
        visible = (mine[None, :] <= last[:, None]) & valid[mine][None, :]
        part = reference.attend(
            reference.dequantise(q[first : first + rows]), keys[mine], visible,
            scale=scale, head_dim_v=case.head_dim_v,
        )  # fmt: skip
        result.put(slice(first, first + rows), reference.scale_values(part, value_scale))
        first += rows
    return result


def shard_of(
    case: Case, ranks: int, rank: int, interleave: int, device: torch.device | str = "cpu"
) -> KvShard:
    """The `shard` of a rank's decode."""
    return KvShard(global_lengths(case).to(device), ranks, rank, interleave)
