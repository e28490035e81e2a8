# SPDX-License-Identifier: MIT
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import tiny_tree

from hipdecode import jit, paths, registry, settings
from hipdecode.errors import BuildError, CacheError, ToolchainError
from hipdecode.jit import prebuilt

NAME = "tiny/1"


@pytest.fixture
def folder(tree: Path, tmp_path: Path) -> Path:
    """A prebuilt folder with one kernel and a stand-in for the binding, moved once."""
    built = jit.ensure_kernel(tiny_tree.TARGET, NAME)
    plan = jit.recipe(registry.default().kernel(NAME), tiny_tree.TARGET)
    prebuilt.write(
        tmp_path / "out",
        abi_version=plan.abi_version,
        kernels={tiny_tree.TARGET: {NAME: (built.path, plan.source_key)}},
        binding=(built.path, "b" * 64),
    )
    return (tmp_path / "out").rename(tmp_path / "moved")


@pytest.fixture
def bare(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The prebuilt folder on a machine with no compiler and nothing cached."""
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    with settings.override(prebuilt=folder, cache_dir=tmp_path / "nothing"):
        yield folder


def ensure() -> Path:
    return jit.ensure_kernel(tiny_tree.TARGET, NAME).path


def test_prebuilt_kernel_is_used_without_a_compiler(bare: Path, tmp_path: Path) -> None:
    with settings.override(no_build=True):
        assert ensure().is_relative_to(bare)
    assert tiny_tree.call(ensure()) == 41
    assert not (tmp_path / "nothing").exists()


def test_prebuilt_folder_of_the_package_needs_no_setting(
    bare: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bare.rename(tmp_path / "prebuilt")
    monkeypatch.setattr(paths, "package_dir", lambda: tmp_path)
    with settings.override(prebuilt=None):
        assert ensure().is_relative_to(tmp_path / "prebuilt")


def test_stale_prebuilt_folder_is_an_error_with_both_versions(bare: Path, tree: Path) -> None:
    tiny_tree.write_abi_version(tree, 2)
    with pytest.raises(BuildError, match=f"{bare}: expected ABI version 2, got 1;"):
        ensure()


def test_prebuilt_kernel_of_other_sources_is_not_used(bare: Path, tree: Path) -> None:
    (tree / "csrc/parts/part.h").write_text("constexpr int kPart = 50;\n")
    with pytest.raises(ToolchainError, match="holds tiny/1 for cpu-generic made from other"):
        ensure()
    with (
        settings.override(no_build=True),
        pytest.raises(BuildError, match=r"HIPDECODE_NO_BUILD: (.|\n)*made from other"),
    ):
        ensure()


def test_kernel_that_the_folder_lacks_is_compiled(folder: Path, cache_dir: Path) -> None:
    with settings.override(prebuilt=folder):
        path = jit.ensure_kernel(tiny_tree.TARGET, "tiny/2").path
    assert path.is_relative_to(cache_dir)


def test_error_names_the_targets_that_the_folder_holds(bare: Path) -> None:
    with pytest.raises(ToolchainError, match="holds targets cpu-generic, not cpu-avx2"):
        jit.ensure_kernel("cpu-avx2", NAME)


def test_folder_without_a_manifest_is_an_error(tree: Path, tmp_path: Path) -> None:
    with (
        settings.override(prebuilt=tmp_path),
        pytest.raises(CacheError, match=r"HIPDECODE_PREBUILT: expected a folder with manifest"),
    ):
        ensure()


@pytest.mark.parametrize("text", ["", "{}", '{"format": 2}', '{"format": 1}'])
def test_manifest_that_cannot_be_read_is_an_error(bare: Path, text: str) -> None:
    (bare / "manifest.json").write_text(text)
    with pytest.raises(CacheError, match=r"manifest\.json: expected a manifest of format 1"):
        ensure()


def test_second_target_is_added_to_the_folder(folder: Path, tree: Path) -> None:
    built = jit.ensure_kernel("cpu-avx2", NAME)
    kernels = {"cpu-avx2": {NAME: (built.path, "k" * 64)}}
    prebuilt.write(folder, abi_version=1, kernels=kernels, binding=(built.path, "b" * 64))
    assert set(prebuilt.read_manifest(folder)["kernels"]) == {"cpu-generic", "cpu-avx2"}


def test_kernels_of_another_abi_version_are_dropped(folder: Path, tree: Path) -> None:
    built = jit.ensure_kernel("cpu-avx2", NAME)
    kernels = {"cpu-avx2": {NAME: (built.path, "k" * 64)}}
    prebuilt.write(folder, abi_version=2, kernels=kernels, binding=(built.path, "b" * 64))
    assert set(prebuilt.read_manifest(folder)["kernels"]) == {"cpu-avx2"}


def test_prebuilt_binding_is_found_by_its_sources_and_machine(bare: Path) -> None:
    found, reason = prebuilt.find_binding("b" * 64, 1)
    assert found is not None
    assert (found.is_file(), reason) == (True, "")
    assert "other sources" in prebuilt.find_binding("c" * 64, 1)[1]
    manifest = json.loads((bare / "manifest.json").read_text())
    (bare / "manifest.json").write_text(json.dumps(manifest | {"machine": "riscv64"}))
    assert "holds a binding for riscv64" in prebuilt.find_binding("b" * 64, 1)[1]
