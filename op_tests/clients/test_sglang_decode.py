# SPDX-License-Identifier: MIT
"""Decode and verification under SGLang's RadixAttention, ForwardBatch and latent pool."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("sglang", reason="needs the clients extra: make test-clients")

from sglang_engine import ATTENTION_BACKENDS, NAME, Engine, ForwardBatch, ForwardMode

from hipdecode.errors import BadArgument
from hipdecode.testing.calls import captured

RAGGED = (1, 15, 16, 17, 63, 500)  # around the edges of pages and tiles
CACHES = {"bf16": {}, "fp8": {"fp8": True}, "fp8 scaled": {"fp8": True, "k_scale": 0.05}}


def run(engine: Engine, mode: ForwardMode, kv_lens: tuple[int, ...], target: str) -> None:
    """One eager step, compared."""
    q_len = engine.drafts or 1
    rows = engine.serve(kv_lens)
    batch = engine.batch(mode, kv_lens, rows, q_len)
    q, k = engine.inputs(len(kv_lens) * q_len)
    engine.backend.init_forward_metadata(batch)
    engine.check(engine.attend(batch, q, k), q, kv_lens, rows, target)


@pytest.mark.parametrize("page_size", [1, 64])
@pytest.mark.parametrize("cache", CACHES)
def test_decode_matches_fp64(cache: str, page_size: int, target: str, device) -> None:
    engine = Engine(device, page_size=page_size, **CACHES[cache])
    run(engine, ForwardMode.DECODE, RAGGED, target)
    run(engine, ForwardMode.DECODE, (640,), target)


@pytest.mark.parametrize("nhead", [8, 12, 128])
def test_any_number_of_heads_decodes(nhead: int, target: str, device) -> None:
    run(Engine(device, nhead=nhead), ForwardMode.DECODE, (33, 130), target)


@pytest.mark.parametrize("page_size", [1, 16])
@pytest.mark.parametrize(("drafts", "cache"), [(2, "bf16"), (4, "fp8 scaled"), (7, "fp8")])
def test_each_row_of_a_verification_sees_its_own_prefix(
    drafts: int, cache: str, page_size: int, target: str, device
) -> None:
    engine = Engine(device, drafts=drafts, page_size=page_size, **CACHES[cache])
    run(engine, ForwardMode.TARGET_VERIFY, (drafts, 65, 300, 64 + drafts), target)


def test_extension_of_a_draft_sees_the_accepted_tokens_and_its_window(target: str, device) -> None:
    engine, window, accepted = Engine(device, drafts=3), 3, (1, 3, 2)
    kv_lens = (40, 130, 5)  # with the whole window, as the rows of the step are
    rows = engine.serve(kv_lens)
    batch = engine.batch(ForwardMode.DRAFT_EXTEND_V2, kv_lens, rows, window)
    batch.extend_seq_lens = torch.tensor(accepted, device=device)
    batch.seq_lens = batch.seq_lens - window + batch.extend_seq_lens
    q, k = engine.inputs(len(kv_lens) * window)
    engine.backend.init_forward_metadata(batch)
    engine.check(engine.attend(batch, q, k), q, kv_lens, rows, target)


@pytest.mark.parametrize("drafts", [0, 4])
@pytest.mark.parametrize("page_size", [1, 64])
def test_replay_follows_new_lengths_and_padding_requests(
    page_size: int, drafts: int, target: str, device
) -> None:
    """Captured at the fill value, replayed at other lengths with the last requests padding."""
    engine, q_len = Engine(device, page_size=page_size, drafts=drafts, fp8=True), drafts or 1
    mode = ForwardMode.TARGET_VERIFY if drafts else ForwardMode.DECODE
    size, fill = 6, engine.backend.get_cuda_graph_seq_len_fill_value()
    engine.backend.init_cuda_graph_state(size, size * q_len)
    static = padded_batch(engine, mode, size, fill, q_len)
    q, k = engine.inputs(size * q_len)
    engine.backend.init_forward_metadata_out_graph(static, in_capture=True)
    result: list[torch.Tensor] = []

    def step() -> None:
        engine.backend.init_forward_metadata_in_graph(static)
        result[:] = [engine.attend(static, q, k)]

    replay = captured(step, device)
    for kv_lens in ((600, 20, 7), (64 + q_len, 63, 640, 16, 5, 129), (8,)):
        rows = engine.serve(kv_lens)
        live = engine.batch(mode, kv_lens, rows, q_len)
        for name, padding in (("req_pool_indices", 0), ("seq_lens", fill), ("out_cache_loc", 0)):
            buffer, new = getattr(static, name), getattr(live, name)
            buffer.fill_(padding)
            buffer[: len(new)] = new
        new_q, new_k = engine.inputs(size * q_len)
        q.copy_(new_q)
        k.copy_(new_k)
        addresses = buffers(engine)
        engine.backend.init_forward_metadata_out_graph(static)
        assert buffers(engine) == addresses
        replay()
        count = len(kv_lens) * q_len
        engine.check(result[0][:count], q[:count], kv_lens, rows, target)


def padded_batch(
    engine: Engine, mode: ForwardMode, size: int, fill: int, q_len: int
) -> ForwardBatch:
    """What SGLang captures: every request padding."""
    return ForwardBatch(
        forward_mode=mode,
        batch_size=size,
        input_ids=torch.zeros(size * q_len, dtype=torch.int64, device=engine.device),
        req_pool_indices=torch.zeros(size, dtype=torch.int64, device=engine.device),
        seq_lens=torch.full((size,), fill, dtype=torch.int64, device=engine.device),
        out_cache_loc=torch.zeros(size * q_len, dtype=torch.int64, device=engine.device),
        seq_lens_sum=size * fill,
    )


def buffers(engine: Engine) -> list[int]:
    """Where a step's lengths and pages lie."""
    step = engine.backend.forward_metadata
    tensors = (step.qo_indptr, step.kv_indptr, step.kv_last_page_lens, step.kv_indices)
    return [tensor.data_ptr() for tensor in tensors]


def test_empty_requests_and_empty_batches_decode_to_nothing(target: str, device) -> None:
    engine = Engine(device)
    rows = engine.serve((0, 40, 0))
    batch = engine.batch(ForwardMode.DECODE, (0, 40, 0), rows, 1)
    q, _ = engine.inputs(3)
    engine.backend.init_forward_metadata(batch)
    out = engine.backend.forward_decode(q, None, None, engine.layer, batch)
    engine.check(out, q, (0, 40, 0), rows, target)
    assert not out[0].any()
    idle = engine.batch(ForwardMode.DECODE, (1,), rows[:1], 1)
    idle.forward_mode, idle.batch_size = ForwardMode.IDLE, 0
    engine.backend.init_forward_metadata(idle)


def test_deterministic_inference_gives_a_request_the_same_bits_in_any_batch(
    target: str, device
) -> None:
    from sglang.srt.runtime_context import get_context

    kv_lens = (300, 7, 640, 65)
    engine = Engine(device)
    get_context().override("test", enable_deterministic_inference=True)
    engine.backend = ATTENTION_BACKENDS[NAME](engine.runner)
    rows = engine.serve(kv_lens)
    q, k = engine.inputs(len(kv_lens))
    outs = []
    for some in (slice(0, 4), slice(0, 1), slice(2, 4)):
        batch = engine.batch(ForwardMode.DECODE, kv_lens[some], rows[some], 1)
        engine.backend.init_forward_metadata(batch)
        outs.append(engine.attend(batch, q[some], k[some]))
    engine.check(outs[0], q, kv_lens, rows, target)
    assert torch.equal(outs[0][:1], outs[1])
    assert torch.equal(outs[0][2:], outs[2])
    assert engine.backend.forward_metadata.plan is None


def test_both_halves_of_two_batch_overlap_decode(target: str, device) -> None:
    from sglang.srt.layers.attention.tbo_backend import TboAttnBackend

    engine, kv_lens = Engine(device, page_size=16), (5, 70, 33, 500)
    rows = engine.serve(kv_lens)
    whole = engine.batch(ForwardMode.DECODE, kv_lens, rows, 1)
    halves = [slice(0, 1), slice(1, None)]
    whole.tbo_children = [
        engine.batch(ForwardMode.DECODE, kv_lens[half], rows[half], 1) for half in halves
    ]
    overlapped = TboAttnBackend.init_new(lambda: ATTENTION_BACKENDS[NAME](engine.runner))
    overlapped.init_forward_metadata(whole)
    for half, child, batch in zip(halves, overlapped.children, whole.tbo_children, strict=True):
        engine.backend = child
        q, k = engine.inputs(len(kv_lens[half]))
        engine.check(engine.attend(batch, q, k), q, kv_lens[half], rows[half], target)


def test_drafts_of_several_lengths_in_a_batch_are_refused_by_name(device) -> None:
    engine = Engine(device, drafts=3)
    batch = engine.batch(ForwardMode.TARGET_VERIFY, (8, 9), engine.serve((8, 9)), 3)
    batch.spec_info = SimpleNamespace(ragged_verify_layout=object())
    with pytest.raises(BadArgument, match="ragged_verify_layout"):
        engine.backend.init_forward_metadata(batch)


def test_steps_of_one_size_reuse_every_buffer(target: str, device) -> None:
    engine = Engine(device)
    run(engine, ForwardMode.DECODE, RAGGED, target)
    first = buffers(engine)
    run(engine, ForwardMode.DECODE, tuple(reversed(RAGGED)), target)
    assert buffers(engine) == first


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("tp_k_head_num", 2),
        ("logit_cap", 30.0),
        ("sliding_window_size", 128),
        ("is_cross_attention", True),
        ("k_scale_float", 0.5),
    ],
)
def test_what_is_not_done_is_refused_by_the_layers_own_name(name: str, value, device) -> None:
    engine = Engine(device)
    rows = engine.serve((8,))
    batch = engine.batch(ForwardMode.DECODE, (8,), rows, 1)
    setattr(engine.layer, name, value)
    engine.backend.init_forward_metadata(batch)
    q, _ = engine.inputs(1)
    with pytest.raises(BadArgument, match=name):
        engine.backend.forward_decode(q, None, None, engine.layer, batch)


@pytest.mark.parametrize("name", ["sinks", "topk_indices", "cos_sin_cache"])
def test_an_argument_of_another_backend_is_refused_by_name(name: str, device) -> None:
    engine = Engine(device)
    q, _ = engine.inputs(1)
    with pytest.raises(BadArgument, match=name):
        engine.backend.forward_decode(q, None, None, engine.layer, None, **{name: q})


def test_prompts_go_on_with_queries_and_keys_joined(device) -> None:
    engine = Engine(device)
    taken = []
    engine.backend._extend = SimpleNamespace(forward_extend=lambda *given: taken.extend(given))
    batch = engine.batch(ForwardMode.EXTEND, (2,), engine.serve((2,)), 2)
    q, k = engine.inputs(2)
    parts = [*q.view(2, -1, 576).split((512, 64), -1), *k.split((512, 64), -1)]
    engine.backend.forward_extend(
        parts[0], parts[2], parts[2], engine.layer, batch, q_rope=parts[1], k_rope=parts[3]
    )
    assert torch.equal(taken[0].view_as(q), q)
    assert torch.equal(taken[1], k)
