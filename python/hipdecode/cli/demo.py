# SPDX-License-Identifier: MIT
"""`hipdecode demo`: a small trained model decodes on these kernels, checked while it does."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import click

from hipdecode.errors import BadArgument

_PACKAGES = ("matplotlib", "safetensors", "transformers")
_MOST_BYTES = 1024
"""The longest text that the model's positions reach."""


@click.command()
@click.option(
    "--prompt",
    default="The *yield expression* is used when",
    show_default=True,
    help="Text to continue; the model knows Python's own sources and reference pages.",
)
@click.option("--tokens", type=click.IntRange(min=1), default=200, show_default=True, help="Bytes.")
@click.option("--plot/--no-plot", "with_plot", default=True, help="Write a picture.")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path("hipdecode_demo.png"),
    show_default=True,
    help="The picture, a PNG.",
)
def command(*, prompt: str, tokens: int, with_plot: bool, out: Path) -> None:
    """Serve a small language model with latent attention on these kernels.

    Continues the prompt on a paged bf16 and on a paged fp8 cache, then compares with transformers'
    own attention in fp32. The exit status is not zero if a bound fails.
    """
    missing = [name for name in _PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise BadArgument(
            f"demo: expected the packages {', '.join(_PACKAGES)}, got no {', '.join(missing)}; "
            "do pip install 'hipdecode[demo]'"
        )
    text = prompt.encode()
    if not 1 <= len(text) <= _MOST_BYTES - tokens:
        raise BadArgument(
            f"--prompt: expected 1 to {_MOST_BYTES - tokens} bytes with {tokens} tokens, got "
            f"{len(text)}; write another prompt or ask for fewer tokens"
        )
    from rich.console import Console

    from hipdecode.demo.run import run

    holds = run(Console(), prompt=text, tokens=tokens, picture=out if with_plot else None)
    sys.exit(0 if holds else 1)
