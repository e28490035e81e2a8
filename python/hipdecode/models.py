# SPDX-License-Identifier: MIT
"""The named shapes of `configs/models.json`, for the commands that take a model by name."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from types import MappingProxyType

from . import paths
from .errors import BadArgument


@dataclass(frozen=True, slots=True)
class ModelShape:
    """The attention of one model on one rank.

    Attributes:
        name: its key in the file.
        summary: one line for people.
        nhead: query heads of the rank.
        head_dim_qk: columns of q and of the cache.
        head_dim_v: columns of V.
        q_len: query tokens per request, one entry for each way it is served.
        page_size: tokens per page.
        dtypes: (q_dtype, kv_dtype) pairs of dense decode; `fp8` is the target's own kind
            (`Target.dtype`).
        sparse: cache format of sparse decode, or None.
        nhead_kv: kv heads of the rank where the queries are grouped; None for latent attention.
    """

    name: str
    summary: str
    nhead: int
    head_dim_qk: int
    head_dim_v: int
    q_len: tuple[int, ...]
    page_size: int
    dtypes: tuple[tuple[str, str], ...]
    sparse: str | None = None
    nhead_kv: int | None = None


@cache
def load_models() -> Mapping[str, ModelShape]:
    """Return every named shape, in the order of the file."""
    path = paths.configs_dir() / "models.json"
    entries = json.loads(path.read_text(encoding="utf-8"))["models"]
    return MappingProxyType(
        {
            name: ModelShape(
                name=name,
                summary=entry["summary"],
                nhead=entry["nhead"],
                head_dim_qk=entry["head_dim_qk"],
                head_dim_v=entry["head_dim_v"],
                q_len=tuple(entry["q_len"]),
                page_size=entry["page_size"],
                dtypes=tuple(split_dtypes(pair) for pair in entry["dtypes"]),
                sparse=entry.get("sparse"),
            )
            for name, entry in entries.items()
        }
    )


def find_model(name: str) -> ModelShape:
    """Return one named shape.

    Raises:
        BadArgument: no model has that name; lists those that exist.
    """
    models = load_models()
    if name not in models:
        known = ", ".join(models)
        raise BadArgument(f"model: expected one of {known}, got {name}; choose one of them")
    return models[name]


def split_dtypes(text: str) -> tuple[str, str]:
    """Split `q/kv` into its two dtype names; a single name means both."""
    q_dtype, _, kv_dtype = text.partition("/")
    return q_dtype, kv_dtype or q_dtype
