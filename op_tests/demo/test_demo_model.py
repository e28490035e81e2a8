# SPDX-License-Identifier: MIT
"""The demo's absorbed attention computes what transformers' own does, on every kind of cache."""

from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor

pytest.importorskip("transformers", reason="needs the demo extra: pip install 'hipdecode[demo]'")

import hipdecode
from hipdecode.demo.model import FOLDER, WEIGHTS, absorb, decode_step, load_model, serve_on
from hipdecode.demo.score import bits_decoded, bits_eager, held_out_rows
from hipdecode.testing.tiny_models import tiny_model

BYTES = 24


def torch_decode(
    q: Tensor,
    kv_buffer: Tensor,
    qo_indptr: Tensor,
    kv_indptr: Tensor,
    kv_indices: Tensor,
    *,
    max_seqlen_q: int,
    kv_last_page_lens: Tensor,
    sm_scale: float,
    **_: object,
) -> Tensor:
    """MLA decode of equally long requests in plain torch, in the dtype of q."""
    pages = int(kv_indptr[1])
    length = (pages - 1) * kv_buffer.shape[1] + int(kv_last_page_lens[0])
    keys = kv_buffer[kv_indices.long()].view(len(kv_indptr) - 1, -1, q.shape[-1])[:, :length]
    rows = q.view(len(keys), max_seqlen_q, *q.shape[1:])
    scores = torch.einsum("bqhd,bkd->bqhk", rows, keys) * sm_scale
    last = length - max_seqlen_q + torch.arange(max_seqlen_q)
    hidden = torch.arange(length) > last[:, None]
    weights = scores.masked_fill(hidden[:, None], -torch.inf).softmax(-1)
    return torch.einsum("bqhk,bkd->bqhd", weights, keys[..., :512]).flatten(0, 1)


def logits_by_steps(model, tokens: Tensor, *, dtype: torch.dtype, q_len: int, **cache) -> Tensor:
    cache = serve_on(model, batch=len(tokens), capacity=BYTES, dtype=dtype, **cache)
    return torch.cat([decode_step(model, cache, part) for part in tokens.split(q_len, 1)], 1)


def relative_error(found: Tensor, wanted: Tensor) -> float:
    return ((found - wanted).norm() / wanted.norm()).item()


@pytest.fixture
def tokens() -> Tensor:
    return torch.randint(0, 256, (3, BYTES), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("q_lora_rank", [16, None])
@pytest.mark.parametrize(("q_len", "page_size"), [(1, 1), (4, 16), (5, 64)])
def test_absorbed_attention_equals_eager_in_fp32(tokens, q_len, page_size, q_lora_rank) -> None:
    wanted = tiny_model(q_lora_rank=q_lora_rank)(input_ids=tokens, use_cache=False).logits
    model = absorb(tiny_model(q_lora_rank=q_lora_rank), torch_decode)
    found = logits_by_steps(model, tokens, dtype=torch.float32, q_len=q_len, page_size=page_size)
    assert relative_error(found, wanted) < 1e-5


@pytest.mark.parametrize(
    ("dtype", "limit"), [(torch.bfloat16, 0.01), (torch.float8_e4m3fn, 0.1)], ids=["bf16", "fp8"]
)
@pytest.mark.parametrize("q_len", [1, 4])
def test_absorbed_attention_on_hipdecode_is_near_eager(tokens, target, dtype, limit, q_len) -> None:
    del target  # skips where the kernels do not run
    wanted = tiny_model()(input_ids=tokens, use_cache=False).logits
    model = absorb(tiny_model(), hipdecode.mla_decode)
    scales = None
    if dtype == torch.float8_e4m3fn:
        logits_by_steps(model, tokens, dtype=torch.bfloat16, q_len=BYTES // 2)
        scales = model.model.layers[0].self_attn.cache.calibrate(dtype)
    found = logits_by_steps(model, tokens, dtype=dtype, q_len=q_len, kv_scales=scales)
    assert relative_error(found, wanted) < limit


def test_weights_are_one_small_file_that_loads() -> None:
    assert [path.name for path in Path(FOLDER).glob("*.safetensors")] == [WEIGHTS]
    assert (FOLDER / WEIGHTS).stat().st_size < 12_000_000
    config = load_model().config
    assert (config.kv_lora_rank, config.qk_rope_head_dim) == (512, 64)
    assert (config.num_attention_heads, config.vocab_size) == (16, 256)


def test_bits_per_byte_on_held_out_text_are_bounded(target) -> None:
    del target
    rows = held_out_rows(8, 64)
    eager = bits_eager(load_model(), rows)
    assert eager < 2.2  # a short context: the demo scores 256 bytes a row
    model = absorb(load_model(), hipdecode.mla_decode)
    cache = serve_on(model, batch=8, capacity=64, dtype=torch.bfloat16)
    assert bits_decoded(partial(decode_step, model, cache), rows, 4) == pytest.approx(
        eager, rel=2e-3
    )


def test_serve_on_wants_scales_for_fp8_alone() -> None:
    model = absorb(tiny_model(), torch_decode)
    with pytest.raises(hipdecode.BadArgument, match="kv_scales: expected them for fp8 alone"):
        serve_on(model, batch=1, capacity=8, dtype=torch.float8_e4m3fn)


def test_decode_step_refuses_more_tokens_than_the_cache_holds(tokens) -> None:
    model = absorb(tiny_model(), torch_decode)
    cache = serve_on(model, batch=3, capacity=16, dtype=torch.float32, page_size=16)
    with pytest.raises(hipdecode.BadArgument, match="at most 16 tokens, got 24"):
        decode_step(model, cache, tokens)
