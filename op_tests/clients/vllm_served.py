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


class ServedModel:
    """Requests of equal length in steps of equal length, each with blocks in no order."""

    def __init__(
        self,
        *,
        batch: int,
        dtype: str,
        kv_cache_dtype: str,
        backend: str,
        device: torch.device,
        block_size: int = 64,
    ):
        self.device = device
        config = config_of(
            device,
            block_size=block_size,
            kv_cache_dtype=kv_cache_dtype,
            dtype=dtype,
            speculative_tokens=3,
            # vLLM's torch versions of what is not attention
            compilation_config=CompilationConfig(
                mode=0, cudagraph_mode="NONE", custom_ops=["none"]
            ),
            attention_config=AttentionConfig(backend=backend),
        )
        self.config, self.batch, self.length = config, batch, 0
        with set_current_vllm_config(config), default_dtype(config.model_config.dtype):
            start_distributed()
            with device:
                model = initialize_model(vllm_config=config)
                get_model_loader(config.load_config).load_weights(model, config.model_config)
            process_weights_after_loading(model, config.model_config, device)
            self.layers = config.compilation_config.static_forward_context
            first = next(iter(self.layers.values()))
            spec = first.get_kv_cache_spec(config)
            make = first.attn_backend.get_builder_cls()
            self.builder = make(spec, list(self.layers), config, device)
        self.model = model.eval()
        width = -(-config.model_config.max_model_len // block_size)
        for layer in self.layers.values():
            kind = torch.uint8 if kv_cache_dtype.startswith("fp8") else config.model_config.dtype
            shape = (batch * width, block_size, 576)
            layer.kv_cache = torch.zeros(shape, dtype=kind, device=device)
            layer.kv_cache.view(torch.uint8).fill_(0x7F)  # NaN in fp8; large elsewhere
        blocks = torch.randperm(batch * width, generator=torch.Generator().manual_seed(1))
        self.table = blocks.view(batch, width).to(torch.int32).to(device)
        self.size = block_size

    def step(self, tokens: Tensor) -> Tensor:
        """Logits [batch, q_len, 256] of the next tokens [batch, q_len] of every request."""
        q_len = tokens.shape[1]
        places = torch.arange(self.length, self.length + q_len, device=self.device)
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
            given = tokens.flatten().to(self.device)
            hidden = self.model(given, places.repeat(self.batch))
            logits = self.model.compute_logits(hidden)
        return logits.view(self.batch, q_len, -1).cpu()

    def _common(self, q_len: int, slots: Tensor) -> CommonAttentionMetadata:
        starts = torch.arange(self.batch + 1, dtype=torch.int32) * q_len
        lens = torch.full((self.batch,), self.length, dtype=torch.int32)
        return CommonAttentionMetadata(
            query_start_loc=starts.to(self.device),
            query_start_loc_cpu=starts,
            seq_lens=lens.to(self.device),
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
