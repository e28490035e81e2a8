# SPDX-License-Identifier: MIT
"""AITER's names of paged attention, called as vLLM calls them: they route, and say so."""

from __future__ import annotations

import dataclasses
import logging
import sys
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

import hipdecode
from hipdecode import aiter
from hipdecode.aiter.paged import register_as_aiter_op
from hipdecode.aiter.paged_attn import PagedAttention
from hipdecode.errors import BadArgument
from hipdecode.testing import paged_reference
from hipdecode.testing.paged_cases import (
    PagedCase,
    PagedInputs,
    for_target,
    make_paged_inputs,
    to_device,
)

pytestmark = pytest.mark.usefixtures("paged_kernels")

CASE = PagedCase(lens=(130, 61), mtp=2, gqa=8)


class Caller:
    """What an engine holds of one step."""

    def __init__(self, case: PagedCase, target: str, device: torch.device) -> None:
        self.case = for_target(case, target)
        self.given: PagedInputs = make_paged_inputs(self.case)
        self.i = to_device(self.given, device)
        self.want = paged_reference.paged_attention(
            **self.given, max_seqlen_q=self.case.mtp
        ).o.float()

    def forward(self, **more: Any) -> Tensor:
        i, case = self.i, self.case
        arguments: dict[str, Any] = {
            "query": i["q"], "key_cache": i["key_cache"], "value_cache": i["value_cache"],
            "block_tables": i["block_tables"], "seq_lens": i["context_lens"], "max_seq_len": 200,
            "kv_cache_dtype": "fp8" if case.scales != "none" else "auto",
            "num_kv_heads": case.nhead_kv, "scale": case.head_dim**-0.5, "alibi_slopes": None,
            "k_scale": i["k_scale"], "v_scale": i["v_scale"], "mtp": case.mtp,
        }  # fmt: skip
        return PagedAttention.forward_decode(**(arguments | more))

    def close(self, out: Tensor) -> None:
        torch.testing.assert_close(out.float().cpu(), self.want, atol=0.02, rtol=0.02)


@pytest.fixture
def caller(target: str, device: torch.device) -> Caller:
    return Caller(CASE, target, device)


def kernel_of(caplog: pytest.LogCaptureFixture, call: Any) -> str:
    """The kernel that the log names for a call that has not been routed before."""
    hipdecode.paged._routes.clear()
    caplog.clear()
    with caplog.at_level(logging.INFO, logger="hipdecode.dispatch"):
        call()
    return next(r.getMessage() for r in caplog.records if "paged_attention/" in r.getMessage())


def test_forward_decode_of_several_fp8_tokens_takes_the_multi_token_kernel(
    caller: Caller, caplog: pytest.LogCaptureFixture
) -> None:
    text = kernel_of(caplog, lambda: caller.close(caller.forward()))
    assert "-token-block16-" in text
    assert "every guard holds" in text


@pytest.mark.parametrize(
    ("change", "guard"),
    [
        ({"mtp": 1}, "mtp: expected 2 or 3 or 4, got 1"),
        ({"mtp": 5}, "mtp: expected 2 or 3 or 4, got 5"),
        ({"gqa": 10}, "gqa: expected 8 or 16, got 10"),
        ({"block_size": 32}, "block_size: expected 16, got 32"),
        ({"head_dim": 64}, "head_dim: expected 128, got 64"),
        ({"value_dims": 4}, "value_dims: expected 5, got 4"),
        ({"kv_dtype": "bf16", "scales": "none"}, "kv_dtype: expected fp8"),
        ({"q_dtype": "fp16"}, "q_dtype: expected bf16, got fp16"),
    ],
)
def test_each_guard_that_fails_sends_the_call_to_the_general_kernel(
    change: dict[str, Any],
    guard: str,
    target: str,
    device: torch.device,
    caplog: pytest.LogCaptureFixture,
) -> None:
    other = Caller(dataclasses.replace(CASE, **change), target, device)
    text = kernel_of(caplog, lambda: other.close(other.forward()))
    assert "-any-" in text
    assert guard in text


def test_scales_of_query_and_output_send_the_call_to_the_general_kernel(
    caller: Caller, device: torch.device, caplog: pytest.LogCaptureFixture
) -> None:
    one = torch.ones(1, device=device)
    text = kernel_of(caplog, lambda: caller.close(caller.forward(q_scale=one)))
    assert "-any-" in text
    assert "q_scale: expected False" in text
    got = []
    scale = torch.tensor([0.02], device=device)
    text = kernel_of(caplog, lambda: got.append(caller.forward(fp8_out_scale=scale)))
    assert "out_scale: expected False" in text
    rows, nhead, head_dim = caller.want.shape
    assert got[0].shape == (rows, nhead * head_dim)
    assert got[0].element_size() == 1
    back = got[0].float().cpu().view(caller.want.shape) * 0.02
    torch.testing.assert_close(back, caller.want, atol=0.02, rtol=0.1)


def test_the_output_dtype_is_the_callers(caller: Caller) -> None:
    out = caller.forward(output_dtype=torch.float16)
    assert out.dtype == torch.float16
    caller.close(out)


@pytest.mark.parametrize("ragged", [False, True])
def test_pa_fwd_asm_matches_with_and_without_row_offsets(ragged: bool, caller: Caller) -> None:
    i = caller.i
    out = torch.empty_like(i["q"])
    starts = torch.arange(0, 5, 2, dtype=torch.int32, device=out.device) if ragged else None
    got = aiter.pa_fwd_asm(
        i["q"], i["key_cache"], i["value_cache"], i["block_tables"], i["context_lens"],
        i["block_tables"].stride(0), 2, i["k_scale"], i["v_scale"], out, starts,
    )  # fmt: skip
    assert got is out
    caller.close(out)


def test_pa_fwd_asm_takes_as_many_requests_as_there_are_contexts(
    target: str, device: torch.device
) -> None:
    one = Caller(dataclasses.replace(CASE, mtp=1), target, device)
    i = one.i
    spare = torch.full_like(i["block_tables"], -1)
    tables = torch.cat((i["block_tables"], spare))
    got = aiter.pa_fwd_asm(
        i["q"], i["key_cache"], i["value_cache"], tables, i["context_lens"], tables.stride(0), 1,
        i["k_scale"][..., None], i["v_scale"][..., None],
    )  # fmt: skip
    one.close(got)


def test_scales_in_the_order_of_heads_are_the_same_scales(caller: Caller) -> None:
    scales = {}
    for name in ("k_scale", "v_scale"):
        scale = caller.i[name]  # type: ignore[literal-required]
        scales[name] = scale.transpose(0, 1).reshape(scale.shape[1], -1).contiguous()
    caller.close(caller.forward(**scales))


def test_paged_attention_rocm_writes_the_callers_output(caller: Caller) -> None:
    i = caller.i
    out = torch.full_like(i["q"], float("nan"))
    aiter.paged_attention_rocm(
        out, None, None, None, i["q"], i["key_cache"].view(torch.uint8),
        i["value_cache"].view(torch.uint8), 2, 128**-0.5, i["block_tables"], i["context_lens"], 16,
        200, None, "fp8_e4m3", i["k_scale"], i["v_scale"], mtp=2,
    )  # fmt: skip
    caller.close(out)


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"alibi_slopes": torch.ones(16)}, "alibi_slopes"),
        ({"kv_cache_dtype": "int8"}, "kv_cache_dtype"),
        ({"kv_cache_dtype": "auto", "key_cache": torch.zeros(1, dtype=torch.uint8)}, "kv_cache"),
        ({"num_kv_heads": 4}, "num_kv_heads"),
        ({"blocksparse_vert_stride": 8}, "blocksparse_vert_stride"),
        ({"mtp": 3}, "query"),
        ({"mtp": 0}, "mtp"),
        ({"scale": float("nan")}, "scale"),
        ({"seq_lens": torch.zeros(2)}, "seq_lens"),
        ({"seq_lens": torch.zeros(1, dtype=torch.int32)}, "seq_lens"),
        ({"block_tables": torch.zeros(2, 3)}, "block_tables"),
        ({"k_scale": torch.ones(3)}, "k_scale"),
        ({"k_scale": torch.ones(1)}, "k_scale"),
        ({"query": torch.zeros(4, 16, 96)}, "head_dim"),
    ],
)
def test_what_is_not_done_is_refused_by_name(
    change: dict[str, Any], name: str, caller: Caller, device: torch.device
) -> None:
    moved = {k: v.to(device) if isinstance(v, Tensor) else v for k, v in change.items()}
    with pytest.raises(BadArgument, match=rf"^{name}"):
        caller.forward(**moved)


def test_pa_fwd_asm_refuses_kernel_names_and_strides_outside_of_the_table(caller: Caller) -> None:
    i = caller.i
    common = (i["q"], i["key_cache"], i["value_cache"], i["block_tables"], i["context_lens"])
    with pytest.raises(BadArgument, match=r"^kernelName"):
        aiter.pa_fwd_asm(*common, i["block_tables"].stride(0), 2, kernelName="pa_bf16")
    with pytest.raises(BadArgument, match=r"^block_tables_stride0"):
        aiter.pa_fwd_asm(*common, 10**6, 2)
    with pytest.raises(BadArgument, match=r"^Q: expected 2 requests x 3"):
        aiter.pa_fwd_asm(*common, i["block_tables"].stride(0), 3, i["k_scale"], i["v_scale"])


def test_installing_replaces_one_method_of_the_class_that_is_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    package, module = ModuleType("aiter"), ModuleType("aiter.paged_attn")
    package.__path__ = []

    class Theirs:
        @staticmethod
        def write_to_paged_cache() -> str:
            return "theirs"

    module.PagedAttention = Theirs  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "aiter", package)
    monkeypatch.setitem(sys.modules, "aiter.paged_attn", module)
    monkeypatch.delitem(sys.modules, "aiter.mla", raising=False)
    names = hipdecode.install_as_aiter()
    monkeypatch.delitem(sys.modules, "aiter.mla", raising=False)
    assert "aiter.paged_attn.PagedAttention" in names
    assert module.PagedAttention is Theirs
    assert Theirs.write_to_paged_cache() == "theirs"
    assert Theirs.forward_decode is PagedAttention.forward_decode  # type: ignore[attr-defined]


def test_the_operator_under_aiters_name_is_the_same_step(caller: Caller) -> None:
    assert register_as_aiter_op()
    i = caller.i
    out = torch.full_like(i["q"], float("nan"))
    torch.ops.aiter.paged_attention_rocm(
        out, None, None, None, i["q"], i["key_cache"], i["value_cache"], 2, 128**-0.5,
        i["block_tables"], i["context_lens"], 16, 200, None, "fp8", i["k_scale"], i["v_scale"],
        mtp=2,
    )  # fmt: skip
    caller.close(out)
