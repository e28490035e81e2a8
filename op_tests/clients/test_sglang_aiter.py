# SPDX-License-Identifier: MIT
"""SGLang's calls of AITER, read from its sources, against the signatures of hipdecode.aiter."""

from __future__ import annotations

import ast
import importlib.util
import inspect
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

if importlib.util.find_spec("sglang") is None:
    pytest.skip("needs the clients extra: make test-clients", allow_module_level=True)

from hipdecode import aiter
from hipdecode.integrations.sglang import ALSO_IMPORTED

ATTENTION = Path(importlib.util.find_spec("sglang").origin).parent / "srt/layers/attention"
BACKENDS = ("aiter_backend.py", "dsa_backend.py", "hip_flash_mla.py", "aiter_utils.py")

OURS = {
    "aiter.get_mla_metadata_info_v1": 2,
    "aiter.get_mla_metadata_v1": 2,
    "aiter.mla.mla_decode_fwd": 7,
    "aiter.mla_reduce_v1": 1,
}
"""Names of SGLang 0.5.23's attention backends that hipdecode has -> their calls."""

NOT_OURS = {
    "aiter.flash_attn_varlen_fp8_pertensor_func",
    "aiter.flash_attn_varlen_func",
    "aiter.get_ps_metadata_info_v1",
    "aiter.get_ps_metadata_v1",
    "aiter.mha_batch_prefill_func",
    "aiter.mla.mla_prefill_fwd",
    "aiter.mla_prefill_ps_asm_fwd",
    "aiter.ops.triton.attention.pa_decode_sparse.pa_decode_sparse",
    "aiter.ops.triton.attention.unified_attention.unified_attention",
    "aiter.ops.triton.gluon.pa_decode_gluon.get_recommended_splits",
    "aiter.ops.triton.gluon.pa_decode_gluon.pa_decode_gluon",
    "aiter.paged_attention_ragged",
}
"""Those that it does not have: prefill, and paged decode of other layouts."""


@dataclass(frozen=True)
class Call:
    """A call of one of AITER's names."""

    name: str
    where: str
    positional: int
    keywords: tuple[str | None, ...]


def imported_and_called() -> tuple[set[str], list[Call]]:
    """Every name that the attention backends import from AITER, and every call of one."""
    imported: set[str] = set()
    calls = []
    for path in (ATTENTION / name for name in BACKENDS):
        tree = ast.parse(path.read_text())
        names = {
            alias.asname or alias.name: f"{node.module}.{alias.name}"
            for node in ast.walk(tree)
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "aiter"
            for alias in node.names
        }
        imported |= set(names.values())
        calls += [
            Call(
                names[node.func.id],
                f"{path.name}:{node.lineno}",
                len(node.args),
                tuple(keyword.arg for keyword in node.keywords),
            )
            for node in ast.walk(tree)
            if isinstance(node, ast.Call)
            and isinstance(node.func, ast.Name)
            and node.func.id in names
        ]
    return imported, calls


IMPORTED, CALLS = imported_and_called()


def function_of(name: str):
    home = aiter.mla if name.startswith("aiter.mla.") else aiter
    return getattr(home, name.rpartition(".")[2], None)


def test_names_that_sglang_imports_are_the_ones_listed_here() -> None:
    decode = {name for name in IMPORTED if name in OURS or name in NOT_OURS}
    other = {name for name in IMPORTED - decode if function_of(name) is not None}
    assert decode == set(OURS) | NOT_OURS
    assert not other
    assert all(function_of(name) is None for name in NOT_OURS)
    assert {f"{home}.{name}" for home, names in ALSO_IMPORTED.items() for name in names} <= NOT_OURS


@pytest.mark.parametrize("name", OURS)
def test_every_call_of_sglangs_binds(name: str) -> None:
    calls = [call for call in CALLS if call.name == name]
    assert len(calls) == OURS[name]
    signature = inspect.signature(function_of(name))
    for call in calls:
        keywords = dict.fromkeys(key for key in call.keywords if key is not None)
        bind = signature.bind_partial if None in call.keywords else signature.bind
        try:
            bind(*range(call.positional), **keywords)
        except TypeError as error:
            pytest.fail(f"{call.where} {name}: {error}")


BACKEND = """
import sglang_engine
import hipdecode
from hipdecode import aiter
from hipdecode.integrations.sglang import complete_aiter
assert complete_aiter() == ()  # nothing of AITER's name is there yet
hipdecode.install_as_aiter()
refused = complete_aiter()
import sglang.srt.layers.attention.aiter_backend as backend
assert backend.mla_decode_fwd is aiter.mla.mla_decode_fwd
assert backend.get_mla_metadata_v1 is aiter.get_mla_metadata_v1
assert "aiter.mla.mla_prefill_fwd" in refused and "aiter.mla.mla_decode_fwd" not in refused
try:
    backend.mla_prefill_fwd(1, page_size=1)
except NotImplementedError as error:
    print(error)
"""


def test_sglangs_aiter_backend_takes_decode_from_hipdecode_and_names_what_it_lacks(
    request: pytest.FixtureRequest,
) -> None:
    if importlib.util.find_spec("aiter") is not None:
        pytest.skip("AITER is installed: needs a machine without it")
    # what `pytest -p` was given may have made SGLang importable
    plugins = [name for name in request.config.option.plugins if not name.startswith("no:")]
    done = subprocess.run(
        [sys.executable, "-c", "".join(f"import {name}\n" for name in plugins) + BACKEND],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "aiter.mla.mla_prefill_fwd" in done.stdout
    assert "aiter is AMD specific" not in done.stdout  # SGLang's own word for a failed import
