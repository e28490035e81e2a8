# SPDX-License-Identifier: MIT
"""vLLM's attention backend of MLA decode: its metadata, its cache and its classes, our kernels.

Prefill stays vLLM's own, chosen by its `--mla-prefill-backend` as ever. `plugin` registers
the backend; this module imports vLLM and is imported by vLLM alone.
"""

from __future__ import annotations

from typing import ClassVar

import torch
import vllm.envs as envs
from torch import Tensor
from vllm.config import get_current_vllm_config
from vllm.model_executor.layers.attention.mla_attention import (
    MLACommonBackend,
    MLACommonImpl,
)
from vllm.platforms import current_platform
from vllm.platforms.interface import DeviceCapability
from vllm.v1.attention.backend import AttentionLayer
from vllm.v1.kv_cache_interface import is_quantized_kv_cache

from hipdecode.arguments import HEAD_DIM_V
from hipdecode.decode import mla_decode
from hipdecode.errors import UnsupportedShape
from hipdecode.integrations.vllm.metadata import (
    HipdecodeMLAMetadata,
    HipdecodeMLAMetadataBuilder,
    quantizes_queries,
)
from hipdecode.integrations.vllm.support import BLOCK_SIZES, Supported, check_layer
from hipdecode.shard import KvShard

HEAD_SIZES = [576, 512]


class HipdecodeMLABackend(Supported, MLACommonBackend):  # type: ignore[misc]
    """What vLLM asks a backend before it takes it."""

    supported_dtypes: ClassVar[list[torch.dtype]] = [torch.bfloat16, torch.float16]
    supported_kv_cache_dtypes: ClassVar[list[str]] = [
        "auto",
        "bfloat16",
        "float16",
        "fp8",
        "fp8_e4m3",
    ]

    @staticmethod
    def get_impl_cls() -> type[HipdecodeMLAImpl]:
        """Decodes."""
        return HipdecodeMLAImpl

    @staticmethod
    def get_builder_cls() -> type[HipdecodeMLAMetadataBuilder]:
        """Makes the metadata."""
        return HipdecodeMLAMetadataBuilder

    @classmethod
    def get_supported_head_sizes(cls) -> list[int]:
        """Columns of a cache row."""
        return HEAD_SIZES

    @classmethod
    def supports_batch_invariance(cls) -> bool:
        """Contexts are cut into a fixed number of pieces where VLLM_BATCH_INVARIANT asks for it."""
        return True

    @classmethod
    def supports_non_causal(cls) -> bool:
        """Blocks of a drafter whose tokens see each other."""
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
        wanted = {"bfloat16": torch.bfloat16, "float16": torch.float16}.get(kv_cache_dtype or "")
        if wanted is not None and wanted != dtype:
            return f"--kv-cache-dtype: expected auto, fp8 or that of --dtype, got {kv_cache_dtype}"
        if not cls.supports_kv_cache_dtype(kv_cache_dtype):
            known = ", ".join(cls.supported_kv_cache_dtypes)
            return f"--kv-cache-dtype: expected one of {known}, got {kv_cache_dtype}"
        if not cls.supports_block_size(block_size):
            return f"--block-size: expected a multiple of {BLOCK_SIZES[0]}, got {block_size}"
        if head_size not in HEAD_SIZES:
            return f"head_size of the model: expected one of {HEAD_SIZES}, got {head_size}"
        return None


class HipdecodeMLAImpl(MLACommonImpl[HipdecodeMLAMetadata]):  # type: ignore[misc]
    """Attention of one layer: prefill as vLLM does it, decode on hipdecode."""

    can_return_lse_for_decode: bool = True
    supports_dcp: bool = True
    supports_mtp_with_cp_non_trivial_interleave_size: bool = True
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
            UnsupportedShape: the layer wants what the kernels do not do.
        """
        common = (num_heads, head_size, scale, num_kv_heads, alibi_slopes, sliding_window)
        rest = (kv_cache_dtype, logits_soft_cap, attn_type, kv_sharing_target_layer_name)
        super().__init__(*common, *rest, **mla_args)
        check_layer(
            num_heads * self.dcp_world_size,
            attn_type,
            alibi_slopes=alibi_slopes,
            sliding_window=sliding_window,
            logits_soft_cap=logits_soft_cap,
        )
        if HEAD_DIM_V.get(head_size) != self.kv_lora_rank:
            raise UnsupportedShape(
                f"kv_lora_rank of the model: expected {HEAD_DIM_V.get(head_size)} of a cache row "
                f"of {head_size}, got {self.kv_lora_rank}; do choose another --attention-backend"
            )
        self.supports_quant_query_input = quantizes_queries()
        config = get_current_vllm_config()
        self._out_dtype = config.model_config.dtype
        self._kv_interleave = config.parallel_config.cp_kv_cache_interleave_size

    def forward_mqa(
        self,
        q: Tensor | tuple[Tensor, Tensor],
        kv_c_and_k_pe_cache: Tensor,
        attn_metadata: HipdecodeMLAMetadata,
        layer: AttentionLayer,
    ) -> tuple[Tensor, Tensor | None]:
        """Decodes the rows of a step.

        Args:
            q: [rows, nhead, head_dim_qk] bf16, fp16 or fp8, or its two parts.
            kv_c_and_k_pe_cache: [num_blocks, block_size, head_dim_qk] bf16, fp16 or fp8.
            attn_metadata: of the step.
            layer: whose scales dequantise fp8.

        Returns:
            [rows, nhead, kv_lora_rank] and, under decode context parallelism, the log-sum-exp
            [rows, nhead] fp32, natural log; minus infinity where this rank has no key.
        """
        decode = attn_metadata.decode
        if isinstance(q, tuple):
            q = torch.cat(q, dim=-1)
        rows, nhead, _ = q.shape
        out = torch.empty((rows, nhead, self.kv_lora_rank), dtype=self._out_dtype, device=q.device)
        shard = None
        if decode.g_kv_indptr is not None:
            ranks = (self.dcp_world_size, self.dcp_rank)
            shard = KvShard(decode.g_kv_indptr, *ranks, self._kv_interleave)
        lse = None
        if self.need_to_return_lse_for_decode:
            lse = torch.empty((rows, nhead), dtype=torch.float32, device=q.device)
        mla_decode(
            q,
            kv_c_and_k_pe_cache.unsqueeze(2),
            decode.qo_indptr,
            *decode.lists[:2],
            max_seqlen_q=decode.max_query_len,
            kv_last_page_lens=decode.kv_last_page_lens,
            sm_scale=self.scale,
            causal=attn_metadata.causal,
            q_scale=layer._q_scale,
            kv_scale=layer._k_scale,
            out=out,
            return_lse=lse is not None,
            lse=lse,
            plan=decode.plan,
            kv_len=None if decode.plan is not None else decode.kv_len,
            route=None if decode.plan is None else "persistent",
            batch_invariant=envs.VLLM_BATCH_INVARIANT,
            shard=shard,
        )
        return out, lse

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
        """As vLLM says. On a CPU, where vLLM has no operator for it, rows are written by torch.

        Args:
            kv_c_normed: [tokens, kv_lora_rank].
            k_pe: [tokens, 1, qk_rope_head_dim].
            kv_cache: [num_blocks, block_size, head_dim_qk], written in place.
            slot_mapping: [tokens or fewer] slots; negative: not written.
            kv_cache_dtype: as `--kv-cache-dtype`.
            k_scale: rows are divided by it where the cache is fp8.
            skip_scale: it is known to be 1.
        """
        if not current_platform.is_cpu():
            args = (kv_c_normed, k_pe, kv_cache, slot_mapping, kv_cache_dtype, k_scale)
            super().do_kv_cache_update(*args, skip_scale)
            return
        slots = slot_mapping.flatten().long()
        rows = torch.cat((kv_c_normed, k_pe.flatten(1)), dim=-1)[: slots.numel()]
        if is_quantized_kv_cache(kv_cache_dtype):
            kv_cache = kv_cache.view(current_platform.fp8_dtype())
            rows = (rows.float() / k_scale).clamp(-448, 448)
        kept = slots >= 0
        size = kv_cache.shape[1]
        at = slots[kept]
        kv_cache[at // size, at % size] = rows[kept].to(kv_cache.dtype)
