# SPDX-License-Identifier: MIT
"""One of several processes that score the demo's model: `python score_worker.py RANK RANKS FOLDER`.

Every rank runs the whole model; of each request's latents its attention looks at its share alone.
"""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from hipdecode import RankedDecode
from hipdecode.demo.model import absorb, decode_step, load_model, serve_on
from hipdecode.demo.score import bits_decoded, held_out_rows

Q_LEN = 4
FP8 = torch.float8_e4m3fn


class SharedKeys:
    """`mla_decode` over the tokens of the cache that are this rank's, merged over all ranks."""

    def __init__(self, ranked: RankedDecode) -> None:
        self.ranked = ranked

    def __call__(
        self, q: Tensor, kv_buffer: Tensor, qo_indptr: Tensor, kv_indptr: Tensor,
        kv_indices: Tensor, *, kv_last_page_lens: Tensor, kv_len: int, **options: Any,
    ) -> Tensor:  # fmt: skip
        page, (rank, ranks) = kv_buffer.shape[1], (self.ranked.rank, self.ranked.world_size)
        batch = kv_last_page_lens.numel()
        tokens = torch.arange(kv_len)[rank::ranks]
        pages = kv_indices.view(batch, -1)[:, tokens // page]
        steps = torch.arange(batch + 1, dtype=torch.int32)
        out = self.ranked.decode(
            q,
            kv_buffer.view(-1, 1, 1, kv_buffer.shape[-1]),
            qo_indptr,
            steps * len(tokens),
            (pages * page + tokens % page).to(torch.int32).flatten(),
            g_kv_indptr=steps * kv_len,
            **options,
        )
        assert isinstance(out, Tensor)
        return out


def scores(rows: int, length: int) -> dict[str, float]:
    """Bits per byte with a cache of bf16, then of fp8."""
    ranked = RankedDecode(rows * Q_LEN, 16)
    text = held_out_rows(rows, length)
    model = absorb(load_model(), SharedKeys(ranked))

    def score(dtype: torch.dtype, scales: list[float] | None) -> float:
        cache = serve_on(model, batch=rows, capacity=length, dtype=dtype, kv_scales=scales)
        found = bits_decoded(partial(decode_step, model, cache), text, Q_LEN)
        calibrated.extend(cache.calibrate(FP8) if scales is None else [])
        return found

    calibrated: list[float] = []
    return {"bf16": score(torch.bfloat16, None), "fp8": score(FP8, calibrated)}


def main(rank: int, ranks: int, folder: Path, rows: int, length: int) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=ranks
    )
    torch.save(scores(rows, length), folder / f"{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]), *map(int, sys.argv[4:6]))
