# SPDX-License-Identifier: MIT
"""32, 64 and 16-bit integers and bytes, each lane against Python's integers."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from lanes import integer_pairs, join, over, split

WORD = 0xFFFFFFFF


def signed(value: int, bits: int = 32) -> int:
    value &= (1 << bits) - 1
    return value - (1 << bits) if value >> (bits - 1) else value


def leading(value: int) -> int:
    return 32 - value.bit_length() if value else WORD


def bfe_signed(value: int, offset: int, width: int) -> int:
    width &= 31
    return signed((signed(value) >> (offset & 31)) & ((1 << width) - 1), width) if width else 0


def octets(value: int, count: int = 4) -> list[int]:
    return [value >> 8 * n & 255 for n in range(count)]


def permute(a: int, b: int, selectors: int) -> int:
    data = octets(a << 32 | b, 8)
    fixed = {12: 0, **dict.fromkeys(range(13, 256), 255)}
    signs = {8: data[1], 9: data[3], 10: data[5], 11: data[7]}
    result = 0
    for place, selector in enumerate(octets(selectors)):
        if selector < 8:
            chosen = data[selector]
        else:
            chosen = fixed.get(selector, 255 * (signs.get(selector, 0) >> 7))
        result |= chosen << 8 * place
    return result


def sad(a: int, b: int, c: int) -> int:
    return c + sum(abs(x - y) for x, y in zip(octets(a), octets(b), strict=True))


def masked_sad(a: int, b: int, c: int) -> int:
    return c + sum(abs(x - y) for x, y in zip(octets(a), octets(b), strict=True) if y)


def lerp(a: int, b: int, c: int) -> int:
    parts = zip(octets(a), octets(b), octets(c), strict=True)
    return sum((x + y + (z & 1)) // 2 << 8 * n for n, (x, y, z) in enumerate(parts))


def bounded(value: int, low: int, high: int) -> int:
    return max(low, min(high, value))


def dot(bits: int, is_signed: bool) -> Callable[[int, int, int], int]:
    def sum_of(a: int, b: int, c: int) -> int:
        number = signed if is_signed else (lambda x, n: x & ((1 << n) - 1))
        pairs = range(0, 32, bits)
        return c + sum(number(a >> n, bits) * number(b >> n, bits) for n in pairs)

    return sum_of


ONE = {
    "v_not_b32": lambda a: ~a,
    "v_bfrev_b32": lambda a: int(f"{a:032b}"[::-1], 2),
    "v_ffbh_u32": leading,
    "v_ffbl_b32": lambda a: (a & -a).bit_length() - 1 if a else WORD,
    "v_ffbh_i32": lambda a: leading(~a & WORD if a >> 31 else a),
    "v_prng_b32": lambda a: a << 1 ^ (197 if a >> 31 else 0),
    "v_mov_b32": lambda a: a,
    "v_sat_pk_u8_i16": lambda a: (
        bounded(signed(a, 16), 0, 255) | bounded(signed(a >> 16, 16), 0, 255) << 8
    ),
}
TWO = {
    "v_add_u32": lambda a, b: a + b,
    "v_sub_u32": lambda a, b: a - b,
    "v_subrev_u32": lambda a, b: b - a,
    "v_add_i32": lambda a, b: a + b,
    "v_sub_i32": lambda a, b: a - b,
    "v_and_b32": lambda a, b: a & b,
    "v_or_b32": lambda a, b: a | b,
    "v_xor_b32": lambda a, b: a ^ b,
    "v_xnor_b32": lambda a, b: ~(a ^ b),
    "v_lshlrev_b32": lambda a, b: b << (a & 31),
    "v_lshrrev_b32": lambda a, b: b >> (a & 31),
    "v_ashrrev_i32": lambda a, b: signed(b) >> (a & 31),
    "v_min_i32": lambda a, b: min(signed(a), signed(b)),
    "v_max_i32": lambda a, b: max(signed(a), signed(b)),
    "v_min_u32": min,
    "v_max_u32": max,
    "v_mul_lo_u32": lambda a, b: a * b,
    "v_mul_hi_u32": lambda a, b: a * b >> 32,
    "v_mul_hi_i32": lambda a, b: signed(a) * signed(b) >> 32,
    "v_mul_i32_i24": lambda a, b: signed(a, 24) * signed(b, 24),
    "v_mul_hi_i32_i24": lambda a, b: signed(a, 24) * signed(b, 24) >> 32,
    "v_mul_u32_u24": lambda a, b: (a & 0xFFFFFF) * (b & 0xFFFFFF),
    "v_mul_hi_u32_u24": lambda a, b: (a & 0xFFFFFF) * (b & 0xFFFFFF) >> 32,
    "v_bfm_b32": lambda a, b: ((1 << (a & 31)) - 1) << (b & 31),
    "v_bcnt_u32_b32": lambda a, b: a.bit_count() + b,
    "v_cvt_pk_u16_u32": lambda a, b: min(a, 0xFFFF) | min(b, 0xFFFF) << 16,
    "v_cvt_pk_i16_i32": lambda a, b: (
        bounded(signed(a), -(2**15), 2**15 - 1) & 0xFFFF
        | (bounded(signed(b), -(2**15), 2**15 - 1) & 0xFFFF) << 16
    ),
}
THREE = {
    "v_add3_u32": lambda a, b, c: a + b + c,
    "v_lshl_add_u32": lambda a, b, c: (a << (b & 31)) + c,
    "v_add_lshl_u32": lambda a, b, c: a + b << (c & 31),
    "v_lshl_or_b32": lambda a, b, c: a << (b & 31) | c,
    "v_and_or_b32": lambda a, b, c: a & b | c,
    "v_or3_b32": lambda a, b, c: a | b | c,
    "v_xad_u32": lambda a, b, c: (a ^ b) + c,
    "v_min3_i32": lambda a, b, c: min(map(signed, (a, b, c))),
    "v_max3_i32": lambda a, b, c: max(map(signed, (a, b, c))),
    "v_med3_i32": lambda a, b, c: sorted(map(signed, (a, b, c)))[1],
    "v_min3_u32": min,
    "v_max3_u32": max,
    "v_med3_u32": lambda a, b, c: sorted((a, b, c))[1],
    "v_mad_i32_i24": lambda a, b, c: signed(a, 24) * signed(b, 24) + signed(c),
    "v_mad_u32_u24": lambda a, b, c: (a & 0xFFFFFF) * (b & 0xFFFFFF) + c,
    "v_mad_i32_i16": lambda a, b, c: signed(a, 16) * signed(b, 16) + signed(c),
    "v_mad_u32_u16": lambda a, b, c: (a & 0xFFFF) * (b & 0xFFFF) + c,
    "v_bfe_u32": lambda a, b, c: a >> (b & 31) & ((1 << (c & 31)) - 1),
    "v_bfe_i32": bfe_signed,
    "v_bfi_b32": lambda a, b, c: a & b | ~a & c,
    "v_alignbit_b32": lambda a, b, c: (a << 32 | b) >> (c & 31),
    "v_alignbyte_b32": lambda a, b, c: (a << 32 | b) >> 8 * (c & 3),
    "v_perm_b32": permute,
    "v_lerp_u8": lerp,
    "v_sad_u8": sad,
    "v_sad_hi_u8": lambda a, b, c: (sad(a, b, 0) << 16) + c,
    "v_msad_u8": masked_sad,
    "v_sad_u16": lambda a, b, c: c + abs((a & 0xFFFF) - (b & 0xFFFF)) + abs((a >> 16) - (b >> 16)),
    "v_sad_u32": lambda a, b, c: c + abs(a - b),
    "v_dot4_i32_i8": dot(8, True),
    "v_dot4_u32_u8": dot(8, False),
    "v_dot8_i32_i4": dot(4, True),
    "v_dot8_u32_u4": dot(4, False),
    "v_dot2_i32_i16": dot(16, True),
    "v_dot2_u32_u16": dot(16, False),
}


def sources(kind: int) -> tuple[np.ndarray, ...]:
    a, b = integer_pairs()
    c = np.roll(a, 37).copy()
    c[::3] = np.arange(c[::3].size) % 64 * 0x01010101 & WORD
    # Selectors of permutations are small numbers in each byte.
    c[::5] = np.random.default_rng(1).integers(0, 14, (c[::5].size, 4), np.uint8).view("u4")[:, 0]
    return (a, b, c)[:kind]


def expect(function: Callable[..., int], values: tuple[np.ndarray, ...]) -> np.ndarray:
    lists = [value.tolist() for value in values]
    return np.array([function(*lane) & WORD for lane in zip(*lists, strict=True)], np.uint32)


@pytest.mark.parametrize(("kind", "table"), [(1, ONE), (2, TWO), (3, THREE)])
def test_32_bit_operations(snippets, kind, table):
    values = sources(kind)
    operands = ", ".join(("v10", "v11", "v12")[:kind])
    code = "".join(f"{name} v{20 + n}, {operands}\n" for n, name in enumerate(table))
    outputs = [f"v{20 + n}" for n in range(len(table))]
    got = over(snippets, code, dict(zip((10, 11, 12), values, strict=False)), outputs)
    for lanes, (name, function) in zip(got, table.items(), strict=True):
        np.testing.assert_array_equal(lanes, expect(function, values), err_msg=name)


ACCUMULATING = {"v_dot2c_i32_i16": 16, "v_dot4c_i32_i8": 8, "v_dot8c_i32_i4": 4}


@pytest.mark.parametrize("name", ACCUMULATING)
def test_dots_add_to_their_destination(snippets, name):
    values = sources(3)
    inputs = dict(zip((10, 11, 20), values, strict=True))
    (got,) = over(snippets, f"{name} v20, v10, v11\n", inputs)
    np.testing.assert_array_equal(got, expect(dot(ACCUMULATING[name], True), values))


CLAMPED = {
    "v_add_u32_e64": (TWO["v_add_u32"], 0, WORD),
    "v_sub_u32_e64": (TWO["v_sub_u32"], 0, WORD),
    "v_add_i32": (lambda a, b: signed(a) + signed(b), -(2**31), 2**31 - 1),
    "v_sub_i32": (lambda a, b: signed(a) - signed(b), -(2**31), 2**31 - 1),
    "v_mad_u32_u24": (lambda a, b: (a & 0xFFFFFF) * (b & 0xFFFFFF) + a, 0, WORD),
    "v_mad_i32_i24": (
        lambda a, b: signed(a, 24) * signed(b, 24) + signed(a),
        -(2**31),
        2**31 - 1,
    ),
    "v_dot4_i32_i8": (
        lambda a, b: dot(8, True)(a, b, signed(a)),
        -(2**31),
        2**31 - 1,
    ),
    "v_dot2_u32_u16": (lambda a, b: dot(16, False)(a, b, a), 0, WORD),
}


@pytest.mark.parametrize("name", CLAMPED)
def test_clamp_saturates_integers(snippets, name):
    a, b = sources(2)
    function, low, high = CLAMPED[name]
    third = ", v10" if "mad" in name or "dot" in name else ""
    (got,) = over(snippets, f"{name} v20, v10, v11{third} clamp\n", {10: a, 11: b})
    np.testing.assert_array_equal(got, expect(lambda *x: bounded(function(*x), low, high), (a, b)))


@pytest.mark.parametrize("table", [0x00, 0x6C, 0x96, 0xE8, 0x1B, 0xFF])
def test_bitop3_looks_up_its_truth_table(snippets, table):
    values = sources(3)
    code = f"v_bitop3_b32 v20, v10, v11, v12 bitop3:{table:#x}\n"
    code += f"v_bitop3_b16 v21, v10, v11, v12 bitop3:{table:#x} op_sel:[1,0,0,1]\n"
    inputs = dict(zip((10, 11, 12, 21), (*values, values[0]), strict=True))
    got = over(snippets, code, inputs, ("v20", "v21"))

    def look_up(a: int, b: int, c: int) -> int:
        bits = ((a >> n & 1) << 2 | (b >> n & 1) << 1 | c >> n & 1 for n in range(32))
        return sum((table >> row & 1) << n for n, row in enumerate(bits))

    np.testing.assert_array_equal(got[0], expect(look_up, values))
    halves = expect(lambda a, b, c: look_up(a >> 16, b, c) << 16 | a & 0xFFFF, values)
    np.testing.assert_array_equal(got[1], halves)


@pytest.mark.parametrize("clamp", ["", " clamp"])
def test_carries_pass_through_lane_masks(snippets, clamp):
    a, b = sources(2)
    code = f"""
  v_mov_b32 v40, 0
  v_add_co_u32_e64 v20, s[8:9], v10, v11{clamp}
  s_nop 4
  v_addc_co_u32_e64 v21, s[10:11], v11, v10, s[8:9]{clamp}
  v_sub_co_u32_e64 v22, vcc, v10, v11{clamp}
  s_nop 4
  v_subb_co_u32_e64 v23, s[12:13], v11, v10, vcc{clamp}
  v_subrev_co_u32_e64 v24, s[14:15], v10, v11{clamp}
  s_nop 4
  v_subbrev_co_u32_e64 v25, s[16:17], v10, v11, s[14:15]{clamp}
""" + "".join(
        f"  v_cndmask_b32_e64 v{26 + n}, v40, 1, {mask}\n"
        for n, mask in enumerate(("s[8:9]", "s[10:11]", "vcc", "s[12:13]", "s[14:15]", "s[16:17]"))
    )
    outputs = [f"v{20 + n}" for n in range(12)]
    got = over(snippets, code, {10: a, 11: b}, outputs)

    def steps(x: int, y: int) -> list[tuple[int, int]]:
        add = x + y
        subtract, reversed_ = x - y, y - x
        again = y + x + (add >> 32)
        borrow = y - x - (subtract < 0)
        other = y - x - (reversed_ < 0)
        return [
            (n, n < 0 or n >> 32 != 0) for n in (add, again, subtract, borrow, reversed_, other)
        ]

    for n in range(6):
        exact = [steps(x, y)[n] for x, y in zip(a.tolist(), b.tolist(), strict=True)]
        values = [bounded(v, 0, WORD) if clamp else v & WORD for v, _ in exact]
        np.testing.assert_array_equal(got[n], np.array(values, np.uint32), err_msg=str(n))
        np.testing.assert_array_equal(got[6 + n], np.array([c for _, c in exact], np.uint32))


def wide_sources() -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(9)
    a, b = random.integers(0, 2**64, (2, 2048), dtype=np.uint64)
    a[:4], b[:6] = [0, 2**64 - 1, 2**63, 1], [0, 2**64 - 1, 2**63, 1, 64, 63]
    return a, b


def test_64_bit_operations(snippets):
    a, b = wide_sources()
    inputs = dict(zip((10, 11, 12, 13), (*split(a), *split(b)), strict=True))
    table: dict[str, Callable[[int, int], int]] = {
        "v_lshlrev_b64 {}, v10, v[12:13]": lambda a, b: b << (a & 63),
        "v_lshrrev_b64 {}, v10, v[12:13]": lambda a, b: b >> (a & 63),
        "v_ashrrev_i64 {}, v10, v[12:13]": lambda a, b: signed(b, 64) >> (a & 63),
        "v_lshl_add_u64 {}, v[10:11], 3, v[12:13]": lambda a, b: (a << 3) + b,
        "v_lshl_add_u64 {}, v[10:11], 0, -1": lambda a, b: a - 1,
        "v_mad_u64_u32 {}, s[8:9], v10, v12, v[12:13]": lambda a, b: (a & WORD) * (b & WORD) + b,
        "v_mad_i64_i32 {}, s[10:11], v10, v12, v[12:13]": lambda a, b: signed(a) * signed(b) + b,
        "v_mov_b64 {}, v[12:13]": lambda a, b: b,
        "v_pk_mov_b32 {}, v[10:11], v[12:13] op_sel:[1,0]": lambda a, b: a >> 32 | b << 32,
        "v_qsad_pk_u16_u8 {}, v[10:11], v12, v[12:13]": lambda a, b: sum(
            (sad(a >> 8 * n & WORD, b & WORD, b >> 16 * n & 0xFFFF) & 0xFFFF) << 16 * n
            for n in range(4)
        ),
        "v_mqsad_pk_u16_u8 {}, v[10:11], v12, v[12:13]": lambda a, b: sum(
            (masked_sad(a >> 8 * n & WORD, b & WORD, b >> 16 * n & 0xFFFF) & 0xFFFF) << 16 * n
            for n in range(4)
        ),
    }
    code = "".join(
        text.format(f"v[{20 + 2 * n}:{21 + 2 * n}]") + "\n" for n, text in enumerate(table)
    )
    code += "v_mov_b32 v60, 0\ns_nop 4\nv_cndmask_b32_e64 v60, v60, 1, s[8:9]\n"
    outputs = [f"v{20 + n}" for n in range(2 * len(table))] + ["v60"]
    got = over(snippets, code, inputs, outputs)
    pairs = list(zip(a.tolist(), b.tolist(), strict=True))
    for n, (text, function) in enumerate(table.items()):
        expected = np.array([function(x, y) & (2**64 - 1) for x, y in pairs], np.uint64)
        np.testing.assert_array_equal(join(got[2 * n], got[2 * n + 1]), expected, err_msg=text)
    carry = [((x & WORD) * (y & WORD) + y) >> 64 for x, y in pairs]
    np.testing.assert_array_equal(got[-1], np.array(carry, np.uint32))


def test_four_masked_sums_of_differences(snippets):
    a, b = wide_sources()
    c = np.roll(a, 3)
    values = (*split(a), split(b)[0], *split(c), *split(b))
    code = "v_mqsad_u32_u8 v[20:23], v[10:11], v12, v[14:17]\n"
    inputs = dict(zip((10, 11, 12, 14, 15, 16, 17), values, strict=True))
    got = over(snippets, code, inputs, ("v20", "v21", "v22", "v23"))
    for n, lanes in enumerate(got):
        addend = values[3 + n].tolist()
        expected = [
            masked_sad(x >> 8 * n & WORD, y, z) & WORD
            for x, y, z in zip(a.tolist(), values[2].tolist(), addend, strict=True)
        ]
        np.testing.assert_array_equal(lanes, np.array(expected, np.uint32))
