# SPDX-License-Identifier: MIT
"""Every code of every cache dtype comes out of a decode as the number that it stands for."""

import pytest
import torch

import hipdecode
from hipdecode.testing.cases import DTYPES

HEAD_DIM_QK, HEAD_DIM_V = 576, 512


def decode_single_keys(rows: torch.Tensor, q_dtype: torch.dtype, route: str) -> torch.Tensor:
    """Gives each request one key of `rows` [batch, 512] and a query of zeros: out is that row."""
    batch = rows.shape[0]
    kv = torch.zeros(batch, 1, 1, HEAD_DIM_QK, dtype=torch.uint8 if rows.itemsize == 1 else q_dtype)
    kv = kv.view(rows.dtype)
    kv[:, 0, 0, :HEAD_DIM_V] = rows
    q = torch.zeros(batch, 1, HEAD_DIM_QK, dtype=q_dtype)
    indptr = torch.arange(batch + 1, dtype=torch.int32)
    index = torch.arange(batch, dtype=torch.int32)
    out = hipdecode.mla_decode(q, kv, indptr, indptr, index, max_seqlen_q=1, route=route)
    assert isinstance(out, torch.Tensor)
    return out[:, 0]


@pytest.mark.usefixtures("device")
@pytest.mark.parametrize("route", ["hk", "persistent"])
@pytest.mark.parametrize("q_dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
@pytest.mark.parametrize("kv_dtype", ["fp8_e4m3fn", "fp8_e4m3fnuz"])
def test_mla_decode_reads_every_fp8_code(kv_dtype: str, q_dtype: torch.dtype, route: str) -> None:
    codes = torch.arange(256, dtype=torch.uint8)[:, None].expand(256, HEAD_DIM_V).contiguous()
    rows = codes.view(DTYPES[kv_dtype])
    got = decode_single_keys(rows, q_dtype, route).double()
    torch.testing.assert_close(got, rows.double(), rtol=0, atol=0, equal_nan=True)


@pytest.mark.usefixtures("device")
@pytest.mark.parametrize("route", ["hk", "persistent"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
def test_mla_decode_reads_every_half_code(dtype: torch.dtype, route: str) -> None:
    codes = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)
    # infinities and NaN would reach the score; subnormal bf16 is below what a weight keeps
    odd = ~codes.isfinite() | (codes.abs() < torch.finfo(torch.float32).tiny)
    rows = codes.masked_fill(odd, 0).view(-1, HEAD_DIM_V)
    got = decode_single_keys(rows, dtype, route)
    torch.testing.assert_close(got, rows, rtol=0, atol=0)
