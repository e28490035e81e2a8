# SPDX-License-Identifier: MIT
"""Integer conversions, transcendental functions, division, pairs of fp32, odds and ends."""

from __future__ import annotations

import math

import numpy as np
import pytest
from float_reference import fma, to_single
from lanes import (
    assert_floats,
    doubles,
    join,
    over,
    special_integers,
    special_pairs,
    special_singles,
    split,
)
from narrow_floats import HALF

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")


def bounded(x: np.ndarray, low: float, high: float) -> np.ndarray:
    """Toward zero, saturating, NaN to 0."""
    return np.where(np.isnan(x), 0, np.clip(np.trunc(x), low, high)).astype(np.int64)


FROM_SINGLE = {
    "v_cvt_i32_f32": lambda x: bounded(x, -(2**31), 2**31 - 1),
    "v_cvt_u32_f32": lambda x: bounded(x, 0, 2**32 - 1),
    "v_cvt_flr_i32_f32": lambda x: bounded(np.floor(x), -(2**31), 2**31 - 1),
    "v_cvt_rpi_i32_f32": lambda x: bounded(
        np.floor(doubles(x.astype("f4") + np.float32(0.5))), -(2**31), 2**31 - 1
    ),
}


@pytest.mark.parametrize("name", FROM_SINGLE)
def test_fp32_becomes_integers(snippets, name):
    x = special_singles(8192)
    (got,) = over(snippets, f"{name} v20, v10\n", {10: x})
    expected = FROM_SINGLE[name](doubles(x)) & 0xFFFFFFFF
    np.testing.assert_array_equal(got, expected.astype(np.uint32))


def test_integers_become_floats(snippets):
    bits = special_integers(4096)
    table = {
        "v_cvt_f32_i32": bits.view(np.int32),
        "v_cvt_f32_u32": bits,
        **{f"v_cvt_f32_ubyte{n}": bits >> 8 * n & 255 for n in range(4)},
        "v_cvt_off_f32_i4": np.where(bits & 8, (bits & 15).astype(int) - 16, bits & 15) / 16,
    }
    code = "".join(f"{name} v{20 + n}, v10\n" for n, name in enumerate(table))
    code += "v_cvt_f64_i32 v[30:31], v10\nv_cvt_f64_u32 v[32:33], v10\n"
    code += "v_cvt_f16_u16 v34, v10\nv_cvt_f16_i16 v35, v10\n"
    outputs = [f"v{20 + n}" for n in range(len(table))] + [f"v{n}" for n in range(30, 36)]
    got = over(snippets, code, {10: bits}, outputs)
    for lanes, (name, values) in zip(got, table.items(), strict=False):
        np.testing.assert_array_equal(lanes.view("f4"), values.astype(np.float32), err_msg=name)
    np.testing.assert_array_equal(join(*got[-6:-4]).view("f8"), bits.view("i4").astype("f8"))
    np.testing.assert_array_equal(join(*got[-4:-2]).view("f8"), bits.astype("f8"))
    shorts = (bits & 0xFFFF).astype(np.uint16)
    np.testing.assert_array_equal(got[-2], HALF.encode(shorts.astype("f8")))
    np.testing.assert_array_equal(got[-1], HALF.encode(shorts.view("i2").astype("f8")))


def test_every_fp16_becomes_integers(snippets):
    bits = np.arange(65536, dtype=np.uint32)
    x = HALF.decode(bits)
    code = "v_cvt_u16_f16 v20, v10\nv_cvt_i16_f16 v21, v10\n"
    code += "v_cvt_norm_u16_f16 v22, v10\nv_cvt_norm_i16_f16 v23, v10\n"
    code += "v_cvt_pknorm_i16_f16 v24, v10, v10\nv_cvt_pknorm_u16_f16 v25, v10, -v10\n"
    got = over(snippets, code, {10: bits}, [f"v{20 + n}" for n in range(6)])
    unorm = bounded(np.rint(np.clip(x, 0, 1) * 65535), 0, 65535)
    snorm = bounded(np.rint(np.clip(x, -1, 1) * 32767), -32767, 32767) & 0xFFFF
    np.testing.assert_array_equal(got[0], bounded(x, 0, 65535))
    np.testing.assert_array_equal(got[1], bounded(x, -32768, 32767) & 0xFFFF)
    np.testing.assert_array_equal(got[2], unorm)
    np.testing.assert_array_equal(got[3], snorm)
    np.testing.assert_array_equal(got[4], snorm | snorm << 16)
    opposite = bounded(np.rint(np.clip(-x, 0, 1) * 65535), 0, 65535)
    np.testing.assert_array_equal(got[5], unorm | opposite << 16)


def test_fp32_becomes_normalised_shorts_and_bytes(snippets):
    x = special_singles(4096)
    x[100:2000] = np.linspace(-1.1, 1.1, 1900, dtype=np.float32)
    x[2000:3000] = np.linspace(-3, 260, 1000, dtype=np.float32)
    place = special_integers(4096, seed=2)
    code = "v_cvt_pknorm_u16_f32 v20, v10, -v10\nv_cvt_pknorm_i16_f32 v21, v10, -v10\n"
    code += "v_cvt_pk_u8_f32 v22, v10, v11, v11\nv_mov_b32 v23, v11\n"
    code += "v_cvt_pkaccum_u8_f32 v23, v10, v11\n"
    got = over(snippets, code, {10: x, 11: place}, ("v20", "v21", "v22", "v23"))
    wide = doubles(x)
    for lanes, low, scale in ((got[0], 0, 65535), (got[1], -1, 32767)):
        halves = [
            bounded(np.rint(np.clip(side, low, 1) * scale), -32768, 65535) & 0xFFFF
            for side in (wide, -wide)
        ]
        np.testing.assert_array_equal(lanes, halves[0] | halves[1] << 16)
    shift = (place & 3).astype(np.int64) * 8
    byte = bounded(wide, 0, 255)
    expected = (place.astype(np.int64) & ~(255 << shift)) | byte << shift
    np.testing.assert_array_equal(got[2], expected)
    np.testing.assert_array_equal(got[3], expected)


def test_fp64_becomes_fp32_and_integers(snippets):
    random = np.random.default_rng(4)
    x = random.standard_normal(4096) * 10.0 ** random.integers(-50, 50, 4096)
    x[:8] = [0, -0.0, np.inf, -np.inf, np.nan, 2.0**31 - 0.5, -(2.0**31) - 0.5, 4294967295.9]
    low, high = split(x)
    code = "v_cvt_f32_f64 v20, v[10:11]\nv_cvt_i32_f64 v21, v[10:11]\n"
    code += "v_cvt_u32_f64 v22, v[10:11]\nv_cvt_f64_f32 v[24:25], v10\n"
    got = over(snippets, code, {10: low, 11: high}, ("v20", "v21", "v22", "v24", "v25"))
    assert_floats(got[0], x.astype(np.float32))
    np.testing.assert_array_equal(got[1], bounded(x, -(2**31), 2**31 - 1) & 0xFFFFFFFF)
    np.testing.assert_array_equal(got[2], bounded(x, 0, 2**32 - 1))
    assert_floats(join(*got[3:]), doubles(low.view(np.float32)))


def flushed(x: np.ndarray) -> np.ndarray:
    tiny = np.abs(x) < 2.0**-126
    return np.where(tiny, np.copysign(0.0, x), x)


def turns(x: np.ndarray) -> np.ndarray:
    """Radians of a fraction of a turn; from 256 turns on the hardware gives up."""
    inside = np.abs(x) <= 256
    return np.where(inside, (x - np.rint(x)) * 2 * np.pi, np.where(np.isfinite(x), 0.0, np.nan))


TRANSCENDENTAL = {
    "v_exp_f32": np.exp2,
    "v_exp_legacy_f32": np.exp2,
    "v_log_f32": np.log2,
    "v_log_legacy_f32": np.log2,
    "v_rcp_f32": lambda x: 1 / x,
    "v_rcp_iflag_f32": lambda x: 1 / x,
    "v_rsq_f32": lambda x: 1 / np.sqrt(x),
    "v_sqrt_f32": np.sqrt,
    "v_sin_f32": lambda x: np.sin(turns(x)),
    "v_cos_f32": lambda x: np.cos(turns(x)),
}


@pytest.mark.parametrize("name", TRANSCENDENTAL)
def test_transcendental_functions_are_correctly_rounded(snippets, name):
    random = np.random.default_rng(11)
    x = np.concatenate([
        special_singles(4096), np.linspace(-150, 130, 30000, dtype=np.float32),
        np.exp2(random.uniform(-120, 120, 20000)).astype(np.float32),
        (1 + random.uniform(-1e-3, 1e-3, 10000)).astype(np.float32),
    ])  # fmt: skip
    (got,) = over(snippets, f"{name} v20, v10\n", {10: x})
    exact = TRANSCENDENTAL[name](flushed(doubles(x)))
    expected = flushed(doubles(exact.astype(np.float32))).astype(np.float32)
    # Both sides compute in fp64; a tie of fp32 closer than that may fall either way.
    got = got.view(np.float32)
    differ = (got.view(np.uint32) != expected.view(np.uint32)) & ~(
        np.isnan(got) & np.isnan(expected)
    )
    assert differ.mean() < 1e-4
    off = np.abs(got[differ].astype("f8") - exact[differ]) / np.spacing(np.abs(expected[differ]))
    assert (off < 0.5001).all()


def divide(snippets, n: np.ndarray, d: np.ndarray) -> np.ndarray:
    """The sequence that compilers emit for an IEEE division."""
    code = """
  v_div_scale_f32 v12, s[8:9], v11, v11, v10
  v_div_scale_f32 v13, vcc, v10, v11, v10
  v_rcp_f32 v14, v12
  s_nop 0
  v_fma_f32 v15, -v12, v14, 1.0
  v_fma_f32 v14, v15, v14, v14
  v_mul_f32 v15, v13, v14
  v_fma_f32 v16, -v12, v15, v13
  v_fma_f32 v15, v16, v14, v15
  v_fma_f32 v12, -v12, v15, v13
  s_nop 4
  v_div_fmas_f32 v12, v12, v14, v15
  v_div_fixup_f32 v20, v12, v11, v10
"""
    return over(snippets, code, {10: n, 11: d})[0]


def test_fp32_division_comes_out_correctly_rounded(snippets):
    n, d = special_pairs(8192, seed=3)
    n[1200:3000] = np.random.default_rng(1).standard_normal(1800)
    d[1200:3000] = np.random.default_rng(2).standard_normal(1800)
    d[3000:3500] *= np.float32(2**-100)
    n[3500:4000] *= np.float32(2**100)
    assert_floats(divide(snippets, n, d), n / d)


def test_fp64_division_comes_out_correctly_rounded(snippets):
    random = np.random.default_rng(5)
    n = random.standard_normal(4096) * 10.0 ** random.integers(-200, 200, 4096)
    d = random.standard_normal(4096) * 10.0 ** random.integers(-200, 200, 4096)
    n[:6], d[:6] = [0, 1, np.inf, 1, -1, np.nan], [0, 0, np.inf, np.inf, 1e308, 1]
    n[6:64] = 5e-324
    code = """
  v_div_scale_f64 v[14:15], s[8:9], v[12:13], v[12:13], v[10:11]
  v_div_scale_f64 v[16:17], vcc, v[10:11], v[12:13], v[10:11]
  v_rcp_f64 v[18:19], v[14:15]
  s_nop 0
  v_fma_f64 v[20:21], -v[14:15], v[18:19], 1.0
  v_fma_f64 v[18:19], v[18:19], v[20:21], v[18:19]
  v_fma_f64 v[20:21], -v[14:15], v[18:19], 1.0
  v_fma_f64 v[18:19], v[18:19], v[20:21], v[18:19]
  v_mul_f64 v[20:21], v[16:17], v[18:19]
  v_fma_f64 v[14:15], -v[14:15], v[20:21], v[16:17]
  s_nop 4
  v_div_fmas_f64 v[14:15], v[14:15], v[18:19], v[20:21]
  v_div_fixup_f64 v[20:21], v[14:15], v[12:13], v[10:11]
"""
    inputs = dict(zip((10, 11, 12, 13), (*split(n), *split(d)), strict=True))
    assert_floats(join(*over(snippets, code, inputs, ("v20", "v21"))), n / d)


def test_fp16_division_is_put_right(snippets):
    n = np.arange(65536, dtype=np.uint32)
    d = np.random.default_rng(8).permutation(n)
    exact = HALF.encode(HALF.decode(n) / HALF.decode(d))
    code = "v_div_fixup_f16 v20, v12, v11, v10\nv_div_fixup_legacy_f16 v21, v12, v11, v10\n"
    quotient = HALF.encode(np.abs(HALF.decode(n) / HALF.decode(d)))
    inputs = {10: n, 11: d, 12: quotient.astype("u4"), 20: np.full(65536, 0xABCD0000, np.uint32)}
    got = over(snippets, code, inputs, ("v20", "v21"))
    assert HALF.same(got[0] & 0xFFFF, exact).all()
    assert (got[0] >> 16 == 0xABCD).all()
    assert HALF.same(got[1], exact).all()


def test_pairs_of_fp32_follow_op_sel_and_signs(snippets):
    a, b = special_pairs(1024)
    c, d = np.roll(a, 3), np.roll(b, 5)
    code = """
  v_pk_add_f32 v[20:21], v[10:11], v[12:13]
  v_pk_mul_f32 v[22:23], v[10:11], v[12:13] op_sel:[1,0] op_sel_hi:[0,1] neg_lo:[1,0] neg_hi:[0,1]
  v_pk_fma_f32 v[24:25], v[10:11], v[12:13], v[10:11] op_sel_hi:[0,1,1] neg_lo:[0,0,1]
  v_pk_mul_f32 v[26:27], v[10:11], 2.0 op_sel_hi:[1,0]
  s_mov_b32 s8, 3.0
  s_mov_b32 s9, 0.5
  v_pk_add_f32 v[28:29], v[10:11], s[8:9]
"""
    got = over(snippets, code, {10: a, 11: b, 12: c, 13: d}, [f"v{20 + n}" for n in range(10)])
    fused = [
        np.array([to_single(fma(*map(float, xyz))) for xyz in zip(*side, strict=True)], np.float32)
        for side in ((a, c, -a), (a, d, b))
    ]
    two, three, half = np.float32(2), np.float32(3), np.float32(0.5)
    expected = [a + c, b + d, -b * c, a * -d, *fused, a * two, b * two, a + three, b + half]
    for lanes, values in zip(got, expected, strict=True):
        assert_floats(lanes, values)


PAIRS = {
    "v_pk_add_f16": lambda a, b: a + b,
    "v_pk_mul_f16": lambda a, b: a * b,
    "v_pk_fma_f16": lambda a, b, c: a * b + c,
    "v_pk_min_f16": np.fmin,
    "v_pk_max_f16": np.fmax,
    "v_pk_minimum3_f16": lambda a, b, c: np.minimum(np.minimum(a, b), c),
    "v_pk_maximum3_f16": lambda a, b, c: np.maximum(np.maximum(a, b), c),
}


@pytest.mark.parametrize("name", PAIRS)
def test_pairs_of_fp16_follow_op_sel_and_signs(snippets, name):
    bits = np.arange(65536, dtype=np.uint32)
    quiet = np.where((bits & 0x7FFF) > 0x7C00, bits | 0x200, bits)
    low = [np.random.default_rng(n).permutation(quiet) for n in range(3)]
    high = [np.random.default_rng(n).permutation(quiet) for n in range(3, 6)]
    count = 3 if "fma" in name or "3" in name else 2
    operands = ", ".join(("v10", "v11", "v12")[:count])
    select, signs = ("1,0,1", "1,0,0") if count == 3 else ("1,0", "1,0")
    other = "0,1,0" if count == 3 else "0,1"
    code = f"{name} v20, {operands}\n{name} v21, {operands} op_sel:[{select}] "
    code += f"op_sel_hi:[{other}] neg_lo:[{signs}] neg_hi:[{other}]\n"
    inputs = {10 + n: low[n] | high[n] << 16 for n in range(3)}
    plain, crossed = over(snippets, code, inputs, ("v20", "v21"))
    first = [HALF.decode(x) for x in low]
    second = [HALF.decode(x) for x in high]
    cases = (
        (plain & 0xFFFF, first),
        (plain >> 16, second),
        (crossed & 0xFFFF, [-second[0], first[1], second[2]]),
        (crossed >> 16, [first[0], -second[1], first[2]]),
    )
    for lanes, values in cases:
        expected = HALF.encode(PAIRS[name](*values[:count]))
        zero = ((lanes | expected) & 0x7FFF) == 0  # numpy's minimum does not order zeros
        assert (HALF.same(lanes, expected) | zero).all()


def test_packs_of_fp16_join_halves(snippets):
    a, b = special_integers(4096), special_integers(4096, seed=1)
    code = "v_pack_b32_f16 v20, v10, v11\nv_pack_b32_f16 v21, v10, v11 op_sel:[1,0,0]\n"
    got = over(snippets, code, {10: a, 11: b}, ("v20", "v21"))
    np.testing.assert_array_equal(got[0], a & 0xFFFF | b << 16)
    np.testing.assert_array_equal(got[1], a >> 16 | b << 16)


def cube(x: float, y: float, z: float) -> tuple[float, float, float, float]:
    """Face, s, t and twice the major axis."""
    ax, ay, az = abs(x), abs(y), abs(z)
    if az >= ax and az >= ay:
        return (5.0, -x, -y, 2 * z) if z < 0 else (4.0, x, -y, 2 * z)
    if ay >= ax:
        return (3.0, x, -z, 2 * y) if y < 0 else (2.0, x, z, 2 * y)
    return (1.0, z, -y, 2 * x) if x < 0 else (0.0, -z, -y, 2 * x)


def test_cube_faces(snippets):
    values = np.random.default_rng(3).standard_normal((3, 4096)).astype(np.float32)
    code = "".join(
        f"v_cube{what}_f32 v{20 + n}, v10, v11, v12\n"
        for n, what in enumerate(("id", "sc", "tc", "ma"))
    )
    inputs = dict(zip((10, 11, 12), values, strict=True))
    got = over(snippets, code, inputs, [f"v{20 + n}" for n in range(4)])
    expected = np.array([cube(*map(float, xyz)) for xyz in values.T], np.float32).T
    for lanes, wanted in zip(got, expected, strict=True):
        assert_floats(lanes, np.ascontiguousarray(wanted))


def test_nop_and_sines_out_of_range(snippets):
    x = np.array([256, 257, -1e30, math.inf, -math.inf, math.nan], np.float32)
    got = over(snippets, "v_nop\nv_sin_f32 v20, v10\nv_cos_f32 v21, v10\n", {10: x}, ("v20", "v21"))
    assert_floats(np.abs(got[0].view("f4")), np.array([0, 0, 0, np.nan, np.nan, np.nan], "f4"))
    assert_floats(got[1], np.array([1, 1, 1, np.nan, np.nan, np.nan], "f4"))
