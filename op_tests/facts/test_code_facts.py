# SPDX-License-Identifier: MIT
"""What is read out of code objects and cubins."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from hipdecode import disassembly, facts
from hipdecode.errors import FactsError
from hipdecode.facts import KernelFacts

TINY = Path(__file__).parents[1] / "runtime" / "tiny_kernel.cpp"
CUBIN = """
#include "{root}/csrc/abi/abi_version.h"
#include "{root}/csrc/abi/kernel_info.h"
struct Params {{ const float* in; float* out; int count; }};
extern "C" __constant__ const hipdecode::abi::KernelInfo hipdecode_kernel_info = {{
    hipdecode::abi::kAbiVersion, sizeof(Params), 4096, 64, 16}};
extern "C" __global__ void __launch_bounds__(64) tiny(const __grid_constant__ Params p) {{
  __shared__ float row[128];
  row[threadIdx.x] = p.in[threadIdx.x];
  __syncthreads();
  volatile float stack[64];
  for (int i = 0; i < p.count; i++) stack[i * 7 % 64] = row[i];
  p.out[threadIdx.x] = stack[p.count];
}}
"""


def kernel(**changed: int | str) -> KernelFacts:
    """A kernel of 256 threads that limits nothing."""
    plain: dict[str, int | str] = {
        "name": "k", "arch": "gfx950", "vgprs": 64, "agprs": 0, "sgprs": 32, "spills": 0,
        "scratch_bytes": 0, "lds_bytes": 0, "kernarg_bytes": 8, "threads": 256, "rows": 0,
        "code_bytes": 100,
    }  # fmt: skip
    return KernelFacts(**(plain | changed))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """tiny_kernel.cpp for gfx950."""
    compiler = shutil.which("clang++-22")
    if compiler is None:
        pytest.skip("needs clang-22 and lld-22, which make code objects")
    path = tmp_path_factory.mktemp("facts") / "tiny.hsaco"
    flags = ("-x", "hip", "--offload-device-only", "--no-gpu-bundle-output", "-nogpuinc",
             "-nogpulib", "--offload-arch=gfx950", "-O3", "-std=c++20")  # fmt: skip
    subprocess.run((compiler, *flags, str(TINY), "-o", str(path)), check=True)
    return path


def test_facts_of_a_code_object(tiny: Path) -> None:
    found = facts.read_facts(tiny, "tiny/1", "gfx950", "tiny")
    assert (found.name, found.arch, found.threads, found.waves) == ("tiny/1", "gfx950", 64, 1)
    assert (found.lds_bytes, found.kernarg_bytes) == (512, 24)
    assert (found.agprs, found.spills, found.scratch_bytes) == (0, 0, 0)
    assert 1 <= found.vgprs <= 16
    assert found.registers % 8 == 0


def test_instructions_of_a_code_object_are_counted_without_padding(tiny: Path) -> None:
    if shutil.which("llvm-objdump-22") is None:
        pytest.skip("needs llvm-objdump of LLVM 22")
    found = facts.read_facts(tiny, "tiny/1", "gfx950", "tiny")
    mix, names = found.code.mix, found.code.mnemonics
    assert sum(mix.values()) == sum(names.values())
    assert 4 * sum(mix.values()) <= found.code_bytes <= 12 * sum(mix.values())
    assert (mix["lds"], mix["vmem"], names["s_endpgm"]) == (2, 2, 1)


def test_facts_of_a_cubin(tmp_path: Path) -> None:
    if shutil.which("nvcc") is None:
        pytest.skip("needs nvcc, which makes cubins")
    source, path = tmp_path / "tiny.cu", tmp_path / "tiny.cubin"
    source.write_text(CUBIN.format(root=TINY.parents[2]))
    flags = ("-cubin", "-std=c++20", "-gencode=arch=compute_90a,code=sm_90a")
    subprocess.run(("nvcc", *flags, str(source), "-o", str(path)), check=True)
    found = facts.read_facts(path, "tiny/1", "sm_90", "tiny")
    assert (found.threads, found.waves, found.rows, found.kernarg_bytes) == (64, 2, 16, 24)
    assert found.scratch_bytes == 256
    assert found.lds_bytes == 4096 + 512
    assert 8 <= found.vgprs <= 64
    assert found.code_bytes >= 128


@pytest.mark.parametrize(
    ("changed", "groups"),
    [
        ({}, 8),
        ({"vgprs": 128}, 4),
        ({"vgprs": 129}, 3),
        ({"vgprs": 256, "agprs": 256}, 1),
        ({"vgprs": 128, "threads": 512}, 2),
        ({"vgprs": 128, "threads": 64}, 16),
        ({"threads": 64}, 32),
        ({"threads": 128}, 16),
        ({"lds_bytes": 160 * 1024}, 1),
        ({"lds_bytes": 80 * 1024}, 2),
        ({"lds_bytes": 80 * 1024 + 1}, 1),
        ({"lds_bytes": 64 * 1024, "arch": "gfx942"}, 1),
        ({"lds_bytes": 32 * 1024, "arch": "gfx942"}, 2),
        ({"sgprs": 102}, 7),
        ({"arch": "sm_90", "threads": 384, "vgprs": 168}, 1),
        ({"arch": "sm_90", "threads": 128, "vgprs": 128}, 4),
        ({"arch": "sm_90", "threads": 128, "vgprs": 32, "lds_bytes": 100 * 1024}, 2),
    ],
    ids=str,
)
def test_workgroups_follow_from_registers_lds_and_waves(
    changed: dict[str, int | str], groups: int
) -> None:
    assert kernel(**changed).workgroups_per_cu == groups


def test_waves_of_a_simd_are_those_of_its_workgroups() -> None:
    assert kernel(vgprs=128).waves_per_simd == 4
    assert kernel(lds_bytes=160 * 1024).waves_per_simd == 1
    assert kernel(lds_bytes=160 * 1024, threads=64).waves_per_simd == 0.25


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("v_mfma_f32_32x32x64_f8f6f4 v[0:15], v[16:23], v[24:31], v[0:15]", "mfma"),
        ("v_exp_f32 v1, v2", "transcendental"),
        ("v_pk_mul_f32 v[0:1], v[2:3], v[4:5]", "valu"),
        ("v_accvgpr_read_b32 v0, a0", "valu"),
        ("s_waitcnt vmcnt(0)", "wait"),
        ("s_barrier", "barrier"),
        ("s_nop 7", "nop"),
        ("s_cbranch_scc1 12", "branch"),
        ("s_load_dwordx4 s[0:3], s[4:5], 0x0", "smem"),
        ("s_add_u32 s0, s1, s2", "salu"),
        ("s_setprio 1", "salu"),
        ("ds_read_b64_tr_b8 v[0:1], v2", "lds_transpose"),
        ("ds_read_b128 v[0:3], v4", "lds"),
        ("ds_bpermute_b32 v0, v1, v2", "lds"),
        ("global_load_lds_dwordx4 v[0:1], off", "vmem_to_lds"),
        ("buffer_load_dwordx4 v0, s[0:3], 0 offen lds", "vmem_to_lds"),
        ("buffer_load_dwordx4 v[0:3], v0, s[0:3], 0 offen", "vmem"),
        ("global_atomic_add v0, v1, v2, s[0:1]", "atomic"),
        ("global_store_dwordx4 v[0:1], v[2:5], off", "vmem"),
        ("scratch_store_dword off, v0, s32", "scratch"),
        ("illegal 0", "other"),
    ],
)
def test_instructions_have_a_class(text: str, kind: str) -> None:
    assert disassembly.classify(text) == kind


def test_loops_are_what_backward_branches_enclose() -> None:
    lines = [
        "0000000000001000 <k>:",
        "\ts_mov_b32 s0, 0                 // 000000001000: BE800080",
        "\tv_add_f32_e32 v0, v1, v2        // 000000001004: 02000501",
        "\tv_mul_f32_e32 v0, v1, v2        // 000000001008: 0A000501",
        "\ts_cbranch_scc1 65533            // 00000000100C: BF85FFFD <k+0x8>",
        "\ts_cbranch_scc0 65530            // 000000001010: BF84FFFA <k+0x4>",
        "\ts_cbranch_execz 1               // 000000001014: BF880001 <k+0x1c>",
        "\ts_branch 65529                  // 000000001018: BF82FFF9 <k>",
        "\ts_endpgm                        // 00000000101C: BF810000",
        "\ts_nop 0                         // 000000001020: BF800000",
    ]
    code = disassembly.count(lines, 0x20)
    assert [(loop.start, loop.end) for loop in code.loops] == [(0, 0x18), (4, 0x10), (8, 0xC)]
    assert code.loops[2].mix == {"valu": 1, "branch": 1}
    assert code.loops[1].mix == {"valu": 2, "branch": 2}
    assert code.mix == {"valu": 2, "branch": 5, "salu": 1}
    assert code.mnemonics["v_add_f32"] == 1


def test_facts_raise_when_the_file_is_another(tmp_path: Path) -> None:
    path = tmp_path / "text.hsaco"
    path.write_text("no code object")
    with pytest.raises(FactsError, match=r"text.hsaco: expected an artefact of k for gfx950"):
        facts.read_facts(path, "k", "gfx950", "k")


def test_facts_raise_when_the_kernel_is_not_in_it(tiny: Path) -> None:
    with pytest.raises(FactsError, match="expected an artefact of huge/1 for gfx950"):
        facts.read_facts(tiny, "huge/1", "gfx950", "huge")


def test_facts_raise_on_a_target_without_any(tmp_path: Path) -> None:
    with pytest.raises(FactsError, match=r"expected a target out of gfx950, .*, got cpu-avx2"):
        facts.read_facts(tmp_path / "kernel.so", "k", "cpu-avx2", "k")
