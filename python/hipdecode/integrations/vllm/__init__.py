# SPDX-License-Identifier: MIT
"""vLLM on hipdecode: `plugin`, which vLLM loads by itself, and its entries of sparse decode."""

from .sparse import (
    _decode_sparse_mla_hip,
    decode_single,
    decode_split,
    rocm_sparse_attn_decode,
)

__all__ = [
    "_decode_sparse_mla_hip",
    "decode_single",
    "decode_split",
    "rocm_sparse_attn_decode",
]
