# SPDX-License-Identifier: MIT
# ruff: noqa: ANN001, ANN202
# mypy: disable-error-code="no-untyped-def,untyped-decorator"
"""Sparse MLA decode as one writes it in Triton: gather, dequantise, attend; splits and a merge."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from hipdecode.sparse_cache import V4, CacheFormat

_HEADS, _KEYS = 16, 32
_MOST_SPLITS = 16
_V = 512


# fmt: off
# One block of keys: [KEYS, 512] bf16, V's columns; of V3.2 also the rotary part behind them.
@triton.jit
def _attend_cache(q, q_rope, fp8, wide, scales, table, count, block_bytes, split, splits, scale,
                  m, total, acc, V4: tl.constexpr, SIZE: tl.constexpr, KEYS: tl.constexpr):
    cols, tail = tl.arange(0, 512), tl.arange(0, 64)
    for first in range(split * KEYS, count, splits * KEYS):
        at = first + tl.arange(0, KEYS)
        slot = tl.load(table + at, mask=at < count, other=-1)
        there = slot >= 0
        place, block = slot % SIZE, (slot // SIZE).to(tl.int64) * block_bytes
        if V4:
            base = block + place * 576
            live = there[:, None] & (cols < 448)[None, :]
            codes = tl.load(fp8 + base[:, None] + cols[None, :], mask=live, other=0.0)
            record = block + SIZE * 576 + place * 8
            power = tl.load(scales + record[:, None] + (cols // 64)[None, :], mask=live, other=127)
            latent = codes.to(tl.float32) * tl.exp2(power.to(tl.float32) - 127.0)
            rope_at = (base // 2 + 224)[:, None] + (cols - 448)[None, :]
            rope = tl.load(wide + rope_at, mask=there[:, None] & (cols >= 448)[None, :], other=0.0)
            keys = tl.where((cols < 448)[None, :], latent.to(tl.bfloat16), rope)
            scores = tl.dot(q, tl.trans(keys))
        else:
            base = block + place * 656
            codes = tl.load(fp8 + base[:, None] + cols[None, :], mask=there[:, None], other=0.0)
            scale_at = (base // 4 + 128)[:, None] + (cols // 128)[None, :]
            factor = tl.load(scales + scale_at, mask=there[:, None], other=0.0)
            keys = (codes.to(tl.float32) * factor).to(tl.bfloat16)
            rope_at = (base // 2 + 264)[:, None] + tail[None, :]
            rope = tl.load(wide + rope_at, mask=there[:, None], other=0.0)
            scores = tl.dot(q, tl.trans(keys)) + tl.dot(q_rope, tl.trans(rope))
        scores = tl.where(there[None, :], scores * scale, float("-inf"))
        top = tl.maximum(m, tl.max(scores, 1))
        base_of = tl.where(top == float("-inf"), 0.0, top)
        fade, weights = tl.exp(m - base_of), tl.exp(scores - base_of[:, None])
        total = total * fade + tl.sum(weights, 1)
        acc = tl.dot(weights.to(tl.bfloat16), keys, acc * fade[:, None])
        m = top
    return m, total, acc


@triton.jit
def _decode(q, fp8, wide, scales, table, fp8_2, wide_2, scales_2, table_2,
            out, partial, levels, sink, count, count_2, block_bytes, nhead, scale,
            V4: tl.constexpr, SIZE: tl.constexpr, WIDTH: tl.constexpr, HEADS: tl.constexpr,
            KEYS: tl.constexpr, SPLITS: tl.constexpr, EXTRA: tl.constexpr, SINK: tl.constexpr):
    token, split = tl.program_id(0).to(tl.int64), tl.program_id(2)
    heads, cols = tl.program_id(1) * HEADS + tl.arange(0, HEADS), tl.arange(0, 512)
    live = (heads < nhead)[:, None]
    row = q + (token * nhead + heads)[:, None] * WIDTH
    mine = tl.load(row + cols[None, :], mask=live, other=0.0)
    rope = mine
    if not V4:
        rope = tl.load(row + 512 + tl.arange(0, 64)[None, :], mask=live, other=0.0)
    m = tl.full([HEADS], float("-inf"), tl.float32)
    total, acc = tl.zeros([HEADS], tl.float32), tl.zeros([HEADS, 512], tl.float32)
    m, total, acc = _attend_cache(mine, rope, fp8, wide, scales, table + token * count, count,
                              block_bytes, split, SPLITS, scale, m, total, acc, V4, SIZE, KEYS)
    if EXTRA:
        m, total, acc = _attend_cache(mine, rope, fp8_2, wide_2, scales_2,
                                      table_2 + token * count_2, count_2, block_bytes,
                                      split, SPLITS, scale, m, total, acc, V4, SIZE, KEYS)
    if SPLITS == 1:
        if SINK:
            total += tl.exp(tl.load(sink + heads, mask=heads < nhead, other=0.0) - m)
        at = (token * nhead + heads)[:, None] * 512 + cols[None, :]
        tl.store(out + at, (acc / total[:, None]).to(tl.bfloat16), mask=live)
    else:
        at = (token * SPLITS + split) * nhead + heads
        tl.store(partial + at[:, None] * 512 + cols[None, :], acc, mask=live)
        tl.store(levels + at * 2, m, mask=heads < nhead)
        tl.store(levels + at * 2 + 1, total, mask=heads < nhead)


@triton.jit
def _merge(partial, levels, sink, out, nhead, SPLITS: tl.constexpr, SINK: tl.constexpr):
    token, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    cols, splits = tl.arange(0, 512), tl.arange(0, SPLITS)
    at = (token * SPLITS + splits) * nhead + head
    m, sums = tl.load(levels + at * 2), tl.load(levels + at * 2 + 1)
    top = tl.max(m, 0)
    shares = tl.exp(m - top)
    values = tl.load(partial + at[:, None] * 512 + cols[None, :])
    total = tl.sum(sums * shares, 0)
    if SINK:
        total += tl.exp(tl.load(sink + head) - top)
    row = tl.sum(values * shares[:, None], 0) / total
    tl.store(out + (token * nhead + head) * 512 + cols, row.to(tl.bfloat16))
# fmt: on


class SparseDecode:
    """Buffers and launches of one step; rows that see nothing are not looked after."""

    def __init__(
        self,
        form: CacheFormat,
        q: Tensor,
        lists: list[tuple[Tensor, Tensor]],
        attn_sink: Tensor | None,
        out: Tensor,
        compute_units: int,
    ) -> None:
        """Chooses the splits: two blocks a compute unit, as many as there are keys for.

        Args:
            form: of the caches.
            q: [tokens, nhead, head_dim_qk] bf16, contiguous.
            lists: one or two of cache and [tokens, topk] int32 slots; blocks equally far apart.
            attn_sink: [nhead] fp32 or None.
            out: [tokens, nhead, 512] bf16, contiguous.
            compute_units: of the GPU.
        """
        tokens, nhead, _ = q.shape
        groups = triton.cdiv(nhead, _HEADS)
        fit = max(1, min(_MOST_SPLITS, 2 * compute_units // (tokens * groups)))
        fit = min(fit, triton.cdiv(max(table.shape[1] for _, table in lists), _KEYS))
        self.splits = 1 << (fit.bit_length() - 1)
        self.grid = (tokens, groups, self.splits)
        rows = tokens * nhead * self.splits
        self.partial = torch.empty(rows * _V, dtype=torch.float32, device=q.device)
        self.levels = torch.empty(rows * 2, dtype=torch.float32, device=q.device)
        self.q, self.out, self.sink = q, out, q if attn_sink is None else attn_sink
        self.views = [(*_views(form, cache), table) for cache, table in lists]
        self.flags = {
            "V4": form is V4,
            "SIZE": lists[0][0].shape[1],
            "WIDTH": q.shape[2],
            "HEADS": _HEADS,
            "KEYS": _KEYS,
            "SPLITS": self.splits,
            "EXTRA": len(lists) > 1,
            "SINK": attn_sink is not None,
        }
        self.block_bytes, self.scale = lists[0][0].stride(0), form.head_dim_qk**-0.5

    def __call__(self) -> Tensor:
        """Decodes; returns out."""
        main, extra = self.views[0], self.views[-1]
        nhead = self.q.shape[1]
        _decode[self.grid](
            self.q, *main, *extra, self.out, self.partial, self.levels, self.sink,
            main[-1].shape[1], extra[-1].shape[1], self.block_bytes, nhead, self.scale,
            **self.flags,
        )  # fmt: skip
        if self.splits > 1:
            _merge[(self.grid[0], nhead)](
                self.partial, self.levels, self.sink, self.out, nhead,
                SPLITS=self.splits, SINK=self.flags["SINK"],
            )  # fmt: skip
        return self.out


def _views(form: CacheFormat, cache: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """A cache's memory as fp8, as bf16 and as its scales' type."""
    memory = cache.as_strided((cache.shape[0] * cache.stride(0),), (1,))
    scales = memory if form is V4 else memory.view(torch.float32)
    return memory.view(torch.float8_e4m3fn), memory.view(torch.bfloat16), scales
