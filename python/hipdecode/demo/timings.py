# SPDX-License-Identifier: MIT
"""Microseconds of the model's attention call beside the best torch formulation of it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from hipdecode import target
from hipdecode.testing.bench_case import DecodeCase
from hipdecode.testing.device_clock import WARMUP, clock_of
from hipdecode.testing.peers import Hipdecode, route_of
from hipdecode.testing.timing import measure
from hipdecode.testing.torch_peers import torch_peers

CONTEXTS = (128, 512, 2048)
BATCHES = (1, 16)
SECONDS = 0.4
"""Measuring time of one shape, all contenders together."""


@dataclass(frozen=True, slots=True)
class CallTime:
    """One shape of the attention call.

    Attributes:
        kv_dtype: dtype name of the cache.
        batch: requests.
        kv_len: tokens of each request.
        route: what the dispatcher chose.
        us: shortest time of hipdecode; a demo shares its machine, and medians show the others.
        torch_us: shortest time of the fastest torch formulation, on the same paged cache.
        torch_form: its name in `hipdecode bench`.
    """

    kv_dtype: str
    batch: int
    kv_len: int
    route: str
    us: float
    torch_us: float
    torch_form: str


def time_calls(
    kv_dtypes: tuple[str, ...], *, nhead: int, page_size: int, seconds: float = SECONDS
) -> Iterator[CallTime]:
    """Times one decode call, one query token per request, over contexts and batches.

    Args:
        kv_dtypes: dtype names of the cache.
        nhead: query heads.
        page_size: tokens of a page.
        seconds: measuring time of one shape.
    """
    for kv_dtype in kv_dtypes:
        for batch in BATCHES:
            for kv_len in CONTEXTS:
                case = DecodeCase.draw(
                    [kv_len] * batch,
                    nhead=nhead,
                    kv_dtype=kv_dtype,
                    page_size=page_size,
                    device=target.current().device_type,
                )
                yield _time(case, seconds)


def _time(case: DecodeCase, seconds: float) -> CallTime:
    ours, is_fp8 = Hipdecode(), case.spec.kv_dtype.startswith("fp8")
    # Cutting the context pays beyond these lengths, converting fp8 by bits always does.
    forms = [p for p in torch_peers() if "chunk" not in p.name and ("bits" in p.name) == is_fp8]
    peers = [ours, *forms]
    clock = clock_of(target.current())
    times = measure(
        {peer.name: [clock.ready(peer.prepare(case))] for peer in peers},
        rounds=50,
        warmup=1 if clock.name != "device" else WARMUP,
        budget_s=seconds,
        clock=clock,
    )
    mine = times.pop(ours.name)
    form, best = min(times.items(), key=lambda item: item[1].best)
    return CallTime(
        kv_dtype=case.spec.kv_dtype,
        batch=case.batch,
        kv_len=case.spec.kv_lens[0],
        route=route_of(case, target.current(), None).route,
        us=1e3 * mine.best,
        torch_us=1e3 * best.best,
        torch_form=form,
    )
