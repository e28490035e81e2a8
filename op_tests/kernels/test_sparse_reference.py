# SPDX-License-Identifier: MIT
"""The oracle of sparse MLA against the textbook formula, written out for one row."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

import hipdecode
from hipdecode.testing import sparse_reference

INF = math.inf


def _cache(seed: int = 0) -> Tensor:
    gen = torch.Generator().manual_seed(seed)
    cache = hipdecode.new_sparse_cache("v4", 3, 4)
    kv = torch.randn(12, 512, generator=gen)
    hipdecode.quantize_v4(kv, cache, torch.arange(12))
    return cache


def _row(q: Tensor, keys: Tensor, sink: float) -> tuple[Tensor, float]:
    """(o, lse) of one head: sums of exponentials as they stand."""
    weights = torch.exp(keys @ q * 512**-0.5)
    total = weights.sum()
    o = (weights @ keys) / (total + math.exp(sink))
    return o, math.log(total) if len(keys) else -INF


@pytest.mark.parametrize("sink", [-INF, -1.5, 0.0, 4.0])
def test_reference_is_the_textbook_formula(sink: float) -> None:
    main, extra = _cache(), _cache(1)
    q = torch.randn(2, 1, 512, generator=torch.Generator().manual_seed(2)).to(torch.bfloat16)
    indices = torch.tensor([[3, 3, -1, 12, 7], [0, 1, 2, 99, 5]], dtype=torch.int32)
    ragged = torch.tensor([9, 4, -7, 0], dtype=torch.int32)
    got = sparse_reference.sparse_mla_decode(
        q,
        main,
        indices,
        lengths=torch.tensor([5, 2], dtype=torch.int32),
        extra_cache=extra,
        extra_indices=ragged,
        extra_indptr=torch.tensor([0, 2, 4], dtype=torch.int32),
        attn_sink=torch.tensor([sink]),
    )
    for token, (mine, more) in enumerate((([3, 3, 7], [9, 4]), ([0, 1], [0]))):
        keys = torch.cat(
            [
                sparse_reference.read_v4(cache, torch.tensor(slots), torch.float8_e4m3fn)
                for cache, slots in ((main, mine), (extra, more))
            ]
        )
        o, lse = _row(q[token, 0].double(), keys, sink)
        assert torch.allclose(got.o[token, 0], o, rtol=1e-12, atol=0)
        assert math.isclose(float(got.lse[token, 0]), lse, rel_tol=1e-12)


@pytest.mark.parametrize("sink", [-INF, 0.0, INF])
def test_reference_gives_zero_where_no_key_or_only_the_sink_counts(sink: float) -> None:
    q = torch.ones(1, 1, 512, dtype=torch.bfloat16)
    for slots in ([-1, 12, -5], [1, 2] if sink == INF else []):
        got = sparse_reference.sparse_mla_decode(
            q,
            _cache(),
            torch.tensor([slots], dtype=torch.int32).reshape(1, -1),
            attn_sink=torch.tensor([sink]),
        )
        assert (got.o == 0).all()
        seen = any(0 <= slot < 12 for slot in slots)
        assert got.lse.isfinite().all() if seen else (got.lse == -INF).all()
