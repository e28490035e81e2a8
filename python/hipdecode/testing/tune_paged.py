# SPDX-License-Identifier: MIT
"""Measures one point of the grid of paged attention: both kernels, and split counts of each."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from hipdecode.paged import PagedOptions, paged_attention
from hipdecode.paged_route import MAX_SPLITS, PagedKey, PagedShape, route_paged_attention
from hipdecode.split_rule import MIN_PIECE
from hipdecode.testing.paged_peers import PagedStep
from hipdecode.testing.tune_run import Call, How, race_steps
from hipdecode.tuning import Choice, Measurement, Point

POOL_TOKENS = 524288
"""Of a kv head: more than any cache holds; longer steps read some blocks twice."""
_BLOCK = 16
_MOST_BLOCKS = 2
"""Splits to try beside the rule: powers of two that give a compute unit at most so many blocks."""
_SPLIT_POWERS = 7
_TILE_ROWS = 16


def choices(point: Point[PagedKey], family: str) -> tuple[Choice, ...]:
    """What is timed at a point: both kernels with the rule's splits, `mtp` also with others."""
    key = point.key
    shape = PagedShape(
        family=family,
        compute_units=key.compute_units,
        batch=point.batch,
        nhead_kv=key.nhead_kv,
        gqa=key.gqa,
        mtp=key.mtp,
        kv_len=_capacity(point.kv_len),
        kv_dtype=key.kv_dtype,
        head_dim=key.head_dim,
    )
    by_rule = route_paged_attention(shape).num_splits
    tiles = point.batch * key.nhead_kv * -(-key.gqa * key.mtp // _TILE_ROWS)
    fit = _MOST_BLOCKS * key.compute_units // tiles
    most = min(max(fit, 2), -(-point.kv_len // MIN_PIECE), MAX_SPLITS)
    counts = [2**power for power in range(_SPLIT_POWERS) if 2**power <= most]
    tried = sorted({1, *counts[-3:]} - {by_rule})
    return (
        Choice("mtp", "auto"),
        Choice("general", "auto"),
        *(Choice("mtp", count) for count in tried),
    )


def _capacity(kv_len: int) -> int:
    """Tokens of a request as a table of blocks holds them."""
    return -(-kv_len // _BLOCK) * _BLOCK


@dataclass(slots=True)
class PagedPoints:
    """Measures points; holds the pool that they read.

    Attributes:
        how: see How.
    """

    how: How
    _pools: dict[int, PagedStep] = field(default_factory=dict)

    def measure(self, point: Point[PagedKey], budget_s: float) -> Measurement[PagedKey]:
        """See `tune_run.measure`; blocks lie all over a pool that no cache holds."""
        tried = choices(point, self.how.target.family)
        return race_steps(
            point, self.how, budget_s, partial(self.step, point),
            lambda step: {choice: _call(step, choice) for choice in tried},
        )  # fmt: skip

    def step(self, point: Point[PagedKey], seed: int) -> PagedStep:
        """A step of the point's shape over the pool."""
        key, device = point.key, self.how.target.device_type
        pool = self._pools.get(key.nhead_kv)
        if pool is None:
            pool = self._pools[key.nhead_kv] = PagedStep.draw(
                batch=1, context=POOL_TOKENS, gqa=1, nhead_kv=key.nhead_kv, mtp=1, fp8=True,
                block_size=_BLOCK, device=device,
            )  # fmt: skip
        gen = torch.Generator().manual_seed(seed)
        columns = _capacity(point.kv_len) // _BLOCK
        wanted, blocks = point.batch * columns, pool.key_cache.shape[0]
        turns = [torch.randperm(blocks, generator=gen) for _ in range(-(-wanted // blocks))]
        table = torch.cat(turns)[:wanted].to(torch.int32).view(point.batch, columns)
        rows, nhead = point.batch * key.mtp, key.nhead_kv * key.gqa
        q = torch.randn(rows, nhead, key.head_dim, generator=gen).to(torch.bfloat16).to(device)
        lens = torch.full((point.batch,), point.kv_len, dtype=torch.int32, device=device)
        return dataclasses.replace(
            pool, q=q, block_tables=table.to(device), context_lens=lens, mtp=key.mtp,
            context=point.kv_len, out=torch.empty_like(q),
        )  # fmt: skip


def _call(step: PagedStep, choice: Choice) -> Call:
    splits = choice.num_splits if isinstance(choice.num_splits, int) else None
    options = PagedOptions(max_seqlen_q=step.mtp, route=choice.route, num_splits=splits)

    def run() -> Tensor:
        return paged_attention(
            step.q, step.key_cache, step.value_cache, step.block_tables, step.context_lens,
            options=options, k_scale=step.k_scale, v_scale=step.v_scale, out=step.out,
        )  # fmt: skip

    return run
