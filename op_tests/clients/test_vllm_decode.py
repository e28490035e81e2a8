# SPDX-License-Identifier: MIT
"""Decode under vLLM's own MLA layer: its builder, its metadata, its cache, against fp64."""

from __future__ import annotations

import os

import pytest
import torch
from torch import Tensor

if os.environ.get("HIPDECODE_TARGET", "cpu").startswith("cpu"):
    os.environ["VLLM_TARGET_DEVICE"] = "cpu"
pytest.importorskip("vllm", reason="needs the clients extra: make test-clients")

from vllm_engine import Engine, Step, config_of

from hipdecode.errors import WorkspaceError
from hipdecode.testing import compare

RAGGED = (1, 15, 16, 17, 63, 64, 65, 500)  # around the edges of blocks and tiles
ENDS = (Step((1,) * 8, RAGGED), Step((1,), (640,)), Step((1, 1, 1), (0, 130, 0)))


@pytest.fixture(scope="module")
def engines(target: str, device: torch.device):
    """Engines by their options; making one takes a second."""
    made: dict[tuple[object, ...], Engine] = {}

    def engine(*, k_scale: float = 1.0, q_scale: float = 1.0, **options: object) -> Engine:
        key = (k_scale, q_scale, *sorted(options.items()))
        if key not in made:
            made[key] = Engine(config_of(device, **options), device, k_scale, q_scale)
        return made[key]

    return engine


def run(engine: Engine, step: Step, target: str, *, q: Tensor | None = None) -> None:
    """Builds the metadata of a step, decodes and compares."""
    table = engine.tables(len(step.q_lens))
    engine.fill(table, step.local_lens or step.kv_lens)
    metadata = engine.builder.build(0, engine.common(step, table))
    assert metadata.num_prefills == 0
    if q is None:
        q = engine.normal((step.rows, 16, 576))
    o, lse = engine.decode(q, metadata)
    assert lse is None
    engine.check(o, q, step, table, target)


@pytest.mark.parametrize("block_size", [16, 32, 64])
@pytest.mark.parametrize("kv_cache_dtype", ["auto", "fp8"])
@pytest.mark.parametrize("step", ENDS, ids=str)
def test_one_token_decodes_match_fp64(
    step: Step, kv_cache_dtype: str, block_size: int, engines, target: str
) -> None:
    scale = 0.75 if kv_cache_dtype == "fp8" else 1.0
    engine = engines(block_size=block_size, kv_cache_dtype=kv_cache_dtype, k_scale=scale)
    run(engine, step, target)


@pytest.mark.parametrize(
    "step",
    [
        Step((4, 4, 4, 4), (4, 64, 67, 300)),
        Step((1, 4, 2, 3, 1), (33, 64, 66, 3, 1)),  # vLLM pads nothing where lengths differ
        Step((4, 4, 0, 0), (70, 129, 0, 0)),
    ],
    ids=str,
)
@pytest.mark.parametrize("kv_cache_dtype", ["auto", "fp8_e4m3"])
def test_speculative_rows_each_have_their_own_causal_bound(
    step: Step, kv_cache_dtype: str, engines, target: str
) -> None:
    run(engines(kv_cache_dtype=kv_cache_dtype, k_scale=0.5, speculative_tokens=3), step, target)


def test_fp16_models_get_fp16_outputs(engines, target: str) -> None:
    run(engines(dtype="float16"), ENDS[0], target)


def test_a_quantised_query_brings_its_scale(engines, target: str, device: torch.device) -> None:
    # what vLLM hands where the backend takes fp8 queries, as on AMD
    engine = engines(kv_cache_dtype="fp8", k_scale=0.75, q_scale=1.5)
    q = (engine.normal((8, 16, 576)).float() / 1.5).to(torch.float8_e4m3fn)
    run(engine, ENDS[0], target, q=q)


def test_a_query_in_two_parts_is_one_query(engines, target: str) -> None:
    engine, step = engines(), ENDS[0]
    table = engine.tables(8)
    engine.fill(table, step.kv_lens)
    metadata = engine.builder.build(0, engine.common(step, table))
    q = engine.normal((8, 16, 576))
    o, _ = engine.decode((q[..., :512], q[..., 512:]), metadata)
    engine.check(o, q, step, table, target)


def test_padding_of_a_graph_comes_out_as_zero(engines, target: str) -> None:
    engine, step = engines(), Step((1, 1, 0, 0), (70, 200, 0, 0), extra_rows=2)
    table = engine.tables(4)
    engine.fill(table, step.kv_lens)
    table[2:] = -1  # what padding points at is nobody's
    metadata = engine.builder.build(0, engine.common(step, table))
    q = engine.normal((4, 16, 576))
    o, _ = engine.decode(q, metadata)
    assert torch.equal(o[2:].cpu(), torch.zeros_like(o[2:].cpu()))
    engine.check(o, q, step, table, target)


@pytest.fixture
def as_rank(monkeypatch):
    """Makes an engine one rank of two that share its keys, as vLLM's groups would."""

    def become(engine: Engine, rank: int, interleave: int) -> None:
        impl = engine.layer.impl
        for place, name, value in (
            (engine.builder, "dcp_world_size", 2),
            (impl, "dcp_world_size", 2),
            (impl, "dcp_rank", rank),
            (impl, "_kv_interleave", interleave),
            (impl, "need_to_return_lse_for_decode", True),
        ):
            monkeypatch.setattr(place, name, value)

    return become


@pytest.mark.parametrize(
    ("q_lens", "kv_cache_dtype", "interleave", "causal"),
    [
        ((1, 1, 1), "auto", 1, True),
        ((1, 1, 1), "fp8", 16, True),
        ((4, 4, 4), "auto", 1, True),
        ((4, 2, 3), "fp8", 16, True),
        ((4, 4, 4), "auto", 1, False),
    ],
    ids=str,
)
def test_shards_of_two_ranks_merge_to_the_whole(
    q_lens: tuple[int, ...], kv_cache_dtype: str, interleave: int, causal: bool,
    engines, as_rank, target: str, monkeypatch,
) -> None:  # fmt: skip
    """Decode context parallelism; a rank may have no key of a request, or none that a row sees."""
    engine = engines(kv_cache_dtype=kv_cache_dtype, block_size=64, speculative_tokens=3)
    monkeypatch.setattr(engine.builder, "non_causal_multi_token_decode", not causal)
    lens = tuple(max(n, q) for n, q in zip((1, 131, 640), q_lens, strict=True))
    whole, table = Step(q_lens, lens, causal), engine.tables(6)
    values = engine.fill(table[:3], lens)
    q = engine.normal((whole.rows, 16, 576))
    shards = []
    for rank in range(2):
        as_rank(engine, rank, interleave)
        mine = [rows[torch.arange(len(rows)) // interleave % 2 == rank] for rows in values]
        engine.put(table[3:], mine)
        step = Step(q_lens, lens, causal, local_lens=tuple(len(rows) for rows in mine))
        metadata = engine.builder.build(0, engine.common(step, table[3:]))
        o, lse = engine.decode(q, metadata)
        shards.append((o.cpu().double(), lse.cpu().double()))
    lses = torch.stack([lse for _, lse in shards])
    want = engine.want(q, whole, table[:3])
    compare.assert_close(lses.logsumexp(0), want.lse, compare.allowed_lse(want), what="lse")
    merged = sum(w[..., None] * o for w, (o, _) in zip(lses.softmax(0), shards, strict=True))
    # each shard is rounded once to the output's type
    allowed = 2 * compare.allowed_output(want, torch.bfloat16, target, q.dtype)
    compare.assert_close(merged, want.o, allowed, what="o")


def test_blocks_of_a_drafter_see_each_other(engines, target: str, monkeypatch) -> None:
    engine = engines(speculative_tokens=3)
    monkeypatch.setattr(engine.builder, "non_causal_multi_token_decode", True)
    run(engine, Step((4, 4, 4), (4, 70, 200), causal=False), target)


def test_batch_invariant_mode_gives_a_request_the_same_bits_in_any_batch(
    engines, target: str, monkeypatch
) -> None:
    monkeypatch.setenv("VLLM_BATCH_INVARIANT", "1")
    engine = engines()
    lens = (600, 70, 3)
    table = engine.tables(3)
    engine.fill(table, lens)
    q = engine.normal((3, 16, 576))
    together, _ = engine.decode(
        q, engine.builder.build(0, engine.common(Step((1,) * 3, lens), table))
    )
    alone, _ = engine.decode(
        q[:1], engine.builder.build(0, engine.common(Step((1,), lens[:1]), table[:1]))
    )
    assert torch.equal(together[:1], alone)


@pytest.mark.parametrize("rows", [1, 4])
def test_a_captured_step_follows_new_lengths_in_the_same_memory(
    rows: int, engines, target: str, device: torch.device
) -> None:
    """Full graphs: captured once at the longest, replayed with other lengths and blocks."""
    engine = engines(speculative_tokens=rows - 1) if rows > 1 else engines()
    batch = 4
    capture = Step((rows,) * batch, (640,) * batch)
    table = engine.tables(batch)
    engine.fill(table, capture.kv_lens)
    first = engine.common(capture, table)
    captured = engine.builder.build_for_cudagraph_capture(first)
    q = engine.normal((batch * rows, 16, 576))
    assert captured.decode.plan is not None
    graph = None
    if device.type == "cuda":
        engine.decode(q, captured)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            o, _ = engine.decode(q, captured)
    for q_lens, kv_lens in (
        ((rows,) * batch, (rows, 64, 65 + rows, 500)),
        ((rows, rows, 0, 0), (640, 17 + rows, 0, 0)),
    ):
        step, table = Step(q_lens, kv_lens), engine.tables(batch)
        engine.fill(table, kv_lens)
        # the runner writes its own tensors in place
        again = engine.common(step, table)
        for name in ("query_start_loc", "seq_lens", "block_table_tensor"):
            getattr(first, name).copy_(getattr(again, name))
        again.query_start_loc, again.seq_lens = first.query_start_loc, first.seq_lens
        again.num_actual_tokens = batch * rows
        metadata = engine.builder.build(0, again)
        assert metadata.decode.plan is captured.decode.plan
        q.copy_(engine.normal(q.shape))
        if graph is None:
            o, _ = engine.decode(q, captured)
        else:
            graph.replay()
        padded = Step(q_lens, kv_lens, extra_rows=batch * rows - sum(q_lens))
        engine.check(o, q, padded, table, target)


def test_more_requests_than_configured_are_refused(engines) -> None:
    engine = engines()
    step = Step((1,) * 9, (1,) * 9)
    with pytest.raises(WorkspaceError, match="raise --max-num-seqs"):
        engine.builder.build(0, engine.common(step, torch.zeros(9, 10, dtype=torch.int32)))
