# SPDX-License-Identifier: MIT
"""MFMA of the simulator against numpy, with the layouts of the ISA guide written out again."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest

LANES = np.arange(64)
A, B, C, D = 8, 40, 80, 120  # first registers of the operands

# exponent bits, mantissa bits, bias, whether the all-ones code alone is NaN, -0 is the only NaN
SMALL = {
    "e4m3fn": (4, 3, 7, "one"),
    "e5m2": (5, 2, 15, "ieee"),
    "e4m3fnuz": (4, 3, 8, "zero"),
    "e5m2fnuz": (5, 2, 16, "zero"),
    "e2m3": (2, 3, 1, "none"),
    "e3m2": (3, 2, 3, "none"),
    "e2m1": (2, 1, 1, "none"),
}
OCP = ("e4m3fn", "e5m2", "e2m3", "e3m2", "e2m1")  # f8f6f4 formats by code


def bits_of(name: str) -> int:
    exponent, mantissa, _, _ = SMALL[name]
    return 1 + exponent + mantissa


def value_of(name: str, code: np.ndarray) -> np.ndarray:
    exponent_bits, mantissa_bits, bias, _ = SMALL[name]
    code = code.astype(np.int64)
    mantissa = (code & ((1 << mantissa_bits) - 1)) / 2.0**mantissa_bits
    exponent = code >> mantissa_bits & ((1 << exponent_bits) - 1)
    sign = np.where(code >> (mantissa_bits + exponent_bits) & 1, -1.0, 1.0)
    normal = (1 + mantissa) * 2.0 ** (exponent - bias)
    return sign * np.where(exponent == 0, mantissa * 2.0 ** (1 - bias), normal)


def finite_codes(name: str, rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Random codes of numbers: no NaN, no infinity."""
    exponent_bits, mantissa_bits, _, special = SMALL[name]
    codes = np.arange(1 << bits_of(name))
    magnitude = codes & ((1 << (exponent_bits + mantissa_bits)) - 1)
    top = (1 << exponent_bits) - 1
    good = {
        "one": magnitude != (1 << (exponent_bits + mantissa_bits)) - 1,
        "ieee": magnitude >> mantissa_bits != top,
        "zero": codes != 1 << (exponent_bits + mantissa_bits),
        "none": np.ones_like(codes, bool),
    }[special]
    return rng.choice(codes[good], shape)


def pack(codes: np.ndarray, bits: int) -> np.ndarray:
    """[64, elements] codes to [dwords, 64], element 0 lowest."""
    rows = []
    for lane in codes:
        number = sum(int(code) << bits * i for i, code in enumerate(lane))
        rows.append([number >> 32 * d & 0xFFFFFFFF for d in range(len(lane) * bits // 32)])
    return np.array(rows, np.uint32).T


@dataclass(frozen=True)
class Shape:
    """size x size x depth; `blocks` products side by side."""

    size: int
    depth: int
    blocks: int = 1

    @property
    def per_lane(self) -> int:
        return self.size * self.depth * self.blocks // 64

    @property
    def registers(self) -> int:
        return self.size * self.size * self.blocks // 64

    def operand(self, values: np.ndarray) -> np.ndarray:
        """[64, per_lane] as held by lanes to [blocks, size, depth]."""
        groups = values.reshape(64 // self.size, self.size, self.per_lane)
        if self.blocks > 1:
            return groups
        return groups.transpose(1, 0, 2).reshape(1, self.size, self.depth)

    def accumulator(self, matrix: np.ndarray) -> np.ndarray:
        """[blocks, size, size] to [registers, 64]."""
        result = np.zeros((self.registers, 64), matrix.dtype)
        for register in range(self.registers):
            if self.size == 4:
                result[register] = matrix[LANES // 4, register, LANES % 4]
                continue
            each = self.size * self.size // 64
            block, r = divmod(register, each)
            groups = 64 // self.size
            row = r // 4 * 4 * groups + LANES // self.size * 4 + r % 4
            result[register] = matrix[block, row, LANES % self.size]
        return result


def run(asm, text: str, a: np.ndarray, b: np.ndarray, c: np.ndarray, arch: str,
        extra: dict[int, object] | None = None) -> np.ndarray:  # fmt: skip
    """Executes `text` and returns the [registers, 64] that it leaves in D."""
    v: dict[int, object] = dict(extra or {})
    for first, rows in ((A, a), (B, b), (C, c)):
        v |= {first + i: row for i, row in enumerate(rows)}
    out = [f"v{D + i}" for i in range(len(c))]
    result = asm(text, v=v, out=out, arch=arch)
    return np.stack([result[name] for name in out])


def registers(first: int, count: int) -> str:
    return f"v{first}" if count == 1 else f"v[{first}:{first + count - 1}]"


def instruction(name: str, a: np.ndarray, b: np.ndarray, c: np.ndarray, rest: str = "") -> str:
    return f"""
  s_nop 4
  v_mfma_{name} {registers(D, len(c))}, {registers(A, len(a))}, {registers(B, len(b))}, \
{registers(C, len(c))} {rest}
"""


def product(shape: Shape, a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    left, right = shape.operand(a), shape.operand(b)
    return shape.accumulator(np.einsum("bik,bjk->bij", left, right) + c)


def assert_close(got: np.ndarray, expected: np.ndarray, scale: float) -> None:
    np.testing.assert_allclose(got.view(np.float32), expected, rtol=0, atol=scale)


def bfloat(rng: np.random.Generator, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    codes = rng.standard_normal(shape).astype(np.float32).view(np.uint32) >> 16
    return codes, (codes << 16).astype(np.uint32).view(np.float32).astype(float)


def half(rng: np.random.Generator, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    numbers = rng.standard_normal(shape).astype(np.float16)
    numbers.flat[:3] = [2**-24, -(2**-20), 0]  # denormals are kept
    return numbers.view(np.uint16), numbers.astype(float)


def single(rng: np.random.Generator, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    numbers = rng.standard_normal(shape).astype(np.float32)
    return numbers.view(np.uint32), numbers.astype(float)


KINDS: dict[str, tuple[int, Callable]] = {
    "bf16": (16, bfloat), "f16": (16, half), "f32": (32, single), "xf32": (32, single)
}  # fmt: skip
FLOAT_FORMS = [
    ("f32_16x16x32_bf16", Shape(16, 32), "gfx950"),
    ("f32_32x32x16_bf16", Shape(32, 16), "gfx950"),
    ("f32_16x16x32_f16", Shape(16, 32), "gfx950"),
    ("f32_32x32x16_f16", Shape(32, 16), "gfx950"),
    ("f32_16x16x16_bf16", Shape(16, 16), "gfx942"),
    ("f32_32x32x8_bf16", Shape(32, 8), "gfx942"),
    ("f32_16x16x16_f16", Shape(16, 16), "gfx950"),
    ("f32_32x32x8_f16", Shape(32, 8), "gfx942"),
    ("f32_16x16x4_f32", Shape(16, 4), "gfx950"),
    ("f32_32x32x2_f32", Shape(32, 2), "gfx942"),
    ("f32_16x16x8_xf32", Shape(16, 8), "gfx942"),
    ("f32_32x32x4_xf32", Shape(32, 4), "gfx942"),
    ("f32_16x16x4_4b_f16", Shape(16, 4, 4), "gfx950"),
    ("f32_32x32x4_2b_bf16", Shape(32, 4, 2), "gfx942"),
    ("f32_4x4x4_16b_bf16", Shape(4, 4, 16), "gfx950"),
    ("f32_16x16x1_4b_f32", Shape(16, 1, 4), "gfx942"),
    ("f32_32x32x1_2b_f32", Shape(32, 1, 2), "gfx942"),
    ("f32_4x4x1_16b_f32", Shape(4, 1, 16), "gfx942"),
]


@pytest.mark.parametrize(("name", "shape", "arch"), FLOAT_FORMS, ids=[f[0] for f in FLOAT_FORMS])
def test_floating_point_products(asm, name, shape, arch):
    rng = np.random.default_rng(shape.depth)
    kind = name.rsplit("_", 1)[1]
    bits, make = KINDS[kind]
    (a_codes, a), (b_codes, b) = (make(rng, (64, shape.per_lane)) for _ in range(2))
    c = rng.standard_normal((shape.blocks, shape.size, shape.size)).astype(np.float32)
    packed = pack(a_codes, bits), pack(b_codes, bits), shape.accumulator(c).view(np.uint32)
    got = run(asm, instruction(name, *packed), *packed, arch)
    tolerance = 2e-3 * shape.depth if kind == "xf32" else 1e-5
    assert_close(got, product(shape, a, b, c.astype(float)), tolerance)


@pytest.mark.parametrize("arch", ["gfx942", "gfx950"])
@pytest.mark.parametrize("size", [16, 32])
@pytest.mark.parametrize("b_kind", ["fp8", "bf8"])
@pytest.mark.parametrize("a_kind", ["fp8", "bf8"])
def test_8_bit_products_are_of_the_flavour_of_the_target(asm, arch, size, a_kind, b_kind):
    shape = Shape(size, 512 // size)
    flavour = {
        "gfx950": {"fp8": "e4m3fn", "bf8": "e5m2"}, "gfx942": {"fp8": "e4m3fnuz", "bf8": "e5m2fnuz"}
    }[arch]  # fmt: skip
    rng = np.random.default_rng(size)
    formats = flavour[a_kind], flavour[b_kind]
    codes = [finite_codes(f, rng, (64, shape.per_lane)) for f in formats]
    a, b = (value_of(f, code) for f, code in zip(formats, codes, strict=True))
    c = np.zeros((1, size, size))
    packed = *(pack(code, 8) for code in codes), shape.accumulator(c).astype(np.uint32)
    text = instruction(f"f32_{size}x{size}x{shape.depth}_{a_kind}_{b_kind}", *packed)
    got = run(asm, text, *packed, arch)
    expected = product(shape, a, b, c)
    magnitude = product(shape, abs(a), abs(b), c)
    assert (abs(got.view(np.float32) - expected) <= magnitude * 2e-6).all()


@pytest.mark.parametrize("size", [16, 32])
@pytest.mark.parametrize(("a_code", "b_code"), [(0, 0), (0, 1), (2, 4), (3, 2), (4, 4), (1, 3)])
def test_f8f6f4_takes_its_formats_from_cbsz_and_blgp(asm, size, a_code, b_code):
    shape = Shape(size, 2048 // size)
    rng = np.random.default_rng(10 * a_code + b_code)
    formats = OCP[a_code], OCP[b_code]
    codes = [finite_codes(f, rng, (64, 32)) for f in formats]
    a, b = (value_of(f, code) for f, code in zip(formats, codes, strict=True))
    c = rng.standard_normal((1, size, size)).astype(np.float32)
    packed = (
        *(pack(code, bits_of(f)) for f, code in zip(formats, codes, strict=True)),
        shape.accumulator(c).view(np.uint32),
    )
    rest = f"cbsz:{a_code} blgp:{b_code}"
    text = instruction(f"f32_{size}x{size}x{shape.depth}_f8f6f4", *packed, rest)
    got = run(asm, text, *packed, "gfx950")
    expected = product(shape, a, b, c.astype(float))
    magnitude = product(shape, abs(a), abs(b), abs(c).astype(float))
    assert (abs(got.view(np.float32) - expected) <= magnitude * 5e-6).all()


@pytest.mark.parametrize("size", [16, 32])
def test_scales_multiply_the_32_elements_of_a_lane(asm, size):
    shape = Shape(size, 2048 // size)
    rng = np.random.default_rng(12)
    codes = [finite_codes("e2m1", rng, (64, 32)) for _ in range(2)]
    scales = rng.integers(120, 134, (2, 64))
    a, b = (
        value_of("e2m1", c) * 2.0 ** (s[:, None] - 127) for c, s in zip(codes, scales, strict=True)
    )
    c = np.zeros((1, size, size), np.float32)
    packed = *(pack(code, 4) for code in codes), shape.accumulator(c).view(np.uint32)
    text = instruction(f"scale_f32_{size}x{size}x{shape.depth}_f8f6f4", *packed,
                       ", v4, v5 op_sel:[1,0,0] op_sel_hi:[0,1,0] cbsz:4 blgp:4")  # fmt: skip
    # Byte 1 of A's scales, byte 2 of B's; the others would spoil the result.
    extra = {4: scales[0] << 8 | 0xFF0000FF, 5: scales[1] << 16 | 0xFF00FFFF}
    got = run(asm, text, *packed, "gfx950", extra)
    magnitude = product(shape, abs(a), abs(b), c)
    expected = product(shape, a, b, c)
    assert (abs(got.view(np.float32) - expected) <= magnitude * 5e-6).all()


@pytest.mark.parametrize(
    ("name", "shape", "arch"),
    [
        ("i32_16x16x32_i8", Shape(16, 32), "gfx942"),
        ("i32_32x32x16_i8", Shape(32, 16), "gfx942"),
        ("i32_16x16x64_i8", Shape(16, 64), "gfx950"),
        ("i32_32x32x32_i8", Shape(32, 32), "gfx950"),
        ("i32_4x4x4_16b_i8", Shape(4, 4, 16), "gfx950"),
    ],
)
def test_integer_products_are_exact(asm, name, shape, arch):
    rng = np.random.default_rng(13)
    a, b = rng.integers(-128, 128, (2, 64, shape.per_lane))
    c = rng.integers(-(2**20), 2**20, (shape.blocks, shape.size, shape.size))
    addend = shape.accumulator(c).astype(np.int32).view(np.uint32)
    packed = pack(a & 0xFF, 8), pack(b & 0xFF, 8), addend
    got = run(asm, instruction(name, *packed), *packed, arch)
    np.testing.assert_array_equal(got.view(np.int32), product(shape, a, b, c))


def test_cbsz_broadcasts_one_block_of_a(asm):
    shape = Shape(16, 4, 4)
    rng = np.random.default_rng(14)
    (a_codes, a), (b_codes, b) = (bfloat(rng, (64, 4)) for _ in range(2))
    c = np.zeros((4, 16, 16), np.float32)
    packed = pack(a_codes, 16), pack(b_codes, 16), shape.accumulator(c).view(np.uint32)
    text = instruction("f32_16x16x4_4b_bf16", *packed, "cbsz:1 abid:1")
    got = run(asm, text, *packed, "gfx942")
    shared = a.reshape(4, 16, 4)[[1, 1, 3, 3]].reshape(64, 4)
    assert_close(got, product(shape, shared, b, c), 1e-5)


def test_accumulation_registers_serve_as_operands_and_result(asm):
    rng = np.random.default_rng(15)
    shape = Shape(16, 16)
    (a_codes, a), (b_codes, b) = (bfloat(rng, (64, 4)) for _ in range(2))
    a_packed, b_packed = pack(a_codes, 16), pack(b_codes, 16)
    code = """
  s_nop 4
  v_mfma_f32_16x16x16_bf16 a[4:7], v[8:9], a[10:11], 1.0
"""
    result = asm(code, v={8 + i: row for i, row in enumerate(a_packed)},
                 a={10 + i: row for i, row in enumerate(b_packed)},
                 out=["a4", "a5", "a6", "a7"], arch="gfx942")  # fmt: skip
    got = np.stack([result[f"a{4 + i}"] for i in range(4)])
    assert_close(got, product(shape, a, b, np.ones((1, 16, 16))), 1e-5)


def test_exec_does_not_switch_lanes_off(asm):
    code = """
  s_nop 4
  s_mov_b64 exec, 1
  v_mfma_f32_16x16x4_f32 v[20:23], v8, v9, 0
"""
    result = asm(code, v={8: np.ones(64, np.float32), 9: np.ones(64, np.float32)},
                 out=["v20", "v23"])  # fmt: skip
    assert (result["v20"].view(np.float32) == 4).all()
    assert (result["v23"].view(np.float32) == 4).all()


@pytest.mark.parametrize(("blgp", "cbsz", "passes"), [(0, 0, 16), (4, 4, 8), (4, 0, 16)])
def test_passes_of_f8f6f4_follow_its_formats(asm, blgp, cbsz, passes):
    count = {0: 8, 4: 4}
    code = f"""
  s_nop 4
  v_mfma_f32_32x32x64_f8f6f4 v[120:135], {registers(A, count[cbsz])}, \
{registers(B, count[blgp])}, 0 cbsz:{cbsz} blgp:{blgp}
"""
    zeros = {r: 0 for first in (A, B) for r in range(first, first + 8)}
    totals = asm(code, v=zeros, out=[]).counts["sum"]
    assert totals["mfma_passes"] == passes
    assert totals["by_class"]["mfma"] == 1
