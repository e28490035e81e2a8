# SPDX-License-Identifier: MIT
"""`--dcp-size`: ranks that share keys return what one with all of them returns."""

from __future__ import annotations

import subprocess
import sys
from itertools import accumulate
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("sglang", reason="needs the clients extra: make test-clients")

from sglang_engine import ATTENTION_BACKENDS, Engine
from sglang_rank_worker import (
    CONTEXT,
    HEADS,
    JOBS,
    check_new_tokens,
    check_page_lists,
    decode,
    get_parallel,
)

from hipdecode import settings
from hipdecode.errors import BadArgument
from hipdecode.testing import compare, reference

RANKS = 2
Results = list[dict[str, Any]]


@pytest.fixture(scope="module")
def results(device: torch.device, tmp_path_factory: pytest.TempPathFactory) -> Results:
    """What each of two processes made of all jobs."""
    if device.type != "cpu":
        pytest.skip("gloo: runs where the tensors are on a CPU")
    folder = tmp_path_factory.mktemp("ranks")
    worker = Path(__file__).parent / "sglang_rank_worker.py"
    environment = settings.child_environment(PYTHONPATH=":".join(sys.path), TRITON_INTERPRET="1")
    running = [
        subprocess.Popen(
            [sys.executable, str(worker), str(rank), str(RANKS), str(folder)],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment,
        )
        for rank in range(RANKS)
    ]  # fmt: skip
    said = [process.communicate(timeout=240)[0] for process in running]
    for process, text in zip(running, said, strict=True):
        assert process.returncode == 0, text[-3000:]
    return [torch.load(folder / f"{rank}.pt") for rank in range(RANKS)]


def answer(name: str, result: dict[str, Any]) -> reference.Attention:
    """The fp64 result over all keys and heads."""
    job, keys = JOBS[name], result["keys"]
    q_len = job.drafts or 1
    starts = torch.tensor([0, *accumulate(job.kv_lens)], dtype=torch.int32)
    scale = None if job.k_scale is None else torch.tensor(job.k_scale)
    return reference.mla_decode(
        result["q"].cpu(),
        torch.cat(keys).cpu().view(result["dtype"])[:, None],
        torch.arange(len(keys) + 1, dtype=torch.int32) * q_len,
        starts,
        torch.arange(int(starts[-1]), dtype=torch.int32),
        max_seqlen_q=q_len,
        sm_scale=result["scaling"],
        kv_scale=scale,
    )


def check(name: str, of_ranks: list[dict[str, Any]], got: torch.Tensor | None, target: str) -> None:
    """Results of the ranks, and what they make together, against fp64."""
    assert all(torch.equal(of_ranks[0]["q"], other["q"]) for other in of_ranks)
    want = answer(name, of_ranks[0])
    parts = [[part.double().cpu() for part in result["part"]] for result in of_ranks]
    weights = [(lse - want.lse).exp()[..., None] for _, lse in parts]
    whole = sum(o * weight for (o, _), weight in zip(parts, weights, strict=True))
    # what a rank adds is rounded before it is added
    share = sum(o.abs() * weight for (o, _), weight in zip(parts, weights, strict=True))
    rounding = compare.tolerances()["output"]["bf16"]["u_out"]
    allowed = compare.allowed_output(want, torch.bfloat16, target, torch.bfloat16)
    for result in (whole, whole if got is None else got):
        compare.assert_close(result, want.o, allowed + rounding * share, what="o")
    lse = torch.logsumexp(torch.stack([lse for _, lse in parts]), 0)
    compare.assert_close(lse, want.lse, compare.allowed_lse(want), what="lse")


@pytest.mark.parametrize("name", JOBS)
def test_ranks_that_share_keys_return_the_unsharded_result(
    name: str, results: Results, target: str
) -> None:
    of_ranks = [result[name] for result in results]
    outs = [result["out"] for result in of_ranks]
    got = torch.cat([out.reshape(-1, HEADS, out.shape[-1]) for out in outs], 1)
    check(name, of_ranks, got, target)


@pytest.mark.parametrize("name", JOBS)
def test_the_ranks_parts_on_a_gpu_make_the_unsharded_result(name: str, target: str, device) -> None:
    if device.type == "cpu":
        pytest.skip("SGLang stores the tokens of a rank by a kernel: needs a GPU")
    of_ranks = []
    for rank in range(RANKS):
        ranks = {"attn_dcp_size": RANKS, "attn_dcp_rank": rank, "dcp_enabled": True}
        with get_parallel().override(**ranks):
            of_ranks.append(decode(JOBS[name], device, lambda *parts: parts))
    check(name, of_ranks, None, target)


def test_a_rank_without_keys_of_a_request_says_so(results: Results) -> None:
    """The second request of one token is on rank 0 alone."""
    o, lse = results[1]["decode"]["part"]
    assert lse[1].isneginf().all()
    assert not o[1].any()
    assert results[0]["decode"]["part"][1][1].isfinite().all()


@pytest.mark.parametrize("ranks", [1, 2, 3])
@pytest.mark.parametrize("page_size", [1, 16])
def test_page_lists_and_new_tokens_of_gpus_are_those_of_cpus(
    page_size: int, ranks: int, device
) -> None:
    if device.type == "cpu":
        pytest.skip("interpreted in the ranks' processes: needs a GPU")
    check_page_lists(device, page_size, ranks)
    check_new_tokens(device, page_size > 1, ranks)


@pytest.mark.parametrize(
    ("prompts", "is_draft", "match"),
    [("hipdecode", False, "--prefill-attention-backend"), ("flashinfer", True, "draft")],
)
def test_what_ranks_that_share_keys_do_not_do_is_refused_by_the_option(
    prompts: str, is_draft: bool, match: str, device
) -> None:
    runner = Engine(device, context=CONTEXT, prompts=prompts).runner
    runner.is_draft_worker = is_draft
    shared = get_parallel().override(attn_dcp_size=2, attn_dcp_rank=0)
    with shared, pytest.raises(BadArgument, match=f"--dcp-size.*{match}"):
        ATTENTION_BACKENDS["hipdecode"](runner)
