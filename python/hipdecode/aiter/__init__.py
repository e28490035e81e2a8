# SPDX-License-Identifier: MIT
"""AITER's public names of the decode step, with its argument names, positions and buffers.

`from hipdecode.aiter import get_mla_metadata_v1` and `from hipdecode.aiter.mla import
mla_decode_fwd` work as from `aiter`; `hipdecode.install_as_aiter()` makes them so.
What is not done is refused by the name of the argument that asks for it; nothing is dropped.
"""

from . import mla, mla_decode_reduce, paged_attn
from .metadata import get_mla_metadata_info_v1, get_mla_metadata_v1
from .mla import mla_decode_fwd
from .paged import pa_fwd_asm, paged_attention_rocm
from .reduce import mla_reduce_v1, pa_reduce_v1
from .stage1 import hk_mla_decode_fwd, hk_mla_v32_decode_fwd, mla_decode_stage1_asm_fwd

__all__ = [
    "get_mla_metadata_info_v1",
    "get_mla_metadata_v1",
    "hk_mla_decode_fwd",
    "hk_mla_v32_decode_fwd",
    "mla",
    "mla_decode_fwd",
    "mla_decode_reduce",
    "mla_decode_stage1_asm_fwd",
    "mla_reduce_v1",
    "pa_fwd_asm",
    "pa_reduce_v1",
    "paged_attention_rocm",
    "paged_attn",
]
