# SPDX-License-Identifier: MIT
"""Distances that the hardware leaves to the program: found one wait state short, and not later."""

import numpy as np
import pytest

from hipdecode.errors import SimulatorError

LANES = np.arange(64)

# (before, states that the hardware needs, after, what is said): by arch where they differ.
MFMA = "v_mfma_f32_16x16x32_fp8_fp8 v[20:23], v[8:9], v[10:11], v[12:15]"
BIG = "v_mfma_f32_32x32x16_fp8_fp8 v[40:55], v[8:9], v[10:11], v[60:75]"
HAZARDS = {
    "VALU reads the result": (
        MFMA, (7, 8), "v_mov_b32 v30, v21", "v21, the result of an MFMA of 4 passes, is read",
    ),
    "memory reads the result": (MFMA, (7, 8), "global_store_dword v1, v23, s[0:1]", "v23"),
    "VALU reads a larger result": (BIG, (11, 12), "v_mov_b32 v30, v55", "MFMA of 8 passes"),
    "overwritten result": (MFMA, (7, 8), "v_mov_b32 v20, 1", "is overwritten"),
    "overwritten addend": (MFMA, (3, 3), "v_mov_b32 v12, 1", "v12, the addend"),
    "operand of the next": (
        MFMA, (7, 8), "v_mfma_f32_16x16x32_fp8_fp8 v[24:27], v[20:21], v[10:11], 0", "v20",
    ),
    "addend at other registers": (
        BIG, (9, 10), "v_mfma_f32_16x16x32_fp8_fp8 v[24:27], v[8:9], v[10:11], v[40:43]",
        "as an addend at other registers",
    ),
    "f32 result": (
        "v_mfma_f32_16x16x4_f32 v[20:23], v8, v9, 0", (10, 10), "v_mov_b32 v30, v21", "8 passes",
    ),
    "VALU result as an operand": ("v_mov_b32 v8, 0", (2, 2), MFMA, "v8 is read"),
    "SGPR of a VALU read by memory": (
        "v_readfirstlane_b32 s0, v16", (5, 5), "global_load_dword v30, v1, s[0:1]", "s0 is read",
    ),
    "mask of a compare": (
        "v_cmp_eq_u32 vcc, 0, v1", (2, 2), "v_cndmask_b32 v30, v8, v9, vcc", "vcc_lo is read",
    ),
    "lane select": (
        "v_readfirstlane_b32 s20, v17", (4, 4), "v_readlane_b32 s21, v1, s20", "s20 is read",
    ),
    "readlane of a fresh value": ("v_mov_b32 v30, 0", (1, 1), "v_readlane_b32 s21, v30, 3", "v30"),
    "DPP of a fresh value": (
        "v_mov_b32 v30, 0", (2, 2), "v_mov_b32_dpp v31, v30 row_shl:1 row_mask:0xf bank_mask:0xf",
        "v30",
    ),
    "transcendental result": ("v_exp_f32 v30, v8", (1, 1), "v_add_f32 v31, v30, v30", "v30"),
    "M0 before a load to LDS": (
        "s_mov_b32 m0, 0", (1, 1), "global_load_lds_dword v1, s[0:1]", "m0 is read",
    ),
    "data of a wide store": (
        "global_store_dwordx4 v1, v[12:15], s[0:1]", (2, 2), "v_mov_b32 v13, 1",
        "while a wide store still reads it",
    ),
    "part of a register": (
        "v_add_u32_sdwa v12, v8, v9 dst_sel:WORD_1 dst_unused:UNUSED_PRESERVE src0_sel:DWORD "
        "src1_sel:DWORD", (1, 1), "v_mov_b32 v30, v12", "of which a part was written",
    ),
}  # fmt: skip


@pytest.mark.parametrize("arch", ["gfx942", "gfx950"])
@pytest.mark.parametrize("name", HAZARDS)
def test_a_hazard_is_found_one_state_short_and_not_later(asm, name, arch):
    before, needed, after, message = HAZARDS[name]
    states = needed[arch == "gfx950"]
    registers = dict.fromkeys(range(8, 16), 0) | dict.fromkeys(range(60, 76), 0)
    kwargs = {
        "v": {1: LANES * 4, 16: 0, 17: 5, **registers}, "memory": np.zeros(1024, np.uint32),
        "lds": 1024, "arch": arch,
    }  # fmt: skip
    if name.startswith("SGPR"):  # s[0:1] stays the address
        low = "s_mov_b32 s21, s0\n v_mov_b32 v16, s21\n s_nop 4\n"
        before = low + before

    def program(wait_states: int) -> str:
        nops = "".join(f"s_nop {min(n, 16) - 1}\n" for n in (wait_states,) if n > 0)
        return f"s_nop 15\n {before}\n {nops} {after}\n"

    message = f"hazards: .*{message}.* after {states - 1} wait states; the hardware needs {states}"
    with pytest.raises(SimulatorError, match=message):
        asm(program(states - 1), out=[], **kwargs)
    asm(program(states), out=[], **kwargs)


def test_independent_instructions_count_as_wait_states(asm):
    filler = "".join(f"v_mov_b32 v{100 + i}, 1\n" for i in range(8))
    registers = dict.fromkeys(range(8, 16), 0)
    asm(f"s_nop 15\n {MFMA}\n {filler} v_mov_b32 v30, v21", v=registers, out=[])


def test_the_same_registers_are_forwarded_as_addend(asm):
    registers = dict.fromkeys(range(8, 16), 0)
    again = MFMA.replace("v[12:15]", "v[20:23]")
    asm(f"s_nop 15\n {MFMA}\n {again}\n s_nop 15", v=registers, out=[])
