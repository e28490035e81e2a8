# SPDX-License-Identifier: MIT
"""Top-k tables over dense caches, AITER's form of sparse attention."""

from __future__ import annotations

import torch

from .cases import Case, MlaInputs


def draw_table(case: Case, num_pages: int, topk: int) -> torch.Tensor:
    """[rows, topk] int32: min(context, topk) pages drawn for each query token, holes among them.

    Behind a row's entries lies what the case's tail says: -1, or stale pages.
    """
    gen = torch.Generator().manual_seed(case.seed + 1)
    rows = []
    for q_len, kv_len in zip(case.q_lens, case.kv_lens, strict=True):
        for _ in range(q_len):
            row = torch.randint(0, num_pages, (topk,), generator=gen)
            if case.tail != "stale":
                row[kv_len:] = -1
            if case.holes:
                row[case.holes - 1 :: case.holes] = -1
            rows.append(row)
    return torch.stack(rows).to(torch.int32)


def per_token(inputs: MlaInputs, case: Case, table: torch.Tensor) -> MlaInputs:
    """The same attention with each query token as a request of its own."""
    topk = table.shape[1]
    counts = [
        min(kv_len, topk)
        for q_len, kv_len in zip(case.q_lens, case.kv_lens, strict=True)
        for _ in range(q_len)
    ]
    alone = inputs.copy()
    alone["qo_indptr"] = torch.arange(len(counts) + 1, dtype=torch.int32)
    alone["kv_indptr"] = torch.tensor([0, *counts], dtype=torch.int32).cumsum(0).int()
    alone["kv_indices"] = torch.cat([row[:n] for row, n in zip(table, counts, strict=True)])
    alone["kv_last_page_lens"] = None
    return alone
