# SPDX-License-Identifier: MIT
"""What the demo prints, promises and writes; and that its training runs."""

import csv
import math
from pathlib import Path

import pytest
import torch

pytest.importorskip("transformers", reason="needs the demo extra: pip install 'hipdecode[demo]'")

from click.testing import CliRunner
from test_demo_model import torch_decode
from transformers import DeepseekV3Config

from hipdecode.cli.demo import command
from hipdecode.demo import train
from hipdecode.demo.cache import PagedLatentCache
from hipdecode.demo.generate import Agreement, compare_with_eager, continue_prompt
from hipdecode.demo.model import WEIGHTS, absorb, serve_on
from hipdecode.demo.plot import draw
from hipdecode.demo.routes import routes_taken
from hipdecode.demo.run import check, printable
from hipdecode.demo.text import Corpus
from hipdecode.demo.timings import CallTime
from hipdecode.errors import BadArgument
from hipdecode.testing.tiny_models import tiny_model

EXACT = Agreement(equal=8, total=8, margin=0.2)
BITS = {"eager": 1.5, "bf16": 1.5003, "fp8": 1.506}


def holds(agreement: Agreement, **bits: float) -> list[bool]:
    return [bound.holds for bound in check(agreement, BITS | bits)]


def test_check_holds_within_the_bounds() -> None:
    assert holds(EXACT) == [True] * 4
    assert holds(Agreement(equal=3, total=8, margin=0.01)) == [True] * 4


@pytest.mark.parametrize(
    ("which", "agreement", "bits"),
    [
        (0, Agreement(equal=3, total=8, margin=0.5), {}),
        (1, EXACT, {"eager": 2.1, "bf16": 2.1, "fp8": 2.1}),
        (2, EXACT, {"bf16": 1.503}),
        (3, EXACT, {"fp8": 1.49}),
        (3, EXACT, {"fp8": math.nan}),
    ],
    ids=["greedy", "eager", "bf16", "fp8", "nan"],
)
def test_check_fails_outside_a_bound(which, agreement, bits) -> None:
    wanted = [True] * 4
    wanted[which] = False
    assert holds(agreement, **bits) == wanted


def test_printable_decodes_as_bytes_come_and_hides_controls() -> None:
    assert "".join(printable("né\n\x1b[31m".encode())) == "né\n\ufffd[31m"
    assert "".join(printable(b"a\xc3")) == "a\ufffd"


def test_continuation_is_eagers_own_greedy_one() -> None:
    model, prompt = absorb(tiny_model(), torch_decode), b"def "
    cache = serve_on(model, batch=1, capacity=20, dtype=torch.float32)
    text = bytes(continue_prompt(model, cache, prompt, 16))
    agreement = compare_with_eager(tiny_model(), prompt, text)
    assert agreement.equal == agreement.total == len(text)
    wrong = bytes([text[0], text[1] ^ 1, *text[2:]])
    assert compare_with_eager(tiny_model(), prompt, wrong).equal == 1


def test_routes_taken_counts_every_call() -> None:
    cache = PagedLatentCache(layers=3, batch=2, capacity=32, head_dim_qk=576, dtype=torch.bfloat16)
    for q_len in (16, 1, 1, 1):
        cache.begin(q_len)
    uses = list(routes_taken(cache, nhead=16))
    assert sum(use.calls for use in uses) == 12
    assert {use.q_len for use in uses} == {1, 16}


def test_draw_writes_a_picture(tmp_path: Path) -> None:
    times = [CallTime("bf16", 1, n, "hk", 1.0 * n, 2.0 * n, "torch_fp32") for n in (128, 512)]
    draw(BITS, times, tmp_path / "new" / "demo.png")
    assert (tmp_path / "new" / "demo.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("prompt", ["", "x" * 1000])
def test_demo_refuses_a_prompt_that_does_not_fit(prompt: str) -> None:
    result = CliRunner().invoke(command, ["--prompt", prompt, "--tokens", "100"])
    assert isinstance(result.exception, BadArgument)
    assert "--prompt: expected 1 to 924 bytes" in str(result.exception)


@pytest.mark.slow
def test_demo_runs_and_holds_its_bounds(target: str, tmp_path: Path) -> None:
    del target
    picture = tmp_path / "demo.png"
    result = CliRunner().invoke(command, ["--tokens", "40", "--out", str(picture)])
    assert result.exit_code == 0, result.output
    assert "fails" not in result.output
    assert picture.is_file()


def test_train_runs_two_steps_on_the_cpu(tmp_path: Path) -> None:
    text = bytes(range(32, 127)) * 20
    config: DeepseekV3Config = tiny_model().config
    settings = train.Settings(
        steps=2,
        minutes=5.0,
        batch=4,
        length=32,
        learning_rate=1e-3,
        weight_decay=0.1,
        prose_share=0.5,
        seed=1,
        evaluate_every=1,
        device="cpu",
    )
    bits = train.train(Corpus(prose=text, code=text, held_out=text), config, settings, tmp_path)
    assert 0 < bits < 20
    assert (tmp_path / WEIGHTS).stat().st_size > 0
    with (tmp_path / train.LOG).open() as file:
        rows = list(csv.DictReader(file))
    assert [row["step"] for row in rows] == ["1", "2"]
