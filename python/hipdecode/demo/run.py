# SPDX-License-Identifier: MIT
"""The whole demo: text, routes, times and bits per byte, printed, and the bounds they must meet."""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from transformers import DeepseekV3ForCausalLM

import hipdecode
from hipdecode import target as targets
from hipdecode.arguments import DTYPE_NAMES
from hipdecode.demo import plot
from hipdecode.demo.cache import PagedLatentCache
from hipdecode.demo.generate import Agreement, compare_with_eager, continue_prompt
from hipdecode.demo.model import absorb, decode_step, load_model, serve_on
from hipdecode.demo.replay import replay_prompt, torch_decode
from hipdecode.demo.routes import routes_taken
from hipdecode.demo.score import bits_decoded, bits_eager, held_out_rows
from hipdecode.demo.timings import CallTime, time_calls

PAGE_SIZE = 64
SCORED_ROWS, SCORED_LENGTH, SCORED_Q_LEN = 32, 256, 4
MAX_BITS = 2.0
MAX_CHANGE = {"bf16": 0.001, "fp8": 0.005}
NEAR_TIE = 0.05
"""Lead in logits below which the rounding of a bf16 cache may rightly turn a choice over."""

Caches = dict[str, PagedLatentCache]


@dataclass(frozen=True, slots=True)
class Bound:
    """Something that the demo promises.

    Attributes:
        name: what is bounded.
        found: what came out.
        wanted: what it must be.
        holds: whether it is.
    """

    name: str
    found: str
    wanted: str
    holds: bool


def run(console: Console, *, prompt: bytes, tokens: int, picture: Path | None) -> bool:
    """Runs the demo and prints it.

    Args:
        console: where to.
        prompt: what the model continues, one byte or more.
        tokens: bytes to generate at most.
        picture: the PNG to write, or None.

    Returns:
        Whether every bound holds.

    Raises:
        HipdecodeError: a kernel could not be built or a call was refused.
    """
    device = targets.current().device_type
    eager = load_model(device=device)
    served = absorb(load_model(device=device), hipdecode.mla_decode)
    fp8 = next(d for d, name in DTYPE_NAMES.items() if name == targets.current().fp8)
    nhead = served.config.num_attention_heads
    _print_model(console, served)

    room = len(prompt) + tokens
    cache = serve_on(served, batch=1, capacity=room, dtype=torch.bfloat16, page_size=PAGE_SIZE)
    caches = {"text, bf16": cache}
    text, speed = _print_text(console, served, cache, prompt, tokens)
    speeds = {"hipdecode, bf16 cache": speed}
    agreement = compare_with_eager(eager, prompt, text)
    scales = cache.calibrate(fp8)
    cache = serve_on(
        served, batch=1, capacity=room, dtype=fp8, kv_scales=scales, page_size=PAGE_SIZE
    )
    caches["text, fp8"] = cache
    _, speeds["hipdecode, fp8 cache"] = _print_text(console, served, cache, prompt, tokens)
    if device == "cuda":
        speeds["torch, bf16 cache"] = _torch_speed(prompt, tokens)
        _print_speeds(console, speeds)

    bits, scored = _score(eager, served, {"bf16": (torch.bfloat16, None), "fp8": (fp8, scales)})
    _print_routes(console, caches | scored, nhead)
    times = list(time_calls(("bf16", targets.current().fp8), nhead=nhead, page_size=PAGE_SIZE))
    _print_times(console, times)
    bounds = check(agreement, bits)
    _print_bounds(console, bounds)
    if picture is not None:
        plot.draw(bits, times, picture)
        console.print(f"picture: {picture}", highlight=False)
    return all(bound.holds for bound in bounds)


def check(agreement: Agreement, bits: Mapping[str, float]) -> list[Bound]:
    """What the demo promises of its numbers.

    Args:
        agreement: of the greedy text on the bf16 cache with fp32 eager attention.
        bits: bits per byte of `eager`, `bf16` and `fp8`.
    """
    found, exact = f"{agreement.equal} of {agreement.total}", agreement.equal == agreement.total
    if not exact:
        found += f"; eager leads by {agreement.margin:.3f}"
    bounds = [
        Bound(
            "greedy bytes equal to eager",
            found,
            f"all, or a lead < {NEAR_TIE}",
            exact or agreement.margin < NEAR_TIE,
        ),
        Bound(
            "bits/byte, fp32 eager",
            f"{bits['eager']:.4f}",
            f"below {MAX_BITS}",
            bits["eager"] < MAX_BITS,
        ),
    ]
    for name, limit in MAX_CHANGE.items():
        change = bits[name] / bits["eager"] - 1
        bounds.append(
            Bound(
                f"bits/byte, {name} cache",
                f"{bits[name]:.4f} ({change:+.3%})",
                f"within {limit:.1%}",
                abs(change) <= limit,
            )
        )
    return bounds


def printable(tokens: Iterable[int]) -> Iterator[str]:
    """UTF-8 text as its bytes come in; what is no text, control characters too, becomes U+FFFD."""
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    for token in tokens:
        for character in decoder.decode(bytes([token])):
            yield character if character.isprintable() or character in "\n\t" else "\ufffd"
    yield decoder.decode(b"", final=True)


def _score(
    eager: DeepseekV3ForCausalLM,
    served: DeepseekV3ForCausalLM,
    kinds: Mapping[str, tuple[torch.dtype, list[float] | None]],
) -> tuple[dict[str, float], Caches]:
    """Bits per byte by name, and the caches that they were decoded on."""
    rows = held_out_rows(SCORED_ROWS, SCORED_LENGTH, eager.device)
    bits, caches = {"eager": bits_eager(eager, rows)}, {}
    for name, (dtype, scales) in kinds.items():
        cache = serve_on(
            served,
            batch=SCORED_ROWS,
            capacity=SCORED_LENGTH,
            dtype=dtype,
            kv_scales=scales,
            page_size=PAGE_SIZE,
        )
        bits[name] = bits_decoded(partial(decode_step, served, cache), rows, SCORED_Q_LEN)
        caches[f"score, {name}"] = cache
    return bits, caches


def _print_model(console: Console, model: DeepseekV3ForCausalLM) -> None:
    config, count = model.config, sum(weight.numel() for weight in model.parameters())
    console.print(
        f"{type(model).__name__}, {count / 1e6:.1f} M parameters, {config.num_hidden_layers} "
        f"layers, {config.num_attention_heads} heads, latent {config.kv_lora_rank}+"
        f"{config.qk_rope_head_dim}; attention by hipdecode on {targets.current().name}, "
        f"{_machine(model.device)}",
        highlight=False,
    )


def _machine(device: torch.device) -> str:
    if device.type == "cpu":
        return f"{torch.get_num_threads()} threads"
    return torch.cuda.get_device_name(device)


def _print_text(
    console: Console,
    model: DeepseekV3ForCausalLM,
    cache: PagedLatentCache,
    prompt: bytes,
    tokens: int,
) -> tuple[bytes, float | None]:
    """Writes the continuation, on a CPU as it comes; returns it, and tokens/s of replays."""
    name = DTYPE_NAMES[cache.buffers[0].dtype]
    console.rule(f"greedy continuation, {name} cache in pages of {PAGE_SIZE}")
    console.print("".join(printable(prompt)), style="bold", end="", markup=False, highlight=False)
    if cache.device.type == "cuda":
        replayed = replay_prompt(model, cache, prompt, tokens)
        text, speed = replayed.text, replayed.tokens_per_s
        console.print("".join(printable(text)), markup=False, highlight=False, soft_wrap=True)
        return text, speed
    said = bytearray()

    def stream() -> Iterator[int]:
        for token in continue_prompt(model, cache, prompt, tokens):
            said.append(token)
            yield token

    for piece in printable(stream()):
        console.print(piece, end="", markup=False, highlight=False, soft_wrap=True)
    console.print("\n")
    return bytes(said), None


def _torch_speed(prompt: bytes, tokens: int) -> float:
    """Tokens per second of the same model with attention in plain torch, replayed likewise."""
    model = absorb(load_model(device="cuda"), torch_decode)
    room = len(prompt) + tokens
    cache = serve_on(model, batch=1, capacity=room, dtype=torch.bfloat16, page_size=PAGE_SIZE)
    for buffer in cache.buffers:
        buffer.zero_()  # unwritten tokens must be numbers there
    return replay_prompt(model, cache, prompt, tokens).tokens_per_s


def _print_speeds(console: Console, speeds: Mapping[str, float | None]) -> None:
    table = Table("attention", "tokens/s", title="one request, a graph replayed for every token")
    for name, speed in speeds.items():
        table.add_row(name, f"{speed:.0f}")
    console.print(table)


def _print_routes(console: Console, caches: Caches, nhead: int) -> None:
    table = Table("cache", "batch", "q_len", "context", "calls", "route", "by", title="routes")
    for name, cache in caches.items():
        for use in routes_taken(cache, nhead):
            span = "..".join(str(length) for length in dict.fromkeys(use.kv_lens))
            numbers = (str(cache.batch), str(use.q_len), span, str(use.calls))
            table.add_row(name, *numbers, use.route, use.decided_by)
    console.print(table)


def _print_times(console: Console, times: list[CallTime]) -> None:
    table = Table(
        "cache", "batch", "context", "route", "us", "torch us", "ratio", "torch's form",
        title="one attention call: hipdecode beside torch's fastest form",
    )  # fmt: skip
    for time in times:
        table.add_row(
            time.kv_dtype.partition("_")[0],
            str(time.batch),
            str(time.kv_len),
            time.route,
            f"{time.us:.0f}",
            f"{time.torch_us:.0f}",
            f"{time.torch_us / time.us:.1f}",
            time.torch_form,
        )
    console.print(table)


def _print_bounds(console: Console, bounds: list[Bound]) -> None:
    table = Table("bound", "found", "wanted", "", title="checks")
    for bound in bounds:
        mark = "[green]holds[/]" if bound.holds else "[bold red]fails[/]"
        table.add_row(bound.name, bound.found, bound.wanted, mark)
    console.print(table)
