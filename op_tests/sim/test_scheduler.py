# SPDX-License-Identifier: MIT
"""Waves and workgroups: who runs when, barriers, limits, and what a fault says."""

from __future__ import annotations

import re
import struct
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest

from hipdecode import sim
from hipdecode.errors import SimulatorError

# Every wave appends its number to a list in memory, a few times.
_APPEND = """
  v_readfirstlane_b32 s10, v0
  s_lshr_b32 s10, s10, 6
  s_mov_b64 exec, 1
  v_mov_b32 v1, 0
  v_mov_b32 v2, 1
  v_mov_b32 v4, s10
  s_mov_b32 s11, 8
again:
  global_atomic_add v3, v1, v2, s[0:1] sc0
  s_waitcnt vmcnt(0)
  v_lshlrev_b32 v3, 2, v3
  global_store_dword v3, v4, s[0:1] offset:4
  s_sub_u32 s11, s11, 1
  s_cmp_lg_u32 s11, 0
  s_cbranch_scc1 again
  s_waitcnt vmcnt(0)
  s_mov_b64 exec, -1
"""
_NO_CHECKS = sim.SimOptions(checks=("bounds",))


def _order(asm: Callable, **options: object) -> list[int]:
    memory = np.zeros(4 * 8 + 1, np.uint32)
    asm(_APPEND, out=[], memory=memory, threads=256,
        options=sim.SimOptions(checks=("bounds",), **options))  # fmt: skip
    assert memory[0] == 32
    return memory[1:].tolist()


def test_a_seed_gives_the_same_order_of_waves_each_time(asm: Callable) -> None:
    assert _order(asm, seed=5) == _order(asm, seed=5)


def test_seeds_give_different_orders(asm: Callable) -> None:
    assert len({tuple(_order(asm, seed=seed)) for seed in range(6)}) > 3


def test_a_long_quantum_runs_one_wave_after_the_other(asm: Callable) -> None:
    order = _order(asm, quantum=10_000)
    assert all(len(set(order[i : i + 8])) == 1 for i in range(0, 32, 8))


def test_a_quantum_of_one_interleaves_the_waves(asm: Callable) -> None:
    order = _order(asm, quantum=1)
    assert sum(a != b for a, b in pairwise(order)) > 8


def test_every_workgroup_runs_once_whatever_the_number_of_threads(asm: Callable) -> None:
    code = """
      v_mov_b32 v1, 0
      v_mov_b32 v2, 1
      s_lshl_b32 s10, s2, 2
      v_mov_b32 v1, s10
      s_mov_b64 exec, 1
      global_atomic_add v1, v2, s[0:1]
      s_waitcnt vmcnt(0)
      s_mov_b64 exec, -1
    """
    counts = []
    for threads in (1, 3):
        memory = np.zeros(100, np.uint32)
        options = sim.SimOptions(checks=("bounds",), threads=threads)
        result = asm(code, out=[], memory=memory, blocks=(100, 1, 1), options=options)
        assert (memory == 1).all()
        counts.append(result.counts)
    assert counts[0] == counts[1]
    assert counts[0]["workgroups"] == 100


def test_workgroup_ids_follow_the_grid(snippets, asm: Callable) -> None:
    code = """
      s_load_dwordx2 s[4:5], s[0:1], 0
      s_mul_i32 s6, s4, 6
      s_waitcnt lgkmcnt(0)
      s_mul_i32 s6, s3, 2
      s_add_u32 s6, s6, s2
      v_mov_b32 v1, s6
      v_lshlrev_b32 v1, 2, v1
      v_mov_b32 v2, s2
      v_lshlrev_b32 v3, 8, s3
      v_or_b32 v2, v2, v3
      global_store_dword v1, v2, s[4:5]
    """
    directives = ".amdhsa_system_sgpr_workgroup_id_y 1"
    path = snippets.build(code, directives=directives)
    memory = np.zeros(6, np.uint32)
    kernarg = struct.pack("<3Q", memory.ctypes.data, 0, 0)
    sim.Program(path).launch(
        "kernel", kernarg, blocks=(2, 3, 1), threads=1, options=sim.SimOptions(checks=())
    )
    assert memory.tolist() == [x | y << 8 for y in range(3) for x in range(2)]


def test_a_barrier_orders_lds_between_waves(asm: Callable) -> None:
    code = """
      v_lshlrev_b32 v1, 2, v0
      ds_write_b32 v1, v0
      s_waitcnt lgkmcnt(0)
      s_barrier
      v_xor_b32 v1, 0x100, v1
      ds_read_b32 v2, v1
      s_waitcnt lgkmcnt(0)
    """
    for seed in range(4):
        result = asm(code, out=["v2"], threads=256, lds=1024, options=sim.SimOptions(seed=seed))
        assert (result["v2"] == np.arange(256) ^ 64).all()


def test_an_ended_wave_does_not_hold_a_barrier(asm: Callable) -> None:
    code = """
      v_readfirstlane_b32 s10, v0
      s_cmp_eq_u32 s10, 0
      s_cbranch_scc1 on
      s_endpgm
    on:
      s_barrier
      s_mov_b32 s11, 3
    """
    assert asm(code, out=["s11"], threads=128).scalar("s11") == 3


def test_a_partial_wave_starts_with_its_lanes_alone(asm: Callable) -> None:
    code = "s_mov_b64 s[10:11], exec"
    memory = np.zeros(256, np.uint32)
    result = asm(code, out=["s[10:11]"], threads=40, memory=memory, options=_NO_CHECKS)
    assert result.scalar("s[10:11]") == (1 << 40) - 1


def test_an_endless_loop_is_reported_with_the_state_of_each_wave(asm: Callable) -> None:
    code = """
      v_readfirstlane_b32 s10, v0
      s_cmp_eq_u32 s10, 0
      s_cbranch_scc1 spin
      s_barrier
    spin:
      s_branch spin
    """
    with pytest.raises(SimulatorError, match=r"deadlock or endless loop.*wave 1 at a barrier"):
        asm(code, out=[], threads=128, options=sim.SimOptions(instruction_limit=1000))


def test_a_fault_names_kernel_workgroup_wave_address_and_instruction(asm: Callable) -> None:
    code = """
      s_cmp_lg_u32 s2, 1
      s_cbranch_scc1 fine
      v_mov_b32 v2, 0
      v_mov_b32 v3, 0
      global_load_dword v4, v[2:3], off
    fine:
    """
    pattern = (
        r"kernel kernel, workgroup \(1, 0, 0\), wave 0, 0x[0-9a-f]+ "
        r"\[DC508000 047F0002\] `global_load_dword v4, v\[2:3\], off`: "
    )
    with pytest.raises(SimulatorError, match=pattern):
        asm(code, out=[], blocks=(2, 1, 1))


@pytest.mark.parametrize("threads", [1, 4])
def test_the_first_faulting_workgroup_is_the_one_reported(asm: Callable, threads: int) -> None:
    options = sim.SimOptions(threads=threads)
    with pytest.raises(SimulatorError, match=r"workgroup \(0, 0, 0\)"):
        asm("s_trap 3", out=[], blocks=(50, 1, 1), options=options)


@pytest.mark.parametrize(
    "load", ["global_load_dword v4, v[2:3], off", "s_load_dword s9, s[4:5], 0"]
)
@pytest.mark.parametrize("address", [0, 0x10, 0xDEAD00000000, 0x7FFFFFFFF000])
def test_an_unmapped_address_is_an_error_and_no_crash(load: str, address: int, snippets) -> None:
    code = f"""
      s_mov_b32 s4, {hex(address & 0xFFFFFFFF)}
      s_mov_b32 s5, {hex(address >> 32)}
      v_mov_b32 v2, s4
      v_mov_b32 v3, s5
      {load}
      s_waitcnt vmcnt(0) lgkmcnt(0)
    """
    program = sim.Program(snippets.build(code))
    with pytest.raises(SimulatorError, match="not mapped"):
        program.launch("kernel", bytes(24), threads=64, options=sim.SimOptions(checks=()))


def test_launches_of_the_process_are_kept_in_a_journal(asm: Callable) -> None:
    sim.journal(clear=True)
    asm("s_nop 0", out=[], blocks=(3, 1, 1))
    entries = sim.journal(clear=True)
    facts = [(e["kernel"], e["blocks"], e["threads"]) for e in entries]
    assert facts == [("kernel", [3, 1, 1], 64)]
    assert entries[0]["counts"]["workgroups"] == 3
    assert sim.journal() == []


def test_a_fault_can_be_followed_by_another_launch(asm: Callable) -> None:
    with pytest.raises(SimulatorError):
        asm("s_trap 2", out=[])
    assert asm("s_mov_b32 s10, 4", out=["s10"]).scalar("s10") == 4


def test_unknown_checks_are_refused() -> None:
    with pytest.raises(SimulatorError, match=re.escape("checks: expected some of waits, races")):
        sim.SimOptions(checks=("luck",))._pack()
