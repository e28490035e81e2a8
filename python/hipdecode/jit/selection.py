# SPDX-License-Identifier: MIT
"""Which kernels to build ahead: those that the named models and the dispatch tables call for."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import Any

from hipdecode import registry
from hipdecode.dispatch import load_table
from hipdecode.errors import RegistryError, UnsupportedShape
from hipdecode.models import ModelShape, load_models
from hipdecode.paged_route import PagedShape, route_paged_attention
from hipdecode.support import MAX_PAGE_SIZE, check_supported
from hipdecode.tables import TableKey
from hipdecode.target import Target

_PROBED_BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
_PROBED_CONTEXTS = (1, 256, 1024, 4096, 16384, 65536)
_TABLE_HEAD_DIMS = (576, 512)  # those of every table so far: its keys do not name them


def kernels_of_shape(
    target: Target, *, head_dims: tuple[int, int], dtypes: tuple[str, str]
) -> list[str]:
    """Every kernel that a decode of these types may launch, planner and reduce included.

    All row counts of the target are among them: a batch of any size may come.

    Args:
        target: whose own fp8 kind plain `fp8` means.
        head_dims: (head_dim_qk, head_dim_v).
        dtypes: (q_dtype, kv_dtype).

    Raises:
        RegistryError: no decode kernel has these values, or none on that target.
    """
    facts: dict[str, registry.Value] = {
        "head_dim_qk": head_dims[0],
        "head_dim_v": head_dims[1],
        "q_dtype": target.dtype(dtypes[0]),
        "kv_dtype": target.dtype(dtypes[1]),
    }
    held = registry.default()
    names = []
    for module in held.modules.values():
        if not set(module.values) <= facts.keys() | {"rows"}:
            continue  # no such decode launches it
        chosen = {name: facts[name] for name in module.values if name in facts}
        found = [k for k in module.kernels() if k.by_name | chosen == k.by_name]
        if not found:
            raise RegistryError(
                f"{module.name}: expected values of a kernel, got {chosen}; choose an allowed "
                "combination or add it to configs/modules.json"
            )
        names += _built(held, found, target)
    return names


def kernels_of_model(target: Target, model: ModelShape) -> list[str]:
    """Every kernel that a model's decode may launch on `target`, without repeats."""
    dims = (model.head_dim_qk, model.head_dim_v)
    names = [
        n for pair in model.dtypes for n in kernels_of_shape(target, head_dims=dims, dtypes=pair)
    ]
    return _unique([*names, *(sparse_kernels(target, model.sparse) if model.sparse else ())])


def kernels_to_serve(target: Target, model: ModelShape) -> list[str]:
    """The kernels that decodes of one model launch on `target`, whatever their batch and context.

    Unlike `kernels_of_model` it knows the heads: tiles that only other head counts use are left
    out, those that a table prefers somewhere are in.

    Args:
        target: see kernels_of_shape.
        model: on one rank.

    Raises:
        UnsupportedShape: no kernel for the model's widths or heads.
    """
    held, names = registry.default(), []
    for dtypes, q_len in itertools.product(model.dtypes, model.q_len):
        pair = (target.dtype(dtypes[0]), target.dtype(dtypes[1]))
        serve = _paged_kernels if model.nhead_kv is not None else _latent_kernels
        names += serve(target, model, pair, q_len)
    if model.sparse:
        rows = registry.wanted_rows(target.family, model.nhead)
        every = (name.rpartition("-")[0] for name in sparse_kernels(target, model.sparse))
        names += [f"{kernel}-{rows}" for kernel in every]
    return _unique(held.fit(name, target.artefact).name for name in names)


def _latent_kernels(
    target: Target, model: ModelShape, dtypes: tuple[str, str], q_len: int
) -> list[str]:
    check_supported(
        nhead=model.nhead,
        q_len=q_len,
        dtypes=dtypes,
        head_dims=(model.head_dim_qk, model.head_dim_v),
        page_size=model.page_size,
    )
    table = load_table(target.family)
    keys = {
        table.nearest_key(TableKey(*dtypes, model.nhead, q_len, 1 << log))
        for log in range(MAX_PAGE_SIZE.bit_length())
    }
    asked = {row.tile_rows for key in keys if key for row in table.rows_by_key[key]}
    packed = model.nhead * q_len
    tiles = {registry.wanted_rows(target.family, packed)} | {
        registry.wanted_rows(target.family, packed, rows) for rows in asked if isinstance(rows, int)
    }
    dims = f"{model.head_dim_qk}-{model.head_dim_v}-{dtypes[0]}-{dtypes[1]}"
    split = [f"mla_decode_hk/{dims}-{rows}" for rows in sorted(tiles)]
    # without a table's word persistent has tiles of all rows of a request
    rows = registry.wanted_rows(target.family, packed)
    return [*split, f"mla_decode_persistent/{dims}-{rows}", "mla_plan", "mla_reduce"]


def _paged_kernels(
    target: Target, model: ModelShape, dtypes: tuple[str, str], q_len: int
) -> list[str]:
    nhead_kv = model.nhead_kv or 1
    forms: list[dict[str, Any]] = [
        {"block_size": model.page_size, "value_dims": 4, "scales": "none"}
    ]
    if dtypes[1].startswith("fp8"):
        forms += [{"block_size": 16, "value_dims": 5, "scales": "token"}]
    found = [
        route_paged_attention(
            PagedShape(
                family=target.family,
                compute_units=target.compute_units(),
                batch=batch,
                nhead_kv=nhead_kv,
                gqa=model.nhead // nhead_kv,
                mtp=q_len,
                kv_len=kv_len,
                q_dtype=dtypes[0],
                kv_dtype=dtypes[1],
                head_dim=model.head_dim_qk,
                **form,
            )
        ).kernel
        for form, batch, kv_len in itertools.product(forms, _PROBED_BATCHES, _PROBED_CONTEXTS)
    ]
    module = registry.default().module("paged_attention")
    for name in found:
        words = name.partition("/")[2].split("-")
        values: dict[str, registry.Value] = dict(zip(module.values, words, strict=True))
        values |= {key: int(words[at]) for key, at in (("head_dim", 0), ("rows", -1))}
        if not module.allows(values):
            raise UnsupportedShape(
                f"head_dim, dtypes: expected those of a kernel of paged_attention, got head_dim "
                f"{model.head_dim_qk} with {dtypes[0]}/{dtypes[1]}; serve this model elsewhere"
            )
    return found


def default_kernels(target: Target) -> list[str]:
    """The kernels that configs/models.json and the target's table name."""
    names = [n for model in load_models().values() for n in kernels_of_model(target, model)]
    for key in load_table(target.family).rows_by_key:
        pair = (key.q_dtype, key.kv_dtype)
        names += kernels_of_shape(target, head_dims=_TABLE_HEAD_DIMS, dtypes=pair)
    return _unique([*names, *sparse_kernels(target)])


def sparse_kernels(target: Target, form: str | None = None) -> list[str]:
    """The sparse kernels of a target whose main cache has its own kind of fp8; maybe none.

    Args:
        target: see kernels_of_shape.
        form: of the cache; None for all.
    """
    held = registry.default()
    own = {"kv_dtype": target.dtype("fp8")} | ({} if form is None else {"format": form})
    kernels = held.kernels(held.module("sparse_mla_decode"), target.artefact)
    return [kernel.name for kernel in kernels if kernel.by_name | own == kernel.by_name]


def all_kernels(target: Target) -> list[str]:
    """Every kernel of the registry that is built for a target."""
    held = registry.default()
    modules = held.modules.values()
    return [k.name for module in modules for k in held.kernels(module, target.artefact)]


def named_kernels(target: Target, words: Iterable[str]) -> list[str]:
    """Expands module names to all their kernels for a target; full names stay as they are.

    Raises:
        RegistryError: a word is neither, or the module is not built for the target.
    """
    held = registry.default()
    names: list[str] = []
    for word in words:
        if "/" in word:
            names.append(held.kernel(word).name)
        else:
            names += _built(held, list(held.module(word).kernels()), target)
    return _unique(names)


def _built(held: registry.Registry, kernels: list[registry.Kernel], target: Target) -> list[str]:
    """Those of some kernels that the target has."""
    names = [kernel.name for kernel in kernels if held.builds(kernel, target.artefact)]
    if not names:
        held.flags(kernels[0], target.artefact)  # raises, and says why
    return names


def _unique(names: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(names))
