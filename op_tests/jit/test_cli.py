# SPDX-License-Identifier: MIT
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import tiny_tree
from click.testing import CliRunner

from hipdecode import paths, settings
from hipdecode.cli.__main__ import cli
from hipdecode.errors import HipdecodeError, RegistryError
from hipdecode.jit import binding, cache, prebuilt
from hipdecode.jit.library import Library


def run(*words: str) -> str:
    result = CliRunner().invoke(cli, words, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_help_lists_every_command_and_imports_none(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("hipdecode.cli.")]:
        monkeypatch.delitem(sys.modules, name)
    text = run("--help")
    for name in ("build", "doctor", "route", "tune", "bench", "demo", "warmup"):
        assert f"\n  {name} " in text
    assert not [name for name in sys.modules if name.startswith("hipdecode.cli.")]


def test_unknown_command_is_a_usage_error() -> None:
    assert CliRunner().invoke(cli, ["frobnicate"]).exit_code == 2


def test_build_compiles_every_kernel_of_a_module_once(tree: Path, cache_dir: Path) -> None:
    words = ("build", "tiny", "--target", tiny_tree.TARGET, "--jobs", "2")
    assert "│ tiny   │ 2       │ 2        │" in run(*words)
    assert "│ tiny   │ 2       │ 0        │" in run(*words)
    assert cache.usage(cache_dir).entries == 2


def test_build_writes_a_relocatable_folder(
    tree: Path, cache_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = tmp_path / "binding.so"
    library.write_bytes(b"library")
    monkeypatch.setattr(binding, "ensure_binding", lambda: library)
    made = Library("torch binding", (), (), (), abi_version=1, source_key="b" * 64)
    plan = binding.BindingRecipe(made, "2.13.0")
    monkeypatch.setattr(binding, "recipe", lambda: plan)
    out = tmp_path / "out"
    run("build", "--all", "--target", "cpu-generic", "--target", "cpu-avx2", "--out", str(out))
    assert {k: set(v) for k, v in prebuilt.read_manifest(out)["kernels"].items()} == {
        "cpu-generic": {"tiny/1", "tiny/2"},
        "cpu-avx2": {"tiny/1", "tiny/2"},
    }
    with settings.override(prebuilt=out, cache_dir=tmp_path / "nothing", cxx="/none"):
        text = run("build", "tiny/1", "--target", "cpu-avx2")
    assert "│ tiny   │ 1       │ 0        │" in text


def test_build_raises_for_a_target_that_the_registry_lacks(tree: Path) -> None:
    with pytest.raises(RegistryError, match="got 'gfx950'"):
        run("build", "tiny", "--target", "gfx950")


def test_warmup_of_an_operator_loads_it() -> None:
    assert run("warmup", "--op", "mla_plan").startswith("mla_plan: ")


def test_warmup_wants_a_model_or_an_operator() -> None:
    assert CliRunner().invoke(cli, ["warmup"]).exit_code == 2


@pytest.mark.parametrize("words", [("no-such-model",), ("--op", "mla_prefill")])
def test_warmup_raises_when_the_name_is_unknown(words: tuple[str, ...]) -> None:
    with pytest.raises(HipdecodeError, match="expected"):
        run("warmup", *words)


def test_doctor_checks_every_route_and_reports_as_json() -> None:
    report = json.loads(run("doctor", "--json"))
    assert report["ok"]
    assert [check["subject"] for check in report["checks"]] == [
        "mla_decode hk-1",
        "mla_decode hk-2",
        "mla_decode persistent",
    ]
    assert {"torch", "target", "compiler", "cache"} <= {f["subject"] for f in report["found"]}


def test_doctor_fails_when_something_has_to_be_done() -> None:
    with settings.override(cxx="/no/such/compiler"):
        result = CliRunner().invoke(cli, ["doctor", "--json"])
    assert result.exit_code == 1
    report = json.loads(result.output)
    failed = {finding["subject"]: finding["text"] for finding in report["found"]}
    assert "HIPDECODE_CXX: expected a C++20 compiler" in failed["compiler"]


@pytest.mark.parametrize("name", ["mla_decode", "paged_attention", "mla_decode_reduce"])
def test_doctor_reads_every_table(name: str, tmp_path: Path) -> None:
    folder = shutil.copytree(paths.tables_dir(), tmp_path / "tables")
    (folder / "cpu" / f"{name}.csv").write_text("nonsense\n")
    env = settings.child_environment(HIPDECODE_TABLES=str(folder), PYTHONPATH=":".join(sys.path))
    words = (sys.executable, "-m", "hipdecode.cli", "doctor", "--target", "cpu", "--json")
    done = subprocess.run(words, env=env, capture_output=True, text=True, check=False)
    found = {finding["subject"]: finding for finding in json.loads(done.stdout)["found"]}
    assert not found["tables"]["ok"]
    assert f"{name}.csv" in found["tables"]["text"]


def test_doctor_prunes_the_cache(tree: Path, cache_dir: Path) -> None:
    run("build", "tiny", "--target", tiny_tree.TARGET)
    (cache_dir / tiny_tree.TARGET / "old-0123.failed").mkdir()
    assert "removed 0 entries and 1 leftovers" in run("doctor", "--prune")
    assert "removed 2 entries and 0 leftovers" in run("doctor", "--prune", "all")
