# SPDX-License-Identifier: MIT
"""How little a decode step of transformers' models runs beside the models: every op is a launch."""

import pytest
import torch

pytest.importorskip("transformers", reason="needs the demo extra: pip install 'hipdecode[demo]'")

from hipdecode import dispatch
from hipdecode import target as targets
from hipdecode.integrations.transformers import PagedCache, install
from hipdecode.integrations.transformers.layers import fp8_limits, quantised
from hipdecode.testing.cases import DTYPES
from hipdecode.testing.recorder import Recorder
from hipdecode.testing.tiny_models import tiny_model

FP8 = torch.float8_e4m3fn
BATCH, PROMPT = 3, 20
PARTS = {"deepseek_v3": ((1, 512), (1, 64)), "llama": ((2, 64), (2, 64))}
"""Heads and columns of what a layer hands to the cache."""


def prefilled(kind: str, dtype: torch.dtype, scale: float | None = None) -> PagedCache:
    cache = PagedCache(
        tiny_model(kind).config, batch=BATCH, capacity=64, dtype=dtype,
        kv_scales=None if scale is None else [scale] * 2,
    )  # fmt: skip
    cache.begin(PROMPT)
    for layer in range(2):
        cache.update(*new_tokens(kind, PROMPT), layer)
    return cache


def new_tokens(kind: str, q_len: int) -> list[torch.Tensor]:
    return [
        torch.randn(BATCH, heads, q_len, width, dtype=torch.bfloat16)
        for heads, width in PARTS[kind]
    ]


def launches(recorder: Recorder) -> int:
    return sum("empty" not in op for op in recorder.work)


@pytest.mark.parametrize(("kind", "most"), [("deepseek_v3", 16), ("llama", 6)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, FP8], ids=["bf16", "fp8"])
def test_tables_of_a_decode_step_take_few_launches(kind, most, dtype) -> None:
    cache = prefilled(kind, dtype)
    with Recorder() as recorder:
        cache.begin(1)
    assert launches(recorder) <= most, recorder.work


# A latent and its rotary part are put together first; keys and values lie apart. fp8 is scaled,
# unless by 1, and saturated and converted in one.
@pytest.mark.parametrize(
    ("kind", "dtype", "scale", "most"),
    [
        ("deepseek_v3", torch.bfloat16, None, 2),
        ("deepseek_v3", FP8, None, 3),
        ("deepseek_v3", FP8, 0.5, 4),
        ("llama", torch.bfloat16, None, 2),
        ("llama", FP8, None, 4),
        ("llama", FP8, 0.5, 6),
    ],
)
def test_write_of_a_layer_takes_few_launches(kind, dtype, scale, most) -> None:
    cache, parts = prefilled(kind, dtype, scale), new_tokens(kind, 1)
    cache.begin(1)
    with Recorder() as recorder:
        cache.update(*parts, 0)
    assert launches(recorder) <= most, recorder.work


@torch.no_grad()
def test_layers_of_a_step_share_one_plan(target, device) -> None:
    del target
    model = install(tiny_model().to(device, torch.bfloat16))
    tokens = torch.randint(1, 256, (2, PROMPT), generator=torch.Generator().manual_seed(6))
    tokens = tokens.to(device)
    found, planned = {}, {}
    for counts in (True, False):
        cache = PagedCache(model.config, batch=2, capacity=64, page_size=16, device=device)
        model(input_ids=tokens[:, :-2], past_key_values=cache)
        cache.counts = counts  # False: as in a graph, nobody knows the context
        first = model(input_ids=tokens[:, -2:-1], past_key_values=cache).logits
        with Recorder() as recorder:
            then = model(input_ids=tokens[:, -1:], past_key_values=cache).logits
        found[counts] = torch.cat((first, then), 1).float()
        planned[counts] = sum(op.startswith("hipdecode.mla_plan") for op in recorder.ops)
    assert planned[False] == 1
    assert planned[True] <= 1  # none where the table has the other route
    assert torch.allclose(found[True], found[False], atol=0.05, rtol=0.05)


@torch.no_grad()
def test_ragged_requests_follow_the_plan_that_their_route_asks_for(
    target, device, monkeypatch: pytest.MonkeyPatch
) -> None:
    where = targets.resolve(target)
    if where.compute_units() == 1:
        pytest.skip("one compute unit always takes hk: two threads or a GPU run it")
    monkeypatch.setitem(dispatch.RAGGED_TOKENS, where.family, 512)
    dispatch.clear_route_cache()
    model = install(tiny_model().to(device, torch.bfloat16))
    tokens = torch.randint(1, 256, (2, PROMPT), generator=torch.Generator().manual_seed(7))
    cache = PagedCache(model.config, batch=2, capacity=64, page_size=16, device=device)
    model(input_ids=tokens[:, :-1].to(device), past_key_values=cache)
    cache.counts, cache.kv_len, cache.max_kv_len = False, 20, 100_000
    with Recorder() as recorder:
        model(input_ids=tokens[:, -1:].to(device), past_key_values=cache)
    dispatch.clear_route_cache()
    ran = [op.split(".")[1] for op in recorder.ops if op.startswith("hipdecode")]
    assert ran.count("mla_decode_hk") == 0
    assert ran.count("mla_decode_persistent") == 2


@pytest.mark.parametrize("dtype", [FP8, torch.float8_e4m3fnuz], ids=["e4m3fn", "e4m3fnuz"])
@pytest.mark.parametrize("scale", [None, 0.3])
def test_fp8_rounds_as_torch_does_and_saturates(dtype, scale) -> None:
    values = torch.tensor([0.0, -0.01, 1.06, 100.0, 7e4, -torch.inf], dtype=torch.bfloat16)
    factor = None if scale is None else torch.tensor([scale])
    found = quantised(values, dtype, factor, fp8_limits(dtype, "cpu"))
    limit = torch.finfo(dtype).max
    wanted = (values.float() / (scale or 1)).clamp(-limit, limit).to(dtype)
    assert torch.equal(found.float(), wanted.float())
    assert found[-2].item() == limit
    assert quantised(values * torch.nan, dtype, factor, fp8_limits(dtype, "cpu")).isnan().all()


@pytest.mark.parametrize("dtype", ["bf16", "fp8_e4m3fn"])
def test_weights_that_want_gradients_decode_too(dtype, target, device) -> None:
    del target
    model = install(tiny_model().to(device, torch.bfloat16)).requires_grad_(True)
    cache = PagedCache(model.config, batch=1, capacity=32, dtype=DTYPES[dtype], device=device)
    tokens = torch.arange(1, 9, device=device)[None]
    model(input_ids=tokens, past_key_values=cache)
    assert model(input_ids=tokens[:, :1], past_key_values=cache).logits.isfinite().all()
