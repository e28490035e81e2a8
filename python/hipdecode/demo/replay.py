# SPDX-License-Identifier: MIT
"""Greedy text on a GPU: one decode step captured as a graph, replayed for every byte.

The step carries itself on. It reads the byte that the step before has chosen, computes its place in
the cache from a position on the device, and leaves the next byte and position behind: between two
replays the host does nothing.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from transformers import DeepseekV3ForCausalLM

from hipdecode.demo.cache import PagedLatentCache, Step
from hipdecode.demo.generate import read_prompt
from hipdecode.demo.model import next_logits
from hipdecode.demo.text import SEPARATOR

WARM_UP = 3
"""Steps before the capture: libraries choose their kernels and allocate in the first ones."""


@dataclass(frozen=True, slots=True)
class Replayed:
    """A continuation made by replays.

    Attributes:
        text: up to the end of the document, or as long as was asked for.
        tokens_per_s: bytes per second over all replays, prompt and capture left out.
    """

    text: bytes
    tokens_per_s: float


class GreedyStep:
    """One step of greedy decoding of one request, on tensors that keep their places."""

    def __init__(self, model: DeepseekV3ForCausalLM, cache: PagedLatentCache) -> None:
        """Makes the tables of the step; `start` gives them their first contents.

        Args:
            model: from `absorb`, served on `cache`.
            cache: of one request.
        """
        self._model, self._cache = model, cache
        i32 = partial(torch.zeros, dtype=torch.int32, device=cache.device)
        i64 = partial(torch.zeros, dtype=torch.int64, device=cache.device)
        self._token, self._position = i64(1, 1), i64(1, 1)
        self.chosen = i64(cache.capacity + 1)
        self._step = Step(
            q_len=1,
            kv_len=cache.capacity,
            slots=i64(1),
            qo_indptr=torch.arange(2, dtype=torch.int32, device=cache.device),
            kv_indptr=i32(2),
            kv_indices=cache.pages.flatten().contiguous(),
            kv_last_page_lens=i32(1),
        )

    def start(self, token: Tensor, position: int) -> None:
        """The byte to read first, and its place in the text."""
        self._token.copy_(token.view(1, 1))
        self._position.fill_(position)
        self.chosen[position] = token

    def __call__(self) -> None:
        """Reads one byte and chooses the next."""
        position, size = self._position.flatten(), self._cache.page_size
        page, within = position // size, position % size
        step = self._step
        step.slots.copy_(step.kv_indices[page].long() * size + within)
        step.kv_indptr[1:].copy_(page + 1)
        step.kv_last_page_lens.copy_(within + 1)
        self._cache.step = step
        logits = next_logits(self._model, self._token, self._position)
        best = logits[0, -1:].argmax(-1)
        self.chosen.index_copy_(0, position + 1, best)
        self._token.copy_(best.view(1, 1))
        self._position.add_(1)


@torch.no_grad()
def replay_prompt(
    model: DeepseekV3ForCausalLM, cache: PagedLatentCache, prompt: bytes, tokens: int
) -> Replayed:
    """The greedy continuation, as `continue_prompt`, by graph replays on the current device.

    Args:
        model: from `absorb`, served on `cache`.
        cache: empty, for one request and at least len(prompt) + tokens tokens, on a GPU.
        prompt: one byte or more.
        tokens: bytes to generate at most.
    """
    first = read_prompt(model, cache, prompt)[0, -1].argmax()
    step = GreedyStep(model, cache)
    # One stream for both: what a warm-up allocates is kept for the stream that it ran on.
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(WARM_UP):
            step.start(first, len(prompt))
            step()
    stream.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        step()
    step.start(first, len(prompt))
    torch.cuda.synchronize()
    cache.steps[1, cache.capacity] += tokens - 1
    begin = time.perf_counter()
    for _ in range(tokens - 1):
        graph.replay()
    torch.cuda.synchronize()
    seconds = time.perf_counter() - begin
    text = bytes(step.chosen[len(prompt) : len(prompt) + tokens].tolist())
    end = text.find(SEPARATOR)
    return Replayed(text if end < 0 else text[: end + 1], (tokens - 1) / max(seconds, 1e-9))


def torch_decode(
    q: Tensor,
    kv_buffer: Tensor,
    qo_indptr: Tensor,
    kv_indptr: Tensor,
    kv_indices: Tensor,
    *,
    max_seqlen_q: int,
    kv_last_page_lens: Tensor | None,
    sm_scale: float | None,
    kv_scale: Tensor | None,
    kv_len: int | None,
) -> Tensor:
    """MLA decode of one request in plain torch, bf16 products, that a graph can hold.

    Its shapes are those of the capacity; what lies beyond the length is masked, and must be
    numbers. Arguments as of `hipdecode.mla_decode`.
    """
    del qo_indptr, kv_len
    assert kv_last_page_lens is not None
    keys = kv_buffer[kv_indices].flatten(0, 2)
    if kv_scale is not None:
        keys = keys.to(q.dtype) * kv_scale.to(q.dtype)
    length = (kv_indptr[1] - 1) * kv_buffer.shape[1] + kv_last_page_lens[0]
    back = torch.arange(max_seqlen_q, device=q.device) - max_seqlen_q
    seen = torch.arange(keys.shape[0], device=q.device) <= (length + back)[:, None]
    rows, nhead, width = q.shape
    scale = width**-0.5 if sm_scale is None else sm_scale
    scores = (q.flatten(0, 1) @ keys.T).float().view(rows, nhead, -1) * scale
    weights = scores.masked_fill(~seen[:, None], -torch.inf).softmax(-1)
    return (weights.to(q.dtype).flatten(0, 1) @ keys[:, :512]).view(rows, nhead, 512)
