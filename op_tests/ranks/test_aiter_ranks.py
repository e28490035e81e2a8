# SPDX-License-Identifier: MIT
"""AITER's entries over round-robin shares: g_kv_indptr, cp_world_size and cp_rank."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from hipdecode import aiter
from hipdecode.errors import BadArgument
from hipdecode.testing import cases, compare, rank_cases
from hipdecode.testing.cases import Case

CASE = Case(nhead=16, q_lens=(4, 4, 4), kv_lens=(300, 70, 1))
RANKS, RANK = 3, 1


class Caller:
    """A rank's step in a caller's buffers."""

    def __init__(self, device: torch.device) -> None:
        whole = cases.make_inputs(CASE)
        self.mine = cases.to_device(rank_cases.share_of(CASE, whole, RANKS, RANK), device)
        self.want = rank_cases.decode_share(CASE, whole, RANKS, RANK, 1)
        self.o = torch.full((12, 16, 512), float("nan"), dtype=torch.bfloat16, device=device)
        self.cp = {
            "g_kv_indptr": rank_cases.global_lengths(CASE).to(device),
            "cp_world_size": RANKS,
            "cp_rank": RANK,
        }
        sizes = aiter.get_mla_metadata_info_v1(8, 4, 16, self.o.dtype, self.o.dtype)
        self.six = [torch.empty(size, dtype=dtype, device=device) for size, dtype in sizes]

    def index(self) -> tuple[Any, ...]:
        names = ("qo_indptr", "kv_indptr", "kv_indices", "kv_last_page_lens")
        return tuple(self.mine[name] for name in names)  # type: ignore[literal-required]

    def plan(self) -> None:
        qo, kv, _, last = self.index()
        ptrs, indptr, works, *maps = self.six
        aiter.get_mla_metadata_v1(
            qo, kv, last, 16, 1, True, ptrs, works, indptr, *maps, max_seqlen_qo=4,
            is_cp_round_robin=True,
        )  # fmt: skip

    def check(self, lse: Tensor | None, target: str) -> None:
        compare.assert_decode_matches(
            CASE, self.mine, self.o, lse, target=target, want=self.want, call="aiter"
        )


@pytest.mark.parametrize("planned", [True, False])
def test_mla_decode_fwd_masks_by_positions_over_all_ranks(
    planned: bool, target: str, device: torch.device
) -> None:
    caller = Caller(device)
    caller.plan()
    names = (
        "work_meta_data", "work_indptr", "work_info_set",
        "reduce_indptr", "reduce_final_map", "reduce_partial_map",
    )  # fmt: skip
    lists = dict(zip(names, caller.six, strict=True)) if planned else {}
    q, pool = caller.mine["q"], caller.mine["kv_buffer"]
    _, lse = aiter.mla_decode_fwd(
        q, pool, caller.o, *caller.index(), 4, sm_scale=CASE.sm_scale, return_lse=True,
        num_kv_splits=8, intra_batch_mode=False, **lists, **caller.cp,
    )  # fmt: skip
    caller.check(lse, target)


def test_stage_1_masks_by_positions_over_all_ranks(target: str, device: torch.device) -> None:
    caller = Caller(device)
    caller.plan()
    _, indptr, works, *maps = caller.six
    rows = maps[2].numel() * 4
    partial = torch.full((rows, 1, 16, 512), float("nan"), device=device)
    partial_lse = torch.full((rows, 1, 16, 1), float("nan"), device=device)
    lse = torch.full((12, 16), float("nan"), device=device)
    q, pool = caller.mine["q"], caller.mine["kv_buffer"]
    aiter.mla_decode_stage1_asm_fwd(
        q, pool, *caller.index(), None, None, indptr, works, 4, 1, 1, CASE.sm_scale, partial,
        partial_lse, caller.o, lse, **caller.cp,
    )  # fmt: skip
    aiter.mla_reduce_v1(partial, partial_lse, *maps, 4, 0, caller.o, lse)
    caller.check(lse, target)


@pytest.mark.parametrize(
    "asked",
    [{"g_kv_indptr": None}, {"cp_rank": 3}, {"cp_world_size": 0}, {"cp_world_size": 1}],
    ids=lambda asked: next(iter(asked)),
)
def test_shares_that_cannot_be_are_refused_by_aiters_name(
    asked: dict[str, Any], device: torch.device
) -> None:
    caller = Caller(device)
    q, pool = caller.mine["q"], caller.mine["kv_buffer"]
    named = "cp_rank" if asked == {"cp_world_size": 1} else next(iter(asked))
    with pytest.raises(BadArgument, match=named):
        aiter.mla_decode_fwd(q, pool, caller.o, *caller.index(), 4, **{**caller.cp, **asked})
    assert caller.o.isnan().all()
