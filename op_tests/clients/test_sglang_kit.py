# SPDX-License-Identifier: MIT
"""The cases that SGLang's wheel ships for backends of MLA, on hipdecode.

Its runners of graphs call a backend as a capture and a replay do, without a graph.
"""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("sglang", reason="needs the clients extra: make test-clients")

from sglang_engine import NAME, ForwardMode, kit

# isort: split
from sglang.test.kits.attention_unittest.runner_modes import (
    cuda_graph_decode_runner,
    speculative_draft_extend_runner,
    speculative_target_verify_runner,
)

ALL = {case.name: case for case in kit.make_mla_cases(NAME)}
DECODE = [name for name, case in ALL.items() if case.forward_mode.is_decode()]
SIZES = {"kv_lora_rank": 512, "dtype": torch.bfloat16}
VERIFY = kit.MLAAttentionCase("verify", NAME, ForwardMode.TARGET_VERIFY, 4, 16, (5, 16), (3, 3))


@pytest.mark.parametrize("name", DECODE)
def test_decode_and_its_replay_pass_sglangs_cases(name: str, device) -> None:
    kit.run_mla_attention_case(None, ALL[name], device=device.type, **SIZES)
    cuda_graph_decode_runner.run_mla_cuda_graph_decode_case(
        None, ALL[name], device=device.type, **SIZES
    )


def test_verification_and_its_replay_pass_sglangs_cases(device) -> None:
    runner = speculative_target_verify_runner
    options = {"topk": 1, "device": device.type, **SIZES}
    runner.run_mla_eagle_verify_case(None, VERIFY, **options)
    runner.run_mla_eagle_verify_cuda_graph_case(None, VERIFY, **options)


def test_replayed_extension_of_a_draft_passes_sglangs_case(device) -> None:
    case = kit.MLAAttentionCase("extend", NAME, ForwardMode.DRAFT_EXTEND_V2, 4, 16, (5, 16), (3, 3))
    speculative_draft_extend_runner.run_mla_draft_extend_v2_cuda_graph_case(
        None, case, device=device.type, **SIZES
    )


def test_prompts_run_on_a_backend_of_sglangs_that_the_log_names(device, caplog) -> None:
    if device.type != "cpu":
        pytest.skip("SGLang's own kernels for prompts: needs a CPU, or a GPU with sgl_kernel")
    for name in set(ALL) - set(DECODE):
        kit.run_mla_attention_case(None, ALL[name], device=device.type, **SIZES)
    assert "torch_native" in caplog.text
