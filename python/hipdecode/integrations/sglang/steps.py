# SPDX-License-Identifier: MIT
"""Lengths and pages of SGLang's steps, in buffers that graphs may hold."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hipdecode.errors import BadArgument
from hipdecode.plan import MlaPlan


class Deal(NamedTuple):
    """How the tokens of a request lie in slots, and whose they are.

    SGLang numbers the slots of all ranks that share keys (--dcp-size) as one: slot s is row
    s // ranks of rank s % ranks, and token t of a request has a slot of rank t % ranks.

    Attributes:
        page_size: consecutive rows of a page.
        ranks: that share the keys.
        rank: which of them.
    """

    page_size: int
    ranks: int = 1
    rank: int = 0


@dataclass(slots=True)
class Step:
    """Where one step's lengths and pages lie.

    Attributes:
        q_len: query rows of each request.
        qo_indptr: [batch + 1] int32, query rows.
        kv_indptr: [batch + 1] int32, pages of this rank.
        kv_last_page_lens: [batch] int32, tokens.
        kv_indices: [capacity] int32, page ids.
        g_kv_indptr: [batch + 1] int32, tokens over all ranks.
        kv_len: average context in tokens for the route; None in a graph, which replays others.
        plan: of this step, where its route walks one.
    """

    q_len: int
    qo_indptr: Tensor
    kv_indptr: Tensor
    kv_last_page_lens: Tensor
    kv_indices: Tensor
    g_kv_indptr: Tensor
    kv_len: int | None
    plan: MlaPlan | None = None


class Buffers:
    """Lengths and pages of steps of up to `batch` requests and `pages` pages."""

    def __init__(self, batch: int, pages: int, q_lens: list[int], device: torch.device) -> None:
        """Allocates them; `q_lens` are the rows that a request may have."""
        self.batch = batch
        rows = torch.arange(batch + 1, dtype=torch.int32, device=device)
        self._qo_indptr = {q_len: rows * q_len for q_len in q_lens}
        self._kv_indptr = torch.zeros_like(rows)
        self._g_kv_indptr = torch.zeros_like(rows)
        self._last_page_lens = torch.zeros_like(rows)
        self.kv_indices = torch.zeros(pages, dtype=torch.int32, device=device)

    def step(self, batch: int, q_len: int, kv_len: int | None) -> Step:
        """The part that a step of `batch` requests takes."""
        if batch > self.batch:
            raise BadArgument(
                f"batch_size: expected at most the {self.batch} of init_cuda_graph_state, got "
                f"{batch}"
            )
        return Step(
            q_len,
            self._qo_indptr[q_len][: batch + 1],
            self._kv_indptr[: batch + 1],
            self._last_page_lens[:batch],
            self.kv_indices,
            self._g_kv_indptr[: batch + 1],
            kv_len,
        )


def pack(
    req_to_token: Tensor,
    req_pool_indices: Tensor,
    seq_lens: Tensor,
    more: int,
    less: Tensor | None,
    deal: Deal,
    step: Step,
) -> None:
    """Writes the pages of every request of a batch, in place and in the order of the batch.

    Nothing is read by the host where the tensors are on a GPU. What is longer than a row of the
    table or than `kv_indices` is cut off.

    Args:
        req_to_token: [requests, context] int32, the slot of each token.
        req_pool_indices: [batch] int64, rows of the table.
        seq_lens: [batch] int64 or int32, tokens over all ranks.
        more: tokens that each request has beside them.
        less: [batch], tokens that it has not, or None.
        deal: of the slots.
        step: its kv_indptr, kv_last_page_lens, kv_indices and g_kv_indptr are written.
    """
    if seq_lens.is_cuda:
        from .pack_triton import pack as pack_on_gpu

        pack_on_gpu(req_to_token, req_pool_indices, seq_lens, more, less, deal, step)
        return
    page_size, ranks, rank = deal
    lengths = seq_lens + more if less is None else seq_lens + more - less
    lengths = lengths.clamp(0, req_to_token.shape[1])
    step.g_kv_indptr[0] = step.kv_indptr[0] = 0
    step.g_kv_indptr[1:].copy_(torch.cumsum(lengths, 0))
    held = (lengths + (ranks - 1 - rank)) // ranks
    pages = (held + page_size - 1) // page_size
    step.kv_indptr[1:].copy_(torch.cumsum(pages, 0).clamp_(max=step.kv_indices.shape[0]))
    step.kv_last_page_lens.copy_(held - (pages - 1) * page_size)
    bounds = step.kv_indptr.tolist()
    for row, begin, end in zip(req_pool_indices.tolist(), bounds, bounds[1:], strict=False):
        slots = req_to_token[row, rank :: page_size * ranks][: end - begin]
        step.kv_indices[begin:end].copy_(slots // (page_size * ranks))


def is_ours(mode: Any) -> bool:  # noqa: ANN401
    """Steps of few rows per request, all requests equally many."""
    return bool(mode.is_decode_or_idle() or mode.is_target_verify() or mode.is_draft_extend_v2())
