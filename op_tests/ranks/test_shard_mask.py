# SPDX-License-Identifier: MIT
"""Causal decode over one rank's share of the keys, against an oracle that looks at every token."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

import hipdecode
from hipdecode.errors import BadArgument, WorkspaceError
from hipdecode.shard import KvShard
from hipdecode.testing import cases, compare, rank_cases
from hipdecode.testing.calls import captured, decode
from hipdecode.testing.cases import Case

BF16 = Case(nhead=16, q_lens=(4, 4, 1, 3, 4, 2), kv_lens=(300, 3, 70, 130, 0, 65))
FP8 = Case(
    nhead=16, q_lens=(4, 4, 4), kv_lens=(257, 5, 64), kv_dtype="fp8_e4m3fn", kv_scale=0.5, seed=3
)
ROUTES = ("hk-1", "hk-3", "persistent")


def check_share(
    case: Case, ranks: int, rank: int, route: str, device: torch.device, target: str,
    *, interleave: int = 1, page_size: int = 1, **more: Any,
) -> None:  # fmt: skip
    whole = cases.make_inputs(case)
    mine = rank_cases.share_of(case, whole, ranks, rank, interleave=interleave, page_size=page_size)
    want = rank_cases.decode_share(case, whole, ranks, rank, interleave)
    shard = rank_cases.shard_of(case, ranks, rank, interleave, device)
    o, lse = decode(cases.to_device(mine, device), route, shard=shard, **more)
    call = f"{route}, rank {rank} of {ranks}, interleave {interleave}, page_size {page_size}"
    compare.assert_decode_matches(case, mine, o, lse, target=target, want=want, call=call)


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("case", [BF16, FP8], ids=str)
@pytest.mark.parametrize(("ranks", "interleave"), [(2, 1), (3, 1), (4, 16), (8, 5)])
def test_a_row_sees_the_keys_of_its_rank_that_are_not_after_it(
    case: Case, ranks: int, interleave: int, route: str, target: str, device: torch.device
) -> None:
    for rank in (0, ranks - 1):
        check_share(case, ranks, rank, route, device, target, interleave=interleave)


@pytest.mark.parametrize("page_size", [16, 64])
@pytest.mark.parametrize("route", ROUTES)
def test_pages_of_many_tokens_hold_the_share_without_gaps(
    route: str, page_size: int, target: str, device: torch.device
) -> None:
    check_share(BF16, 2, 1, route, device, target, page_size=page_size)
    check_share(BF16, 2, 0, route, device, target, page_size=page_size, interleave=64)


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("nhead", [4, 6, 8, 12, 128])
def test_rows_of_other_head_counts_are_masked_alike(
    nhead: int, route: str, target: str, device: torch.device
) -> None:
    case = dataclasses.replace(BF16, nhead=nhead, q_lens=(4, 2), kv_lens=(131, 6))
    check_share(case, 2, 1, route, device, target)


@pytest.mark.parametrize("route", ROUTES)
def test_lengths_around_tiles_and_rounds(route: str, target: str, device: torch.device) -> None:
    kv_lens = (7, 8, 9, 127, 128, 129, 255, 256, 257, 511, 513)
    case = Case(nhead=16, q_lens=(4,) * len(kv_lens), kv_lens=kv_lens)
    for rank in range(4):
        check_share(case, 4, rank, route, device, target)


@pytest.mark.parametrize("causal", [True, False])
def test_one_row_or_no_mask_needs_no_global_lengths(
    causal: bool, target: str, device: torch.device
) -> None:
    rows = 1 if causal else 4
    case = Case(nhead=8, q_lens=(rows, rows), kv_lens=(90, 33), causal=causal)
    whole = cases.make_inputs(case)
    mine = cases.to_device(rank_cases.share_of(case, whole, 2, 1), device)
    want = rank_cases.decode_share(case, whole, 2, 1, 1)
    o, lse = decode(mine, "hk-1", shard=KvShard(None, 2, 1))
    compare.assert_decode_matches(case, mine, o, lse, target=target, want=want)


@pytest.mark.parametrize("route", [*ROUTES, "planned"])
def test_a_replay_masks_by_the_lengths_of_its_own_time(
    route: str, target: str, device: torch.device
) -> None:
    first = Case(nhead=16, q_lens=(4, 4, 4), kv_lens=(200, 90, 33))
    room = torch.full((400,), -1, dtype=torch.int32, device=device)
    inputs: dict[str, Any] = {}
    lengths = torch.zeros(4, dtype=torch.int32, device=device)
    out = torch.empty(12, 16, 512, dtype=torch.bfloat16, device=device)
    lse = torch.empty(12, 16, device=device)
    pool = torch.zeros(400, 1, 1, 576, dtype=torch.bfloat16, device=device)

    def fill(case: Case, rank: int) -> Any:
        whole = cases.make_inputs(case)
        mine = cases.to_device(rank_cases.share_of(case, whole, 2, rank), device)
        lengths.copy_(rank_cases.global_lengths(case))
        if not inputs:
            inputs.update(mine, kv_indices=room, kv_buffer=pool)
        for name in ("q", "qo_indptr", "kv_indptr", "kv_last_page_lens"):
            inputs[name].copy_(mine[name])  # type: ignore[literal-required]
        pool[: mine["kv_buffer"].shape[0]].copy_(mine["kv_buffer"])
        room[: mine["kv_indices"].numel()].copy_(mine["kv_indices"])
        return rank_cases.decode_share(case, whole, 2, rank, 1)

    fill(first, 1)
    workspace = hipdecode.Workspace(device)
    more: dict[str, Any] = {"workspace": workspace}
    sizes = {"nhead": 16, "max_seqlen_q": 4, "causal": False, "workspace": workspace}
    names = ("qo_indptr", "kv_indptr", "kv_last_page_lens")
    if route == "planned":
        more["plan"] = hipdecode.plan_mla_decode(**{n: inputs[n] for n in names}, **sizes)

    def step() -> None:
        if "plan" in more:
            given = {n: inputs[n] for n in names}
            hipdecode.plan_mla_decode(**given, **sizes, out=more["plan"])
        name = "persistent" if route == "planned" else route
        decode(inputs, name, shard=KvShard(lengths, 2, 1), out=out, lse=lse, **more)  # type: ignore[arg-type]

    replay = captured(step, device)
    for kv_lens in ((200, 90, 33), (17, 260, 1), (0, 3, 399)):
        case = dataclasses.replace(first, kv_lens=kv_lens, seed=sum(kv_lens))
        want = fill(case, 1)
        replay()
        compare.assert_decode_matches(
            case,
            inputs,
            out,
            lse,
            target=target,
            want=want,
            call=route,  # type: ignore[arg-type]
        )


def test_global_lengths_that_lie_hide_keys_and_never_reach_past_them(device: torch.device) -> None:
    case = Case(nhead=16, q_lens=(4, 4, 4), kv_lens=(60, 60, 60))
    mine = cases.to_device(rank_cases.share_of(case, cases.make_inputs(case), 2, 0), device)
    lies = torch.tensor([5, -(2**31), 2**31 - 1, 0], dtype=torch.int32, device=device)
    for route in ROUTES:
        o, _ = decode(mine, route, shard=KvShard(lies, 2, 0))
        assert not o.isnan().any()


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ((None, 2, 0), "g_kv_indptr"), (("short", 2, 0), "g_kv_indptr"),
        (("int64", 2, 0), "g_kv_indptr"), (("good", 0, 0), "cp_world_size"),
        (("good", 2, 2), "cp_rank"), (("good", 2, -1), "cp_rank"),
        (("good", 2, 0, 0), "kv_interleave"), (("good", 2, 0, 2**30), "kv_interleave"),
        (("good", 2.0, 0), "cp_world_size"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("route", ["hk", "persistent"])
def test_a_share_that_cannot_be_is_refused_by_name(
    wrong: tuple[Any, ...], named: str, route: str, device: torch.device
) -> None:
    case = Case(nhead=16, q_lens=(4,), kv_lens=(60,))
    mine = cases.to_device(rank_cases.share_of(case, cases.make_inputs(case), 2, 0), device)
    good = rank_cases.global_lengths(case).to(device)
    tensors = {"good": good, "short": good[:1], "int64": good.long()}
    shard = KvShard(tensors.get(wrong[0]), *wrong[1:])
    with pytest.raises(BadArgument, match=named):
        hipdecode.mla_decode(**mine, route=route, shard=shard)


def test_a_plan_that_trims_causally_is_refused(device: torch.device) -> None:
    case = Case(nhead=16, q_lens=(4,), kv_lens=(60,))
    mine = cases.to_device(rank_cases.share_of(case, cases.make_inputs(case), 2, 0), device)
    plan = hipdecode.plan_mla_decode(mine["qo_indptr"], mine["kv_indptr"], nhead=16, max_seqlen_q=4)
    with pytest.raises(WorkspaceError, match="causal=False"):
        decode(mine, "persistent", plan=plan, shard=rank_cases.shard_of(case, 2, 0, 1, device))
