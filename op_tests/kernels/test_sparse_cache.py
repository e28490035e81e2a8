# SPDX-License-Identifier: MIT
"""The writers of the sparse caches against layouts spelled out byte by byte, and their errors."""

from __future__ import annotations

import struct

import pytest
import torch
from torch import Tensor

import hipdecode
from hipdecode.errors import BadArgument
from hipdecode.sparse_cache import V4, V32, CacheFormat, format_of
from hipdecode.testing import reference, sparse_reference

FN, FNUZ = torch.float8_e4m3fn, torch.float8_e4m3fnuz
WRITERS = {"v32": hipdecode.quantize_v32, "v4": hipdecode.quantize_v4}
FORMS = [V32, V4]


def _kv(form: CacheFormat, tokens: int, seed: int = 0) -> Tensor:
    """Keys whose groups differ in magnitude by up to 2^16."""
    gen = torch.Generator().manual_seed(seed)
    kv = torch.randn(tokens, form.head_dim_qk, generator=gen)
    powers = torch.randint(-10, 7, (tokens, form.groups), generator=gen)
    kv[:, : form.latent] *= torch.pow(2.0, powers).repeat_interleave(form.group, dim=1)
    return kv.to(torch.bfloat16)


def _least_power(amax: float, top: float) -> int:
    power = -60
    while amax > top * 2.0**power:
        power += 1
    return power


def _nearest_code(value: float, dtype: torch.dtype) -> int:
    """The fp8 code nearest to a number, the even one of two, by search over all of them."""
    table = reference.fp8_table(dtype)
    sign = 128 if value < 0 else 0
    codes = [c for c in range(sign, sign + 128) if not table[c].isnan()]
    if dtype is FNUZ:  # it has one zero
        codes.append(0)
    return min(codes, key=lambda c: (abs(float(table[c]) - value), c & 1))


def _token_bytes(form: CacheFormat, row: Tensor, dtype: torch.dtype) -> tuple[bytes, bytes, bytes]:
    """(codes, scales, rope) of one token as the formats define them, in plain Python."""
    top = 448.0 if dtype is FN else 240.0
    codes, scales = b"", b""
    for group in row[: form.latent].double().view(form.groups, -1).tolist():
        power = _least_power(max(1e-4, *map(abs, group)), top)
        codes += bytes(_nearest_code(x / 2.0**power, dtype) for x in group)
        packed = struct.pack("<f", 2.0**power) if form is V32 else bytes([power + 127])
        scales += packed
    rope = b"".join(struct.pack("<f", x)[2:] for x in row[form.latent :].float().tolist())
    return codes, scales, rope


@pytest.mark.parametrize("dtype", [FN, FNUZ], ids=["fn", "fnuz"])
@pytest.mark.parametrize("form", FORMS, ids=lambda f: f.name)
def test_quantize_writes_the_layout_byte_by_byte(form: CacheFormat, dtype: torch.dtype) -> None:
    kv = _kv(form, 5)
    cache = hipdecode.new_sparse_cache(form, 3, 4, block_bytes=4 * form.token_bytes + 256)
    memory = cache.as_strided((3, cache.stride(0)), (cache.stride(0), 1))
    memory.fill_(0xA5)
    slots = [11, 0, 6, 5, 8]
    WRITERS[form.name](kv, cache, torch.tensor(slots, dtype=torch.int32), dtype=dtype)
    expected = torch.full_like(memory, 0xA5)
    for slot, row in zip(slots, kv, strict=True):
        codes, scales, rope = _token_bytes(form, row, dtype)
        block, position = divmod(slot, 4)
        if form is V32:
            parts = [(position * 656, codes + scales + rope)]
        else:
            parts = [(position * 576, codes + rope), (4 * 576 + position * 8, scales + b"\x00")]
        for start, data in parts:
            expected[block, start : start + len(data)] = torch.frombuffer(
                bytearray(data), dtype=torch.uint8
            )
    assert torch.equal(memory, expected)


@pytest.mark.parametrize("dtype", [FN, FNUZ], ids=["fn", "fnuz"])
@pytest.mark.parametrize("form", FORMS, ids=lambda f: f.name)
def test_reader_returns_what_was_written_within_half_a_step(
    form: CacheFormat, dtype: torch.dtype
) -> None:
    kv = _kv(form, 40, seed=1)
    cache = hipdecode.new_sparse_cache(form, 5, 16)
    slots = torch.randperm(80, generator=torch.Generator().manual_seed(2))[:40]
    WRITERS[form.name](kv, cache, slots, dtype=dtype)
    read = sparse_reference.READERS[form.token_bytes](cache, slots, dtype)
    amax = kv[:, : form.latent].double().abs().view(40, form.groups, -1).amax(2, keepdim=True)
    step = (2 * amax * 2.0**-9).expand(-1, -1, form.group).reshape(40, -1)
    exact = kv.double()
    error = (read - exact)[:, : form.latent].abs()
    assert (error <= torch.maximum(exact[:, : form.latent].abs() * 2.0**-4, step)).all()
    assert torch.equal(read[:, form.latent :], exact[:, form.latent :])


def test_quantize_v32_keeps_scales_that_are_no_powers_of_two() -> None:
    kv = _kv(V32, 7, seed=3)
    cache = hipdecode.new_sparse_cache("v32", 1, 8)
    hipdecode.quantize_v32(kv, cache, torch.arange(7), power_of_two=False)
    scales = cache[0, :7, 512:528].contiguous().view(torch.float32)
    amax = kv[:, :512].float().abs().view(7, 4, 128).amax(2)
    assert torch.equal(scales, amax / 448)
    top = cache[0, :7, :512].reshape(7, 4, 128) & 0x7F
    assert (top.amax(2) == 0x7E).all(), "each group's largest value: expected the largest code"


@pytest.mark.parametrize("form", FORMS, ids=lambda f: f.name)
@pytest.mark.parametrize("bad", [-1, -(2**31), 12, 2**31 - 1])
def test_quantize_leaves_out_slots_that_the_cache_has_not(form: CacheFormat, bad: int) -> None:
    kv = _kv(form, 3)
    caches = [hipdecode.new_sparse_cache(form, 3, 4) for _ in range(2)]
    for cache in caches:
        cache.fill_(0x3C)
    WRITERS[form.name](kv, caches[0], torch.tensor([bad, 7, bad]))
    WRITERS[form.name](kv[1:2], caches[1], torch.tensor([7]))
    assert torch.equal(caches[0], caches[1])
    WRITERS[form.name](kv, caches[0], torch.tensor([bad, bad, bad]))
    assert torch.equal(caches[0], caches[1]), "no valid slot: expected nothing written"


@pytest.mark.parametrize("form", FORMS, ids=lambda f: f.name)
def test_quantize_takes_zeros_nan_and_infinity(form: CacheFormat) -> None:
    kv = torch.zeros(3, form.head_dim_qk)
    kv[1, 5], kv[2, 7] = float("nan"), float("inf")
    kv[1, 6] = 3.0
    cache = hipdecode.new_sparse_cache(form, 1, 4)
    WRITERS[form.name](kv, cache, torch.arange(3))
    read = sparse_reference.READERS[form.token_bytes](cache, torch.arange(3), FN)
    assert (read[0] == 0).all()
    assert read[1, 5].isnan()
    assert read[1, 6] == 3.0
    assert read[2, 7] >= 2.0**127


@pytest.mark.parametrize("form", FORMS, ids=lambda f: f.name)
def test_quantize_takes_no_tokens(form: CacheFormat) -> None:
    cache = hipdecode.new_sparse_cache(form, 1, 4)
    WRITERS[form.name](torch.zeros(0, form.head_dim_qk), cache, torch.zeros(0, dtype=torch.int32))
    assert (cache == 0).all()


@pytest.mark.parametrize("form", FORMS, ids=lambda f: f.name)
def test_quantize_reads_nothing_on_the_host(form: CacheFormat) -> None:
    kv = torch.empty(3, form.head_dim_qk, dtype=torch.bfloat16, device="meta")
    cache = torch.empty(2, 4, form.token_bytes, dtype=torch.uint8, device="meta")
    WRITERS[form.name](kv, cache, torch.empty(3, dtype=torch.int32, device="meta"))


def test_format_is_known_by_the_bytes_of_a_token() -> None:
    assert format_of(hipdecode.new_sparse_cache("v32", 2, 64)) is V32
    assert format_of(hipdecode.new_sparse_cache("v4", 2, 64)) is V4
    assert format_of(hipdecode.new_sparse_cache("v4", 2, 64)[:, :, None].view(FN)) is V4


@pytest.mark.parametrize(
    "cache",
    [
        torch.zeros(2, 4, 600, dtype=torch.uint8),
        torch.zeros(2, 4, 656, dtype=torch.float16),
        torch.zeros(2, 3, 656, dtype=torch.uint8),
        torch.zeros(2, 8, 656, dtype=torch.uint8)[:, ::2],
        torch.zeros(2, 4, 2, 656, dtype=torch.uint8),
        torch.zeros(2, 1, 584, dtype=torch.uint8),
        torch.zeros(1000, dtype=torch.uint8)[1:657].view(1, 1, 656),
        torch.zeros(656, dtype=torch.uint8),
    ],
    ids=["bytes", "dtype", "block-size", "strides", "heads", "alignment", "address", "rank"],
)
def test_format_raises_for_what_is_no_sparse_cache(cache: Tensor) -> None:
    with pytest.raises(BadArgument, match=r"cache: expected .* got"):
        format_of(cache)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"kv": torch.zeros(3, 512)}, r"kv: expected \[tokens, 576\]"),
        ({"kv": torch.zeros(3, 576, dtype=torch.int32)}, "kv: expected"),
        ({"slots": torch.zeros(2, dtype=torch.int32)}, r"slots: expected \[3\]"),
        ({"slots": torch.zeros(3)}, "slots: expected"),
        ({"cache": torch.zeros(1, 4, 584, dtype=torch.uint8)}, "cache: expected 656 bytes"),
        ({"dtype": torch.float8_e5m2}, "dtype: expected"),
    ],
)
def test_quantize_names_the_argument_that_is_wrong(
    changed: dict[str, object], message: str
) -> None:
    arguments = {
        "kv": torch.zeros(3, 576),
        "cache": hipdecode.new_sparse_cache("v32", 1, 4),
        "slots": torch.zeros(3, dtype=torch.int32),
    }
    with pytest.raises(BadArgument, match=message):
        hipdecode.quantize_v32(**{**arguments, **changed})


@pytest.mark.parametrize(
    ("size", "step"), [(3, None), (0, None), (4, 4 * 584 - 8), (4, 4 * 584 + 8)]
)
def test_new_sparse_cache_refuses_blocks_that_kernels_cannot_read(
    size: int, step: int | None
) -> None:
    with pytest.raises(BadArgument, match="block_size, block_bytes"):
        hipdecode.new_sparse_cache("v4", 2, size, block_bytes=step)
