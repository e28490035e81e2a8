# SPDX-License-Identifier: MIT
"""Under AITER's name: every decode call in vLLM's ROCm sources fits what hipdecode offers."""

from __future__ import annotations

import ast
import importlib
import inspect
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from hipdecode import aiter
from hipdecode.testing import compare
from hipdecode.testing.calls import prepared
from hipdecode.testing.cases import Case

if os.environ.get("HIPDECODE_TARGET", "cpu").startswith("cpu"):
    os.environ["VLLM_TARGET_DEVICE"] = "cpu"
vllm = pytest.importorskip("vllm", reason="needs the clients extra: make test-clients")

ROOT = Path(vllm.__file__).parent
OPS = "_aiter_ops.py"
MLA = "v1/attention/backends/mla/rocm_aiter_mla.py"
SPARSE = "v1/attention/backends/mla/rocm_aiter_mla_sparse.py"
PAGED = "v1/attention/backends/rocm_aiter_fa.py"

CALLS = (
    # file, function of vLLM, how it names ours, ours, calls
    (OPS, "_rocm_aiter_mla_decode_fwd_impl", "mla_decode_fwd", aiter.mla.mla_decode_fwd, 1),
    (OPS, "_rocm_aiter_mla_decode_fwd_lse_impl", "mla_decode_fwd", aiter.mla.mla_decode_fwd, 1),
    (OPS, "_rocm_aiter_mla_decode_fwd_lse_impl", "get_meta_param", aiter.mla.get_meta_param, 1),
    (OPS, "pa_fwd_asm", "pa_fwd_asm", aiter.pa_fwd_asm, 1),
    (MLA, "__init__", "get_mla_metadata_info_v1", aiter.get_mla_metadata_info_v1, 1),
    (MLA, "_build_decode", "get_mla_metadata_v1", aiter.get_mla_metadata_v1, 1),
    (MLA, "_forward_mqa", "_get_aiter_mla_decode()", aiter.mla.mla_decode_fwd, 1),
    (SPARSE, "__init__", "get_mla_metadata_info_v1", aiter.get_mla_metadata_info_v1, 1),
    (SPARSE, "build", "get_mla_metadata_v1", aiter.get_mla_metadata_v1, 1),
)
AITERS_OWN = {
    # decode names of vLLM's that stay AITER's, which has to be there for prefill as well
    "mla_gluon": "fewer heads than 16; --attention-backend CUSTOM takes them without padding",
    "mla_decode_gluon": "its older name",
    "fused_mla_prefill_qkv_fp8": "prefill",
    "flash_attn_varlen_func": "prefill",
    "mla_prefill_ps_asm_fwd": "prefill",
    "get_ps_metadata_info_v1": "prefill",
    "get_ps_metadata_v1": "prefill",
    "dtypes": "the types of a GPU",
    "AITER_CSRC_DIR": "whose sources vLLM reads",
}


def functions_named(file: str, name: str) -> Iterator[ast.FunctionDef]:
    for node in ast.walk(ast.parse((ROOT / file).read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef) and node.name == name:
            yield node


def spread_keywords(function: ast.FunctionDef, name: str) -> set[str]:
    """Keywords that a function ever puts into the dict that it calls with `**name`."""
    found: set[str] = set()
    for node in ast.walk(function):
        if isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None:
            target = node.targets[0] if isinstance(node, ast.Assign) else node.target
            if ast.unparse(target) == name:
                found |= keywords_of(node.value)
            elif isinstance(target, ast.Subscript) and ast.unparse(target.value) == name:
                found.add(ast.literal_eval(target.slice))
        elif isinstance(node, ast.Call) and ast.unparse(node.func) == f"{name}.update":
            found |= {keyword.arg for keyword in node.keywords if keyword.arg}
    return found


def keywords_of(value: ast.expr) -> set[str]:
    """Of dict(a=1), {"a": 1} and a choice between such."""
    if isinstance(value, ast.Dict):
        return {ast.literal_eval(key) for key in value.keys if key is not None}
    if isinstance(value, ast.IfExp):
        return keywords_of(value.body) | keywords_of(value.orelse)
    return {keyword.arg for keyword in getattr(value, "keywords", ()) if keyword.arg}


@pytest.mark.parametrize(("file", "function", "name", "ours", "count"), CALLS, ids=str)
def test_each_call_in_vllm_binds_to_ours(
    file: str, function: str, name: str, ours: Callable[..., object], count: int
) -> None:
    seen = 0
    for inside in functions_named(file, function):
        for call in ast.walk(inside):
            if not (isinstance(call, ast.Call) and ast.unparse(call.func) == name):
                continue
            keywords = {keyword.arg for keyword in call.keywords if keyword.arg}
            for keyword in call.keywords:
                if keyword.arg is None:
                    spread = keyword.value
                    keywords |= keywords_of(spread)
                    keywords |= spread_keywords(inside, ast.unparse(spread))
            inspect.signature(ours).bind(*call.args, **dict.fromkeys(keywords))
            seen += 1
    assert seen == count, f"{file}: {function} calls {name} {seen} times: the table is old"


@pytest.mark.parametrize("file", [MLA, SPARSE])
def test_the_table_knows_every_name_that_vllm_imports_for_mla(file: str) -> None:
    # of aiter.ops.triton.attention.mla, a second mla_decode_fwd stays AITER's
    ours = {*aiter.__all__, *aiter.mla.__all__}
    imported = {
        alias.name
        for node in ast.walk(ast.parse((ROOT / file).read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "aiter"
        for alias in node.names
    }
    assert imported
    assert imported <= ours | set(AITERS_OWN)


def test_vllm_reads_what_it_probes_for_off_our_signature() -> None:
    """The names that vLLM looks for in inspect.signature(mla_decode_fwd)."""
    assert {"q_scale", "kv_scale", "causal"} <= set(
        inspect.signature(aiter.mla.mla_decode_fwd).parameters
    )


RUN = """
import sys
import torch
import hipdecode
hipdecode.install_as_aiter()
import vllm._aiter_ops as ops
case = torch.load(sys.argv[1])
index = (case["qo_indptr"], case["max_seqlen_q"])
pages = (case["kv_indptr"], case["kv_indices"], case["kv_last_page_lens"])
more = {key: case[key] for key in ("q_scale", "kv_scale")}
kv = case["kv_buffer"].flatten(0, 1)
o = torch.full((*case["q"].shape[:2], 512), float("nan"), dtype=torch.bfloat16)
scale = case["sm_scale"] or 576 ** -0.5
q = case["q"]
ops._rocm_aiter_mla_decode_fwd_impl(q, kv, o, *index, *pages, scale, 0.0, **more)
with_lse = torch.full_like(o, float("nan"))
lse = ops._rocm_aiter_mla_decode_fwd_lse_impl(q, kv, with_lse, *index, *pages, scale, 0.0, **more)
torch.save((o, with_lse, lse), sys.argv[1])
"""


@pytest.mark.parametrize("q_dtype", ["bf16", "fp8_e4m3fn"])
def test_vllms_own_wrappers_decode_on_ours(
    q_dtype: str, target: str, device: torch.device, tmp_path: Path
) -> None:
    if device.type != "cpu":
        pytest.skip("AITER's name is taken in a process of its own, on the CPU")
    case = Case(
        nhead=16, q_lens=(1, 1, 1), kv_lens=(70, 0, 331), q_dtype=q_dtype, kv_dtype="fp8_e4m3fn",
        q_scale=1.5, kv_scale=0.75, tail="stale",
    )  # fmt: skip
    given, want = prepared(case)
    torch.save(dict(given), tmp_path / "case.pt")
    ran = subprocess.run(
        [sys.executable, "-c", RUN, str(tmp_path / "case.pt")],
        env=os.environ | {"HIPDECODE_TARGET": target},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr[-2000:]
    o, with_lse, lse = torch.load(tmp_path / "case.pt")
    compare.assert_decode_matches(case, given, o, None, target=target, want=want, call="aiter")
    compare.assert_decode_matches(case, given, with_lse, lse, target=target, want=want, call="lse")


def test_installing_as_aiter_leaves_the_rest_of_aiter_alone() -> None:
    """Names that vLLM's decode does not call are not made up where AITER is absent."""
    if importlib.util.find_spec("aiter") is not None:
        pytest.skip("AITER is installed here: a machine without it runs this")
    code = (
        "import hipdecode; names = hipdecode.install_as_aiter(); import aiter;"
        "print(hasattr(aiter, 'flash_attn_varlen_func'), 'aiter.mla.get_meta_param' in names)"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.split() == ["False", "True"]
