# SPDX-License-Identifier: MIT
"""The part of `hipdecode route` that is about paged attention."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from typing import Any, TypedDict

import click

from hipdecode.models import split_dtypes
from hipdecode.paged_route import (
    SCALE_FORMS,
    PagedRoute,
    PagedShape,
    route_paged_attention,
)
from hipdecode.tables import gain_pct
from hipdecode.target import Target


class PagedSizes(TypedDict):
    """What `paged_options` adds to the command."""

    nhead_kv: int
    value_dims: int
    scales: str
    rows: int | None
    q_scale: bool
    fp8_out_scale: bool


_OPTIONS = (
    click.option("--nhead-kv", type=int, default=1, help="Of paged: kv heads. [1]"),
    click.option("--value-dims", type=int, default=5, help="Of paged: 5 if shuffled, or 4. [5]"),
    click.option("--scales", type=click.Choice(SCALE_FORMS), default="token", help="Of paged."),
    click.option("--rows", type=int, default=None, help="Of paged: rows of q. [batch x q-len]"),
    click.option("--q-scale", is_flag=True, help="Of paged: the call names a scale of q."),
    click.option("--fp8-out-scale", is_flag=True, help="Of paged: the output is fp8."),
)


def paged_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Gives a command the options of PagedSizes."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def answer_paged(
    target: Target,
    of_paged: PagedSizes,
    *,
    compute_units: int,
    batch: int,
    nhead: int | None,
    q_len: int,
    kv_len: int | None,
    dtypes: tuple[str | None, str | None, str | None],
    page_size: int | None,
    head_dims: str | None,
    num_splits: int | None,
    as_json: bool,
) -> str:
    """The route of a paged call, for people or as JSON; `dtypes` are both, q's and the cache's."""
    both = split_dtypes(dtypes[0]) if dtypes[0] else ("bf16", "fp8")
    nhead_kv = of_paged["nhead_kv"]
    heads = 8 * nhead_kv if nhead is None else nhead
    if nhead_kv < 1 or heads % nhead_kv:
        raise click.BadParameter(f"expected a multiple of --nhead-kv {nhead_kv}, got {heads}")
    rows = of_paged["rows"]
    shape = PagedShape(
        family=target.family,
        compute_units=compute_units,
        batch=batch,
        nhead_kv=nhead_kv,
        gqa=heads // nhead_kv,
        mtp=q_len,
        kv_len=4096 if kv_len is None else kv_len,
        q_dtype=target.dtype(dtypes[1] or both[0]),
        kv_dtype=target.dtype(dtypes[2] or both[1]),
        head_dim=int((head_dims or "128").partition("/")[0]),
        block_size=16 if page_size is None else page_size,
        value_dims=of_paged["value_dims"],
        scales=of_paged["scales"],
        q_scale=of_paged["q_scale"],
        out_scale=of_paged["fp8_out_scale"],
        uniform=rows in (None, batch * q_len),
        num_splits=num_splits,
    )
    route = route_paged_attention(shape)
    if as_json:
        both_of = {"shape": dataclasses.asdict(shape)} | dataclasses.asdict(route)
        return json.dumps(both_of, indent=2)
    return explain_paged(shape, route)


def explain_paged(shape: PagedShape, route: PagedRoute) -> str:
    """Return the answer for people: the route on the first line, then one labelled line each."""
    units = f"{shape.compute_units} compute units"
    lines = [
        ("why", route.reason),
        ("table", route.table or "not asked: the guard limits the kernel"),
        ("kernel", route.kernel),
        ("rows", f"gqa {shape.gqa} x mtp {shape.mtp} = {shape.gqa * shape.mtp} of a kv head"),
        ("splits", f"{route.num_splits} per request, {route.splits_reason} ({units})"),
        ("time", f"{route.us:.1f} us ({route.evidence})" if route.us else "none: no row decided"),
        ("runner-up", _runner_up(route)),
    ]
    return "\n".join([route.route, *(f"  {label + ':':<11}{text}" for label, text in lines)])


def _runner_up(route: PagedRoute) -> str:
    gain = gain_pct(route.us, route.runner_up_us)
    if route.runner_up is None or gain is None:
        return "none on record"
    word = "less" if gain >= 0 else "more"
    return (
        f"{route.runner_up} {route.runner_up_us:.1f} us ({route.route} takes {abs(gain):.1f} % "
        f"{word})"
    )
