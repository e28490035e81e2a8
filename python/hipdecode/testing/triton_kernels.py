# SPDX-License-Identifier: MIT
"""Kernels for the clock of a GPU: one reads memory fast, one walks through code. Needs Triton."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

WALK_LANES = 32
_BLOCK = 8192
_CODE_BYTES = 256 << 10  # twice the instruction cache of an SM, at 16 bytes an instruction
_STEPS = tl.constexpr(
    "\n".join(
        [
            "{ .reg .f32 r<8>;",
            *(f"mov.f32 r{i}, $1;" for i in range(8)),
            # Constants of their own: equal instructions would be rolled into a loop.
            *(
                f"fma.rn.f32 r{i % 8}, r{i % 8}, 0f{0x3F000000 + i:08x}, $1;"
                for i in range(_CODE_BYTES // 16)
            ),
            *(f"add.f32 r0, r0, r{i};" for i in range(1, 8)),
            "mov.f32 $0, r0; }",
        ]
    )
)


@triton.jit  # type: ignore[untyped-decorator]
def _read(source, sink, count, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def] # noqa: ANN001, ANN202
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    words = tl.load(source + at, mask=at < count, other=0)
    # Never true of zeros; without a use the loads would be dropped.
    if tl.max(words, 0) == 0x7FFFFFFF:
        tl.store(sink, 1)


@triton.jit  # type: ignore[untyped-decorator]
def _walk(sink, LANES: tl.constexpr):  # type: ignore[no-untyped-def] # noqa: ANN001, ANN202
    at = sink + tl.arange(0, LANES)
    zero = tl.load(at)
    last = tl.inline_asm_elementwise(_STEPS, "=f,f", [zero], tl.float32, is_pure=False, pack=1)
    tl.store(at, last, mask=last > 1.0)  # never true: from zero the steps stay at zero


def read(source: Tensor, sink: Tensor) -> None:
    """Reads all of `source` (int32); `sink` is written where it holds the largest number."""
    count = source.numel()
    _read[(triton.cdiv(count, _BLOCK),)](source, sink, count, BLOCK=_BLOCK, num_warps=8)


def walk_code(sink: Tensor, blocks: int) -> None:
    """Runs straight through more code than an instruction cache holds; `sink`: 32 float zeros."""
    _walk[(blocks,)](sink, LANES=WALK_LANES, num_warps=1)
