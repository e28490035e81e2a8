# SPDX-License-Identifier: MIT
"""One instruction over many values: what the tests of vector instructions share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

THREADS = 256
# MODE: round fp32 [1:0], fp64 and fp16 [3:2]; denormals fp32 [5:4], fp64 and fp16 [7:6].
FP16_OVFL = "s_setreg_imm32_b32 hwreg(HW_REG_MODE, 23, 1), 1\n"


def set_mode(first: int, bits: int, value: int) -> str:
    """An instruction that changes a field of MODE."""
    return f"s_setreg_imm32_b32 hwreg(HW_REG_MODE, {first}, {bits}), {value}\n"


def over(
    snippets: Any,
    code: str,
    inputs: Mapping[int, np.ndarray],
    outputs: Sequence[str] = ("v20",),
    *,
    arch: str = "gfx950",
) -> list[np.ndarray]:
    """Runs `code` once per element.

    Args:
        snippets: the fixture.
        code: reads the registers of `inputs`; leaves v0, v1 and s0 to s5 alone.
        inputs: 32-bit values by vector register.
        outputs: the vector registers to return.
        arch: gfx942 or gfx950.

    Returns:
        uint32 arrays, one per output.
    """
    count = len(next(iter(inputs.values())))
    padded = -(-count // THREADS) * THREADS
    memory = np.zeros((len(inputs) + len(outputs), padded), np.uint32)
    for row, values in zip(memory, inputs.values(), strict=False):
        bits = np.ascontiguousarray(values)
        assert bits.itemsize == 4, "expected 32-bit values"
        row[:count] = bits.view(np.uint32)
    lines = [
        set_mode(4, 2, 3),  # keep fp32 denormals, as compiled kernels do
        f"s_lshl_b32 s3, s2, {THREADS.bit_length() - 1}",
        "v_add_u32 v1, s3, v0",
        "v_lshlrev_b32 v1, 2, v1",
    ]
    step = (f"s_add_u32 s0, s0, {padded * 4}", "s_addc_u32 s1, s1, 0")
    for register in inputs:
        lines += [f"global_load_dword v{register}, v1, s[0:1]", *step]
    lines += ["s_waitcnt vmcnt(0)", code, "s_nop 15"]
    for register in outputs:
        lines += [f"global_store_dword v1, {register}, s[0:1]", *step]
    snippets.run(
        "\n".join(lines) + "\n", out=(), memory=memory, arch=arch, threads=THREADS,
        blocks=(padded // THREADS, 1, 1),
    )  # fmt: skip
    return [row[:count].copy() for row in memory[len(inputs) :]]


def singles(values: object) -> np.ndarray:
    """As fp32."""
    return np.asarray(values, np.float32)


def doubles(values: np.ndarray) -> np.ndarray:
    """As fp64, signalling NaN included."""
    with np.errstate(invalid="ignore"):
        return np.asarray(values).astype(np.float64)


def split(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The dwords of 64-bit values, lower first."""
    bits = np.ascontiguousarray(values).view(np.uint64)
    return (bits & 0xFFFFFFFF).astype(np.uint32), (bits >> np.uint64(32)).astype(np.uint32)


def join(low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """64-bit values from their dwords."""
    return low.astype(np.uint64) | high.astype(np.uint64) << np.uint64(32)


def assert_floats(got: np.ndarray, expected: np.ndarray) -> None:
    """The same bits, except that any NaN will do for a NaN."""
    got = np.ascontiguousarray(got).view(expected.dtype)
    bits = {2: np.uint16, 4: np.uint32, 8: np.uint64}[expected.itemsize]
    same = (got.view(bits) == expected.view(bits)) | (np.isnan(got) & np.isnan(expected))
    wrong = np.flatnonzero(~same)
    assert wrong.size == 0, (
        f"{wrong.size} of {got.size}, first at {wrong[0]}: "
        f"got {got[wrong[0]]!r}, expected {expected[wrong[0]]!r}"
    )


def special_singles(count: int = 2048, seed: int = 0) -> np.ndarray:
    """Random fp32 of all magnitudes behind zeros, denormals, extremes, infinities and NaN."""
    random = np.random.default_rng(seed)
    special = [
        0x00000000, 0x80000000, 0x00000001, 0x80000001, 0x007FFFFF, 0x807FFFFF, 0x00800000,
        0x80800000, 0x3F800000, 0xBF800000, 0x3F7FFFFF, 0x3F800001, 0x40000000, 0x3F000000,
        0x3EFFFFFF, 0x7F7FFFFF, 0xFF7FFFFF, 0x7F800000, 0xFF800000, 0x7FC00000, 0x4B000000,
        0x4AFFFFFF, 0x4F000000, 0x4F800000, 0xCF000000, 0x33800000, 0x42FE0000, 0xC2FC0000,
    ]  # fmt: skip
    bits = random.integers(0, 2**32, count, dtype=np.uint64).astype(np.uint32)
    bits[count // 2 :] = (
        (random.standard_normal(count - count // 2) * 8).astype(np.float32).view(np.uint32)
    )
    bits[: len(special)] = special
    return bits.view(np.float32)


def special_pairs(count: int = 4096, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Two fp32 arrays in which every special value meets every other one."""
    a, b = special_singles(count, seed), special_singles(count, seed + 1)
    first, second = np.meshgrid(a[:28], b[:28])
    return np.concatenate([first.ravel(), a]), np.concatenate([second.ravel(), b])


def special_integers(count: int = 2048, seed: int = 0) -> np.ndarray:
    """uint32 values: corners of 4, 8, 16, 24 and 32 bits, then random ones."""
    random = np.random.default_rng(seed)
    corners = [0, 1, 2, 7, 8, 15, 16, 31, 32, 33, 63, 64]
    for bits in (8, 16, 24, 31, 32):
        corners += [(1 << bits) - 1, (1 << bits) - 2, 1 << (bits - 1), (1 << (bits - 1)) - 1]
    values = random.integers(0, 2**32, count, dtype=np.uint64).astype(np.uint32)
    values[: len(corners)] = corners
    return values


def integer_pairs(count: int = 2048, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Two uint32 arrays in which every corner meets every other one."""
    a, b = special_integers(count, seed), special_integers(count, seed + 1)
    first, second = np.meshgrid(a[:32], b[:32])
    return np.concatenate([first.ravel(), a]), np.concatenate([second.ravel(), b])
