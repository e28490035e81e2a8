# SPDX-License-Identifier: MIT
"""hipdecode under the name `aiter`."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import sys
from types import ModuleType

from . import aiter
from .aiter.paged import register_as_aiter_op

_HOMES = {
    "aiter": aiter,
    "aiter.mla": aiter.mla,
    "aiter.mla_decode_reduce": aiter.mla_decode_reduce,
    "aiter.paged_attn": aiter.paged_attn,
}
"""Module of AITER's -> where its names are here."""


def install_as_aiter() -> tuple[str, ...]:
    """Makes `import aiter` find hipdecode's decode entries.

    Where AITER is installed, exactly the names of `hipdecode.aiter` are replaced in it and all else
    stays; modules that have imported a name before keep the one they have. Where it is not, modules
    of these names alone are registered, so that a probe for anything else says truly that it is not
    there. An operator of AITER's own in `torch.ops.aiter` stays as it is.

    Returns:
        The full names that now are hipdecode's, sorted.
    """
    names = []
    for name, home in _HOMES.items():
        absent = name not in sys.modules and importlib.util.find_spec(name) is None
        module = _registered(name) if absent else importlib.import_module(name)
        for public in home.__all__:
            value = getattr(home, public)
            if isinstance(value, ModuleType):
                continue
            _replace(module, public, value)
            names.append(f"{name}.{public}")
    if register_as_aiter_op():
        names.append("torch.ops.aiter.paged_attention_rocm")
    return tuple(sorted(names))


def _replace(module: ModuleType, name: str, value: object) -> None:
    """Sets a name; of a class that is there, only the methods that hipdecode has."""
    there = getattr(module, name, None)
    if not (isinstance(value, type) and isinstance(there, type)):
        setattr(module, name, value)
        return
    for method, function in vars(value).items():
        if not method.startswith("_"):
            setattr(there, method, function)


def _registered(name: str) -> ModuleType:
    """A new module of that name, found by `find_spec` as well, and set in its package."""
    module = ModuleType(name, "hipdecode under AITER's name.")
    module.__spec__ = importlib.machinery.ModuleSpec(name, None, is_package="." not in name)
    if "." not in name:
        module.__path__ = []
    sys.modules[name] = module
    package, _, own = name.rpartition(".")
    if package:
        setattr(sys.modules[package], own, module)
    return module
