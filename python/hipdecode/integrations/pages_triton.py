# SPDX-License-Identifier: MIT
"""The page lists of a step on a GPU, in one launch."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

_PAGES = 512


@triton.jit(do_not_specialize=["row_stride", "longest", "batch"])  # type: ignore[untyped-decorator]
def _fill(  # type: ignore[no-untyped-def] # noqa: ANN202
    table,  # noqa: ANN001
    row_stride,  # noqa: ANN001
    seq_lens,  # noqa: ANN001
    longest,  # noqa: ANN001
    batch,  # noqa: ANN001
    kv_indptr,  # noqa: ANN001
    kv_indices,  # noqa: ANN001
    kv_last_page_lens,  # noqa: ANN001
    SIZE: tl.constexpr,
    BATCH: tl.constexpr,
    PAGES: tl.constexpr,
):
    request = tl.program_id(0)
    lane = tl.arange(0, BATCH)
    lengths = tl.load(seq_lens + lane, mask=lane < batch, other=0)
    lengths = tl.minimum(tl.maximum(lengths, 0), longest)
    pages = (lengths + SIZE - 1) // SIZE
    begin = tl.sum(tl.where(lane < request, pages, 0), 0)
    count = tl.sum(tl.where(lane == request, pages, 0), 0)
    length = tl.sum(tl.where(lane == request, lengths, 0), 0)
    tl.store(kv_indptr + request + 1, begin + count)
    tl.store(kv_last_page_lens + request, length - (count - 1) * SIZE)
    if request == 0:
        tl.store(kv_indptr, 0)
    row = table + request.to(tl.int64) * row_stride
    for first in range(0, count, PAGES):
        page = first + tl.arange(0, PAGES)
        block = tl.load(row + page, mask=page < count, other=0)
        tl.store(kv_indices + begin + page, block.to(tl.int32), mask=page < count)


def fill(
    block_table: Tensor,
    seq_lens: Tensor,
    longest: int,
    page_size: int,
    lists: tuple[Tensor, Tensor, Tensor],
    max_batch: int,
) -> None:
    """Writes the lists of `PageLists.fill`.

    Args:
        block_table: [batch, any] int32 or int64, rows of any stride.
        seq_lens: [batch] int32 or int64, cut to 0..longest.
        longest: tokens that a row of the table has blocks for.
        page_size: a power of two.
        lists: kv_indptr [batch + 1], kv_indices and kv_last_page_lens [batch], int32, with room for
            the pages of `batch` requests of that length.
        max_batch: `batch` at most; one kernel is compiled for all.
    """
    batch = seq_lens.shape[0]
    if batch == 0:
        lists[0].zero_()
        return
    _fill[(batch,)](
        block_table, block_table.stride(0), seq_lens, longest, batch, *lists,
        SIZE=page_size, BATCH=triton.next_power_of_2(max_batch), PAGES=_PAGES,
    )  # fmt: skip
