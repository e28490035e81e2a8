# SPDX-License-Identifier: MIT
"""The step that a graph holds: it carries itself on, and chooses what single steps do."""

import pytest
import torch

pytest.importorskip("transformers", reason="needs the demo extra: pip install 'hipdecode[demo]'")

from test_demo_model import torch_decode as step_by_step

import hipdecode
from hipdecode.demo.generate import continue_prompt, read_prompt
from hipdecode.demo.model import absorb, serve_on
from hipdecode.demo.replay import GreedyStep, replay_prompt, torch_decode
from hipdecode.testing.tiny_models import tiny_model

PROMPT, TOKENS = b"def replayed", 80


def expected() -> bytes:
    model = absorb(tiny_model(), step_by_step)
    cache = serve_on(model, batch=1, capacity=len(PROMPT) + TOKENS, dtype=torch.float32)
    return bytes(continue_prompt(model, cache, PROMPT, TOKENS))


@torch.no_grad()
def test_greedy_step_carries_itself_on_over_page_boundaries() -> None:
    model = absorb(tiny_model(), torch_decode)
    cache = serve_on(model, batch=1, capacity=len(PROMPT) + TOKENS, dtype=torch.float32)
    for buffer in cache.buffers:
        buffer.zero_()
    step = GreedyStep(model, cache)
    step.start(read_prompt(model, cache, PROMPT)[0, -1].argmax(), len(PROMPT))
    for _ in range(TOKENS - 1):
        step()
    want = expected()
    chosen = step.chosen[len(PROMPT) : len(PROMPT) + len(want)].tolist()
    assert bytes(chosen) == want


@pytest.mark.gpu
def test_replays_choose_what_eager_steps_do(gpu: torch.device) -> None:
    room = len(PROMPT) + TOKENS
    model = absorb(tiny_model().to(gpu), hipdecode.mla_decode)
    cache = serve_on(model, batch=1, capacity=room, dtype=torch.bfloat16)
    want = bytes(continue_prompt(model, cache, PROMPT, TOKENS))
    cache = serve_on(model, batch=1, capacity=room, dtype=torch.bfloat16)
    replayed = replay_prompt(model, cache, PROMPT, TOKENS)
    assert replayed.text == want
    assert replayed.tokens_per_s > 0
