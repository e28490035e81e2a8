# SPDX-License-Identifier: MIT
"""gfx950's scaled conversions, each against the definition of its formats."""

from __future__ import annotations

import numpy as np
import pytest
from lanes import doubles, over, special_singles
from narrow_floats import BFLOAT, FORMATS, HALF, Narrow, boundaries

WIDE = {"f32": None, "f16": HALF, "bf16": BFLOAT}
SCALES = (127, 120, 140, 0, 254, 255)


def narrow(name: str) -> Narrow:
    return FORMATS[name, "gfx950"]


def scale_bits(exponents: np.ndarray) -> np.ndarray:
    """Scales as fp32; the mantissa and the sign do not count."""
    return exponents.astype(np.uint32) << 23 | 0x80012345


def source_values(wide: str, form: Narrow) -> tuple[np.ndarray, np.ndarray]:
    """Bit patterns of a wide format that surround what a narrow one can say, and their values."""
    values = np.concatenate([boundaries(form), special_singles(512)])
    if WIDE[wide] is None:
        return values.view(np.uint32), doubles(values)
    bits = WIDE[wide].encode(doubles(values)).astype(np.uint32)
    return bits, WIDE[wide].decode(bits)


def scaled(values: np.ndarray, exponents: np.ndarray) -> np.ndarray:
    return np.where(exponents == 255, np.nan, values * 2.0 ** (127 - exponents.astype(int)))


def spread(bits: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Every value under every scale; scales other than 1 look at values that they bring back."""
    exponents = np.repeat(SCALES, bits.size)
    return np.tile(bits, len(SCALES)), np.tile(values, len(SCALES)), exponents


def check(form: Narrow, got: np.ndarray, expected: np.ndarray) -> None:
    same = form.same(got, expected)
    if form.specials == "finite":  # they take NaN as their largest; its sign says nothing
        largest = form.sign - 1
        same |= ((got & largest) == largest) & ((expected & largest) == largest)
    wrong = np.flatnonzero(~same)
    assert wrong.size == 0, (
        f"{wrong.size} of {got.size}, first at {wrong[0]}: "
        f"got {got[wrong[0]]:#x}, expected {expected[wrong[0]]:#x}"
    )


@pytest.mark.parametrize("wide", list(WIDE))
@pytest.mark.parametrize("name", ["fp8", "bf8", "fp4"])
def test_pairs_narrow_under_a_scale(snippets, wide, name):
    form = narrow(name)
    bits, values, exponents = spread(*source_values(wide, form))
    second = np.roll(bits, 1)
    second_values = np.roll(values, 1)
    if wide == "f32":
        inputs, operands = {10: bits, 11: second}, "v10, v11"
    else:
        inputs, operands = {10: bits | second << 16}, "v10"
    inputs |= {12: scale_bits(exponents), 20: np.full(bits.shape, 0x11223344, np.uint32)}
    places = 4 if name == "fp4" else 2
    code = "".join(f"v_mov_b32 v{20 + p}, v20\n" for p in range(1, places))
    for place in range(places):
        select = f"0,0,{place & 1},{place >> 1}"
        if name != "fp4":
            select = f"0,0,0,{place}" if wide == "f32" else f"0,0,{place}"
        op = f"v_cvt_scalef32_pk_{name}_{wide}"
        code += f"{op} v{20 + place}, {operands}, v12 op_sel:[{select}]\n"
    outputs = [f"v{20 + place}" for place in range(places)]
    width = 4 if name == "fp4" else 8
    expected = form.encode(scaled(values, exponents))
    expected_second = form.encode(scaled(second_values, exponents))
    for place, got in enumerate(over(snippets, code, inputs, outputs)):
        shift = place * 2 * width
        check(form, got >> shift & ((1 << width) - 1), expected)
        check(form, got >> (shift + width) & ((1 << width) - 1), expected_second)
        kept = np.uint32(0xFFFFFFFF ^ (((1 << 2 * width) - 1) << shift))
        assert ((got & kept) == (0x11223344 & int(kept))).all()


@pytest.mark.parametrize("wide", list(WIDE))
@pytest.mark.parametrize("name", ["fp8", "bf8"])
def test_one_value_narrows_at_random_under_a_scale(snippets, wide, name):
    form = narrow(name)
    bits, values, exponents = spread(*source_values(wide, form))
    finite = np.isfinite(values) & (exponents != 255)
    bits, values, exponents = bits[finite], values[finite], exponents[finite]
    draws = np.random.default_rng(1).integers(0, 2**32, bits.size, dtype=np.uint64).astype("u4")
    inputs = {10: bits, 11: draws, 12: scale_bits(exponents), 20: np.zeros_like(bits)}
    op = f"v_cvt_scalef32_sr_{name}_{wide}"
    (got,) = over(snippets, f"{op} v20, v10, v11, v12 op_sel:[0,0,1,1]\n", inputs)
    expected = [
        form.encode_random(x, int(r)) for x, r in zip(scaled(values, exponents), draws, strict=True)
    ]
    check(form, got >> 24, np.array(expected))
    assert (got & 0xFFFFFF == 0).all()


def following(draws: np.ndarray) -> np.ndarray:
    """The next random numbers: a shift register with the taps 197."""
    return (draws << np.uint32(1)) ^ np.where(draws >> 31, np.uint32(197), np.uint32(0))


@pytest.mark.parametrize("wide", list(WIDE))
def test_fp4_pairs_narrow_at_random_with_two_numbers(snippets, wide):
    form = narrow("fp4")
    bits, values = source_values(wide, form)
    bits, values = bits[np.isfinite(values)], values[np.isfinite(values)]
    draws = np.random.default_rng(2).integers(0, 2**32, bits.size, dtype=np.uint64).astype("u4")
    second, second_values = np.roll(bits, 3), np.roll(values, 3)
    scale = {12: scale_bits(np.full(bits.size, 126)), 20: np.zeros_like(bits)}
    if wide == "f32":
        inputs, source = {10: bits, 11: second, 13: draws}, "v[10:11]"
    else:
        inputs, source = {10: bits | second << 16, 13: draws}, "v10"
    code = f"v_cvt_scalef32_sr_pk_fp4_{wide} v20, {source}, v13, v12 op_sel:[0,0,1,0]\n"
    (got,) = over(snippets, code, inputs | scale)
    for shift, numbers, random in ((8, values, draws), (12, second_values, following(draws))):
        expected = [form.encode_random(x * 2, int(r)) for x, r in zip(numbers, random, strict=True)]
        check(form, got >> shift & 15, np.array(expected))


@pytest.mark.parametrize("wide", list(WIDE))
@pytest.mark.parametrize("name", ["fp8", "bf8", "fp4"])
def test_every_code_widens_under_a_scale(snippets, wide, name):
    form = narrow(name)
    codes = np.tile(np.arange(256, dtype=np.uint32), len(SCALES) + 2)
    exponents = np.repeat([*SCALES, 110, 131], 256)
    inputs = {10: codes | codes[::-1] << 8 | codes << 16 | codes[::-1] << 24,
              12: scale_bits(exponents)}  # fmt: skip
    if name == "fp4":
        inputs[10] = codes << 16
        code = f"v_cvt_scalef32_pk_{wide}_fp4 {{}}, v10, v12 op_sel:[0,1,0]\n"
        parts = (codes & 15, codes >> 4)
    else:
        code = f"v_cvt_scalef32_pk_{wide}_{name} {{}}, v10, v12 op_sel:[1,0,0]\n"
        parts = (codes, codes[::-1])
    pair = wide == "f32"
    got = over(snippets, code.format("v[20:21]" if pair else "v20"), inputs,
               ("v20", "v21") if pair else ("v20",))  # fmt: skip
    lanes = got if pair else (got[0] & 0xFFFF, got[0] >> 16)
    for part, result in zip(parts, lanes, strict=True):
        with np.errstate(over="ignore"):
            values = form.decode(part) * 2.0 ** (exponents - 127)
        values = np.where(exponents == 255, np.nan, values)
        check_wide(wide, result, values)


def check_wide(wide: str, got: np.ndarray, values: np.ndarray) -> None:
    if wide == "f32":
        with np.errstate(over="ignore"):
            np.testing.assert_array_equal(got.view(np.float32), values.astype(np.float32))
        return
    expected = WIDE[wide].encode(values)
    assert WIDE[wide].same(got, expected).all()


@pytest.mark.parametrize("wide", ["f32", "f16"])
@pytest.mark.parametrize("name", ["fp8", "bf8"])
def test_single_codes_widen_from_every_byte(snippets, wide, name):
    codes = np.arange(256, dtype=np.uint32)
    inputs = {
        10: codes | codes[::-1] << 8 | codes << 16 | codes[::-1] << 24,
        12: scale_bits(np.full(256, 129)),
        20: np.full(256, 0x11223344, np.uint32),
    }
    code = "".join(f"v_mov_b32 v{20 + byte}, v20\n" for byte in (1, 2, 3))
    for byte in range(4):
        high = f",{byte & 1}" if wide == "f16" else ",0"
        code += (
            f"v_cvt_scalef32_{wide}_{name} v{20 + byte}, v10, v12 "
            f"op_sel:[{byte & 1},{byte >> 1}{high}]\n"
        )
    got = over(snippets, code, inputs, ("v20", "v21", "v22", "v23"))
    for byte, lanes in enumerate(got):
        values = narrow(name).decode(codes[::-1] if byte & 1 else codes) * 4
        if wide == "f32":
            check_wide(wide, lanes, values)
        elif byte & 1:
            check_wide(wide, lanes >> 16, values)
            assert (lanes & 0xFFFF == 0x3344).all()
        else:
            check_wide(wide, lanes & 0xFFFF, values)
            assert (lanes >> 16 == 0x1122).all()


def six_bit_codes(registers: list[np.ndarray]) -> list[np.ndarray]:
    """The 32 codes in six registers."""
    whole = [sum(int(r[lane]) << 32 * n for n, r in enumerate(registers))
             for lane in range(registers[0].size)]  # fmt: skip
    return [np.array([bits >> 6 * n & 63 for bits in whole]) for n in range(32)]


def thirty_two(wide: str, form: Narrow) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """32 elements per lane and their values."""
    bits, values = source_values(wide, form)
    bits, values = bits[~np.isnan(values)], values[~np.isnan(values)]
    rows = [np.roll(bits, 5 * n)[:256] for n in range(32)]
    return rows, [np.roll(values, 5 * n)[:256] for n in range(32)]


def source_registers(wide: str, rows: list[np.ndarray]) -> dict[int, np.ndarray]:
    if wide == "f32":
        return {100 + n: row for n, row in enumerate(rows)}
    return {100 + n: rows[2 * n] | rows[2 * n + 1] << 16 for n in range(16)}


SIX = [f"v{20 + n}" for n in range(6)]


@pytest.mark.parametrize("wide", ["f16", "bf16"])
@pytest.mark.parametrize("name", ["fp6", "bf6"])
def test_thirty_two_values_narrow_to_six_bits(snippets, wide, name):
    form = narrow(name)
    rows, values = thirty_two(wide, form)
    inputs = source_registers(wide, rows) | {12: scale_bits(np.full(256, 128))}
    code = f"v_cvt_scalef32_pk32_{name}_{wide} v[20:25], v[100:115], v12\n"
    got = six_bit_codes(over(snippets, code, inputs, SIX))
    for codes, numbers in zip(got, values, strict=True):
        check(form, codes, form.encode(numbers / 2))


@pytest.mark.parametrize("name", ["fp6", "bf6"])
def test_two_times_sixteen_values_narrow_in_turns(snippets, name):
    form = narrow(name)
    rows, values = thirty_two("f32", form)
    inputs = {100 + n: row for n, row in enumerate(rows[:16])}
    inputs |= {120 + n: row for n, row in enumerate(rows[16:])}
    inputs[12] = scale_bits(np.full(256, 127))
    code = f"v_cvt_scalef32_2xpk16_{name}_f32 v[20:25], v[100:115], v[120:135], v12\n"
    got = six_bit_codes(over(snippets, code, inputs, SIX))
    for n, codes in enumerate(got):
        check(form, codes, form.encode(values[n // 2 + (16 if n % 2 else 0)]))


@pytest.mark.parametrize("wide", list(WIDE))
@pytest.mark.parametrize("name", ["fp6", "bf6"])
def test_thirty_two_values_narrow_at_random(snippets, wide, name):
    form = narrow(name)
    rows, values = thirty_two(wide, form)
    draws = np.random.default_rng(4).integers(0, 2**32, 256, dtype=np.uint64).astype("u4")
    inputs = source_registers(wide, rows) | {12: scale_bits(np.full(256, 127)), 13: draws}
    last = 131 if wide == "f32" else 115
    code = f"v_cvt_scalef32_sr_pk32_{name}_{wide} v[20:25], v[100:{last}], v13, v12\n"
    got = six_bit_codes(over(snippets, code, inputs, SIX))
    for codes, numbers in zip(got, values, strict=True):
        finite = np.isfinite(numbers)
        expected = [
            form.encode_random(x, int(r))
            for x, r in zip(numbers[finite], draws[finite], strict=True)
        ]
        check(form, codes[finite], np.array(expected))
        draws = following(draws)


@pytest.mark.parametrize("wide", list(WIDE))
@pytest.mark.parametrize("name", ["fp6", "bf6"])
def test_thirty_two_codes_widen(snippets, wide, name):
    form = narrow(name)
    codes = [(np.arange(256) * 11 + 7 * n) % 64 for n in range(32)]
    whole = [sum(int(codes[n][lane]) << 6 * n for n in range(32)) for lane in range(256)]
    inputs = {
        100 + d: np.array([w >> 32 * d & 0xFFFFFFFF for w in whole], np.uint32) for d in range(6)
    }
    inputs[12] = scale_bits(np.full(256, 125))
    count = 32 if wide == "f32" else 16
    code = f"v_cvt_scalef32_pk32_{wide}_{name} v[20:{19 + count}], v[100:105], v12\n"
    got = over(snippets, code, inputs, [f"v{20 + n}" for n in range(count)])
    for n in range(32):
        lanes = got[n] if wide == "f32" else got[n // 2] >> (16 * (n % 2)) & 0xFFFF
        check_wide(wide, lanes, form.decode(codes[n]) / 4)
