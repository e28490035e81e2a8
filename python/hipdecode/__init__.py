# SPDX-License-Identifier: MIT
"""MLA decode attention for PyTorch: one kernel source for AMD Instinct, NVIDIA Hopper and CPUs."""

from .decode import mla_decode, warmup
from .errors import (
    BadArgument,
    BuildError,
    HipdecodeError,
    NotWarmed,
    TargetError,
    UnsupportedShape,
    WorkspaceError,
)
from .ops import load_binding
from .plan import MlaPlan, mla_metadata_info, plan_mla_decode
from .reduce import mla_reduce
from .workspace import Workspace, workspace_bytes

__version__ = "0.1.0"

__all__ = [
    "BadArgument",
    "BuildError",
    "HipdecodeError",
    "MlaPlan",
    "NotWarmed",
    "TargetError",
    "UnsupportedShape",
    "Workspace",
    "WorkspaceError",
    "load_binding",
    "mla_decode",
    "mla_metadata_info",
    "mla_reduce",
    "plan_mla_decode",
    "warmup",
    "workspace_bytes",
]
