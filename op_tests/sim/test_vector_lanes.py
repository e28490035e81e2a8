# SPDX-License-Identifier: MIT
"""What crosses lanes: DPP, SDWA, permlane swaps, readlane and its kin, EXEC."""

from __future__ import annotations

import numpy as np
import pytest
from lanes import special_integers

LANE = np.arange(64)
FULL = 0xFFFF_FFFF_FFFF_FFFF
VALUES = special_integers(64, seed=21)
OTHER = special_integers(64, seed=22)
OLD = np.full(64, 0xDEAD0000, np.uint32) + LANE.astype(np.uint32)


def in_row(offset: int) -> np.ndarray:
    """Sources inside rows of 16 lanes; -1 beyond them."""
    place = LANE % 16 + offset
    return np.where((place >= 0) & (place < 16), LANE + offset, -1)


DPP = {
    "quad_perm:[3,0,2,1]": LANE // 4 * 4 + np.array([3, 0, 2, 1])[LANE % 4],
    **{f"row_shl:{n}": in_row(n) for n in (1, 7, 15)},
    **{f"row_shr:{n}": in_row(-n) for n in (1, 7, 15)},
    **{f"row_ror:{n}": LANE // 16 * 16 + (LANE - n) % 16 for n in (1, 7, 15)},
    "wave_shl:1": np.where(LANE < 63, LANE + 1, -1),
    "wave_shr:1": LANE - 1,
    "wave_rol:1": (LANE + 1) % 64,
    "wave_ror:1": (LANE - 1) % 64,
    "row_mirror": LANE // 16 * 16 + 15 - LANE % 16,
    "row_half_mirror": LANE // 8 * 8 + 7 - LANE % 8,
    "row_bcast:15": np.where(LANE < 16, -1, LANE // 16 * 16 - 1),
    "row_bcast:31": np.where(LANE < 32, -1, 31),
    "row_newbcast:5": LANE // 16 * 16 + 5,
}


def set_exec(mask: int) -> str:
    return f"s_mov_b32 exec_lo, {mask & 0xFFFFFFFF:#x}\ns_mov_b32 exec_hi, {mask >> 32:#x}\n"


def active(mask: int) -> np.ndarray:
    return np.array([mask >> n & 1 for n in range(64)], bool)


@pytest.mark.parametrize("mask", [FULL, 0xFF0F_FFFF_7FFE_A5A5])
@pytest.mark.parametrize("bound", ["", " bound_ctrl:1"])
@pytest.mark.parametrize("control", DPP)
def test_dpp_takes_lanes_from_elsewhere(asm, control, bound, mask):
    rows, banks = 0xB, 0xD
    code = f"""{set_exec(mask)}
  v_mov_b32_dpp v20, v10 {control} row_mask:0xf bank_mask:0xf{bound}
  v_add_u32_dpp v21, v10, v11 {control} row_mask:{rows:#x} bank_mask:{banks:#x}{bound}
"""
    result = asm(code, v={10: VALUES, 11: OTHER, 20: OLD, 21: OLD}, out=["v20", "v21"])
    source = DPP[control]
    there = (source >= 0) & active(mask)[source]
    moved = np.where(there, VALUES[source], 0)
    writes = active(mask) & (there | bool(bound))
    np.testing.assert_array_equal(result["v20"], np.where(writes, moved, OLD))
    enabled = (rows >> LANE // 16 & 1).astype(bool) & (banks >> LANE // 4 % 4 & 1).astype(bool)
    summed = (moved + OTHER.astype(np.uint64)).astype(np.uint32)
    np.testing.assert_array_equal(result["v21"], np.where(writes & enabled, summed, OLD))


def test_dpp_takes_float_modifiers(asm):
    values = LANE.astype(np.float32) - 31
    code = "v_add_f32_dpp v20, -v10, |v11| row_shr:1 row_mask:0xf bank_mask:0xf bound_ctrl:1\n"
    result = asm(code, v={10: values, 11: -values, 20: OLD}, out=["v20"])
    moved = np.where(LANE % 16 == 0, np.float32(0), -np.roll(values, 1))
    np.testing.assert_array_equal(result["v20"].view(np.float32), moved + np.abs(values))


SELECT = {
    **{f"BYTE_{n}": (8 * n, 8) for n in range(4)},
    **{f"WORD_{n}": (16 * n, 16) for n in range(2)},
    "DWORD": (0, 32),
}


def selected(values: np.ndarray, name: str, *, signed: bool = False) -> np.ndarray:
    shift, bits = SELECT[name]
    field = values.astype(np.int64) >> shift & ((1 << bits) - 1)
    return np.where(signed & (field >> (bits - 1) & 1 == 1), field - (1 << bits), field)


@pytest.mark.parametrize("first", SELECT)
@pytest.mark.parametrize("signed", [False, True])
def test_sdwa_selects_parts_of_sources(asm, first, signed):
    source = "sext(v10)" if signed else "v10"
    code = f"v_add_u32_sdwa v20, {source}, v11 dst_sel:DWORD dst_unused:UNUSED_PAD "
    code += f"src0_sel:{first} src1_sel:WORD_1\n"
    result = asm(code, v={10: VALUES, 11: OTHER, 20: OLD}, out=["v20"])
    expected = selected(VALUES, first, signed=signed) + selected(OTHER, "WORD_1")
    np.testing.assert_array_equal(result["v20"], (expected & 0xFFFFFFFF).astype(np.uint32))


@pytest.mark.parametrize("mask", [FULL, 0x0F0F_FFFF_7FFE_A5A5])
@pytest.mark.parametrize("unused", ["PAD", "SEXT", "PRESERVE"])
@pytest.mark.parametrize("to", [name for name in SELECT if name != "DWORD"])
def test_sdwa_places_results_in_parts_of_the_destination(asm, to, unused, mask):
    code = set_exec(mask) + f"v_xor_b32_sdwa v20, v10, v11 dst_sel:{to} dst_unused:UNUSED_{unused} "
    code += "src0_sel:DWORD src1_sel:DWORD\n"
    result = asm(code, v={10: VALUES, 11: OTHER, 20: OLD}, out=["v20"])
    shift, bits = SELECT[to]
    value = (VALUES ^ OTHER).astype(np.int64) & ((1 << bits) - 1)
    field = ((1 << bits) - 1) << shift
    rest = np.zeros(64, np.int64)
    if unused == "PRESERVE":
        rest = OLD.astype(np.int64) & ~field
    elif unused == "SEXT":
        above = 0xFFFFFFFF & ~field & ~((1 << shift) - 1)
        rest = np.where(value >> (bits - 1) & 1, above, 0)
    expected = (value << shift | rest).astype(np.uint32)
    np.testing.assert_array_equal(result["v20"], np.where(active(mask), expected, OLD))


@pytest.mark.parametrize("mask", [FULL, 0x0000_FFFF_FFFF_00F0])
@pytest.mark.parametrize("distance", [16, 32])
def test_permlane_swaps_exchange_rows_of_two_registers(asm, distance, mask):
    code = set_exec(mask) + f"v_permlane{distance}_swap_b32 v10, v11\n"
    result = asm(code, v={10: VALUES, 11: OTHER}, out=["v10", "v11"])
    first, second = VALUES.copy(), OTHER.copy()
    on = active(mask)
    for lane in range(64):
        partner = lane ^ distance
        if not (on[lane] and on[partner]):
            continue
        if lane & distance:
            first[lane] = OTHER[partner]
        else:
            second[lane] = VALUES[partner]
    np.testing.assert_array_equal(result["v10"], first)
    np.testing.assert_array_equal(result["v11"], second)


def test_swap_exchanges_active_lanes(asm):
    mask = 0x0123_4567_89AB_CDEF
    code = set_exec(mask) + "v_swap_b32 v10, v11\n"
    result = asm(code, v={10: VALUES, 11: OTHER}, out=["v10", "v11"])
    np.testing.assert_array_equal(result["v10"], np.where(active(mask), OTHER, VALUES))
    np.testing.assert_array_equal(result["v11"], np.where(active(mask), VALUES, OTHER))


def test_readlane_and_writelane_ignore_exec(asm):
    code = set_exec(1) + "v_readlane_b32 s10, v10, 63\nv_readlane_b32 s11, v10, s20\n"
    code += "v_writelane_b32 v11, s21, 62\nv_writelane_b32 v11, 7, s20\n"
    result = asm(
        code, v={10: VALUES, 11: OTHER}, s={20: 64 + 5, 21: 0x1234}, out=["s10", "s11", "v11"]
    )
    assert result.scalar("s10") == VALUES[63]
    assert result.scalar("s11") == VALUES[5]
    expected = OTHER.copy()
    expected[62], expected[5] = 0x1234, 7
    np.testing.assert_array_equal(result["v11"], expected)


@pytest.mark.parametrize(
    ("mask", "lane"), [(FULL, 0), (0x8000_0000_0000_0000, 63), (0xF0, 4), (0, 0)]
)
def test_readfirstlane_takes_the_lowest_active_lane(asm, mask, lane):
    code = set_exec(mask) + "v_readfirstlane_b32 s10, v10\n"
    assert asm(code, v={10: VALUES}, out=["s10"]).scalar("s10") == VALUES[lane]


def test_mbcnt_counts_lanes_below(asm):
    mask = 0x8123_4567_89AB_CDEF
    code = f"v_mov_b32 v10, {mask & 0xFFFFFFFF:#x}\nv_mov_b32 v11, {mask >> 32:#x}\n"
    code += "v_mbcnt_lo_u32_b32 v20, v10, v12\nv_mbcnt_hi_u32_b32 v20, v11, v20\n"
    result = asm(code, v={12: OTHER}, out=["v20"])
    below = np.array([(mask & ((1 << n) - 1)).bit_count() for n in range(64)], np.uint32)
    np.testing.assert_array_equal(result["v20"], OTHER + below)


def test_cndmask_picks_by_mask_and_takes_modifiers(asm):
    code = "v_cndmask_b32_e64 v20, v10, v11, s[10:11]\ns_mov_b64 vcc, s[10:11]\n"
    code += "v_cndmask_b32_e32 v21, v10, v11, vcc\nv_cndmask_b32_e64 v22, -v10, |v11|, vcc\n"
    code += "v_cndmask_b32_sdwa v23, v10, v11, vcc dst_sel:DWORD dst_unused:UNUSED_PAD "
    code += "src0_sel:WORD_1 src1_sel:BYTE_0\n"
    out = ["v20", "v21", "v22", "v23"]
    result = asm(code, v={10: VALUES, 11: OTHER}, s={10: 0x0FF0A5A5, 11: 0xF0012345}, out=out)
    mask = active(0xF0012345_0FF0A5A5)
    for name in ("v20", "v21"):
        np.testing.assert_array_equal(result[name], np.where(mask, OTHER, VALUES))
    signed = np.where(mask, OTHER & 0x7FFFFFFF, VALUES ^ 0x80000000)
    np.testing.assert_array_equal(result["v22"], signed)
    np.testing.assert_array_equal(result["v23"], np.where(mask, OTHER & 255, VALUES >> 16))


def test_accumulation_registers_hold_what_they_are_given(asm):
    code = "v_accvgpr_write_b32 a3, v10\ns_nop 4\nv_accvgpr_mov_b32 a4, a3\ns_nop 4\n"
    code += "v_accvgpr_read_b32 v20, a4\nv_accvgpr_write_b32 a5, 1.0\ns_nop 4\n"
    result = asm(code, v={10: VALUES}, out=["v20", "a3", "a5"])
    np.testing.assert_array_equal(result["v20"], VALUES)
    np.testing.assert_array_equal(result["a3"], VALUES)
    assert (result["a5"] == 0x3F800000).all()


def test_inactive_lanes_keep_their_values(asm):
    mask = 0xAAAA_5555_F0F0_0FF1
    code = set_exec(mask) + "v_mov_b32 v20, v10\nv_mul_lo_u32 v21, v10, v11\n"
    code += "v_add_f64 v[22:23], v[10:11], v[10:11]\nv_pk_add_u16 v24, v10, v11\n"
    out = ["v20", "v21", "v22", "v23", "v24"]
    registers = {10: VALUES, 11: OTHER} | dict.fromkeys(range(20, 25), OLD)
    result = asm(code, v=registers, out=out)
    everywhere = asm(code[len(set_exec(mask)) :], v=registers, out=out)
    for name in out:
        np.testing.assert_array_equal(result[name], np.where(active(mask), everywhere[name], OLD))
    assert (everywhere["v20"] == VALUES).all()
