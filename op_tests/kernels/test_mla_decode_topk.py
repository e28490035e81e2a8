# SPDX-License-Identifier: MIT
"""MLA decode over a top-k table, AITER's form of sparse attention: dense caches, a plan with topk.

The table [rows, topk] is kv_indices; lengths are those of the whole contexts, and a row has
min(context, topk) entries, the rest is -1 or stale.
"""

from __future__ import annotations

import dataclasses

import pytest
import torch

import hipdecode
from hipdecode.testing import cases, compare, reference
from hipdecode.testing.cases import Case, MlaInputs

TOPK_CASES = [
    Case(nhead=16, q_lens=(1, 1, 1), kv_lens=(300, 40, 0), tail="stale"),
    Case(nhead=16, q_lens=(1,), kv_lens=(5000,), holes=7),
    Case(nhead=128, q_lens=(2, 2), kv_lens=(700, 150)),
    Case(nhead=3, q_lens=(4, 4, 4), kv_lens=(90, 1, 700), holes=3),
    Case(nhead=64, q_lens=(1, 1), kv_lens=(128, 129), kv_dtype="fp8_e4m3fn", kv_scale=0.5),
    Case(nhead=16, q_lens=(3, 3), kv_lens=(600, 20), kv_dtype="fp8_e4m3fnuz", kv_scale=2.0),
]


def _table(case: Case, num_pages: int, topk: int) -> torch.Tensor:
    """[rows, topk]: min(context, topk) pages drawn for each query token, holes among them."""
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


def _per_token(inputs: MlaInputs, case: Case, table: torch.Tensor) -> MlaInputs:
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


@pytest.mark.parametrize("units", [None, 7])
@pytest.mark.parametrize("topk", [16, 128, 333])
@pytest.mark.parametrize("case", TOPK_CASES, ids=str)
def test_mla_decode_follows_a_top_k_table(
    case: Case, topk: int, units: int | None, target: str, device: torch.device
) -> None:
    inputs = cases.make_inputs(dataclasses.replace(case, poison=False, holes=0, tail="none"))
    table = _table(case, inputs["kv_buffer"].shape[0], topk)
    want = reference.mla_decode(**_per_token(inputs, case, table))
    call = cases.to_device(inputs, device).copy()
    call["kv_indices"] = table.flatten().to(device)
    q_len = case.q_lens[0]
    plan = hipdecode.plan_mla_decode(
        call["qo_indptr"],
        call["kv_indptr"],
        nhead=case.nhead,
        max_seqlen_q=q_len,
        uni_seqlen_qo=q_len,
        topk=topk,
        compute_units=units,
    )
    call["max_seqlen_q"] = 1
    out, lse = hipdecode.mla_decode(**call, plan=plan, return_lse=True, route="persistent")
    compare.assert_decode_matches(
        case, inputs, out, lse, target=target, want=want, call=f"topk {topk}"
    )
