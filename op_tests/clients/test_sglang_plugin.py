# SPDX-License-Identifier: MIT
"""`--attention-backend hipdecode` as SGLang's option, registry, runner and drafts see it."""

from __future__ import annotations

import argparse
import subprocess
import sys
from importlib.metadata import entry_points
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("sglang", reason="needs the clients extra: make test-clients")

from sglang_engine import ATTENTION_BACKENDS, NAME, Engine, register

from hipdecode.errors import BadArgument


def test_hipdecode_imports_without_sglang() -> None:
    code = "import sys, hipdecode.integrations.sglang; print('sglang' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_sglang_finds_the_plugin_by_its_entry_point() -> None:
    found = entry_points(group="sglang.srt.plugins", name=NAME)
    if not found:
        pytest.skip("needs an installed hipdecode: make test-clients")
    assert next(iter(found)).load() is register


def test_the_option_takes_the_name_for_all_steps_and_for_decode_alone() -> None:
    from sglang.srt.server_args import ServerArgs

    parser = argparse.ArgumentParser()
    ServerArgs.add_cli_args(parser)
    options = ["--attention-backend", NAME, "--decode-attention-backend", NAME]
    parsed = parser.parse_args(["--model-path", "a-model", *options])
    assert parsed.attention_backend == parsed.decode_attention_backend == NAME


def test_registering_twice_leaves_one_choice() -> None:
    from sglang.srt.arg_groups import choices

    register()
    assert choices.ATTENTION_BACKEND_CHOICES.count(NAME) == 1
    assert choices.DETERMINISTIC_ATTENTION_BACKEND_CHOICES.count(NAME) == 1
    assert NAME in ATTENTION_BACKENDS


def test_the_runner_builds_it_and_another_one_for_prompts(device) -> None:
    from sglang.srt.layers.attention.hybrid_attn_backend import HybridAttnBackend
    from sglang.srt.model_executor.model_runner_components import attention_backend_setup

    runner = Engine(device).runner
    whole = attention_backend_setup.build_attention_backends(model_runner=runner).attn_backend
    assert type(whole).__name__ == "HipdecodeAttnBackend"
    runner.prefill_attention_backend_str = "torch_native"
    split = attention_backend_setup.build_attention_backends(model_runner=runner).attn_backend
    assert isinstance(split, HybridAttnBackend)
    assert type(split.decode_backend).__name__ == "HipdecodeAttnBackend"


def test_a_draft_extends_on_hipdecode_and_steps_on_triton(device) -> None:
    from sglang.srt.plugins.hook_registry import HookRegistry
    from sglang.srt.speculative.draft_utils import DraftBackendFactory

    HookRegistry.apply_hooks()
    runner = Engine(device, drafts=3).runner
    factory = DraftBackendFactory(runner, 1, 3)
    extend = factory.create_draft_extend_backend()
    assert type(extend).__name__ == "HipdecodeAttnBackend"
    assert extend.decode_attention_backend_str == NAME
    steps = SimpleNamespace(attn_backends=[SimpleNamespace()])
    factory._create_triton_decode_backend = lambda: ("triton", steps)
    assert factory.create_decode_backend() is steps
    assert steps.attn_backends[0].decode_attention_backend_str == "triton"


@pytest.mark.parametrize(
    ("option", "name", "value"),
    [
        ("--attention-backend", "use_mla_backend", False),
        ("--kv-cache-dtype", "kv_cache_dtype", torch.float8_e5m2),
        ("--enable-unified-memory", "kv_index_translator", SimpleNamespace(is_translating=True)),
    ],
)
def test_a_runner_of_what_is_not_done_is_refused_by_the_option(
    option: str, name: str, value, device
) -> None:
    runner = Engine(device).runner
    setattr(runner, name, value)
    with pytest.raises(BadArgument, match=option):
        ATTENTION_BACKENDS[NAME](runner)


@pytest.mark.parametrize(
    ("option", "values"),
    [
        ("--speculative-eagle-topk", {"speculative_eagle_topk": 4}),
        ("--speculative-num-draft-tokens", {"speculative_num_draft_tokens": 17}),
    ],
)
def test_a_draft_that_is_not_done_is_refused_by_the_option(option: str, values, device) -> None:
    from sglang.srt.runtime_context import get_context

    runner = Engine(device).runner
    get_context().override("test", **values)
    with pytest.raises(BadArgument, match=option):
        ATTENTION_BACKENDS[NAME](runner)


def test_trees_of_ngrams_are_refused_by_their_own_option(device) -> None:
    from sglang.srt.runtime_context import get_context
    from sglang.srt.speculative.spec_info import SpeculativeAlgorithm

    runner = Engine(device).runner
    runner.spec_algorithm = SpeculativeAlgorithm.NGRAM
    get_context().override("test", speculative_eagle_topk=10)  # as SGLang sets it for them
    with pytest.raises(BadArgument, match="--speculative-ngram-max-bfs-breadth"):
        ATTENTION_BACKENDS[NAME](runner)


def test_a_model_of_sparse_attention_is_refused_by_the_option(device) -> None:
    runner = Engine(device).runner
    runner.model_config.hf_config = SimpleNamespace(
        architectures=["DeepseekV32ForCausalLM"], index_topk=2048
    )
    with pytest.raises(BadArgument, match=r"--attention-backend.*dsa"):
        ATTENTION_BACKENDS[NAME](runner)


def test_models_hand_over_parts_only_where_one_launch_takes_them(device, monkeypatch) -> None:
    """And never those that scale queries where they join them."""
    from sglang.srt.models.deepseek_common import utils

    names = ["triton"]
    monkeypatch.setattr(utils, "FORWARD_ABSORB_CORE_ATTENTION_BACKENDS", names)
    runner = Engine(device).runner
    assert names == (["triton"] if device.type == "cpu" else ["triton", NAME])
    names[:] = []
    runner.model_config.hf_text_config.llama_4_scaling = {"beta": 0.1}
    ATTENTION_BACKENDS[NAME](runner)
    assert names == []
