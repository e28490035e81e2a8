# SPDX-License-Identifier: MIT
"""vLLM's backend of sparse MLA (DeepSeek-V3.2): its indexer and metadata, our kernel.

The cache is vLLM's `fp8_ds_mla`, which is the V3.2 format of `hipdecode.sparse_cache`. All query
rows of a step, those of prompts too, attend to the keys that the indexer chose for them.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor
from vllm.config import get_current_vllm_config
from vllm.model_executor.layers.attention.sparse_mla_attention import (
    SparseMLACommonImpl,
    SparseMLACommonMetadata,
    SparseMLACommonMetadataBuilder,
)
from vllm.platforms import current_platform
from vllm.platforms.interface import DeviceCapability
from vllm.v1.attention.backend import (
    AttentionBackend,
    AttentionCGSupport,
    AttentionLayer,
    CommonAttentionMetadata,
)
from vllm.v1.attention.backends.mla.sparse_utils import align_blocks_to_rows, flat_kv_row_view
from vllm.v1.kv_cache_interface import AttentionSpec

from hipdecode.errors import UnsupportedShape
from hipdecode.integrations.steps import slots_of_tokens
from hipdecode.integrations.vllm.support import BLOCK_SIZES, Supported, check_layer
from hipdecode.sparse import sparse_mla_decode, warmup_sparse
from hipdecode.sparse_cache import V32, quantize_v32

CACHE_DTYPE = "fp8_ds_mla"


class HipdecodeSparseMLABackend(Supported, AttentionBackend):  # type: ignore[misc]
    """What vLLM asks a backend before it takes it."""

    supported_dtypes: ClassVar[list[torch.dtype]] = [torch.bfloat16]
    supported_kv_cache_dtypes: ClassVar[list[str]] = [CACHE_DTYPE]

    @staticmethod
    def get_impl_cls() -> type[HipdecodeSparseMLAImpl]:
        """Attends."""
        return HipdecodeSparseMLAImpl

    @staticmethod
    def get_builder_cls() -> type[HipdecodeSparseMLAMetadataBuilder]:
        """Makes the metadata."""
        return HipdecodeSparseMLAMetadataBuilder

    @classmethod
    def get_supported_head_sizes(cls) -> list[int]:
        """Columns of a key."""
        return [V32.head_dim_qk]

    @classmethod
    def customize_spec(cls, spec: AttentionSpec) -> AttentionSpec:
        """Blocks lie whole rows apart: vLLM's kernel makes flat rows of the indices."""
        return align_blocks_to_rows(spec)

    @classmethod
    def is_mla(cls) -> bool:
        """Queries come in the latent space."""
        return True

    @classmethod
    def is_sparse(cls) -> bool:
        """Keys are chosen by an indexer."""
        return True

    @classmethod
    def supports_combination(
        cls,
        head_size: int,
        dtype: torch.dtype,
        kv_cache_dtype: str | None,
        block_size: int | None,
        use_mla: bool,
        has_sink: bool,
        use_sparse: bool,
        use_mm_prefix: bool,
        device_capability: DeviceCapability,
    ) -> str | None:
        """The reason why not, with vLLM's option that would change it; None where it works."""
        if not hasattr(SparseMLACommonImpl, "_forward_mqa_kernel"):
            return "vllm: expected 0.33 or newer for sparse attention, got an older one"
        if kv_cache_dtype != CACHE_DTYPE:
            return f"--kv-cache-dtype: expected {CACHE_DTYPE}, got {kv_cache_dtype}"
        if not cls.supports_block_size(block_size):
            return f"--block-size: expected a multiple of {BLOCK_SIZES[0]}, got {block_size}"
        return None


class HipdecodeSparseMLAMetadataBuilder(SparseMLACommonMetadataBuilder[SparseMLACommonMetadata]):  # type: ignore[misc]
    """vLLM's own metadata; the kernel needs nothing beside it."""

    metadata_cls = SparseMLACommonMetadata
    _cudagraph_support: ClassVar[AttentionCGSupport] = AttentionCGSupport.UNIFORM_BATCH

    def __init__(
        self,
        kv_cache_spec: AttentionSpec,
        layer_names: list[str],
        vllm_config: object,
        device: torch.device,
    ) -> None:
        """Loads the kernel.

        Raises:
            BuildError: it could not be built.
        """
        super().__init__(kv_cache_spec, layer_names, vllm_config, device)
        self._init_reorder_batch_threshold(1, supports_spec_as_decode=True)
        nhead = self.model_config.get_num_attention_heads(self.vllm_config.parallel_config)
        warmup_sparse(V32, nhead=nhead, device=device)

    def _build_req_id_per_token(self, common_attn_metadata: CommonAttentionMetadata) -> Tensor:
        if not current_platform.is_cpu():
            made: Tensor = super()._build_req_id_per_token(common_attn_metadata)
            return made
        rows: Tensor = self.req_id_per_token_buffer[: common_attn_metadata.num_actual_tokens]
        ends = common_attn_metadata.query_start_loc[1:]
        token = torch.arange(rows.shape[0], device=rows.device, dtype=ends.dtype)
        owner = torch.searchsorted(ends, token, right=True).clamp_(max=ends.shape[0] - 1)
        return rows.copy_(owner)


class HipdecodeSparseMLAImpl(SparseMLACommonImpl[SparseMLACommonMetadata]):  # type: ignore[misc]
    """Attention of one layer, over the keys in vLLM's buffer of indices."""

    supports_dense_mha_prefill: bool = False
    supports_quant_query_input: bool = False
    supports_dcp: bool = False
    supports_pcp: bool = False

    def __init__(
        self,
        num_heads: int,
        head_size: int,
        scale: float,
        num_kv_heads: int,
        alibi_slopes: list[float] | None,
        sliding_window: int | None,
        kv_cache_dtype: str,
        logits_soft_cap: float | None,
        attn_type: str,
        kv_sharing_target_layer_name: str | None,
        **mla_args: object,
    ) -> None:
        """Takes vLLM's arguments.

        Raises:
            UnsupportedShape: the layer wants what the kernel does not do.
        """
        check_layer(
            num_heads,
            attn_type,
            alibi_slopes=alibi_slopes,
            sliding_window=sliding_window,
            logits_soft_cap=logits_soft_cap,
        )
        for name, value, wanted in (
            ("kv_cache_dtype", kv_cache_dtype, CACHE_DTYPE),
            ("head_size", head_size, V32.head_dim_qk),
        ):
            if value != wanted:
                raise UnsupportedShape(
                    f"{name}: expected {wanted}, got {value}; do choose another --attention-backend"
                )
        config = get_current_vllm_config()
        if config.parallel_config.decode_context_parallel_size > 1:
            raise UnsupportedShape(
                "--decode-context-parallel-size: expected 1 for sparse attention, got "
                f"{config.parallel_config.decode_context_parallel_size}"
            )
        if config.attention_config.hisparse_config is not None:
            raise UnsupportedShape("hisparse_config: expected None, got a cache on the host")
        common = (num_heads, head_size, scale, num_kv_heads, alibi_slopes, sliding_window)
        rest = (kv_cache_dtype, logits_soft_cap, attn_type, kv_sharing_target_layer_name)
        super().__init__(*common, *rest, **mla_args)

    def forward_mqa(
        self,
        q: Tensor | tuple[Tensor, Tensor],
        kv_c_and_k_pe_cache: Tensor,
        attn_metadata: SparseMLACommonMetadata,
        layer: AttentionLayer,
    ) -> tuple[Tensor, Tensor | None]:
        """Attends over the indexer's keys; they become slots by vLLM's kernel, on a CPU by torch.

        Args:
            q: [rows, nhead, 576] bf16, or its two parts.
            kv_c_and_k_pe_cache: [num_blocks, block_size, 656] uint8.
            attn_metadata: of the step.
            layer: unused: the cache carries its scales.

        Returns:
            [rows, nhead, 512] bf16, and None.
        """
        if not current_platform.is_cpu():
            found: tuple[Tensor, Tensor | None] = super().forward_mqa(
                q, kv_c_and_k_pe_cache, attn_metadata, layer
            )
            return found
        rows = q[0].shape[0] if isinstance(q, tuple) else q.shape[0]
        slots = slots_of_tokens(
            self.topk_indices_buffer[:rows],
            attn_metadata.req_id_per_token[:rows],
            attn_metadata.block_table,
            attn_metadata.block_size,
        )
        return self._attend(q, kv_c_and_k_pe_cache, slots)

    def _forward_mqa_kernel(
        self,
        q: Tensor | tuple[Tensor, Tensor],
        kv_cache: Tensor,
        topk_indices: Tensor,
        valid_counts: Tensor,
        *,
        layer: AttentionLayer,
        block_size: int,
        is_decode: bool,
    ) -> tuple[Tensor, Tensor | None]:
        if kv_cache.stride(0) != block_size * kv_cache.shape[2]:  # indices count the rows between
            kv_cache = flat_kv_row_view(kv_cache, block_size)[0].unsqueeze(1)
        return self._attend(q, kv_cache, topk_indices, valid_counts)

    def _attend(
        self,
        q: Tensor | tuple[Tensor, Tensor],
        cache: Tensor,
        slots: Tensor,
        lengths: Tensor | None = None,
    ) -> tuple[Tensor, None]:
        if isinstance(q, tuple):
            q = torch.cat(q, dim=-1)
        out = torch.empty((*q.shape[:2], V32.latent), dtype=q.dtype, device=q.device)
        sparse_mla_decode(q, cache, slots, lengths=lengths, sm_scale=self.scale, out=out)
        return out, None

    def do_kv_cache_update(
        self,
        kv_c_normed: Tensor,
        k_pe: Tensor,
        kv_cache: Tensor,
        slot_mapping: Tensor,
        kv_cache_dtype: str,
        k_scale: Tensor,
        skip_scale: bool = False,
    ) -> None:
        """As vLLM says. On a CPU, where vLLM has no operator for it, `quantize_v32` writes rows.

        Args:
            kv_c_normed: [tokens, 512].
            k_pe: [tokens, 1, 64].
            kv_cache: [num_blocks, block_size, 656] uint8, written in place.
            slot_mapping: [tokens or fewer] slots; negative: not written.
            kv_cache_dtype: as `--kv-cache-dtype`.
            k_scale: unused by this format, whose tokens carry theirs.
            skip_scale: likewise.
        """
        if not current_platform.is_cpu():
            args = (kv_c_normed, k_pe, kv_cache, slot_mapping, kv_cache_dtype, k_scale)
            super().do_kv_cache_update(*args, skip_scale)
            return
        slots = slot_mapping.flatten()
        rows = torch.cat((kv_c_normed, k_pe.flatten(1)), dim=-1)[: slots.numel()]
        quantize_v32(rows, kv_cache, slots, power_of_two=False)
