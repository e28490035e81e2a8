# SPDX-License-Identifier: MIT
"""`hipdecode route`: how a shape is decoded, and why. Needs no device and no compiler."""

from __future__ import annotations

import dataclasses
import json
from typing import Unpack

import click

from hipdecode import target as targets
from hipdecode.cli.route_paged import PagedSizes, answer_paged, paged_options
from hipdecode.cli.route_reduce import explain_reduce, reduce_as_json, route_reduce
from hipdecode.dispatch import DecodeShape, Route, route_mla_decode
from hipdecode.models import find_model, split_dtypes
from hipdecode.sparse_route import (
    FORMAT_NAMES,
    SparseRoute,
    SparseShape,
    route_sparse_mla_decode,
)
from hipdecode.tables import gain_pct


@click.command()
@click.option(
    "--op",
    type=click.Choice(["mla_decode", "mla_reduce_decode", "sparse_mla_decode", "paged_attention"]),
    help="[mla_decode, or what the model runs]",
)
@click.option("--format", "form", type=click.Choice(FORMAT_NAMES), help="Of sparse. [v32]")
@click.option("--target", "target_name", default=None, help="Target, default this machine's.")
@click.option("--model", default=None, help="Named shape that gives the defaults of the rest.")
@click.option("--nhead", type=int, default=None, help="Query heads of this rank. [128]")
@click.option("--q-len", type=int, default=None, help="Query tokens per request. [1]")
@click.option("--batch", type=int, required=True, help="Requests.")
@click.option(
    "--kv-len",
    type=int,
    default=None,
    help="Average context in tokens; none: unknown. Of sparse: keys of a token. [2048]",
)
@click.option("--max-kv-len", type=int, default=None, help="Longest context; none: all alike.")
@click.option("--dtype", default=None, help="bf16, fp16, fp8, ... or q/kv such as bf16/fp8. [bf16]")
@click.option("--q-dtype", default=None, help="Dtype of q, over --dtype.")
@click.option("--kv-dtype", default=None, help="Dtype of the KV cache, over --dtype.")
@click.option("--page-size", type=int, default=None, help="Tokens per page. [1]")
@click.option("--head-dims", default=None, help="head_dim_qk/head_dim_v. [576/512]")
@click.option("--compute-units", type=int, default=None, help="Default: those of the target.")
@click.option("--num-splits", type=int, default=None, help="The caller's own split count.")
@click.option("--tile-rows", type=int, default=None, help="The caller's own rows of a tile.")
@click.option("--batch-invariant", is_flag=True, help="Bits independent of other requests.")
@paged_options
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(
    *,
    op: str | None,
    form: str | None,
    target_name: str | None,
    model: str | None,
    nhead: int | None,
    q_len: int | None,
    batch: int,
    kv_len: int | None,
    max_kv_len: int | None,
    dtype: str | None,
    q_dtype: str | None,
    kv_dtype: str | None,
    page_size: int | None,
    head_dims: str | None,
    compute_units: int | None,
    num_splits: int | None,
    tile_rows: int | None,
    batch_invariant: bool,
    as_json: bool,
    **of_paged: Unpack[PagedSizes],
) -> None:
    """Explain which kernel a shape is routed to, and why.

    Of sparse decode: into how many pieces the keys of each of batch x q_len tokens are cut. Of
    paged attention: --q-len is mtp, --page-size the block size [16], --head-dims the head's.
    """
    target = targets.resolve(target_name)
    named = find_model(model) if model else None
    units = compute_units or target.compute_units()
    if op == "paged_attention":
        text = answer_paged(
            target, of_paged, compute_units=units, batch=batch, nhead=nhead, kv_len=kv_len,
            q_len=_first(q_len, 1), dtypes=(dtype, q_dtype, kv_dtype), page_size=page_size,
            head_dims=head_dims, num_splits=num_splits, as_json=as_json,
        )  # fmt: skip
        click.echo(text)
        return
    nhead = _first(nhead, named.nhead if named else 128)
    q_len = _first(q_len, named.q_len[0] if named else 1)
    sparse = named.sparse if named else None
    if op == "sparse_mla_decode" or (op is None and sparse):
        wanted = SparseShape(
            family=target.family,
            compute_units=units,
            format=form or sparse or "v32",
            tokens=batch * q_len,
            nhead=nhead,
            max_keys=_first(kv_len, 2048),
            num_splits=num_splits,
        )
        found = route_sparse_mla_decode(wanted)
        click.echo(_as_json(wanted, found) if as_json else explain_sparse(wanted, found))
        return
    own = named.dtypes[0] if named and named.dtypes else ("bf16", "bf16")
    both = split_dtypes(dtype) if dtype else own
    default_dims = (named.head_dim_qk, named.head_dim_v) if named else (576, 512)
    dims = _parse_dims(head_dims) if head_dims else default_dims
    shape = DecodeShape(
        family=target.family,
        compute_units=units,
        batch=batch,
        nhead=nhead,
        q_len=q_len,
        kv_len=kv_len,
        max_kv_len=max_kv_len,
        q_dtype=target.dtype(q_dtype or both[0]),
        kv_dtype=target.dtype(kv_dtype or both[1]),
        page_size=_first(page_size, named.page_size if named else 1),
        head_dim_qk=dims[0],
        head_dim_v=dims[1],
        batch_invariant=batch_invariant,
        num_splits=num_splits,
        tile_rows=tile_rows,
    )
    if op == "mla_reduce_decode":
        reduced, ordinary = route_reduce(shape)
        if ordinary is None:
            click.echo(
                reduce_as_json(shape, reduced) if as_json else explain_reduce(shape, reduced)
            )
            return
        route = ordinary
    else:
        route = route_mla_decode(shape)
    click.echo(_as_json(shape, route) if as_json else explain(shape, route))


def explain_sparse(shape: SparseShape, route: SparseRoute) -> str:
    """Return the answer for people: the split count on the first line, then the reasons."""
    word = "split" if route.num_splits == 1 else "splits"
    lines = [
        ("why", route.reason),
        ("splits", f"{route.num_splits} per token ({shape.compute_units} compute units)"),
        ("time", f"{route.us:.1f} us ({route.evidence})" if route.us else "none: no row decided"),
        ("runner-up", _runner_up(route, f"{route.num_splits} {word}")),
    ]
    return "\n".join(
        [f"{route.num_splits} {word}", *(f"  {label + ':':<11}{text}" for label, text in lines)]
    )


def explain(shape: DecodeShape, route: Route) -> str:
    """Return the answer for people: the route on the first line, then one labelled line each."""
    if route.num_splits is None:
        splits = "from the plan of the whole batch"
    else:
        splits = f"{route.num_splits} per request ({shape.compute_units} compute units)"
    if route.tile_rows:
        splits += f", tiles of {route.tile_rows} rows"
    lines = [
        ("why", route.reason),
        ("heads", f"nhead {shape.nhead} -> {route.padded_nhead}; {route.packing}"),
        ("splits", splits),
        ("time", f"{route.us:.1f} us ({route.evidence})" if route.us else _no_time(route)),
        ("runner-up", _runner_up(route, route.route)),
    ]
    return "\n".join([route.route, *(f"  {label + ':':<11}{text}" for label, text in lines)])


def _no_time(route: Route) -> str:
    return f"none ({route.evidence})" if route.evidence else "none: no row decided"


def _runner_up(route: Route | SparseRoute, name: str) -> str:
    if route.runner_up is None:
        return "none on record"
    gain = gain_pct(route.us, route.runner_up_us)
    if gain is None:
        return f"{route.runner_up}, without a time"
    word = "less" if gain >= 0 else "more"
    share = f"{name} takes {abs(gain):.1f} % {word}"
    return f"{route.runner_up} {route.runner_up_us:.1f} us ({share})"


def _as_json(shape: DecodeShape | SparseShape, route: Route | SparseRoute) -> str:
    return json.dumps({"shape": dataclasses.asdict(shape)} | dataclasses.asdict(route), indent=2)


def _parse_dims(text: str) -> tuple[int, int]:
    first, slash, second = text.partition("/")
    if not (slash and first.isdecimal() and second.isdecimal()):
        raise click.BadParameter(f"expected head_dim_qk/head_dim_v, got {text}")
    return int(first), int(second)


def _first(given: int | None, default: int) -> int:
    return default if given is None else given
