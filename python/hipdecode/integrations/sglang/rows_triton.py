# SPDX-License-Identifier: MIT
"""New tokens of a layer on a GPU: queries joined and latents stored, one launch for all of it.

SGLang's models hand over the two parts of queries and keys apart, as views with strides.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from hipdecode.errors import BadArgument

from .steps import Deal

_HEADS = 4  # of a program


@triton.jit  # type: ignore[untyped-decorator]
def _take(  # type: ignore[no-untyped-def] # noqa: ANN202
    q,  # noqa: ANN001
    q_row,  # noqa: ANN001
    q_head,  # noqa: ANN001
    q_rope,  # noqa: ANN001
    q_rope_row,  # noqa: ANN001
    q_rope_head,  # noqa: ANN001
    joined,  # noqa: ANN001
    nhead,  # noqa: ANN001
    k,  # noqa: ANN001
    k_row,  # noqa: ANN001
    k_rope,  # noqa: ANN001
    k_rope_row,  # noqa: ANN001
    scale,  # noqa: ANN001
    slots,  # noqa: ANN001
    cache,  # noqa: ANN001
    cache_row,  # noqa: ANN001
    cache_rows,  # noqa: ANN001
    HAS_SCALE: tl.constexpr,
    RANKS: tl.constexpr,
    RANK: tl.constexpr,
    WIDE: tl.constexpr,
    NARROW: tl.constexpr,
    HEADS: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    wide = tl.arange(0, WIDE)
    narrow = tl.arange(0, NARROW)
    if tl.program_id(1) == 0:
        slot = tl.load(slots + row).to(tl.int64)
        place = slot // RANKS
        # slot 0 is where padding goes
        mine = (slot > 0) & (slot % RANKS == RANK) & (place < cache_rows)
        latent = tl.load(k + row * k_row + wide).to(tl.float32)
        rope = tl.load(k_rope + row * k_rope_row + narrow).to(tl.float32)
        if HAS_SCALE:
            divisor = tl.load(scale)
            latent = latent / divisor
            rope = rope / divisor
        at = cache + place * cache_row
        end = tl.where(mine, WIDE + NARROW, 0)
        tl.store(at + wide, latent.to(cache.dtype.element_ty), mask=wide < end)
        tl.store(at + WIDE + narrow, rope.to(cache.dtype.element_ty), mask=narrow < end)
    else:
        head = (tl.program_id(1) - 1) * HEADS + tl.arange(0, HEADS)
        there = head[:, None] < nhead
        from_q = q + row * q_row + head[:, None] * q_head + wide[None, :]
        from_rope = q_rope + row * q_rope_row + head[:, None] * q_rope_head + narrow[None, :]
        to = joined + (row * nhead + head[:, None]) * (WIDE + NARROW)
        tl.store(to + wide[None, :], tl.load(from_q, mask=there), mask=there)
        tl.store(to + WIDE + narrow[None, :], tl.load(from_rope, mask=there), mask=there)


def take(
    q: Tensor,
    q_rope: Tensor,
    k: Tensor,
    k_rope: Tensor,
    scale: Tensor | None,
    slots: Tensor,
    cache: Tensor,
    deal: Deal,
) -> Tensor:
    """Stores the new latents of this rank and joins the queries.

    Args:
        q: [rows, nhead, head_dim_v], last stride 1.
        q_rope: [rows, nhead, rope], likewise.
        k: [rows, 1, head_dim_v], likewise.
        k_rope: [rows, 1, rope], likewise.
        scale: one fp32 that latents are divided by, or None.
        slots: [rows] int64, of all ranks; 0 and what lies behind the cache are left out.
        cache: [tokens, 1, head_dim_v + rope], written.
        deal: of the slots.

    Returns:
        [rows, nhead, head_dim_v + rope].

    Raises:
        BadArgument: there are fewer slots than rows.
    """
    rows, nhead, wide = q.shape
    if slots.shape[0] < rows:
        raise BadArgument(f"out_cache_loc: expected {rows} slots, got {slots.shape[0]}")
    narrow = q_rope.shape[-1]
    joined = torch.empty((rows, nhead, wide + narrow), dtype=q.dtype, device=q.device)
    _take[(rows, 1 + triton.cdiv(nhead, _HEADS))](
        q,
        q.stride(0),
        q.stride(1),
        q_rope,
        q_rope.stride(0),
        q_rope.stride(1),
        joined,
        nhead,
        k,
        k.stride(0),
        k_rope,
        k_rope.stride(0),
        joined if scale is None else scale,
        slots,
        cache,
        cache.stride(0),
        cache.shape[0],
        HAS_SCALE=scale is not None,
        RANKS=deal.ranks,
        RANK=deal.rank,
        WIDE=wide,
        NARROW=narrow,
        HEADS=_HEADS,
    )
    return joined
