# SPDX-License-Identifier: MIT
"""Every partial result of the persistent kernel, their reduce, and the two together.

The oracle walks the same work records as the kernel and computes each one in float64.
"""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

import hipdecode
from hipdecode.testing import cases, compare, reference
from hipdecode.testing.calls import decode
from hipdecode.testing.cases import Case, MlaInputs

NAN = float("nan")

CASES = [
    Case(nhead=16, q_lens=(1, 1, 1), kv_lens=(300, 0, 777)),
    Case(nhead=16, q_lens=(4, 4), kv_lens=(1000, 130)),
    Case(nhead=3, q_lens=(1, 5, 2, 8), kv_lens=(90, 400, 1, 9), page_size=16),
    Case(nhead=128, q_lens=(3, 1), kv_lens=(350, 65), page_size=64),
    Case(nhead=48, q_lens=(7,), kv_lens=(515,)),
    Case(nhead=17, q_lens=(16, 2), kv_lens=(260, 40), causal=False),
    Case(nhead=8, q_lens=(2, 2), kv_lens=(400, 70), tail="stale", holes=3, padding_rows=2),
    Case(nhead=1, q_lens=(8,) * 4, kv_lens=(3, 8, 100, 640), page_size=64),
    Case(
        nhead=24,
        q_lens=(2, 4),
        kv_lens=(333, 129),
        q_dtype="fp8_e4m3fn",
        kv_dtype="fp8_e4m3fn",
        q_scale=0.5,
        kv_scale=2.0,
    ),
    Case(nhead=12, q_lens=(4,), kv_lens=(5,)),
]
PLANS = {
    "units2": {"compute_units": 2},
    "units7": {"compute_units": 7},
    "units32-fine": {"compute_units": 32, "kv_granularity": 1},
    "intra4": {"compute_units": 13, "intra_batch_mode": True, "num_kv_splits": 4},
}


def _plan(case: Case, inputs: MlaInputs, name: str) -> hipdecode.MlaPlan:
    plan = hipdecode.plan_mla_decode(
        inputs["qo_indptr"],
        inputs["kv_indptr"],
        nhead=case.nhead,
        max_seqlen_q=inputs["max_seqlen_q"],
        page_size=case.page_size,
        kv_last_page_lens=inputs["kv_last_page_lens"],
        causal=case.causal,
        **PLANS[name],
    )
    plan.partial_output.fill_(NAN)
    plan.partial_lse.fill_(NAN)
    return plan


def _outputs(case: Case, inputs: MlaInputs) -> tuple[Tensor, Tensor]:
    q = inputs["q"]
    out = torch.full((q.shape[0], case.nhead, 512), NAN, dtype=torch.bfloat16, device=q.device)
    return out, torch.full(out.shape[:2], NAN, device=q.device)


def _decode(inputs: MlaInputs, plan: hipdecode.MlaPlan, out: Tensor, lse: Tensor) -> None:
    torch.ops.hipdecode.mla_decode_persistent(
        inputs["q"],
        inputs["kv_buffer"],
        out,
        lse,
        inputs["qo_indptr"],
        inputs["kv_indptr"],
        inputs["kv_indices"],
        inputs["kv_last_page_lens"],
        plan.work_indptr,
        plan.work_info_set,
        plan.partial_output,
        plan.partial_lse,
        inputs["q_scale"],
        inputs["kv_scale"],
        inputs["max_seqlen_q"],
        inputs["sm_scale"],
        inputs["causal"],
    )


def _reduce(plan: hipdecode.MlaPlan, out: Tensor, lse: Tensor) -> None:
    torch.ops.hipdecode.mla_reduce(
        plan.partial_output,
        plan.partial_lse,
        plan.reduce_indptr,
        plan.reduce_final_map,
        plan.reduce_partial_map,
        out,
        lse,
        plan.max_seqlen_q,
        plan.clusters,
    )


def _walk(case: Case, inputs: MlaInputs, plan: hipdecode.MlaPlan) -> tuple:
    given = {k: v for k, v in inputs.items() if k != "max_seqlen_q"}
    return reference.walk_work(
        **given,
        work_indptr=plan.work_indptr.cpu(),
        work_info_set=plan.work_info_set.cpu(),
        partial_rows=plan.partial_output.shape[0],
    )


def _only(want: reference.Attention) -> reference.Attention:
    """The written rows of an oracle's answer."""
    rows = want.written
    return reference.Attention(
        want.o[rows],
        want.lse[rows],
        want.l1[rows],
        want.l2[rows],
        want.faint[rows],
        want.logit_bound[rows],
        rows,
    )


def _assert_rows(got: Tensor, lse: Tensor, want: reference.Attention, what: str, **more) -> None:
    rows, written = want.written, _only(want)
    names = compare.plain_names("written row", "head", "column")
    limit = compare.allowed_output(written, got.dtype, more.pop("target"), more.pop("q_dtype"))
    common = {"names": names, **more}
    compare.assert_close(
        lse[rows], written.lse, compare.allowed_lse(written), what=f"{what} lse", **common
    )
    compare.assert_close(got[rows], written.o, limit, what=what, **common)
    assert got[~rows].isnan().all(), f"{what}: expected rows outside the plan to be untouched"
    assert lse[~rows].isnan().all(), f"{what} lse: expected rows outside the plan to be untouched"


@pytest.mark.parametrize("plan_name", PLANS)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_mla_partials_match_the_walking_reference(
    case: Case, plan_name: str, target: str, device: torch.device
) -> None:
    on_host = cases.make_inputs(case)
    inputs = cases.to_device(on_host, device)
    plan = _plan(case, inputs, plan_name)
    out, lse = _outputs(case, inputs)
    _decode(inputs, plan, out, lse)
    partials, direct = _walk(case, on_host, plan)
    live = sum(case.q_lens)
    more = {"target": target, "seed": case.seed, "repro": cases.repro(case)}
    more["q_dtype"] = inputs["q"].dtype
    _assert_rows(plan.partial_output, plan.partial_lse, partials, "partial_output", **more)
    _assert_rows(out[:live], lse[:live], _head(direct, live), "o", **more)
    assert (out[live:] == 0).all(), "padding rows: expected zeros"

    _reduce(plan, out, lse)
    merged = reference.mla_reduce(
        partials.o,
        partials.lse,
        plan.reduce_indptr.cpu(),
        plan.reduce_final_map.cpu(),
        plan.reduce_partial_map.cpu(),
        rows=out.shape[0],
    )
    assert not (merged.written & direct.written).any(), "a row is both direct and split"
    assert (merged.written | direct.written)[:live].all(), "a row is neither direct nor split"
    compare.assert_decode_matches(case, on_host, out, lse, target=target, call=plan_name)


def _head(want: reference.Attention, rows: int) -> reference.Attention:
    return reference.Attention(
        want.o[:rows],
        want.lse[:rows],
        want.l1[:rows],
        want.l2[:rows],
        want.faint[:rows],
        want.logit_bound[:rows],
        want.written[:rows],
    )


@pytest.mark.parametrize("plan_name", PLANS)
def test_mla_decode_takes_a_plan_made_before(
    plan_name: str, target: str, device: torch.device
) -> None:
    case = CASES[1]
    on_host = cases.make_inputs(case)
    inputs = cases.to_device(on_host, device)
    plan = _plan(case, inputs, plan_name)
    for _ in range(2):
        out, lse = decode(inputs, "persistent", plan=plan)
        compare.assert_decode_matches(case, on_host, out, lse, target=target, call=plan_name)


def test_mla_decode_ignores_work_records_past_the_live_count(
    target: str, device: torch.device
) -> None:
    case = CASES[0]
    on_host = cases.make_inputs(case)
    inputs = cases.to_device(on_host, device)
    plan = _plan(case, inputs, "units7")
    plan.work_info_set[int(plan.work_indptr[-1]) :] = 2**31 - 1
    plan.reduce_partial_map[int(plan.reduce_indptr[-1]) :] = -(2**31)
    out, lse = decode(inputs, "persistent", plan=plan)
    compare.assert_decode_matches(case, on_host, out, lse, target=target, call="units7")


# Our planner never gives a work more than 128 packed rows; other planners do.
def test_mla_decode_takes_works_of_any_number_of_rows(target: str, device: torch.device) -> None:
    case = Case(nhead=100, q_lens=(4, 3), kv_lens=(150, 40))
    on_host = cases.make_inputs(case)
    inputs = cases.to_device(on_host, device)
    plan = _plan(case, inputs, "units2")
    works = [[0, 0, 0, 4, 0, 90, 60, 0], [0, 4, 0, 4, 90, 150, 0, 0], [1, -1, 4, 7, 150, 190, 0, 0]]
    by_hand = dataclasses.replace(
        plan,
        work_indptr=torch.tensor([0, 2, 3], dtype=torch.int32, device=device),
        work_info_set=torch.tensor(works, dtype=torch.int32, device=device),
        reduce_indptr=torch.tensor([0, 2], dtype=torch.int32, device=device),
        reduce_final_map=torch.tensor([[0, 4]], dtype=torch.int32, device=device),
        reduce_partial_map=torch.tensor([0, 4], dtype=torch.int32, device=device),
        partial_output=torch.full((8, 100, 512), NAN, device=device),
        partial_lse=torch.full((8, 100), NAN, device=device),
    )
    out, lse = _outputs(case, inputs)
    _decode(inputs, by_hand, out, lse)
    _reduce(by_hand, out, lse)
    compare.assert_decode_matches(case, on_host, out, lse, target=target, call="by hand")


def test_mla_decode_survives_corrupt_work_records(device: torch.device) -> None:
    case = CASES[0]
    inputs = cases.to_device(cases.make_inputs(case), device)
    for word, value in (
        (0, 99),
        (0, -5),
        (1, 2**31 - 1),
        (2, -7),
        (3, 2**31 - 1),
        (4, -9),
        (5, 2**30),
    ):
        plan = _plan(case, inputs, "units7")
        plan.work_info_set[:, word] = value
        out, lse = _outputs(case, inputs)
        _decode(inputs, plan, out, lse)
        _reduce(plan, out, lse)
