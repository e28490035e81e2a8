# SPDX-License-Identifier: MIT
"""AITER's `paged_attn`."""

from .paged import PagedAttention

__all__ = ["PagedAttention"]
