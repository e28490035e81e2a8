# SPDX-License-Identifier: MIT
"""Which compiler a target gets, and what GPU code objects say about themselves."""

import ctypes
import dataclasses
import json
import struct
from pathlib import Path

import pytest
import tiny_tree

from hipdecode import jit, registry, settings
from hipdecode.errors import ToolchainError
from hipdecode.jit import keys, prebuilt, toolchain
from hipdecode.paths import csrc_dir

EM_AMDGPU, EM_CUDA = 224, 190


def executable(folder: Path, name: str, answers: dict[str, str], body: str = "") -> Path:
    cases = " ".join(f"{option}) echo '{text}'; exit;;" for option, text in answers.items())
    path = folder / name
    path.write_text(f'#!/bin/sh\ncase "$1" in {cases} esac\n{body}\n')
    path.chmod(0o755)
    return path


def clang(folder: Path, name: str, version: int, *, linker: str = "/lld", body: str = "") -> Path:
    answers = {
        "--version": f"Debian clang version {version}.1.8",
        "-dumpmachine": "fake",
        "-print-prog-name=lld": linker,
    }
    return executable(folder, name, answers, body)


@pytest.fixture
def path(tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only folder of PATH."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    return folder


def found() -> str:
    return Path(toolchain.find("hip").command[0]).name


def test_hip_takes_hipcc_then_the_clang_of_the_package_then_any_that_is_new_enough(
    path: Path,
) -> None:
    clang(path, "clang++", 23)
    assert found() == "clang++"
    clang(path, "clang++-22", 22)
    assert found() == "clang++-22"
    executable(path, "hipcc", {"--version": "HIP version: 7.1", "-dumpmachine": "fake"})
    assert found() == "hipcc"


@pytest.mark.parametrize(
    ("version", "linker", "got"),
    [(16, "/opt/lld", r"clang\+\+ \(Debian clang version 16"), (22, "lld", "without lld")],
)
def test_hip_says_what_a_clang_lacks_and_names_the_packages(
    path: Path, version: int, linker: str, got: str
) -> None:
    clang(path, "clang++", version, linker=linker)
    with pytest.raises(ToolchainError, match=got) as caught:
        toolchain.find("hip")
    assert "clang-22 and lld-22" in str(caught.value)
    assert "HIPDECODE_PREBUILT" in str(caught.value)


@pytest.mark.parametrize(
    ("kind", "want"), [("hip", "got none; .*lld-22"), ("nvcc", "CUDA toolkit")]
)
def test_missing_gpu_compiler_is_an_error_with_the_ways_out(
    path: Path, kind: str, want: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tools = toolchain.TOOLCHAINS[kind]
    here = tuple(name for name in tools.candidates if "/" not in name)
    only = dataclasses.replace(tools, candidates=here)
    monkeypatch.setitem(toolchain.TOOLCHAINS, kind, only)
    with pytest.raises(ToolchainError, match=want):
        toolchain.find(kind)


def test_cpp_compiler_of_the_setting_is_not_asked_to_build_for_a_gpu(path: Path) -> None:
    cxx = clang(path, "some-c++", 14)
    clang(path, "clang++-22", 22)
    with settings.override(cxx=str(cxx)):
        assert toolchain.find("cxx").command == (str(cxx),)
        assert found() == "clang++-22"


@pytest.mark.parametrize(
    ("target", "kind", "files"),
    [
        ("gfx950", "hip", "kernel.hip -o kernel.hsaco"),
        ("sm_90", "nvcc", "kernel.cu -o kernel.cubin"),
    ],
)
def test_files_are_named_after_their_toolchain(
    tree: Path, target: str, kind: str, files: str
) -> None:
    gpu_registry(tree, target, kind)
    plan = jit.recipe(registry.default().kernel("tiny/1"), target)
    assert " ".join(plan.command(toolchain.Compiler(("c",), "c 1", "fake"))).endswith(files)


def test_gpu_code_object_goes_through_the_cache_and_the_prebuilt_folder(
    tree: Path, path: Path, tmp_path: Path
) -> None:
    gpu_registry(tree, "gfx950", "hip")
    body = 'while [ "$1" != -o ]; do shift; done; echo object > "$2"'
    clang(path, "clang++-22", 22, body=body)
    file = jit.ensure_kernel("gfx950", "tiny/1")
    assert file.path.name == "kernel.hsaco"
    assert (file.path.parent / "kernel.hip").is_file()
    plan = jit.recipe(registry.default().kernel("tiny/1"), "gfx950")
    out = tmp_path / "prebuilt"
    prebuilt.write(
        out,
        abi_version=plan.abi_version,
        kernels={"gfx950": {"tiny/1": (file.path, plan.source_key)}},
        binding=(file.path, "b"),
    )
    assert [p.suffix for p in (out / "gfx950").iterdir()] == [".hsaco"]


def gpu_registry(tree: Path, target: str, kind: str) -> None:
    path = tiny_tree.write_registry(tree)
    document = json.loads(path.read_text())
    document["targets"][target] = {"toolchain": kind, "flags": ["-O3"]}
    document["modules"]["tiny"]["targets"][target] = {}
    path.write_text(json.dumps(document))
    registry.default.cache_clear()


def kernel_info(path: Path) -> tuple[int, ...]:
    """`hipdecode_kernel_info` of a 64-bit ELF file, and its machine, with no library's help."""
    data = path.read_bytes()
    machine = struct.unpack_from("<H", data, 18)[0]
    at, size, count = (
        struct.unpack_from("<Q", data, 40)[0],
        struct.unpack_from("<H", data, 58)[0],
        struct.unpack_from("<H", data, 60)[0],
    )
    sections = [struct.unpack_from("<IIQQQQIIQQ", data, at + i * size) for i in range(count)]
    for kind, names_at, start, length in ((s[1], s[6], s[4], s[5]) for s in sections):
        if kind not in (2, 11):
            continue
        names = sections[names_at][4]
        for symbol in range(start, start + length, 24):
            name, _, _, home, value, _ = struct.unpack_from("<IBBHQQ", data, symbol)
            text = data[names + name : data.index(b"\0", names + name)]
            if text == b"hipdecode_kernel_info":
                offset = sections[home][4] + value - sections[home][3]
                return (machine, *struct.unpack_from("<iiqii", data, offset))
    raise AssertionError(f"{path} has no hipdecode_kernel_info")


@pytest.mark.parametrize(
    ("target", "kind", "elf_machine", "lanes"),
    [
        ("gfx950", "hip", EM_AMDGPU, 64),
        ("gfx942", "hip", EM_AMDGPU, 64),
        ("sm_90", "nvcc", EM_CUDA, 32),
    ],
)
@pytest.mark.parametrize(
    ("name", "bytes_", "shared_bytes", "waves"),
    [("mla_reduce", 112, 0, 4), ("mla_plan", 168, 47424, 8)],
)
def test_code_object_says_its_abi_parameters_memory_and_threads(
    target: str,
    kind: str,
    elf_machine: int,
    lanes: int,
    name: str,
    bytes_: int,
    shared_bytes: int,
    waves: int,
) -> None:
    try:
        toolchain.find(kind)
    except ToolchainError as error:
        pytest.skip(f"a machine with {toolchain.TOOLCHAINS[kind].needs} would run this: {error}")
    path = jit.ensure_kernel(target, name).path
    machine, abi, params, shared, threads, rows = kernel_info(path)
    assert (machine, params, shared, rows) == (elf_machine, bytes_, shared_bytes, 0)
    assert abi == keys.source_tree(csrc_dir()).abi_version()
    assert threads == lanes * waves


def test_cpu_artefact_says_the_same_of_itself() -> None:
    path = jit.ensure_kernel("cpu", "mla_reduce").path
    info = (ctypes.c_int32 * 6).in_dll(ctypes.CDLL(str(path)), "hipdecode_kernel_info")
    assert list(info) == [keys.source_tree(csrc_dir()).abi_version(), 112, 0, 0, 1, 0]
