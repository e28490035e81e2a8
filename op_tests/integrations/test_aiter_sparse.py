# SPDX-License-Identifier: MIT
"""AITER's form of sparse attention under its own names: `is_sparse` metadata and a top-k table.

The shapes are DeepSeek-V3.2's: an indexer picks 2048 keys; 128 heads, or those of one of 8 ranks.
"""

from __future__ import annotations

import dataclasses

import pytest
import torch

from hipdecode import aiter
from hipdecode.testing import cases, compare, reference, topk
from hipdecode.testing.cases import Case

TOPK = 2048
CASES = [
    Case(poison=False, **more)  # type: ignore[arg-type]
    for more in (
        {"nhead": 128, "q_lens": (1, 1, 1), "kv_lens": (2500, 0, 130)},
        {"nhead": 16, "q_lens": (2, 2), "kv_lens": (2047, 2300), "holes": 5},
        {"nhead": 16, "kv_lens": (3000,), "kv_dtype": "fp8_e4m3fn", "kv_scale": 0.5},
        {"nhead": 16, "kv_lens": (3000,), "kv_dtype": "fp8_e4m3fnuz", "kv_scale": 0.5},
    )
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_mla_decode_fwd_follows_a_top_k_table_by_sparse_metadata(
    case: Case, target: str, device: torch.device
) -> None:
    q_len = case.q_lens[0]
    given = cases.make_inputs(dataclasses.replace(case, holes=0))
    table = topk.draw_table(case, given["kv_buffer"].shape[0], TOPK)
    want = reference.mla_decode(**topk.per_token(given, case, table))
    i = cases.to_device(given, device)
    info = aiter.get_mla_metadata_info_v1(
        len(case.q_lens), q_len, case.nhead, i["q"].dtype, i["kv_buffer"].dtype, is_sparse=True
    )
    meta, indptr, works, *maps = (torch.empty(n, dtype=t, device=device) for n, t in info)
    aiter.get_mla_metadata_v1(
        i["qo_indptr"], i["kv_indptr"], i["kv_last_page_lens"], case.nhead, 1, True, meta, works,
        indptr, *maps, page_size=1, kv_granularity=16, max_seqlen_qo=1, uni_seqlen_qo=1,
        fast_mode=True, topk=TOPK,
    )  # fmt: skip
    out = torch.full((sum(case.q_lens), case.nhead, 512), float("nan"), device=device).bfloat16()
    lists = (meta, indptr, works, *maps)
    names = ("work_meta_data", "work_indptr", "work_info_set")
    names += ("reduce_indptr", "reduce_final_map", "reduce_partial_map")
    _, lse = aiter.mla.mla_decode_fwd(
        i["q"], i["kv_buffer"], out, i["qo_indptr"], i["kv_indptr"], table.flatten().to(device),
        i["kv_last_page_lens"], 1, sm_scale=i["sm_scale"], kv_scale=i["kv_scale"], return_lse=True,
        **dict(zip(names, lists, strict=True)),
    )  # fmt: skip
    compare.assert_decode_matches(case, given, out, lse, target=target, want=want, call="is_sparse")


@pytest.mark.parametrize("case", CASES, ids=str)
def test_mla_decode_fwd_takes_lists_of_query_tokens_without_a_plan(
    case: Case, target: str, device: torch.device
) -> None:
    given = cases.make_inputs(dataclasses.replace(case, holes=0))
    table = topk.draw_table(case, given["kv_buffer"].shape[0], TOPK)
    alone = topk.per_token(given, case, table)
    want = reference.mla_decode(**alone)
    i = cases.to_device(alone, device)
    out = torch.full((sum(case.q_lens), case.nhead, 512), float("nan"), device=device).bfloat16()
    aiter.mla.mla_decode_fwd(
        i["q"], i["kv_buffer"], out, i["qo_indptr"], i["kv_indptr"], i["kv_indices"], None, 1,
        sm_scale=i["sm_scale"], kv_scale=i["kv_scale"],
    )  # fmt: skip
    compare.assert_decode_matches(case, alone, out, None, target=target, want=want, call="alone")
