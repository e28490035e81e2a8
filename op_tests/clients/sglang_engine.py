# SPDX-License-Identifier: MIT
"""One attention layer of SGLang, run as its scheduler would run it, and the fp64 answer.

Layer, batch, pools, translator and registry are SGLang's own, and so is the runner around them,
which its wheel ships for tests of backends.
"""

from __future__ import annotations

import itertools
from contextlib import AbstractContextManager

import torch
import torchvision_stand_in  # noqa: F401
from torch import Tensor

# isort: split
from sglang.srt.layers.attention.attention_registry import ATTENTION_BACKENDS
from sglang.srt.layers.radix_attention import RadixAttention
from sglang.srt.model_executor.forward_batch_info import ForwardBatch, ForwardMode
from sglang.srt.model_executor.forward_context import ForwardContext, forward_context
from sglang.srt.models.deepseek_common.utils import FORWARD_ABSORB_CORE_ATTENTION_BACKENDS
from sglang.srt.runtime_context import get_parallel
from sglang.test.kits.attention_unittest.attention_methods import mla_attention as kit

from hipdecode.integrations.sglang import NAME, register
from hipdecode.testing import compare, reference

HEAD_DIM_QK, HEAD_DIM_V = 576, 512

register()
get_parallel().override_permanently(attn_dcp_rank=0)  # as a process without ranks that share keys


class Engine:
    """A runner, its backend and its layers, of which most tests use the first.

    Args:
        device: where the pools lie.
        batch: requests at most.
        context: tokens of a request at most.
        nhead: query heads.
        page_size: slots of a page.
        drafts: rows of a request in a verification, 0 for none.
        fp8: the cache holds e4m3.
        k_scale: of the first layer, None for none.
        layers: of the model.
        tokens: slots of the pools, by default as many as `batch` requests of `context` take.
        prompts: the backend that SGLang is told to run prompts on.
    """

    def __init__(
        self,
        device: torch.device,
        *,
        batch: int = 6,
        context: int = 640,
        nhead: int = 16,
        page_size: int = 1,
        drafts: int = 0,
        fp8: bool = False,
        k_scale: float | None = None,
        layers: int = 1,
        tokens: int | None = None,
        prompts: str = NAME,
    ) -> None:
        self.device, self.page_size, self.drafts = device, page_size, drafts
        self.generator = torch.Generator().manual_seed(20261121 + nhead + page_size)
        mode = ForwardMode.TARGET_VERIFY if drafts else ForwardMode.DECODE
        case = kit.MLAAttentionCase(
            NAME, NAME, mode, nhead, page_size, (1,) * batch, (drafts,) * batch
        )
        sizes = {"kv_lora_rank": HEAD_DIM_V, "qk_rope_head_dim": HEAD_DIM_QK - HEAD_DIM_V}
        config = kit.TinyMLAModelConfig(
            num_heads=nhead, hidden_size=64, context_len=context, **sizes
        )
        self.runner = kit.MockMLAModelRunner(
            case=case,
            model_config=config,
            dtype=torch.bfloat16,
            device=device.type,
            max_context_len=-(-context // page_size) * page_size,
            fp8_kv_cache=fp8,
            **sizes,
        )
        self.runner.prefill_attention_backend_str = prompts
        if layers > 1 or tokens is not None:
            self.replace_pools(layers, tokens or self.runner.token_to_kv_pool.size)
        self.backend = ATTENTION_BACKENDS[NAME](self.runner)
        self.layers = [
            RadixAttention(nhead, HEAD_DIM_QK, HEAD_DIM_QK**-0.5, 1, i, v_head_dim=HEAD_DIM_V)
            for i in range(layers)
        ]
        self.layer = self.layers[0]
        if k_scale is not None:
            self.layer.k_scale = torch.tensor(k_scale, device=device)
            self.layer.k_scale_float = k_scale
        self.cache: Tensor = self.runner.token_to_kv_pool.get_key_buffer(0)
        self.poison()

    def replace_pools(self, layers: int, tokens: int) -> None:
        """The kit's runner has one layer, and a pool as if every request were the longest."""
        kept = self.runner.token_to_kv_pool
        self.runner.token_to_kv_pool = type(kept)(
            size=-(-tokens // self.page_size) * self.page_size,
            page_size=self.page_size,
            dtype=kept.dtype,
            kv_lora_rank=HEAD_DIM_V,
            qk_rope_head_dim=HEAD_DIM_QK - HEAD_DIM_V,
            layer_num=layers,
            device=self.device.type,
            enable_memory_saver=False,
        )
        self.runner.init_kv_index_translator()

    def poison(self) -> None:
        """NaN in every slot: what no request owns must not be seen."""
        as_bytes = self.cache.dtype.itemsize == 1
        whole = self.cache.view(torch.uint8) if as_bytes else self.cache
        whole.fill_(0x7F if as_bytes else float("nan"))

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.generator).to(self.device, torch.bfloat16)

    def serve(self, kv_lens: tuple[int, ...]) -> Tensor:
        """Gives requests pages in a random order, and their tokens latents; their rows."""
        table = self.runner.req_to_token_pool.req_to_token
        rows = 1 + torch.randperm(table.shape[0] - 1, generator=self.generator)[: len(kv_lens)]
        pages = 1 + torch.randperm(
            self.cache.shape[0] // self.page_size - 1, generator=self.generator
        )
        free = iter(pages.tolist())
        table.fill_(-1)
        for row, kv_len in zip(rows.tolist(), kv_lens, strict=True):
            count = -(-kv_len // self.page_size)
            begins = torch.tensor(list(itertools.islice(free, count)), dtype=torch.int64)
            slots = begins[:, None] * self.page_size + torch.arange(self.page_size)
            slots = slots.flatten()[:kv_len]
            table[row, :kv_len] = slots.to(table)
            scale = self.layer.k_scale_float or 1.0
            latents = (self.normal(kv_len, 1, HEAD_DIM_QK) / scale).to(self.cache.dtype)
            indexable(self.cache)[slots.to(self.device)] = indexable(latents)
        return rows.to(self.device)

    def batch(
        self, mode: ForwardMode, kv_lens: tuple[int, ...], rows: Tensor, q_len: int
    ) -> ForwardBatch:
        """A step whose last q_len tokens of each request are new; kv_lens count them."""
        table = self.runner.req_to_token_pool.req_to_token
        new = [
            table[row, kv_len - q_len : kv_len] if kv_len else table.new_zeros(q_len)
            for row, kv_len in zip(rows.tolist(), kv_lens, strict=True)
        ]
        # a verification's lengths do not count the draft
        known = [n - q_len if mode.is_target_verify() else n for n in kv_lens]
        seq_lens = torch.tensor(known, dtype=torch.int64, device=self.device)
        made = ForwardBatch(
            forward_mode=mode,
            batch_size=len(kv_lens),
            input_ids=torch.zeros(len(kv_lens) * q_len, dtype=torch.int64, device=self.device),
            req_pool_indices=rows,
            seq_lens=seq_lens,
            out_cache_loc=torch.cat(new).to(torch.int64),
            seq_lens_sum=sum(known),
        )
        self.runner.kv_index_translator.bind_own_plan(made)
        return made

    def inputs(self, count: int) -> tuple[Tensor, Tensor]:
        """q and the latents of `count` new tokens."""
        return self.normal(count, self.layer.tp_q_head_num * HEAD_DIM_QK), self.normal(
            count, 1, HEAD_DIM_QK
        )

    @staticmethod
    def served_by(backend: object) -> AbstractContextManager[object]:
        """Layers run on that backend of SGLang's registry."""
        return forward_context(ForwardContext(attn_backend=backend))

    def attend(self, batch: ForwardBatch, q: Tensor, k: Tensor) -> Tensor:
        """What the model calls, in parts where it is told so; the metadata must be there."""
        with self.served_by(self.backend):
            if NAME not in FORWARD_ABSORB_CORE_ATTENTION_BACKENDS:
                return self.layer(q, k, k[..., :HEAD_DIM_V], batch)
            sizes = (HEAD_DIM_V, HEAD_DIM_QK - HEAD_DIM_V)
            q, q_rope = q.view(len(q), -1, HEAD_DIM_QK).split(sizes, -1)
            k, k_rope = k.split(sizes, -1)
            return self.layer(q, k, k, batch, q_rope=q_rope, k_rope=k_rope)

    def check(
        self, out: Tensor, q: Tensor, kv_lens: tuple[int, ...], rows: Tensor, target: str
    ) -> None:
        """Compares with the oracle, which walks SGLang's table of slots token by token."""
        table = self.runner.req_to_token_pool.req_to_token.cpu()
        slots = [table[row, :kv_len] for row, kv_len in zip(rows.tolist(), kv_lens, strict=True)]
        q_len = q.shape[0] // max(len(kv_lens), 1)
        starts = torch.tensor([0, *itertools.accumulate(kv_lens)], dtype=torch.int32)
        q = q.view(-1, self.layer.tp_q_head_num, HEAD_DIM_QK).cpu()
        want = reference.mla_decode(
            q,
            self.cache.cpu()[:, None],
            torch.arange(len(kv_lens) + 1, dtype=torch.int32) * q_len,
            starts,
            torch.cat(slots),
            max_seqlen_q=q_len,
            sm_scale=self.layer.scaling,
            kv_scale=self.layer.k_scale,
        )
        out = out.view(want.o.shape)
        allowed = compare.allowed_output(want, out.dtype, target, q.dtype)
        compare.assert_close(out, want.o, allowed, what="o")


def indexable(tensor: Tensor) -> Tensor:
    """The tensor as bytes where it is fp8, which torch cannot index."""
    return tensor.view(torch.uint8) if tensor.dtype.itemsize == 1 else tensor
