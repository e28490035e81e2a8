# SPDX-License-Identifier: MIT
"""AITER's names of the MLA decode step, called as vLLM and SGLang call them."""

from __future__ import annotations

import inspect
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from hipdecode import aiter, settings
from hipdecode.errors import BadArgument
from hipdecode.testing import cases, compare
from hipdecode.testing.calls import prepared
from hipdecode.testing.cases import Case

BF16 = Case(nhead=16, q_lens=(2, 2, 2), kv_lens=(70, 0, 331), tail="stale")
FP8 = Case(
    nhead=32, q_lens=(1, 1, 1), kv_lens=(300, 1, 64), q_dtype="fp8_e4m3fn", kv_dtype="fp8_e4m3fn",
    q_scale=1.5, kv_scale=0.75,
)  # fmt: skip
MAX_BATCH = 7


class Caller:
    """What an engine holds of one step: tensors, six buffers, outputs."""

    def __init__(self, case: Case, device: torch.device, **sizes: Any) -> None:
        self.case = case
        self.given, self.want = prepared(case)
        self.inputs = cases.to_device(self.given, device)
        self.q_len = self.inputs["max_seqlen_q"]
        rows = self.inputs["q"].shape[0]
        self.o = torch.full((rows, case.nhead, 512), float("nan"), device=device).bfloat16()
        q_dtype, kv_dtype = self.inputs["q"].dtype, self.inputs["kv_buffer"].dtype
        info = aiter.get_mla_metadata_info_v1(
            MAX_BATCH, self.q_len, case.nhead, q_dtype, kv_dtype, is_sparse=False, **sizes
        )
        self.six = [torch.empty(size, dtype=dtype, device=device) for size, dtype in info]

    def plan(self, *, is_causal: bool, **modes: Any) -> None:
        meta, indptr, works, *maps = self.six
        aiter.get_mla_metadata_v1(
            self.inputs["qo_indptr"], self.inputs["kv_indptr"], self.inputs["kv_last_page_lens"],
            self.case.nhead, 1, is_causal, meta, works, indptr, *maps, page_size=1,
            kv_granularity=16, max_seqlen_qo=self.q_len, uni_seqlen_qo=self.q_len, **modes,
        )  # fmt: skip

    def positional(self) -> tuple[Any, ...]:
        i = self.inputs
        index = (i["qo_indptr"], i["kv_indptr"], i["kv_indices"], i["kv_last_page_lens"])
        return i["q"], i["kv_buffer"], self.o, *index, self.q_len

    def options(self, *, planned: bool) -> dict[str, Any]:
        names = (
            "work_meta_data", "work_indptr", "work_info_set",
            "reduce_indptr", "reduce_final_map", "reduce_partial_map",
        )  # fmt: skip
        lists = self.six if planned else [None] * 6
        more = {key: self.inputs.get(key) for key in ("sm_scale", "q_scale", "kv_scale")}
        return {**more, **dict(zip(names, lists, strict=True))}

    def check(self, lse: Tensor | None, target: str) -> None:
        compare.assert_decode_matches(
            self.case, self.given, self.o, lse, target=target, want=self.want, call="aiter"
        )


@pytest.mark.parametrize("case", [BF16, FP8], ids=str)
@pytest.mark.parametrize("is_causal", [True, False])
def test_mla_decode_fwd_follows_a_plan_in_buffers_of_a_larger_batch(
    case: Case, is_causal: bool, target: str, device: torch.device
) -> None:
    caller = Caller(case, device)
    for _ in range(2):
        caller.plan(is_causal=is_causal)
        _, lse = aiter.mla.mla_decode_fwd(
            *caller.positional(), **caller.options(planned=True), logit_cap=0.0, return_lse=True
        )
        caller.check(lse, target)


def test_mla_decode_fwd_takes_sglang_keywords_and_the_intra_batch_planner(
    target: str, device: torch.device
) -> None:
    caller = Caller(BF16, device, fast_mode=False, intra_batch_mode=True, num_kv_splits=32)
    caller.plan(is_causal=False, fast_mode=False, intra_batch_mode=True, max_split_per_batch=32)
    q, pool, *_ = caller.positional()
    inputs = caller.inputs
    _, lse = aiter.mla_decode_fwd(
        q=q, kv_buffer=pool.view(-1, 1, 1, 576), o=caller.o, qo_indptr=inputs["qo_indptr"],
        kv_indptr=inputs["kv_indptr"], kv_indices=inputs["kv_indices"],
        kv_last_page_lens=torch.zeros(3, dtype=torch.int32, device=device),
        max_seqlen_q=caller.q_len, intra_batch_mode=True, num_kv_splits=32, return_lse=True,
        **caller.options(planned=True),
    )  # fmt: skip
    caller.check(lse, target)


@pytest.mark.parametrize("case", [BF16, FP8], ids=str)
def test_mla_decode_fwd_decodes_without_a_plan(
    case: Case, target: str, device: torch.device
) -> None:
    caller = Caller(case, device)
    o, lse = aiter.mla_decode_fwd(*caller.positional(), **caller.options(planned=False))
    assert o is caller.o
    assert lse is None
    caller.check(None, target)


def test_stage_1_and_either_order_of_the_reduce_make_the_decode(device: torch.device) -> None:
    caller = Caller(BF16, device)
    caller.plan(is_causal=True)
    _, want_lse = aiter.mla_decode_fwd(
        *caller.positional(), **caller.options(planned=True), return_lse=True
    )
    want = caller.o.clone()
    _, indptr, works, *maps = caller.six
    rows = maps[2].numel() * caller.q_len
    partial = torch.full((rows, 1, 16, 512), float("nan"), device=device)
    partial_lse = torch.full((rows, 1, 16, 1), float("nan"), device=device)
    q, pool, _, *index, q_len = caller.positional()
    stage = (q, pool, *index, indptr, works, q_len, caller.inputs["sm_scale"], partial, partial_lse)
    first = (partial, partial_lse, *maps, q_len)
    lse = torch.empty_like(want_lse)
    for last in ((0, caller.o, lse), (caller.o, lse)):
        caller.o.fill_(float("nan"))
        aiter.hk_mla_v32_decode_fwd(*stage, caller.o)
        aiter.mla_reduce_v1(*first, *last)
        assert torch.equal(caller.o, want)


@pytest.mark.parametrize(
    "asked",
    [
        {"nhead_kv": 2}, {"logit_cap": 30.0}, {"return_logits": True}, {"page_size": 64},
        {"cp_world_size": 2}, {"work_indptr": None},
    ],
    ids=lambda asked: next(iter(asked)),
)  # fmt: skip
def test_mla_decode_fwd_refuses_by_aiters_name_what_is_not_done(
    asked: dict[str, Any], device: torch.device
) -> None:
    caller = Caller(BF16, device)
    caller.plan(is_causal=True)
    with pytest.raises(BadArgument, match=next(iter(asked))):
        aiter.mla_decode_fwd(*caller.positional(), **(caller.options(planned=True) | asked))
    assert caller.o.isnan().all()


def test_callers_can_inspect_what_the_entries_take() -> None:
    assert {"q_scale", "kv_scale", "causal"} <= set(
        inspect.signature(aiter.mla.mla_decode_fwd).parameters
    )
    names = list(inspect.signature(aiter.get_mla_metadata_v1).parameters)
    assert names[7:9] == ["work_info_set", "work_indptr"]


_INSTALL = """
import importlib.util
import hipdecode
names = hipdecode.install_as_aiter()
assert hipdecode.install_as_aiter() == names
import aiter
from aiter import get_mla_metadata_v1, mla_reduce_v1
from aiter.mla import mla_decode_fwd
from aiter.mla_decode_reduce import mla_reduce_decode
assert "aiter.mla.mla_decode_fwd" in names, names
assert mla_decode_fwd is hipdecode.aiter.mla.mla_decode_fwd
assert importlib.util.find_spec("aiter") is not None
print(getattr(aiter, "other", "no other"), getattr(aiter.mla, "mla_prefill_fwd", "no prefill"))
"""


@pytest.mark.parametrize("present", [False, True])
def test_install_as_aiter_replaces_its_names_and_leaves_the_rest(
    present: bool, tmp_path: Path
) -> None:
    if present:
        (tmp_path / "aiter").mkdir()
        (tmp_path / "aiter" / "__init__.py").write_text("other = 'kept'\nmla_reduce_v1 = None\n")
        (tmp_path / "aiter" / "mla.py").write_text("mla_prefill_fwd = 'prefill kept'\n")
    path = ":".join([str(tmp_path), *sys.path])
    done = subprocess.run(
        [sys.executable, "-c", _INSTALL],
        capture_output=True,
        text=True,
        env=settings.child_environment(PYTHONPATH=path),
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.strip() == ("kept prefill kept" if present else "no other no prefill")
