# SPDX-License-Identifier: MIT
"""The trained demo model through all of vLLM: `vllm.LLM`, its scheduler, runner and graphs."""

from __future__ import annotations

import os

import pytest
import torch

if os.environ.get("HIPDECODE_TARGET", "cpu").startswith("cpu"):
    os.environ["VLLM_TARGET_DEVICE"] = "cpu"
os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # the engine in this process: it can be asked
pytest.importorskip("vllm", reason="needs the clients extra: make test-clients")

from vllm.platforms import current_platform

from hipdecode.demo.model import FOLDER, load_model
from hipdecode.demo.score import held_out_rows
from hipdecode.integrations.vllm import plugin

ROWS, PROMPT, NEW = 6, 40, 24


@pytest.mark.parametrize(("kv_cache_dtype", "within"), [("auto", 0.25), ("fp8", 0.5)])
def test_an_offline_engine_decodes_what_eager_fp32_would(
    kv_cache_dtype: str, within: float, device: torch.device
) -> None:
    """Each token's logit is as good as the best of eager attention, after the tokens before it."""
    if not current_platform.is_cuda():
        pytest.skip("vLLM's wheel has operators for GPUs alone: runs on one, with that wheel")
    from vllm import LLM, SamplingParams

    plugin.register()
    llm = LLM(
        model=str(FOLDER),
        skip_tokenizer_init=True,
        dtype="bfloat16",
        kv_cache_dtype=kv_cache_dtype,
        attention_config={"backend": "CUSTOM"},
        max_model_len=256,
        max_num_seqs=8,
        gpu_memory_utilization=0.1,
        compilation_config={
            "mode": 0,
            "cudagraph_mode": "FULL_DECODE_ONLY",
            "cudagraph_capture_sizes": [1, 2, 4, 8],
        },
    )
    layers = llm.llm_engine.vllm_config.compilation_config.static_forward_context.values()
    assert {type(layer.impl).__name__ for layer in layers} == {"HipdecodeMLAImpl"}
    rows = held_out_rows(ROWS, PROMPT - 1)
    prompts = [{"prompt_token_ids": row.tolist()} for row in rows]
    greedy = SamplingParams(temperature=0, max_tokens=NEW, ignore_eos=True, detokenize=False)
    made = llm.generate(prompts, greedy, use_tqdm=False)
    tokens = torch.tensor([list(one.outputs[0].token_ids) for one in made])
    with torch.no_grad():
        logits = load_model()(torch.cat((rows, tokens), 1)).logits[:, PROMPT - 1 : -1]
    short = logits.amax(-1) - logits.gather(-1, tokens[..., None]).squeeze(-1)
    print(
        f"cache {kv_cache_dtype}: {int((short == 0).sum())} of {short.numel()} tokens are eager's"
    )
    assert short.max() <= within, short
