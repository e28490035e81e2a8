# SPDX-License-Identifier: MIT
"""The oracle itself: its fp8 tables, its parts against each other, and what a mismatch says."""

from __future__ import annotations

import math

import pytest
import torch

from hipdecode.testing import cases, compare, reference
from hipdecode.testing.cases import Case


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e4m3fnuz], ids=str)
def test_reference_fp8_table_agrees_with_torch(dtype: torch.dtype) -> None:
    by_torch = torch.arange(256, dtype=torch.uint8).view(dtype).double()
    table = reference.fp8_table(dtype)
    assert torch.equal(table.isnan(), by_torch.isnan())
    assert torch.equal(table.nan_to_num(0.0), by_torch.nan_to_num(0.0))


def test_reference_agrees_with_scaled_dot_product_attention() -> None:
    case = Case(nhead=5, q_lens=(3,), kv_lens=(40,), page_size=16)
    inputs = cases.make_inputs(case)
    want = reference.mla_decode(**inputs)
    keys, valid = reference.gather_tokens(inputs["kv_buffer"], inputs["kv_indices"], 40)
    assert valid.all()
    mask = torch.ones(3, 40).tril(diagonal=37).bool()
    q = inputs["q"].double().transpose(0, 1)
    k = keys.expand(5, 40, 576)
    o = torch.nn.functional.scaled_dot_product_attention(
        q, k, k[..., :512], attn_mask=mask, scale=case.sm_scale
    )
    assert torch.allclose(o.transpose(0, 1), want.o, rtol=1e-12, atol=1e-12)


# Two requests of 2 query rows: 40 tokens cut into pages [0, 2), [2, 3) and 5 tokens uncut. The
# second piece of the first request leaves its first row without a key where it holds one token.
@pytest.mark.parametrize("tokens", [33, 40, 48])
def test_reference_partials_merge_to_the_whole(tokens: int) -> None:
    case = Case(nhead=3, q_lens=(2, 2), kv_lens=(tokens, 5), page_size=16)
    inputs = cases.make_inputs(case)
    work = [
        [0, 0, 0, 2, 0, 2, tokens - 32, 0],
        [0, 2, 0, 2, 2, 3, 0, 0],
        [1, -1, 2, 4, 3, 4, 0, 0],
    ]
    given = {k: v for k, v in inputs.items() if k != "max_seqlen_q"}
    partials, direct = reference.walk_work(
        **given,  # type: ignore[arg-type]
        work_indptr=torch.tensor([0, 2, 3]),
        work_info_set=torch.tensor(work),
        partial_rows=5,
    )
    assert partials.written.tolist() == [True] * 4 + [False]
    if tokens == 33:
        assert (partials.lse[2] == -math.inf).all()
        assert (partials.o[2] == 0).all()
    merged = reference.mla_reduce(
        partials.o,
        partials.lse,
        torch.tensor([0, 2, 2]),
        torch.tensor([[0, 2], [9, 9]]),
        torch.tensor([0, 2]),
        rows=4,
    )
    want = reference.mla_decode(**inputs)
    for got, rows in ((merged, slice(0, 2)), (direct, slice(2, 4))):
        assert got.written[rows].all()
        assert torch.allclose(got.o[rows], want.o[rows], rtol=1e-12, atol=1e-13)
        assert torch.allclose(got.lse[rows], want.lse[rows], rtol=1e-12, atol=1e-13)


def test_mismatch_names_batch_row_head_and_column() -> None:
    case = Case(nhead=3, q_lens=(2, 4), kv_lens=(50, 60), seed=11)
    inputs = cases.make_inputs(case)
    want = reference.mla_decode(**inputs)
    out = want.o.to(torch.bfloat16)
    compare.assert_decode_matches(case, inputs, out, want.lse.float(), target="cpu-generic")
    out[3, 1, 7] += 1.0
    with pytest.raises(compare.Mismatch) as caught:
        compare.assert_decode_matches(case, inputs, out, None, target="cpu-generic", call="hk-1")
    message = str(caught.value)
    assert "batch 1, row 1 (token row 3), head 1, column 7" in message
    assert "ulps of bf16" in message
    assert "seed 11" in message
    assert cases.repro(case) in message


# A tolerance that forgives one forgotten token out of a thousand would find no off-by-one.
@pytest.mark.parametrize("target", ["cpu-avx2", "cpu-avx512bf16"])
@pytest.mark.parametrize("kv_len", [100, 1000])
def test_tolerance_does_not_forgive_a_lost_token(kv_len: int, target: str) -> None:
    case = Case(nhead=4, kv_lens=(kv_len,))
    inputs = cases.make_inputs(case)
    want = reference.mla_decode(**inputs)
    inputs["kv_indices"][0] = -1
    lost = reference.mla_decode(**inputs)
    with pytest.raises(compare.Mismatch):
        compare.assert_decode_matches(
            case, inputs, lost.o.to(torch.bfloat16), None, target=target, want=want
        )
    with pytest.raises(compare.Mismatch):
        compare.assert_close(lost.lse.float(), want.lse, compare.allowed_lse(want), what="lse")
