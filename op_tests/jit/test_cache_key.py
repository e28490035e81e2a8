# SPDX-License-Identifier: MIT
import dataclasses
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import tiny_tree

from hipdecode import jit, paths, registry, settings
from hipdecode.errors import BuildError
from hipdecode.jit import keys
from hipdecode.jit.toolchain import Compiler

GCC = Compiler(("g++",), "g++ 12.2.0", "x86_64-linux-gnu")


def key(name: str = "tiny/1", target: str = tiny_tree.TARGET, compiler: Compiler = GCC) -> str:
    return jit.recipe(registry.default().kernel(name), target).key(compiler)


def edit(path: str, text: str) -> Callable[[Path], None]:
    return lambda root: (root / "csrc" / path).write_text(text) and None


@pytest.mark.parametrize(
    "change",
    [
        lambda root: tiny_tree.write_registry(root, instantiate="{n} + 1"),
        lambda root: tiny_tree.write_registry(root, symbol="other"),
        lambda root: tiny_tree.write_registry(root, flags=("-O1",)),
        edit("kernels/tiny.h", tiny_tree.HEADER + "// a comment\n"),
        edit("parts/part.h", "constexpr int kPart = 41;\n"),
        lambda root: tiny_tree.write_abi_version(root, 2),
    ],
    ids=["instantiate", "symbol", "flags", "header", "nested-include", "abi-version"],
)
def test_key_changes_with_each_ingredient(tree: Path, change: Callable[[Path], None]) -> None:
    before = key()
    change(tree)
    assert key() != before


def test_key_changes_with_value_target_compiler_and_debug(tree: Path) -> None:
    seen = {key(), key("tiny/2"), key(target="cpu-avx2")}
    seen.add(key(compiler=dataclasses.replace(GCC, version="g++ 12.2.1")))
    seen.add(key(compiler=dataclasses.replace(GCC, machine="aarch64-linux-gnu")))
    with settings.override(debug=True):
        seen.add(key())
    assert len(seen) == 6


def test_key_depends_on_the_order_of_flags(tree: Path) -> None:
    tiny_tree.write_registry(tree, flags=("-fa", "-fno-a"))
    before = key()
    tiny_tree.write_registry(tree, flags=("-fno-a", "-fa"))
    assert key() != before


def test_key_ignores_times_other_files_and_the_place_of_the_tree(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = key()
    os.utime(tree / "csrc/parts/part.h", (1, 1))
    (tree / "csrc/parts/unused.h").write_text("#error\n")
    assert key() == before
    moved = shutil.copytree(tree, tmp_path / "elsewhere")
    monkeypatch.setattr(paths, "source_root", lambda: moved)
    registry.default.cache_clear()
    assert key() == before


def test_closure_follows_quoted_angled_conditional_and_cyclic_includes(tmp_path: Path) -> None:
    files = {
        "a/one.h": '#include "two.h"\n#include <vector>\n',
        "a/two.h": "#ifdef NEVER\n#  include <b/three.h>  // why\n#endif\n",
        "b/three.h": '#pragma once\n#include "../a/one.h" /* a cycle */\n',
        "two.h": "a decoy: quoted includes look beside the including file first\n",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    found = keys.SourceTree(tmp_path).closure("#include <a/one.h>\n")
    assert list(found) == ["a/one.h", "a/two.h", "b/three.h"]


def test_closure_never_leaves_the_tree(tmp_path: Path) -> None:
    (tmp_path / "outside.h").write_text("")
    (tmp_path / "in").mkdir()
    text = '#include "../outside.h"\n#include <stdint.h>\n'
    assert keys.SourceTree(tmp_path / "in").closure(text, tmp_path / "in") == {}


def test_key_ignores_the_tiles_of_other_targets(tree: Path) -> None:
    for name in ("cpu", "amdgcn"):
        (tree / "csrc/tile/target" / name).mkdir(parents=True)
        (tree / f"csrc/tile/target/{name}/page.h").write_text("")
    both = "".join(f'#include "../tile/target/{name}/page.h"\n' for name in ("cpu", "amdgcn"))
    (tree / "csrc/kernels/tiny.h").write_text(both + tiny_tree.HEADER)
    tiny_tree.write_registry(tree, tile="cpu")
    before = key()
    (tree / "csrc/tile/target/amdgcn/page.h").write_text("// another page\n")
    assert key() == before
    (tree / "csrc/tile/target/cpu/page.h").write_text("// another page\n")
    assert key() != before


def test_closure_raises_when_an_include_is_computed(tmp_path: Path) -> None:
    (tmp_path / "a.h").write_text("#include HEADER\n")
    with pytest.raises(BuildError, match=r"a\.h: expected #include .*got 'HEADER'"):
        keys.SourceTree(tmp_path).closure("#include <a.h>\n")


def test_digest_keeps_names_and_values_apart() -> None:
    assert len({keys.digest(a="bc"), keys.digest(ab="c"), keys.digest(a=["b", "c"])}) == 3


def test_built_kernel_is_found_again_without_starting_a_process(
    tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = jit.ensure_kernel(tiny_tree.TARGET, "tiny/1")
    assert tiny_tree.call(first.path) == 41
    assert first.symbol == "tiny"

    def fail(*_: object, **__: object) -> None:
        raise AssertionError("a hit started a process")

    monkeypatch.setattr(subprocess, "run", fail)
    assert jit.ensure_kernel(tiny_tree.TARGET, "tiny/1") is first
    with settings.override(log=1):  # other settings: not the in-process memo
        assert jit.ensure_kernel(tiny_tree.TARGET, "tiny/1") == first


def test_edit_of_a_header_is_seen_by_the_next_build(tree: Path) -> None:
    assert tiny_tree.call(jit.ensure_kernel(tiny_tree.TARGET, "tiny/1").path) == 41
    (tree / "csrc/parts/part.h").write_text("constexpr int kPart = 1000;\n")
    with settings.override(log=1):
        assert tiny_tree.call(jit.ensure_kernel(tiny_tree.TARGET, "tiny/1").path) == 1001


def test_generated_source_lies_beside_the_artefact(tree: Path) -> None:
    folder = jit.ensure_kernel(tiny_tree.TARGET, "tiny/2").path.parent
    assert sorted(path.name for path in folder.iterdir()) == [
        "build.json",
        "build.log",
        "kernel.cpp",
        "kernel.so",
    ]
    assert (folder / "kernel.cpp").read_text() == registry.default().kernel("tiny/2").source()
