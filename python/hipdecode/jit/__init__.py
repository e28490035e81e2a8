# SPDX-License-Identifier: MIT
"""Compiles kernels and the torch binding on first use, once per content, and finds them later."""

from .binding import ensure_binding
from .build import BuildResult, KernelFile, build_kernels, ensure_kernel, recipe

__all__ = [
    "BuildResult",
    "KernelFile",
    "build_kernels",
    "ensure_binding",
    "ensure_kernel",
    "recipe",
]
