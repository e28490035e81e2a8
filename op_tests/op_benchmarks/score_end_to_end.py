#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Held-out bits per byte of the demo's trained model through transformers and hipdecode.

Every row decodes the same text in steps on a paged cache: launch by launch, as replays of a graph
(on a GPU), and on ranks that share the heads or the keys of each request (gloo on a CPU, where each
rank holds the keys of the others as NaN). The exit status is 1 where a bf16 cache is further than
0.1 % from transformers' own attention in fp32, or an fp8 cache further than 0.5 %.
"""

from __future__ import annotations

import itertools
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import cast

import click
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import transformers
from rich.table import Table
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "python"))

import hipdecode
from hipdecode import target
from hipdecode.arguments import DTYPE_NAMES
from hipdecode.demo.model import FOLDER
from hipdecode.demo.score import bits_decoded, bits_eager, held_out_rows
from hipdecode.integrations.transformers import DecodeGraph, PagedCache, install
from hipdecode.testing import timing
from hipdecode.testing.bench_report import console, write_csv

MAX_CHANGE = {"bf16": 0.001, "fp8": 0.005}
PORT = 29533

Row = dict[str, object]
Decode = Callable[..., Tensor]


def load(attention: str, device: torch.device) -> PreTrainedModel:
    """The trained model in fp32, as a user loads it."""
    model = AutoModelForCausalLM.from_pretrained(
        FOLDER, attn_implementation=attention, dtype=torch.float32
    )
    return cast(PreTrainedModel, model.eval().to(device).requires_grad_(False))


def fp8_dtype() -> torch.dtype:
    """The machine's own."""
    return next(d for d, name in DTYPE_NAMES.items() if name == target.current().fp8)


def new_cache(model: PreTrainedModel, rows: Tensor, **options: object) -> PagedCache:
    """Room for all rows."""
    return PagedCache(
        model.config, batch=len(rows), capacity=rows.shape[1], device=model.device, **options
    )


def steps_of(model: PreTrainedModel, cache: PagedCache) -> Callable[[Tensor], Tensor]:
    """A step launch by launch."""
    return lambda tokens: cast(Tensor, model(input_ids=tokens, past_key_values=cache).logits)


@torch.no_grad()
def calibrated(model: PreTrainedModel, dtype: torch.dtype) -> list[tuple[float, float]]:
    """Scales for fp8, from text that is not scored."""
    text = torch.tensor([list(Path(__file__).read_bytes()[:512])], device=model.device)
    cache = new_cache(model, text)
    model(input_ids=text, past_key_values=cache)
    return cache.calibrate(dtype)


@torch.no_grad()
def scores(rows: Tensor, device: torch.device) -> Iterator[tuple[str, str, int, float]]:
    """(cache, how, q_len, bits per byte) of one process; the first is transformers' own."""
    yield "", "transformers eager fp32", rows.shape[1] - 1, bits_eager(load("eager", device), rows)
    model = install(load("sdpa", device))
    kinds: dict[str, dict[str, object]] = {
        "bf16": {},
        "fp8": {"dtype": fp8_dtype(), "kv_scales": calibrated(model, fp8_dtype())},
    }
    for (name, options), q_len in itertools.product(kinds.items(), (1, 4)):
        cache = new_cache(model, rows, **options)
        yield name, "hipdecode", q_len, bits_decoded(steps_of(model, cache), rows, q_len)
        if device.type == "cuda":
            cache = new_cache(model, rows, **options)
            yield name, "hipdecode, graph", q_len, replayed_bits(model, cache, rows, q_len)


def replayed_bits(model: PreTrainedModel, cache: PagedCache, rows: Tensor, q_len: int) -> float:
    """The first step is launched, since it decodes nothing; a graph serves all others."""
    launched, graphs = steps_of(model, cache), []

    def step(tokens: Tensor) -> Tensor:
        if cache.get_seq_length() == 0:
            return launched(tokens)
        if not graphs:
            graphs.append(DecodeGraph(model, cache, q_len=q_len))
        return graphs[0](tokens)

    return bits_decoded(step, rows, q_len)


def by_heads(world: int, rank: int) -> Decode:
    """Each rank decodes its own heads over all keys; an all-gather brings them together."""

    def decode(q: Tensor, *tables: Tensor, **options: object) -> Tensor:
        mine = q.chunk(world, dim=1)[rank].contiguous()
        out = cast(Tensor, hipdecode.mla_decode(mine, *tables, **options))  # type: ignore[arg-type]
        parts = [torch.empty_like(out) for _ in range(world)]
        dist.all_gather(parts, out)
        return torch.cat(parts, dim=1)

    return decode


def by_keys(world: int, rank: int) -> Decode:
    """Token t of a request is on rank t % world, in pages of one token; the others' are NaN."""
    from hipdecode.ranks import RankedDecode

    steps: dict[tuple[int, int], RankedDecode] = {}

    def decode(
        q: Tensor, pool: Tensor, qo_indptr: Tensor, kv_indptr: Tensor, kv_indices: Tensor,
        **options: object,
    ) -> Tensor:  # fmt: skip
        shape = (q.shape[0], q.shape[1])
        ranked = steps.setdefault(shape, RankedDecode(*shape))
        tokens = [kv_indices[a:b] for a, b in itertools.pairwise(kv_indptr.tolist())]
        mine = [of_request[rank::world] for of_request in tokens]
        counts = torch.tensor([0, *map(len, mine)], dtype=torch.int32)
        local = torch.full(pool.shape, torch.nan).to(pool.dtype)
        held = torch.cat(mine)
        local.view(torch.uint8)[held.long()] = pool.view(torch.uint8)[held.long()]
        for unused in ("kv_last_page_lens", "kv_len"):
            options.pop(unused)
        return cast(
            Tensor,
            ranked.decode(
                q, local, qo_indptr, counts.cumsum(0).int(), held, g_kv_indptr=kv_indptr, **options
            ),
        )

    return decode


@torch.no_grad()
def rank_main(rank: int, world: int, rows: Tensor, how: str, results: mp.SimpleQueue) -> None:
    """One rank: all of the model, and its share of the attention."""
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(PORT)}
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=world)
    model = install(load("sdpa", torch.device("cpu")))
    decode = (by_keys if how == "keys" else by_heads)(world, rank)
    page_size = 1 if how == "keys" else 64
    scales = calibrated(model, fp8_dtype())
    for name, options in (
        ("bf16", {}),
        ("fp8", {"dtype": fp8_dtype(), "kv_scales": scales}),
    ):
        cache = new_cache(model, rows, decode=decode, page_size=page_size, **options)
        bits = bits_decoded(steps_of(model, cache), rows, 4)
        if rank == 0:
            results.put((name, f"hipdecode, {world} ranks share the {how}", 4, bits))
    dist.destroy_process_group()


def ranked_scores(rows: Tensor, world: int, how: str) -> Iterator[tuple[str, str, int, float]]:
    """As `scores`, over processes on this CPU."""
    results = mp.get_context("spawn").SimpleQueue()
    mp.spawn(rank_main, (world, rows, how, results), nprocs=world)
    while not results.empty():
        yield results.get()


@click.command(help=__doc__)
@click.option("--rows", "count", default=32, show_default=True, help="Pieces of the text.")
@click.option("--length", default=256, show_default=True, help="Bytes of each.")
@click.option("--ranks", default=0, show_default=True, help="Also over so many processes (CPU).")
@click.option("--share", type=click.Choice(["heads", "keys"]), multiple=True, help="By the ranks.")
@click.option("--csv", "out", type=click.Path(path_type=Path), help="Write the rows there.")
def main(count: int, length: int, ranks: int, share: tuple[str, ...], out: Path | None) -> None:
    """Scores and prints all rows."""
    device = torch.device(target.current().device_type)
    rows = held_out_rows(count, length, device)
    table = Table("cache", "how", "tokens a step", "bits/byte", "change")
    machine = timing.Machine.here(device.type).columns()
    found: list[Row] = []
    base, failed = 0.0, False
    ranked = (ranked_scores(rows, ranks, how) for how in share or ("heads", "keys") if ranks)
    for cache, how, q_len, bits in itertools.chain(scores(rows, device), *ranked):
        base = base or bits
        change = bits / base - 1
        failed |= abs(change) > MAX_CHANGE.get(cache, 0)
        found.append(
            {"cache": cache, "how": how, "q_len": q_len, "bits_per_byte": f"{bits:.5f}",
             "change_pct": f"{change:+.4%}".rstrip("%"), "rows": count, "length": length,
             "target": target.current().name, "transformers": transformers.__version__, **machine}
        )  # fmt: skip
        table.add_row(cache, how, str(q_len), f"{bits:.5f}", f"{change:+.4%}")
        if out is not None:
            write_csv(out, found)  # after every row: a run may be cut short
    console().print(table)
    sys.exit(failed)


if __name__ == "__main__":
    main()
