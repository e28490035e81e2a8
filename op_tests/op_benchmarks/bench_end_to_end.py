#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Tokens per second of whole decode steps of transformers' DeepSeek-V3, with and without hipdecode.

The model is transformers' own class with random weights and as few layers as stated; its caches are
filled with random latents of the lengths asked for, padded on the left as generate() does. A step
is all of a forward pass and the choice of the next token. Every contender decodes the same tokens
in interleaved rounds: transformers' attention on its dynamic cache (launch by launch, as generate()
runs it) and on its static cache as a CUDA graph, hipdecode on its pages in both forms. Before the
clock starts, the first step's logits are held against the same model in fp32 on fp32 latents.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import cast

import click
import torch
import transformers
from rich.table import Table
from torch import Tensor
from transformers import DeepseekV3Config, DeepseekV3ForCausalLM, DynamicCache, StaticCache
from transformers.cache_utils import Cache

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "python"))

from hipdecode import target
from hipdecode.integrations.transformers import DecodeGraph, PagedCache, install
from hipdecode.testing import timing
from hipdecode.testing.bench_report import IntList, console, write_csv
from hipdecode.testing.traces import trace_batches

LATENT, ROPE = 512, 64
MODELS: dict[str, dict[str, int | None]] = {
    # The widths of DeepSeek-V2-Lite; a dense MLP of what its experts activate for a token.
    "lite": {
        "hidden_size": 2048, "num_attention_heads": 16, "q_lora_rank": None, "v_head_dim": 128,
        "qk_nope_head_dim": 128, "intermediate_size": 10944, "vocab_size": 16384,
    },
    # Those of DeepSeek-V3, with the MLP of its dense layers.
    "v3": {
        "hidden_size": 7168, "num_attention_heads": 128, "q_lora_rank": 1536, "v_head_dim": 128,
        "qk_nope_head_dim": 128, "intermediate_size": 18432, "vocab_size": 16384,
    },
    "tiny": {
        "hidden_size": 64, "num_attention_heads": 4, "q_lora_rank": 16, "v_head_dim": 16,
        "qk_nope_head_dim": 16, "intermediate_size": 64, "vocab_size": 64,
    },
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Setup:
    """What all contenders of one batch share.

    Attributes:
        config: of the model.
        lengths: tokens of each request before the first step.
        room: columns of the caches.
        latents: per layer, [batch, 1, columns, 512] and [batch, 1, columns, 64] bf16.
        mask: [batch, columns] bool, False where a request is padded.
        token: [batch, 1] int64, the first to decode.
    """

    config: DeepseekV3Config
    lengths: tuple[int, ...]
    room: int
    latents: list[tuple[Tensor, Tensor]]
    mask: Tensor
    token: Tensor

    @property
    def batch(self) -> int:
        """Requests."""
        return len(self.lengths)


class Run:
    """One contender, ready to decode: `step` decodes the token that the one before chose."""

    def __init__(
        self, setup: Setup, forward: Callable[[Tensor], Tensor], held: object = None
    ) -> None:
        """Runs the first step.

        Args:
            setup: of the batch.
            forward: tokens [batch, 1] to logits [batch, 1, vocabulary].
            held: what must live as long.
        """
        self._forward, self._held = forward, held
        self._token = setup.token.clone()
        self.first = forward(self._token).float().clone()

    def step(self) -> None:
        """One more token of every request."""
        self._token.copy_(self._forward(self._token)[:, -1].argmax(-1, keepdim=True))


def make_model(name: str, layers: int, device: torch.device) -> DeepseekV3ForCausalLM:
    """Random weights in bf16, with torch's attention."""
    torch.manual_seed(0)
    config = DeepseekV3Config(
        num_hidden_layers=layers,
        first_k_dense_replace=layers,
        num_key_value_heads=MODELS[name]["num_attention_heads"],
        kv_lora_rank=LATENT,
        qk_rope_head_dim=ROPE,
        max_position_embeddings=1 << 18,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        **MODELS[name],
    )
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device(device):
            model = DeepseekV3ForCausalLM(config)
    finally:
        torch.set_default_dtype(before)
    model.set_attn_implementation("sdpa")
    torch.nn.Module.eval(model)
    return cast(DeepseekV3ForCausalLM, model.requires_grad_(False))


def make_setup(
    config: DeepseekV3Config, lengths: Sequence[int], steps: int, device: torch.device
) -> Setup:
    """Random latents as large as a layer norm leaves them."""
    generator = torch.Generator(device).manual_seed(1)
    batch, columns = len(lengths), max(lengths)

    def random(width: int) -> Tensor:
        shape = (batch, 1, columns, width)
        return torch.randn(shape, generator=generator, device=device, dtype=torch.bfloat16)

    first = columns - torch.tensor(lengths, device=device)
    return Setup(
        config=config,
        lengths=tuple(lengths),
        room=columns + steps,
        latents=[(random(LATENT), random(ROPE)) for _ in range(config.num_hidden_layers)],
        mask=torch.arange(columns, device=device) >= first[:, None],
        token=torch.randint(config.vocab_size, (batch, 1), generator=generator, device=device),
    )


def fill(cache: Cache, setup: Setup, dtype: torch.dtype | None = None) -> Cache:
    """Writes the latents into a cache."""
    for layer, (latent, rope) in enumerate(setup.latents):
        cache.update(latent.to(dtype or latent.dtype), rope.to(dtype or rope.dtype), layer)
    return cache


def on_pages(model: DeepseekV3ForCausalLM, setup: Setup, dtype: torch.dtype, *, graph: bool) -> Run:
    """hipdecode."""
    limit = torch.finfo(dtype).max if dtype.itemsize == 1 else None
    scales = [
        4 * float(latent.abs().max()) / limit for latent, _ in setup.latents
    ] if limit else None  # fmt: skip
    cache = PagedCache(
        setup.config, batch=setup.batch, capacity=setup.room, dtype=dtype, kv_scales=scales,
        device=setup.token.device,
    )  # fmt: skip
    cache.begin(setup.mask.shape[1], setup.mask)
    fill(cache, setup)
    if graph:
        mean, longest = sum(setup.lengths) // setup.batch, max(setup.lengths)
        return Run(setup, DecodeGraph(model, cache, kv_len=mean, max_kv_len=longest))

    def forward(tokens: Tensor) -> Tensor:
        out = model(
            input_ids=tokens, position_ids=cache.lengths[:, None].long(), past_key_values=cache
        )
        return cast(Tensor, out.logits)

    return Run(setup, forward)


def on_dynamic_cache(
    model: DeepseekV3ForCausalLM, setup: Setup, dtype: torch.dtype | None = None
) -> Run:
    """transformers as generate() calls it."""
    cache = fill(DynamicCache(config=setup.config), setup, dtype)
    state = {"mask": setup.mask, "positions": setup.mask.sum(1, keepdim=True)}

    def forward(tokens: Tensor) -> Tensor:
        state["mask"] = torch.nn.functional.pad(state["mask"], (0, 1), value=True)
        out = model(
            input_ids=tokens, attention_mask=state["mask"], position_ids=state["positions"],
            past_key_values=cache,
        )  # fmt: skip
        state["positions"] = state["positions"] + 1
        return cast(Tensor, out.logits)

    return Run(setup, forward)


def on_static_cache(model: DeepseekV3ForCausalLM, setup: Setup) -> Run:
    """transformers on its static cache, captured as a graph."""
    cache = fill(StaticCache(setup.config, max_cache_len=setup.room), setup)
    columns = setup.mask.shape[1]
    mask = torch.nn.functional.pad(setup.mask, (0, setup.room - columns), value=True)
    token, positions = setup.token.clone(), setup.mask.sum(1, keepdim=True)

    def step() -> Tensor:
        out = model(
            input_ids=token, attention_mask=mask, position_ids=positions, past_key_values=cache
        )
        positions.add_(1)
        return cast(Tensor, out.logits)

    def rewind() -> None:
        positions.copy_(setup.mask.sum(1, keepdim=True))
        for layer in cache.layers:
            layer.cumulative_length.fill_(columns)

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(2):
            step()
            rewind()
    stream.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        logits = step()
    rewind()

    def forward(tokens: Tensor) -> Tensor:
        token.copy_(tokens)
        graph.replay()
        return logits

    # the graph reads memory that nothing else holds
    return Run(setup, forward, held=(cache, mask, positions))


def contenders(
    model: DeepseekV3ForCausalLM, served: DeepseekV3ForCausalLM, setup: Setup, fp8: torch.dtype
) -> dict[str, Callable[[], Run]]:
    """By name; graphs where there is a GPU."""
    runs: dict[str, Callable[[], Run]] = {
        "hipdecode bf16": partial(on_pages, served, setup, torch.bfloat16, graph=False),
        "hipdecode fp8": partial(on_pages, served, setup, fp8, graph=False),
        "transformers dynamic": partial(on_dynamic_cache, model, setup),
    }
    if setup.token.is_cuda:
        runs |= {
            "hipdecode bf16, graph": partial(on_pages, served, setup, torch.bfloat16, graph=True),
            "hipdecode fp8, graph": partial(on_pages, served, setup, fp8, graph=True),
            "transformers static, graph": partial(on_static_cache, model, setup),
        }
    return runs


def time_runs(
    runs: dict[str, Run], rounds: int, steps: int, budget_s: float, device: torch.device
) -> dict[str, list[float]]:
    """Seconds per step of each run, by round; a run has its share of the seconds, or 2 rounds."""
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    taken: dict[str, list[float]] = {name: [] for name in runs}
    spent = dict.fromkeys(runs, 0.0)
    for run in runs.values():
        run.step()
    for turn in range(rounds):
        for name, run in runs.items():
            if turn >= 2 and spent[name] > budget_s / len(runs):
                continue
            wait()
            begin = time.perf_counter()
            for _ in range(steps):
                run.step()
            wait()
            spent[name] += time.perf_counter() - begin
            taken[name].append((time.perf_counter() - begin) / steps)
    return taken


@torch.no_grad()
def bench_batch(
    model: DeepseekV3ForCausalLM,
    served: DeepseekV3ForCausalLM,
    setup: Setup,
    timing_of: tuple[int, int, float],
) -> Iterator[dict[str, object]]:
    """A row for each contender; `timing_of` is rounds, steps and seconds."""
    device = setup.token.device
    exact = on_dynamic_cache(deepcopy(model).float(), setup, torch.float32).first
    runs: dict[str, Run] = {}
    failed: dict[str, str] = {}
    fp8 = torch.float8_e4m3fnuz if "fnuz" in target.current().fp8 else torch.float8_e4m3fn
    for name, make in contenders(model, served, setup, fp8).items():
        try:
            runs[name] = make()
        except torch.OutOfMemoryError:
            failed[name] = "out of memory"
    times = time_runs(runs, *timing_of, device)
    p50 = {name: statistics.median(seconds) for name, seconds in times.items()}
    peer = min((p50[name] for name in p50 if name.startswith("transformers")), default=None)
    for name in (*runs, *failed):
        row: dict[str, object] = {
            "batch": setup.batch,
            "kv_len_mean": round(sum(setup.lengths) / setup.batch),
            "kv_len_max": max(setup.lengths),
            "contender": name,
            "tokens_per_s": failed.get(name, ""),
            "ms_per_step": "",
            "ms_best": "",
            "over_peer": "",
            "logits_err": "",
        }
        if name in runs:
            error = float((runs[name].first - exact).norm() / exact.norm())
            row |= {
                "tokens_per_s": f"{setup.batch / p50[name]:.0f}",
                "ms_per_step": f"{p50[name] * 1e3:.3f}",
                "ms_best": f"{min(times[name]) * 1e3:.3f}",
                "over_peer": f"{peer / p50[name]:.2f}" if peer else "",
                "logits_err": f"{error:.1e}",
            }
        yield row


@click.command(help=__doc__)
@click.option("--model", "name", type=click.Choice(list(MODELS)), default="lite", show_default=True)
@click.option("--layers", default=4, show_default=True, help="Of the model.")
@click.option("--batch-sizes", type=IntList(), default="1,16,64", show_default=True)
@click.option("--trace", type=click.Path(path_type=Path, exists=True), help="Contexts of it.")
@click.option("--kv-len", default=4096, show_default=True, help="Context without --trace.")
@click.option("--rounds", default=5, show_default=True)
@click.option("--steps", default=8, show_default=True, help="Tokens of a request in a round.")
@click.option("--budget-s", default=6.0, show_default=True, help="Seconds of a batch's rounds.")
@click.option("--csv", "out", type=click.Path(path_type=Path), help="Write the rows there.")
def main(
    name: str,
    layers: int,
    batch_sizes: tuple[int, ...],
    trace: Path | None,
    kv_len: int,
    rounds: int,
    steps: int,
    budget_s: float,
    out: Path | None,
) -> None:
    """Times all contenders and prints them."""
    device = torch.device(target.current().device_type)
    drawn = trace_batches(trace, batch_sizes) if trace else [[kv_len] * b for b in batch_sizes]
    model = make_model(name, layers, device)
    served = install(make_model(name, layers, device))
    machine = timing.Machine.here(device.type).columns()
    facts = {"transformers": transformers.__version__, **machine}
    rows = []
    table = Table(
        "batch", "context mean", "max", "contender", "tokens/s", "ms a step", "over peer", "error"
    )
    for lengths in drawn:
        setup = make_setup(model.config, lengths, rounds * steps + 2, device)
        for row in bench_batch(model, served, setup, (rounds, steps, budget_s)):
            cells = [row[key] for key in list(row) if key != "ms_best"]
            table.add_row(*map(str, cells))
            shape = {"model": name, "layers": layers, "trace": trace.stem if trace else ""}
            rows.append(shape | row | {"rounds": rounds, "steps": steps} | facts)
        if out is not None:
            write_csv(out, rows)  # after every batch: a run may be cut short
    console().print(table)


if __name__ == "__main__":
    main()
