# SPDX-License-Identifier: MIT
"""transformers' generate() on hipdecode: the trained demo model loaded by its Auto class."""

import pytest
import torch

pytest.importorskip("transformers", reason="needs the clients extra: make test-clients")

from transformers import AutoModelForCausalLM

from hipdecode.demo.model import FOLDER
from hipdecode.errors import BadArgument
from hipdecode.integrations.transformers import NAME, PagedCache, install
from hipdecode.testing.tiny_models import tiny_model

TEXTS = (
    b'def sorted_values(table: dict) -> list:\n    """Return',
    b"The following example shows how to",
    b"import os\n",
)
GREEDY = {"max_new_tokens": 20, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
NEAR_TIE = 0.05
"""Lead in logits below which the rounding of a bf16 cache may rightly turn a choice over."""


@pytest.fixture(scope="module")
def served(target, device):
    """The demo's model as a user loads it, in fp32, prepared for pages."""
    model = AutoModelForCausalLM.from_pretrained(
        FOLDER, attn_implementation=NAME, dtype=torch.float32
    )
    return install(model.eval().to(device))


@pytest.fixture(scope="module")
def eager(device):
    model = AutoModelForCausalLM.from_pretrained(
        FOLDER, attn_implementation="eager", dtype=torch.float32
    )
    return model.eval().to(device)


@pytest.fixture
def padded(device) -> dict[str, torch.Tensor]:
    """Three prompts of different lengths, padded on the left."""
    width = max(map(len, TEXTS))
    rows = [[0] * (width - len(text)) + list(text) for text in TEXTS]
    mask = [[0] * (width - len(text)) + [1] * len(text) for text in TEXTS]
    return {
        "input_ids": torch.tensor(rows, device=device),
        "attention_mask": torch.tensor(mask, device=device),
    }


def cache_for(model, batch: int, **options) -> PagedCache:
    return PagedCache(model.config, batch=batch, capacity=128, device=model.device, **options)


def check_same_text(eager, found, wanted, start: int) -> None:
    """Equal tokens, or eager itself is undecided at the first that differs."""
    for mine, other in zip(found, wanted, strict=True):
        differs = (mine != other).nonzero()
        if len(differs):
            at = int(differs[0])
            real = other[:at][int((other != 0).nonzero()[0]) :]
            best = eager(input_ids=real[None]).logits[0, -1].topk(2).values
            assert best[0] - best[1] < NEAR_TIE, f"token {at - start} of {start} + {len(mine)}"


@pytest.mark.parametrize("page_size", [1, 16, 64])
@torch.no_grad()
def test_generate_gives_eagers_text_for_ragged_prompts(served, eager, padded, page_size) -> None:
    wanted = eager.generate(**padded, **GREEDY)
    cache = cache_for(served, 3, page_size=page_size)
    found = served.generate(**padded, past_key_values=cache, **GREEDY)
    check_same_text(eager, found, wanted, padded["input_ids"].shape[1])
    assert cache.lengths.tolist() == [len(text) + GREEDY["max_new_tokens"] - 1 for text in TEXTS]


@torch.no_grad()
def test_generate_on_an_fp8_cache_is_text_too(served, eager, padded) -> None:
    wanted = eager.generate(**padded, **GREEDY)
    cache = cache_for(served, 3, dtype=torch.float8_e4m3fn, kv_scales=[0.02] * 4)
    found = served.generate(**padded, past_key_values=cache, **GREEDY)
    start = padded["input_ids"].shape[1]
    assert (found[:, start:] == wanted[:, start:]).float().mean() > 0.5
    # nor is a continuation of fp8's own unlikely to eager attention
    scores = eager(input_ids=found, attention_mask=(found != 0).long()).logits
    chosen = scores[:, start - 1 : -1].log_softmax(-1).gather(2, found[:, start:, None])
    assert chosen.mean() > -1.5


@torch.no_grad()
def test_assisted_generation_decodes_several_tokens_a_step(served, eager, device) -> None:
    text = b"for name in names:\n    print(name)\nfor name in names:\n    pri"
    prompt = {"input_ids": torch.tensor([list(text)], device=device)}
    steps = []
    hook = served.model.register_forward_pre_hook(
        lambda _, __, kwargs: steps.append(kwargs["input_ids"].shape[1]), with_kwargs=True
    )
    cache = cache_for(served, 1)
    found = served.generate(**prompt, past_key_values=cache, prompt_lookup_num_tokens=4, **GREEDY)
    hook.remove()
    wanted = eager.generate(**prompt, **GREEDY)
    check_same_text(eager, found, wanted, len(text))
    assert max(steps[1:]) > 1  # or nothing was accepted, and the test shows nothing


@torch.no_grad()
def test_cache_serves_a_second_text_after_reset(served, padded) -> None:
    cache = cache_for(served, 3)
    first = served.generate(**padded, past_key_values=cache, **GREEDY)
    cache.reset()
    assert torch.equal(served.generate(**padded, past_key_values=cache, **GREEDY), first)


@torch.no_grad()
def test_sampling_and_several_texts_of_a_prompt(served, device) -> None:
    prompt = {"input_ids": torch.tensor([list(TEXTS[0])], device=device)}
    found = served.generate(
        **prompt, past_key_values=cache_for(served, 4), do_sample=True, num_return_sequences=4,
        max_new_tokens=8, pad_token_id=0, eos_token_id=None,
    )  # fmt: skip
    assert found.shape == (4, len(TEXTS[0]) + 8)


@torch.no_grad()
def test_beams_are_refused(served, device) -> None:
    prompt = {"input_ids": torch.tensor([list(TEXTS[2])], device=device)}
    with pytest.raises(BadArgument, match="expected greedy search or sampling, got beams"):
        served.generate(
            **prompt, past_key_values=cache_for(served, 2), num_beams=2, max_new_tokens=4,
            pad_token_id=0,
        )  # fmt: skip


@pytest.mark.parametrize("kind", ["deepseek_v3", "llama", "qwen3"])
@torch.no_grad()
def test_random_models_generate_eagers_text(kind, target, device, padded) -> None:
    del target
    moe = {
        "first_k_dense_replace": 1, "n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 1,
        "topk_group": 1, "moe_intermediate_size": 16, "n_shared_experts": 1,
    }  # fmt: skip
    changes = moe if kind == "deepseek_v3" else {}
    eager = tiny_model(kind, **changes).to(device)
    model = install(tiny_model(kind, **changes).to(device))
    wanted = eager.generate(**padded, **GREEDY)
    cache = cache_for(model, 3, page_size=16)
    found = model.generate(**padded, past_key_values=cache, **GREEDY)
    check_same_text(eager, found, wanted, padded["input_ids"].shape[1])
