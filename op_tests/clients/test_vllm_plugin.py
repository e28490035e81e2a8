# SPDX-License-Identifier: MIT
"""How vLLM finds hipdecode, chooses it and refuses what it does not do."""

from __future__ import annotations

import importlib
import os
import pickle
import re
import subprocess
import sys
from importlib.metadata import entry_points
from types import ModuleType, SimpleNamespace

import pytest
import torch

if os.environ.get("HIPDECODE_TARGET", "cpu").startswith("cpu"):
    os.environ["VLLM_TARGET_DEVICE"] = "cpu"
pytest.importorskip("vllm", reason="needs the clients extra: make test-clients")

from vllm.config import AttentionConfig, set_current_vllm_config
from vllm.platforms.interface import DeviceCapability
from vllm.plugins import load_plugins_by_group
from vllm.utils.import_utils import resolve_obj_by_qualname
from vllm.v1.attention.backends.registry import AttentionBackendEnum, register_backend
from vllm.v1.attention.selector import AttentionSelectorConfig, get_attn_backend
from vllm_engine import Engine, config_of

from hipdecode.errors import UnsupportedShape
from hipdecode.integrations.vllm import plugin as vllm_plugin
from hipdecode.integrations.vllm.backend import HipdecodeMLABackend, HipdecodeMLAImpl

GROUP = "vllm.general_plugins"
CUSTOM = AttentionBackendEnum.CUSTOM
CONFIG = AttentionSelectorConfig(
    head_size=576, dtype=torch.bfloat16, kv_cache_dtype="auto", block_size=None, use_mla=True
)


@pytest.fixture
def registry():
    """vLLM's registry without what a test puts in."""
    for name in (CUSTOM, AttentionBackendEnum.CPU_MLA):
        name.clear_override()
    yield
    for name in (CUSTOM, AttentionBackendEnum.CPU_MLA):
        name.clear_override()


def test_vllm_loads_the_plugin_through_its_entry_point(registry) -> None:
    found = [entry for entry in entry_points(group=GROUP) if entry.name == "hipdecode"]
    if not found:
        pytest.skip("hipdecode is not installed here: pip install -e .")
    load_plugins_by_group(GROUP)["hipdecode"]()
    assert CUSTOM.get_class() is HipdecodeMLABackend


def test_the_attention_backend_option_means_us_once_registered(registry) -> None:
    for _ in range(2):  # vLLM loads plugins in each of its processes, some of them twice
        vllm_plugin.register()
    assert AttentionConfig(backend="custom").backend is CUSTOM
    assert CUSTOM.get_class() is HipdecodeMLABackend
    # the name that layers look themselves up by
    assert AttentionBackendEnum[HipdecodeMLABackend.get_name()] is CUSTOM


def test_the_choice_reaches_a_process_that_has_loaded_no_plugin_yet(registry) -> None:
    vllm_plugin.register()
    code = f"import pickle; print(pickle.loads({pickle.dumps(CUSTOM)!r}).name)"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.split() == ["CUSTOM"]


def test_a_backend_of_another_plugin_stays(registry, caplog) -> None:
    register_backend(CUSTOM, "somebody.Else")
    vllm_plugin.register()
    assert CUSTOM.get_path() == "somebody.Else"
    assert "--attention-backend CUSTOM: expected to be free, got somebody.Else" in caplog.text


def test_an_older_vllm_runs_on_without_the_backend(monkeypatch, caplog) -> None:
    monkeypatch.setitem(sys.modules, "vllm.v1.attention.backends.registry", None)
    vllm_plugin.register()
    assert "vllm: expected 0.32 or newer" in caplog.text


def test_importing_hipdecode_and_its_plugin_does_not_import_vllm() -> None:
    code = (
        "import sys, hipdecode, hipdecode.integrations.vllm.plugin, hipdecode.integrations.vllm;"
        "hipdecode.mla_decode; print('vllm' in sys.modules)"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "False"


def test_a_cpu_build_takes_us_in_the_place_of_its_own(registry, device: torch.device) -> None:
    if device.type != "cpu":
        pytest.skip("asks vLLM's CPU platform: runs where the target is a CPU")
    register_backend(AttentionBackendEnum.CPU_MLA, vllm_plugin.BACKEND)
    config = config_of(device)
    config.attention_config = AttentionConfig(backend="CPU_MLA")
    with set_current_vllm_config(config):
        chosen = get_attn_backend(576, torch.bfloat16, "auto", use_mla=True)
    assert chosen is HipdecodeMLABackend


@pytest.fixture
def platform_of(monkeypatch):
    """vLLM's platform class of a GPU that is not here: its driver's answer is made up."""

    def load(kind: str, capability: tuple[int, int]) -> type:
        name = f"vllm.platforms.{kind}"
        # what importing the module asks of the machine
        monkeypatch.setitem(sys.modules, "vllm._C_stable_libtorch", ModuleType("stable"))
        properties = SimpleNamespace(gcnArchName="gfx{}{}0:".format(*capability))
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda *_: properties)
        monkeypatch.delitem(sys.modules, name, raising=False)
        module = importlib.import_module(name)
        monkeypatch.delitem(sys.modules, name)
        found = getattr(module, {"cuda": "CudaPlatformBase", "rocm": "RocmPlatform"}[kind])
        monkeypatch.setattr(
            found, "get_device_capability", lambda *_: DeviceCapability(*capability)
        )
        monkeypatch.setattr(
            "hipdecode.integrations.vllm.support.current_platform", found.__new__(found)
        )
        return found

    return load


@pytest.mark.parametrize(
    ("kind", "capability", "taken"),
    [
        ("cuda", (9, 0), True),
        ("cuda", (10, 0), False),
        ("cuda", (8, 0), False),
        ("rocm", (9, 4), True),
        ("rocm", (9, 5), True),
        ("rocm", (9, 0), False),
    ],
)
def test_the_selectors_of_gpus_take_us_where_there_are_kernels(
    kind: str, capability: tuple[int, int], taken: bool, registry, platform_of, device
) -> None:
    config = config_of(device)
    platform = platform_of(kind, capability)
    vllm_plugin.register()
    with set_current_vllm_config(config):
        if taken:
            chosen = platform.get_attn_backend_cls(CUSTOM, CONFIG)
            assert resolve_obj_by_qualname(chosen) is HipdecodeMLABackend
        else:
            with pytest.raises(ValueError, match="compute capability not supported"):
                platform.get_attn_backend_cls(CUSTOM, CONFIG)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"kv_cache_dtype": "fp8_e5m2"}, "--kv-cache-dtype: expected one of auto"),
        ({"kv_cache_dtype": "fp8_ds_mla"}, "--kv-cache-dtype: expected one of auto"),
        ({"kv_cache_dtype": "float16"}, "--kv-cache-dtype: expected auto, fp8 or that of --dtype"),
        ({"block_size": 24}, "--block-size: expected a multiple of 16, got 24"),
        ({"head_size": 320}, r"head_size of the model: expected one of \[576, 512\], got 320"),
        ({"use_sparse": True}, "sparse not supported"),
        ({"has_sink": True}, "attention sinks not supported"),
        ({"has_sliding_window": True}, "sliding window not supported"),
        ({"use_mla": False}, "non-MLA not supported"),
        ({"use_pcp": True}, "PCP not supported"),
        ({"dtype": torch.float32}, "dtype not supported"),
    ],
    ids=str,
)
def test_a_configuration_that_is_not_done_is_refused_by_its_option(
    change: dict[str, object], reason: str
) -> None:
    asked = CONFIG._replace(**change)._asdict()
    reasons = HipdecodeMLABackend.validate_configuration(
        device_capability=DeviceCapability(9, 0), **asked
    )
    assert any(re.search(reason, given) for given in reasons), reasons


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"kv_cache_dtype": "fp8"},
        {"kv_cache_dtype": "bfloat16"},
        {"dtype": torch.float16, "kv_cache_dtype": "float16"},
        {"head_size": 512},
        {"block_size": 48},  # cut into blocks of 16
        {"use_dcp": True},
        {"use_non_causal": True},
        {"use_batch_invariant": True},
        {"use_adaptive_verification": True},
    ],
    ids=str,
)
def test_a_configuration_that_is_done_is_taken(change: dict[str, object], device) -> None:
    asked = CONFIG._replace(**change)._asdict()
    assert not HipdecodeMLABackend.validate_configuration(
        device_capability=DeviceCapability(9, 0), **asked
    )
    assert HipdecodeMLABackend.get_preferred_block_size(16) == 64


def _layer(**changes: object) -> dict[str, object]:
    return {
        "num_heads": 16, "head_size": 576, "scale": 1.0, "num_kv_heads": 1, "alibi_slopes": None,
        "sliding_window": None, "kv_cache_dtype": "auto", "logits_soft_cap": None,
        "attn_type": "decoder", "kv_sharing_target_layer_name": None, "q_lora_rank": None,
        "kv_lora_rank": 512, "qk_nope_head_dim": 16, "qk_rope_head_dim": 64, "qk_head_dim": 80,
        "v_head_dim": 16, "kv_b_proj": None, **changes,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"logits_soft_cap": 30.0}, "logits_soft_cap: expected None, got 30.0"),
        ({"sliding_window": 128}, "sliding_window: expected None, got 128"),
        ({"attn_type": "encoder"}, "attn_type: expected decoder"),
        ({"head_size": 512, "kv_lora_rank": 448}, "kv_lora_rank of the model: expected 512"),
        ({"num_heads": 256}, "raise --tensor-parallel-size"),
    ],
    ids=str,
)
def test_a_layer_that_is_not_done_is_refused_when_it_is_made(
    change: dict[str, object], reason: str, device
) -> None:
    with set_current_vllm_config(config_of(device)), pytest.raises(UnsupportedShape, match=reason):
        HipdecodeMLAImpl(**_layer(**change))


def test_more_speculative_tokens_than_the_kernels_take_are_refused(device, target: str) -> None:
    with pytest.raises(UnsupportedShape, match="num_speculative_tokens: expected at most 15"):
        Engine(config_of(device, speculative_tokens=16), device)
