# SPDX-License-Identifier: MIT
import errno
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import tiny_tree

from hipdecode import jit, settings
from hipdecode.errors import (
    BuildError,
    CacheError,
    HipdecodeError,
    RegistryError,
    TargetError,
    ToolchainError,
)

PYTHON_DIR = Path(__file__).parents[2] / "python"

# Prints what a cache hit does to the file system beside reading, as an audit hook sees it.
WATCH_A_HIT = """
import os, sys
sys.dont_write_bytecode = True
from pathlib import Path
sys.path.insert(0, sys.argv[3])
from hipdecode import jit, paths, settings
paths.source_root = lambda: Path(sys.argv[1])
writes = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_TRUNC
def hook(event, args):
    if event in ("os.mkdir", "os.rename", "os.remove", "fcntl.flock", "subprocess.Popen") or (
        event == "open" and isinstance(args[2], int) and args[2] & writes
    ):
        print(event, args)
with settings.override(cache_dir=Path(sys.argv[2]), cxx=None, no_build=False, prebuilt=None):
    sys.addaudithook(hook)
    jit.ensure_kernel("cpu-generic", "tiny/1")
"""


def build(name: str = "tiny/1", target: str = tiny_tree.TARGET) -> jit.KernelFile:
    return jit.ensure_kernel(target, name)


def failure(kind: type[HipdecodeError]) -> str:
    with pytest.raises(kind) as caught:
        build()
    return str(caught.value)


def test_compile_error_carries_command_tail_and_log(tree: Path) -> None:
    lines = "\n".join(f"#warning line {n}" for n in range(60))
    (tree / "csrc/parts/part.h").write_text(f"{lines}\n#error the last straw\n")
    text = failure(BuildError)
    assert "tiny/1 for cpu-generic: expected the compiler to succeed, got exit status 1" in text
    assert f"-I{tree}/csrc kernel.cpp -o kernel.so" in text
    assert "the last straw" in text
    assert "line 0" not in text
    assert len(text.splitlines()) <= 44
    log = Path(re.search(r"last lines of (\S+):", text)[1])  # type: ignore[index]
    assert "line 0" in log.read_text()
    assert (log.parent / "kernel.cpp").is_file()


def test_compile_error_is_gone_when_the_source_is_corrected(tree: Path, cache_dir: Path) -> None:
    text = (tree / "csrc/parts/part.h").read_text()
    (tree / "csrc/parts/part.h").write_text("#error\n")
    failure(BuildError)
    (tree / "csrc/parts/part.h").write_text(text)
    assert tiny_tree.call(build().path) == 41


def test_no_compiler_is_an_error_with_the_ways_out(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    text = failure(ToolchainError)
    assert "expected one of g++, clang++, c++ in PATH, got none" in text
    assert "HIPDECODE_CXX" in text
    assert "HIPDECODE_PREBUILT" in text


@pytest.mark.parametrize("words", ["/no/such/g++", "'  '"])
def test_named_compiler_that_is_not_there_is_an_error(tree: Path, words: str) -> None:
    with settings.override(cxx=words):
        assert "HIPDECODE_CXX: expected a C++20 compiler" in failure(ToolchainError)


def test_compiler_that_does_not_say_who_it_is_is_an_error(tree: Path, tmp_path: Path) -> None:
    script = tmp_path / "cxx"
    script.write_text("#!/bin/sh\necho no licence >&2\nexit 3\n")
    script.chmod(0o755)
    with settings.override(cxx=str(script)):
        text = failure(ToolchainError)
    assert f"expected `{script} --version` to say who it is, got exit status 3" in text
    assert "no licence" in text


def test_compiler_that_cannot_be_started_is_an_error(tree: Path, tmp_path: Path) -> None:
    script = tmp_path / "cxx"
    script.write_text("#!/no/such/interpreter\n")
    script.chmod(0o755)
    with settings.override(cxx=str(script)):
        assert "to start, got" in failure(ToolchainError)


def test_compiler_that_breaks_after_it_was_asked_is_an_error(tree: Path, tmp_path: Path) -> None:
    script = tiny_tree.compiler_script(tmp_path / "cxx", "kill -9 $$")
    with settings.override(cxx=str(script)):
        assert "got signal 9" in failure(BuildError)


def test_compiler_that_writes_nothing_is_an_error(tree: Path, tmp_path: Path) -> None:
    script = tiny_tree.compiler_script(tmp_path / "cxx", "exit 0")
    with settings.override(cxx=str(script)):
        assert "expected the compiler to write kernel.so, got nothing" in failure(BuildError)


def test_full_disk_in_the_compiler_is_named(tree: Path, tmp_path: Path) -> None:
    # /dev/full answers every write with ENOSPC; head says so in the words of every compiler.
    script = tiny_tree.compiler_script(tmp_path / "cxx", "exec head -c 9 /dev/zero > /dev/full")
    with settings.override(cxx=str(script)):
        text = failure(CacheError)
    assert "expected room on the disk of" in text
    assert "No space left on device" in text


@pytest.mark.parametrize(
    ("number", "expected"),
    [(errno.ENOSPC, "room on the disk"), (errno.EDQUOT, "room in the quota")],
)
def test_full_disk_in_the_cache_is_named(
    tree: Path, cache_dir: Path, monkeypatch: pytest.MonkeyPatch, number: int, expected: str
) -> None:
    def full(_: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", full)
    text = failure(CacheError)
    assert f"cache folder {cache_dir}/cpu-generic: expected {expected}" in text
    assert "HIPDECODE_CACHE_DIR" in text
    assert not [path for path in (cache_dir / "cpu-generic").iterdir() if path.is_dir()]


def test_cache_folder_that_cannot_be_made_is_an_error(tree: Path, tmp_path: Path) -> None:
    # Root may write anywhere, so a mode of 0555 would prove nothing: a file stands in the way.
    (tmp_path / "file").write_text("")
    with settings.override(cache_dir=tmp_path / "file" / "cache"):
        text = failure(CacheError)
    assert "expected a folder that can be written, got Not a directory" in text
    assert "HIPDECODE_CACHE_DIR" in text


def test_read_only_file_system_is_an_error(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def read_only(path: object, *_: object, **__: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))

    monkeypatch.setattr(os, "mkdir", read_only)
    assert "got Read-only file system at" in failure(CacheError)


def test_hit_writes_and_locks_nothing_so_that_the_cache_may_be_read_only(
    tree: Path, cache_dir: Path
) -> None:
    build()
    command = [sys.executable, "-c", WATCH_A_HIT, str(tree), str(cache_dir), str(PYTHON_DIR)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr


def test_no_build_says_what_would_have_been_built(tree: Path, cache_dir: Path) -> None:
    with settings.override(no_build=True):
        text = failure(BuildError)
    assert "HIPDECODE_NO_BUILD: expected tiny/1 for cpu-generic to be built already" in text
    assert "`hipdecode build tiny/1 --target cpu-generic`" in text
    assert str(cache_dir) in text
    build()
    with settings.override(no_build=True):
        assert tiny_tree.call(build().path) == 41


def test_no_build_without_a_compiler_is_still_the_same_error(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with settings.override(no_build=True):
        assert failure(BuildError).startswith("HIPDECODE_NO_BUILD: ")


def test_wrong_header_is_named(tree: Path) -> None:
    tiny_tree.write_registry(tree, header="kernels/none.h")
    assert "expected header kernels/none.h under" in failure(BuildError)


def test_wrong_names_are_errors_of_the_registry_and_target(tree: Path) -> None:
    with pytest.raises(RegistryError):
        build("tiny/3")
    with pytest.raises(RegistryError, match="got 'gfx950'"):
        build(target="gfx950")
    with pytest.raises(TargetError):
        build(target="gfx90a")


def test_build_leaves_the_environment_alone(tree: Path) -> None:
    before = dict(os.environ)
    build()
    assert dict(os.environ) == before


def test_debug_build_is_another_kernel_with_debug_flags(tree: Path) -> None:
    plain = build().path
    with settings.override(debug=True):
        debug = build().path
    assert debug != plain
    command = json.loads((debug.parent / "build.json").read_text())["command"]
    assert "-DHIPDECODE_DEBUG=1" in command
