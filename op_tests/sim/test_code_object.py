# SPDX-License-Identifier: MIT
"""Code objects and launches: what is read from the ELF, what is refused, how kernels start."""

from __future__ import annotations

import contextlib
import json
import shutil
import struct
import subprocess
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from hipdecode import sim
from hipdecode.cli.sim import command
from hipdecode.errors import BadArgument, SimulatorError

_HIP = r"""
#define KERNEL extern "C" __attribute__((amdgpu_kernel, amdgpu_flat_work_group_size(1, 256)))
__attribute__((device, constant)) const int kPrimes[4] = {2, 3, 5, 7};
__attribute__((device)) int counter = 40;
__attribute__((device)) int* pointer = &counter;
KERNEL __attribute__((global)) void facts(unsigned* out, int n) {
  const unsigned* hidden = (const unsigned*)__builtin_amdgcn_implicitarg_ptr();
  unsigned item = __builtin_amdgcn_workitem_id_x(), group = __builtin_amdgcn_workgroup_id_x();
  if (item == 0 && group == 1) {
    out[0] = hidden[0];
    out[1] = __builtin_amdgcn_workgroup_size_x();
    out[2] = __builtin_amdgcn_grid_size_x();
    out[3] = kPrimes[n & 3];
    out[4] = ++*pointer;
  }
}
KERNEL __attribute__((global)) void stacked(int* out, int n) {
  volatile int stack[64];
  int item = __builtin_amdgcn_workitem_id_x();
  for (int i = 0; i < 64; ++i) stack[i] = i * item;
  int sum = 0;
  for (int i = 0; i < n; ++i) sum += stack[(i * 7) & 63];
  out[item] = sum;
}
"""


@pytest.fixture
def clang() -> str:
    found = shutil.which("clang++-22")
    if found is None or shutil.which("ld.lld-22") is None:
        pytest.skip("needs clang++-22 and ld.lld-22: install clang-22 and lld-22")
    return found


@pytest.fixture(params=["gfx942", "gfx950"])
def compiled(request: pytest.FixtureRequest, simulator: None, clang: str, tmp_path: Path) -> Path:
    """_HIP for both architectures."""
    source, built = tmp_path / "kernels.hip", tmp_path / "kernels.hsaco"
    source.write_text(_HIP)
    flags = ("-x", "hip", "--offload-device-only", "--no-gpu-bundle-output", "-nogpuinc",
             "-nogpulib", "-O2", f"--offload-arch={request.param}")  # fmt: skip
    subprocess.run((clang, *flags, str(source), "-o", str(built)), check=True)
    return built


def test_compiled_kernels_see_hidden_arguments_constants_and_globals(compiled: Path) -> None:
    out = np.zeros(8, np.uint32)
    program = sim.Program(compiled)
    for launch in range(2):
        program.launch(
            "facts", struct.pack("<Qi", out.ctypes.data, 2), blocks=(3, 1, 1), threads=128
        )
        assert out[:5].tolist() == [3, 128, 384, 5, 41 + launch]


def test_compiled_kernels_have_a_stack(compiled: Path) -> None:
    out = np.zeros(130, np.int32)
    program = sim.Program(compiled)
    counts = program.launch("stacked", struct.pack("<Qi", out.ctypes.data, 100), threads=130)
    sums = sum((i * 7) & 63 for i in range(100))
    assert out.tolist() == [sums * item for item in range(130)]
    assert counts["sum"]["instructions"] > 100
    scratch = {kernel["kernel"]: kernel["scratch_bytes"] for kernel in program.kernels()}
    assert scratch["stacked"] >= 256
    assert scratch["facts"] == 0


def test_facts_of_a_kernel_come_from_descriptor_and_metadata(compiled: Path) -> None:
    facts = next(k for k in sim.Program(compiled).kernels() if k["kernel"] == "facts")
    assert facts["metadata"][".max_flat_workgroup_size"] == 256
    assert facts["metadata"][".wavefront_size"] == 64
    assert 1 <= facts["metadata"][".vgpr_count"] <= facts["vector_registers"]
    kinds = {argument["kind"]: argument["offset"] for argument in facts["arguments"]}
    assert kinds["global_buffer"] == 0
    assert kinds["by_value"] == 8
    assert kinds["hidden_block_count_x"] == 16


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"threads": 0}, "expected 1 to 256 threads, got 0"),
        ({"threads": 257}, "expected 1 to 256 threads, got 257"),
        ({"blocks": (0, 1, 1)}, "workgroups in each direction, got 0"),
        ({"dynamic_lds": 1 << 20}, "expected at most .* bytes of LDS, got 1048576"),
        ({"kernarg": bytes(8)}, "expected 12 bytes of arguments, got 8"),
        ({"kernel": "fact"}, r"kernel fact: expected one of \[facts, stacked\]"),
    ],
)
def test_launches_that_the_kernel_does_not_allow_are_refused(
    compiled: Path, change: dict, message: str
) -> None:
    arguments = {"kernel": "facts", "kernarg": bytes(12), "threads": 64, **change}
    with pytest.raises(SimulatorError, match=message):
        sim.Program(compiled).launch(**arguments)


def test_another_architecture_is_refused(compiled: Path) -> None:
    right = "gfx942" if b"gfx942" in compiled.read_bytes() else "gfx950"
    wrong = {"gfx942": "gfx950", "gfx950": "gfx942"}[right]
    sim.Program(compiled, right)
    with pytest.raises(SimulatorError, match=f"expected {wrong}, got {right}"):
        sim.Program(compiled, wrong)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "expected an ELF file, got fewer bytes than its header"),
        (b"#!/bin/sh\n" + bytes(100), "expected an ELF file, got another format"),
        (Path("/proc/self/exe").read_bytes()[:4096], "expected a 64-bit AMDGPU ELF, got machine"),
    ],
)
def test_files_of_another_kind_are_refused(
    content: bytes, message: str, simulator: None, tmp_path: Path
) -> None:
    path = tmp_path / "file"
    path.write_bytes(content)
    with pytest.raises(SimulatorError, match=f"{path}: {message}"):
        sim.Program(path)


def test_a_file_that_is_not_there_is_refused(simulator: None, tmp_path: Path) -> None:
    with pytest.raises(SimulatorError, match="expected a code object, got no readable file"):
        sim.Program(tmp_path / "nothing")


def test_a_truncated_code_object_is_an_error_wherever_it_ends(snippets) -> None:
    path = snippets.build("s_nop 0")
    whole = path.read_bytes()
    for size in range(64, len(whole) - 1, 97):
        path.write_bytes(whole[:size])
        with pytest.raises(SimulatorError):
            sim.Program(path)


def test_a_damaged_code_object_never_ends_the_process(snippets) -> None:
    path = snippets.build("s_nop 0")
    whole = path.read_bytes()
    draw = np.random.default_rng(3)
    memory = np.zeros(64, np.uint8)
    extents = ((memory.ctypes.data, memory.nbytes),)
    for _ in range(200):
        damaged = bytearray(whole)
        for at in draw.integers(16, len(whole), 4):
            damaged[at] = draw.integers(256)
        path.write_bytes(bytes(damaged))
        with contextlib.suppress(SimulatorError):
            sim.Program(path).launch(
                "kernel", bytes(24), threads=64,
                options=sim.SimOptions(instruction_limit=10_000, extents=extents),
            )  # fmt: skip


def test_an_object_file_that_was_not_linked_is_refused(snippets) -> None:
    linked = snippets.build("s_nop 0")
    with pytest.raises(SimulatorError, match="expected a linked code object, got an object file"):
        sim.Program(linked.with_suffix(".o"))


def test_the_command_line_runs_a_kernel_on_files(compiled: Path, tmp_path: Path) -> None:
    saved = tmp_path / "out.npy"
    arguments = ("run", str(compiled), "--kernel", "facts", "--threads", "64", "--blocks", "2",
                 "--arg", "zeros:32", "--arg", "i32:3", "--save", f"0:{saved}")  # fmt: skip
    done = CliRunner().invoke(command, arguments, catch_exceptions=False)
    counts = json.loads(done.output)
    assert counts["workgroups"] == 2
    assert np.load(saved).view(np.uint32)[:5].tolist() == [2, 64, 128, 7, 41]


def test_the_command_line_takes_arguments_at_offsets(tmp_path: Path) -> None:
    from hipdecode.cli.sim import parse_arguments

    array = np.arange(4, dtype=np.float32)
    np.save(tmp_path / "a.npy", array)
    words = (f"npy:{tmp_path / 'a.npy'}", "at:16", "f32:0.5", "u64:7", "at:0x30", "i32:-1")
    arguments = parse_arguments(words)
    assert len(arguments.kernarg) == 0x34
    assert struct.unpack_from("<f", arguments.kernarg, 16)[0] == 0.5
    assert struct.unpack_from("<Q", arguments.kernarg, 24)[0] == 7
    assert struct.unpack_from("<i", arguments.kernarg, 0x30)[0] == -1
    assert (arguments.buffers[0] == array).all()


@pytest.mark.parametrize("word", ["npy:/nothing", "i32:x", "what:3", "f32:", "at:-1"])
def test_the_command_line_refuses_arguments_that_mean_nothing(word: str) -> None:
    from hipdecode.cli.sim import parse_arguments

    with pytest.raises(BadArgument, match="--arg: expected"):
        parse_arguments((word,))


def test_the_command_line_lists_opcodes_and_disassembles(snippets) -> None:
    path = snippets.build("v_mov_b32 v1, 3\ns_sethalt 1")
    listing = CliRunner().invoke(command, ["disasm", str(path)], catch_exceptions=False).output
    assert "  v_mov_b32_e32 v1, 3" in listing
    assert "? s_sethalt 1" in listing
    table = CliRunner().invoke(command, ["opcodes", "--json"], catch_exceptions=False).output
    assert {"v_mov_b32", "s_endpgm"} <= {row["name"] for row in json.loads(table)}
    facts = CliRunner().invoke(command, ["info", str(path)], catch_exceptions=False).output
    assert json.loads(facts)[0]["kernel"] == "kernel"
