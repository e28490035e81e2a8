# SPDX-License-Identifier: MIT
"""Sparse attention under vLLM's own MLA layer: DeepSeek-V3.2's cache, its indices, against fp64."""

from __future__ import annotations

import os

import pytest
import torch
from torch import Tensor

if os.environ.get("HIPDECODE_TARGET", "cpu").startswith("cpu"):
    os.environ["VLLM_TARGET_DEVICE"] = "cpu"
pytest.importorskip("vllm", reason="needs the clients extra: make test-clients")

from vllm.config import AttentionConfig, set_current_vllm_config
from vllm.forward_context import set_forward_context
from vllm.model_executor.layers.attention.mla_attention import MLAAttention
from vllm.model_executor.layers.linear import ColumnParallelLinear
from vllm.platforms.interface import DeviceCapability
from vllm.v1.attention.backends.registry import AttentionBackendEnum
from vllm_engine import (
    LATENT,
    MAX_MODEL_LEN,
    NOPE,
    ROPE,
    Step,
    V,
    common_of,
    config_of,
    default_dtype,
    start_distributed,
)

from hipdecode.errors import UnsupportedShape
from hipdecode.integrations.steps import slots_of_tokens
from hipdecode.integrations.vllm import plugin
from hipdecode.integrations.vllm.backend import HipdecodeMLABackend
from hipdecode.integrations.vllm.sparse_backend import (
    HipdecodeSparseMLABackend,
    HipdecodeSparseMLAImpl,
)
from hipdecode.testing import compare
from hipdecode.testing.sparse_reference import sparse_mla_decode as exact_decode

TOPK, NHEAD, SIZE = 128, 16, 64
STEPS = (
    Step((1,) * 6, (1, 63, 64, 65, 200, 640)),
    Step((4, 2, 1), (300, 66, 1)),  # speculative rows, each with keys of its own
    Step((40, 1), (40, 90)),  # a prompt attends like all other rows
)


class Layer:
    """One layer with its cache and its buffer of indices; 0xFF, NaN in fp8, where no token lies."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.random = device, torch.Generator().manual_seed(3)
        self.config = config_of(
            device,
            block_size=SIZE,
            kv_cache_dtype="fp8_ds_mla",
            hf_overrides={"index_topk": TOPK},
        )
        self.indices = torch.full((MAX_MODEL_LEN, TOPK), -1, dtype=torch.int32, device=device)
        self.name = "model.layers.0.attn"
        with set_current_vllm_config(self.config), default_dtype(torch.bfloat16):
            start_distributed()
            up = ColumnParallelLinear(LATENT, NHEAD * (NOPE + V), bias=False, prefix=self.name)
            up.weight.data = self.normal(up.weight.shape) * 0.05
            self.layer = MLAAttention(
                num_heads=NHEAD, scale=(NOPE + ROPE) ** -0.5, qk_nope_head_dim=NOPE,
                qk_rope_head_dim=ROPE, v_head_dim=V, q_lora_rank=128, kv_lora_rank=LATENT,
                kv_b_proj=up, cache_config=self.config.cache_config, prefix=self.name,
                attn_backend=HipdecodeSparseMLABackend, use_sparse=True,
                topk_indices_buffer=self.indices,
            ).to(device)  # fmt: skip
            self.layer.process_weights_after_loading(torch.bfloat16)
            spec = self.layer.get_kv_cache_spec(self.config)
            make = self.layer.attn_backend.get_builder_cls()
            self.builder = make(spec, [self.name], self.config, device)
        self.width = MAX_MODEL_LEN // SIZE
        shape = (8 * self.width, SIZE, 656)
        self.cache = torch.full(shape, 0xFF, dtype=torch.uint8, device=device)
        self.layer.kv_cache = self.cache

    def normal(self, shape: tuple[int, ...]) -> Tensor:
        made = torch.randn(tuple(shape), generator=self.random)
        return made.bfloat16().to(self.device)

    def table(self, batch: int) -> Tensor:
        blocks = torch.randperm(8 * self.width, generator=self.random)
        return blocks[: batch * self.width].view(batch, self.width).int()

    def write(self, table: Tensor, lens: tuple[int, ...]) -> None:
        """Tokens of all requests, through the layer's own way into its cache."""
        for blocks, count in zip(table.long(), lens, strict=True):
            place = torch.arange(count)
            slots = blocks[place // SIZE] * SIZE + place % SIZE
            self.layer.impl.do_kv_cache_update(
                self.normal((count, LATENT)), self.normal((count, 1, ROPE)), self.cache,
                slots.to(self.device), "fp8_ds_mla", self.layer._k_scale,
            )  # fmt: skip

    def choose(self, step: Step) -> Tensor:
        """Positions as an indexer leaves them: each row's own, in no order, then -1."""
        chosen = torch.full((step.rows, TOPK), -1, dtype=torch.int32)
        for b, (rows, tokens) in enumerate(zip(step.q_lens, step.kv_lens, strict=True)):
            for i in range(rows):
                seen = tokens - rows + i + 1
                kept = torch.randperm(seen, generator=self.random)[:TOPK]
                chosen[step.starts[b] + i, : len(kept)] = kept.int()
        self.indices[: step.rows] = chosen.to(self.device)
        return chosen

    def want(self, q: Tensor, step: Step, table: Tensor, chosen: Tensor) -> compare.Attention:
        """The oracle's answer, its slots made from the table here."""
        slots = torch.full_like(chosen, -1)
        for b, blocks in enumerate(table.tolist()):
            for row in range(step.starts[b], step.starts[b + 1]):
                for i, token in enumerate(chosen[row].tolist()):
                    if token >= 0:
                        slots[row, i] = blocks[token // SIZE] * SIZE + token % SIZE
        return exact_decode(q.cpu(), self.cache.cpu(), slots, sm_scale=self.layer.scale)


@pytest.fixture(scope="module")
def layer(target: str, device: torch.device) -> Layer:
    return Layer(device)


@pytest.mark.parametrize("step", STEPS, ids=str)
@pytest.mark.parametrize("parts", [True, False], ids=["two-parts", "one"])
def test_each_row_attends_to_the_keys_that_were_chosen_for_it(
    step: Step, parts: bool, layer: Layer, target: str
) -> None:
    table = layer.table(len(step.q_lens))
    layer.write(table, step.kv_lens)
    chosen = layer.choose(step)
    metadata = layer.builder.build(0, common_of(step, table, layer.device))
    q = layer.normal((step.rows, NHEAD, 576))
    given = (q[..., :LATENT], q[..., LATENT:]) if parts else q
    o, lse = layer.layer.impl.forward_mqa(given, layer.cache, metadata, layer.layer)
    assert lse is None
    want = layer.want(q, step, table, chosen)
    allowed = compare.allowed_output(want, o.dtype, target, q.dtype)
    compare.assert_close(o.cpu(), want.o, allowed, what="o")


def test_indices_count_the_rows_between_blocks_that_lie_apart(layer: Layer, target: str) -> None:
    """A cache whose blocks alternate with another layer's, and what vLLM's kernel makes of it."""
    step = Step((1, 1), (100, 70))
    table = layer.table(2)
    layer.write(table, step.kv_lens)
    chosen = layer.choose(step)
    apart = torch.full((2 * len(layer.cache), SIZE, 656), 0xFF, dtype=torch.uint8)
    apart = apart.to(layer.device)[::2].copy_(layer.cache)
    rows = slots_of_tokens(chosen, torch.arange(2), 2 * table, SIZE).to(layer.device)
    q = layer.normal((2, NHEAD, 576))
    o, _ = layer.layer.impl._forward_mqa_kernel(
        q, apart, rows, (rows >= 0).sum(1).int(), layer=layer.layer, block_size=SIZE, is_decode=True
    )
    want = layer.want(q, step, table, chosen)
    allowed = compare.allowed_output(want, o.dtype, target, q.dtype)
    compare.assert_close(o.cpu(), want.o, allowed, what="o")


def test_a_layer_writes_its_tokens_and_attends_to_them(layer: Layer, target: str) -> None:
    """All of vLLM's forward: the row into the cache, the query into the latent space, and back."""
    step = Step((1, 1, 1), (10, 64, 129))
    table = layer.table(3)
    layer.write(table, tuple(n - 1 for n in step.kv_lens))
    chosen = layer.choose(step)
    common = common_of(step, table, layer.device)
    last = torch.tensor(step.kv_lens) - 1
    slots = table.long()[torch.arange(3), last // SIZE] * SIZE + last % SIZE
    metadata = layer.builder.build(0, common)
    q = layer.normal((3, NHEAD, NOPE + ROPE))
    latent, rope = layer.normal((3, LATENT)), layer.normal((3, 1, ROPE))
    mapping = {layer.name: slots.to(layer.device)}
    with set_forward_context(
        {layer.name: metadata}, layer.config, num_tokens=3, slot_mapping=mapping
    ):
        shape = torch.Size((3, NHEAD * V))
        have = layer.layer(q, latent, rope, output_shape=shape)
    absorbed = torch.einsum("bhp,hpl->bhl", q[..., :NOPE].float(), layer.layer.W_UK_T.float())
    whole = torch.cat((absorbed.bfloat16(), q[..., NOPE:]), -1)
    want = layer.want(whole, step, table, chosen).o
    out = torch.einsum("bhl,hlv->bhv", want, layer.layer.W_UV.cpu().double()).flatten(1)
    assert (have.cpu() - out).norm() <= 0.01 * out.norm()


def test_a_model_with_an_indexer_gets_the_sparse_backend_under_the_same_option(device) -> None:
    custom = AttentionBackendEnum.CUSTOM
    before = custom.get_path() if custom.is_overridden() else None
    plugin.register()
    try:
        with set_current_vllm_config(config_of(device, hf_overrides={"index_topk": TOPK})):
            assert custom.get_class() is HipdecodeSparseMLABackend
        with set_current_vllm_config(config_of(device)):
            assert custom.get_class() is HipdecodeMLABackend
        assert custom.get_class() is HipdecodeMLABackend
    finally:
        if before is None:
            custom.clear_override()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({}, None),
        ({"block_size": 48}, None),
        ({"kv_cache_dtype": "auto"}, "--kv-cache-dtype: expected fp8_ds_mla, got auto"),
        ({"kv_cache_dtype": "fp8"}, "--kv-cache-dtype: expected fp8_ds_mla, got fp8"),
        ({"block_size": 24}, "--block-size: expected a multiple of 16, got 24"),
        ({"head_size": 512}, "head_size not supported"),
        ({"dtype": torch.float16}, "dtype not supported"),
        ({"use_sparse": False}, "non-sparse not supported"),
        ({"has_sink": True}, "attention sinks not supported"),
        ({"use_batch_invariant": True}, "batch invariance not supported"),
        ({"use_non_causal": True}, "non-causal attention not supported"),
    ],
    ids=str,
)
def test_what_sparse_attention_does_not_do_is_refused_by_its_option(
    change: dict[str, object], reason: str | None
) -> None:
    asked: dict[str, object] = {
        "head_size": 576, "dtype": torch.bfloat16, "kv_cache_dtype": "fp8_ds_mla",
        "block_size": 64, "use_mla": True, "has_sink": False, "use_sparse": True,
        "use_mm_prefix": False, "use_per_head_quant_scales": False, "attn_type": "decoder",
        "device_capability": DeviceCapability(9, 0),
    }  # fmt: skip
    reasons = HipdecodeSparseMLABackend.validate_configuration(**asked | change)
    assert (reason is None and not reasons) or any(reason in given for given in reasons), reasons


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"sliding_window": 128}, "sliding_window: expected None, got 128"),
        ({"kv_cache_dtype": "fp8"}, "kv_cache_dtype: expected fp8_ds_mla, got fp8"),
        ({"num_heads": 256}, "raise --tensor-parallel-size"),
    ],
    ids=str,
)
def test_a_sparse_layer_that_is_not_done_is_refused_when_it_is_made(
    change: dict[str, object], reason: str, device
) -> None:
    given: dict[str, object] = {
        "num_heads": 16, "head_size": 576, "scale": 1.0, "num_kv_heads": 1, "alibi_slopes": None,
        "sliding_window": None, "kv_cache_dtype": "fp8_ds_mla", "logits_soft_cap": None,
        "attn_type": "decoder", "kv_sharing_target_layer_name": None,
    }  # fmt: skip
    config = config_of(device, attention_config=AttentionConfig(backend="CUSTOM"))
    with set_current_vllm_config(config), pytest.raises(UnsupportedShape, match=reason):
        HipdecodeSparseMLAImpl(**given | change)
