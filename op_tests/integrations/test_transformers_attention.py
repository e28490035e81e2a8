# SPDX-License-Identifier: MIT
"""transformers' attention function and paged cache, on small models of its own classes."""

import pytest
import torch

pytest.importorskip("transformers", reason="needs the demo extra: pip install 'hipdecode[demo]'")

from hipdecode.errors import BadArgument, UnsupportedShape
from hipdecode.integrations.transformers import DecodeGraph, PagedCache, attention, install
from hipdecode.testing import reference
from hipdecode.testing.tiny_models import tiny_model

LENGTHS = (24, 9, 17)
PAD = [max(LENGTHS) - length for length in LENGTHS]


def exact_decode(q, kv_buffer, *tables, kv_len, **options):
    """The fp64 oracle in the place of the kernels."""
    del kv_len
    return reference.mla_decode(q, kv_buffer, *tables, **options).o.to(q.dtype)


def prompts() -> tuple[torch.Tensor, torch.Tensor]:
    """Three requests of 24, 9 and 17 tokens, padded on the left, and their mask."""
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(1, 256, (3, max(LENGTHS)), generator=generator)
    mask = torch.ones_like(tokens)
    for request, padding in enumerate(PAD):
        mask[request, :padding] = 0
    return tokens, mask


def logits_by_steps(model, cache, steps: tuple[int, ...]) -> torch.Tensor:
    """Logits of all columns; the first step holds the padding."""
    tokens, mask = prompts()
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    start, found = 0, []
    for length in steps:
        part = slice(start, start + length)
        out = model(
            input_ids=tokens[:, part], attention_mask=mask[:, : start + length],
            position_ids=positions[:, part], past_key_values=cache,
        )  # fmt: skip
        found.append(out.logits)
        start += length
    return torch.cat(found, 1)


def eager_logits(model) -> torch.Tensor:
    tokens, mask = prompts()
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    return model(input_ids=tokens, attention_mask=mask, position_ids=positions).logits


def relative_error(found: torch.Tensor, wanted: torch.Tensor) -> float:
    """Over the columns that are no padding."""
    real = prompts()[1].bool()
    return ((found - wanted)[real].norm() / wanted[real].norm()).item()


def poison(cache: PagedCache) -> None:
    """Fills all pages with NaN, and puts them in another order."""
    for layer in cache.paged_layers:
        for pool in (getattr(layer, name, None) for name in ("pool", "key_pool", "value_pool")):
            if pool is not None:
                pool.copy_(torch.full(pool.shape, torch.nan).to(pool.dtype))
    order = torch.randperm(cache.pages.numel(), generator=torch.Generator().manual_seed(3))
    cache.pages.copy_(order.view(cache.pages.shape))


# Prefill of 20 columns, then one, several, and more tokens than a decode takes.
@pytest.mark.parametrize("steps", [(20, 1, 1, 1, 1), (20, 4), (16, 3, 5), (24,)])
@pytest.mark.parametrize("kind", ["deepseek_v3", "deepseek_v2"])
@pytest.mark.parametrize("page_size", [1, 16])
@torch.no_grad()
def test_absorbed_attention_equals_eager_in_fp32(kind, steps, page_size) -> None:
    model = install(tiny_model(kind))
    cache = PagedCache(
        model.config, batch=3, capacity=24, page_size=page_size, dtype=torch.float32,
        decode=exact_decode,
    )  # fmt: skip
    logits_by_steps(model, cache, steps)
    cache.reset()
    poison(cache)
    found = logits_by_steps(model, cache, steps)
    assert relative_error(found, eager_logits(tiny_model(kind))) < 1e-5
    assert cache.lengths.tolist() == list(LENGTHS)


@torch.no_grad()
def test_long_continuation_reads_the_pages_back() -> None:
    model = install(tiny_model())
    tokens = torch.randint(1, 256, (2, 40), generator=torch.Generator().manual_seed(2))
    wanted = tiny_model()(input_ids=tokens).logits
    cache = PagedCache(model.config, batch=2, capacity=40, dtype=torch.float32, decode=exact_decode)
    found = [model(input_ids=part, past_key_values=cache).logits for part in tokens.split(20, 1)]
    assert torch.allclose(torch.cat(found, 1), wanted, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("dtype", "limit"), [("bf16", 0.02), ("fp8_e4m3fn", 0.12)], ids=["bf16", "fp8"]
)
@pytest.mark.parametrize("kind", ["deepseek_v3", "llama", "qwen3"])
@torch.no_grad()
def test_decode_on_pages_is_near_eager(kind, dtype, limit, target, device) -> None:
    del target  # skips where the kernels do not run
    if device.type != "cpu":
        pytest.skip("compares with eager fp32 on the CPU; a CPU target runs it")
    model = install(tiny_model(kind))
    fp8 = dtype != "bf16"
    cache = PagedCache(
        model.config, batch=3, capacity=32, page_size=16,
        dtype=torch.float8_e4m3fn if fp8 else torch.bfloat16,
        kv_scales=[0.05, 0.04] if fp8 else None,
    )  # fmt: skip
    logits_by_steps(model, cache, (20, 1, 3))
    cache.reset()
    poison(cache)
    found = logits_by_steps(model, cache, (20, 1, 3))
    assert relative_error(found, eager_logits(tiny_model(kind))) < limit


@torch.no_grad()
def test_installed_model_with_another_cache_computes_as_before() -> None:
    model = install(install(tiny_model()))
    tokens, _ = prompts()
    wanted = tiny_model()(input_ids=tokens)
    assert torch.allclose(model(input_ids=tokens).logits, wanted.logits, atol=1e-4)
    first = model(input_ids=tokens[:, :20], use_cache=True)
    then = model(input_ids=tokens[:, 20:], past_key_values=first.past_key_values)
    assert torch.allclose(then.logits, wanted.logits[:, 20:], atol=1e-4)


@torch.no_grad()
def test_crop_takes_back_what_was_decoded() -> None:
    model = install(tiny_model())
    tokens = torch.randint(1, 256, (1, 20), generator=torch.Generator().manual_seed(4))
    cache = PagedCache(
        model.config, batch=1, capacity=24, page_size=16, dtype=torch.float32, decode=exact_decode
    )
    model(input_ids=tokens[:, :14], past_key_values=cache)
    wrong = torch.full((1, 6), 7)
    model(input_ids=wrong, past_key_values=cache)
    cache.crop(-6)
    found = model(input_ids=tokens[:, 14:], past_key_values=cache).logits
    wanted = tiny_model()(input_ids=tokens).logits[:, 14:]
    assert torch.allclose(found, wanted, atol=1e-4, rtol=1e-4)
    with pytest.raises(BadArgument, match="tokens_to_remove: expected 0 or less, got 2"):
        cache.crop(2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch": 0}, "batch: expected an integer of 1 or more"),
        ({"capacity": "8"}, "capacity: expected an integer of 1 or more"),
        ({"page_size": 48}, r"page_size: expected a power of two 1\.\.1024, got 48"),
        ({"dtype": torch.int8}, "dtype: expected bf16, fp16 or fp8"),
        ({"dtype": torch.float32}, "dtype: expected bf16, fp16 or fp8"),
        ({"kv_scales": [1.0, 1.0]}, "kv_scales: expected None beside torch.bfloat16"),
        (
            {"kv_scales": [1.0, 0.0], "dtype": torch.float8_e4m3fn},
            "kv_scales: expected 2 numbers above 0",
        ),
        ({"kv_scales": [1.0], "dtype": torch.float8_e4m3fn}, "kv_scales: expected 2 numbers"),
    ],
)
def test_cache_names_the_argument_that_is_wrong(changes, message) -> None:
    with pytest.raises(BadArgument, match=message):
        PagedCache(tiny_model().config, **{"batch": 1, "capacity": 8, **changes})


@torch.no_grad()
def test_call_names_the_argument_that_is_wrong() -> None:
    model = install(tiny_model())
    tokens, mask = prompts()
    with pytest.raises(BadArgument, match="input_ids: expected 2 requests, as the cache has, got"):
        model(input_ids=tokens, past_key_values=PagedCache(model.config, batch=2, capacity=24))
    with pytest.raises(BadArgument, match="capacity: expected room for 24 tokens, got 16"):
        model(input_ids=tokens, past_key_values=PagedCache(model.config, batch=3, capacity=16))
    cache = PagedCache(model.config, batch=3, capacity=24)
    with pytest.raises(BadArgument, match=r"attention_mask: expected \[3, 24\], got \[3, 20\]"):
        model(input_ids=tokens, attention_mask=mask[:, :20], past_key_values=cache)
    with pytest.raises(BadArgument, match=r"attention_mask: expected .* with a PagedCache"):
        model(input_ids=tokens, attention_mask=mask[:, None, None], past_key_values=cache)
    with pytest.raises(BadArgument, match="expected greedy search or sampling, got beams"):
        cache.reorder_cache(torch.tensor([0]))


@torch.no_grad()
def test_model_that_was_not_installed_is_refused() -> None:
    model = tiny_model()
    cache = PagedCache(model.config, batch=3, capacity=24)
    with pytest.raises(BadArgument, match=r"call hipdecode\.integrations\.transformers\.install"):
        model(input_ids=prompts()[0], past_key_values=cache)


@torch.no_grad()
@pytest.mark.parametrize(
    ("kind", "changes"),
    [("deepseek_v3", {"kv_lora_rank": 256}), ("llama", {"head_dim": 32})],
)
def test_widths_without_a_kernel_are_refused(kind, changes) -> None:
    model = install(tiny_model(kind, **changes))
    cache = PagedCache(model.config, batch=3, capacity=24)
    with pytest.raises(UnsupportedShape, match=r"expected one of .*give this model transformers'"):
        model(input_ids=prompts()[0], past_key_values=cache)


def test_sliding_window_is_refused() -> None:
    config = tiny_model("qwen3", use_sliding_window=True, sliding_window=8, max_window_layers=0)
    with pytest.raises(BadArgument, match="full attention alone, got sliding_attention"):
        PagedCache(config.config, batch=1, capacity=8)
    key = torch.zeros(1, 1, 1, 64)
    key.hipdecode_layer = object()
    with pytest.raises(BadArgument, match="sliding_window: expected None with a PagedCache, got 8"):
        attention(torch.nn.Module(), key, key, key, None, sliding_window=8)


def test_quantised_up_projection_is_refused() -> None:
    model = tiny_model()
    projection = model.model.layers[1].self_attn.kv_b_proj
    projection.weight = torch.nn.Parameter(
        projection.weight.to(torch.float8_e4m3fn), requires_grad=False
    )
    with pytest.raises(BadArgument, match=r"layers\.1\.self_attn\.kv_b_proj: expected a linear"):
        install(model)


def test_latent_attention_of_another_form_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model()
    monkeypatch.delattr(type(model.model.layers[0].self_attn), "expand_kv")
    with pytest.raises(BadArgument, match="expected latent attention with a method expand_kv"):
        install(model)


def test_graph_wants_a_gpu() -> None:
    model = install(tiny_model())
    cache = PagedCache(model.config, batch=1, capacity=8)
    with pytest.raises(BadArgument, match="cache: expected one on a GPU, got cpu"):
        DecodeGraph(model, cache)


@pytest.mark.gpu
@pytest.mark.parametrize("kind", ["deepseek_v3", "llama"])
@torch.no_grad()
def test_replayed_steps_equal_eager_ones(kind, target, device) -> None:
    del target
    if device.type != "cuda":
        pytest.skip("captures a graph: an NVIDIA or AMD GPU runs it")
    model = install(tiny_model(kind).to(device))
    tokens = torch.randint(1, 256, (2, 150), generator=torch.Generator().manual_seed(5)).to(device)
    wanted = tiny_model(kind).to(device)(input_ids=tokens).logits[:, 20:]
    cache = PagedCache(model.config, batch=2, capacity=150, page_size=16, device=device)
    model(input_ids=tokens[:, :20], past_key_values=cache)
    step = DecodeGraph(model, cache)
    found = torch.cat([step(part).clone() for part in tokens[:, 20:].split(1, 1)], 1)
    assert ((found - wanted).norm() / wanted.norm()).item() < 0.02
    with pytest.raises(BadArgument, match="capacity: expected room for 151 tokens, got 150"):
        step(tokens[:, :1])
