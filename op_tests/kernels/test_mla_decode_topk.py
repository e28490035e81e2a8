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
from hipdecode.testing import cases, compare, reference, topk
from hipdecode.testing.cases import Case

TOPK_CASES = [
    Case(nhead=16, q_lens=(1, 1, 1), kv_lens=(300, 40, 0), tail="stale"),
    Case(nhead=16, q_lens=(1,), kv_lens=(5000,), holes=7),
    Case(nhead=128, q_lens=(2, 2), kv_lens=(700, 150)),
    Case(nhead=3, q_lens=(4, 4, 4), kv_lens=(90, 1, 700), holes=3),
    Case(nhead=64, q_lens=(1, 1), kv_lens=(128, 129), kv_dtype="fp8_e4m3fn", kv_scale=0.5),
    Case(nhead=16, q_lens=(3, 3), kv_lens=(600, 20), kv_dtype="fp8_e4m3fnuz", kv_scale=2.0),
]


@pytest.mark.parametrize("units", [None, 7])
@pytest.mark.parametrize("entries", [16, 128, 333])
@pytest.mark.parametrize("case", TOPK_CASES, ids=str)
def test_mla_decode_follows_a_top_k_table(
    case: Case, entries: int, units: int | None, target: str, device: torch.device
) -> None:
    inputs = cases.make_inputs(dataclasses.replace(case, poison=False, holes=0, tail="none"))
    table = topk.draw_table(case, inputs["kv_buffer"].shape[0], entries)
    want = reference.mla_decode(**topk.per_token(inputs, case, table))
    call = cases.to_device(inputs, device).copy()
    call["kv_indices"] = table.flatten().to(device)
    q_len = case.q_lens[0]
    plan = hipdecode.plan_mla_decode(
        call["qo_indptr"],
        call["kv_indptr"],
        nhead=case.nhead,
        max_seqlen_q=q_len,
        uni_seqlen_qo=q_len,
        topk=entries,
        compute_units=units,
    )
    call["max_seqlen_q"] = 1
    out, lse = hipdecode.mla_decode(**call, plan=plan, return_lse=True, route="persistent")
    compare.assert_decode_matches(
        case, inputs, out, lse, target=target, want=want, call=f"topk {entries}"
    )
