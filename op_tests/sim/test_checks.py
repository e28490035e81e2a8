# SPDX-License-Identifier: MIT
"""Planted bugs: each is reported by the check that is named for it, and its repair runs."""

import itertools
import re

import numpy as np
import pytest

from hipdecode import sim
from hipdecode.errors import SimulatorError

LANES = np.arange(64)

# Register numbers by wave: v6 = lane * 4 of the workgroup; the neighbour wave's as v7.
TWO_WAVES = """
  v_lshlrev_b32 v6, 2, v0
  v_xor_b32 v7, 0x100, v6
"""
WAIT = "s_waitcnt lgkmcnt(0)"
BARRIER = f"{WAIT}\n  s_barrier"


def fails(asm, code: str, message: str, **kwargs) -> None:
    kwargs.setdefault("out", [])
    with pytest.raises(SimulatorError, match=message):
        asm(code, **kwargs)


# (wrong, right, message): `wrong` lacks one instruction of `right`.
WAITS = {
    "global load read early": (
        "global_load_dword v20, v1, s[0:1]\n v_mov_b32 v21, v20",
        "global_load_dword v20, v1, s[0:1]\n s_waitcnt vmcnt(0)\n v_mov_b32 v21, v20",
        r"v_mov_b32.*waits: v20 is read before .* s_waitcnt vmcnt must come first, to leave at "
        r"most 0",
    ),
    "wait that leaves one too many": (
        "global_load_dword v20, v1, s[0:1]\n global_load_dword v21, v1, s[0:1] offset:4\n"
        "s_waitcnt vmcnt(2)\n v_mov_b32 v22, v20",
        "global_load_dword v20, v1, s[0:1]\n global_load_dword v21, v1, s[0:1] offset:4\n"
        "s_waitcnt vmcnt(1)\n v_mov_b32 v22, v20",
        "waits: v20 is read .* at most 1 outstanding",
    ),
    "overwritten before it arrives": (
        "global_load_dword v20, v1, s[0:1]\n v_mov_b32 v20, 1",
        "global_load_dword v20, v1, s[0:1]\n s_waitcnt vmcnt(0)\n v_mov_b32 v20, 1",
        "waits: v20 is overwritten before",
    ),
    "LDS read": (
        "ds_write_b32 v1, v2\n ds_read_b32 v20, v1\n v_mov_b32 v21, v20",
        "ds_write_b32 v1, v2\n ds_read_b32 v20, v1\n s_waitcnt lgkmcnt(0)\n v_mov_b32 v21, v20",
        "waits: v20 is read .* s_waitcnt lgkmcnt",
    ),
    "one register of four": (
        "global_load_dwordx4 v[20:23], v1, s[0:1]\n ds_write_b32 v1, v23",
        "global_load_dwordx4 v[20:23], v1, s[0:1]\n s_waitcnt vmcnt(0)\n ds_write_b32 v1, v23",
        "waits: v23 is read",
    ),
    "scalar load": (
        "s_load_dwordx2 s[20:21], s[0:1], 0\n s_add_u32 s22, s21, 1",
        "s_load_dwordx2 s[20:21], s[0:1], 0\n s_waitcnt lgkmcnt(0)\n s_add_u32 s22, s21, 1",
        r"waits: s21 is read .* s_waitcnt lgkmcnt\(0\)",
    ),
    "atomic's old value": (
        "global_atomic_add v20, v1, v2, s[0:1] sc0\n v_add_u32 v21, v20, v20",
        "global_atomic_add v20, v1, v2, s[0:1] sc0\n s_waitcnt vmcnt(0)\n v_add_u32 v21, v20, v20",
        "waits: v20 is read",
    ),
    "address of another load": (
        "global_load_dword v20, v1, s[0:1]\n ds_read_b32 v21, v20",
        "global_load_dword v20, v1, s[0:1]\n s_waitcnt vmcnt(0)\n v_mov_b32 v20, v1\n"
        "ds_write_b32 v1, v2\n ds_read_b32 v21, v20",
        "waits: v20 is read",
    ),
    "data loaded to LDS": (
        "s_mov_b32 m0, 0\n s_nop 0\n global_load_lds_dword v1, s[0:1]\n ds_read_b32 v20, v1",
        "s_mov_b32 m0, 0\n s_nop 0\n global_load_lds_dword v1, s[0:1]\n s_waitcnt vmcnt(0)\n"
        "ds_read_b32 v20, v1",
        r"waits: wave 0 reads LDS 0x0 before the load that goes there directly of wave 0 .* "
        r"s_waitcnt vmcnt must come first",
    ),
}


@pytest.mark.parametrize("name", WAITS)
def test_a_dropped_wait_is_found(asm, name):
    wrong, right, message = WAITS[name]
    kwargs = {"v": {1: LANES * 4, 2: LANES}, "memory": np.zeros(256, np.uint32), "lds": 256}
    fails(asm, wrong, message, **kwargs)
    asm(right, out=[], **kwargs)


def test_loads_of_one_kind_may_overwrite_each_other(asm):
    code = """
  global_load_dword v20, v1, s[0:1]
  global_load_dword v20, v1, s[0:1] offset:4
  s_waitcnt vmcnt(0)
"""
    memory = np.arange(128, dtype=np.uint32)
    result = asm(code, v={1: LANES * 4}, memory=memory, out=["v20"])
    np.testing.assert_array_equal(result["v20"], LANES + 1)


# A read and a write with no barrier between come in either order: RAW or WAR.
EITHER = (
    "races: (RAW in LDS: wave . reads .* which wave . wrote"
    "|WAR in LDS: wave . overwrites .* which wave . read)"
)
RACES = {
    "a write, then a read": ("ds_write_b32 v6, v0\n {} \n ds_read_b32 v20, v7", EITHER),
    "a read, then a write": (
        f"ds_write_b32 v6, v0\n {BARRIER}\n ds_read_b32 v20, v7\n {{}} \n ds_write_b32 v6, v0",
        EITHER,
    ),
    "two writes": (
        "ds_write_b32 v6, v0\n {} \n ds_write_b32 v7, v0",
        "races: WAW in LDS: wave . overwrites .* which wave . wrote with no barrier",
    ),
}


@pytest.mark.parametrize("name", RACES)
def test_a_missing_barrier_is_found_under_every_schedule(asm, name):
    code, message = RACES[name]
    said = set()
    for seed, quantum in itertools.product(range(4), (0, 1, 100)):
        options = sim.SimOptions(seed=seed, quantum=quantum, checks=("races",))
        kwargs = {"threads": 128, "lds": 512, "options": options, "out": []}
        with pytest.raises(SimulatorError, match=message) as error:
            asm(TWO_WAVES + code.format(WAIT), **kwargs)
        said.add(re.search("races: (...)", str(error.value))[1])
        asm(TWO_WAVES + code.format(BARRIER), **kwargs)
    assert said == ({"WAW"} if name == "two writes" else {"RAW", "WAR"})


def test_waves_that_share_no_word_need_no_barrier(asm):
    code = TWO_WAVES + f"ds_write_b32 v6, v0\n {WAIT}\n ds_read_b32 v20, v6\n {WAIT}"
    result = asm(code, threads=128, lds=512, out=["v20"])
    np.testing.assert_array_equal(result["v20"], np.arange(128))


def test_two_halves_of_a_word_may_be_written_by_two_waves(asm):
    code = """
  v_lshrrev_b32 v6, 6, v0
  v_and_b32 v7, 63, v0
  v_lshlrev_b32 v7, 2, v7
  v_lshl_add_u32 v6, v6, 1, v7
  ds_write_b16 v6, v0
  s_waitcnt lgkmcnt(0)
  s_barrier
  ds_read_b32 v20, v7
"""
    result = asm(code, threads=128, lds=256, out=["v20"])
    np.testing.assert_array_equal(result["v20"][:64], LANES | (LANES + 64) << 16)


def test_atomics_of_two_waves_are_no_race(asm):
    code = f"""
  v_mov_b32 v8, 0
  v_mov_b32 v9, 1
  s_mov_b64 exec, 1
  v_cmp_eq_u32 vcc, 0, v0
  s_nop 4
  s_and_b64 exec, vcc, exec
  ds_write_b32 v8, v8
  s_mov_b64 exec, -1
  {BARRIER}
  ds_add_u32 v8, v9
  {BARRIER}
  ds_read_b32 v20, v8
"""
    assert (asm(code, threads=256, lds=64, out=["v20"])["v20"] == 256).all()


LOADED = """
  v_lshlrev_b32 v1, 2, v0
  s_nop 0
  v_readfirstlane_b32 s20, v1
  s_mov_b32 m0, s20
  s_nop 4
  global_load_lds_dword v1, s[0:1]
"""


@pytest.mark.parametrize(
    ("between", "message"),
    [
        ("s_waitcnt vmcnt(0)", "waits: .* and then a barrier in that wave|races: "),
        ("s_barrier", "waits: .* s_waitcnt vmcnt and then a barrier in that wave"),
        ("s_barrier\n s_waitcnt vmcnt(0)", "waits: .* and then a barrier in that wave"),
        ("s_waitcnt vmcnt(0)\n s_barrier", None),
    ],
    ids=["no barrier", "no wait", "barrier before the wait", "both"],
)
def test_data_loaded_to_lds_needs_a_wait_and_then_a_barrier(asm, between, message):
    code = TWO_WAVES + LOADED + between + "\n ds_read_b32 v20, v7\n s_waitcnt lgkmcnt(0)"
    kwargs = {"threads": 128, "lds": 512, "memory": np.arange(128, dtype=np.uint32)}
    if message:
        fails(asm, code, message, **kwargs)
    else:
        result = asm(code, out=["v20"], **kwargs)
        np.testing.assert_array_equal(result["v20"], np.arange(128) ^ 64)


def test_a_write_needs_its_wait_before_the_barrier(asm):
    code = TWO_WAVES + "ds_write_b32 v6, v0\n {}s_barrier\n ds_read_b32 v20, v7"
    kwargs = {"threads": 128, "lds": 512}
    message = "waits: .* before the write of wave . is known to be done: s_waitcnt lgkmcnt"
    fails(asm, code.format(""), message, **kwargs)
    asm(code.format(WAIT + "\n "), out=[], **kwargs)


def test_a_read_needs_its_wait_before_the_barrier_after_which_others_overwrite(asm):
    code = (
        TWO_WAVES
        + f"""
  ds_write_b32 v6, v0
  {BARRIER}
  ds_read_b32 v20, v6
  {{}}s_barrier
  ds_write_b32 v7, v0
  s_waitcnt lgkmcnt(0)
"""
    )
    kwargs = {"threads": 128, "lds": 512}
    message = "waits: wave . overwrites LDS .* before the read of wave . is known to be done"
    fails(asm, code.format(""), message, **kwargs)
    asm(code.format(WAIT + "\n "), out=[], **kwargs)


UNINITIALISED = {
    "in an address": (
        "ds_read_b32 v20, v21",
        "ds_read_b32.*uninitialised: v21 is read, but lane 0",
    ),
    "in data": (
        "v_add_u32 v20, v21, v2\n ds_write_b32 v1, v20",
        "ds_write_b32.*uninitialised: v20",
    ),
    "in some lanes": (
        "s_mov_b64 exec, 0xff\n v_mov_b32 v21, 1\n s_mov_b64 exec, -1\n v_add_u32 v20, v21, v21\n"
        "ds_write_b32 v1, v20",
        "uninitialised: v20 is read, but lane 8",
    ),
    "through a copy": (
        "v_mov_b32 v21, v22\n v_add_u32 v20, v21, v21\n ds_write_b32 v1, v20",
        "uninitialised: v20 is read",
    ),
    "accumulation register": (
        "v_accvgpr_read_b32 v21, a5\n ds_write_b32 v1, v21",
        "uninitialised: v21",
    ),
    "in a compare": ("v_cmp_eq_u32 vcc, v2, v21", "v_cmp_eq_u32.*uninitialised: v21"),
    "in the lane that becomes a scalar": (
        "s_mov_b64 exec, 0xf0\n v_mov_b32 v21, 1\n v_readlane_b32 s20, v21, 3",
        "v_readlane_b32.*uninitialised: v21 is read, but lane 3",
    ),
    "selected": (
        "s_mov_b64 vcc, 3\n v_cndmask_b32 v20, v2, v21, vcc\n ds_write_b32 v1, v20",
        "uninitialised: v20 is read, but lane 0",
    ),
    "MFMA operand in a disabled lane": (
        "s_mov_b64 exec, 0xff\n v_mov_b32 v8, 1.0\n s_nop 4\n"
        "v_mfma_f32_16x16x4_f32 v[20:23], v8, v8, 0",
        "uninitialised: v8 is read, but lane 8",
    ),
    "stored": ("global_store_dword v1, v21, s[0:1]", "uninitialised: v21"),
    "LDS": (
        "ds_write_b32 v1, v2\n ds_read_b64 v[20:21], v1",
        "ds_read_b64.*uninitialised: wave 0 reads LDS 0x100, which the workgroup never wrote",
    ),
    "half a word of LDS": (
        "ds_write_b16 v1, v2\n ds_read_b32 v20, v1",
        "uninitialised: wave 0 reads LDS 0x0",
    ),
}


@pytest.mark.parametrize("name", UNINITIALISED)
def test_a_value_that_nobody_wrote_is_found(asm, name):
    code, message = UNINITIALISED[name]
    kwargs = {"v": {1: LANES * 4, 2: LANES}, "lds": 512, "memory": np.zeros(64, np.uint32)}
    fails(asm, code, message, **kwargs)


BOUNDS = {
    "load past the end": ("global_load_dword v20, v1, s[0:1] offset:4", r"reads 4 bytes at 0x\w+"),
    "store past the end": ("global_store_dwordx2 v1, v[2:3], s[0:1]", "writes 8 bytes"),
    "before the start": ("global_load_dword v20, v1, s[0:1] offset:-4", "reads 4 bytes .*lane 0"),
    "atomic": ("global_atomic_add v1, v2, s[0:1] offset:8", "updates 4 bytes"),
    "wild": ("global_load_dword v20, v[2:3], off", ".*no tensor of the call owns"),
    "scalar": ("s_load_dword s20, s[0:1], 0x100", "reads 4 bytes"),
    "LDS": ("ds_read_b32 v20, v1 offset:128", r"reads 4 bytes at LDS 0x100 \(lane 32\)"),
    "buffer that claims too much": (
        "s_mov_b32 s4, s0\n s_mov_b32 s5, s1\n s_mov_b32 s6, -1\n s_mov_b32 s7, 0x27000\n"
        "buffer_load_dword v20, v1, s[4:7], 0 offen offset:4",
        "reads 4 bytes",
    ),
}


@pytest.mark.parametrize("name", BOUNDS)
def test_an_access_outside_is_found(asm, name):
    code, message = BOUNDS[name]
    kwargs = {"v": {1: LANES * 4, 2: 64, 3: 77}, "memory": np.zeros(64, np.uint32), "lds": 256}
    fails(asm, code, "bounds: " + message, **kwargs)


def test_an_address_that_is_not_mapped_is_a_fault_without_the_check_too(asm):
    options = sim.SimOptions(checks=())
    # the first pages of a process are never mapped
    code = "v_mov_b32 v3, 0\n v_mov_b32 v2, 0x1040\n global_load_dword v20, v[2:3], off"
    fails(asm, code, "bounds: reads 4 bytes at 0x1040, which is not mapped",
          options=options)  # fmt: skip


UNUSED = {
    "a half that op_sel leaves out": "v_pk_mul_f32 v[20:21], v[8:9], v[2:3] op_sel_hi:[0,1]",
    "the upper half of a sum": (
        "v_mad_u64_u32 v[20:21], s[20:21], v2, v2, v[8:9]\n v_mov_b32 v21, v20"
    ),
    "a lane that is not selected": (
        "s_mov_b64 exec, 0xff\n v_mov_b32 v10, v2\n s_mov_b64 vcc, exec\n s_mov_b64 exec, -1\n"
        "v_cndmask_b32 v20, v2, v10, vcc\n v_mov_b32 v21, v20"
    ),
    "a result that is dropped": "v_add_u32 v21, v10, v10\n v_mov_b32 v20, v2\n v_mov_b32 v21, v2",
}


@pytest.mark.parametrize("name", UNUSED)
def test_what_nobody_wrote_may_be_computed_with_if_it_is_not_used(asm, name):
    code = UNUSED[name] + "\n ds_write_b64 v1, v[20:21]"
    asm(code, v={1: LANES * 8, 2: LANES, 3: LANES, 8: LANES}, out=[], lds=512)


def test_checks_that_were_not_asked_for_stay_silent(asm):
    wrong, _, _ = WAITS["global load read early"]
    options = sim.SimOptions(checks=("races", "bounds"))
    asm(wrong, v={1: LANES * 4}, memory=np.zeros(64, np.uint32), out=[], options=options)


def test_a_wrong_swizzle_shows_in_the_data(asm):
    """The reader undoes another permutation than the writer made: no check, but wrong values."""
    code = """
  v_xor_b32 v8, 0x30, v6
  ds_write_b32 v8, v0
  s_waitcnt lgkmcnt(0)
  s_barrier
  v_xor_b32 v9, {}, v6
  ds_read_b32 v20, v9
"""
    values = [
        asm(TWO_WAVES + code.format(mask), threads=128, lds=512, out=["v20"])["v20"]
        for mask in ("0x30", "0x70")
    ]
    np.testing.assert_array_equal(values[0], np.arange(128))
    assert (values[1] != np.arange(128)).all()
