# SPDX-License-Identifier: MIT
"""Greedy continuation of a prompt on a paged cache, and the same question put to eager torch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import DeepseekV3ForCausalLM

from hipdecode.demo.cache import PagedLatentCache
from hipdecode.demo.model import decode_step
from hipdecode.demo.text import SEPARATOR

PREFILL_TOKENS = 16
"""Prompt tokens per step, the most query tokens that a decode call takes."""


@dataclass(frozen=True, slots=True)
class Agreement:
    """How far a continuation is what fp32 eager attention would have chosen.

    Attributes:
        equal: tokens before the first difference.
        total: tokens generated.
        margin: eager's lead of its first choice over its second at the first difference, in logits;
            the smallest lead of all where there is no difference.
    """

    equal: int
    total: int
    margin: float


def read_prompt(model: DeepseekV3ForCausalLM, cache: PagedLatentCache, prompt: bytes) -> Tensor:
    """Logits [1, rows, 256] of the last tokens of a prompt of one byte or more, now cached."""
    for start in range(0, len(prompt), PREFILL_TOKENS):
        chunk = torch.tensor([list(prompt[start : start + PREFILL_TOKENS])], device=cache.device)
        logits = decode_step(model, cache, chunk)
    return logits


def continue_prompt(
    model: DeepseekV3ForCausalLM, cache: PagedLatentCache, prompt: bytes, tokens: int
) -> Iterator[int]:
    """Yields the greedy continuation byte by byte, until `tokens` or the end of the document.

    Args:
        model: from `absorb`, served on `cache`.
        cache: empty, for one request and at least len(prompt) + tokens tokens.
        prompt: one byte or more.
        tokens: bytes to generate at most.
    """
    logits = read_prompt(model, cache, prompt)
    for index in range(tokens):
        token = int(logits[0, -1].argmax())
        yield token
        if token == SEPARATOR[0]:
            return
        if index + 1 < tokens:
            logits = decode_step(model, cache, torch.tensor([[token]], device=cache.device))


@torch.no_grad()
def compare_with_eager(
    model: DeepseekV3ForCausalLM, prompt: bytes, continuation: bytes
) -> Agreement:
    """Checks a greedy continuation with one pass of transformers' own attention over all of it.

    By induction the pass suffices: the first token that differs from eager's choice after the same
    prefix is the first at which eager's own greedy run leaves this one.

    Args:
        model: from `load_model`.
        prompt: what was continued.
        continuation: what was generated.
    """
    text = torch.tensor([list(prompt + continuation)], device=model.device)
    logits = model(input_ids=text[:, :-1], use_cache=False).logits[0, len(prompt) - 1 :]
    best = logits.topk(2, dim=-1)
    margins = best.values[:, 0] - best.values[:, 1]
    differs = (best.indices[:, 0] != text[0, len(prompt) :]).nonzero()
    if differs.numel() == 0:
        return Agreement(len(continuation), len(continuation), margins.min().item())
    first = int(differs[0])
    return Agreement(first, len(continuation), margins[first].item())
