# SPDX-License-Identifier: MIT
"""16-bit integers alone and in pairs: op_sel, the halves that are kept, clamp."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from lanes import over

Operation = Callable[..., int]
LOW, HIGH = -(2**15), 2**15 - 1
OLD = 0xABCD1234


def signed(value: int) -> int:
    value &= 0xFFFF
    return value - 0x10000 if value >> 15 else value


def on_signed(function: Operation) -> Operation:
    return lambda *values: function(*map(signed, values))


def middle(*values: int) -> int:
    return sorted(values)[1]


def shorts(seed: int) -> np.ndarray:
    random = np.random.default_rng(seed)
    values = random.integers(0, 2**16, 4096).astype(np.uint32)
    values[:8] = [0, 1, 0x7FFF, 0x8000, 0xFFFF, 0xFFFE, 15, 16]
    return np.roll(values, seed)


# Name, operation, whether the other half of the destination stays.
SINGLE: dict[str, tuple[int, Operation, bool]] = {
    "v_add_u16": (2, lambda a, b: a + b, False),
    "v_sub_u16": (2, lambda a, b: a - b, False),
    "v_subrev_u16": (2, lambda a, b: b - a, False),
    "v_mul_lo_u16": (2, lambda a, b: a * b, False),
    "v_lshlrev_b16": (2, lambda a, b: b << (a & 15), False),
    "v_lshrrev_b16": (2, lambda a, b: b >> (a & 15), False),
    "v_ashrrev_i16": (2, lambda a, b: signed(b) >> (a & 15), False),
    "v_min_i16": (2, on_signed(min), False),
    "v_max_i16": (2, on_signed(max), False),
    "v_min_u16": (2, min, False),
    "v_max_u16": (2, max, False),
    "v_mad_legacy_u16": (3, lambda a, b, c: a * b + c, False),
    "v_mad_legacy_i16": (3, lambda a, b, c: a * b + c, False),
    "v_add_i16": (2, lambda a, b: a + b, True),
    "v_sub_i16": (2, lambda a, b: a - b, True),
    "v_mad_u16": (3, lambda a, b, c: a * b + c, True),
    "v_mad_i16": (3, lambda a, b, c: a * b + c, True),
    "v_min3_i16": (3, on_signed(min), True),
    "v_max3_i16": (3, on_signed(max), True),
    "v_med3_i16": (3, on_signed(middle), True),
    "v_min3_u16": (3, min, True),
    "v_max3_u16": (3, max, True),
    "v_med3_u16": (3, middle, True),
}


def expect(function: Operation, *values: np.ndarray) -> np.ndarray:
    lists = [value.tolist() for value in values]
    return np.array([function(*lane) & 0xFFFF for lane in zip(*lists, strict=True)], np.uint32)


@pytest.mark.parametrize("name", SINGLE)
def test_16_bit_operations(snippets, name):
    sources, function, keeps = SINGLE[name]
    low, high = [shorts(n) for n in range(3)], [shorts(n) for n in range(3, 6)]
    inputs = {10 + n: low[n] | high[n] << 16 for n in range(3)}
    inputs |= {20: np.full(4096, OLD, np.uint32), 21: np.full(4096, OLD, np.uint32)}
    operands = ", ".join(("v10", "v11", "v12")[:sources])
    code = f"{name} v20, {operands}\n"
    if keeps:
        code += f"{name} v21, {operands} op_sel:[{'1,0,1,1' if sources == 3 else '0,1,1'}]\n"
    got = over(snippets, code, inputs, ("v20", "v21"))
    np.testing.assert_array_equal(got[0] & 0xFFFF, expect(function, *low[:sources]))
    assert (got[0] >> 16 == (OLD >> 16 if keeps else 0)).all()
    if keeps:
        mixed = [high[0], low[1], high[2]] if sources == 3 else [low[0], high[1]]
        np.testing.assert_array_equal(got[1] >> 16, expect(function, *mixed))
        assert (got[1] & 0xFFFF == OLD & 0xFFFF).all()


def bound(function: Operation, low: int, high: int) -> Operation:
    return lambda *values: max(low, min(high, function(*values)))


CLAMPED = {
    "v_add_u16_e64": bound(lambda a, b: a + b, 0, 0xFFFF),
    "v_sub_u16_e64": bound(lambda a, b: a - b, 0, 0xFFFF),
    "v_add_i16": bound(on_signed(lambda a, b: a + b), LOW, HIGH),
    "v_sub_i16": bound(on_signed(lambda a, b: a - b), LOW, HIGH),
    "v_mad_u16": bound(lambda a, b: a * b + a, 0, 0xFFFF),
    "v_mad_i16": bound(on_signed(lambda a, b: a * b + a), LOW, HIGH),
}


@pytest.mark.parametrize("name", CLAMPED)
def test_clamp_saturates_16_bit_integers(snippets, name):
    a, b = shorts(1), shorts(2)
    third = ", v10" if "mad" in name else ""
    code = f"v_mov_b32 v20, 0\n{name} v20, v10, v11{third} clamp\n"
    (got,) = over(snippets, code, {10: a, 11: b})
    np.testing.assert_array_equal(got, expect(CLAMPED[name], a, b))


PAIRS: dict[str, Operation] = {
    "v_pk_add_u16": lambda a, b: a + b,
    "v_pk_sub_u16": lambda a, b: a - b,
    "v_pk_mul_lo_u16": lambda a, b: a * b,
    "v_pk_min_u16": min,
    "v_pk_max_u16": max,
    "v_pk_lshlrev_b16": lambda a, b: b << (a & 15),
    "v_pk_lshrrev_b16": lambda a, b: b >> (a & 15),
    "v_pk_add_i16": lambda a, b: a + b,
    "v_pk_sub_i16": lambda a, b: a - b,
    "v_pk_min_i16": on_signed(min),
    "v_pk_max_i16": on_signed(max),
    "v_pk_ashrrev_i16": lambda a, b: signed(b) >> (a & 15),
    "v_pk_mad_u16": lambda a, b, c: a * b + c,
    "v_pk_mad_i16": lambda a, b, c: a * b + c,
}


@pytest.mark.parametrize("name", PAIRS)
def test_pairs_of_16_bit_integers_follow_op_sel(snippets, name):
    low, high = [shorts(n) for n in range(3)], [shorts(n) for n in range(3, 6)]
    inputs = {10 + n: low[n] | high[n] << 16 for n in range(3)}
    count = 3 if "mad" in name else 2
    operands = ", ".join(("v10", "v11", "v12")[:count])
    select, select_high = ("1,0,1", "0,1,1") if count == 3 else ("1,0", "0,1")
    code = f"{name} v20, {operands}\n"
    code += f"{name} v21, {operands} op_sel:[{select}] op_sel_hi:[{select_high}]\n"
    plain, crossed = over(snippets, code, inputs, ("v20", "v21"))
    function = PAIRS[name]
    np.testing.assert_array_equal(plain & 0xFFFF, expect(function, *low[:count]))
    np.testing.assert_array_equal(plain >> 16, expect(function, *high[:count]))
    first, second = [high[0], low[1], high[2]], [low[0], high[1], high[2]]
    np.testing.assert_array_equal(crossed & 0xFFFF, expect(function, *first[:count]))
    np.testing.assert_array_equal(crossed >> 16, expect(function, *second[:count]))


def test_pairs_saturate_under_clamp(snippets):
    a, b, c, d = (shorts(n) for n in range(4))
    code = "v_pk_add_u16 v20, v10, v11 clamp\nv_pk_sub_u16 v21, v10, v11 clamp\n"
    code += "v_pk_add_i16 v22, v10, v11 clamp\nv_pk_mad_i16 v23, v10, v11, v10 clamp\n"
    inputs = {10: a | b << 16, 11: c | d << 16}
    got = over(snippets, code, inputs, ("v20", "v21", "v22", "v23"))
    names = ("v_add_u16_e64", "v_sub_u16_e64", "v_add_i16", "v_mad_i16")
    for lanes, name in zip(got, names, strict=True):
        np.testing.assert_array_equal(lanes & 0xFFFF, expect(CLAMPED[name], a, c), err_msg=name)
        np.testing.assert_array_equal(lanes >> 16, expect(CLAMPED[name], b, d), err_msg=name)


@pytest.mark.parametrize(("name", "low", "high"), [("i8", -128, 127), ("u8", 0, 255)])
def test_shifted_dwords_pack_into_bytes(snippets, name, low, high):
    random = np.random.default_rng(7)
    a, b = random.integers(-(2**31), 2**31, (2, 4096)).astype(np.int32)
    count = random.integers(0, 64, 4096).astype(np.uint32)
    old = np.full(4096, OLD, np.uint32)
    code = f"v_ashr_pk_{name}_i32 v20, v10, v11, v12\n"
    code += f"v_ashr_pk_{name}_i32 v21, v10, v11, v12 op_sel:[0,0,0,1]\n"
    got = over(snippets, code, {10: a, 11: b, 12: count, 20: old, 21: old}, ("v20", "v21"))
    shift = (count & 31).astype(np.int64)
    parts = [np.clip(x.astype(np.int64) >> shift, low, high) & 255 for x in (a, b)]
    packed = (parts[0] | parts[1] << 8).astype(np.uint32)
    np.testing.assert_array_equal(got[0], packed | OLD & 0xFFFF0000)
    np.testing.assert_array_equal(got[1], packed << 16 | OLD & 0xFFFF)
