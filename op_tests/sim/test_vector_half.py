# SPDX-License-Identifier: MIT
"""fp16 arithmetic: all 65,536 values, against numpy and fractions; and dots of two floats."""

from __future__ import annotations

import numpy as np
import pytest
from float_reference import fma, greater, lesser, median, to_single
from lanes import assert_floats, doubles, over, special_singles
from narrow_floats import BFLOAT, HALF

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")


def half(bits: np.ndarray) -> np.ndarray:
    return bits.astype(np.uint16).view(np.float16)


def all_halves() -> tuple[np.ndarray, np.ndarray]:
    a = np.arange(65536, dtype=np.uint32)
    return a, np.random.default_rng(5).permutation(a)


HALVES = {
    "v_add_f16": lambda a, b: a + b,
    "v_sub_f16": lambda a, b: a - b,
    "v_subrev_f16": lambda a, b: b - a,
    "v_mul_f16": lambda a, b: a * b,
}


@pytest.mark.parametrize("name", HALVES)
def test_fp16_of_two_sources_clears_the_upper_half(snippets, name):
    a, b = all_halves()
    code = f"v_mov_b32 v20, -1\n{name} v20, v10, v11\n{name}_e64 v21, -v10, |v11|\n"
    code += f"{name}_sdwa v22, v10, v11 dst_sel:WORD_1 dst_unused:UNUSED_PAD src0_sel:WORD_1 "
    code += "src1_sel:WORD_0\n"
    code += f"{name} v23, 1.0, v11\n"
    inputs = {10: a | a << 16, 11: b | 0xABCD0000}
    got = over(snippets, code, inputs, ("v20", "v21", "v22", "v23"))
    assert_floats(got[0].astype(np.uint16), HALVES[name](half(a), half(b)))
    assert (got[0] >> 16 == 0).all()
    assert_floats(got[1].astype(np.uint16), HALVES[name](-half(a), np.abs(half(b))))
    assert_floats((got[2] >> 16).astype(np.uint16), HALVES[name](half(a), half(b)))
    assert (got[2] & 0xFFFF == 0).all()
    assert_floats(got[3].astype(np.uint16), HALVES[name](np.float16(1), half(b)))


def test_fp16_minimum_maximum_and_median(snippets):
    a, b = all_halves()
    c = np.roll(a, 4321)
    code = "v_min_f16 v20, v10, v11\nv_max_f16 v21, v10, v11\n"
    for n, name in enumerate(("v_min3_f16", "v_max3_f16", "v_med3_f16")):
        code += f"v_mov_b32 v{22 + n}, v12\n{name} v{22 + n}, v10, v11, v12\n"
    inputs = {10: a, 11: b, 12: c | 0xABCD0000}
    got = over(snippets, code, inputs, [f"v{20 + n}" for n in range(5)])
    x, y, z = (HALF.decode(bits).astype(np.float32) for bits in (a, b, c))
    numbers = ~(np.isnan(x) | np.isnan(y) | np.isnan(z))  # fp16 signals in its own bit
    wide = [half(lanes).astype(np.float32) for lanes in got]
    assert_floats(wide[0][numbers], lesser(x, y)[numbers])
    assert_floats(wide[1][numbers], greater(x, y)[numbers])
    assert_floats(wide[2][numbers], lesser(lesser(x, y), z)[numbers])
    assert_floats(wide[3][numbers], greater(greater(x, y), z)[numbers])
    np.testing.assert_array_equal(wide[4][numbers], median(x, y, z)[numbers])
    assert all((lanes >> 16 == 0xABCD).all() for lanes in got[2:])
    quiet_nan = (a & 0x7E00) == 0x7E00
    np.testing.assert_array_equal(wide[0][quiet_nan & ~np.isnan(y)], y[quiet_nan & ~np.isnan(y)])
    signals = ((a & 0x7FFF) > 0x7C00) & ~quiet_nan
    assert np.isnan(wide[0][signals]).all()


def test_fp16_products_with_sums(snippets):
    a, b = all_halves()
    c = np.roll(b, 99)
    code = "v_mov_b32 v20, v12\nv_fma_f16 v20, v10, v11, v12\n"
    code += "v_mov_b32 v21, v12\nv_fma_f16 v21, v10, v11, v12 op_sel:[1,0,0,1]\n"
    code += "v_mad_legacy_f16 v22, v10, v11, v12\nv_mov_b32 v23, v12\nv_mac_f16 v23, v10, v11\n"
    swapped = np.roll(a, 7)
    inputs = {10: a | swapped << 16, 11: b, 12: c | 0xABCD0000}
    got = over(snippets, code, inputs, ("v20", "v21", "v22", "v23"))
    x, y, z = HALF.decode(a), HALF.decode(b), HALF.decode(c)
    fused = HALF.encode(x * y + z)  # fp64 holds enough of it
    assert HALF.same(got[0] & 0xFFFF, fused).all()
    assert (got[0] >> 16 == 0xABCD).all()
    assert HALF.same(got[1] >> 16, HALF.encode(HALF.decode(swapped) * y + z)).all()
    assert (got[1] & 0xFFFF == c).all()
    rounded = half(a) * half(b) + half(c)
    assert_floats(got[2].astype(np.uint16), rounded)
    assert_floats(got[3].astype(np.uint16), rounded)


def test_older_fp16_products_with_sums(snippets):
    a, b = all_halves()
    c = np.roll(b, 55)
    code = "v_mov_b32 v20, v12\nv_mad_f16 v20, v10, -v11, v12\n"
    code += "v_madak_f16 v21, v10, v11, 0x4248\nv_madmk_f16 v22, v10, 0x4248, v12\n"
    code += "v_fma_legacy_f16 v23, v10, v11, v12\nv_mov_b32 v24, v13\nv_pk_fmac_f16 v24, v10, v11\n"
    inputs = {10: a | b << 16, 11: b | a << 16, 12: c | 0xABCD0000, 13: c | c << 16}
    got = over(snippets, code, inputs, [f"v{20 + n}" for n in range(5)])
    pi = np.float16(3.140625)
    x, y, z = half(a), half(b), half(c)
    assert_floats((got[0] & 0xFFFF).astype(np.uint16), x * -y + z)
    assert (got[0] >> 16 == 0xABCD).all()
    assert_floats(got[1].astype(np.uint16), x * y + pi)
    assert_floats(got[2].astype(np.uint16), x * pi + z)
    fused = HALF.encode(HALF.decode(a) * HALF.decode(b) + HALF.decode(c))
    assert HALF.same(got[3], fused).all()
    assert HALF.same(got[4] & 0xFFFF, fused).all()
    assert HALF.same(got[4] >> 16, fused).all()


def test_fp16_sines_count_in_turns(snippets):
    bits = np.arange(65536, dtype=np.uint32)
    x = HALF.decode(bits)
    inside = np.abs(x) <= 256
    sine, cosine = over(
        snippets, "v_sin_f16 v20, v10\nv_cos_f16 v21, v10\n", {10: bits}, ("v20", "v21")
    )
    angle = (x - np.rint(x)) * 2 * np.pi
    for lanes, function in ((sine, np.sin), (cosine, np.cos)):
        assert HALF.same(lanes[inside], HALF.encode(function(angle[inside]))).all()


def test_fp16_of_one_source(snippets):
    bits = np.arange(65536, dtype=np.uint32)
    x = HALF.decode(bits)
    reference = {
        "v_trunc_f16": np.trunc, "v_ceil_f16": np.ceil, "v_floor_f16": np.floor,
        "v_rndne_f16": np.rint, "v_sqrt_f16": np.sqrt, "v_rcp_f16": lambda x: 1 / x,
        "v_rsq_f16": lambda x: 1 / np.sqrt(x), "v_exp_f16": np.exp2, "v_log_f16": np.log2,
        "v_fract_f16": lambda x: np.minimum(x - np.floor(x), 1 - 2.0**-11),
        "v_frexp_mant_f16": lambda x: np.where(np.isfinite(x), np.frexp(x)[0], x),
    }  # fmt: skip
    code = "".join(f"{name} v{20 + n}, v10\n" for n, name in enumerate(reference))
    code += "v_frexp_exp_i16_f16 v40, v10\nv_ldexp_f16 v41, v10, v11\n"
    power = np.random.default_rng(1).integers(-30, 30, 65536)
    inputs = {10: bits, 11: (power & 0xFFFF).astype(np.uint32)}
    outputs = [f"v{20 + n}" for n in range(len(reference))] + ["v40", "v41"]
    got = over(snippets, code, inputs, outputs)
    for lanes, function in zip(got, reference.values(), strict=False):
        assert HALF.same(lanes, HALF.encode(function(x))).all()
    exponents = np.where(np.isfinite(x), np.frexp(x)[1], 0)
    np.testing.assert_array_equal(got[-2].astype(np.uint16).view(np.int16), exponents)
    assert HALF.same(got[-1], HALF.encode(x * 2.0**power)).all()


def test_mixed_fused_products_take_fp16_where_op_sel_hi_says(snippets):
    bits = np.arange(65536, dtype=np.uint32)
    other, c = np.roll(bits, 777), special_singles(65536)
    code = (
        "v_fma_mix_f32 v20, v10, v11, v12\n"
        "v_fma_mix_f32 v21, v10, -v10, v12 op_sel:[0,1,0] op_sel_hi:[1,1,0]\n"
        "v_mov_b32 v22, v10\n"
        "v_fma_mixlo_f16 v22, v10, |v10|, v12 op_sel:[1,0,0] op_sel_hi:[1,1,0]\n"
        "v_mov_b32 v23, v10\nv_fma_mixhi_f16 v23, v10, v10, v10 op_sel_hi:[1,1,1]\n"
    )
    single = special_singles(65536, seed=8)
    inputs = {10: bits | other << 16, 11: single, 12: c}
    got = over(snippets, code, inputs, ("v20", "v21", "v22", "v23"))
    low, high, z = HALF.decode(bits), HALF.decode(other), doubles(c)
    pick = slice(0, None, 37)
    as_float = (bits | other << 16).view(np.float32)
    plain = [
        to_single(fma(float(x), float(y), float(w)))
        for x, y, w in zip(as_float[pick], single[pick], c[pick], strict=True)
    ]
    assert_floats(got[0][pick], np.array(plain, np.float32))
    mixed = [
        to_single(fma(float(x), float(-y), float(w)))
        for x, y, w in zip(low[pick], high[pick], z[pick], strict=True)
    ]
    assert_floats(got[1][pick], np.array(mixed, np.float32))
    third = [
        to_single(fma(float(x), float(y), float(w)))
        for x, y, w in zip(high[pick], np.abs(low[pick]), z[pick], strict=True)
    ]
    assert HALF.same(got[2][pick] & 0xFFFF, HALF.encode(doubles(np.array(third)))).all()
    assert (got[2] >> 16 == other).all()
    squares = HALF.encode((low * low + low).astype(np.float32))
    assert HALF.same(got[3] >> 16, squares).all()
    assert (got[3] & 0xFFFF == bits).all()


@pytest.mark.parametrize(("name", "form"), [("f16", HALF), ("bf16", BFLOAT)])
def test_dots_of_two_floats_sum_in_fp32(snippets, name, form):
    random = np.random.default_rng(6)
    values = random.standard_normal((4, 2048))
    a, b, c, d = (form.encode(row).astype(np.uint32) for row in values)
    addend = random.standard_normal(2048).astype(np.float32)
    code = f"v_dot2_f32_{name} v20, v10, v11, v12\nv_mov_b32 v21, v12\n"
    code += f"v_dot2c_f32_{name} v21, v10, v11\n"
    code += f"v_dot2_f32_{name} v22, v10, v11, v12 neg_lo:[1,0,0] neg_hi:[0,1,0]\n"
    inputs = {10: a | b << 16, 11: c | d << 16, 12: addend}
    got = over(snippets, code, inputs, ("v20", "v21", "v22"))
    first = (form.decode(a) * form.decode(c)).astype(np.float32)
    second = (form.decode(b) * form.decode(d)).astype(np.float32)
    in_order = (addend + first) + second
    assert_floats(got[0], in_order if name == "f16" else (first + second) + addend)
    assert_floats(got[1], in_order)
    assert_floats(
        got[2], (addend - first) - second if name == "f16" else (-first - second) + addend
    )
