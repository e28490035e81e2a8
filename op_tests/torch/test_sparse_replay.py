# SPDX-License-Identifier: MIT
"""One sparse step captured once and replayed on new lists; a CPU has no graphs and calls again.

And what makes that possible: a warm call allocates nothing, waits for nothing, writes no setting.
"""

from __future__ import annotations

import dataclasses
import os
import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import hipdecode
from hipdecode.integrations import vllm
from hipdecode.testing.asynchrony import assert_asynchronous
from hipdecode.testing.calls import assert_alone_or_at_once, bits, captured
from hipdecode.testing.recorder import Recorder
from hipdecode.testing.sparse_cases import SparseBuffers, SparseCase, assert_sparse_matches

pytestmark = pytest.mark.usefixtures("sparse_kernels")

TOKENS, MOST, MOST_EXTRA = 4, 320, 200


def largest(form: str, layout: str, nhead: int = 12) -> SparseCase:
    return SparseCase(
        form, nhead, lens=(MOST,) * TOKENS, extra_lens=(MOST_EXTRA,) * TOKENS, layout=layout,
        sink="normal",
    )  # fmt: skip


def variants(case: SparseCase, count: int) -> list[SparseCase]:
    """Cases that fit the same buffers, every one with a token that sees nothing."""
    rng = random.Random(1)
    drawn = []
    for seed in range(1, count + 1):
        lens = [rng.randint(0, MOST) for _ in range(TOKENS)]
        extra = [rng.randint(0, MOST_EXTRA) for _ in range(TOKENS)]
        lens[seed % TOKENS] = extra[seed % TOKENS] = 0
        extra[(seed + 1) % TOKENS] = 0
        more = {"holes": seed % 4, "repeat": seed % 3 == 0}
        drawn.append(
            dataclasses.replace(case, lens=tuple(lens), extra_lens=tuple(extra), seed=seed, **more)
        )
    return drawn


def step(buffers: SparseBuffers, splits: int | None, workspace: hipdecode.Workspace | None = None):
    options = {"out": buffers.out, "lse": buffers.lse, "return_lse": True, "num_splits": splits}
    return lambda: hipdecode.sparse_mla_decode(**buffers.inputs, **options, workspace=workspace)


@pytest.mark.parametrize("splits", [None, 1, 3])
@pytest.mark.parametrize("layout", ["ragged", "lengths", "table"])
@pytest.mark.parametrize("form", ["v32", "v4"])
def test_replays_follow_new_lists_and_lengths_bit_for_bit(
    form: str, layout: str, splits: int | None, target: str, device: torch.device
) -> None:
    case = largest(form, layout)
    buffers = SparseBuffers(case, target, device)
    call = step(buffers, splits, hipdecode.Workspace(device))
    replay = captured(call, device)
    turns = 20 if device.type == "cuda" else 1 if target.startswith("sim:") else 5
    for turn, new in enumerate(variants(case, turns)):
        buffers.fill(new)
        replay()
        replayed = bits(buffers.out, buffers.lse)
        if turn < 2:
            assert_sparse_matches(buffers.inputs, buffers.out, buffers.lse, target, str(new))
        for result in (buffers.out, buffers.lse):
            result.fill_(float("nan"))
        call()
        assert all(map(torch.equal, replayed, bits(buffers.out, buffers.lse))), f"{turn}: {new}"


@pytest.mark.gpu
@pytest.mark.parametrize("splits", [1, 3])
def test_two_streams_decode_at_once_in_their_own_workspaces(
    splits: int, target: str, gpu: torch.device
) -> None:
    both = []
    for case in variants(largest("v4", "lengths", 128), 2):
        buffers = SparseBuffers(case, target, gpu)
        call = step(buffers, splits, hipdecode.Workspace(gpu))
        both.append((call, buffers.out, buffers.lse))
    assert_alone_or_at_once(both)


@pytest.mark.gpu
@pytest.mark.parametrize("splits", [None, 1, 3])
def test_a_warm_call_allocates_nothing_and_waits_for_nothing(
    splits: int | None, target: str, gpu: torch.device
) -> None:
    call = step(SparseBuffers(largest("v32", "lengths"), target, gpu), splits)
    call()
    call()
    assert_asynchronous(call)


def _rocm(i: Any, out: Tensor, layout: str) -> Callable[[], object]:
    ragged = layout == "ragged"
    swa = None if ragged else i["indices"]
    topk = None if ragged else i["extra_indices"]
    flat = (i["indices"], i["indptr"], i["extra_indices"], i["extra_indptr"])
    lists = flat if ragged else (None,) * 4
    return lambda: vllm.rocm_sparse_attn_decode(
        i["q"], i["extra_cache"], i["cache"], False, topk, i["extra_lengths"], swa, i["lengths"],
        *lists, i["attn_sink"], 512**-0.5, 512, 448, 64, out,
    )  # fmt: skip


# An allocation, a copy to the host and .item() would each be an op that is no view.
@pytest.mark.parametrize("layout", ["ragged", "lengths", "table"])
def test_vllm_entry_runs_nothing_but_views_and_the_op(
    layout: str, target: str, device: torch.device
) -> None:
    buffers = SparseBuffers(largest("v4", layout), target, device)
    call = _rocm(buffers.inputs, buffers.out, layout)
    environment = dict(os.environ)
    call()
    assert dict(os.environ) == environment
    with Recorder() as recorder:
        call()
    assert recorder.work == ["hipdecode.sparse_mla_decode.default"]


@pytest.mark.parametrize("split_k", [None, 4])
def test_vllm_ops_run_nothing_but_views_and_the_op(
    split_k: int | None, target: str, device: torch.device
) -> None:
    buffers = SparseBuffers(largest("v4", "ragged"), target, device)
    i: Any = buffers.inputs
    sizes = (64, 4, i["cache"].shape[0] * 64, i["extra_cache"].shape[0] * 4, 512**-0.5, True)
    tensors = (
        i["q"], i["cache"], i["indices"], i["indptr"], i["extra_cache"], i["extra_indices"],
        i["extra_indptr"], i["attn_sink"], buffers.out,
    )  # fmt: skip
    scratch = (buffers.lse,) * 3

    def call() -> None:
        if split_k is None:
            vllm.decode_single(*tensors, *sizes)
        else:
            vllm.decode_split(*tensors, *scratch, *sizes, split_k)

    call()
    with Recorder() as recorder:
        call()
    assert recorder.work == ["hipdecode.sparse_mla_decode.default"]
