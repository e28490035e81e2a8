# SPDX-License-Identifier: MIT
"""FlashInfer's paged attention on the step of a benchmark, where it is importable.

It scales an fp8 cache by one factor, so it is given the same numbers rounded once more: its times
compare, its error holds that rounding.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable

import torch
from torch import Tensor

from hipdecode.testing.paged_peers import PagedStep, gathered

_SCRATCH_BYTES = 256 << 20
_FP8_SCALE = 1 / 64


def _cache(step: PagedStep) -> tuple[Tensor, Tensor]:
    """[blocks, 2, nhead_kv, block_size, 128] of the step's keys and values, and their block ids."""
    size, (batch, columns) = step.key_cache.shape[3], step.block_tables.shape
    halves = []
    for dense in gathered(step):
        short = columns * size - dense.shape[2]
        padded = torch.nn.functional.pad(dense, (0, 0, 0, short))
        blocks = padded.reshape(batch, -1, columns, size, 128).transpose(1, 2)
        halves.append(blocks.reshape(batch * columns, -1, size, 128))
    both = torch.empty_like(torch.stack(halves, dim=1))
    both[step.block_tables.flatten().long()] = torch.stack(halves, dim=1)
    if step.k_scale is not None:
        both = (both / _FP8_SCALE).to(torch.float8_e4m3fn)
    return both, step.block_tables.flatten()


def _flashinfer(step: PagedStep) -> Callable[[], Tensor]:
    """The decode wrapper on tensor cores for one token, the prefill wrapper for several."""
    module = importlib.import_module("flashinfer")
    cache, indices = _cache(step)
    (batch, columns), device = step.block_tables.shape, step.q.device
    size, nhead, nhead_kv = step.key_cache.shape[3], step.q.shape[1], step.key_cache.shape[1]
    scratch = torch.empty(_SCRATCH_BYTES, dtype=torch.uint8, device=device)
    starts = torch.arange(batch + 1, device=device, dtype=torch.int32)
    last = torch.full((batch,), (step.context - 1) % size + 1, device=device, dtype=torch.int32)
    lists = (starts * columns, indices, last)
    sizes = (nhead, nhead_kv, 128, size)
    types = {"q_data_type": step.q.dtype, "kv_data_type": cache.dtype}
    if step.mtp == 1:
        wrapper = module.BatchDecodeWithPagedKVCacheWrapper(
            scratch, "HND", use_tensor_cores=True, backend="fa2"
        )
        wrapper.plan(*lists, *sizes, **types)
    else:
        wrapper = module.BatchPrefillWithPagedKVCacheWrapper(scratch, "HND", backend="fa2")
        wrapper.plan(starts * step.mtp, *lists, *sizes, causal=True, **types)
    scales = {} if step.k_scale is None else {"k_scale": _FP8_SCALE, "v_scale": _FP8_SCALE}
    out = torch.empty_like(step.q)

    def run() -> Tensor:
        wrapper.run(step.q, cache, out=out, **scales)
        return out

    return run


CONTENDERS: dict[str, Callable[[PagedStep], Callable[[], Tensor]]] = {"flashinfer": _flashinfer}
"""Ways of others to do a step on a GPU."""
