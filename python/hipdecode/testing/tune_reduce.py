# SPDX-License-Identifier: MIT
"""Measures the route `reduce` beside the ordinary decode, for the rows where it is faster.

A row of its table holds for all contexts and dtypes of a step, so one is written only where one
form of the merge wins at every point that was measured.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

import hipdecode
from hipdecode import ops
from hipdecode.reduce_route import ReduceRow, adaptive_splits
from hipdecode.tables import TableKey
from hipdecode.testing.bench_case import DecodeCase
from hipdecode.testing.bench_report import Checked, Oracle
from hipdecode.testing.peers import Hipdecode
from hipdecode.testing.tune_run import Call, How, race
from hipdecode.tuning import Choice, Measurement, Point

ORDINARY = Choice("ordinary", "auto")
_BATCHES, _VECS = (2, 4, 8), (2, 4)
_RANK = 512


@dataclass(frozen=True, slots=True)
class ReduceStep:
    """What a row is about, and the points that it has to win.

    Attributes:
        tokens: requests, with one query row each.
        nhead: query heads.
        dtypes: of q and of the cache, each pair measured.
        kv_lens: tokens of each request, each number measured.
    """

    tokens: int
    nhead: int
    dtypes: tuple[tuple[str, str], ...]
    kv_lens: tuple[int, ...]


def rows_of(step: ReduceStep, compute_units: int) -> tuple[ReduceRow, ...]:
    """Every form of the merge that may be taken for a step."""
    splits = adaptive_splits(step.tokens, compute_units)
    forms = dict.fromkeys(
        f"mla_reduce_BATCH{min(batch, splits)}_VEC{vec}"
        for batch, vec in itertools.product(_BATCHES, _VECS)
    )
    sizes = (compute_units, step.tokens, step.nhead, _RANK, _RANK, splits)
    return tuple(ReduceRow(*sizes, form) for form in forms)


def measure_step(step: ReduceStep, how: How, budget_s: float) -> list[Measurement[TableKey]]:
    """Times every form beside the ordinary decode, at every point of a step; see `race`."""
    points = len(step.dtypes) * len(step.kv_lens)
    found = []
    for (q_dtype, kv_dtype), kv_len in itertools.product(step.dtypes, step.kv_lens):
        case = DecodeCase.draw(
            [kv_len] * step.tokens, nhead=step.nhead, q_dtype=q_dtype, kv_dtype=kv_dtype,
            device=how.target.device_type,
        )  # fmt: skip
        oracle = Oracle(case)
        calls: dict[Choice, Sequence[Call]] = {ORDINARY: [Hipdecode().prepare(case)]}
        for row in rows_of(step, how.target.compute_units()):
            calls[Choice("reduce", row.reduce_kernel)] = [_reduced(case, row)]
        point = Point(TableKey(q_dtype, kv_dtype, step.nhead, 1, 1), step.tokens, kv_len)

        def check(call: Call, oracle: Oracle = oracle) -> Checked:
            return oracle.check(call(), how.target.name)

        found.append(race(point, calls, check, how, budget_s / points))
    return found


def winner(
    step: ReduceStep, measured: Iterable[Measurement[TableKey]], compute_units: int
) -> ReduceRow | None:
    """The form that is faster than the ordinary decode at all points, by more than the noise."""
    points = list(measured)

    def gains(row: ReduceRow) -> list[float]:
        choice = Choice("reduce", row.reduce_kernel)
        if not all(one.rounds and choice in one.trials for one in points):
            return []
        pairs = [(one.trials[ORDINARY], one.trials[choice]) for one in points]
        return [
            ordinary.ratio / mine.ratio - 1 - max(ordinary.noise_pct, mine.noise_pct) / 100
            for ordinary, mine in pairs
        ]

    winners = [row for row in rows_of(step, compute_units) if (g := gains(row)) and min(g) > 0]
    return max(winners, key=lambda row: statistics.fmean(gains(row)), default=None)


def summary(measured: Measurement[TableKey]) -> list[str]:
    """A line about a point for people; none where nothing was measured."""
    if not measured.rounds:
        return []
    point, best = measured.point, measured.best("reduce")
    key, trials = point.key, measured.trials
    return [
        f"{key.q_dtype}/{key.kv_dtype} nhead {key.nhead}, token {point.batch}, kv_len "
        f"{point.kv_len}: {trials[ORDINARY].us:.1f}, {best.num_splits} {trials[best].us:.1f}"
    ]


def _reduced(case: DecodeCase, row: ReduceRow) -> Call:
    """What `mla_reduce_decode` does where the table has that row."""
    inputs, out = case.inputs, case.new_output()
    q = inputs["q"]
    workspace = hipdecode.Workspace(case.device)
    partials = workspace.partials(q.shape[0] * row.num_kv_splits, row.num_heads, row.v_head_dim)
    ops.load_binding()

    def run() -> Tensor:
        torch.ops.hipdecode.mla_reduce_decode.default(
            q, inputs["kv_buffer"], out, None, inputs["qo_indptr"], inputs["kv_indptr"],
            inputs["kv_indices"], inputs["kv_last_page_lens"], *partials, inputs["q_scale"],
            inputs["kv_scale"], *row.batch_and_vec, row.num_kv_splits, case.scale,
        )  # fmt: skip
        return out

    return run
