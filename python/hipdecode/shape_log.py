# SPDX-License-Identifier: MIT
"""The log of shapes: one line for each new one, in the field order of aiter#3003."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence

from .dispatch import DecodeShape, Route, load_table, logger, table_key

_SEEN_SHAPES = 4096
_TORCH_NAMES = {
    "bf16": "torch.bfloat16",
    "fp16": "torch.float16",
    "fp8_e4m3fn": "torch.float8_e4m3fn",
    "fp8_e4m3fnuz": "torch.float8_e4m3fnuz",
}
_seen: dict[tuple[object, ...], None] = {}


def log_shape(
    shape: DecodeShape,
    route: Route,
    *,
    q_shape: Sequence[int],
    kv_shape: Sequence[int],
    o_shape: Sequence[int],
    total_kv: int | None,
    planned: bool,
) -> None:
    """Log one INFO line for each new shape, in the field order of aiter#3003's shape log.

    A shape is new when its tensors, dtypes, page size or route have not been logged; the context
    alone, which grows each step, does not make it new. Returns at once while the logger is off.

    Args:
        shape: what was routed.
        route: the answer.
        q_shape: q's shape.
        kv_shape: kv_buffer's shape.
        o_shape: the output's shape.
        total_kv: length of kv_indices, a capacity under a graph; None when unknown.
        planned: whether the caller gave a plan.
    """
    if not logger.isEnabledFor(logging.INFO):
        return
    shapes = (tuple(q_shape), tuple(kv_shape), tuple(o_shape))
    mark = (*shapes, shape.q_dtype, shape.kv_dtype, shape.page_size, planned, route.route)
    if mark in _seen:
        return
    _seen[mark] = None
    if len(_seen) > _SEEN_SHAPES:
        _seen.pop(next(iter(_seen)), None)
    logger.info(
        "[HIPDECODE_MLA_DECODE_SHAPE] q_shape=%s kv_shape=%s o_shape=%s q_dtype=%s kv_dtype=%s "
        "nhead=%d max_seqlen_q=%d page_size=%d nhead_kv=1 total_kv=%s persistent=%s "
        "hk_supported_head_shape=True hk_avg_ctx_per_seq=%s hk_max_ctx_per_seq=%s use_hk=%s",
        *shapes,
        _TORCH_NAMES[shape.q_dtype],
        _TORCH_NAMES[shape.kv_dtype],
        shape.nhead,
        shape.q_len,
        shape.page_size,
        total_kv,
        planned,
        shape.kv_len,
        hk_max_ctx(shape),
        route.route == "hk",
    )


def hk_max_ctx(shape: DecodeShape) -> int | None:
    """Return the largest context, in tokens, that the family's table gives to hk at this batch.

    It is 0 where hk is never chosen, None where no length ends it or no row is near.
    """
    table = load_table(shape.family)
    key = table.nearest_key(table_key(shape))
    if key is None:
        return None
    ends = [
        row.rect.kv_to
        for row in table.rows_by_key[key]
        if row.route == "hk" and row.rect.batch_from <= shape.batch < row.rect.batch_to
    ]
    end = max(ends, default=1)
    return None if end == math.inf else int(end) - 1
