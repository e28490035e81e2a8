# SPDX-License-Identifier: MIT
"""`hipdecode route --op mla_reduce_decode`: whether a step takes the route `reduce`, and why."""

from __future__ import annotations

import dataclasses
import json

from hipdecode.dispatch import DecodeShape, Route
from hipdecode.reduce_route import ReduceRoute, ReduceShape, route_mla_reduce


def route_reduce(shape: DecodeShape) -> tuple[ReduceRoute, Route | None]:
    """The answer of the route, and on a miss that of the ordinary decode with both reasons."""
    asked = ReduceShape(
        family=shape.family,
        compute_units=shape.compute_units,
        batch=shape.batch,
        nhead=shape.nhead,
        q_len=shape.q_len,
        q_dtype=shape.q_dtype,
        kv_dtype=shape.kv_dtype,
        page_size=shape.page_size,
        head_dim_qk=shape.head_dim_qk,
        kv_lora_rank=shape.head_dim_v,
        v_head_dim=shape.head_dim_v,
        num_splits=shape.num_splits,
    )
    found = route_mla_reduce(asked)
    if found.batch is not None:
        return found, None
    ordinary = asked.ordinary(shape.kv_len)
    reason = f"not reduce: {found.reason}; {ordinary.reason}"
    return found, dataclasses.replace(ordinary, reason=reason)


def explain_reduce(shape: DecodeShape, route: ReduceRoute) -> str:
    """Return the answer for people: the route on the first line, then one labelled line each."""
    batch = min(route.batch or 1, route.num_splits)
    lines = [
        ("why", route.reason),
        ("splits", f"{route.num_splits} per request ({shape.compute_units} compute units)"),
        ("kernel", f"mla_decode_reduce/{route.num_splits}-{batch}-{route.vec}"),
    ]
    return "\n".join(["reduce", *(f"  {label + ':':<11}{text}" for label, text in lines)])


def reduce_as_json(shape: DecodeShape, route: ReduceRoute) -> str:
    """The same as one JSON object."""
    facts = {"shape": dataclasses.asdict(shape), "route": "reduce"}
    return json.dumps(facts | dataclasses.asdict(route), indent=2)
