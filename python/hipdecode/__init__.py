# SPDX-License-Identifier: MIT
"""MLA decode attention for PyTorch: one kernel source for AMD Instinct, NVIDIA Hopper and CPUs.

Names are imported when they are first used, so that the command line starts without torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .decode import mla_decode
    from .decode_reduce import mla_decode_reduce, mla_reduce_decode
    from .errors import (
        BadArgument,
        BuildError,
        HipdecodeError,
        NotWarmed,
        TargetError,
        UnsupportedShape,
        WorkspaceError,
    )
    from .install import install_as_aiter
    from .ops import load_binding
    from .paged import paged_attention
    from .plan import MlaPlan, plan_mla_decode
    from .plan_sizes import mla_metadata_info
    from .ranks import RankedDecode
    from .reduce import mla_reduce
    from .shard import KvShard, shard_indptr, shard_lengths
    from .sparse import sparse_mla_decode, warmup_sparse
    from .sparse_cache import new_sparse_cache, quantize_v4, quantize_v32
    from .warm import warmup
    from .workspace import Workspace, workspace_bytes

__version__ = "0.1.0"

_HOMES = {
    "decode": ("mla_decode",),
    "decode_reduce": ("mla_decode_reduce", "mla_reduce_decode"),
    "errors": (
        "BadArgument",
        "BuildError",
        "HipdecodeError",
        "NotWarmed",
        "TargetError",
        "UnsupportedShape",
        "WorkspaceError",
    ),
    "install": ("install_as_aiter",),
    "ops": ("load_binding",),
    "paged": ("paged_attention",),
    "plan": ("MlaPlan", "plan_mla_decode"),
    "plan_sizes": ("mla_metadata_info",),
    "ranks": ("RankedDecode",),
    "reduce": ("mla_reduce",),
    "shard": ("KvShard", "shard_indptr", "shard_lengths"),
    "sparse": ("sparse_mla_decode", "warmup_sparse"),
    "sparse_cache": ("new_sparse_cache", "quantize_v32", "quantize_v4"),
    "warm": ("warmup",),
    "workspace": ("Workspace", "workspace_bytes"),
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [
    "BadArgument",
    "BuildError",
    "HipdecodeError",
    "KvShard",
    "MlaPlan",
    "NotWarmed",
    "RankedDecode",
    "TargetError",
    "UnsupportedShape",
    "Workspace",
    "WorkspaceError",
    "install_as_aiter",
    "load_binding",
    "mla_decode",
    "mla_decode_reduce",
    "mla_metadata_info",
    "mla_reduce",
    "mla_reduce_decode",
    "new_sparse_cache",
    "paged_attention",
    "plan_mla_decode",
    "quantize_v4",
    "quantize_v32",
    "shard_indptr",
    "shard_lengths",
    "sparse_mla_decode",
    "warmup",
    "warmup_sparse",
    "workspace_bytes",
]


def __getattr__(name: str) -> object:
    """Imports a public name at its first use."""
    if name not in _HOME_OF:
        raise AttributeError(f"module 'hipdecode' has no attribute {name!r}")
    value = getattr(import_module(f".{_HOME_OF[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """The public names, imported or not."""
    return sorted(__all__)
