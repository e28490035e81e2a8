# SPDX-License-Identifier: MIT
"""Ranks that share the keys of each request return what one rank with all keys returns."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from processes import run_ranks
from rank_worker import JOBS, RAGGED, Job
from torch import Tensor

import hipdecode
from hipdecode.errors import BadArgument
from hipdecode.testing import cases, compare, rank_cases, reference
from hipdecode.testing.cases import Case

RANKS = 4
Results = list[dict[str, Any]]


@pytest.fixture(scope="module")
def results(target: str, device: torch.device, tmp_path_factory: pytest.TempPathFactory) -> Results:
    """What each of four processes made of all jobs."""
    if device.type != "cpu" or target.startswith("sim:"):
        pytest.skip("gloo: runs where the tensors are on a CPU")
    folder = tmp_path_factory.mktemp("ranks")
    return run_ranks(Path(__file__).parent / "rank_worker.py", RANKS, folder)


def allowed(job: Job, case: Case, want: reference.Attention, target: str) -> Tensor:
    """As of one rank, and that each rank's share of the result is rounded on its way."""
    whole = cases.make_inputs(case)
    share = torch.zeros_like(want.o)
    for rank in range(job.ranks):
        part = rank_cases.decode_share(case, whole, job.ranks, rank, job.interleave)
        weight = torch.where(part.lse.isinf(), 0.0, (part.lse - want.lse).exp())
        share += part.o.abs() * weight[..., None]
    q_dtype = cases.DTYPES[case.q_dtype]
    rounding = compare.tolerances()["output"]["bf16"]["u_out"]
    return compare.allowed_output(want, case.out_dtype, target, q_dtype) + rounding * share


def check(job: Job, by_rank: list[list[tuple[Tensor, Tensor]]], target: str) -> None:
    for step, case in enumerate(job.steps()):
        want = reference.mla_decode(**cases.make_inputs(case))
        most, most_lse = allowed(job, case, want, target), compare.allowed_lse(want)
        for rank, steps in enumerate(by_rank):
            o, lse = steps[step]
            own = slice(None)
            if job.scatter:
                heads = case.nhead // job.ranks
                own = slice(rank % job.ranks * heads, (rank % job.ranks + 1) * heads)
            what = f"step {step}, rank {rank}"
            compare.assert_close(o, want.o[:, own], most[:, own], what=f"o, {what}")
            compare.assert_close(lse, want.lse[:, own], most_lse[:, own], what=f"lse, {what}")


@pytest.mark.parametrize("name", JOBS)
def test_ranks_together_return_the_unsharded_result(
    name: str, results: Results, target: str
) -> None:
    check(JOBS[name], [result[name] for result in results], target)


def test_decodes_of_an_engine_are_merged_alike(results: Results, target: str) -> None:
    by_rank = [result["merged-4"] for result in results]
    check(JOBS["ragged-4"], by_rank, target)
    assert torch.equal(by_rank[0][0][0], results[0]["ragged-4"][0][0])


def test_every_rank_has_the_same_bits(results: Results) -> None:
    first, *others = (result["ragged-4"][0] for result in results)
    assert all(all(map(torch.equal, first, other)) for other in others)


@pytest.mark.parametrize("layout", ["gather", "scatter"])
def test_a_warm_step_allocates_nothing_and_sends_once(layout: str, results: Results) -> None:
    for result in results:
        ops = [name.rpartition(".")[0] for name in result["ops"][layout]]
        views = {"slice", "view", "transpose", "select", "_unsafe_view", "alias", "detach"}
        others = [name for name in ops if name not in {f"aten.{view}" for view in views}]
        copies, sent = (2, "_allgather_base_") if layout == "gather" else (4, "alltoall_base_")
        assert others == [
            "hipdecode.mla_decode_hk", *["aten.copy_"] * (copies - 2), f"c10d.{sent}",
            "aten.copy_", "aten.copy_", "hipdecode.mla_reduce",
        ]  # fmt: skip


def test_wrong_arguments_are_refused_before_anything_is_sent(results: Results) -> None:
    named = {
        "scattered heads": "nhead: expected a multiple of the group's 4 ranks",
        "dtype": "dtype: expected bf16 or fp16",
        "rows": "at most 4 rows",
        "heads": r"q: expected [rows, 6",
        "no lse": "o_lse: expected a tensor",
        "out": "out: expected",
        "interleave": "kv_interleave: expected",
    }
    for result in results:
        assert set(result["refusals"]) == set(named)
        assert all(part in result["refusals"][name] for name, part in named.items())


def test_a_process_without_a_group_is_told_to_make_one() -> None:
    with pytest.raises(BadArgument, match="init_process_group"):
        hipdecode.RankedDecode(4, 16)


@pytest.mark.parametrize(("ranks", "interleave"), [(1, 1), (2, 1), (3, 4), (8, 64)])
@pytest.mark.parametrize("page_size", [1, 16])
def test_shares_are_counted_from_the_lengths_over_all_ranks(
    ranks: int, interleave: int, page_size: int
) -> None:
    kv_lens = (0, 1, 2, 3, 63, 64, 65, 511, 512, 513, 1000)
    whole = rank_cases.global_lengths(Case(q_lens=(1,) * len(kv_lens), kv_lens=kv_lens))
    for rank in range(ranks):
        held = [len(rank_cases.tokens_of(n, ranks, rank, interleave)) for n in kv_lens]
        lengths = hipdecode.shard_lengths(whole.diff(), ranks, rank, interleave=interleave)
        assert lengths.tolist() == held
        last = torch.empty(len(kv_lens), dtype=torch.int32)
        indptr = hipdecode.shard_indptr(
            whole, ranks, rank, interleave=interleave, page_size=page_size, last_page_lens=last
        )
        assert indptr.dtype == torch.int32
        tokens = (indptr.diff() - 1) * page_size + last
        assert torch.where(indptr.diff() > 0, tokens, 0).tolist() == held
        kept = torch.empty_like(whole)
        more = {"interleave": interleave, "page_size": page_size}
        assert hipdecode.shard_indptr(whole, ranks, rank, out=kept, **more) is kept
        assert torch.equal(kept, indptr)


def test_a_rank_that_is_not_there_holds_no_share() -> None:
    for numbers in ((0, 0), (2, 2), (2, -1)):
        with pytest.raises(BadArgument, match="cp_"):
            hipdecode.shard_lengths(torch.tensor(RAGGED.kv_lens), *numbers)
