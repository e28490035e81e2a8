# SPDX-License-Identifier: MIT
"""Sparse MLA decode in plain torch: gather, dequantise, two bf16 products and a softmax."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import hipdecode
from hipdecode.sparse_cache import V4, CacheFormat, format_of
from hipdecode.testing import compare, sparse_reference
from hipdecode.testing.bench_report import Checked
from hipdecode.testing.reference import Attention

_STEP = 256.0  # the bits of e4m3fn shifted by 7 are an fp16 number this many times too small
_NOT_BIT_14 = ~(1 << 14)
_V4_STEP = 576  # FlashMLA has blocks of V4 at multiples of it


@dataclass(frozen=True, slots=True)
class Side:
    """A cache and the lists of all tokens into it.

    Attributes:
        cache: [num_blocks, 64, bytes] uint8.
        indices: [tokens, topk] int32.
        lengths: [tokens] int32: all of topk. An indexer says them; a kernel need not look for them.
    """

    cache: Tensor
    indices: Tensor
    lengths: Tensor


@dataclass(frozen=True, slots=True)
class SparseStep:
    """One decode step over a pool that holds more than the step names.

    Attributes:
        form: format of the cache.
        q: [tokens, nhead, head_dim_qk] bf16.
        main: the cache, for V4 that of the sliding window.
        extra: V4's cache of compressed tokens, or None.
        attn_sink: [nhead] fp32, or None.
        out: [tokens, nhead, 512] bf16, written by every contender.
    """

    form: CacheFormat
    q: Tensor
    main: Side
    extra: Side | None
    attn_sink: Tensor | None
    out: Tensor

    @staticmethod
    def pool(form: CacheFormat, tokens: int, device: str) -> Tensor:
        """A cache of normal numbers; blocks of V4 padded as engines pad them."""
        block_size, chunk = 64, 4096
        step = -(-block_size * form.token_bytes // _V4_STEP) * _V4_STEP if form is V4 else None
        cache = hipdecode.new_sparse_cache(
            form, -(-tokens // block_size), block_size, block_bytes=step, device=device
        )
        write = hipdecode.quantize_v4 if form is V4 else hipdecode.quantize_v32
        gen = torch.Generator(device).manual_seed(0)
        for first in range(0, tokens, chunk):
            count = min(chunk, tokens - first)
            kv = torch.randn(count, form.head_dim_qk, generator=gen, device=device)
            slots = torch.arange(first, first + count, device=device)
            write(kv.to(torch.bfloat16), cache, slots)
        return cache

    @staticmethod
    def draw(
        cache: Tensor,
        *,
        tokens: int,
        nhead: int,
        topk: int,
        extra_topk: int = 0,
        sink: bool = False,
        seed: int = 0,
    ) -> SparseStep:
        """Slots without repeats in random order, other ones for each token and seed."""
        form, device = format_of(cache), cache.device
        gen = torch.Generator().manual_seed(seed)
        slots = cache.shape[0] * cache.shape[1]
        lists = [torch.randperm(slots, generator=gen)[: topk + extra_topk] for _ in range(tokens)]
        table = torch.stack(lists).to(torch.int32).to(device)

        def side(indices: Tensor) -> Side:
            count = torch.full((tokens,), indices.shape[1], dtype=torch.int32, device=device)
            return Side(cache, indices.contiguous(), count)

        q = torch.randn(tokens, nhead, form.head_dim_qk, generator=gen).to(torch.bfloat16)
        return SparseStep(
            form=form,
            q=q.to(device),
            main=side(table[:, :topk]),
            extra=side(table[:, topk:]) if extra_topk else None,
            attn_sink=torch.zeros(nhead, device=device) if sink else None,
            out=torch.empty(tokens, nhead, form.head_dim_v, dtype=torch.bfloat16, device=device),
        )

    @property
    def sides(self) -> tuple[Side, ...]:
        """Main, and extra where there is one."""
        return (self.main,) if self.extra is None else (self.main, self.extra)

    @property
    def keys(self) -> int:
        """Of a token."""
        return sum(side.indices.shape[1] for side in self.sides)

    @property
    def scale(self) -> float:
        """Of the softmax."""
        return float(self.form.head_dim_qk**-0.5)

    def want(self) -> Attention:
        """The oracle's answer for the first and the last token."""
        ends = self._ends
        more: dict[str, Any] = {}
        if self.extra is not None:
            more = {
                "extra_cache": self.extra.cache.cpu(),
                "extra_indices": self.extra.indices[ends].cpu(),
            }
        return sparse_reference.sparse_mla_decode(
            self.q[ends].cpu(),
            self.main.cache.cpu(),
            self.main.indices[ends].cpu(),
            **more,
            attn_sink=None if self.attn_sink is None else self.attn_sink.cpu(),
        )

    def check(self, out: Tensor, want: Attention, target: str) -> Checked:
        """Holds a result against what `want` has said."""
        error = (out[self._ends].cpu().double() - want.o).abs()
        allowed = compare.allowed_output(want, out.dtype, target, torch.bfloat16)
        return Checked(float(error.max()), bool((error <= allowed).all()))

    @property
    def _ends(self) -> slice:
        return slice(None, None, max(len(self.q) - 1, 1))


def dequantise(form: CacheFormat, cache: Tensor, slots: Tensor) -> Tensor:
    """[n, head_dim_qk] bf16 keys, as fast as torch does it: fp8 by shifts, not by its cast."""
    size, blocks, gap = cache.shape[1], cache.shape[0], cache.stride(0)
    records = cache.as_strided((blocks, size, form.data_bytes), (gap, form.data_bytes, 1))
    found = records[slots // size, slots % size]
    if form.scales_apart:
        start = size * form.data_bytes
        shape = (blocks, size, form.scale_bytes)
        apart = cache.as_strided(shape, (gap, form.scale_bytes, 1), start)
        biased = apart[slots // size, slots % size][:, : form.groups]
        scale = (biased.to(torch.int32) << 23).view(torch.float32)
    else:
        scale = found[:, form.latent : form.latent + form.scale_bytes].contiguous()
        scale = scale.view(torch.float32)
    codes = found[:, : form.latent].contiguous().view(torch.int8)
    bits = codes.to(torch.int16).bitwise_left_shift_(7).bitwise_and_(_NOT_BIT_14)
    wide = bits.view(torch.float16).to(torch.float32).view(-1, form.groups, form.group)
    keys = torch.empty(len(slots), form.head_dim_qk, dtype=torch.bfloat16, device=slots.device)
    keys[:, : form.latent] = wide.mul_(scale[:, :, None] * _STEP).view(-1, form.latent)
    keys[:, form.latent :] = found[:, -2 * form.rope :].contiguous().view(torch.bfloat16)
    return keys


def _attend(step: SparseStep, token: int, keys: Tensor) -> None:
    scores = torch.mm(step.q[token], keys.T).float().mul_(step.scale)
    if step.attn_sink is not None:
        scores = torch.cat((scores, step.attn_sink[:, None]), dim=1)
    weights = scores.softmax(-1).to(torch.bfloat16)[:, : len(keys)]
    step.out[token] = torch.mm(weights, keys[:, : step.form.head_dim_v])


def ours(step: SparseStep, num_splits: int | None = None) -> Callable[[], Tensor]:
    """`hipdecode.sparse_mla_decode`."""
    main, extra = step.main, step.extra
    workspace = hipdecode.Workspace(step.q.device)
    more: dict[str, Any] = {} if extra is None else {
        "extra_cache": extra.cache, "extra_indices": extra.indices, "extra_lengths": extra.lengths,
    }  # fmt: skip

    def run() -> Tensor:
        hipdecode.sparse_mla_decode(
            step.q,
            main.cache,
            main.indices,
            lengths=main.lengths,
            **more,
            attn_sink=step.attn_sink,
            out=step.out,
            num_splits=num_splits,
            workspace=workspace,
        )
        return step.out

    return run


def _lists(step: SparseStep) -> list[list[tuple[Tensor, Tensor]]]:
    """Of each token the caches and the slots that it names there."""
    return [
        [(side.cache, side.indices[token].long()) for side in step.sides]
        for token in range(len(step.q))
    ]


def _keys(step: SparseStep, lists: list[tuple[Tensor, Tensor]]) -> Tensor:
    found = [dequantise(step.form, cache, slots) for cache, slots in lists]
    return torch.cat(found) if len(found) > 1 else found[0]


def torch_gather(step: SparseStep) -> Callable[[], Tensor]:
    """Gather, dequantise and two products for each token."""
    lists = _lists(step)

    def run() -> Tensor:
        for token, mine in enumerate(lists):
            _attend(step, token, _keys(step, mine))
        return step.out

    return run


def torch_products(step: SparseStep) -> Callable[[], Tensor]:
    """The two products and the softmax alone: keys are gathered before the clock starts."""
    keys = [_keys(step, mine) for mine in _lists(step)]

    def run() -> Tensor:
        for token, mine in enumerate(keys):
            _attend(step, token, mine)
        return step.out

    return run


CONTENDERS = {"hipdecode": ours, "torch_gather": torch_gather, "torch_products": torch_products}
