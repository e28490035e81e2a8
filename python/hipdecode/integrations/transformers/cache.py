# SPDX-License-Identifier: MIT
"""A paged cache for transformers' models: latents of MLA layers, keys and values of grouped ones.

One step's page tables are made once, on the device, and every layer uses them. The lengths live on
the device too, so that a graph that holds a step carries itself on from replay to replay.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedConfig
from transformers.cache_utils import Cache

from hipdecode.decode import mla_decode
from hipdecode.errors import BadArgument
from hipdecode.integrations.steps import PageLists, StepPlans, StepShape
from hipdecode.integrations.transformers.layers import (
    FP8_DTYPES,
    GroupedLayer,
    LatentLayer,
    PagedLayer,
    Slots,
    fp8_limits,
)
from hipdecode.support import MAX_Q_LEN

Decode = Callable[..., Tensor]
"""`hipdecode.mla_decode` without the LSE, or something that takes and returns the same."""


@dataclass(frozen=True, slots=True)
class Step:
    """Where the new tokens of one forward pass go, and what they may see.

    Attributes:
        q_len: new tokens of each request, padding included.
        seen: columns before them, as the host counts.
        decodes: the pages are read; else these are the first tokens, or too many for a decode.
        slots: where they are written to, [batch * q_len].
        earlier: slots of all columns before them, [batch, seen]; None where the step decodes.
        lists: qo_indptr, kv_indptr, kv_indices and kv_last_page_lens of `mla_decode`; None where
            no latents are decoded.
        kv_len: average context to route for; None where the host cannot know it.
        lengths: [batch] int32, tokens of each request, the new ones included.
    """

    q_len: int
    seen: int
    decodes: bool
    slots: Slots
    earlier: Slots | None
    lists: tuple[Tensor, Tensor, Tensor, Tensor] | None
    kv_len: int | None
    lengths: Tensor


class PagedCache(Cache):
    """A cache of fixed room in pages, for a model prepared by `install`.

    Requests may be padded on the left; padding is not stored.

    Attributes:
        batch: requests.
        capacity: columns of each request at most, padding included.
        page_size: tokens of a page.
        dtype: of the pages.
        q_dtype: of the queries.
        device: where they lie.
        pages: [batch, pages] int32, page ids in the order of each request's tokens.
        lengths: [batch] int32, tokens of each request so far.
        kv_scales: per layer, two [1] fp32 that dequantise (latents: the first alone; keys, values);
            None where they are 1.
        limits: what pages of fp8 may hold, two fp32 scalars; None for other dtypes.
        decode: what decodes latents, `hipdecode.mla_decode` or something that stands in for it.
        step: the last forward pass's, None before the first.
        paged_layers: the layers.
        latent: columns of a latent that are V; 0 in models with grouped keys.
        head_dim_qk: columns of a latent with its rotary part.
        counts: the host's count of columns is what steps are routed for; not so in a graph, which
            outlives the count of its capture.
        kv_len: average context to route for where the host does not count; None: not known.
        max_kv_len: longest context to route for; None: all are taken to be alike.
    """

    def __init__(
        self,
        config: PreTrainedConfig,
        *,
        batch: int,
        capacity: int,
        dtype: torch.dtype = torch.bfloat16,
        page_size: int = 64,
        kv_scales: Sequence[float | tuple[float, float]] | None = None,
        device: torch.device | str = "cpu",
        decode: Decode | None = None,
    ) -> None:
        """Makes the tables; each layer takes its memory with its first token.

        Args:
            config: of the model.
            batch: requests.
            capacity: columns of each request at most, padding included.
            dtype: bf16, fp16 or a kind of fp8.
            page_size: tokens of a page, a power of two.
            kv_scales: what fp8 is multiplied by, one per layer (grouped keys: one, or a pair for
                keys and values); for fp8 alone, where None is 1.
            device: of the model.
            decode: instead of `hipdecode.mla_decode`, for latents; they may be fp32 then.

        Raises:
            BadArgument: a value is out of range, or the model has layers that pages do not serve.
        """
        _check_room(batch, capacity, page_size)
        _check_dtype(dtype, decode)
        text = config.get_text_config(decoder=True)
        layers = text.num_hidden_layers
        _check_model(text)
        self.latent = int(getattr(text, "kv_lora_rank", None) or 0)
        self.head_dim_qk = self.latent + int(getattr(text, "qk_rope_head_dim", None) or 0)
        self.batch, self.page_size, self.dtype = batch, page_size, dtype
        self.q_dtype = torch.bfloat16 if dtype in FP8_DTYPES else dtype
        self.device = torch.device(device)
        pages = -(-capacity // page_size)
        self.capacity = capacity
        order = torch.arange(batch * pages, dtype=torch.int32, device=device)
        self.pages = order.view(batch, pages)
        self.lengths = torch.zeros(batch, dtype=torch.int32, device=device)
        self._columns = torch.arange(capacity, device=device)
        self._requests = torch.arange(batch + 1, dtype=torch.int32, device=device)
        self._lists = PageLists(batch, pages, page_size, self.device) if self.latent else None
        self.decode: Decode = mla_decode if decode is None else decode  # type: ignore[assignment]
        self.step: Step | None = None
        self._scheduled: Step | None = None
        self._schedule: dict[str, object] = {}
        self._plans: StepPlans | None = None
        self.counts = True
        self.kv_len: int | None = None
        self.max_kv_len: int | None = None
        self.kv_scales = _scales(kv_scales, layers, dtype, self.device)
        self.limits = fp8_limits(dtype, self.device)
        kind = LatentLayer if self.latent else GroupedLayer
        self.paged_layers: list[PagedLayer] = [kind(self, layer) for layer in range(layers)]
        super().__init__(layers=list(self.paged_layers))

    def begin(self, q_len: int, attention_mask: Tensor | None = None) -> Step:
        """Makes room for `q_len` more columns of every request, and the tables of this step.

        Args:
            q_len: new tokens of each request, padding included.
            attention_mask: [batch, columns so far + q_len], 0 where a column is padding; padding
                of a decode step lies left of its tokens.

        Raises:
            BadArgument: the columns do not fit, or the mask is of another shape.
        """
        seen = self.get_seq_length()
        _check_step(self, seen, q_len, attention_mask)
        decodes = q_len == 1 or (seen > 0 and q_len <= MAX_Q_LEN)
        earlier = None
        if seen and not decodes:
            padding = seen - self.lengths[:, None]
            earlier = self._slots((self._columns[:seen] - padding).clamp(min=0))
        slots = self._extend(q_len, attention_mask)
        lists = None
        if self._lists is not None and decodes:
            rows = self._requests if q_len == 1 else self._requests * q_len
            lists = rows, *self._lists.fill(self.pages, self.lengths, self.capacity)
        self.step = Step(
            q_len=q_len,
            seen=seen,
            decodes=decodes,
            slots=slots,
            earlier=earlier,
            lists=lists,
            kv_len=seen + q_len if self.counts else self.kv_len,
            lengths=self.lengths,
        )
        return self.step

    def schedule(self, nhead: int) -> dict[str, object]:
        """Options of `mla_decode` that all layers of a step share: a plan, where they walk one."""
        assert self.step is not None
        if self._scheduled is not self.step:
            self._schedule = self._plan(self.step, nhead) if self.decode is mla_decode else {}
            self._scheduled = self.step
        return self._schedule

    def crop(self, tokens_to_remove: int) -> None:
        """Forgets the newest -tokens_to_remove tokens of every request (0 or less).

        Raises:
            BadArgument: a count above 0.
        """
        if tokens_to_remove > 0:
            raise BadArgument(
                f"tokens_to_remove: expected 0 or less, got {tokens_to_remove}; negate it"
            )
        super().crop(tokens_to_remove)
        self.lengths.add_(tokens_to_remove).clamp_(min=0)

    def calibrate(self, dtype: torch.dtype, headroom: float = 4.0) -> list[tuple[float, float]]:
        """Scales for an fp8 cache of the same model, one pair per layer; reads the tokens here.

        Args:
            dtype: the kind of fp8.
            headroom: how much larger than the largest value here another text's may be. fp8 loses
                nothing by it.
        """
        columns = self._columns[: int(self.lengths.max())]
        slots = self._slots(torch.minimum(columns, (self.lengths - 1).clamp(min=0)[:, None]))
        factor = headroom / torch.finfo(dtype).max
        scales = []
        for layer in self.paged_layers:
            found = layer.read(slots, torch.float32)
            first, second = (max(part.abs().max().item(), 1e-6) * factor for part in found)
            # a latent and its rotary part lie in one row
            scales.append((max(first, second),) * 2 if self.latent else (first, second))
        return scales

    def reset(self) -> None:
        """Forgets all tokens; memory and tables stay where they are."""
        super().reset()  # type: ignore[no-untyped-call]
        self.lengths.zero_()
        self.step = None

    @property
    def batch_size(self) -> int:
        """Requests."""
        return self.batch

    def _plan(self, step: Step, nhead: int) -> dict[str, object]:
        if self._plans is None:
            self._plans = StepPlans(
                max_batch=self.batch,
                nhead=nhead,
                head_dim_qk=self.head_dim_qk,
                head_dim_v=self.latent,
                page_size=self.page_size,
                q_dtype=self.q_dtype,
                kv_dtype=self.dtype,
                device=self.device,
            )
        assert step.lists is not None
        shape = StepShape(self.batch, step.q_len, causal=True)
        rows, lists = step.lists[0], step.lists[1:]
        if step.kv_len is not None:
            plan = self._plans.follow(shape, rows, lists, step.kv_len, self.max_kv_len)
            return {} if plan is None else {"route": "persistent", "plan": plan}
        # nobody knows the context: a plan is right at any, in a graph and before its capture
        self._plans.capture(shape, rows, lists)
        plan = self._plans.follow(shape, rows, lists, kv_len=1)
        return {"route": "persistent", "plan": plan}

    def _extend(self, q_len: int, attention_mask: Tensor | None) -> Slots:
        """Lengthens the requests; slots of the new columns, padding on a page that none has."""
        if attention_mask is None:
            positions = self.lengths[:, None] + self._columns[:q_len]
            self.lengths.add_(q_len)
            pages, places = self._slots(positions)
        else:
            new = attention_mask[:, -q_len:].to(self.device, torch.bool)
            counts = new.cumsum(1)
            positions = self.lengths[:, None] + counts - 1
            self.lengths.add_(counts[:, -1])
            pages, places = self._slots(positions.clamp(min=0))
            pages.masked_fill_(~new, self.pages.numel())
        return pages.flatten(), places.flatten()

    def _slots(self, positions: Tensor) -> Slots:
        """Slots of positions [batch, n] int64 of each request."""
        pages = self.pages.gather(1, positions // self.page_size)
        return pages.long(), positions % self.page_size


def _scales(
    given: Sequence[float | tuple[float, float]] | None,
    layers: int,
    dtype: torch.dtype,
    device: torch.device,
) -> list[tuple[Tensor, Tensor]] | None:
    if given is None:
        return None
    if dtype not in FP8_DTYPES:
        raise BadArgument(f"kv_scales: expected None beside {dtype}, got some; leave them out")
    pairs = [pair if isinstance(pair, tuple) else (pair, pair) for pair in given]
    if len(pairs) != layers or not all(value > 0 for pair in pairs for value in pair):
        raise BadArgument(f"kv_scales: expected {layers} numbers above 0, got {list(given)}")
    return [
        (torch.tensor([first], device=device), torch.tensor([second], device=device))
        for first, second in pairs
    ]


def _check_room(batch: int, capacity: int, page_size: int) -> None:
    for name, value in (("batch", batch), ("capacity", capacity), ("page_size", page_size)):
        if not isinstance(value, int) or value < 1:
            raise BadArgument(f"{name}: expected an integer of 1 or more, got {value!r}")
    if page_size & (page_size - 1) or page_size > 1024:
        raise BadArgument(f"page_size: expected a power of two 1..1024, got {page_size}; use 64")


def _check_dtype(dtype: torch.dtype, decode: Decode | None) -> None:
    exact = () if decode is None else (torch.float32,)
    if dtype not in (torch.bfloat16, torch.float16, *FP8_DTYPES, *exact):
        raise BadArgument(f"dtype: expected bf16, fp16 or fp8 e4m3, got {dtype}; use bfloat16")


def _check_model(config: PreTrainedConfig) -> None:
    kinds = set(getattr(config, "layer_types", None) or ()) - {"full_attention"}
    if getattr(config, "layer_types", None) is None and getattr(config, "sliding_window", None):
        kinds.add("sliding_attention")
    if getattr(config, "index_topk", None) is not None:
        kinds.add("sparse attention")
    if kinds:
        raise BadArgument(
            f"config: expected a model with full attention alone, got {', '.join(sorted(kinds))}; "
            "give this model transformers' own cache"
        )


def _check_step(cache: PagedCache, seen: int, q_len: int, mask: Tensor | None) -> None:
    if seen + q_len > cache.capacity:
        raise BadArgument(
            f"capacity: expected room for {seen + q_len} tokens, got {cache.capacity}; make a "
            "larger PagedCache"
        )
    if mask is not None and mask.shape != (cache.batch, seen + q_len):
        raise BadArgument(
            f"attention_mask: expected [{cache.batch}, {seen + q_len}], got {list(mask.shape)}"
        )
