# SPDX-License-Identifier: MIT
"""All 198 v_cmp and v_cmpx."""

from __future__ import annotations

import math

import numpy as np
import pytest
from lanes import doubles, set_mode, special_integers, special_singles, split
from narrow_floats import HALF

FLOATS = ("f", "lt", "eq", "le", "gt", "lg", "ge", "o", "u", "nge", "nlg", "ngt", "nle", "neq",
          "nlt", "tru")  # fmt: skip
INTEGERS = ("f", "lt", "eq", "le", "gt", "ne", "ge", "t")
TYPES = ("f16", "f32", "f64", "i16", "u16", "i32", "u32", "i64", "u64")


def holds(predicate: str, a: float, b: float) -> bool:
    """What a predicate says, from its name."""
    unordered = math.isnan(a) or math.isnan(b)
    simple = {"lt": a < b, "eq": a == b, "le": a <= b, "gt": a > b, "ge": a >= b, "f": False,
              "tru": True, "t": True, "o": not unordered, "u": unordered,
              "lg": a < b or a > b, "ne": a != b}  # fmt: skip
    if predicate in simple:
        return simple[predicate]
    return not {"neq": a == b, **simple}.get(predicate[1:], a == b)


def operands(kind: str) -> tuple[dict[int, np.ndarray], list, list]:
    """Registers v10 to v13 and the numbers in them."""
    if kind in ("f16", "f32"):
        values = special_singles(64)[:32]
        a, b = np.repeat(values[:8], 8), np.tile(values[[0, 1, 8, 9, 15, 17, 18, 19]], 8)
        if kind == "f32":
            return {10: a, 12: b}, doubles(a).tolist(), doubles(b).tolist()
        first, second = HALF.encode(doubles(a)), HALF.encode(doubles(b))
        registers = {10: first.astype("u4") | 0x12340000, 12: second.astype("u4")}
        return registers, HALF.decode(first).tolist(), HALF.decode(second).tolist()
    if kind == "f64":
        special = np.array([0.0, -0.0, 1.5, -1.5, np.inf, -np.inf, np.nan, 5e-324])
        a, b = np.repeat(special, 8), np.tile(special, 8)
        low, high = split(a), split(b)
        return dict(zip((10, 11, 12, 13), (*low, *high), strict=True)), a.tolist(), b.tolist()
    bits = int(kind[1:])
    corners = special_integers(64, seed=bits).astype(np.uint64)[:8]
    corners[:4] = [0, 2**bits - 1, 2 ** (bits - 1), 2 ** (bits - 1) - 1]
    corners &= np.uint64(2**bits - 1)
    a, b = np.repeat(corners, 8), np.tile(corners, 8)
    numbers = [
        [int(x) - (1 << bits) if kind[0] == "i" and int(x) >> (bits - 1) else int(x) for x in side]
        for side in (a, b)
    ]
    registers = dict(zip((10, 11, 12, 13), (*split(a), *split(b)), strict=True))
    return registers, numbers[0], numbers[1]


def lane_mask(flags: list[bool]) -> int:
    return sum(1 << n for n, flag in enumerate(flags) if flag)


@pytest.mark.parametrize("kind", TYPES)
def test_compares_write_one_bit_per_active_lane(asm, kind):
    registers, a, b = operands(kind)
    active = 0xF0F0_FFFF_0FF0_7FFE
    pair = kind.endswith("64")
    first, second = ("v[10:11]", "v[12:13]") if pair else ("v10", "v12")
    names = FLOATS if kind[0] == "f" else INTEGERS
    code = (
        set_mode(4, 2, 3)
        + f"s_mov_b32 s4, {active & 0xFFFFFFFF:#x}\ns_mov_b32 s5, {active >> 32:#x}\n"
    )
    code += "s_mov_b64 exec, s[4:5]\ns_mov_b64 vcc, -1\n"
    for n, name in enumerate(names):
        code += f"v_cmp_{name}_{kind}_e64 s[{10 + 2 * n}:{11 + 2 * n}], {first}, {second}\n"
    code += f"v_cmp_{names[1]}_{kind}_e32 vcc, {first}, {second}\n"
    out = [f"s[{10 + 2 * n}:{11 + 2 * n}]" for n in range(len(names))]
    result = asm(code, v=registers, out=[*out, "vcc"])
    for n, name in enumerate((*names, names[1])):
        flags = [holds(name, x, y) for x, y in zip(a, b, strict=True)]
        got = result.scalar((*out, "vcc")[n])
        assert got == lane_mask(flags) & active, name


@pytest.mark.parametrize("kind", TYPES)
def test_cmpx_writes_exec_too(asm, kind):
    registers, a, b = operands(kind)
    first, second = ("v[10:11]", "v[12:13]") if kind.endswith("64") else ("v10", "v12")
    names = FLOATS if kind[0] == "f" else INTEGERS
    code = set_mode(4, 2, 3)
    for n, name in enumerate(names):
        code += f"s_mov_b64 exec, 0xffff\nv_cmpx_{name}_{kind}_e64 s[{10 + 2 * n}:{11 + 2 * n}], "
        code += f"{first}, {second}\ns_mov_b64 s[{50 + 2 * n}:{51 + 2 * n}], exec\n"
    places = [
        f"s[{base + 2 * n}:{base + 1 + 2 * n}]" for base in (10, 50) for n in range(len(names))
    ]
    result = asm(code, v=registers, out=places)
    for n, name in enumerate(names):
        flags = [holds(name, x, y) for x, y in zip(a, b, strict=True)]
        for place in (places[n], places[n + len(names)]):
            assert result.scalar(place) == lane_mask(flags) & 0xFFFF, name


@pytest.mark.parametrize("kind", ["f16", "f32", "f64"])
def test_class_tests_each_of_ten_kinds(asm, kind):
    mantissa, exponent = {"f16": (10, 5), "f32": (23, 8), "f64": (52, 11)}[kind]
    sign, top = 1 << (mantissa + exponent), ((1 << exponent) - 1) << mantissa
    quiet = 1 << (mantissa - 1)
    kinds = [top | 1, top | quiet, sign | top, sign | 1 << mantissa, sign | 1, sign, 0, 1,
             top - 1, top]  # fmt: skip
    values = np.array([kinds[lane % 10] for lane in range(64)], np.uint64)
    masks = np.array([1 << lane // 10 % 10 if lane < 60 else 0x3FF for lane in range(64)], "u4")
    source = "v[10:11]" if kind == "f64" else "v10"
    low, high = split(values)
    code = f"v_cmp_class_{kind}_e64 s[10:11], {source}, v12\n"
    code += f"v_cmpx_class_{kind}_e64 s[12:13], {source}, v12\ns_mov_b64 s[14:15], exec\n"
    result = asm(code, v={10: low, 11: high, 12: masks}, out=["s[10:11]", "s[12:13]", "s[14:15]"])
    expected = lane_mask([bool(int(masks[lane]) >> lane % 10 & 1) for lane in range(64)])
    assert [result.scalar(s) for s in ("s[10:11]", "s[12:13]", "s[14:15]")] == [expected] * 3


def test_compares_take_modifiers_and_selections(asm):
    a = special_singles(64, seed=3)
    words = special_integers(64, seed=4)
    code = set_mode(4, 2, 3) + "v_cmp_lt_f32_e64 s[10:11], -v10, |v11|\n"
    code += "v_cmp_eq_u32_sdwa s[12:13], v12, v13 src0_sel:BYTE_2 src1_sel:WORD_0\n"
    code += "v_cmp_gt_i16_sdwa vcc, sext(v12), v13 src0_sel:BYTE_1 src1_sel:WORD_1\n"
    b = np.roll(a, 5)
    bytes_of = words >> 16 & 255
    other = np.where(np.arange(64) % 2, bytes_of, words & 0xFFFF) | 0x00050000
    result = asm(code, v={10: a, 11: b, 12: words, 13: other}, out=["s[10:11]", "s[12:13]", "vcc"])
    assert result.scalar("s[10:11]") == lane_mask((-a < np.abs(b)).tolist())
    assert result.scalar("s[12:13]") == lane_mask((bytes_of == other & 0xFFFF).tolist())
    small = (words >> 8 & 255).astype(np.uint8).view(np.int8)
    assert result.scalar("vcc") == lane_mask((small > 5).tolist())
