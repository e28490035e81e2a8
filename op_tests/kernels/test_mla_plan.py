# SPDX-License-Identifier: MIT
"""The planner: its schedule against a plain reference, its invariants, its limits."""

from __future__ import annotations

import itertools
import random
from collections import defaultdict
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from plan_reference import Schedule, Step, ceil_div, plan, request_tokens
from torch import Tensor

from hipdecode import MlaPlan, plan_mla_decode

SENTINEL = -123456789
CHECKED = settings(
    max_examples=500,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


def int32(values: list[int]) -> Tensor:
    return torch.tensor(values, dtype=torch.int32)


def prefix(values: list[int]) -> Tensor:
    return int32([0, *itertools.accumulate(values)])


def planned(step: Step, **more: Any) -> MlaPlan:
    return plan_mla_decode(
        prefix(step.qlens),
        prefix(step.pages),
        nhead=step.nhead,
        max_seqlen_q=step.max_seqlen_q,
        page_size=step.page_size,
        kv_last_page_lens=None if step.last is None else int32(step.last),
        causal=step.causal,
        compute_units=None if "out" in more else step.clusters,
        max_split_per_batch=step.max_split_per_batch,
        intra_batch_mode=step.intra_batch_mode,
        num_kv_splits=step.num_kv_splits,
        kv_granularity=step.kv_granularity,
        topk=step.topk,
        head_dim_v=1,
        **more,
    )


@st.composite
def steps(draw: st.DrawFn, *, sparse: bool = False) -> Step:
    # Hypothesis alone favours small lists of small numbers, which are seldom cut.
    rng = random.Random(draw(st.integers(0, 2**32)))
    batch = rng.choice([0, 1, 2, 3, 5, 17, rng.randint(0, 40)])
    max_q = rng.choice([1, 2, 4, rng.randint(1, 16)])
    page_size = rng.choice([1, 16, 64])
    longest = rng.choice([4, 70, 600, 5000, 5000]) // page_size + 1
    lengths = [rng.choice([0, longest, rng.randint(0, longest)]) for _ in range(batch)]
    return Step(
        qlens=[max_q if sparse else rng.randint(0, max_q) for _ in range(batch)],
        pages=lengths,
        last=rng.choice([None, [rng.randint(0, page_size) for _ in range(batch)]]),
        nhead=rng.choice([1, 8, 16, 32, 48, 128, rng.randint(1, 128)]),
        max_seqlen_q=max_q,
        page_size=page_size,
        kv_granularity=rng.choice([1, 4, 16, 64]),
        clusters=rng.choice([1, 2, 32, 64, rng.randint(1, 64)]),
        causal=draw(st.booleans()),
        intra_batch_mode=draw(st.booleans()),
        num_kv_splits=draw(st.sampled_from([32, 2, 1])),
        max_split_per_batch=draw(st.sampled_from([-1, 32, 2, 1])),
        topk=draw(st.integers(0, 2048)) if sparse else -1,
    )


def assert_matches(got: MlaPlan, want: Schedule) -> None:
    works, tiles, partials = len(want.works), len(want.tiles), len(want.partial_map)
    assert works <= got.work_info_set.shape[0]
    assert partials <= got.reduce_partial_map.numel()
    assert tiles <= got.reduce_final_map.shape[0]
    assert got.work_indptr.tolist() == want.work_indptr
    assert [tuple(w) for w in got.work_info_set[:works].tolist()] == want.works
    tail = [partials] * (got.reduce_indptr.numel() - tiles - 1)
    assert got.reduce_indptr.tolist() == want.reduce_indptr + tail
    assert got.reduce_partial_map[:partials].tolist() == want.partial_map
    assert [tuple(t) for t in got.reduce_final_map[:tiles].tolist()] == want.final_map


def visible(step: Step) -> dict[int, int]:
    """Keys that each query row sees, from its request's lengths alone."""
    out = {}
    row = 0
    for b, qlen in enumerate(step.qlens):
        for i in range(qlen):
            tokens = request_tokens(step, b)
            if step.topk >= 0:
                out[row] = min(tokens, step.topk)
            else:
                out[row] = max(tokens - (qlen - 1 - i), 0) if step.causal else tokens
            row += 1
    return out


def covered(step: Step, works: list[list[int]]) -> dict[int, list[tuple[int, int]]]:
    """Token ranges that the works give each row, as a decode kernel reads them."""
    first_row = [0, *itertools.accumulate(step.qlens)]
    first_page = [0, *itertools.accumulate(step.pages)]
    out = defaultdict(list)
    for batch, _, q0, q1, kv0, kv1, offset, _ in works:
        qlen = step.qlens[batch]
        assert first_row[batch] <= q0 < q1 <= first_row[batch + 1]
        assert (q1 - q0) * step.nhead <= 128
        assert kv0 <= kv1
        assert offset >= 0
        for row in range(q0, q1):
            i = row - first_row[batch]
            if step.topk >= 0:
                begin = (kv0 - row * step.topk) * step.page_size
                keys = min((kv1 - kv0) * step.page_size, step.topk - begin)
                keys = min(keys, request_tokens(step, batch) - begin)
                hidden = qlen - 1 - i
            else:
                begin = (kv0 - first_page[batch]) * step.page_size
                keys = (kv1 - kv0) * step.page_size
                if offset == 0 and keys > 0 and step.page_size > 1 and step.last is not None:
                    keys -= step.page_size - step.last[batch]
                hidden = qlen - 1 - i if step.causal else 0
            out[row].append((begin, begin + max(min(keys, keys + offset - hidden), 0)))
    return out


def assert_covers_once(step: Step, got: MlaPlan) -> None:
    works = got.work_info_set[: int(got.work_indptr[-1])].tolist()
    ranges = covered(step, works)
    for row, keys in visible(step).items():
        spans = sorted((a, b) for a, b in ranges[row] if a < b)
        assert ranges[row], f"row {row} has no work that writes it"
        assert sum(b - a for a, b in spans) == keys, f"row {row}: {spans} for {keys} keys"
        assert all(x[1] == y[0] for x, y in itertools.pairwise(spans))
        assert not spans or spans[0][0] == 0


def assert_partials_are_merged(
    works: list[list[int]], reduce_indptr: Tensor, final_map: Tensor, partial_map: Tensor
) -> int:
    """Each partial has rows of its own and the reduce knows it; the number of partial rows."""
    rows = set()
    parts = defaultdict(list)
    for _, partial, q0, q1, *_ in works:
        if partial >= 0:
            mine = range(partial, partial + q1 - q0)
            assert rows.isdisjoint(mine)
            rows.update(mine)
            parts[q0, q1].append(partial)
    merged = {}
    for tile, (begin, end) in enumerate(itertools.pairwise(reduce_indptr.tolist())):
        if end - begin > 1:
            merged[tuple(final_map[tile].tolist())] = partial_map[begin:end].tolist()
    assert merged == parts
    return max(rows, default=-1) + 1


@CHECKED
@given(step=steps() | steps(sparse=True))
def test_plan_matches_reference(step: Step) -> None:
    assert_matches(planned(step), plan(step))


@CHECKED
@given(step=steps() | steps(sparse=True))
def test_plan_covers_each_visible_key_once(step: Step) -> None:
    got = planned(step)
    assert_covers_once(step, got)
    maps = (got.reduce_indptr, got.reduce_final_map, got.reduce_partial_map)
    works = got.work_info_set[: int(got.work_indptr[-1])].tolist()
    assert assert_partials_are_merged(works, *maps) <= got.partial_output.shape[0]


@CHECKED
@given(step=steps().filter(lambda step: not step.intra_batch_mode))
def test_plan_gives_no_cluster_more_than_its_payload(step: Step) -> None:
    got, want = planned(step), plan(step)
    overhead = max(1, ceil_div(16, step.page_size))
    # A cut that would leave fewer than max_seqlen_q tokens, or an empty page, is not made.
    tail = 2 * step.max_seqlen_q if step.page_size == 1 else 1
    merged = ceil_div(tail, step.kv_granularity)
    info = got.work_info_set.tolist()
    for begin, end in itertools.pairwise(got.work_indptr.tolist()):
        cost = sum(
            ceil_div(kv1 - kv0, step.kv_granularity) + overhead
            for *_, kv0, kv1, _, _ in info[begin:end]
        )
        assert cost <= want.payload + merged


HAND_MADE = {
    "one-long": Step([1], [4096], clusters=4),
    "cut-in-three": Step([1, 1, 1], [100, 5000, 3], clusters=3, kv_granularity=1),
    "two-rows-of-tiles": Step([4, 2, 3], [900, 0, 2], nhead=128, max_seqlen_q=4),
    "odd-heads": Step([5], [333], nhead=48, max_seqlen_q=5, clusters=5),
    "pages": Step([2, 2], [7, 20], [3, 64], page_size=64, kv_granularity=1, max_seqlen_q=2),
    "empty-last-page": Step([1], [3], [0], page_size=64, kv_granularity=1, clusters=2),
    "empty-batch": Step([], []),
    "all-padding": Step([1] * 5, [0] * 5),
    "no-queries": Step([0, 2, 0], [50, 60, 70], max_seqlen_q=2),
    "intra-one": Step([1], [800], intra_batch_mode=True),
    "intra-tail": Step([1], [2 * 196 + 3], intra_batch_mode=True, kv_granularity=1, clusters=2),
}


@pytest.mark.parametrize("name", HAND_MADE)
def test_plan_matches_reference_on_hand_made_steps(name: str) -> None:
    assert_matches(planned(HAND_MADE[name]), plan(HAND_MADE[name]))


@pytest.mark.parametrize(
    ("batch", "max_seqlen_q", "nhead", "clusters", "longest"),
    [
        (2000, 1, 16, 132, 5000),
        (700, 4, 128, 700, 300),  # four tiles of a request may lie in two chunks
        (3, 1, 16, 1500, 200_000),  # more cuts than a chunk has clusters
        (3, 1500, 128, 64, 100),  # more tiles in a request than in a chunk
        (2, 1, 1, 8, 2**30 - 1),  # the line is longer than 32 bits count
        (1300, 0, 16, 64, 100),  # chunks without a tile
    ],
)
@pytest.mark.parametrize("intra_batch_mode", [False, True])
def test_plan_matches_reference_on_large_steps(
    batch: int, max_seqlen_q: int, nhead: int, clusters: int, longest: int, intra_batch_mode: bool
) -> None:
    rng = random.Random(batch)
    lengths = [rng.choice([0, longest // 7, rng.randint(0, longest)]) for _ in range(batch - 1)]
    step = Step(
        qlens=[*(rng.randint(0, max_seqlen_q) for _ in lengths), max(max_seqlen_q, 1)],
        pages=[*lengths, longest],
        nhead=nhead,
        max_seqlen_q=max(max_seqlen_q, 1),
        kv_granularity=1 if batch == 2 else 16,
        clusters=clusters,
        intra_batch_mode=intra_batch_mode,
    )
    assert_matches(planned(step), plan(step))


def test_plan_is_as_worked_out_on_paper() -> None:
    # 2 tiles on 2 clusters: blocks 4 + 2, each with 16 of overhead: 38 / 2 + 16 = 35 per cluster.
    # Cluster 0 takes tile 0 (20) and has 15 left, not enough to start tile 1.
    got = planned(Step([1, 1], [64, 20], clusters=2))
    assert got.work_indptr.tolist() == [0, 1, 2]
    assert got.work_info_set[:2].tolist() == [
        [0, -1, 0, 1, 0, 64, 0, 0],
        [1, -1, 1, 2, 64, 84, 0, 0],
    ]
    assert got.reduce_indptr.tolist() == [0, 0, 0]
    # One request of 64 blocks on 2 clusters: 80 / 2 + 16 = 56 per cluster, so the cut is at 40.
    got = planned(Step([1], [1024], clusters=2))
    assert got.work_info_set[:2].tolist() == [
        [0, 0, 0, 1, 0, 640, 384, 0],
        [0, 1, 0, 1, 640, 1024, 0, 0],
    ]
    assert got.reduce_indptr.tolist() == [0, 2]
    assert got.reduce_final_map.tolist() == [[0, 1]]
    assert got.reduce_partial_map[:2].tolist() == [0, 1]


@pytest.mark.parametrize("intra_batch_mode", [False, True])
def test_plan_gives_a_work_to_requests_without_keys(intra_batch_mode: bool) -> None:
    got = planned(Step([1, 1, 1], [0, 500, 0], intra_batch_mode=intra_batch_mode))
    works = got.work_info_set[: int(got.work_indptr[-1])].tolist()
    assert [0, -1, 0, 1, 0, 0, 0, 0] in works
    assert [2, -1, 2, 3, 500, 500, 0, 0] in works


def test_plan_uses_uniform_query_length_without_qo_indptr() -> None:
    step = Step([3] * 4, [100, 2000, 0, 7], max_seqlen_q=3)
    want = planned(step)
    got = plan_mla_decode(
        int32([SENTINEL] * 5),
        prefix(step.pages),
        nhead=step.nhead,
        max_seqlen_q=3,
        compute_units=step.clusters,
        uni_seqlen_qo=3,
    )
    assert torch.equal(got.work_indptr, want.work_indptr)
    works = int(got.work_indptr[-1])
    assert torch.equal(got.work_info_set[:works], want.work_info_set[:works])


def test_plan_ignores_last_page_lens_when_page_size_is_1() -> None:
    step = Step([1, 1], [300, 40], [300, 40])
    assert_matches(planned(step), plan(Step([1, 1], [300, 40])))


def test_plan_writes_the_addresses_of_its_work_list() -> None:
    got = planned(Step([1], [10]))
    words = got.work_metadata_ptrs.view(torch.int64).tolist()
    assert words == [got.work_indptr.data_ptr(), got.work_info_set.data_ptr()]
