# SPDX-License-Identifier: MIT
"""A decode step of a transformers model as a graph: captured once, replayed for every token."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor
from transformers import PreTrainedModel

from hipdecode.errors import BadArgument
from hipdecode.integrations.transformers.cache import PagedCache

WARM_UP = 3
"""Steps before the capture: libraries choose their kernels and allocate in the first ones."""


class DecodeGraph:
    """Decode steps of one model on one cache, whose tokens the replays count on the device.

    The cache may hold any number of tokens when the graph is made, and be reset, cropped or
    prefilled between replays.
    """

    @torch.no_grad()
    def __init__(
        self,
        model: PreTrainedModel,
        cache: PagedCache,
        *,
        q_len: int = 1,
        kv_len: int | None = None,
        max_kv_len: int | None = None,
    ) -> None:
        """Runs the step a few times and captures it; the cache is then as it was before.

        Args:
            model: prepared by `install`, on a GPU.
            cache: of the same device, with room for q_len more tokens and, unless q_len is 1, some
                tokens in it.
            q_len: tokens of each request per step, 1..16.
            kv_len: average context to expect in the replays; it influences the route alone.
            max_kv_len: longest context to expect, likewise; None: all are alike.

        Raises:
            BadArgument: the cache is not on a GPU, or its next step would be no decode.
        """
        if cache.device.type != "cuda":
            raise BadArgument(
                f"cache: expected one on a GPU, got {cache.device}; call the model itself"
            )
        if not 1 <= q_len <= 16 or (q_len > 1 and cache.get_seq_length() == 0):
            raise BadArgument(
                f"q_len: expected 1, or 1..16 with tokens in the cache, got {q_len} after "
                f"{cache.get_seq_length()} tokens; prefill first"
            )
        self._cache, self._q_len = cache, q_len
        self._tokens = torch.zeros((cache.batch, q_len), dtype=torch.int64, device=cache.device)
        self._ahead = torch.arange(q_len, device=cache.device)
        self._model = model
        seen, lengths = cache.get_seq_length(), cache.lengths.clone()
        cache.counts, cache.kv_len, cache.max_kv_len = False, kv_len, max_kv_len
        try:
            self._capture(seen, lengths)
        finally:
            cache.counts, cache.kv_len, cache.max_kv_len = True, None, None
            self._rewind(seen, lengths)
        torch.cuda.synchronize(cache.device)

    def __call__(self, tokens: Tensor) -> Tensor:
        """Decodes the next tokens of every request.

        Args:
            tokens: [batch, q_len] int64.

        Returns:
            [batch, q_len, vocabulary], overwritten by the next call.

        Raises:
            BadArgument: the cache is full.
        """
        columns = self._cache.get_seq_length() + self._q_len
        if columns > self._cache.capacity:
            raise BadArgument(
                f"capacity: expected room for {columns} tokens, got {self._cache.capacity}; make "
                "a larger PagedCache"
            )
        self._tokens.copy_(tokens)
        self._graph.replay()
        for layer in self._cache.paged_layers:
            layer.seen = columns
        return self.logits

    def _capture(self, seen: int, lengths: Tensor) -> None:
        """Makes the graph, after a few steps on the stream of the capture."""
        device = self._cache.device
        stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(stream):
            for _ in range(WARM_UP):
                self._step()
                self._rewind(seen, lengths)
        stream.synchronize()
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph, stream=stream):
            self.logits = self._step()

    def _step(self) -> Tensor:
        positions = self._cache.lengths[:, None] + self._ahead
        out = self._model(
            input_ids=self._tokens, position_ids=positions, past_key_values=self._cache
        )
        return cast(Tensor, out.logits)

    def _rewind(self, seen: int, lengths: Tensor) -> None:
        for layer in self._cache.paged_layers:
            layer.seen = seen
        self._cache.lengths.copy_(lengths)
