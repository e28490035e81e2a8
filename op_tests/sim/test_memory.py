# SPDX-License-Identifier: MIT
"""Global, flat, private and buffer memory of the simulator, against numpy."""

import itertools

import numpy as np
import pytest

from hipdecode.errors import SimulatorError

LANES = np.arange(64)


def words(seed: int, count: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 2**32, count, dtype=np.uint32)


def address_code(offsets: int) -> str:
    """v[10:11] = s[0:1] + v<offsets>."""
    return f"""
  v_mov_b32 v11, s1
  v_add_co_u32 v10, vcc, s0, v{offsets}
  s_nop 1
  v_addc_co_u32 v11, vcc, 0, v11, vcc
"""


@pytest.mark.parametrize("arch", ["gfx942", "gfx950"])
@pytest.mark.parametrize("dwords", [1, 2, 3, 4])
def test_global_load_and_store_move_dwords(asm, arch, dwords):
    memory = words(dwords, 2048)
    source = memory.copy()
    lane = np.random.default_rng(3).permutation(64)
    suffix = "" if dwords == 1 else f"x{dwords}"
    last = 20 + dwords - 1
    registers = "v20" if dwords == 1 else f"v[20:{last}]"
    code = f"""
  global_load_dword{suffix} {registers}, v1, s[0:1] offset:16
  s_waitcnt vmcnt(0)
  global_store_dword{suffix} v2, {registers}, s[0:1]
"""
    out = [f"v{r}" for r in range(20, last + 1)]
    result = asm(
        code, v={1: lane * 16, 2: 4096 + LANES * 16}, memory=memory, out=out, arch=arch
    )  # fmt: skip
    for i, name in enumerate(out):
        np.testing.assert_array_equal(result[name], source[4 + lane * 4 + i])
        np.testing.assert_array_equal(memory[1024 + LANES * 4 + i], source[4 + lane * 4 + i])


@pytest.mark.parametrize("space", ["global", "flat"])
def test_64_bit_addresses_reach_the_same_bytes(asm, space):
    memory = words(1, 128)
    source = memory.copy()
    off = ", off" if space == "global" else ""
    code = (
        address_code(1)
        + f"""
  {space}_load_dword v20, v[10:11]{off} offset:4
  s_waitcnt vmcnt(0) lgkmcnt(0)
"""
    )
    result = asm(code, v={1: LANES[::-1] * 4}, memory=memory, out=["v20"])
    np.testing.assert_array_equal(result["v20"], source[LANES[::-1] + 1])


@pytest.mark.parametrize(
    ("name", "dtype"),
    [("ubyte", np.uint8), ("sbyte", np.int8), ("ushort", np.uint16), ("sshort", np.int16)],
)
def test_narrow_loads_extend(asm, name, dtype):
    memory = words(4, 128)
    size = np.dtype(dtype).itemsize
    code = f"global_load_{name} v20, v1, s[0:1] offset:3\n s_waitcnt vmcnt(0)"
    expected = np.frombuffer(memory.tobytes()[3 : 3 + 64 * size], dtype).astype(np.int32)
    result = asm(code, v={1: LANES * size}, memory=memory, out=["v20"])
    np.testing.assert_array_equal(result["v20"].view(np.int32), expected)


@pytest.mark.parametrize("high", [False, True])
@pytest.mark.parametrize("name", ["short_d16", "ubyte_d16", "sbyte_d16"])
def test_d16_loads_keep_the_other_half(asm, name, high):
    memory = words(5, 64)
    kept = words(6, 64)
    dtype = {"short_d16": np.uint16, "ubyte_d16": np.uint8, "sbyte_d16": np.int8}[name]
    elements = memory.view(np.uint8).reshape(64, 4)[:, : np.dtype(dtype).itemsize]
    value = np.ascontiguousarray(elements).view(dtype).ravel().astype(np.int32) & 0xFFFF
    expected = (kept & 0xFFFF) | value << 16 if high else (kept & 0xFFFF0000) | value
    code = f"global_load_{name}{'_hi' if high else ''} v20, v1, s[0:1]\n s_waitcnt vmcnt(0)"
    result = asm(code, v={1: LANES * 4, 20: kept}, memory=memory, out=["v20"])
    np.testing.assert_array_equal(result["v20"], expected.astype(np.uint32))


def test_narrow_stores_leave_the_neighbours(asm):
    memory = np.zeros(256, np.uint32)
    data = words(7, 64)
    code = """
  global_store_byte v1, v2, s[0:1]
  global_store_byte_d16_hi v1, v2, s[0:1] offset:1
  global_store_short v1, v2, s[0:1] offset:256
  global_store_short_d16_hi v1, v2, s[0:1] offset:514
"""
    asm(code, v={1: LANES * 4, 2: data}, memory=memory, out=[])
    np.testing.assert_array_equal(memory[:64], (data & 0xFF) | (data >> 16 & 0xFF) << 8)
    np.testing.assert_array_equal(memory[64:128], data & 0xFFFF)
    np.testing.assert_array_equal(memory[128:192], data & 0xFFFF0000)


def test_disabled_lanes_touch_nothing(asm):
    memory = np.zeros(64, np.uint32)
    code = """
  v_mov_b32 v20, 9
  s_mov_b64 exec, 0x55
  global_load_dword v20, v1, s[0:1]
  global_store_dword v1, v3, s[0:1] offset:4
  s_waitcnt vmcnt(0)
"""
    # Lanes that are off hold addresses far outside.
    wild = np.where(LANES % 2 == 0, 0, 0x7FFFFFFF)
    wild[:8] = np.where(LANES[:8] % 2 == 0, LANES[:8] * 8, 0x7FFFFFFF)
    result = asm(code, v={1: wild, 3: LANES + 100}, memory=memory, out=["v20"])
    active = (0x55 >> LANES & 1).astype(bool)
    assert (result["v20"][~active] == 9).all()
    assert sorted(memory[memory != 0]) == [100, 102, 104, 106]


def test_private_memory_belongs_to_each_lane(asm):
    code = """
  scratch_store_dwordx2 off, v[2:3], off offset:8
  v_mov_b32 v4, 4
  scratch_store_dword v4, v2, off
  s_movk_i32 s20, 8
  scratch_load_dword v20, off, s20 offset:4
  scratch_load_dword v21, v4, off
  s_waitcnt vmcnt(0)
"""
    result = asm(code, v={2: LANES, 3: LANES * 7}, out=["v20", "v21"], scratch=16)
    np.testing.assert_array_equal(result["v20"], LANES * 7)
    np.testing.assert_array_equal(result["v21"], LANES)


def test_private_memory_has_an_end(asm):
    with pytest.raises(SimulatorError, match="bounds: writes private byte 16 of 16"):
        asm("scratch_store_dword off, v2, off offset:16", v={2: 1}, out=[], scratch=16)


def buffer_resource(records: int, stride: int = 0) -> str:
    return f"""
  s_mov_b32 s8, s0
  s_and_b32 s9, s1, 0xffff
  s_or_b32 s9, s9, {stride << 16}
  s_mov_b32 s10, {records}
  s_mov_b32 s11, 0x00027000
"""


def test_buffer_loads_past_the_end_give_zero_and_stores_vanish(asm):
    memory = words(8, 1024)
    source = memory.copy()
    code = (
        buffer_resource(100)
        + """
  buffer_load_dword v20, v1, s[8:11], 0 offen
  buffer_load_dwordx4 v[24:27], v1, s[8:11], 0 offen offset:4
  s_waitcnt vmcnt(0)
  buffer_store_dword v2, v1, s[8:11], 0 offen
"""
    )
    result = asm(
        code, v={1: LANES * 4, 2: LANES}, memory=memory, out=["v20", "v24", "v25", "v26", "v27"]
    )  # fmt: skip
    inside = np.where(np.arange(256) < 25, source[:256], 0)
    np.testing.assert_array_equal(result["v20"], inside[:64])
    for i in range(4):  # each dword is inside or outside for itself
        np.testing.assert_array_equal(result[f"v{24 + i}"], inside[1 + i : 65 + i])
    np.testing.assert_array_equal(memory[:25], LANES[:25])
    np.testing.assert_array_equal(memory[25:], source[25:])


@pytest.mark.parametrize(("idxen", "offen"), [*itertools.product([False, True], repeat=2)])
def test_buffer_addresses_add_index_offset_and_scalar(asm, idxen, offen):
    memory = words(9, 4096)
    index, offset = LANES[::-1] % 16, LANES * 4
    registers = {2: index if idxen else offset, 3: offset}
    vector = {(False, False): "off", (True, True): "v[2:3]"}.get((idxen, offen), "v2")
    flags = ("idxen " if idxen else "") + ("offen " if offen else "")
    code = (
        buffer_resource(16384, stride=48)
        + f"""
  s_movk_i32 s20, 64
  buffer_load_dword v20, {vector}, s[8:11], s20 {flags}offset:12
  s_waitcnt vmcnt(0)
"""
    )
    at = 64 + 12 + idxen * index * 48 + offen * offset
    result = asm(code, v=registers, memory=memory, out=["v20"])
    np.testing.assert_array_equal(result["v20"], memory[at // 4] * np.ones(64, np.uint32))


@pytest.mark.parametrize(("arch", "dwords"), [("gfx942", 1), ("gfx950", 3), ("gfx950", 4)])
@pytest.mark.parametrize("form", ["global", "buffer"])
def test_loads_to_lds_land_by_lane(asm, arch, dwords, form):
    memory = words(10, 2048)
    lane = np.random.default_rng(11).permutation(64)
    size = "dword" if dwords == 1 else f"dwordx{dwords}"
    load = {
        "global": f"global_load_lds_{size} v1, s[0:1] offset:16",
        "buffer": f"buffer_load_{size} v1, s[8:11], 0 offen offset:16 lds",
    }[form]
    code = (
        buffer_resource(8192)
        + f"""
  s_movk_i32 m0, 256
  s_nop 0
  {load}
  s_waitcnt vmcnt(0)
  ds_read_b32 v20, v2 offset:272
  s_waitcnt lgkmcnt(0)
"""
    )
    out = asm(code, v={1: lane * 16, 2: LANES * 4 * dwords}, memory=memory, out=["v20"],
              arch=arch, lds=2048)  # fmt: skip
    np.testing.assert_array_equal(out["v20"], memory[4 + lane * 4])
    totals = out.counts["sum"]
    assert totals["direct_to_lds_bytes"] == 64 * 4 * dwords
    assert totals["by_class"]["vmem_to_lds"] == 1


ATOMICS = {
    "add": lambda old, x: old + x,
    "sub": lambda old, x: old - x,
    "swap": lambda _, x: x,
    "umin": np.minimum,
    "umax": np.maximum,
    "smin": lambda old, x: np.minimum(old.view(np.int32), x.view(np.int32)).view(np.uint32),
    "smax": lambda old, x: np.maximum(old.view(np.int32), x.view(np.int32)).view(np.uint32),
    "and": np.bitwise_and,
    "or": np.bitwise_or,
    "xor": np.bitwise_xor,
    "inc": lambda old, x: np.where(old >= x, 0, old + 1).astype(np.uint32),
    "dec": lambda old, x: np.where((old == 0) | (old > x), x, old - 1).astype(np.uint32),
}


@pytest.mark.parametrize("name", ATOMICS)
def test_global_atomics_update_and_return_what_was_there(asm, name):
    memory, operand = words(12, 64), words(13, 64)
    before = memory.copy()
    code = f"global_atomic_{name} v20, v1, v2, s[0:1] sc0\n s_waitcnt vmcnt(0)"
    result = asm(code, v={1: LANES * 4, 2: operand}, memory=memory, out=["v20"])
    np.testing.assert_array_equal(result["v20"], before)
    np.testing.assert_array_equal(memory, ATOMICS[name](before, operand))


def test_atomics_of_all_lanes_on_one_word_add_up(asm):
    memory = np.array([5, 0, 2**32 - 1, 0], np.uint32)
    code = """
  v_mov_b32 v4, 1
  v_mov_b32 v5, 0
  global_atomic_add v1, v2, s[0:1]
  global_atomic_add_x2 v1, v[4:5], s[0:1] offset:8
"""
    asm(code, v={1: 0, 2: LANES}, memory=memory, out=[])
    assert memory[0] == 5 + LANES.sum()
    assert memory[2:].view(np.uint64)[0] == 2**32 - 1 + 64


def test_compare_and_swap_writes_where_the_old_value_is_expected(asm):
    memory = LANES.astype(np.uint32)
    expected = np.where(LANES % 3 == 0, LANES, 1000)
    code = "global_atomic_cmpswap v20, v1, v[2:3], s[0:1] sc0\n s_waitcnt vmcnt(0)"
    result = asm(code, v={1: LANES * 4, 2: LANES + 500, 3: expected}, memory=memory, out=["v20"])
    np.testing.assert_array_equal(result["v20"], LANES)
    np.testing.assert_array_equal(memory, np.where(LANES % 3 == 0, LANES + 500, LANES))


def test_floating_point_atomics_add(asm):
    memory = np.zeros(128, np.float32)
    memory[:64] = np.linspace(-3, 4, 64)
    memory[64:] = np.full(128, 1.5, np.float16).view(np.float32)
    before = memory.copy()
    halves = np.full(128, 0.25, np.float16).view(np.uint32)
    code = """
  global_atomic_add_f32 v1, v2, s[0:1]
  global_atomic_pk_add_f16 v1, v3, s[0:1] offset:256
"""
    x = np.linspace(1, 2, 64, dtype=np.float32)
    asm(code, v={1: LANES * 4, 2: x, 3: halves}, memory=memory, out=[])
    np.testing.assert_array_equal(memory[:64], before[:64] + x)
    np.testing.assert_array_equal(memory[64:].view(np.float16), np.full(128, 1.75, np.float16))


def test_bytes_are_counted(asm):
    memory = np.zeros(1024, np.uint32)
    code = """
  global_load_dwordx4 v[4:7], v1, s[0:1]
  s_waitcnt vmcnt(0)
  global_store_dwordx2 v1, v[4:5], s[0:1]
"""
    with_code = asm(code, v={1: LANES * 16}, memory=memory, out=[]).counts["sum"]
    without = asm("", v={1: LANES * 16}, memory=memory, out=[]).counts["sum"]
    assert with_code["global_bytes_read"] - without["global_bytes_read"] == 1024
    assert with_code["global_bytes_written"] - without["global_bytes_written"] == 512
    assert with_code["by_class"]["vmem"] - without["by_class"]["vmem"] == 2
