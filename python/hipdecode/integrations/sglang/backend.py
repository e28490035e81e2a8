# SPDX-License-Identifier: MIT
"""The attention backend that SGLang runs: its batches in, `hipdecode.mla_decode` out.

Lengths and pages of a step are written into buffers that stay where they are, by one launch before
the first layer. So a captured graph needs nothing more at replay than that launch, and where a plan
is used, one more: all layers of a step share the plan. A layer allocates its output alone.
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable
from typing import Any

import torch
from sglang.srt.layers.attention.base_attn_backend import AttentionBackend
from sglang.srt.layers.attention.verify_mask import VerifyMask, maybe_create_verify_mask
from sglang.srt.mem_cache.memory_pool import KVWriteLoc, MLATokenToKVPool
from sglang.srt.runtime_context import get_exec, get_parallel, get_spec
from torch import Tensor

from hipdecode.decode import mla_decode
from hipdecode.errors import BadArgument
from hipdecode.integrations.steps import coarse_length, step_route
from hipdecode.plan import MlaPlan, plan_mla_decode
from hipdecode.shard import KvShard
from hipdecode.workspace import Workspace

from .checks import check_layer, check_runner
from .steps import Buffers, Deal, Step, is_ours, pack

logger = logging.getLogger("hipdecode.sglang")


class HipdecodeAttnBackend(AttentionBackend):  # type: ignore[misc]  # SGLang has no types
    """MLA decode on hipdecode over SGLang's paged latent cache, prefill on another backend.

    Args:
        runner: SGLang's `ModelRunner`.

    Raises:
        BadArgument: the runner is configured for what is not done; names SGLang's option.
    """

    needs_cpu_seq_lens: bool = False
    extend_dummy_seqs_capped_by_req_pool: bool = True  # as its prefill backend

    def __init__(self, runner: Any) -> None:  # noqa: ANN401
        """Checks the configuration and makes the buffers of eager steps."""
        super().__init__()
        check_runner(runner)
        self.runner = runner
        self.device = torch.device(runner.device)
        self.req_to_token_pool = runner.req_to_token_pool
        self.req_to_token: Tensor = runner.req_to_token_pool.req_to_token
        self.token_to_kv_pool = runner.token_to_kv_pool
        self.kv_index_translator = runner.kv_index_translator
        self.page_size: int = runner.page_size
        self.data_type = self.kv_cache_dtype = runner.kv_cache_dtype
        self.q_dtype: torch.dtype = runner.dtype
        model = runner.model_config
        parallel = get_parallel()
        ranks = parallel.attn_dcp_size
        self.deal = Deal(self.page_size, ranks, parallel.attn_dcp_rank if ranks > 1 else 0)
        # ranks that share the keys get the heads of all of them
        self.nhead: int = model.num_attention_heads // parallel.attn_tp_size * ranks
        self.head_dim_v: int = model.kv_lora_rank
        self.head_dim_qk: int = model.kv_lora_rank + model.qk_rope_head_dim
        self.max_context_len: int = model.context_len
        self.num_draft_tokens: int = get_spec().speculative_num_draft_tokens or 0
        # a request's bits must not depend on its neighbours
        self.batch_invariant = bool(get_exec().deterministic.enable_deterministic_inference)
        self.forward_metadata: Step | None = None
        self._workspace = Workspace(self.device)
        self._plans: dict[tuple[int, int, bool], MlaPlan] = {}
        self._eager = self._buffers(runner.req_to_token_pool.size, 0)
        self._graph: Buffers | None = None
        self._extend: Any = None
        self._verify_mask: VerifyMask | None = None
        self._checked: set[int] = set()
        self._take: Callable[..., Tensor] | None = None
        # pools derived from this one store in ways of their own
        if self.device.type == "cuda" and type(self.token_to_kv_pool) is MLATokenToKVPool:
            self._take = importlib.import_module(".rows_triton", __package__).take

    @property
    def verify_mask(self) -> VerifyMask | None:
        """Where SGLang's draft writes the mask of its tree, here a chain: it is not read."""
        return self._verify_mask

    def get_cuda_graph_seq_len_fill_value(self) -> int:
        """Tokens of a request that pads a graph's batch: slot 0, which SGLang keeps for it."""
        return 1

    def init_cuda_graph_state(self, max_bs: int, max_num_tokens: int) -> None:
        """Makes the buffers that captured graphs read at every replay."""
        del max_num_tokens
        self._graph = self._buffers(max_bs, max_bs * self._pages(self.req_to_token.shape[1]))
        self._verify_mask = maybe_create_verify_mask(
            is_draft_runner=self.runner.is_draft_worker,
            skip_prefill=False,
            max_bs=max_bs,
            max_context_len=self.max_context_len,
            num_draft_tokens=self.num_draft_tokens,
            device=self.device,
            is_read=False,
        )

    def update_verify_buffers_to_fill_after_draft(
        self, spec_info: object, cuda_graph_bs: int | None
    ) -> None:
        """Nothing of a step depends on the draft's tree, which is a chain."""

    def init_forward_metadata(self, forward_batch: Any) -> None:  # noqa: ANN401
        """Lengths and pages of a step that runs as it is."""
        if not is_ours(forward_batch.forward_mode):
            self._prefill().init_forward_metadata(forward_batch)
            return
        batch = forward_batch.batch_size
        if batch == 0:
            return
        q_len = self._q_len(forward_batch)
        tokens = forward_batch.seq_lens_sum
        if tokens is None:
            tokens = batch * self.req_to_token.shape[1]
        else:
            tokens += batch * q_len
        pages = batch + self._pages(tokens)
        if batch > self._eager.batch or pages > self._eager.kv_indices.shape[0]:
            self._eager = self._buffers(max(batch, self._eager.batch), 2 * pages)
        ranks, lens = self.deal.ranks, forward_batch.seq_lens_cpu
        kv_len = coarse_length(tokens // batch // ranks, 1)
        longest = None if lens is None else coarse_length((int(lens.max()) + q_len) // ranks, 1)
        self._fill(self._eager, forward_batch, q_len, kv_len, longest)

    def init_forward_metadata_out_graph(
        self,
        forward_batch: Any,  # noqa: ANN401
        in_capture: bool = False,
    ) -> None:
        """Lengths and pages before a graph is captured and before each replay."""
        del in_capture
        if not is_ours(forward_batch.forward_mode):
            self._prefill().init_forward_metadata_out_graph(forward_batch)
            return
        if self._graph is None:
            raise BadArgument("init_cuda_graph_state: expected a call before a graph is captured")
        if forward_batch.batch_size > 0:
            q_len = self._q_len(forward_batch)
            self._fill(self._graph, forward_batch, q_len, None)

    def forward_decode(
        self,
        q: Tensor,
        k: Tensor | None,
        v: Tensor | None,
        layer: Any,  # noqa: ANN401
        forward_batch: Any,  # noqa: ANN401
        save_kv_cache: bool = True,
        q_rope: Tensor | None = None,
        k_rope: Tensor | None = None,
        **kwargs: object,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """One row per request over its pages.

        Args:
            q: [batch, nhead * head_dim_qk], absorbed; with q_rope its first head_dim_v columns.
            k: [batch, 1, head_dim_qk], the latent rows of the new tokens, or None; with k_rope
                their first head_dim_v columns.
            v: those; only `k` is stored.
            layer: SGLang's `RadixAttention`.
            forward_batch: SGLang's `ForwardBatch`.
            save_kv_cache: store `k` first.
            q_rope: the other columns of the queries, or None.
            k_rope: likewise.
            kwargs: what other backends take; refused by name unless None.

        Returns:
            [batch, nhead * head_dim_v] in q's dtype; where ranks share the keys (--dcp-size), also
            the log-sum-exp [batch, nhead] of this rank's, fp32, natural log.

        Raises:
            BadArgument: the layer or an argument asks for what is not done, by SGLang's name.
        """
        self._check(layer, kwargs)
        rows = self._rows(layer, forward_batch, q, q_rope, k if save_kv_cache else None, k_rope)
        step = self.forward_metadata
        assert step is not None, "init_forward_metadata comes before the layers"
        out = q.new_empty((*rows.shape[:2], layer.v_head_dim))
        shared = self.deal.ranks > 1
        lse = q.new_empty(out.shape[:2], dtype=torch.float32) if shared else None
        mla_decode(
            rows,
            self._pages_of(layer),
            step.qo_indptr,
            step.kv_indptr,
            step.kv_indices,
            max_seqlen_q=step.q_len,
            kv_last_page_lens=step.kv_last_page_lens,
            sm_scale=layer.scaling,
            kv_scale=layer.k_scale,
            shard=KvShard(step.g_kv_indptr, *self.deal[1:]) if shared else None,
            out=out,
            lse=lse,
            plan=step.plan,
            kv_len=None if step.plan is not None else step.kv_len,
            batch_invariant=self.batch_invariant,
            workspace=self._workspace,
        )
        return out.flatten(1) if lse is None else (out.flatten(1), lse)

    def _rows(
        self,
        layer: Any,  # noqa: ANN401
        forward_batch: Any,  # noqa: ANN401
        q: Tensor,
        q_rope: Tensor | None,
        k: Tensor | None,
        k_rope: Tensor | None,
    ) -> Tensor:
        """Queries [rows, nhead, head_dim_qk], after new latents went into the pool."""
        nhead, columns = layer.tp_q_head_num, layer.v_head_dim
        if q_rope is None:
            rows = q.reshape(-1, nhead, layer.head_dim)
        elif self._take is not None and k is not None and k_rope is not None:
            return self._take(
                q.view(-1, nhead, columns),
                q_rope.view(-1, nhead, layer.head_dim - columns),
                k.view(-1, 1, columns),
                k_rope.view(-1, 1, layer.head_dim - columns),
                layer.k_scale,
                forward_batch.out_cache_loc,
                self.token_to_kv_pool.get_key_buffer(layer.layer_id),
                self.deal,
            )
        else:
            parts = (q.reshape(-1, nhead, columns), q_rope.reshape(-1, nhead, q_rope.shape[-1]))
            rows = torch.cat(parts, -1)
        if k is not None:
            self._store(layer, forward_batch, k, k_rope)
        return rows

    def _store(self, layer: Any, forward_batch: Any, k: Tensor, k_rope: Tensor | None) -> None:  # noqa: ANN401
        """New latents into the pool, divided by the scale with which they are read."""
        where, columns = KVWriteLoc.for_batch(forward_batch), layer.v_head_dim
        if self.deal.ranks == 1:
            rows = k if k_rope is None else torch.cat([k, k_rope], -1)
            rows = rows if layer.k_scale is None else rows / layer.k_scale
            self.token_to_kv_pool.set_kv_buffer(layer, where, rows, rows[..., :columns])
            return
        # only this entry of the pool knows which of the tokens are this rank's
        parts = (k[..., :columns], k[..., columns:]) if k_rope is None else (k, k_rope)
        if layer.k_scale is not None:
            parts = (parts[0] / layer.k_scale, parts[1] / layer.k_scale)
        self.token_to_kv_pool.set_mla_kv_buffer(layer, where, *parts)

    def forward_extend(
        self,
        q: Tensor,
        k: Tensor | None,
        v: Tensor | None,
        layer: Any,  # noqa: ANN401
        forward_batch: Any,  # noqa: ANN401
        save_kv_cache: bool = True,
        **kwargs: Any,  # noqa: ANN401
    ) -> Any:  # noqa: ANN401
        """Verification and extension of a draft as forward_decode; prefill on another backend."""
        if is_ours(forward_batch.forward_mode):
            return self.forward_decode(q, k, v, layer, forward_batch, save_kv_cache, **kwargs)
        q_rope, k_rope = kwargs.pop("q_rope", None), kwargs.pop("k_rope", None)
        if q_rope is not None:  # SGLang's triton takes them joined
            q = torch.cat([q, q_rope], -1)
            k = k if k is None or k_rope is None else torch.cat([k, k_rope], -1)
        return self._prefill().forward_extend(
            q, k, v, layer, forward_batch, save_kv_cache, **kwargs
        )

    def _prefill(self) -> Any:  # noqa: ANN401
        """SGLang's own backend for prompts, made when the first one comes."""
        if self._extend is None:
            registry = importlib.import_module("sglang.srt.layers.attention.attention_registry")
            name = "torch_native" if self.device.type == "cpu" else "triton"
            logger.info(
                "hipdecode decodes; prefill runs on SGLang's %s backend (another one: "
                "--prefill-attention-backend NAME --decode-attention-backend hipdecode)",
                name,
            )
            self._extend = registry.ATTENTION_BACKENDS[name](self.runner)
        return self._extend

    def _q_len(self, forward_batch: Any) -> int:  # noqa: ANN401
        mode = forward_batch.forward_mode
        if not (mode.is_target_verify() or mode.is_draft_extend_v2()):
            return 1
        if getattr(forward_batch.spec_info, "ragged_verify_layout", None) is not None:
            raise BadArgument(
                "ragged_verify_layout: expected None, got drafts of several lengths in a batch; "
                "choose another --decode-attention-backend"
            )
        return self.num_draft_tokens

    def _fill(
        self,
        into: Buffers,
        forward_batch: Any,  # noqa: ANN401
        q_len: int,
        kv_len: int | None,
        max_kv_len: int | None = None,
    ) -> None:
        """Writes a step's lengths and pages, and its plan where its route walks one."""
        batch = forward_batch.batch_size
        mode = forward_batch.forward_mode
        step = into.step(batch, q_len, kv_len)
        # The lengths of a verification do not count the draft, those of an eager extension count
        # the accepted tokens alone; those of a captured one count all rows already.
        less = None
        if mode.is_draft_extend_v2() and into is self._eager:
            less = forward_batch.extend_seq_lens
        more = q_len if mode.is_target_verify() or less is not None else 0
        pack(
            self.req_to_token,
            forward_batch.req_pool_indices[:batch],
            forward_batch.seq_lens[:batch],
            more,
            less,
            self.deal,
            step,
        )
        if self._walks_a_plan(batch, q_len, kv_len, max_kv_len):
            step.plan = self._planned(step, batch, captured=into is self._graph)
        self.forward_metadata = step

    def _planned(self, step: Step, batch: int, *, captured: bool) -> MlaPlan:
        """The step's plan, in lists of its own for every batch that a graph may hold."""
        key = (batch, step.q_len, captured)
        if not captured and key not in self._plans:
            for other in [kept for kept in self._plans if not kept[2]]:
                del self._plans[other]
        plan = self._plans[key] = plan_mla_decode(
            step.qo_indptr,
            step.kv_indptr,
            nhead=self.nhead,
            max_seqlen_q=step.q_len,
            page_size=self.page_size,
            kv_last_page_lens=step.kv_last_page_lens,
            causal=self.deal.ranks == 1 or step.q_len == 1,  # no key may be left out of a share
            uni_seqlen_qo=step.q_len,
            head_dim_v=self.head_dim_v,
            out=self._plans.get(key),
            workspace=self._workspace,
        )
        return plan

    def _walks_a_plan(
        self, batch: int, q_len: int, kv_len: int | None, max_kv_len: int | None
    ) -> bool:
        route = step_route(
            self.device,
            batch=batch,
            nhead=self.nhead,
            q_len=q_len,
            kv_len=kv_len,
            max_kv_len=max_kv_len,
            dtypes=(self.q_dtype, self.kv_cache_dtype),
            page_size=self.page_size,
            head_dims=(self.head_dim_qk, self.head_dim_v),
            batch_invariant=self.batch_invariant,
        )
        return route == "persistent"

    def _pages(self, tokens: int) -> int:
        return -(-tokens // (self.page_size * self.deal.ranks))

    def _buffers(self, batch: int, pages: int) -> Buffers:
        q_lens = sorted({1, self.num_draft_tokens} - {0})
        return Buffers(batch, pages, q_lens, self.device)

    def _pages_of(self, layer: Any) -> Tensor:  # noqa: ANN401
        rows: Tensor = self.token_to_kv_pool.get_key_buffer(layer.layer_id)
        return rows.view(-1, self.page_size, *rows.shape[1:])

    def _check(self, layer: Any, kwargs: dict[str, object]) -> None:  # noqa: ANN401
        if kwargs:
            asked = [name for name, value in kwargs.items() if value is not None]
            if asked:
                raise BadArgument(f"{', '.join(asked)}: expected None, got a value; leave it out")
        if id(layer) not in self._checked:
            check_layer(layer, self.kv_cache_dtype)
            self._checked.add(id(layer))
