# SPDX-License-Identifier: MIT
"""fp32, fp64 and fp16 arithmetic against numpy and fractions."""

from __future__ import annotations

import math

import numpy as np
import pytest
from float_reference import fma, greater, lesser, median, to_single
from lanes import (
    assert_floats,
    doubles,
    join,
    over,
    set_mode,
    special_integers,
    special_pairs,
    special_singles,
    split,
)

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")


TWO = {
    "v_add_f32": lambda a, b: a + b,
    "v_sub_f32": lambda a, b: a - b,
    "v_subrev_f32": lambda a, b: b - a,
    "v_mul_f32": lambda a, b: a * b,
    "v_min_f32": lesser,
    "v_max_f32": greater,
    "v_mul_legacy_f32": lambda a, b: np.where((a == 0) | (b == 0), np.float32(0), a * b),
}


@pytest.mark.parametrize("name", TWO)
def test_fp32_of_two_sources(snippets, name):
    a, b = special_pairs()
    form = "" if name == "v_mul_legacy_f32" else "_e64"
    code = f"{name}{form} v20, v10, v11\n{name}{form} v21, -v10, |v11|\n"
    plain, modified = over(snippets, code, {10: a, 11: b}, ("v20", "v21"))
    assert_floats(plain, TWO[name](a, b).astype(np.float32))
    assert_floats(modified, TWO[name](-a, np.abs(b)).astype(np.float32))


ONE = {
    "v_trunc_f32": np.trunc,
    "v_ceil_f32": np.ceil,
    "v_floor_f32": np.floor,
    "v_rndne_f32": np.rint,
    "v_fract_f32": lambda x: np.minimum(x - np.floor(x), np.float32(1 - 2**-24)),
    "v_frexp_mant_f32": lambda x: np.where(np.isfinite(x), np.frexp(x)[0], x),
}


@pytest.mark.parametrize("name", ONE)
def test_fp32_of_one_source(snippets, name):
    x = special_singles(8192)
    (got,) = over(snippets, f"{name} v20, v10\n", {10: x})
    assert_floats(got, ONE[name](x).astype(np.float32))


def test_fp32_exponents_and_scaling(snippets):
    x, power = special_singles(4096), special_integers(4096).view(np.int32)
    power = np.where(np.arange(4096) % 2, power % 300, power)
    code = "v_frexp_exp_i32_f32 v20, v10\nv_ldexp_f32 v21, v10, v11\n"
    exponents, scaled = over(snippets, code, {10: x, 11: power.astype(np.int32)}, ("v20", "v21"))
    expected = np.where(np.isfinite(x), np.frexp(x)[1], 0)
    np.testing.assert_array_equal(exponents.view(np.int32), expected)
    clipped = np.clip(power, -400, 400)
    assert_floats(scaled, (doubles(x) * 2.0**clipped).astype(np.float32))


def test_fp32_minimum_maximum_and_median_of_three(snippets):
    a, b = special_pairs(2048)
    c = np.roll(a, 17)
    names = ("v_min3_f32", "v_max3_f32", "v_med3_f32", "v_minimum3_f32", "v_maximum3_f32")
    code = "".join(f"{name} v{20 + n}, v10, v11, v12\n" for n, name in enumerate(names))
    outputs = [f"v{20 + n}" for n in range(5)]
    got = over(snippets, code, {10: a, 11: b, 12: c}, outputs)
    finite = ~(np.isnan(a) | np.isnan(b) | np.isnan(c))
    assert_floats(got[0], lesser(lesser(a, b), c))
    assert_floats(got[1], greater(greater(a, b), c))
    # Ties of zeros have no order in a median.
    medians = median(a, b, c)
    zero = medians == 0
    assert_floats(got[2][~zero], medians[~zero].astype(np.float32))
    assert (got[2].view(np.float32)[zero] == 0).all()
    for lanes, reference in ((got[3], lesser), (got[4], greater)):
        assert_floats(lanes[finite], reference(reference(a, b), c)[finite])
        assert np.isnan(lanes.view(np.float32)[~finite]).all()


def test_fp32_fused_products_round_once(snippets):
    a, b = special_pairs(2048)
    c = np.roll(a, 29)
    close = slice(900, 1400)  # cancellation is where rounding twice would show
    with np.errstate(all="ignore"):
        c[close] = -(a[close] * b[close])
    code = (
        "v_fma_f32 v20, v10, v11, v12\nv_mov_b32 v21, v12\nv_fmac_f32 v21, v10, v11\n"
        "v_fma_f32 v22, -v10, |v11|, v12\n"
        "v_fmamk_f32 v23, v10, 0x40490fdb, v12\nv_fmaak_f32 v24, v10, v11, 0x40490fdb\n"
    )
    outputs = [f"v{20 + n}" for n in range(5)]
    got = over(snippets, code, {10: a, 11: b, 12: c}, outputs)
    pi = np.float32(np.pi)
    cases = ((a, b, c), (a, b, c), (-a, np.abs(b), c), (a, np.full_like(a, pi), c),
             (a, b, np.full_like(a, pi)))  # fmt: skip
    for lanes, (x, y, z) in zip(got, cases, strict=True):
        expected = [
            to_single(fma(float(p), float(q), float(r))) for p, q, r in zip(x, y, z, strict=True)
        ]
        assert_floats(lanes, np.array(expected, np.float32))


@pytest.mark.parametrize(("mode", "toward"), [(1, np.inf), (2, -np.inf), (3, 0)])
def test_fp32_rounding_follows_mode(snippets, mode, toward):
    random = np.random.default_rng(mode)
    a, b = random.standard_normal((2, 2048)).astype(np.float32)
    code = set_mode(0, 2, mode) + "v_mul_f32 v20, v10, v11\nv_add_f32 v21, v10, v11\n"
    product, total = over(snippets, code, {10: a, 11: b}, ("v20", "v21"))
    for lanes, exact in ((product, doubles(a) * b), (total, doubles(a) + b)):
        near = exact.astype(np.float32)
        if toward == np.inf:
            wrong = near < exact
        elif toward == -np.inf:
            wrong = near > exact
        else:
            wrong = np.abs(near) > np.abs(exact)
        assert wrong.any()
        expected = np.where(wrong, np.nextafter(near, np.float32(toward)), near)
        assert_floats(lanes, expected.astype(np.float32))


@pytest.mark.parametrize("denormals", [0, 1, 2, 3])
def test_fp32_denormals_follow_mode(snippets, denormals):
    tiny = np.array([0x00000001, 0x007FFFFF, 0x80400000, 0x00800000, 0x00C00000], np.uint32)
    a = np.tile(tiny, 2).view(np.float32)
    b = np.repeat(np.array([1.0, 0.5], np.float32), 5)
    code = set_mode(4, 2, denormals) + "v_mul_f32 v20, v10, v11\n"
    (got,) = over(snippets, code, {10: a, 11: b})
    smallest = np.float32(2**-126)
    taken = np.where((np.abs(a) < smallest) & ((denormals & 1) == 0), np.copysign(0, a), a)
    product = (taken * b).astype(np.float32)
    flushed = np.where(np.abs(product) < smallest, np.copysign(0, product), product)
    assert_floats(got, (product if denormals & 2 else flushed).astype(np.float32))


def test_clamp_bounds_results_and_zeroes_nan(snippets):
    a, b = special_pairs(1024)
    code = set_mode(8, 1, 1) + "v_add_f32 v20, v10, v11 clamp\n"
    code += set_mode(8, 1, 0) + "v_add_f32 v21, v10, v11 clamp\n"
    zeroed, kept = over(snippets, code, {10: a, 11: b}, ("v20", "v21"))
    total = a + b
    bounded = np.where(total > 0, np.minimum(total, 1), 0).astype(np.float32)
    assert_floats(zeroed, np.where(np.isnan(total), 0, bounded).astype(np.float32))
    assert_floats(kept, np.where(np.isnan(total), np.nan, bounded).astype(np.float32))


def test_output_scale_works_only_without_ieee_and_denormals(snippets):
    a, b = special_singles(1024, 1)[512:], special_singles(1024, 2)[512:]
    code = "v_mul_f32 v20, v10, v11 mul:4\n" + set_mode(9, 1, 0) + set_mode(4, 2, 1)
    code += "v_mul_f32 v21, v10, v11 mul:2\nv_mul_f32 v22, v10, v11 mul:4\n"
    code += "v_mul_f32 v23, v10, v11 div:2\n"
    got = over(snippets, code, {10: a, 11: b}, ("v20", "v21", "v22", "v23"))
    assert_floats(got[0], a * b)
    product = a * b
    tiny = np.float32(2**-126)
    product = np.where(np.abs(product) < tiny, np.copysign(0, product), product)
    for lanes, factor in zip(got[1:], (2, 4, 0.5), strict=True):
        expected = (product * np.float32(factor) + np.float32(0)).astype(np.float32)
        flushed = np.where(np.abs(expected) < tiny, np.copysign(0, expected), expected)
        assert_floats(lanes, flushed.astype(np.float32))


def special_doubles(seed: int) -> np.ndarray:
    random = np.random.default_rng(seed)
    bits = random.integers(0, 2**64, 2048, dtype=np.uint64)
    bits[1024:] = (random.standard_normal(1024) * 8).view(np.uint64)
    special = (0, 1 << 63, 1, (1 << 52) - 1, 1 << 52, 0x7FF << 52, 0xFFF << 52, 0x7FF8 << 48,
               0x3FF << 52, 0x3FE << 52, 0x7FEFFFFFFFFFFFFF)  # fmt: skip
    bits[: len(special)] = special
    return np.roll(bits, seed * 5).view(np.float64)


DOUBLES = {
    "v_add_f64": lambda a, b: a + b,
    "v_mul_f64": lambda a, b: a * b,
    "v_min_f64": lesser,
    "v_max_f64": greater,
}


@pytest.mark.parametrize("name", DOUBLES)
def test_fp64_of_two_sources(snippets, name):
    a, b = special_doubles(0), special_doubles(1)
    inputs = dict(zip((10, 11, 12, 13), (*split(a), *split(b)), strict=True))
    code = f"{name} v[20:21], v[10:11], v[12:13]\n{name} v[22:23], -v[10:11], |v[12:13]|\n"
    got = over(snippets, code, inputs, ("v20", "v21", "v22", "v23"))
    assert_floats(join(*got[:2]), DOUBLES[name](a, b))
    assert_floats(join(*got[2:]), DOUBLES[name](-a, np.abs(b)))


def test_fp64_of_one_source_and_constants(snippets):
    x = special_doubles(2)
    low, high = split(x)
    reference = {
        "v_trunc_f64": np.trunc, "v_ceil_f64": np.ceil, "v_floor_f64": np.floor,
        "v_rndne_f64": np.rint, "v_sqrt_f64": np.sqrt, "v_rcp_f64": lambda x: 1 / x,
        "v_rsq_f64": lambda x: 1 / np.sqrt(x),
        "v_fract_f64": lambda x: np.minimum(x - np.floor(x), 1 - 2.0**-53),
        "v_frexp_mant_f64": lambda x: np.where(np.isfinite(x), np.frexp(x)[0], x),
    }  # fmt: skip
    code = "".join(
        f"{name} v[{20 + 2 * n}:{21 + 2 * n}], v[10:11]\n" for n, name in enumerate(reference)
    )
    code += "v_add_f64 v[60:61], v[10:11], 1.0\nv_mul_f64 v[62:63], v[10:11], -2\n"
    code += "v_frexp_exp_i32_f64 v64, v[10:11]\nv_ldexp_f64 v[66:67], v[10:11], 3\n"
    outputs = [f"v{n}" for n in (*range(20, 38), *range(60, 65), 66, 67)]
    got = over(snippets, code, {10: low, 11: high}, outputs)
    for n, function in enumerate(reference.values()):
        assert_floats(join(got[2 * n], got[2 * n + 1]), function(x))
    assert_floats(join(got[18], got[19]), x + 1)
    integer = np.int64(-2).astype(np.uint64).view(np.float64)  # an integer constant is its bits
    assert_floats(join(got[20], got[21]), x * integer)
    np.testing.assert_array_equal(
        got[22].view(np.int32), np.where(np.isfinite(x), np.frexp(x)[1], 0)
    )
    assert_floats(join(got[23], got[24]), x * 8)


def test_fp64_fused_products_round_once(snippets):
    a, b = special_doubles(3), special_doubles(4)
    c = -(a * b)
    c[:512] = special_doubles(5)[:512]
    values = (*split(a), *split(b), *split(c))
    code = "v_fma_f64 v[20:21], v[10:11], v[12:13], v[14:15]\nv_mov_b32 v22, v14\n"
    code += "v_mov_b32 v23, v15\nv_fmac_f64 v[22:23], v[10:11], v[12:13]\n"
    got = over(snippets, code, dict(zip(range(10, 16), values, strict=True)),
               ("v20", "v21", "v22", "v23"))  # fmt: skip

    def single(x: float, y: float, z: float) -> float:
        exact = fma(x, y, z)
        try:
            return float(exact)
        except OverflowError:
            return math.inf if exact > 0 else -math.inf

    expected = np.array([single(*map(float, xyz)) for xyz in zip(a, b, c, strict=True)])
    assert_floats(join(got[0], got[1]), expected)
    assert_floats(join(got[2], got[3]), expected)
