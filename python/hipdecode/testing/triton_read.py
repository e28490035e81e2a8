# SPDX-License-Identifier: MIT
"""Reads memory as fast as it goes: what the ceiling of a GPU is measured with. Needs Triton."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

_BLOCK = 8192


@triton.jit  # type: ignore[untyped-decorator]
def _read(source, sink, count, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def] # noqa: ANN001, ANN202
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    words = tl.load(source + at, mask=at < count, other=0)
    # Never true of zeros; without a use the loads would be dropped.
    if tl.max(words, 0) == 0x7FFFFFFF:
        tl.store(sink, 1)


def read(source: Tensor, sink: Tensor) -> None:
    """Reads all of `source` (int32); `sink` is written where it holds the largest number."""
    count = source.numel()
    _read[(triton.cdiv(count, _BLOCK),)](source, sink, count, BLOCK=_BLOCK, num_warps=8)
