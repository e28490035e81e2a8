# SPDX-License-Identifier: MIT
"""AITER's split counts of decodes without a plan, which its callers ask for and hand back."""

from __future__ import annotations

import torch
from torch import Tensor

from hipdecode import ops
from hipdecode.arguments import check_int
from hipdecode.dispatch import MAX_SPLITS
from hipdecode.hk_splits import auto_splits


def get_meta_param(
    num_kv_splits: int | None,
    bs: int,
    total_kv: int,
    nhead: int,
    max_seqlen_q: int,
    dtype: torch.dtype,
) -> tuple[int, Tensor]:
    """Into how many pieces each request's keys are cut, as AITER's callers want to know it.

    mla_decode_fwd takes both as advice: its split count is that of the tuned tables.

    Args:
        num_kv_splits: the caller's own; None: as many as the rule for tensors of one average says.
        bs: requests.
        total_kv: keys of all requests at most.
        nhead: query heads.
        max_seqlen_q: query rows of one request at most.
        dtype: of q; changes nothing.

    Returns:
        The count, and [bs + 1] int32 its multiples, on torch's current GPU, else on the CPU.

    Raises:
        BadArgument: a number is out of its range.
    """
    del dtype
    for name, value in (("bs", bs), ("nhead", nhead), ("max_seqlen_q", max_seqlen_q)):
        check_int(name, value, 1)
    check_int("total_kv", total_kv, 0)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if num_kv_splits is None:
        family, compute_units = ops.family_and_units(device)
        num_kv_splits = auto_splits(
            family=family,
            batch=bs,
            nhead=nhead,
            q_len=max_seqlen_q,
            compute_units=compute_units,
            kv_len=-(-total_kv // bs),
        )
    check_int("num_kv_splits", num_kv_splits, 1, MAX_SPLITS)
    multiples = torch.arange(bs + 1, dtype=torch.int32, device=device) * num_kv_splits
    return num_kv_splits, multiples
