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


@pytest.mark.parametrize("kv_cache_dtype", ["auto", "fp8"])
def test_shards_of_two_ranks_merge_by_their_lse(kv_cache_dtype: str, engines, target: str) -> None:
    """Decode context parallelism: each rank has every second token, one rank of one has none."""
    lens = (1, 2, 131, 640)
    engine = engines(kv_cache_dtype=kv_cache_dtype, block_size=32)
    q = engine.normal((4, 16, 576))
    whole, shards = [], []
    engine.builder.dcp_world_size, engine.layer.impl.need_to_return_lse_for_decode = 2, True
    try:
        for rank in range(2):
            local = tuple((n + 1 - rank) // 2 for n in lens)
            step, table = Step((1,) * 4, lens, local_lens=local), engine.tables(4)
            engine.fill(table, local)
            o, lse = engine.decode(q, engine.builder.build(0, engine.common(step, table)))
            want = engine.want(q, step, table)
            compare.assert_close(lse.cpu(), want.lse, compare.allowed_lse(want), what="lse")
            engine.check(o, q, step, table, target)
            shards.append((o.cpu().double(), lse.cpu().double()))
            whole.append((want.o, want.lse))
    finally:
        engine.builder.dcp_world_size, engine.layer.impl.need_to_return_lse_for_decode = 1, False
    assert shards[1][1][0].eq(-torch.inf).all()  # the rank without a key
    merged, expected = _merged(shards), _merged(whole)
    torch.testing.assert_close(merged, expected, rtol=2e-2, atol=5e-3)


def _merged(shards: list[tuple[Tensor, Tensor]]) -> Tensor:
    weights = torch.stack([lse for _, lse in shards]).softmax(0)
    return sum(w[..., None] * o for w, (o, _) in zip(weights, shards, strict=True))


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
