# SPDX-License-Identifier: MIT
"""Which kernels to build ahead: those that the named models and the dispatch tables call for."""

from __future__ import annotations

from collections.abc import Iterable

from hipdecode import registry
from hipdecode.dispatch import load_table
from hipdecode.errors import RegistryError
from hipdecode.models import ModelShape, load_models
from hipdecode.target import Target

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
