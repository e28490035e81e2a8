# SPDX-License-Identifier: MIT
from pathlib import Path

import pytest
import torch

from hipdecode import paths, settings
from hipdecode.errors import BuildError
from hipdecode.jit import binding, ensure_binding


def test_binding_is_built_once_and_registers_the_operators() -> None:
    path = ensure_binding()
    assert ensure_binding() == path
    torch.ops.load_library(str(path))
    assert torch.ops.hipdecode.mla_decode_hk.default is not None


def test_binding_of_a_wheel_is_used_only_by_the_wheel(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "_C.abi3.so").touch()
    monkeypatch.setattr(paths, "package_dir", lambda: tmp_path)
    assert ensure_binding().parent != tmp_path
    monkeypatch.setattr(paths, "source_root", lambda: tmp_path / "share")
    assert ensure_binding() == tmp_path / "_C.abi3.so"


def test_no_build_forbids_the_binding_as_well(tmp_path: Path) -> None:
    with (
        settings.override(no_build=True, cache_dir=tmp_path, prebuilt=None),
        pytest.raises(BuildError, match="HIPDECODE_NO_BUILD: expected the torch binding"),
    ):
        ensure_binding()


def test_prebuilt_binding_serves_every_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    before = binding.recipe()
    monkeypatch.setattr(torch, "__version__", "2.99.0")
    after = binding.recipe()
    assert (after.torch, after.source_key) == ("2.99.0", before.source_key)
