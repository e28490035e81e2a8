# SPDX-License-Identifier: MIT
"""Bits per byte on held-out text: by transformers' own attention, and decoded on a paged cache."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from transformers import DeepseekV3ForCausalLM

from hipdecode.demo.text import load_held_out, windows


def held_out_rows(rows: int, length: int, device: torch.device | str = "cpu") -> Tensor:
    """[rows, length + 1] int64 bytes, evenly spaced over the held-out text of this Python."""
    drawn = [list(row) for row in windows(load_held_out(), rows, length + 1)]
    return torch.tensor(drawn, device=device)


@torch.no_grad()
def bits_eager(model: DeepseekV3ForCausalLM, rows: Tensor) -> float:
    """Bits per byte of rows [batch, length + 1], every byte given those before it.

    Args:
        model: from `load_model`.
        rows: int64 bytes; the first of each row is given.
    """
    return _nats(model(input_ids=rows[:, :-1], use_cache=False).logits, rows[:, 1:]) / math.log(2)


def bits_decoded(step: Callable[[Tensor], Tensor], rows: Tensor, q_len: int) -> float:
    """The same number, decoded step by step.

    Args:
        step: takes the next tokens [batch, q_len] of every row and returns their logits.
        rows: as for `bits_eager`.
        q_len: tokens of each request per step.
    """
    given, wanted = rows[:, :-1], rows[:, 1:]
    total = 0.0
    for tokens, next_tokens in zip(
        *(torch.split(part, q_len, 1) for part in (given, wanted)), strict=True
    ):
        total += _nats(step(tokens), next_tokens) * tokens.shape[1]
    return total / given.shape[1] / math.log(2)


def _nats(logits: Tensor, wanted: Tensor) -> float:
    """Mean negative log-likelihood of wanted [batch, length] under logits [batch, length, 256]."""
    flat = logits.double().flatten(0, 1)
    return torch.nn.functional.cross_entropy(flat, wanted.flatten()).item()
