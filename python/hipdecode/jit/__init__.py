# SPDX-License-Identifier: MIT
"""Compiles kernels and the torch binding on first use, once per content, and finds them later."""

from .binding import ensure_binding
from .build import BuildResult, KernelFile, build_kernels, ensure_kernel, recipe
from .simulator import ensure_simulator

__all__ = [
    "BuildResult",
    "KernelFile",
    "build_kernels",
    "ensure_binding",
    "ensure_kernel",
    "ensure_simulator",
    "recipe",
]
