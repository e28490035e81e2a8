# SPDX-License-Identifier: MIT
"""8-bit floats without scales, fp16 and bf16: every code, against the formats' definition."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from lanes import FP16_OVFL, doubles, over, singles, special_singles
from narrow_floats import BFLOAT, FORMATS, HALF, Narrow, all_upper_halves, boundaries

CODES = np.arange(256, dtype=np.uint32)
EIGHT_BITS = [(name, arch) for name in ("fp8", "bf8") for arch in ("gfx942", "gfx950")]
TORCH = {
    ("fp8", "gfx950"): torch.float8_e4m3fn,
    ("bf8", "gfx950"): torch.float8_e5m2,
    ("fp8", "gfx942"): torch.float8_e4m3fnuz,
    ("bf8", "gfx942"): torch.float8_e5m2fnuz,
}


def assert_codes(form: Narrow, got: np.ndarray, expected: np.ndarray) -> None:
    wrong = np.flatnonzero(~form.same(got, expected))
    assert wrong.size == 0, (
        f"{wrong.size} of {got.size}, first at {wrong[0]}: "
        f"got {got[wrong[0]]:#x}, expected {expected[wrong[0]]:#x}"
    )


@pytest.mark.parametrize(("name", "arch"), EIGHT_BITS)
def test_every_8_bit_code_widens_from_every_byte(snippets, name, arch):
    inputs = {10: CODES | CODES << 8 | (255 - CODES) << 16 | CODES << 24}
    code = f"v_cvt_f32_{name}_e32 v20, v10\n" + "".join(
        f"v_cvt_f32_{name}_sdwa v{20 + byte}, v10 src0_sel:BYTE_{byte}\n" for byte in (1, 2, 3)
    )
    got = over(snippets, code, inputs, ("v20", "v21", "v22", "v23"), arch=arch)
    expected = FORMATS[name, arch].decode(CODES).astype(np.float32)
    via_torch = torch.from_numpy(CODES.astype(np.uint8)).view(TORCH[name, arch]).float().numpy()
    np.testing.assert_array_equal(expected, via_torch)
    for byte, lanes in enumerate(got):
        wanted = expected[::-1] if byte == 2 else expected
        np.testing.assert_array_equal(lanes.view(np.float32), wanted)


@pytest.mark.parametrize(("name", "arch"), EIGHT_BITS)
def test_pairs_of_8_bit_codes_widen_from_either_word(snippets, name, arch):
    other = (CODES * 7 + 3) & 255
    code = (
        f"v_cvt_pk_f32_{name}_e32 v[20:21], v10\n"
        f"v_cvt_pk_f32_{name}_sdwa v[22:23], v10 src0_sel:WORD_1\n"
    )
    inputs = {10: CODES | other << 8 | other << 16 | CODES << 24}
    got = over(snippets, code, inputs, ("v20", "v21", "v22", "v23"), arch=arch)
    form = FORMATS[name, arch]
    for lanes, codes in zip(got, (CODES, other, other, CODES), strict=True):
        np.testing.assert_array_equal(lanes.view(np.float32), form.decode(codes).astype("f4"))


@pytest.mark.parametrize("saturate", [False, True])
@pytest.mark.parametrize(("name", "arch"), EIGHT_BITS)
def test_fp32_narrows_to_8_bits(snippets, name, arch, saturate):
    form = FORMATS[name, arch]
    values = np.concatenate([all_upper_halves(), boundaries(form), special_singles()])
    old = np.full(values.shape, 0xABCD1234, np.uint32)
    code = (FP16_OVFL if saturate else "") + (
        f"v_mov_b32 v21, v20\n"
        f"v_cvt_pk_{name}_f32 v20, v10, -v10\n"
        f"v_cvt_pk_{name}_f32 v21, |v10|, v10 op_sel:[0,0,1]\n"
    )
    low, high = over(snippets, code, {10: values, 20: old}, ("v20", "v21"), arch=arch)
    expected = form.encode(doubles(values), saturate=saturate)
    opposite = form.encode(-doubles(values), saturate=saturate)
    size = form.encode(np.abs(doubles(values)), saturate=saturate)
    assert_codes(form, low & 255, expected)
    assert_codes(form, low >> 8 & 255, opposite)
    assert (low >> 16 == 0xABCD).all()
    assert_codes(form, high >> 16 & 255, size)
    assert_codes(form, high >> 24, expected)
    assert (high & 0xFFFF == 0x1234).all()
    fits = np.abs(values) <= form.magnitudes[-1]
    via = torch.from_numpy(values.copy()).to(TORCH[name, arch]).view(torch.uint8).numpy()
    assert_codes(form, (low & 255)[fits], via[fits].astype(np.uint32))


@pytest.mark.parametrize(("name", "arch"), EIGHT_BITS)
@pytest.mark.parametrize("byte", [0, 1, 2, 3])
def test_stochastic_rounding_to_8_bits_adds_the_upper_random_bits(snippets, name, arch, byte):
    form = FORMATS[name, arch]
    random = np.random.default_rng(byte)
    values = np.concatenate([boundaries(form), special_singles(512)])
    values = values[np.isfinite(values)]
    draws = random.integers(0, 2**32, values.size, dtype=np.uint64).astype(np.uint32)
    draws[::5] = 0
    draws[1::5] = 0xFFFFFFFF
    old = np.full(values.shape, 0x11223344, np.uint32)
    selection = f"op_sel:[0,0,{byte & 1},{byte >> 1}]"
    (got,) = over(
        snippets, f"v_cvt_sr_{name}_f32 v20, v10, v11 {selection}\n",
        {10: values, 11: draws, 20: old}, arch=arch,
    )  # fmt: skip
    expected = np.array(
        [form.encode_random(float(x), int(r)) for x, r in zip(values, draws, strict=True)]
    )
    assert_codes(form, got >> (8 * byte) & 255, expected)
    mask = np.uint32(0xFFFFFFFF ^ (0xFF << 8 * byte))
    assert ((got & mask) == (old & mask)).all()


@pytest.mark.parametrize(("form", "name"), [(HALF, "f16"), (BFLOAT, "bf16")])
def test_stochastic_rounding_to_16_bits_adds_the_upper_random_bits(snippets, form, name):
    random = np.random.default_rng(3)
    values = special_singles(2048)
    values = values[np.isfinite(values)]
    draws = random.integers(0, 2**32, values.size, dtype=np.uint64).astype(np.uint32)
    old = np.full(values.shape, 0x11223344, np.uint32)
    code = (
        f"v_mov_b32 v21, v20\nv_cvt_sr_{name}_f32 v20, v10, v11\n"
        f"v_cvt_sr_{name}_f32 v21, v10, v11 op_sel:[0,0,1]\n"
    )
    low, high = over(snippets, code, {10: values, 11: draws, 20: old}, ("v20", "v21"))
    expected = np.array(
        [form.encode_random(float(x), int(r)) for x, r in zip(values, draws, strict=True)]
    )
    assert_codes(form, low & 0xFFFF, expected)
    assert (low >> 16 == 0x1122).all()
    assert_codes(form, high >> 16, expected)
    assert (high & 0xFFFF == 0x3344).all()


def test_every_fp16_widens_to_fp32(snippets):
    codes = np.arange(65536, dtype=np.uint32)
    code = "v_cvt_f32_f16 v20, v10\nv_cvt_f32_f16_sdwa v21, v11 src0_sel:WORD_1\n"
    low, high = over(snippets, code, {10: codes, 11: codes << 16}, ("v20", "v21"))
    expected = codes.astype(np.uint16).view(np.float16).astype(np.float32)
    np.testing.assert_array_equal(low.view(np.float32), expected)
    np.testing.assert_array_equal(high.view(np.float32), expected)


def test_every_bf16_widens_to_fp32(snippets):
    codes = np.arange(65536, dtype=np.uint32)
    (got,) = over(snippets, "v_cvt_f32_bf16 v20, v10\n", {10: codes | 0xABCD0000})
    np.testing.assert_array_equal(got, codes << 16)


def test_fp32_narrows_to_fp16_in_four_ways(snippets):
    values = np.concatenate([all_upper_halves(), boundaries(HALF), special_singles()])
    code = (
        "v_cvt_f16_f32 v20, v10\n"
        "v_cvt_pk_f16_f32 v21, v10, -v10\n"
        "v_cvt_pkrtz_f16_f32 v22, v10, v10\n" + FP16_OVFL + "v_cvt_f16_f32 v23, v10\n"
    )
    got = over(snippets, code, {10: values}, ("v20", "v21", "v22", "v23"))
    with np.errstate(over="ignore", invalid="ignore"):
        expected = values.astype(np.float16).view(np.uint16).astype(np.uint32)
    assert_codes(HALF, got[0], expected)
    assert_codes(HALF, got[1] & 0xFFFF, expected)
    assert_codes(HALF, got[1] >> 16, expected ^ 0x8000)
    assert_codes(HALF, got[3], HALF.encode(doubles(values), saturate=True))
    cut = HALF.decode(got[2] & 0xFFFF)
    finite = np.isfinite(values)
    size, kept = np.abs(doubles(values[finite])), np.abs(cut[finite])
    assert (kept <= size).all()
    following = HALF.decode(np.minimum((got[2][finite] & 0x7FFF) + 1, 0x7C00))
    assert ((following > size) | (kept == 65504)).all()


def test_fp32_pairs_narrow_to_bf16(snippets):
    values = np.concatenate([all_upper_halves(), boundaries(BFLOAT), special_singles(8192)])
    (got,) = over(snippets, "v_cvt_pk_bf16_f32 v20, v10, -v10\n", {10: values})
    via = torch.from_numpy(values.copy()).bfloat16().view(torch.uint16).numpy().astype(np.uint32)
    assert_codes(BFLOAT, got & 0xFFFF, via)
    assert_codes(BFLOAT, got >> 16, via ^ 0x8000)


@pytest.mark.parametrize("mode", [1, 2, 3])
def test_fp16_rounding_follows_mode(snippets, mode):
    values = singles(np.concatenate([boundaries(HALF), special_singles(4096)]))
    values = values[np.isfinite(values)]
    code = f"s_setreg_imm32_b32 hwreg(HW_REG_MODE, 2, 2), {mode}\nv_cvt_f16_f32 v20, v10\n"
    (got,) = over(snippets, code, {10: values})
    result, exact = HALF.decode(got), doubles(values)
    nearest = HALF.decode(HALF.encode(exact))
    if mode == 1:
        assert (result >= exact).all()
    elif mode == 2:
        assert (result <= exact).all()
    else:
        assert (np.abs(result) <= np.abs(exact)).all()
    representable = nearest == exact
    np.testing.assert_array_equal(result[representable], exact[representable])
    apart = np.abs((got & 0x7FFF).astype(int) - (HALF.encode(exact) & 0x7FFF).astype(int))
    assert apart.max() == 1
