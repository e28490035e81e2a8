# SPDX-License-Identifier: MIT
"""Which kernels a decoded cache was served by: the dispatcher's answers, grouped."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby

from hipdecode import target
from hipdecode.arguments import DTYPE_NAMES
from hipdecode.demo.cache import PagedLatentCache
from hipdecode.dispatch import DecodeShape, Route, route_mla_decode


@dataclass(frozen=True, slots=True)
class RouteUse:
    """Calls of one q_len that took one route on one authority.

    Attributes:
        q_len: query tokens of each request.
        kv_lens: shortest and longest context of them.
        calls: how many, over all layers.
        route: `hk` or `persistent`.
        decided_by: the row of the table, or the rule.
    """

    q_len: int
    kv_lens: tuple[int, int]
    calls: int
    route: str
    decided_by: str


def routes_taken(cache: PagedLatentCache, nhead: int) -> Iterator[RouteUse]:
    """Asks the dispatcher again for every step that `cache` has seen, and groups the answers.

    The answer is a function of host integers, so it is the one that the calls themselves got.

    Args:
        cache: after decoding on it.
        nhead: query heads.
    """
    steps = [
        (q_len, route.route, route.source or route.reason.partition(",")[0], kv_len)
        for q_len, kv_len in cache.steps
        for route in [_route(cache, nhead, q_len, kv_len)]
    ]
    for (q_len, name, decided_by), group in groupby(sorted(steps), lambda step: step[:3]):
        kv_lens = [kv_len for *_, kv_len in group]
        calls = sum(cache.steps[q_len, kv_len] for kv_len in kv_lens) * len(cache.buffers)
        yield RouteUse(q_len, (min(kv_lens), max(kv_lens)), calls, name, decided_by)


def _route(cache: PagedLatentCache, nhead: int, q_len: int, kv_len: int) -> Route:
    where = target.current()
    return route_mla_decode(
        DecodeShape(
            family=where.family,
            compute_units=where.compute_units(),
            batch=cache.batch,
            nhead=nhead,
            q_len=q_len,
            kv_len=kv_len,
            q_dtype="bf16",
            kv_dtype=DTYPE_NAMES[cache.buffers[0].dtype],
            page_size=cache.page_size,
        )
    )
