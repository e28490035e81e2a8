# SPDX-License-Identifier: MIT
"""The demo's model as vLLM loads it, and the part of the scheduler and the runner for tests."""

from __future__ import annotations

import torch
from torch import Tensor
from vllm.config import AttentionConfig, CompilationConfig, VllmConfig, set_current_vllm_config
from vllm.forward_context import set_forward_context
from vllm.model_executor.model_loader import get_model_loader
from vllm.model_executor.model_loader.utils import (
    initialize_model,
    process_weights_after_loading,
)
from vllm.v1.attention.backend import CommonAttentionMetadata
from vllm_engine import config_of, default_dtype, start_distributed

DEVICE = torch.device("cpu")


class ServedModel:
    """Requests of equal length in steps of equal length, each with blocks in no order."""

    def __init__(self, *, batch: int, dtype: str, kv_cache_dtype: str, block_size: int = 64):
        config = config_of(
            DEVICE,
            block_size=block_size,
            kv_cache_dtype=kv_cache_dtype,
            dtype=dtype,
            speculative_tokens=3,
            compilation_config=CompilationConfig(custom_ops=["none"]),  # vLLM's torch versions
            attention_config=AttentionConfig(backend="CPU_MLA"),
        )
        self.config, self.batch, self.length = config, batch, 0
        with set_current_vllm_config(config), default_dtype(config.model_config.dtype):
            start_distributed()
            model = initialize_model(vllm_config=config)
            get_model_loader(config.load_config).load_weights(model, config.model_config)
            process_weights_after_loading(model, config.model_config, DEVICE)
            self.layers = config.compilation_config.static_forward_context
            first = next(iter(self.layers.values()))
            spec = first.get_kv_cache_spec(config)
            make = first.attn_backend.get_builder_cls()
            self.builder = make(spec, list(self.layers), config, DEVICE)
        self.model = model.eval()
        width = -(-config.model_config.max_model_len // block_size)
        for layer in self.layers.values():
            kind = torch.uint8 if kv_cache_dtype.startswith("fp8") else config.model_config.dtype
            layer.kv_cache = torch.zeros(batch * width, block_size, 576, dtype=kind)
            layer.kv_cache.view(torch.uint8).fill_(0x7F)  # NaN in fp8; large elsewhere
        blocks = torch.randperm(batch * width, generator=torch.Generator().manual_seed(1))
        self.table = blocks.view(batch, width).to(torch.int32)
        self.size = block_size

    def step(self, tokens: Tensor) -> Tensor:
        """Logits [batch, q_len, 256] of the next tokens [batch, q_len] of every request."""
        q_len = tokens.shape[1]
        places = torch.arange(self.length, self.length + q_len)
        self.length += q_len
        slots = self.table[:, places // self.size].long() * self.size + places % self.size
        common = self._common(q_len, slots.flatten())
        metadata = dict.fromkeys(self.layers, self.builder.build(0, common))
        mapping = dict.fromkeys(self.layers, common.slot_mapping)
        rows = tokens.numel()
        with (
            torch.inference_mode(),
            set_forward_context(metadata, self.config, num_tokens=rows, slot_mapping=mapping),
        ):
            hidden = self.model(tokens.flatten(), places.repeat(self.batch))
            logits = self.model.compute_logits(hidden)
        return logits.view(self.batch, q_len, -1)

    def _common(self, q_len: int, slots: Tensor) -> CommonAttentionMetadata:
        starts = torch.arange(self.batch + 1, dtype=torch.int32) * q_len
        lens = torch.full((self.batch,), self.length, dtype=torch.int32)
        return CommonAttentionMetadata(
            query_start_loc=starts,
            query_start_loc_cpu=starts,
            seq_lens=lens,
            num_reqs=self.batch,
            num_actual_tokens=self.batch * q_len,
            max_query_len=q_len,
            max_seq_len=self.length,
            block_table_tensor=self.table,
            slot_mapping=slots,
            seq_lens_cpu_upper_bound=lens,
        )


def served_by(config: VllmConfig) -> set[str]:
    """Classes that attend in its layers."""
    layers = config.compilation_config.static_forward_context
    return {type(layer.impl).__name__ for layer in layers.values()}
