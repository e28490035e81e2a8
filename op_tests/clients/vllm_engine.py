# SPDX-License-Identifier: MIT
"""vLLM's own MLA layer, metadata builder and cache around hipdecode, without its engine.

Imported by tests after vLLM was found; VLLM_TARGET_DEVICE must be set before that.
"""

from __future__ import annotations

import itertools
import tempfile
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from vllm.config import (
    CacheConfig,
    DeviceConfig,
    ModelConfig,
    SchedulerConfig,
    SpeculativeConfig,
    VllmConfig,
    set_current_vllm_config,
)
from vllm.distributed.parallel_state import (
    ensure_model_parallel_initialized,
    init_distributed_environment,
    model_parallel_is_initialized,
)
from vllm.model_executor.layers.attention.mla_attention import MLAAttention
from vllm.model_executor.layers.linear import ColumnParallelLinear
from vllm.platforms import current_platform
from vllm.v1.attention.backend import CommonAttentionMetadata
from vllm.v1.attention.backends.mla.prefill.cpu_sdpa import CPUSDPAMLAPrefillBackend

from hipdecode import demo
from hipdecode.integrations.vllm.backend import HipdecodeMLABackend
from hipdecode.testing import compare, reference
from hipdecode.testing.reference import Attention

MODEL = Path(demo.__file__).parent  # DeepSeek-V3 of 16 heads, latent 512 + 64, four layers
MAX_MODEL_LEN = 640
LATENT, ROPE, NOPE, V = 512, 64, 16, 16
_FP8 = torch.float8_e4m3fn
_names = itertools.count()


@contextmanager
def default_dtype(dtype: torch.dtype) -> Any:
    """torch's default, which vLLM sets to the model's while it builds one."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def start_distributed() -> None:
    """vLLM's process groups, of this process alone."""
    if not model_parallel_is_initialized():
        place = tempfile.mktemp(prefix="hipdecode-vllm")  # torch makes the file
        init_distributed_environment(1, 0, f"file://{place}", 0, "gloo")
        ensure_model_parallel_initialized(1, 1)


def config_of(
    device: torch.device,
    *,
    block_size: int = 64,
    kv_cache_dtype: str = "auto",
    speculative_tokens: int = 0,
    max_num_seqs: int = 8,
    max_model_len: int = MAX_MODEL_LEN,
    dtype: str = "bfloat16",
    hf_overrides: dict[str, object] | None = None,
    enforce_eager: bool = True,
    **others: object,
) -> VllmConfig:
    """A configuration of the demo's model, or of one that differs from it by the overrides."""
    model = ModelConfig(
        model=str(MODEL),
        skip_tokenizer_init=True,
        dtype=dtype,
        max_model_len=max_model_len,
        enforce_eager=enforce_eager,
        hf_overrides=hf_overrides or {},
    )
    scheduler = SchedulerConfig(
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=max_model_len,
        max_model_len=max_model_len,
        is_encoder_decoder=False,
    )
    config = VllmConfig(
        model_config=model,
        scheduler_config=scheduler,
        # its CPU platform takes no other, wherever the tensors lie
        device_config=DeviceConfig(current_platform.device_type),
        **others,
    )
    # what the platform makes of a configuration is not asked: a CPU forces its own block size
    config.cache_config = CacheConfig(block_size=block_size, cache_dtype=kv_cache_dtype)
    if speculative_tokens:
        config.speculative_config = SpeculativeConfig(
            method="ngram",
            num_speculative_tokens=speculative_tokens,
            prompt_lookup_max=2,
            target_model_config=model,
            target_parallel_config=config.parallel_config,
        )
    return config


@dataclass
class Step:
    """What the scheduler would say of one step.

    Attributes:
        q_lens: query rows of each request.
        kv_lens: tokens of each request, the new ones among them; 0 for padding.
        causal: as CommonAttentionMetadata.
        extra_rows: rows past the last request's, as in a padded graph.
    """

    q_lens: tuple[int, ...]
    kv_lens: tuple[int, ...]
    causal: bool = True
    extra_rows: int = 0
    local_lens: tuple[int, ...] | None = None

    def __str__(self) -> str:
        pairs = "-".join(f"{q}x{kv}" for q, kv in zip(self.q_lens, self.kv_lens, strict=True))
        return pairs if self.causal else f"{pairs}-all"

    @property
    def starts(self) -> list[int]:
        return [0, *itertools.accumulate(self.q_lens)]

    @property
    def rows(self) -> int:
        return self.starts[-1] + self.extra_rows


def common_of(step: Step, table: Tensor, device: torch.device) -> CommonAttentionMetadata:
    """A step as vLLM's runner hands it to builders."""
    as_index = {"dtype": torch.int32}
    starts, lens = torch.tensor(step.starts, **as_index), torch.tensor(step.kv_lens, **as_index)
    local = None
    if step.local_lens is not None:
        local = torch.tensor(step.local_lens, **as_index).to(device)
    return CommonAttentionMetadata(
        query_start_loc=starts.to(device),
        query_start_loc_cpu=starts,
        seq_lens=lens.to(device),
        num_reqs=len(step.q_lens),
        num_actual_tokens=step.rows,
        max_query_len=max(step.q_lens),
        max_seq_len=max(*step.kv_lens, 1),
        block_table_tensor=table.to(device),
        slot_mapping=torch.zeros(step.rows, dtype=torch.int64, device=device),
        causal=step.causal,
        seq_lens_cpu_upper_bound=lens,
        dcp_local_seq_lens=local,
    )


@dataclass
class Engine:
    """One layer with its cache, filled with NaN where no token lies."""

    config: VllmConfig
    device: torch.device
    k_scale: float = 1.0
    q_scale: float = 1.0
    generator: torch.Generator = field(default_factory=lambda: torch.Generator().manual_seed(8))

    def __post_init__(self) -> None:
        self.name = f"model.layers.{next(_names)}.attn"
        self.dtype = self.config.model_config.dtype
        self.block_size = self.config.cache_config.block_size
        with set_current_vllm_config(self.config), default_dtype(self.dtype):
            start_distributed()
            up = ColumnParallelLinear(LATENT, 16 * (NOPE + V), bias=False, prefix=self.name)
            up.weight.data = self.normal(up.weight.shape) * 0.05
            self.layer = MLAAttention(
                num_heads=16, scale=(NOPE + ROPE) ** -0.5, qk_nope_head_dim=NOPE,
                qk_rope_head_dim=ROPE, v_head_dim=V, q_lora_rank=128, kv_lora_rank=LATENT,
                kv_b_proj=up, cache_config=self.config.cache_config, prefix=self.name,
                attn_backend=HipdecodeMLABackend, prefill_backend_cls=CPUSDPAMLAPrefillBackend,
            )  # fmt: skip
            self.layer.to(self.device)
            self.layer.process_weights_after_loading(self.dtype)
            spec = self.layer.get_kv_cache_spec(self.config)
            make = self.layer.attn_backend.get_builder_cls()
            self.builder = make(spec, [self.name], self.config, self.device)
        for name, value in (("_k_scale", self.k_scale), ("_q_scale", self.q_scale)):
            getattr(self.layer, name).copy_(torch.tensor(value))
        self.layer._k_scale_float = self.k_scale
        self.fp8 = self.layer.kv_cache_dtype.startswith("fp8")
        blocks = self.config.scheduler_config.max_num_seqs * self.width + 3
        kind = torch.uint8 if self.fp8 else self.dtype
        self.cache = torch.zeros(blocks, self.block_size, LATENT + ROPE, dtype=kind)
        self.cache.fill_(0x7F if self.fp8 else float("nan"))
        self.cache = self.cache.to(self.device)

    @property
    def width(self) -> int:
        return -(-MAX_MODEL_LEN // self.block_size)

    def normal(self, shape: tuple[int, ...]) -> Tensor:
        made = torch.randn(tuple(shape), generator=self.generator)
        return made.to(self.dtype).to(self.device)

    def tables(self, batch: int) -> Tensor:
        """Blocks of each request, none shared, in no order."""
        blocks = torch.randperm(self.cache.shape[0], generator=self.generator)
        return blocks[: batch * self.width].view(batch, self.width).to(torch.int32)

    def fill(self, table: Tensor, kv_lens: tuple[int, ...]) -> list[Tensor]:
        """Puts new tokens where the table says, and returns them."""
        values = [self.tokens(count) for count in kv_lens]
        self.put(table, values)
        return values

    def tokens(self, count: int) -> Tensor:
        """Rows as they lie in the cache."""
        values = self.normal((count, LATENT + ROPE))
        return (values.float() / self.k_scale).to(_FP8).view(torch.uint8) if self.fp8 else values

    def put(self, table: Tensor, values: list[Tensor]) -> None:
        """Puts rows of each request where the table says; NaN in the rest of its last block."""
        size = self.block_size
        for blocks, rows in zip(table.tolist(), values, strict=True):
            for i, block in enumerate(blocks[: -(-len(rows) // size)]):
                part = rows[i * size : (i + 1) * size]
                self.cache[block].fill_(0x7F if self.fp8 else float("nan"))
                self.cache[block, : len(part)] = part

    def common(self, step: Step, table: Tensor) -> CommonAttentionMetadata:
        """The step as vLLM's runner hands it to builders."""
        return common_of(step, table, self.device)

    def decode(self, q: Tensor, metadata: Any) -> tuple[Tensor, Tensor | None]:
        """vLLM's call of the decode part of a layer."""
        cache = self.cache.view(_FP8) if self.fp8 else self.cache
        return self.layer.impl.forward_mqa(q, cache, metadata, self.layer)

    def want(self, q: Tensor, step: Step, table: Tensor) -> Attention:
        """The fp64 oracle's answer, its lists made from the table here."""
        lens = step.local_lens or step.kv_lens
        pages = [-(-tokens // self.block_size) for tokens in lens]
        indices = [page for row, n in zip(table.tolist(), pages, strict=True) for page in row[:n]]
        last = [n - (p - 1) * self.block_size for n, p in zip(lens, pages, strict=True)]
        cache = (self.cache.view(_FP8) if self.fp8 else self.cache).cpu()
        return reference.mla_decode(
            q.cpu(),
            cache.unsqueeze(2),
            torch.tensor(step.starts, dtype=torch.int32),
            torch.tensor([0, *itertools.accumulate(pages)], dtype=torch.int32),
            torch.tensor(indices or [0], dtype=torch.int32),
            max_seqlen_q=max(step.q_lens),
            kv_last_page_lens=torch.tensor(last, dtype=torch.int32),
            sm_scale=self.layer.scale,
            causal=step.causal,
            q_scale=torch.tensor(self.q_scale),
            kv_scale=torch.tensor(self.k_scale),
        )

    def check(self, o: Tensor, q: Tensor, step: Step, table: Tensor, target: str) -> None:
        """Compares an output with the oracle's."""
        want = self.want(q, step, table)
        allowed = compare.allowed_output(want, o.dtype, target, q.dtype)
        names = compare.logical_names(step.starts)
        compare.assert_close(o.cpu(), want.o, allowed, what="o", names=names)
