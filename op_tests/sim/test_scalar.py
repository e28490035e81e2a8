# SPDX-License-Identifier: MIT
"""Scalar instructions against Python's own integers."""

from __future__ import annotations

import operator
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import pytest

from hipdecode import sim
from hipdecode.errors import SimulatorError

_MASK = {32: 0xFFFFFFFF, 64: 0xFFFFFFFFFFFFFFFF}
_EDGES = (0, 1, 2, 31, 32, 63, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 0x00030005, 0x0010001C)


def signed(value: int, bits: int) -> int:
    return value - (1 << bits) if value >> (bits - 1) else value


@dataclass(frozen=True)
class Case:
    """One run of an opcode: what it reads."""

    a: int
    b: int
    scc: int
    old: int


Expected = tuple[int, int | None]  # value and SCC, None where it stays


@dataclass(frozen=True)
class Op:
    """An opcode: widths of destination and sources (0: none), and what it computes."""

    out: int
    a: int
    b: int
    compute: Callable[[Case], Expected]


def _nonzero(value: int) -> Expected:
    return value, int(value != 0)


def _count_same(value: int, bits: int) -> int:
    """Bits in front that equal the sign; all of them: -1."""
    text = format(value, f"0{bits}b")
    same = len(text) - len(text.lstrip(text[0]))
    return 0xFFFFFFFF if same == bits else same


def _extract(value: int, control: int, bits: int, is_signed: bool) -> Expected:
    offset, width = control & (bits - 1), min(control >> 16 & 0x7F, bits)
    if width == 0:
        return 0, 0
    text = format(value, f"0{bits}b")[::-1][offset : offset + width]
    result = int(text[::-1] or "0", 2)
    if is_signed and text and text[-1] == "1":
        result -= 1 << len(text)
    return _nonzero(result & _MASK[bits])


def _arithmetic() -> Iterator[tuple[str, Op]]:
    def carried(total: int) -> Expected:
        return total & _MASK[32], int(not 0 <= total <= _MASK[32])

    def overflowing(total: int) -> Expected:
        return total & _MASK[32], int(not -(2**31) <= total < 2**31)

    def s(value: int) -> int:
        return signed(value, 32)

    two: dict[str, Callable[[Case], Expected]] = {
        "s_add_u32": lambda c: carried(c.a + c.b),
        "s_sub_u32": lambda c: carried(c.a - c.b),
        "s_addc_u32": lambda c: carried(c.a + c.b + c.scc),
        "s_subb_u32": lambda c: carried(c.a - c.b - c.scc),
        "s_add_i32": lambda c: overflowing(s(c.a) + s(c.b)),
        "s_sub_i32": lambda c: overflowing(s(c.a) - s(c.b)),
        "s_mul_i32": lambda c: (c.a * c.b & _MASK[32], None),
        "s_mul_hi_u32": lambda c: (c.a * c.b >> 32, None),
        "s_mul_hi_i32": lambda c: (s(c.a) * s(c.b) >> 32 & _MASK[32], None),
        "s_min_u32": lambda c: (min(c.a, c.b), int(c.a < c.b)),
        "s_max_u32": lambda c: (max(c.a, c.b), int(c.a > c.b)),
        "s_min_i32": lambda c: (min(s(c.a), s(c.b)) & _MASK[32], int(s(c.a) < s(c.b))),
        "s_max_i32": lambda c: (max(s(c.a), s(c.b)) & _MASK[32], int(s(c.a) > s(c.b))),
        "s_absdiff_i32": lambda c: _nonzero(abs(s(c.a) - s(c.b)) & _MASK[32]),
        "s_bfm_b32": lambda c: (((1 << (c.a & 31)) - 1) << (c.b & 31) & _MASK[32], None),
        "s_pack_ll_b32_b16": lambda c: (c.a & 0xFFFF | (c.b & 0xFFFF) << 16, None),
        "s_pack_lh_b32_b16": lambda c: (c.a & 0xFFFF | c.b & 0xFFFF0000, None),
        "s_pack_hh_b32_b16": lambda c: (c.a >> 16 | c.b & 0xFFFF0000, None),
    }
    yield from ((name, Op(32, 32, 32, compute)) for name, compute in two.items())
    yield "s_bfm_b64", Op(64, 32, 32, lambda c: (
        ((1 << (c.a & 63)) - 1) << (c.b & 63) & _MASK[64], None))  # fmt: skip
    for n in range(1, 5):
        yield f"s_lshl{n}_add_u32", Op(32, 32, 32, lambda c, n=n: carried((c.a << n) + c.b))


def _bits(bits: int) -> Iterator[tuple[str, Op]]:
    mask, b = _MASK[bits], f"b{bits}"
    logic: dict[str, Callable[[int, int], int]] = {
        "and": operator.and_,
        "or": operator.or_,
        "xor": operator.xor,
        "andn2": lambda x, y: x & ~y,
        "orn2": lambda x, y: x | ~y,
        "nand": lambda x, y: ~(x & y),
        "nor": lambda x, y: ~(x | y),
        "xnor": lambda x, y: ~(x ^ y),
    }
    for name, f in logic.items():
        yield f"s_{name}_{b}", Op(bits, bits, bits, lambda c, f=f: _nonzero(f(c.a, c.b) & mask))
    yield f"s_cselect_{b}", Op(bits, bits, bits, lambda c: (c.a if c.scc else c.b, None))
    yield f"s_cmov_{b}", Op(bits, bits, 0, lambda c: (c.a if c.scc else c.old, None))
    yield f"s_mov_{b}", Op(bits, bits, 0, lambda c: (c.a, None))
    yield f"s_not_{b}", Op(bits, bits, 0, lambda c: _nonzero(~c.a & mask))
    yield f"s_brev_{b}", Op(bits, bits, 0, lambda c: (int(f"{c.a:0{bits}b}"[::-1], 2), None))
    yield f"s_lshl_{b}", Op(bits, bits, 32, lambda c: _nonzero(c.a << (c.b & bits - 1) & mask))
    yield f"s_lshr_{b}", Op(bits, bits, 32, lambda c: _nonzero(c.a >> (c.b & bits - 1)))
    yield f"s_ashr_i{bits}", Op(bits, bits, 32, lambda c: _nonzero(
        signed(c.a, bits) >> (c.b & bits - 1) & mask))  # fmt: skip
    yield f"s_bfe_u{bits}", Op(bits, bits, 32, lambda c: _extract(c.a, c.b, bits, False))
    yield f"s_bfe_i{bits}", Op(bits, bits, 32, lambda c: _extract(c.a, c.b, bits, True))
    yield f"s_bcnt1_i32_{b}", Op(32, bits, 0, lambda c: _nonzero(c.a.bit_count()))
    yield f"s_bcnt0_i32_{b}", Op(32, bits, 0, lambda c: _nonzero(bits - c.a.bit_count()))
    for ones, name in ((1, f"s_ff1_i32_{b}"), (0, f"s_ff0_i32_{b}")):
        yield name, Op(32, bits, 0, lambda c, one=str(ones): (
            f"{c.a:0{bits}b}"[::-1].find(one) & _MASK[32], None))  # fmt: skip
    yield f"s_flbit_i32_{b}", Op(32, bits, 0, lambda c: (
        f"{c.a:0{bits}b}".find("1") & _MASK[32], None))  # fmt: skip
    signs = "s_flbit_i32" if bits == 32 else "s_flbit_i32_i64"
    yield signs, Op(32, bits, 0, lambda c: (_count_same(c.a, bits), None))
    yield f"s_bitset0_{b}", Op(bits, 32, 0, lambda c: (c.old & ~(1 << (c.a & bits - 1)), None))
    yield f"s_bitset1_{b}", Op(bits, 32, 0, lambda c: (c.old | 1 << (c.a & bits - 1), None))
    yield f"s_bitcmp0_{b}", Op(0, bits, 32, lambda c: (0, 1 - (c.a >> (c.b & bits - 1) & 1)))
    yield f"s_bitcmp1_{b}", Op(0, bits, 32, lambda c: (0, c.a >> (c.b & bits - 1) & 1))
    quads = range(0, bits, 4)
    yield f"s_wqm_{b}", Op(bits, bits, 0, lambda c: _nonzero(
        sum(15 << i for i in quads if c.a >> i & 15)))  # fmt: skip
    yield f"s_quadmask_{b}", Op(bits, bits, 0, lambda c: _nonzero(
        sum(1 << i // 4 for i in quads if c.a >> i & 15)))  # fmt: skip


def _others() -> Iterator[tuple[str, Op]]:
    yield "s_abs_i32", Op(32, 32, 0, lambda c: _nonzero(abs(signed(c.a, 32)) & _MASK[32]))
    yield "s_sext_i32_i8", Op(32, 32, 0, lambda c: (signed(c.a & 255, 8) & _MASK[32], None))
    yield "s_sext_i32_i16", Op(32, 32, 0, lambda c: (signed(c.a & 65535, 16) & _MASK[32], None))
    yield "s_bitreplicate_b64_b32", Op(64, 32, 0, lambda c: (
        int("".join(bit * 2 for bit in f"{c.a:032b}"), 2), None))  # fmt: skip
    relations = {"eq": operator.eq, "lg": operator.ne, "gt": operator.gt, "ge": operator.ge,
                 "lt": operator.lt, "le": operator.le}  # fmt: skip
    for name, f in relations.items():
        yield f"s_cmp_{name}_u32", Op(0, 32, 32, lambda c, f=f: (0, int(f(c.a, c.b))))
        yield f"s_cmp_{name}_i32", Op(
            0, 32, 32, lambda c, f=f: (0, int(f(signed(c.a, 32), signed(c.b, 32)))))  # fmt: skip
    for name in ("eq", "lg"):
        yield f"s_cmp_{name}_u64", Op(
            0, 64, 64, lambda c, f=relations[name]: (0, int(f(c.a, c.b))))  # fmt: skip


OPS = dict([*_arithmetic(), *_bits(32), *_bits(64), *_others()])


def _cases(op: Op) -> list[Case]:
    draw = random.Random(7)

    def value(bits: int) -> int:
        edge = draw.choice(_EDGES)
        choices = [edge, draw.getrandbits(bits or 32), edge << 32 | draw.getrandbits(32)]
        return draw.choice(choices) & _MASK[bits or 32]

    cases = [Case(value(op.a), value(op.b), draw.getrandbits(1), value(op.out)) for _ in range(14)]
    same = value(op.a) & _MASK[op.b or 32]
    return [*cases, Case(same, same, 0, 0), Case(0, 0, 1, _MASK[op.out or 32])]


def _load(register: int, bits: int, value: int) -> str:
    high = f"s_mov_b32 s{register + 1}, {hex(value >> 32)}\n" if bits == 64 else ""
    return f"s_mov_b32 s{register}, {hex(value & _MASK[32])}\n{high}"


def _name(register: int, bits: int) -> str:
    return f"s[{register}:{register + 1}]" if bits == 64 else f"s{register}"


@pytest.mark.parametrize("name", OPS)
def test_scalar_opcodes_compute_value_and_scc(name: str, asm: Callable) -> None:
    op = OPS[name]
    cases = _cases(op)
    code = ""
    for lane, case in enumerate(cases):
        operands = [_name(n, bits) for n, bits in ((20, op.out), (12, op.a), (14, op.b)) if bits]
        code += _load(12, op.a, case.a) + _load(14, op.b, case.b) + _load(20, op.out, case.old)
        code += f"s_cmp_eq_u32 0, {1 - case.scc}\n{name} {', '.join(operands)}\n"
        code += "s_cselect_b32 s30, 1, 0\n"
        for vector, scalar in enumerate((20, 21, 30), start=10):
            code += f"v_writelane_b32 v{vector}, s{scalar}, {lane}\n"
    zero = dict.fromkeys((10, 11, 12), 0)
    result = asm(code, v=zero, s={21: 0}, out=["v10", "v11", "v12"])
    for lane, case in enumerate(cases):
        value, scc = op.compute(case)
        got = int(result["v10"][lane])
        if op.out == 64:
            got |= int(result["v11"][lane]) << 32
        if op.out:
            assert got == value, f"{name} of {case}: got {got:#x}, not {value:#x}"
        assert result["v12"][lane] == (case.scc if scc is None else scc), f"SCC of {case}"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("and", lambda s, e: s & e),
        ("or", lambda s, e: s | e),
        ("xor", lambda s, e: s ^ e),
        ("andn2", lambda s, e: s & ~e),
        ("orn2", lambda s, e: s | ~e),
        ("nand", lambda s, e: ~(s & e)),
        ("nor", lambda s, e: ~(s | e)),
        ("xnor", lambda s, e: ~(s ^ e)),
        ("andn1", lambda s, e: ~s & e),
        ("orn1", lambda s, e: ~s | e),
    ],
)
def test_saveexec_replaces_exec_and_keeps_the_old_one(
    name: str, expected: Callable[[int, int], int], asm: Callable
) -> None:
    source, exec_ = 0x0F0F00FF12345678, 0xFFFF0000FFFF00FF
    code = _load(10, 64, source) + _load(12, 64, exec_)
    code += f"s_mov_b64 exec, s[12:13]\ns_{name}_saveexec_b64 s[14:15], s[10:11]"
    result = asm(code, out=["s[14:15]", "exec", "scc"])
    assert result.scalar("s[14:15]") == exec_
    assert result.scalar("exec") == expected(source, exec_) & _MASK[64]
    assert result.scalar("scc") == 1


def test_wrexec_writes_exec_and_its_destination(asm: Callable) -> None:
    code = _load(10, 64, 0xFF) + "s_mov_b64 exec, 0x0f\ns_andn1_wrexec_b64 s[14:15], s[10:11]\n"
    result = asm(code + "s_mov_b64 vcc, exec", out=["s[14:15]", "vcc", "scc"])
    assert (result.scalar("s[14:15]"), result.scalar("vcc"), result.scalar("scc")) == (0, 0, 0)


def test_halves_of_exec_and_vcc_are_registers_of_their_own(asm: Callable) -> None:
    code = "s_mov_b64 vcc, -1\ns_mov_b32 vcc_hi, 7\ns_mov_b32 exec_lo, 5\ns_mov_b32 s10, exec_hi"
    result = asm(code, out=["vcc", "exec", "s10"])
    assert result.scalar("vcc") == 7 << 32 | 0xFFFFFFFF
    assert result.scalar("exec") == 0xFFFFFFFF << 32 | 5
    assert result.scalar("s10") == 0xFFFFFFFF


@pytest.mark.parametrize(
    ("code", "value", "scc"),
    [
        ("s_movk_i32 s10, 0x8000", 0xFFFF8000, 1),
        ("s_addk_i32 s10, 0xfffb", 0x7FFFFFF5, 0),
        ("s_addk_i32 s10, 0x10", 0x8000000A, 1),
        ("s_mulk_i32 s10, 0xfffe", (0x7FFFFFFA * -2) & _MASK[32], 1),
        ("s_cmovk_i32 s10, 3", 3, 1),
        ("s_cmp_eq_u32 0, 1\ns_cmovk_i32 s10, 3", 0x7FFFFFFA, 0),
        ("s_cmpk_eq_u32 s11, 0xffff", 0x7FFFFFFA, 1),
        ("s_cmpk_eq_i32 s11, 0xffff", 0x7FFFFFFA, 0),
        ("s_cmpk_lt_i32 s11, 0xffff", 0x7FFFFFFA, 0),
        ("s_cmpk_le_u32 s11, 0xffff", 0x7FFFFFFA, 1),
    ],
)
def test_sopk_extends_its_immediate(code: str, value: int, scc: int, asm: Callable) -> None:
    result = asm(f"s_cmp_eq_u32 0, 0\n{code}", s={10: 0x7FFFFFFA, 11: 0xFFFF}, out=["s10", "scc"])
    assert (result.scalar("s10"), result.scalar("scc")) == (value, scc)


@pytest.mark.parametrize(
    ("constant", "value"),
    [
        ("-1", _MASK[64]),
        ("64", 64),
        ("0.5", 0x3FE0000000000000),
        ("0x80000001", 0x80000001),
        ("src_shared_base", 0x10000 << 32),
        ("src_private_base", 0x20000 << 32),
    ],
)
def test_constants_of_64_bit_instructions(constant: str, value: int, asm: Callable) -> None:
    result = asm(f"s_mov_b64 s[10:11], {constant}", out=["s[10:11]"])
    assert result.scalar("s[10:11]") == value


def test_scalar_loads_take_registers_constants_and_offsets(asm: Callable) -> None:
    memory = np.arange(64, dtype=np.uint32)
    code = """
      s_mov_b32 s20, 8
      s_load_dword s10, s[0:1], 0x10
      s_load_dwordx2 s[12:13], s[0:1], s20
      s_load_dword s14, s[0:1], s20 offset:0x20
      s_load_dwordx16 s[32:47], s[0:1], 64
      s_waitcnt lgkmcnt(0)"""
    result = asm(code, memory=memory, out=["s10", "s[12:13]", "s14", "s32", "s47"])
    assert [result.scalar(n) for n in ("s10", "s14", "s32", "s47")] == [4, 10, 16, 31]
    assert result.scalar("s[12:13]") == 3 << 32 | 2


def test_scalar_buffer_loads_read_zero_past_the_end(asm: Callable) -> None:
    memory = np.arange(1, 9, dtype=np.uint32)
    code = """
      s_mov_b64 s[4:5], s[0:1]
      s_mov_b32 s6, 12
      s_mov_b32 s7, 0
      s_buffer_load_dwordx4 s[12:15], s[4:7], 0
      s_waitcnt lgkmcnt(0)"""
    result = asm(code, memory=memory, out=["s12", "s14", "s15"])
    assert [result.scalar(n) for n in ("s12", "s14", "s15")] == [1, 3, 0]


def test_program_counter_is_an_address_that_calls_return_to(asm: Callable) -> None:
    code = """
      s_mov_b32 s10, 1
      s_call_b64 s[20:21], double
      s_getpc_b64 s[22:23]
    here:
      s_add_u32 s22, s22, double-here
      s_addc_u32 s23, s23, 0
      s_swappc_b64 s[20:21], s[22:23]
      s_branch end
    double:
      s_lshl_b32 s10, s10, 1
      s_setpc_b64 s[20:21]
    end:"""
    assert asm(code, out=["s10"]).scalar("s10") == 4


def test_mode_register_is_read_and_written_by_fields(asm: Callable) -> None:
    code = """
      s_setreg_imm32_b32 hwreg(HW_REG_MODE, 4, 4), 3
      s_getreg_b32 s10, hwreg(HW_REG_MODE, 4, 4)
      s_getreg_b32 s11, hwreg(HW_REG_MODE, 4, 2)
      s_setreg_b32 hwreg(HW_REG_MODE, 0, 4), s10
      s_getreg_b32 s12, hwreg(HW_REG_MODE, 0, 8)"""
    result = asm(code, out=["s10", "s11", "s12"])
    assert [result.scalar(n) for n in ("s10", "s11", "s12")] == [3, 3, 0x33]


def test_relative_registers_move_the_operands_that_m0_names(asm: Callable) -> None:
    code = """
      s_mov_b32 s10, 2
      s_set_gpr_idx_on s10, gpr_idx(SRC0)
      v_mov_b32 v20, v10
      s_set_gpr_idx_off
      s_set_gpr_idx_on s10, gpr_idx(DST)
      v_mov_b32 v20, v10
      s_set_gpr_idx_off
      s_mov_b32 m0, s10
      s_movrels_b32 s12, s13"""
    result = asm(code, v={10: 5, 12: 7}, s={15: 9}, out=["v20", "v22", "s12"])
    assert (result["v20"] == 7).all()
    assert (result["v22"] == 5).all()
    assert result.scalar("s12") == 9


@pytest.mark.parametrize(
    ("code", "taken"),
    [
        ("s_cmp_eq_u32 0, 0\ns_cbranch_scc1 there", True),
        ("s_cmp_eq_u32 0, 0\ns_cbranch_scc0 there", False),
        ("s_mov_b64 vcc, 0\ns_cbranch_vccz there", True),
        ("s_mov_b64 vcc, 4\ns_cbranch_vccnz there", True),
        ("s_mov_b64 vcc, 0\ns_cbranch_vccnz there", False),
        ("s_mov_b64 exec, 0\ns_cbranch_execz there", True),
        ("s_mov_b64 exec, 1\ns_cbranch_execnz there", True),
        ("s_mov_b64 exec, 1\ns_cbranch_execz there", False),
    ],
)
def test_branches_look_at_scc_vcc_and_exec(code: str, taken: bool, asm: Callable) -> None:
    text = f"s_mov_b32 s10, 0\n{code}\ns_mov_b32 s10, 1\nthere:"
    assert asm(text, out=["s10"]).scalar("s10") == (0 if taken else 1)


def test_a_trap_ends_the_launch(asm: Callable) -> None:
    with pytest.raises(SimulatorError, match=r"`s_trap 2`: trap: expected the kernel to reach"):
        asm("s_trap 2", out=[])


def test_every_scalar_arithmetic_opcode_is_tested(simulator: None) -> None:
    families = ("SOP1", "SOP2", "SOPC", "SOPK")
    mine = {row["name"] for row in sim.opcodes() if row["section"].endswith(families)}
    by_other_tests = ("saveexec", "wrexec", "s_movk", "s_cmovk", "s_addk", "s_mulk", "s_cmpk",
                      "s_movrel", "pc_b64", "s_call", "reg_", "set_gpr")  # fmt: skip
    rest = {name for name in mine if not any(part in name for part in by_other_tests)}
    assert rest <= set(OPS)
