# SPDX-License-Identifier: MIT
"""Page lists and plans that an engine keeps between steps, without the engine."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

import hipdecode
from hipdecode.errors import WorkspaceError
from hipdecode.integrations.steps import PageLists, StepPlans, StepShape, coarse_length
from hipdecode.testing import compare, reference

SIZE, WIDTH, BATCH, NHEAD = 16, 20, 6, 16


class Steps:
    """Tensors of an engine whose steps change in place, as those of a captured graph must."""

    def __init__(self, rows: int, device: torch.device) -> None:
        self.rows, self.device = rows, device
        self.random = torch.Generator().manual_seed(5)
        self.lists = PageLists(BATCH, WIDTH, SIZE, device)
        self.plans = StepPlans(
            max_batch=BATCH, nhead=NHEAD, head_dim_qk=576, head_dim_v=512, page_size=SIZE,
            q_dtype=torch.bfloat16, kv_dtype=torch.bfloat16, device=device,
        )  # fmt: skip
        self.shape = StepShape(BATCH, rows, causal=True)
        pages = BATCH * WIDTH
        self.cache = self._normal(pages, SIZE, 1, 576)
        self.table = torch.zeros(BATCH, WIDTH, dtype=torch.int32, device=device)
        self.lens = torch.zeros(BATCH, dtype=torch.int32, device=device)
        self.starts = torch.zeros(BATCH + 1, dtype=torch.int32, device=device)
        self.q = self._normal(BATCH * rows, NHEAD, 576)
        self.out = torch.empty(BATCH * rows, NHEAD, 512, dtype=torch.bfloat16, device=device)

    def _normal(self, *shape: int) -> Tensor:
        made = torch.randn(shape, generator=self.random, dtype=torch.float32)
        return made.bfloat16().to(self.device)

    def next(self, kv_lens: tuple[int, ...]) -> tuple[Tensor, Tensor, Tensor]:
        """New lengths, blocks and queries; padding has no length and no rows."""
        blocks = torch.randperm(BATCH * WIDTH, generator=self.random).view(BATCH, WIDTH)
        self.table.copy_(blocks)
        self.lens.copy_(torch.tensor(kv_lens))
        rows = [self.rows if tokens else 0 for tokens in kv_lens]
        self.starts.copy_(torch.tensor([0, *itertools.accumulate(rows)]))
        self.q.copy_(self._normal(*self.q.shape))
        self.out.fill_(float("nan"))
        return self.lists.fill(self.table, self.lens, max(*kv_lens, 1))

    def decode(self, lists: tuple[Tensor, Tensor, Tensor], plan: hipdecode.MlaPlan) -> None:
        hipdecode.mla_decode(
            self.q, self.cache, self.starts, *lists[:2], kv_last_page_lens=lists[2],
            max_seqlen_q=self.rows, out=self.out, plan=plan, route="persistent",
        )  # fmt: skip

    def check(self, target: str) -> None:
        """The oracle reads the table itself."""
        pages = (-(-self.lens // SIZE)).tolist()
        indices = [
            page for row, n in zip(self.table.tolist(), pages, strict=True) for page in row[:n]
        ]
        ends = torch.tensor([0, *itertools.accumulate(pages)], dtype=torch.int32)
        last = self.lens.cpu() - (ends.diff() - 1) * SIZE
        want = reference.mla_decode(
            self.q.cpu(), self.cache.cpu(), self.starts.cpu(), ends,
            torch.tensor(indices, dtype=torch.int32), max_seqlen_q=self.rows,
            kv_last_page_lens=last.int(),
        )  # fmt: skip
        allowed = compare.allowed_output(want, torch.bfloat16, target, torch.bfloat16)
        compare.assert_close(self.out.cpu(), want.o, allowed, what="o")


@pytest.mark.parametrize("rows", [1, 4])
def test_a_captured_plan_is_filled_in_place_for_each_replay(
    rows: int, target: str, device: torch.device
) -> None:
    steps = Steps(rows, device)
    longest = WIDTH * SIZE
    hipdecode.warmup(device=device)
    lists = steps.next((longest,) * BATCH)
    plan = steps.plans.capture(steps.shape, steps.starts, lists)
    graph = None
    if device.type == "cuda":
        steps.decode(lists, plan)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            steps.decode(lists, plan)
    for lens in ((longest,) * BATCH, (rows, 16, 17, 33, longest, 255), (100, 4, 0, 0, 0, 0)):
        again = steps.next(lens)
        assert [t.data_ptr() for t in again] == [t.data_ptr() for t in lists]
        followed = steps.plans.follow(steps.shape, steps.starts, again, 100)
        assert followed is plan
        if graph is None:
            steps.decode(lists, plan)
        else:
            graph.replay()
        steps.check(target)


def test_a_step_nobody_captured_is_planned_where_its_route_wants_it(
    target: str, device: torch.device
) -> None:
    steps = Steps(1, device)
    lists = steps.next((300, 1, 16, 0, 0, 17))
    chosen = {}
    for batch in range(1, BATCH + 1):
        shape = StepShape(batch, 1, causal=True)
        index = steps.starts[: batch + 1]
        part = (lists[0][: batch + 1], lists[1], lists[2][:batch])
        chosen[batch] = steps.plans.follow(shape, index, part, 64)
        assert chosen[batch] is None or chosen[batch].batch == batch
    plan = chosen[BATCH] or steps.plans.capture(steps.shape, steps.starts, lists)
    steps.decode(lists, plan)
    steps.check(target)


def test_lists_end_where_the_lengths_say(device: torch.device) -> None:
    table = torch.arange(BATCH * WIDTH, dtype=torch.int32, device=device).view(BATCH, WIDTH)
    lens = torch.tensor([0, 1, 16, 17, 320, 0], dtype=torch.int32, device=device)
    indptr, indices, last = PageLists(BATCH, WIDTH, SIZE, device).fill(table, lens, 320)
    assert indptr.tolist() == [0, 0, 1, 2, 4, 24, 24]
    assert indices[:24].tolist() == [20, 40, 60, 61, *range(80, 100)]
    assert last[1:5].tolist() == [1, 16, 1, 16]


def test_a_length_past_the_table_reads_no_block_beyond_it(device: torch.device) -> None:
    table = torch.arange(2 * WIDTH, dtype=torch.int32, device=device).view(2, WIDTH)
    lens = torch.tensor([10**6, -5], dtype=torch.int32, device=device)
    indptr, indices, _ = PageLists(2, WIDTH, SIZE, device).fill(table, lens, WIDTH * SIZE)
    assert indptr.tolist() == [0, WIDTH, WIDTH]
    assert indices[:WIDTH].tolist() == list(range(WIDTH))


@pytest.mark.parametrize(("batch", "width"), [(3, WIDTH), (2, WIDTH + 1)])
def test_a_step_larger_than_said_is_refused(batch: int, width: int, device: torch.device) -> None:
    table = torch.zeros(batch, width, dtype=torch.int32, device=device)
    lens = torch.ones(batch, dtype=torch.int32, device=device)
    with pytest.raises(WorkspaceError, match=r"block_table: expected at most 2 requests of 20"):
        PageLists(2, WIDTH, SIZE, device).fill(table, lens, width * SIZE)


@pytest.mark.parametrize("tokens", [0, 1, 8, 17, 100, 4095, 4096, 4097, 131071])
def test_coarse_lengths_are_few_and_never_too_short(tokens: int) -> None:
    found = coarse_length(tokens, 1)
    assert tokens <= found <= max(tokens * 9 / 8 + 1, 1)
    assert coarse_length(found, 1) == found
    assert len({coarse_length(n, 1) for n in range(4096, 8193)}) <= 9
