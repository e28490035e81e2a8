#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Decode steps through vLLM's own MLA layers: on hipdecode, and on vLLM's backends in the same run.

A stack of vLLM's layers with random weights has caches of their own, filled with random latents of
the lengths asked for, in blocks of 64 in no order. A step is what vLLM runs of them: the backend's
metadata, made once, and for each layer the new token's row into the cache, the query into the
latent space, attention and the values out of it; on a GPU the layers are one graph, whose replays
are timed with cold caches. What a first layer gives is held against fp64 before the clock starts.
"""

from __future__ import annotations

import os
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import click
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "clients"))
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "python"))

from hipdecode import target
from hipdecode.integrations.vllm.plugin import BACKEND, SPARSE_BACKEND
from hipdecode.sparse_cache import quantize_v32
from hipdecode.testing import timing
from hipdecode.testing.bench_report import IntList, print_rows, write_csv
from hipdecode.testing.device_clock import WARMUP, clock_of
from hipdecode.testing.traces import trace_batches

os.environ["VLLM_TARGET_DEVICE"] = target.current().device_type

import vllm
from vllm.config import CompilationConfig, set_current_vllm_config
from vllm.forward_context import set_forward_context
from vllm.model_executor.layers.attention.mla_attention import MLAAttention
from vllm.model_executor.layers.linear import ColumnParallelLinear
from vllm.platforms import current_platform
from vllm.utils.import_utils import resolve_obj_by_qualname
from vllm.v1.attention.backend import CommonAttentionMetadata
from vllm.v1.attention.backends.mla.prefill.cpu_sdpa import CPUSDPAMLAPrefillBackend
from vllm.v1.attention.backends.registry import AttentionBackendEnum
from vllm.v1.worker.workspace import init_workspace_manager, is_workspace_manager_initialized
from vllm_engine import config_of, default_dtype, start_distributed

LATENT, ROPE, NOPE, V, BLOCK = 512, 64, 128, 128, 64
OURS = "hipdecode"
PEERS = "FLASH_ATTN_MLA,FLASHMLA,TRITON_MLA"
"""In vLLM's order of preference on Hopper."""
SHOWN = ("nhead", "kv_cache", "batch", "kv_len_mean", "contender", "us_per_layer", "us_metadata",
         "peer_over_this", "error")  # fmt: skip
SPARSE, SPARSE_PEERS, TOPK = "fp8_ds_mla", "FLASHMLA_SPARSE", 2048
"""DeepSeek-V3.2's cache; who reads it on Hopper; keys of a token."""


@dataclass(frozen=True, slots=True)
class Batch:
    """What all contenders of one batch share; the newest token of a request is in its length.

    Attributes:
        lengths: tokens of each request.
        table: [batch, width] int32 blocks.
        caches: per layer, [blocks, 64, 576] bf16, or uint8 that holds fp8 e4m3.
        query: [batch, nhead, 192] bf16.
        latent: [batch, 512] bf16, of the newest tokens.
        rope: [batch, 1, 64] bf16, likewise.
        chosen: [batch, 2048] int32 positions for sparse attention, then -1.
    """

    lengths: tuple[int, ...]
    table: Tensor
    caches: list[Tensor]
    query: Tensor
    latent: Tensor
    rope: Tensor
    chosen: Tensor

    @staticmethod
    def make(
        lengths: Sequence[int], nhead: int, layers: int, cache_dtype: str, device: torch.device
    ) -> Batch:
        """Random, as large as a layer norm leaves it."""
        generator = torch.Generator(device).manual_seed(1)

        def normal(*shape: int) -> Tensor:
            made = torch.randn(shape, generator=generator, device=device)
            return made.to(torch.bfloat16)

        batch, width = len(lengths), -(-max(lengths) // BLOCK)
        order = torch.randperm(batch * width, generator=generator, device=device)
        caches = [
            _stored(normal(batch * width, BLOCK, LATENT + ROPE), cache_dtype) for _ in range(layers)
        ]
        chosen = torch.full((batch, TOPK), -1, dtype=torch.int32, device=device)
        for row, n in zip(chosen, lengths, strict=True):
            kept = torch.randperm(n, generator=generator, device=device)[:TOPK]
            row[: len(kept)] = kept.int()
        return Batch(
            tuple(lengths), order.view(batch, width).int(), caches,
            normal(batch, nhead, NOPE + ROPE), normal(batch, LATENT), normal(batch, 1, ROPE),
            chosen,
        )  # fmt: skip

    def common(self) -> CommonAttentionMetadata:
        """The step as vLLM's runner hands it to builders."""
        device, batch = self.table.device, len(self.lengths)
        starts, lens = torch.arange(batch + 1).int(), torch.tensor(self.lengths).int()
        last = lens.to(device).long() - 1
        block = self.table.gather(1, (last // BLOCK)[:, None]).flatten().long()
        return CommonAttentionMetadata(
            query_start_loc=starts.to(device),
            query_start_loc_cpu=starts,
            seq_lens=lens.to(device),
            num_reqs=batch,
            num_actual_tokens=batch,
            max_query_len=1,
            max_seq_len=max(self.lengths),
            block_table_tensor=self.table,
            slot_mapping=block * BLOCK + last % BLOCK,
            seq_lens_cpu_upper_bound=lens,
        )


def _stored(rows: Tensor, cache_dtype: str) -> Tensor:
    """Random rows [blocks, 64, 576] bf16 in the form of a cache."""
    if cache_dtype == "auto":
        return rows
    if cache_dtype == SPARSE:
        cache = torch.empty((*rows.shape[:2], 656), dtype=torch.uint8, device=rows.device)
        slots = torch.arange(rows.shape[0] * BLOCK, device=rows.device)
        quantize_v32(rows.flatten(0, 1), cache, slots)
        return cache
    return rows.to(torch.float8_e4m3fn).view(torch.uint8)


def _keys(cache: Tensor, slots: Tensor) -> Tensor:
    """Keys [n, 576] fp64 of slots."""
    rows = cache.flatten(0, 1)[slots]
    if rows.dtype != torch.uint8:
        return rows.double()
    if rows.shape[1] == LATENT + ROPE:
        return rows.view(torch.float8_e4m3fn).double()
    latent, scales, rope = rows.split((LATENT, 16, 2 * ROPE), 1)
    codes = latent.contiguous().view(torch.float8_e4m3fn).double().unflatten(1, (4, -1))
    values = codes * scales.contiguous().view(torch.float32).double()[..., None]
    return torch.cat((values.flatten(1), rope.contiguous().view(torch.bfloat16).double()), 1)


class Stack:
    """vLLM's layers on one backend."""

    def __init__(self, batch: Batch, backend: str, kv_cache_dtype: str) -> None:
        """Makes the layers, the builder and the metadata that a graph is captured with.

        Raises:
            ValueError: vLLM or the backend does not take these layers.
        """
        self.batch, device = batch, batch.table.device
        nhead = batch.query.shape[1]
        # as vLLM captures: graphs of whole decode steps, up to the largest batch
        graphs = CompilationConfig(
            mode=0, cudagraph_mode="FULL_DECODE_ONLY", cudagraph_capture_sizes=[len(batch.lengths)]
        )
        length = max(batch.lengths)
        self.config = config_of(
            device,
            block_size=BLOCK,
            kv_cache_dtype=kv_cache_dtype,
            max_num_seqs=len(batch.lengths),
            max_model_len=length,
            hf_overrides={
                "num_attention_heads": nhead, "num_key_value_heads": nhead, "v_head_dim": V,
                "qk_nope_head_dim": NOPE, "max_position_embeddings": length,
                **({"index_topk": TOPK} if kv_cache_dtype == SPARSE else {}),
            },
            enforce_eager=not current_platform.is_cuda(),
            **({"compilation_config": graphs} if current_platform.is_cuda() else {}),
        )  # fmt: skip
        chosen = _backend(backend, kv_cache_dtype)
        torch.manual_seed(2)  # the same weights on every backend
        with set_current_vllm_config(self.config), default_dtype(torch.bfloat16):
            start_distributed()
            if not is_workspace_manager_initialized():
                init_workspace_manager(device)
            self.layers = [
                self._layer(f"model.layers.{i}.attn", nhead, chosen)
                for i in range(len(batch.caches))
            ]
            spec = self.layers[0].get_kv_cache_spec(self.config)
            names = list(self.config.compilation_config.static_forward_context)
            self._builder = chosen.get_builder_cls()(spec, names, self.config, device)
        self._common = batch.common()
        metadata = self._builder.build_for_cudagraph_capture(self._common)
        self._metadata = dict.fromkeys(names, metadata)
        self._slots = dict.fromkeys(names, self._common.slot_mapping)
        for layer, cache in zip(self.layers, batch.caches, strict=True):
            layer.kv_cache = cache

    def _layer(self, name: str, nhead: int, backend: type) -> MLAAttention:
        device = self.batch.table.device
        up = ColumnParallelLinear(LATENT, nhead * (NOPE + V), bias=False, prefix=name)
        up.weight.data = torch.randn(up.weight.shape, dtype=torch.float32).bfloat16() / LATENT**0.5
        layer = MLAAttention(
            num_heads=nhead, scale=(NOPE + ROPE) ** -0.5, qk_nope_head_dim=NOPE,
            qk_rope_head_dim=ROPE, v_head_dim=V, q_lora_rank=None, kv_lora_rank=LATENT,
            kv_b_proj=up, cache_config=self.config.cache_config, prefix=name,
            attn_backend=backend, prefill_backend_cls=CPUSDPAMLAPrefillBackend,
            use_sparse=backend.is_sparse(),
            topk_indices_buffer=self.batch.chosen if backend.is_sparse() else None,
        ).to(device)  # fmt: skip
        layer.process_weights_after_loading(torch.bfloat16)
        return layer

    def build(self) -> None:
        """The metadata of a step; what a graph reads is written in place."""
        self._builder.build(0, self._common)

    def step(self) -> list[Tensor]:
        """What each layer gives, [batch, nhead * 128]; the same query for all of them."""
        batch = self.batch
        shape = torch.Size((len(batch.lengths), batch.query.shape[1] * V))
        with (
            torch.inference_mode(),
            set_forward_context(
                self._metadata, self.config, num_tokens=shape[0], slot_mapping=self._slots
            ),
        ):
            return [
                layer(batch.query, batch.latent, batch.rope, output_shape=shape)
                for layer in self.layers
            ]

    def error(self) -> float:
        """How far a step's first layer is from fp64, relative."""
        have = self.step()[0].double()
        layer, batch = self.layers[0], self.batch
        up, out = layer.W_UK_T.double(), layer.W_UV.double()
        want = []
        for i, (n, q) in enumerate(zip(batch.lengths, batch.query, strict=True)):
            at = torch.arange(n, device=q.device)
            if layer.use_sparse:
                at = batch.chosen[i][batch.chosen[i] >= 0].long()
            keys = _keys(batch.caches[0], batch.table[i].long()[at // BLOCK] * BLOCK + at % BLOCK)
            nope = torch.einsum("hp,hpl->hl", q[:, :NOPE].double(), up)
            weights = torch.softmax(
                layer.scale * torch.cat((nope, q[:, NOPE:].double()), -1) @ keys.T, -1
            )
            want.append(torch.einsum("hl,hlv->hv", weights @ keys[:, :LATENT], out).flatten())
        exact = torch.stack(want)
        return float((have - exact).norm() / exact.norm())


def _backend(name: str, kv_cache_dtype: str) -> type:
    """The class of a backend.

    Raises:
        ValueError: vLLM says that it does not run here.
    """
    sparse = kv_cache_dtype == SPARSE
    if name == OURS:
        return resolve_obj_by_qualname(SPARSE_BACKEND if sparse else BACKEND)
    capability = current_platform.get_device_capability()
    if capability is None:
        raise ValueError("runs on GPUs")
    try:
        chosen = AttentionBackendEnum[name].get_class()
        reasons = chosen.validate_configuration(
            head_size=LATENT + ROPE, dtype=torch.bfloat16, kv_cache_dtype=kv_cache_dtype,
            block_size=BLOCK, use_mla=True, has_sink=False, use_sparse=sparse,
            use_mm_prefix=False, use_per_head_quant_scales=False, attn_type="decoder",
            device_capability=capability,
        )  # fmt: skip
    except ImportError as error:
        raise ValueError(str(error)) from error
    if reasons:
        raise ValueError("; ".join(reasons))
    return chosen


def bench_batch(
    batch: Batch, names: Sequence[str], kv_cache_dtype: str, rounds: int, budget_s: float
) -> list[dict[str, object]]:
    """A row for each contender."""
    clock = clock_of(target.current())
    stacks: dict[str, Stack] = {}
    errors: dict[str, float] = {}
    ready: dict[str, list[timing.Thunk]] = {}
    failed: dict[str, str] = {}
    for name in names:
        try:
            stack = Stack(batch, name, kv_cache_dtype)
            errors[name], ready[name] = stack.error(), [clock.ready(stack.step)]
        except Exception as error:
            if name == OURS:
                raise
            failed[name] = f"{type(error).__name__}: {error}".splitlines()[0]
        else:
            stacks[name] = stack
            stack.build()
    ready = {name: ready[name] for name in stacks}
    taken = timing.measure(ready, rounds=rounds, warmup=WARMUP, budget_s=budget_s, clock=clock)
    us = {name: 1e3 * took.p50 / len(batch.caches) for name, took in taken.items()}
    peer = min((us[name] for name in us if name != OURS), default=None)
    rows: list[dict[str, object]] = []
    for name in names:
        row: dict[str, object] = {
            "kv_cache": kv_cache_dtype,
            "batch": len(batch.lengths),
            "kv_len_mean": round(sum(batch.lengths) / len(batch.lengths)),
            "kv_len_max": max(batch.lengths),
            "contender": name,
            "us_per_layer": failed.get(name, ""),
            "us_best": "",
            "us_metadata": "",
            "peer_over_this": "",
            "error": "",
        }
        if name in us:
            row |= {
                "us_per_layer": f"{us[name]:.1f}",
                "us_best": f"{1e3 * taken[name].best / len(batch.caches):.1f}",
                "us_metadata": f"{_metadata_us(stacks[name]):.0f}",
                "peer_over_this": f"{peer / us[name]:.2f}" if peer else "",
                "error": f"{errors[name]:.1e}",
            }
        rows.append(row)
    return rows


def _metadata_us(stack: Stack, rounds: int = 15) -> float:
    """Of making a step's metadata, host and device, until it is there."""
    wait = torch.cuda.synchronize if stack.batch.table.is_cuda else lambda: None
    taken = []
    for _ in range(rounds):
        wait()
        begin = time.perf_counter()
        stack.build()
        wait()
        taken.append(time.perf_counter() - begin)
    return 1e6 * statistics.median(taken)


@click.command(help=__doc__)
@click.option("--nhead", type=IntList(), default="16", show_default=True, help="Of a rank.")
@click.option("--layers", default=4, show_default=True)
@click.option("--batch-sizes", type=IntList(), default="1,16,64", show_default=True)
@click.option("--trace", type=click.Path(path_type=Path, exists=True), help="Contexts of it.")
@click.option("--kv-len", default=4096, show_default=True, help="Context without --trace.")
@click.option("--kv-cache-dtype", default="auto,fp8", show_default=True, help="As vLLM's.")
@click.option("--peers", default=PEERS, show_default=True, help="vLLM's names, comma between.")
@click.option("--sparse-peers", default=SPARSE_PEERS, show_default=True, help="With fp8_ds_mla.")
@click.option("--rounds", default=40, show_default=True)
@click.option("--budget-s", default=3.0, show_default=True, help="Seconds of a batch's rounds.")
@click.option("--csv", "out", type=click.Path(path_type=Path), help="Write the rows there.")
def main(
    nhead: tuple[int, ...],
    layers: int,
    batch_sizes: tuple[int, ...],
    trace: Path | None,
    kv_len: int,
    kv_cache_dtype: str,
    peers: str,
    sparse_peers: str,
    rounds: int,
    budget_s: float,
    out: Path | None,
) -> None:
    """Times all contenders and prints them."""
    device = torch.device(target.current().device_type)
    drawn = trace_batches(trace, batch_sizes) if trace else [[kv_len] * b for b in batch_sizes]
    facts = {"vllm": vllm.__version__, **timing.Machine.here(device.type).columns()}
    rows: list[dict[str, object]] = []
    for heads in nhead:
        for cache in kv_cache_dtype.split(","):
            for lengths in drawn:
                batch = Batch.make(lengths, heads, layers, cache, device)
                shape = {"nhead": heads, "layers": layers, "trace": trace.stem if trace else ""}
                peers_of = sparse_peers if cache == SPARSE else peers
                names = (OURS, *filter(None, peers_of.split(",")))
                found = bench_batch(batch, names, cache, rounds, budget_s)
                rows.extend(shape | row | {"rounds": rounds} | facts for row in found)
                if out is not None:
                    write_csv(out, rows)  # after every batch: a run may be cut short
    print_rows(rows, columns=SHOWN)


if __name__ == "__main__":
    main()
