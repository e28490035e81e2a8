# SPDX-License-Identifier: MIT
"""The trained demo model as vLLM's own DeepseekV3ForCausalLM, its attention on hipdecode.

vLLM loads the weights, prefills with its own backend and decodes on ours; there is no scheduler,
whose part a few lines play. Quality is held against transformers' eager attention in fp32.
"""

from __future__ import annotations

import os

import pytest
import torch
from torch import Tensor

if os.environ.get("HIPDECODE_TARGET", "cpu").startswith("cpu"):
    os.environ["VLLM_TARGET_DEVICE"] = "cpu"
pytest.importorskip("vllm", reason="needs the clients extra: make test-clients")

from vllm.platforms import current_platform
from vllm.v1.attention.backends.registry import AttentionBackendEnum, register_backend
from vllm_served import ServedModel, served_by

from hipdecode.demo.model import load_model
from hipdecode.demo.score import bits_decoded, bits_eager, held_out_rows
from hipdecode.integrations.vllm.plugin import BACKEND

ROWS, LENGTH = 4, 112
PROMPT = 48  # prefilled by vLLM's own; the rest is decoded


@pytest.fixture(scope="module")
def rows() -> Tensor:
    return held_out_rows(ROWS, LENGTH)


@pytest.fixture(scope="module")
def eager_bits(rows: Tensor) -> float:
    return bits_eager(load_model(), rows)


@pytest.fixture
def on_hipdecode(device: torch.device):
    """vLLM's CPU platform takes hipdecode where it takes CPU_MLA."""
    if device.type != "cpu":
        pytest.skip(
            "vLLM's prefill on a GPU takes no V of 16 columns, as this model's: runs on a CPU"
        )
    register_backend(AttentionBackendEnum.CPU_MLA, BACKEND)
    yield
    AttentionBackendEnum.CPU_MLA.clear_override()


@pytest.mark.parametrize(
    ("dtype", "kv_cache_dtype", "q_len", "within"),
    [
        ("bfloat16", "auto", 1, 0.001),
        ("bfloat16", "fp8", 1, 0.005),
        ("float16", "auto", 4, 0.001),
    ],
)
def test_held_out_bits_per_byte_are_those_of_eager_fp32(
    dtype: str,
    kv_cache_dtype: str,
    q_len: int,
    within: float,
    rows: Tensor,
    eager_bits: float,
    on_hipdecode,
    monkeypatch,
) -> None:
    if kv_cache_dtype == "fp8":  # which the CPU platform refuses before it asks a backend
        chosen = staticmethod(lambda *_, **__: BACKEND)
        monkeypatch.setattr(type(current_platform), "get_attn_backend_cls", chosen)
    served = ServedModel(batch=ROWS, dtype=dtype, kv_cache_dtype=kv_cache_dtype)
    assert served_by(served.config) == {"HipdecodeMLAImpl"}
    steps = []

    def step(tokens: Tensor) -> Tensor:
        """The first steps together as one prefill, whose logits are handed out in turn."""
        if not steps:
            steps.extend(served.step(rows[:, :PROMPT]).split(q_len, 1))
        start = step.done
        step.done += tokens.shape[1]
        if start < PROMPT:
            return steps[start // q_len]
        return served.step(tokens)

    step.done = 0
    bits = bits_decoded(step, rows, q_len)
    print(f"{dtype}, cache {kv_cache_dtype}, q_len {q_len}: {bits:.4f}, eager {eager_bits:.4f}")
    assert abs(bits / eager_bits - 1) <= within, f"{bits} bits beside {eager_bits}"
