# SPDX-License-Identifier: MIT
"""What vLLM's steps carry to our decode, and the builder that makes it once for all layers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import vllm.envs as envs
from torch import Tensor
from vllm.model_executor.layers.attention.mla_attention import (
    MLACommonDecodeMetadata,
    MLACommonMetadata,
    MLACommonMetadataBuilder,
    QueryLenSupport,
)
from vllm.platforms import current_platform
from vllm.v1.attention.backend import AttentionCGSupport, CommonAttentionMetadata
from vllm.v1.kv_cache_interface import AttentionSpec, is_quantized_kv_cache

from hipdecode.arguments import DTYPE_NAMES
from hipdecode.errors import UnsupportedShape
from hipdecode.integrations.steps import PageLists, StepPlans, StepShape, coarse_length
from hipdecode.plan import MlaPlan
from hipdecode.support import MAX_Q_LEN
from hipdecode.warm import warmup


@dataclass
class HipdecodeMLADecodeMetadata(MLACommonDecodeMetadata):  # type: ignore[misc]
    """The decode part of a step.

    Attributes:
        qo_indptr: [num_decodes + 1] int32, query rows of each request.
        kv_indptr: [num_decodes + 1] int32, pages of each request.
        kv_indices: [any] int32 page ids.
        kv_last_page_lens: [num_decodes] int32, tokens in each last page.
        max_query_len: query rows of one request at most.
        kv_len: average context in tokens, for the route.
        plan: of the step; None where the route needs none.
        g_kv_indptr: [num_decodes + 1] int32, tokens of each request over all ranks that share
            them (decode context parallelism); None where the cache is whole.
    """

    qo_indptr: Tensor
    kv_indptr: Tensor
    kv_indices: Tensor
    kv_last_page_lens: Tensor
    max_query_len: int
    kv_len: int | None = None
    plan: MlaPlan | None = None
    g_kv_indptr: Tensor | None = None

    @property
    def lists(self) -> tuple[Tensor, Tensor, Tensor]:
        """The pages, in the order of PageLists.fill."""
        return self.kv_indptr, self.kv_indices, self.kv_last_page_lens


@dataclass
class HipdecodeMLAMetadata(MLACommonMetadata[HipdecodeMLADecodeMetadata]):  # type: ignore[misc]
    """vLLM's metadata of a step with ours as its decode part."""


class HipdecodeMLAMetadataBuilder(MLACommonMetadataBuilder[HipdecodeMLAMetadata]):  # type: ignore[misc]
    """Makes page lists and, where the route wants one, a plan: once per step for all layers.

    Decodes of several query rows may differ in length, so speculative steps need no padding. In
    full graphs all requests have as many rows as the graph was captured with, or none.
    """

    _cudagraph_support: ClassVar[AttentionCGSupport] = AttentionCGSupport.UNIFORM_BATCH
    query_len_support: ClassVar[QueryLenSupport] = QueryLenSupport.VARLEN
    supports_non_causal_multi_token_decode: ClassVar[bool] = True
    supports_non_causal_multi_token_dcp: ClassVar[bool] = True

    def __init__(
        self,
        kv_cache_spec: AttentionSpec,
        layer_names: list[str],
        vllm_config: object,
        device: torch.device,
    ) -> None:
        """Allocates the lists of the largest step and loads every kernel that may run.

        Raises:
            UnsupportedShape: more speculative tokens than the kernels take.
            BuildError: a kernel could not be built.
        """
        super().__init__(
            kv_cache_spec,
            layer_names,
            vllm_config,
            device,
            HipdecodeMLAMetadata,
            supports_dcp_with_varlen=True,
        )
        config = self.vllm_config
        if self.reorder_batch_threshold > MAX_Q_LEN:
            raise UnsupportedShape(
                f"--speculative-config num_speculative_tokens: expected at most {MAX_Q_LEN - 1} "
                f"(query rows of a step: 1..{MAX_Q_LEN}), got rows {self.reorder_batch_threshold}"
            )
        page_size = self.kv_cache_spec.block_size
        captured = self.compilation_config.max_cudagraph_capture_size or 0
        max_batch = max(config.scheduler_config.max_num_seqs, captured)
        max_blocks = -(-self.model_config.max_model_len // page_size) + 1
        kv_dtype = self.kv_cache_spec.dtype
        quantized = is_quantized_kv_cache(config.cache_config.cache_dtype)
        if quantized:
            kv_dtype = current_platform.fp8_dtype()
        q_dtype = kv_dtype if quantized and quantizes_queries() else self.model_config.dtype
        dims = self.mla_dims
        head_dim_qk = dims.kv_lora_rank + dims.qk_rope_head_dim
        self._lists = PageLists(max_batch, max_blocks, page_size, device)
        self._g_kv_indptr = torch.zeros(max_batch + 1, dtype=torch.int32, device=device)
        self._plans = StepPlans(
            max_batch=max_batch,
            nhead=self.num_heads * self.dcp_world_size,
            head_dim_qk=head_dim_qk,
            head_dim_v=dims.kv_lora_rank,
            page_size=page_size,
            q_dtype=q_dtype,
            kv_dtype=kv_dtype,
            device=device,
        )
        warmup(
            q_dtype=DTYPE_NAMES[q_dtype],
            kv_dtype=DTYPE_NAMES[kv_dtype],
            head_dim_qk=head_dim_qk,
            head_dim_v=dims.kv_lora_rank,
            device=device,
        )

    def _build_decode(
        self,
        block_table_tensor: Tensor,
        seq_lens_device: Tensor,
        max_seq_len: int,
        query_start_loc_cpu: Tensor,
        query_start_loc_device: Tensor,
        num_decode_tokens: int,
        max_query_len: int,
        dcp_tot_seq_lens_device: Tensor | None,
    ) -> HipdecodeMLADecodeMetadata:
        lists = self._lists.fill(block_table_tensor, seq_lens_device, max_seq_len)
        g_kv_indptr = None
        if dcp_tot_seq_lens_device is not None:
            g_kv_indptr = self._g_kv_indptr[: seq_lens_device.shape[0] + 1]
            torch.cumsum(dcp_tot_seq_lens_device, 0, dtype=torch.int32, out=g_kv_indptr[1:])
        return HipdecodeMLADecodeMetadata(
            block_table_tensor,
            seq_lens_device,
            dcp_tot_seq_lens_device,
            query_start_loc_device,
            *lists,
            max_query_len,
            g_kv_indptr=g_kv_indptr,
        )

    def build(
        self,
        common_prefix_len: int,
        common_attn_metadata: CommonAttentionMetadata,
        fast_build: bool = False,
    ) -> HipdecodeMLAMetadata:
        """As vLLM says; the plan of a captured size is filled anew where its graph reads it."""
        metadata: HipdecodeMLAMetadata = super().build(
            common_prefix_len, common_attn_metadata, fast_build
        )
        decode = metadata.decode
        if decode is not None and not envs.VLLM_BATCH_INVARIANT:
            requests = metadata.num_decodes
            lens = common_attn_metadata.seq_lens_cpu_upper_bound
            tokens, longest = requests * metadata.max_seq_len, metadata.max_seq_len
            if lens is not None and requests > 0:
                held = lens[:requests] // self.dcp_world_size
                tokens, longest = min(int(held.sum()), tokens), int(held.max())
            decode.kv_len = coarse_length(tokens, requests)
            decode.plan = self._plans.follow(
                _shape_of(metadata),
                decode.qo_indptr,
                decode.lists,
                decode.kv_len,
                coarse_length(longest, 1),
            )
        return metadata

    def build_for_cudagraph_capture(
        self, common_attn_metadata: CommonAttentionMetadata
    ) -> HipdecodeMLAMetadata:
        """As vLLM says; the step gets a plan, since lengths of a capture say nothing of replays."""
        metadata: HipdecodeMLAMetadata = super().build_for_cudagraph_capture(common_attn_metadata)
        decode = metadata.decode
        if decode is not None and not envs.VLLM_BATCH_INVARIANT:
            decode.plan = self._plans.capture(_shape_of(metadata), decode.qo_indptr, decode.lists)
        return metadata


def quantizes_queries() -> bool:
    """Whether queries over an fp8 cache are to be fp8: on AMD, whose fp8 products are native."""
    return bool(current_platform.is_rocm())


def _shape_of(metadata: HipdecodeMLAMetadata) -> StepShape:
    """The step for its plan, which knows nothing of the places that shared keys have."""
    decode = metadata.decode
    local = decode.g_kv_indptr is None or decode.max_query_len == 1
    return StepShape(metadata.num_decodes, decode.max_query_len, bool(metadata.causal) and local)
