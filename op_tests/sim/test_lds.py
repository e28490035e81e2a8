# SPDX-License-Identifier: MIT
"""DS instructions of the simulator against numpy, and the model of bank conflicts."""

import numpy as np
import pytest

LANES = np.arange(64)


def words(seed: int, count: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 2**32, count, dtype=np.uint32)


def fill(count: int) -> str:
    """LDS dwords 0 to 64 * count - 1 = v30, v31, ... by lane."""
    stores = "".join(f"  ds_write_b32 v29, v{30 + i} offset:{256 * i}\n" for i in range(count))
    return "  v_lshlrev_b32 v29, 2, v0\n" + stores


def filled(data: np.ndarray) -> dict[int, np.ndarray]:
    return {30 + i: row for i, row in enumerate(data.reshape(-1, 64))}


def register(first: int, dwords: int) -> str:
    return f"v{first}" if dwords == 1 else f"v[{first}:{first + dwords - 1}]"


@pytest.mark.parametrize("dwords", [1, 2, 3, 4])
def test_reads_and_writes_of_every_width(asm, dwords):
    bits, size = 32 * dwords, 4 * dwords
    values = {4 + i: words(i, 64) for i in range(dwords)}
    order = np.random.default_rng(1).permutation(64)
    code = f"""
  ds_write_b{bits} v1, {register(4, dwords)} offset:32
  ds_read_b{bits} {register(20, dwords)}, v2 offset:32
  s_waitcnt lgkmcnt(0)
"""
    out = [f"v{20 + i}" for i in range(dwords)]
    result = asm(code, v={1: LANES * size, 2: order * size, **values}, out=out, lds=2048)
    for i, name in enumerate(out):
        np.testing.assert_array_equal(result[name], values[4 + i][order])


@pytest.mark.parametrize("dwords", [1, 2])
@pytest.mark.parametrize(("form", "unit"), [("2", 1), ("2st64", 64)])
def test_two_at_once_count_offsets_in_elements(asm, dwords, form, unit):
    bits = 32 * dwords
    values = {4 + i: words(i, 64) for i in range(2 * dwords)}
    code = f"""
  ds_write{form}_b{bits} v1, {register(4, dwords)}, {register(4 + dwords, dwords)} \
offset0:2 offset1:3
  ds_read{form}_b{bits} {register(20, 2 * dwords)}, v1 offset0:2 offset1:3
  ds_read_b32 v28, v1 offset:{3 * unit * 4 * dwords}
  s_waitcnt lgkmcnt(0)
"""
    step = 8 * unit * dwords if unit == 1 else 4 * dwords
    out = [f"v{20 + i}" for i in range(2 * dwords)]
    result = asm(code, v={1: LANES * step, **values}, out=[*out, "v28"], lds=8192)
    for i, name in enumerate(out):
        np.testing.assert_array_equal(result[name], values[4 + i])
    np.testing.assert_array_equal(result["v28"], values[4 + dwords])


def test_narrow_reads_and_writes(asm):
    data, kept = words(2, 64), words(3, 64)
    code = """
  ds_write_b8 v1, v2
  ds_write_b8_d16_hi v1, v2 offset:1
  ds_write_b16_d16_hi v1, v2 offset:2
  ds_write_b16 v1, v2 offset:256
  ds_write_b16 v1, v2 offset:258
  ds_read_b32 v20, v1
  ds_read_u8 v21, v1
  ds_read_i8 v22, v1
  ds_read_u16 v23, v1 offset:256
  ds_read_i16 v24, v1 offset:256
  ds_read_u16_d16 v25, v1 offset:256
  ds_read_u16_d16_hi v26, v1 offset:256
  ds_read_i8_d16_hi v27, v1
  s_waitcnt lgkmcnt(0)
"""
    out = [f"v{r}" for r in range(20, 28)]
    registers = {1: LANES * 4, 2: data, 25: kept, 26: kept, 27: kept}
    got = asm(code, v=registers, out=out, lds=512)
    low, signed = data & 0xFF, (data & 0xFF).astype(np.uint8).view(np.int8).astype(np.int32)
    half = data & 0xFFFF
    expected = {
        "v20": low | (data >> 16 & 0xFF) << 8 | data & 0xFFFF0000,
        "v21": low,
        "v22": signed.view(np.uint32),
        "v23": half,
        "v24": half.astype(np.uint16).view(np.int16).astype(np.int32).view(np.uint32),
        "v25": (kept & 0xFFFF0000) | half,
        "v26": (kept & 0xFFFF) | half << 16,
        "v27": (kept & 0xFFFF) | (signed.view(np.uint32) & 0xFFFF) << 16,
    }
    for name, value in expected.items():
        np.testing.assert_array_equal(got[name], value.astype(np.uint32), err_msg=name)


def test_atomics_of_one_word_add_up_and_return_in_lane_order(asm):
    code = """
  v_mov_b32 v4, 7
  v_mov_b32 v5, 0
  ds_write_b32 v5, v4
  ds_add_rtn_u32 v20, v5, v2
  ds_max_u32 v5, v3
  ds_read_b32 v21, v5
  s_waitcnt lgkmcnt(0)
"""
    result = asm(code, v={2: LANES, 3: LANES * 50}, out=["v20", "v21"], lds=64)
    np.testing.assert_array_equal(result["v20"], 7 + np.cumsum(LANES) - LANES)
    assert (result["v21"] == 63 * 50).all()


def test_compare_and_store_takes_the_expected_value_first(asm):
    code = (
        fill(1)
        + """
  ds_cmpst_rtn_b32 v20, v29, v2, v3
  ds_read_b32 v21, v29
  s_waitcnt lgkmcnt(0)
"""
    )
    expected = np.where(LANES % 2 == 0, LANES, 9999)
    result = asm(code, v={30: LANES, 2: expected, 3: LANES + 100}, out=["v20", "v21"], lds=256)
    np.testing.assert_array_equal(result["v20"], LANES)
    np.testing.assert_array_equal(result["v21"], np.where(LANES % 2 == 0, LANES + 100, LANES))


def test_float_and_64_bit_atomics(asm):
    code = (
        fill(2)
        + """
  v_lshlrev_b32 v28, 3, v0
  ds_add_f32 v29, v2
  ds_add_u64 v28, v[4:5] offset:512
  ds_read_b32 v20, v29
  ds_read_b64 v[22:23], v28 offset:512
  s_waitcnt lgkmcnt(0)
"""
    )
    code = code.replace("  v_lshlrev_b32 v28", "  ds_write_b32 v29, v31 offset:512\n"
                        "  ds_write_b32 v29, v31 offset:768\n  v_lshlrev_b32 v28")  # fmt: skip
    x = np.linspace(-1, 1, 64, dtype=np.float32)
    start = np.linspace(5, 6, 64, dtype=np.float32)
    ones = np.full(64, 0xFFFFFFFF, np.uint32)
    result = asm(code, v={30: start, 31: ones, 2: x, 4: 1, 5: 0}, out=["v20", "v22", "v23"],
                 lds=1024)  # fmt: skip
    np.testing.assert_array_equal(result["v20"].view(np.float32), start + x)
    assert (result["v22"] == 0).all()
    assert (result["v23"] == 0).all()


def test_bpermute_pulls_and_permute_pushes(asm):
    order = np.random.default_rng(4).permutation(64)
    data = words(5, 64)
    code = """
  ds_bpermute_b32 v20, v1, v2
  ds_permute_b32 v21, v1, v2
  s_waitcnt lgkmcnt(0)
"""
    result = asm(code, v={1: order * 4, 2: data}, out=["v20", "v21"])
    np.testing.assert_array_equal(result["v20"], data[order])
    pushed = np.zeros(64, np.uint32)
    pushed[order] = data
    np.testing.assert_array_equal(result["v21"], pushed)


def test_bpermute_of_a_disabled_lane_is_zero(asm):
    code = """
  v_mov_b32 v20, 77
  s_mov_b64 exec, 0xff
  ds_bpermute_b32 v20, v1, v2
  s_waitcnt lgkmcnt(0)
"""
    result = asm(code, v={1: (LANES + 4) * 4, 2: LANES + 1}, out=["v20"])
    np.testing.assert_array_equal(result["v20"][:8], [5, 6, 7, 8, 0, 0, 0, 0])
    assert (result["v20"][8:] == 77).all()


@pytest.mark.parametrize(
    ("control", "source"),
    [
        ("swizzle(SWAP,16)", LANES ^ 16),
        ("swizzle(REVERSE,8)", LANES ^ 7),
        ("swizzle(BROADCAST,4,2)", (LANES & ~3) | 2),
        ("swizzle(QUAD_PERM,3,0,1,2)", (LANES & ~3) + np.array([3, 0, 1, 2])[LANES % 4]),
    ],
)
def test_swizzle(asm, control, source):
    data = words(6, 64)
    code = f"ds_swizzle_b32 v20, v2 offset:{control}\n s_waitcnt lgkmcnt(0)"
    result = asm(code, v={2: data}, out=["v20"])
    np.testing.assert_array_equal(result["v20"], data[source])


def as_elements(packed: np.ndarray, bits: int) -> np.ndarray:
    """Little-endian bit fields of a row of dwords."""
    number = int.from_bytes(np.ascontiguousarray(packed).tobytes(), "little")
    count = packed.size * 32 // bits
    return np.array([number >> bits * i & ((1 << bits) - 1) for i in range(count)])


@pytest.mark.parametrize(
    ("name", "bits", "dwords"),
    [("b64_tr_b16", 16, 2), ("b64_tr_b8", 8, 2), ("b64_tr_b4", 4, 2), ("b96_tr_b6", 6, 3)],
)
def test_transposing_reads_give_each_lane_a_column(asm, name, bits, dwords):
    data = words(bits, 64 * dwords)
    order = np.random.default_rng(7).permutation(64)  # where each lane's piece of a row lies
    code = (
        fill(dwords)
        + f"""
  ds_read_{name} {register(20, dwords)}, v1
  s_waitcnt lgkmcnt(0)
"""
    )
    out = [f"v{20 + i}" for i in range(dwords)]
    result = asm(code, v={**filled(data), 1: order * 4 * dwords}, out=out, lds=1024)
    got = np.stack([result[name] for name in out], 1)
    pieces = data.reshape(64, dwords)[order]
    for block in range(4):
        lanes = slice(16 * block, 16 * block + 16)
        # The lanes' elements one after the other are a matrix of 16 columns.
        matrix = np.concatenate([as_elements(row, bits) for row in pieces[lanes]]).reshape(-1, 16)
        for column in range(16):
            np.testing.assert_array_equal(
                as_elements(got[16 * block + column], bits), matrix[:, column]
            )


def lds_counts(asm, code: str, arch: str, **kwargs) -> dict:
    return asm(code, out=[], arch=arch, **kwargs).counts["sum"]


@pytest.mark.parametrize(
    ("arch", "stride", "cycles", "conflicts"),
    [
        ("gfx950", 4, 1, 0),  # 64 banks: all lanes at once
        ("gfx950", 8, 2, 1),
        ("gfx950", 256, 64, 63),
        ("gfx950", 0, 1, 0),  # one address: broadcast
        ("gfx942", 4, 2, 0),  # 32 banks: two phases
        ("gfx942", 8, 4, 2),
        ("gfx942", 128, 64, 62),
    ],
)
def test_bank_conflicts_of_dword_reads(asm, arch, stride, cycles, conflicts):
    code = "  ds_write_b32 v1, v0\n  ds_read_b32 v20, v1\n s_waitcnt lgkmcnt(0)\n"
    both = lds_counts(asm, code, arch, v={1: LANES * stride}, lds=16384)
    write = lds_counts(asm, code.split("\n")[0], arch, v={1: LANES * stride}, lds=16384)
    assert both["lds_cycles"] - write["lds_cycles"] == cycles
    assert both["lds_conflict_cycles"] - write["lds_conflict_cycles"] == conflicts


@pytest.mark.parametrize(("arch", "cycles"), [("gfx950", 4), ("gfx942", 8)])
def test_rows_of_16_bytes_are_read_without_conflict_when_contiguous(asm, arch, cycles):
    code = """
  ds_write_b128 v1, v[4:7]
  ds_read_b128 v[20:23], v1
  s_waitcnt lgkmcnt(0)
"""
    registers = {1: LANES * 16, 4: 1, 5: 2, 6: 3, 7: 4}
    counts = lds_counts(asm, code, arch, v=registers, lds=1024)
    assert counts["lds_conflict_cycles"] == 0
    assert counts["lds_cycles"] == 8 + cycles  # writes have 32 banks on both
    assert counts["lds_bytes_read"] == counts["lds_bytes_written"] == 1024


def test_a_swizzle_removes_the_conflicts_of_a_column_of_rows(asm):
    """Rows of 128 bytes, 16 rows a phase: 16-byte pieces exchanged by row, or not."""
    row, piece = LANES % 16, LANES // 16
    plain = row * 256 + piece * 16
    swizzled = row * 256 + (piece ^ row) * 16
    init = "".join(f"  ds_write_b128 v29, v[4:7] offset:{1024 * i}\n" for i in range(4))
    code = "  v_lshlrev_b32 v29, 4, v0\n" + init + "  ds_read_b128 v[20:23], v1\n" \
        "  s_waitcnt lgkmcnt(0)\n"  # fmt: skip
    data = {4: 1, 5: 2, 6: 3, 7: 4}
    conflicts = [
        lds_counts(asm, code, "gfx950", v={1: at, **data}, lds=4096)["lds_conflict_cycles"]
        for at in (plain, swizzled)
    ]
    assert conflicts[0] > 0
    assert conflicts[1] == 0
