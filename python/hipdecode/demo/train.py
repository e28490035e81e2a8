# SPDX-License-Identifier: MIT
"""Trains the demo's model on the standard library's text: ``python -m hipdecode.demo.train``."""

from __future__ import annotations

import argparse
import csv
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import DeepseekV3Config, DeepseekV3ForCausalLM

from hipdecode.demo.model import FOLDER, WEIGHTS
from hipdecode.demo.text import Corpus, load_corpus, windows

LOG = "training.csv"


@dataclass(frozen=True, slots=True)
class Settings:
    """What one training run depends on, besides the text and the model's configuration."""

    steps: int
    minutes: float
    batch: int
    length: int
    learning_rate: float
    weight_decay: float
    prose_share: float
    seed: int
    evaluate_every: int
    device: str


def next_byte_logits(model: DeepseekV3ForCausalLM, tokens: Tensor) -> Tensor:
    """Logits [batch, length, 256] of tokens [batch, length].

    The layers are called without a mask, which lets torch pick its causal kernel; the model's own
    forward would build a mask of length x length for every step.
    """
    positions = torch.arange(tokens.shape[1], device=tokens.device)[None]
    hidden = model.model.embed_tokens(tokens)
    rope = model.model.rotary_emb(hidden, positions)
    for layer in model.model.layers:
        hidden = layer(hidden, position_embeddings=rope, attention_mask=None)
    logits: Tensor = model.lm_head(model.model.norm(hidden))
    return logits


def loss_of(model: DeepseekV3ForCausalLM, rows: Tensor) -> Tensor:
    """Mean negative log-likelihood in nats per byte of rows [batch, length + 1]."""
    logits = next_byte_logits(model, rows[:, :-1])
    return torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), rows[:, 1:].flatten())


class Sampler:
    """Draws rows of bytes at random places, a fixed share of them from the prose."""

    def __init__(self, corpus: Corpus, settings: Settings) -> None:
        """Moves the training text to the device, once."""
        self._sources = [
            torch.frombuffer(bytearray(text), dtype=torch.uint8).to(settings.device)
            for text in (corpus.prose, corpus.code)
        ]
        prose_rows = round(settings.batch * settings.prose_share)
        self._counts = (prose_rows, settings.batch - prose_rows)
        self._offsets = torch.arange(settings.length + 1, device=settings.device)
        self._generator = torch.Generator(settings.device).manual_seed(settings.seed)

    def draw(self) -> Tensor:
        """Rows [batch, length + 1] int64."""
        rows = []
        for source, count in zip(self._sources, self._counts, strict=True):
            last = source.numel() - self._offsets.numel()
            starts = torch.randint(
                last + 1, (count, 1), generator=self._generator, device=source.device
            )
            rows.append(source[starts + self._offsets])
        return torch.cat(rows).long()


def learning_rate_at(progress: float, settings: Settings) -> float:
    """Linear warm-up over the first 4 % of the run, then a cosine down to 1 %."""
    warmup = 0.04
    if progress < warmup:
        return settings.learning_rate * max(progress, 1e-3) / warmup
    cosine = 0.5 * (1 + math.cos(math.pi * (progress - warmup) / (1 - warmup)))
    return settings.learning_rate * (0.01 + 0.99 * cosine)


def make_optimizer(model: DeepseekV3ForCausalLM, settings: Settings) -> torch.optim.AdamW:
    """AdamW with weight decay on the matrices only."""
    matrices = [weight for weight in model.parameters() if weight.ndim >= 2]
    vectors = [weight for weight in model.parameters() if weight.ndim < 2]
    groups = [
        {"params": matrices, "weight_decay": settings.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    fused = settings.device.startswith("cuda")
    return torch.optim.AdamW(groups, lr=settings.learning_rate, betas=(0.9, 0.95), fused=fused)


@torch.no_grad()
def held_out_bits(model: DeepseekV3ForCausalLM, rows: Tensor) -> float:
    """Bits per byte of rows [count, length + 1]."""
    losses = [loss_of(model, part).item() * len(part) for part in torch.split(rows, 32)]
    return sum(losses) / len(rows) / math.log(2)


def save_weights(model: DeepseekV3ForCausalLM, folder: Path) -> None:
    """Writes the weights as bf16, in the layout that ``from_pretrained`` reads."""
    state = {
        name: value.detach().to("cpu", torch.bfloat16).contiguous()
        for name, value in model.state_dict().items()
    }
    save_file(state, folder / WEIGHTS, metadata={"format": "pt"})


def train(corpus: Corpus, config: DeepseekV3Config, settings: Settings, out: Path) -> float:
    """Trains from scratch; writes the weights and the log into `out`.

    Returns:
        Bits per byte on the held-out part at the end.
    """
    torch.manual_seed(settings.seed)
    on_gpu = settings.device.startswith("cuda")
    if on_gpu:
        torch.set_float32_matmul_precision("high")
    config._attn_implementation = "sdpa"
    model = DeepseekV3ForCausalLM(config)
    torch.nn.Module.to(model, settings.device)
    optimizer = make_optimizer(model, settings)
    sampler = Sampler(corpus, settings)
    step_loss = torch.compile(loss_of) if on_gpu else loss_of
    held_out = torch.stack(
        [
            torch.frombuffer(bytearray(row), dtype=torch.uint8).long()
            for row in windows(corpus.held_out, 128 if on_gpu else 4, settings.length + 1)
        ]
    ).to(settings.device)
    if on_gpu:  # compiles before the clock starts, or compilation would eat the warm-up
        with torch.autocast("cuda", torch.bfloat16):
            torch.autograd.backward(step_loss(model, sampler.draw()))
        optimizer.zero_grad(set_to_none=True)
    started, bits = time.monotonic(), math.nan
    with (out / LOG).open("w", newline="") as file:
        log = csv.writer(file, lineterminator="\n")
        log.writerow(["step", "seconds", "learning_rate", "train_bits", "held_out_bits"])
        step, progress = 0, 0.0
        while progress < 1:
            rate = learning_rate_at(progress, settings)
            for group in optimizer.param_groups:
                group["lr"] = rate
            with torch.autocast(settings.device.partition(":")[0], torch.bfloat16, enabled=on_gpu):
                loss = step_loss(model, sampler.draw())
            torch.autograd.backward(loss)
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            step, seconds = step + 1, time.monotonic() - started
            progress = max(step / settings.steps, seconds / 60 / settings.minutes)
            if step % settings.evaluate_every == 0 or progress >= 1:
                bits, train_bits = held_out_bits(model, held_out), loss.item() / math.log(2)
                row = [step, f"{seconds:.1f}", f"{rate:.2e}", f"{train_bits:.4f}"]
                log.writerow([*row, f"{bits:.4f}"])
                file.flush()
                print(*row, f"{bits:.4f}", flush=True)
                save_weights(model, out)
    return bits


def main(arguments: Sequence[str] | None = None) -> None:
    """Parses the command line and trains."""
    parser = argparse.ArgumentParser(prog="python -m hipdecode.demo.train", description=__doc__)
    parser.add_argument("--out", type=Path, default=FOLDER, help="folder for weights and log")
    parser.add_argument("--config", type=Path, default=FOLDER / "config.json")
    parser.add_argument("--stdlib", type=Path, help="standard library folder to read")
    parser.add_argument("--with-tests", action="store_true", help="train on its tests as well")
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--minutes", type=float, default=10.0, help="an earlier end")
    parser.add_argument("--batch", type=int, default=128, help="rows per step")
    parser.add_argument("--length", type=int, default=512, help="bytes per row")
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--weight-decay", type=float, default=0.3)
    parser.add_argument("--prose-share", type=float, default=0.15)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--evaluate-every", type=int, default=250)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    values = vars(parser.parse_args(arguments))
    out, stdlib = values.pop("out"), values.pop("stdlib")
    config = DeepseekV3Config.from_json_file(values.pop("config"))
    corpus = load_corpus(stdlib, with_tests=values.pop("with_tests"))
    out.mkdir(parents=True, exist_ok=True)
    train(corpus, config, Settings(**values), out)


if __name__ == "__main__":
    main()
