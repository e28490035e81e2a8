# SPDX-License-Identifier: MIT
"""What the MLA decode kernels support, held against what a call needs."""

from __future__ import annotations

from .errors import UnsupportedShape
from .tables import DTYPES

HEAD_DIMS = ((576, 512), (512, 512), (96, 64), (64, 64))
MAX_NHEAD = 128
MAX_Q_LEN = 16
MAX_PAGE_SIZE = 1024

_HALF = ("bf16", "fp16")
_FP8 = ("fp8_e4m3fn", "fp8_e4m3fnuz")
DTYPE_PAIRS = tuple(
    (q, kv) for q in DTYPES for kv in DTYPES if q == kv or (q in _HALF and kv in _FP8)
)
"""The (q_dtype, kv_dtype) that a kernel exists for."""


def check_supported(
    *,
    nhead: int,
    q_len: int,
    dtypes: tuple[str, str],
    head_dims: tuple[int, int],
    page_size: int,
) -> None:
    """Hold one call against the features of the kernels.

    Args:
        nhead: query heads.
        q_len: query tokens per request.
        dtypes: (q_dtype, kv_dtype).
        head_dims: (head_dim_qk, head_dim_v).
        page_size: tokens per page.

    Raises:
        UnsupportedShape: lists what is required, supported and missing, and the nearest shape.
    """
    page_ok = 1 <= page_size <= MAX_PAGE_SIZE and page_size & (page_size - 1) == 0
    near_page = min(MAX_PAGE_SIZE, 1 << max(0, page_size - 1).bit_length())
    # (name, what the call needs, what there is, whether it fits, the nearest that fits)
    features = (
        _range("nhead", nhead, MAX_NHEAD),
        _range("q_len", q_len, MAX_Q_LEN),
        ("dtypes", _slash(dtypes), _each(DTYPE_PAIRS), dtypes in DTYPE_PAIRS, _near_pair(dtypes)),
        ("head_dims", _slash(head_dims), _each(HEAD_DIMS), head_dims in HEAD_DIMS, "576/512"),
        ("page_size", page_size, f"a power of two 1..{MAX_PAGE_SIZE}", page_ok, near_page),
    )
    lacking = [feature for feature in features if not feature[3]]
    if not lacking:
        return
    missing = ", ".join(f"{name}={need}" for name, need, *_ in lacking)
    raise UnsupportedShape(
        f"mla_decode: expected a shape that the kernels support, got {missing}; "
        f"use {', '.join(f'{name}={near}' for name, *_, near in lacking)}\n"
        f"  required:  {', '.join(f'{name}={need}' for name, need, *_ in features)}\n"
        f"  supported: {'; '.join(f'{name} {have}' for name, _, have, *_ in features)}\n"
        f"  missing:   {missing}"
    )


def _range(name: str, need: int, most: int) -> tuple[str, object, str, bool, object]:
    return name, need, f"1..{most}", 1 <= need <= most, max(1, min(need, most))


def _near_pair(dtypes: tuple[str, str]) -> str:
    kv_dtype = dtypes[1] if dtypes[1] in DTYPES else "bf16"
    q_dtype = dtypes[0] if dtypes[0] in _HALF and kv_dtype in _FP8 else kv_dtype
    return _slash((q_dtype, kv_dtype))


def _each(pairs: tuple[tuple[object, object], ...]) -> str:
    return " ".join(_slash(pair) for pair in pairs)


def _slash(pair: tuple[object, object]) -> str:
    return f"{pair[0]}/{pair[1]}"
