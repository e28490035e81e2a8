# SPDX-License-Identifier: MIT
"""AITER's decode by the route `reduce` and its table, as in ROCm/aiter#3468."""

import torch

from hipdecode.decode_reduce import mla_decode_reduce, mla_reduce_decode
from hipdecode.ops import family_and_units
from hipdecode.reduce_route import ReduceRow, load_reduce_table


def get_mla_decode_reduce_cfg(
    cu_num: int,
    token: int,
    num_heads: int,
    kv_lora_rank: int,
    v_head_dim: int,
    num_kv_splits: int,
) -> ReduceRow | None:
    """The row of the table of the current device that is about a step.

    Args:
        cu_num: compute units.
        token: query tokens of the step.
        num_heads: query heads.
        kv_lora_rank: columns of V in the cache.
        v_head_dim: columns of the output.
        num_kv_splits: pieces of each context.

    Returns:
        The row of exactly this step, else that of any number of tokens, else None.

    Raises:
        TableError: the table is broken.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    table = load_reduce_table(family_and_units(device)[0])
    return table.find(cu_num, token, num_heads, kv_lora_rank, v_head_dim, num_kv_splits)


__all__ = ["get_mla_decode_reduce_cfg", "mla_decode_reduce", "mla_reduce_decode"]
