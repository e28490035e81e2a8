# SPDX-License-Identifier: MIT
"""The planner at its limits: metadata sizes, buffers too small, lengths that are garbage."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from plan_reference import Step, plan
from test_mla_plan import (
    CHECKED,
    assert_matches,
    assert_partials_are_merged,
    covered,
    int32,
    planned,
    prefix,
    steps,
    visible,
)
from torch import Tensor

from hipdecode import BadArgument, MlaPlan, mla_metadata_info, ops, plan_mla_decode
from hipdecode.errors import WorkspaceError

GUARD = 5
SENTINEL = -123456789
BF16 = torch.bfloat16


class Guarded:
    """The six metadata tensors, each in the middle of a larger one that must stay as it is."""

    def __init__(self, sizes: list[int]) -> None:
        """Makes buffers for `sizes` works, clusters + 1, tiles + 1, tiles and partials."""
        works, *rest = sizes
        self.whole = [torch.full((n + 2 * GUARD,), SENTINEL, dtype=torch.int32) for n in rest]
        self.whole.append(torch.full((works + 2 * GUARD, 8), SENTINEL, dtype=torch.int32))
        self.metadata = torch.zeros(2, dtype=torch.uint64)
        pairs = self.whole[2]
        self.whole[2] = pairs.new_full((pairs.numel(), 2), SENTINEL)
        inner = [whole[GUARD:-GUARD] for whole in self.whole]
        self.work_indptr, self.reduce_indptr, self.final_map, self.partial_map, self.info = inner

    def fill(self, qo_indptr: Tensor, kv_indptr: Tensor, last: Tensor | None, step: Step) -> None:
        ops.ensure_kernel("mla_plan")
        torch.ops.hipdecode.mla_plan(
            qo_indptr,
            kv_indptr,
            last,
            self.metadata,
            self.info,
            self.work_indptr,
            self.reduce_indptr,
            self.final_map,
            self.partial_map,
            step.nhead,
            step.page_size,
            step.kv_granularity,
            step.max_seqlen_q,
            -1,
            step.topk,
            step.max_split_per_batch,
            step.causal,
            step.intra_batch_mode,
            step.num_kv_splits,
        )

    def assert_sound(self) -> None:
        """Guards untouched; the two indptrs rise from 0 and end inside what they point into."""
        for whole in self.whole:
            guards = torch.cat([whole[:GUARD], whole[-GUARD:]])
            assert (guards == SENTINEL).all()
        for indptr, room in (
            (self.work_indptr, self.info.shape[0]),
            (self.reduce_indptr, self.partial_map.numel()),
        ):
            ends = indptr.tolist()
            assert ends[:1] == [0][: len(ends)]
            assert all(a <= b for a, b in itertools.pairwise(ends))
            assert not ends or ends[-1] <= room


@CHECKED
@given(step=steps() | steps(sparse=True), seed=st.integers(0, 2**32))
def test_plan_stays_inside_buffers_too_small(step: Step, seed: int) -> None:
    want = plan(step)
    rng = random.Random(seed)
    full = [len(want.works), len(want.tiles) + 1, len(want.tiles), len(want.partial_map)]
    works, *reduce = [rng.choice([n, n // 2, rng.randint(0, n), 0]) for n in full]
    got = Guarded([works, step.clusters + 1, *reduce])
    last = None if step.last is None else int32(step.last)
    got.fill(prefix(step.qlens), prefix(step.pages), last, step)
    got.assert_sound()
    # Rows are covered as ever while each tile can have a work; then the last tiles have none.
    records = got.info[: int(got.work_indptr[-1])].tolist()
    assert_partials_are_merged(records, got.reduce_indptr, got.final_map, got.partial_map)
    ranges = covered(step, records)
    keys = visible(step)
    for row, spans in ranges.items():
        assert sum(max(b - a, 0) for a, b in spans) == keys[row]
    assert len(ranges) == sum(t.q1 - t.q0 for t in want.tiles[: max(works, 0)])


@CHECKED
@given(seed=st.integers(0, 2**32))
def test_plan_survives_garbage_lengths(seed: int) -> None:
    rng = random.Random(seed)
    batch = rng.randint(1, 12)
    extremes = [0, 1, -1, 100, 2**31 - 1, -(2**31), rng.randint(-(2**31), 2**31 - 1)]
    step = Step(
        qlens=[],
        pages=[],
        nhead=rng.choice([1, 16, 128]),
        max_seqlen_q=rng.choice([-1, 1, 16, 2**31 - 1]),
        page_size=rng.choice([1, 64, 2**31 - 1]),
        kv_granularity=rng.choice([1, 16, 2**31 - 1]),
        clusters=rng.randint(1, 20),
        intra_batch_mode=rng.random() < 0.5,
        max_split_per_batch=rng.choice([-1, 0, 1]),
        topk=rng.choice([-1, 0, 512, 2**31 - 1]),
    )
    got = Guarded([rng.randint(0, 40), step.clusters + 1, *(rng.randint(0, 40) for _ in range(3))])
    lengths = [int32([rng.choice(extremes) for _ in range(batch + 1)]) for _ in range(3)]
    got.fill(lengths[0], lengths[1], lengths[2][:batch], step)
    got.assert_sound()


@CHECKED
@given(step=steps() | steps(sparse=True), more=st.integers(0, 9))
def test_metadata_sizes_hold_any_smaller_batch(step: Step, more: int) -> None:
    sizes = mla_metadata_info(
        len(step.qlens) + more,
        step.max_seqlen_q,
        step.nhead,
        BF16,
        BF16,
        is_sparse=step.topk >= 0,
        fast_mode=not step.intra_batch_mode,
        num_kv_splits=step.num_kv_splits,
        intra_batch_mode=step.intra_batch_mode,
        max_split_per_batch=step.max_split_per_batch,
        compute_units=step.clusters,
    )
    want = plan(step)
    (_, (clusters, _), ((works, _), _), (tiles, _), ((pairs, _), _), (partials, _)) = sizes
    assert clusters == step.clusters + 1
    assert works >= len(want.works)
    assert tiles >= len(want.tiles) + 1
    assert pairs >= len(want.tiles)
    assert partials >= len(want.partial_map)


def test_metadata_sizes_come_in_the_order_of_aiter() -> None:
    sizes = mla_metadata_info(32, 4, 32, BF16, BF16, compute_units=8)
    assert sizes == (
        (2, torch.uint64),
        (9, torch.int32),
        ((32 + 7, 8), torch.int32),
        (33, torch.int32),
        ((32, 2), torch.int32),
        (7 + 7, torch.int32),
    )


def test_metadata_sizes_do_not_depend_on_dtypes() -> None:
    fp8 = torch.float8_e4m3fn
    of = [mla_metadata_info(7, 2, 24, q, kv, compute_units=9) for q in (BF16, fp8) for kv in (fp8,)]
    assert of[0] == of[1]


def test_metadata_sizes_hold_both_planners_when_both_are_asked_for() -> None:
    def sizes(**mode: bool) -> list[int]:
        info = mla_metadata_info(3, 2, 128, BF16, BF16, compute_units=40, **mode)
        return [size if isinstance(size, int) else size[0] for size, _ in info]

    both = sizes(fast_mode=True, intra_batch_mode=True)
    apart = (sizes(fast_mode=True), sizes(fast_mode=False, intra_batch_mode=True))
    assert both == [max(pair) for pair in zip(*apart, strict=True)]


@pytest.mark.parametrize("nhead", [8, 16, 32, 48, 64, 128])
def test_partial_rows_are_bounded_whatever_the_batch(nhead: int) -> None:
    for batch, compute_units in ((512, 64), (4096, 64), (1, 64)):
        step = Step([4] * batch, [1] * batch, nhead=nhead, max_seqlen_q=4, clusters=compute_units)
        got = planned(step)
        assert got.partial_output.shape[0] * nhead <= 2 * (compute_units - 1) * 128


def test_plan_of_one_cluster_cuts_nothing() -> None:
    got = planned(Step([4] * 9, [9000] * 9, max_seqlen_q=4, clusters=1))
    assert got.partial_output.shape[0] == 1
    assert set(got.work_info_set[:, 1].tolist()) == {-1}
    assert not got.reduce_indptr.any()


@pytest.mark.parametrize("intra_batch_mode", [False, True])
def test_plan_reuses_the_buffers_of_out(intra_batch_mode: bool) -> None:
    mode: dict[str, Any] = {"intra_batch_mode": intra_batch_mode, "clusters": 6}
    first = planned(Step([4] * 9, [700] * 9, max_seqlen_q=4, **mode))
    for step in (Step([1, 1], [0, 3000], **mode), Step([2, 4], [9, 8], max_seqlen_q=4, **mode)):
        again = planned(step, out=first)
        assert again.work_info_set is first.work_info_set
        assert again.partial_output is first.partial_output
        assert (again.batch, again.max_seqlen_q) == (2, step.max_seqlen_q)
        assert_matches(again, plan(step))


def small_plan(**changed: Any) -> Callable[[], MlaPlan]:
    arguments: dict[str, Any] = {
        "qo_indptr": prefix([2, 2]),
        "kv_indptr": prefix([100, 0]),
        "nhead": 16,
        "max_seqlen_q": 2,
        "compute_units": 4,
        **changed,
    }
    return lambda: plan_mla_decode(
        arguments.pop("qo_indptr"), arguments.pop("kv_indptr"), **arguments
    )


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("qo_indptr", int32([])),
        ("qo_indptr", prefix([2, 2]).long()),
        ("qo_indptr", prefix([2, 2, 2, 2, 2])[::2]),
        ("kv_indptr", prefix([2, 2]).to("meta")),
        ("kv_indptr", prefix([2])),
        ("kv_indptr", [0, 3, 4]),
        ("kv_last_page_lens", int32([1])),
        ("kv_last_page_lens", torch.ones(2)),
        ("nhead", 0),
        ("nhead", 129),
        ("nhead", 16.0),
        ("max_seqlen_q", 0),
        ("page_size", 0),
        ("kv_granularity", 0),
        ("num_kv_splits", 0),
        ("max_split_per_batch", 0),
        ("max_split_per_batch", None),
        ("uni_seqlen_qo", 3),
        ("topk", -2),
        ("head_dim_v", 0),
        ("compute_units", 0),
    ],
)
def test_plan_names_the_bad_argument(name: str, value: object) -> None:
    with pytest.raises(BadArgument, match=name):
        small_plan(**{name: value})()


@pytest.mark.parametrize(
    ("changed", "name"),
    [
        ({"qo_indptr": prefix([1] * 40), "kv_indptr": prefix([1] * 40)}, "work_info_set"),
        ({"nhead": 8}, "partial_output"),
        ({"head_dim_v": 64}, "partial_output"),
        ({"compute_units": 5}, "compute_units"),
        ({"max_seqlen_q": 9}, "work_info_set"),
    ],
)
def test_plan_refuses_an_out_that_is_too_small(changed: dict[str, Any], name: str) -> None:
    out = small_plan()()
    with pytest.raises(WorkspaceError, match=name):
        small_plan(out=out, **changed)()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("batch_size", -1),
        ("max_seqlen_qo", 0),
        ("num_head_qo", 200),
        ("q_dtype", "bf16"),
        ("kv_dtype", None),
        ("num_kv_splits", 0),
        ("max_split_per_batch", -2),
        ("compute_units", 0),
    ],
)
def test_metadata_info_names_the_bad_argument(name: str, value: object) -> None:
    arguments: dict[str, Any] = {
        "batch_size": 1,
        "max_seqlen_qo": 1,
        "num_head_qo": 16,
        "q_dtype": BF16,
        "kv_dtype": BF16,
    }
    with pytest.raises(BadArgument, match=name):
        mla_metadata_info(**{**arguments, name: value})
