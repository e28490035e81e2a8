# SPDX-License-Identifier: MIT
"""Measures one point of the grid of sparse decode: the rule and other split counts."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial

from torch import Tensor

from hipdecode.sparse_cache import FORMATS
from hipdecode.sparse_route import (
    GROUP_ROWS,
    GROUP_ROWS_OF,
    MAX_SPLITS_OF,
    SparseKey,
    SparseShape,
    clusters_at_once,
    splits_by_rule,
)
from hipdecode.split_rule import MIN_PIECE
from hipdecode.testing.sparse_peers import SparseStep, ours
from hipdecode.testing.tune_run import How, race_steps
from hipdecode.tuning import RULE, Choice, Measurement, Point

POOL_TOKENS = 131072
"""More than any cache holds, with every format."""
_SPLIT_POWERS = 7
_MOST_BLOCKS = 4
"""Splits to try beside the rule: powers of two that give a compute unit at most so many blocks."""
_CLUSTERS, _MOST_CLUSTERS = (2, 3, 4, 5, 6, 7, 8, 10, 12, 16), 4
"""Splits to try where they are a cluster: one, and the largest of these that run at once."""


def choices(point: Point[SparseKey], family: str) -> dict[Choice, int]:
    """What is timed at a point, with the split count that it comes down to."""
    key, group_rows = point.key, GROUP_ROWS_OF.get(family, GROUP_ROWS)
    by_rule = splits_by_rule(
        SparseShape(
            family=family,
            compute_units=key.compute_units,
            format=key.format,
            tokens=point.batch,
            nhead=key.nhead,
            max_keys=point.kv_len,
        )
    )
    blocks = point.batch * -(-key.nhead // group_rows)
    pieces = -(-point.kv_len // MIN_PIECE)
    if family in MAX_SPLITS_OF:
        fit = [n for n in _CLUSTERS if blocks <= clusters_at_once(n, key.compute_units)]
        counts = [1, *([n for n in fit if n <= pieces][-_MOST_CLUSTERS:] or [2])]
    else:
        most = min(_MOST_BLOCKS * key.compute_units // blocks, pieces)
        counts = [2**power for power in range(_SPLIT_POWERS) if 2**power <= max(most, 2)]
    return {RULE: by_rule, **{Choice("fixed", n): n for n in counts if n != by_rule}}


@dataclass(slots=True)
class SparsePoints:
    """Measures points; holds the pool that they read.

    Attributes:
        how: see How.
    """

    how: How
    _pools: dict[str, Tensor] = field(default_factory=dict)

    def measure(self, point: Point[SparseKey], budget_s: float) -> Measurement[SparseKey]:
        """See `tune_run.measure`; slots lie all over a pool that no cache holds."""
        tried = choices(point, self.how.target.family)
        return race_steps(
            point, self.how, budget_s, partial(self._step, point),
            lambda step: {choice: ours(step, splits) for choice, splits in tried.items()},
        )  # fmt: skip

    def _step(self, point: Point[SparseKey], seed: int) -> SparseStep:
        key = point.key
        if key.format not in self._pools:
            self._pools[key.format] = SparseStep.pool(
                FORMATS[key.format], POOL_TOKENS, self.how.target.device_type
            )
        return SparseStep.draw(
            self._pools[key.format], tokens=point.batch, nhead=key.nhead, topk=point.kv_len,
            sink=key.format == "v4", seed=seed,
        )  # fmt: skip
