# SPDX-License-Identifier: MIT
"""Machine code to instructions: operands and modifiers as seen by what they do."""

from __future__ import annotations

import struct
from collections.abc import Callable

import numpy as np
import pytest

from hipdecode import sim
from hipdecode.errors import SimulatorError

_LANES = np.arange(64, dtype=np.uint32)


def floats(*values: float) -> np.ndarray:
    return np.array(values, np.float32)


@pytest.mark.parametrize(
    ("operand", "expected"),
    [
        ("0", 0),
        ("64", 64),
        ("-16", 0xFFFFFFF0),
        ("65", 65),
        ("0x12345678", 0x12345678),
        ("0.5", 0x3F000000),
        ("-4.0", 0xC0800000),
        ("0.15915494", 0x3E22F983),
        ("0x3f800001", 0x3F800001),
        ("vcc_lo", 11),
        ("m0", 12),
        ("exec_hi", 0xFFFFFFFF),
        ("src_execz", 0),
        ("src_scc", 1),
        ("s10", 13),
        ("v5", 14),
    ],
)
def test_sources_of_a_vector_move(operand: str, expected: int, asm: Callable) -> None:
    code = f"""
      s_mov_b32 vcc_lo, 11
      s_mov_b32 m0, 12
      s_cmp_eq_u32 0, 0
      s_nop 4
      v_mov_b32 v1, {operand}"""
    assert (asm(code, v={5: 14}, s={10: 13}, out=["v1"])["v1"] == expected).all()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("v_add_f32 v3, v1, v2", 1.25),
        ("v_add_f32_e64 v3, -v1, v2", 4.25),
        ("v_add_f32_e64 v3, |v1|, -|v2|", -1.25),
        ("v_add_f32_e64 v3, -|v1|, 1.0", -0.5),
        ("v_add_f32_e64 v3, v1, v2 clamp", 1.0),
        ("v_fma_f32 v3, v1, v2, -v2", -6.875),
        ("v_fmamk_f32 v3, v1, 0x40000000, v2", -0.25),
        ("v_fmac_f32 v3, v1, v2", -3.125),
        ("v_sub_f32_sdwa v3, -v1, |v2| dst_sel:DWORD src0_sel:DWORD src1_sel:DWORD", -1.25),
    ],
)
def test_float_modifiers(text: str, expected: float, asm: Callable) -> None:
    result = asm(text, v={1: floats(-1.5), 2: floats(2.75), 3: floats(1.0)}, out=["v3"])
    assert (result["v3"].view(np.float32) == expected).all()


@pytest.mark.parametrize(("scale", "factor"), [("mul:2", 2.0), ("mul:4", 4.0), ("div:2", 0.5)])
@pytest.mark.parametrize("denormals", [False, True])
def test_output_scales_apply_where_denormals_are_flushed(
    scale: str, factor: float, denormals: bool, asm: Callable
) -> None:
    code = f"""
      s_setreg_imm32_b32 hwreg(HW_REG_MODE, 9, 1), 0
      s_setreg_imm32_b32 hwreg(HW_REG_MODE, 4, 2), {3 if denormals else 0}
      v_add_f32_e64 v3, v1, v1 {scale}"""
    result = asm(code, v={1: floats(0.75)}, out=["v3"])
    assert (result["v3"].view(np.float32) == 1.5 * (1.0 if denormals else factor)).all()


def _quad(lane: np.ndarray) -> np.ndarray:
    return (lane & ~3) + np.array([1, 0, 3, 2], np.uint32)[lane & 3]


@pytest.mark.parametrize(
    ("control", "source"),
    [
        ("quad_perm:[1,0,3,2]", _quad),
        ("row_ror:3", lambda lane: (lane & ~15) + ((lane & 15) - 3) % 16),
        ("row_mirror", lambda lane: (lane & ~15) + 15 - (lane & 15)),
        ("row_half_mirror", lambda lane: (lane & ~7) + 7 - (lane & 7)),
        ("row_newbcast:5", lambda lane: (lane & ~15) + 5),
        ("wave_rol:1", lambda lane: (lane + 1) % 64),
        ("wave_ror:1", lambda lane: (lane - 1) % 64),
    ],
)
def test_dpp_permutes_lanes(
    control: str, source: Callable[[np.ndarray], np.ndarray], asm: Callable
) -> None:
    text = f"v_mov_b32_dpp v2, v1 {control} row_mask:0xf bank_mask:0xf"
    result = asm(text, v={1: _LANES * 3, 2: 999}, out=["v2"])
    expected = source(_LANES.astype(np.int64)) * 3
    assert (result["v2"] == expected).all()


@pytest.mark.parametrize(
    ("control", "source"),
    [
        ("row_shl:2", lambda lane: lane + 2 if lane % 16 < 14 else None),
        ("row_shr:1", lambda lane: lane - 1 if lane % 16 else None),
        ("wave_shl:1", lambda lane: lane + 1 if lane < 63 else None),
        ("wave_shr:1", lambda lane: lane - 1 if lane else None),
        ("row_bcast:15", lambda lane: lane // 16 * 16 - 1 if lane >= 16 else None),
        ("row_bcast:31", lambda lane: 31 if lane >= 32 else None),
    ],
)
@pytest.mark.parametrize("bound_ctrl", [False, True])
def test_dpp_without_a_source_keeps_the_lane_or_reads_zero(
    control: str, bound_ctrl: bool, source: Callable[[int], int | None], asm: Callable
) -> None:
    tail = " bound_ctrl:0" if bound_ctrl else ""
    text = f"v_mov_b32_dpp v2, v1 {control} row_mask:0xf bank_mask:0xf{tail}"
    result = asm(text, v={1: _LANES + 100, 2: 999}, out=["v2"])
    fallback = 0 if bound_ctrl else 999
    found = [source(lane) for lane in range(64)]
    assert result["v2"].tolist() == [fallback if n is None else n + 100 for n in found]


def test_dpp_masks_choose_rows_and_banks(asm: Callable) -> None:
    text = "v_mov_b32_dpp v2, v1 quad_perm:[0,1,2,3] row_mask:0xa bank_mask:0x3"
    result = asm(text, v={1: _LANES, 2: 999}, out=["v2"])
    chosen = (0xA >> (_LANES // 16) & 1) & (0x3 >> (_LANES // 4 % 4) & 1)
    assert (result["v2"] == np.where(chosen == 1, _LANES, 999)).all()


def test_dpp_does_not_read_lanes_that_exec_disables(asm: Callable) -> None:
    code = """
      s_mov_b32 exec_lo, 0xfffffffd
      v_mov_b32_dpp v2, v1 quad_perm:[1,1,1,1] row_mask:0xf bank_mask:0xf
      v_mov_b32_dpp v3, v1 quad_perm:[1,1,1,1] row_mask:0xf bank_mask:0xf bound_ctrl:0
      s_mov_b64 exec, -1"""
    result = asm(code, v={1: _LANES + 5, 2: 999, 3: 999}, out=["v2", "v3"])
    assert result["v2"][:5].tolist() == [999, 999, 999, 999, 10]
    assert result["v3"][:5].tolist() == [0, 999, 0, 0, 10]


_WORD = 0x8899AABB


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("v_mov_b32_sdwa v2, v1 dst_sel:DWORD src0_sel:BYTE_0", 0xBB),
        ("v_mov_b32_sdwa v2, v1 dst_sel:DWORD src0_sel:BYTE_3", 0x88),
        ("v_mov_b32_sdwa v2, v1 dst_sel:DWORD src0_sel:WORD_1", 0x8899),
        ("v_mov_b32_sdwa v2, sext(v1) dst_sel:DWORD src0_sel:BYTE_1", 0xFFFFFFAA),
        ("v_mov_b32_sdwa v2, sext(v1) dst_sel:DWORD src0_sel:WORD_0", 0xFFFFAABB),
        ("v_mov_b32_sdwa v2, v1 dst_sel:BYTE_1 dst_unused:UNUSED_PRESERVE", 0x1122BB44),
        ("v_mov_b32_sdwa v2, v1 dst_sel:WORD_1 dst_unused:UNUSED_PAD", 0xAABB0000),
        ("v_mov_b32_sdwa v2, v1 dst_sel:WORD_0 dst_unused:UNUSED_SEXT", 0xFFFFAABB),
        ("v_add_u32_sdwa v2, v1, v3 dst_sel:DWORD src0_sel:BYTE_0 src1_sel:WORD_1", 0xBC),
    ],
)
def test_sdwa_selects_parts_of_registers(text: str, expected: int, asm: Callable) -> None:
    result = asm(text, v={1: _WORD, 2: 0x11223344, 3: 0x10000}, out=["v2"])
    assert (result["v2"] == expected).all(), [hex(n) for n in result["v2"][:2]]


def test_scalar_destinations_of_vector_instructions(asm: Callable) -> None:
    code = """
      v_cmp_gt_u32 vcc, 8, v1
      v_cmp_gt_u32_e64 s[10:11], 4, v1
      v_readlane_b32 s12, v1, 9
      s_mov_b32 s13, 7
      s_nop 4
      v_readlane_b32 s14, v1, s13"""
    result = asm(code, v={1: _LANES}, out=["vcc", "s[10:11]", "s12", "s14"])
    assert [result.scalar(n) for n in ("vcc", "s[10:11]", "s12", "s14")] == [0xFF, 0xF, 9, 7]


def test_swaps_write_both_registers(asm: Callable) -> None:
    result = asm("v_swap_b32 v1, v2", v={1: _LANES, 2: _LANES + 500}, out=["v1", "v2"])
    assert (result["v1"] == _LANES + 500).all()
    assert (result["v2"] == _LANES).all()


@pytest.mark.parametrize(
    ("modifiers", "outside"),
    [("", 2), (" bound_ctrl:1", 0), (" fi:1", 1)],
)
def test_permlane_swaps_treat_disabled_partners_as_their_modifiers_say(
    modifiers: str, outside: int, asm: Callable
) -> None:
    code = f"""
      s_mov_b32 exec_hi, 0
      s_nop 4
      v_permlane32_swap_b32_e64 v1, v2{modifiers}
      s_nop 4
      s_mov_b64 exec, -1"""
    result = asm(code, v={1: 1, 2: 2}, out=["v1", "v2"])
    assert (result["v1"] == 1).all()  # its upper half is disabled, its lower half stays
    assert (result["v2"] == np.where(_LANES < 32, outside, 2)).all()


def test_accumulation_registers_are_registers_of_their_own(asm: Callable) -> None:
    code = "v_accvgpr_write_b32 a3, v1\ns_nop 1\nv_accvgpr_read_b32 v4, a3"
    result = asm(code, v={1: _LANES, 3: 77}, out=["v4", "v3", "a3"])
    assert (result["v4"] == _LANES).all()
    assert (result["v3"] == 77).all()


def test_wide_constants_of_vector_instructions(asm: Callable) -> None:
    code = """
      v_mov_b64 v[2:3], 1.0
      v_mov_b64 v[4:5], -2
      v_add_f64 v[6:7], v[2:3], 0.5"""
    result = asm(code, out=["v2", "v3", "v4", "v5", "v6", "v7"])
    words = [int(result[f"v{n}"][0]) for n in range(2, 8)]
    assert words[0] | words[1] << 32 == 0x3FF0000000000000
    assert words[2] | words[3] << 32 == 0xFFFFFFFFFFFFFFFE
    assert struct.unpack("<d", struct.pack("<2I", *words[4:]))[0] == 1.5


def test_an_opcode_that_is_missing_faults_when_it_is_executed(asm: Callable) -> None:
    assert asm("s_branch over\ns_sethalt 1\nover:\ns_mov_b32 s10, 1", out=["s10"]).scalar("s10")
    pattern = r"0x[0-9a-f]+ \[BF8D0001\] `s_sethalt 1`: opcode: expected one of .*, got s_sethalt"
    with pytest.raises(SimulatorError, match=pattern):
        asm("s_sethalt 1", out=[])


def test_bytes_that_are_no_instruction_fault_when_they_are_executed(asm: Callable) -> None:
    assert asm("s_branch over\n.long 0xffffffff\nover:\ns_mov_b32 s10, 1", out=["s10"])
    with pytest.raises(SimulatorError, match=r"\[FFFFFFFF\] `\(no instruction\)`: opcode: expec"):
        asm(".long 0xffffffff", out=[])


def test_disassembly_lists_address_encoding_and_text(snippets) -> None:
    program = sim.Program(snippets.build("v_mov_b32 v1, 0x12345678\ns_sethalt 1"))
    rows = program.disassembly()[:3]
    assert [row["text"] for row in rows] == [
        "v_mov_b32_e32 v1, 0x12345678", "s_sethalt 1", "s_endpgm"]  # fmt: skip
    assert [row["known"] for row in rows] == [True, False, True]
    assert rows[0]["encoding"] == "7E0202FF 12345678"
    assert rows[1]["address"] == rows[0]["address"] + 8


def test_the_opcode_table_names_each_once_with_a_class_and_a_section(simulator: None) -> None:
    rows = sim.opcodes()
    names = [row["name"] for row in rows]
    assert names == sorted(set(names))
    assert len(names) > 600
    assert all(row["class"] and row["section"][:1].isdigit() for row in rows)


@pytest.mark.parametrize("arch", ["gfx942", "gfx950"])
def test_both_architectures_decode(arch: str, asm: Callable) -> None:
    code = "v_mfma_f32_32x32x8_bf16 v[16:31], v[2:3], v[4:5], 0\ns_nop 15\ns_nop 3"
    result = asm(code, v={2: 0, 3: 0, 4: 0, 5: 0}, out=["v16", "v31"], arch=arch)
    assert not result["v16"].any()
    assert not result["v31"].any()
