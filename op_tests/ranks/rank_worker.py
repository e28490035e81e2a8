# SPDX-License-Identifier: MIT
"""What one of several processes does: `python rank_worker.py RANK RANKS FOLDER`, over gloo.

Every process runs all jobs and leaves its results in the folder; the tests compare them.
"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

import hipdecode
from hipdecode import RankedDecode
from hipdecode.errors import BadArgument
from hipdecode.testing import cases, rank_cases
from hipdecode.testing.cases import Case
from hipdecode.testing.recorder import Recorder

RAGGED = Case(nhead=16, q_lens=(4, 4, 1, 3, 4), kv_lens=(300, 3, 1, 130, 0))
ONE_ROW = Case(nhead=16, q_lens=(1,) * 5, kv_lens=(200, 1, 0, 3, 65), seed=1)
FP8_CACHE = Case(
    nhead=8, q_lens=(4, 4), kv_lens=(150, 2), kv_dtype="fp8_e4m3fn", kv_scale=0.25, seed=2
)
FP8 = dataclasses.replace(FP8_CACHE, nhead=16, q_dtype="fp8_e4m3fn", q_scale=2.0)


@dataclasses.dataclass(frozen=True)
class Job:
    """Steps of one RankedDecode, one after the other."""

    case: Case
    ranks: int
    route: str = "hk"
    scatter: bool = False
    interleave: int = 1
    page_size: int = 1
    later: tuple[tuple[int, ...], ...] = ()  # kv_lens of further steps

    def steps(self) -> list[Case]:
        return [
            self.case,
            *(dataclasses.replace(self.case, kv_lens=n, seed=7) for n in self.later),
        ]

    def run(self, group: dist.ProcessGroup | None) -> list[tuple[Tensor, Tensor]]:
        case, rows = self.case, sum(self.case.q_lens) + 3
        ranked = RankedDecode(
            rows, case.nhead, dtype=case.out_dtype, group=group, kv_interleave=self.interleave,
            scatter_heads=self.scatter,
        )  # fmt: skip
        results = []
        for step in self.steps():
            out, lse = ranked.decode(
                **self.share(step, ranked.rank), route=self.route, return_lse=True
            )
            results.append((out.clone(), lse.clone()))
        return results

    def share(self, step: Case, rank: int) -> dict[str, Any]:
        whole = cases.make_inputs(step)
        mine = rank_cases.share_of(
            step, whole, self.ranks, rank, interleave=self.interleave, page_size=self.page_size
        )
        return {**mine, "g_kv_indptr": rank_cases.global_lengths(step)}


def _heads(nhead: int) -> Case:
    return Case(nhead=nhead, q_lens=(2, 1), kv_lens=(70, 5), seed=nhead)


JOBS = {
    "ragged-2": Job(RAGGED, 2),
    "ragged-4": Job(RAGGED, 4),
    "ragged-4-persistent": Job(RAGGED, 4, "persistent"),
    "ragged-2-scattered": Job(RAGGED, 2, scatter=True),
    "ragged-4-scattered-persistent": Job(RAGGED, 4, "persistent", scatter=True),
    "one-row-2-persistent": Job(ONE_ROW, 2, "persistent"),
    "one-row-4": Job(ONE_ROW, 4),
    "one-row-4-scattered": Job(ONE_ROW, 4, scatter=True),
    "interleaved-4": Job(RAGGED, 4, interleave=16, page_size=16),
    "fp8-cache-2": Job(FP8_CACHE, 2, page_size=64),
    "fp8-cache-4-persistent": Job(FP8_CACHE, 4, "persistent"),
    "fp8-4": Job(FP8, 4),
    "fp8-2-persistent-scattered": Job(FP8, 2, "persistent", scatter=True),
    "later-steps-4": Job(
        RAGGED, 4, scatter=True, later=((1, 290, 40, 0, 4), (0, 0, 0, 0, 0), (300, 3, 1, 130, 0))
    ),
    **{
        f"heads-{nhead}-{ranks}-{route}": Job(_heads(nhead), ranks, route)
        for nhead, ranks, route in (
            (8, 2, "hk"), (8, 4, "persistent"), (4, 4, "hk"), (4, 2, "persistent"),
            (12, 2, "hk"), (12, 4, "persistent"), (6, 4, "hk"), (6, 2, "persistent"),
        )
    },
}  # fmt: skip


def merged_by_hand(group: dist.ProcessGroup | None) -> list[tuple[Tensor, Tensor]]:
    """An engine's own decodes, merged by `merge`."""
    job = JOBS["ragged-4"]
    ranked = RankedDecode(sum(RAGGED.q_lens), RAGGED.nhead, group=group)
    share = job.share(RAGGED, ranked.rank)
    shard = hipdecode.KvShard(share.pop("g_kv_indptr"), 4, ranked.rank)
    o, lse = hipdecode.mla_decode(**share, route="hk", return_lse=True, shard=shard)
    out, merged = ranked.merge(o, lse, return_lse=True)
    return [(out, merged)]


def warm_step_ops(group: dist.ProcessGroup | None) -> dict[str, list[str]]:
    """What a warm step runs, for each layout."""
    ran = {}
    for name, scatter in {"gather": False, "scatter": True}.items():
        rows = sum(RAGGED.q_lens)
        ranked = RankedDecode(rows, RAGGED.nhead, group=group, scatter_heads=scatter)
        share = JOBS["ragged-4"].share(RAGGED, ranked.rank)
        memory = {
            "out": torch.empty(rows, ranked.own_heads, 512, dtype=torch.bfloat16),
            "lse": torch.empty(rows, ranked.own_heads),
            "workspace": hipdecode.Workspace(),
        }
        for _ in range(2):
            with Recorder() as recorder:
                ranked.decode(**share, **memory, route="hk", num_splits=3)
        ran[name] = recorder.ops
    return ran


def refusals() -> dict[str, str]:
    """What wrong arguments are answered with, before anything is sent."""
    ranked = RankedDecode(4, 6)
    q, lse = torch.zeros(4, 6, 512, dtype=torch.bfloat16), torch.zeros(4, 6)
    calls = {
        "scattered heads": lambda: RankedDecode(4, 6, scatter_heads=True),
        "dtype": lambda: RankedDecode(4, 6, dtype=torch.float32),
        "rows": lambda: ranked.merge(torch.zeros(5, 6, 512, dtype=torch.bfloat16), lse),
        "heads": lambda: ranked.merge(torch.zeros(4, 5, 512, dtype=torch.bfloat16), lse),
        "no lse": lambda: ranked.merge(q, None),  # type: ignore[arg-type]
        "out": lambda: ranked.merge(q, lse, out=torch.zeros(4, 6, 512)),
        "interleave": lambda: RankedDecode(4, 6, kv_interleave=0),
    }
    answers = {}
    for name, call in calls.items():
        try:
            call()
        except BadArgument as error:
            answers[name] = str(error)
    return answers


def main(rank: int, ranks: int, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=ranks
    )
    pairs = [dist.new_group([first, first + 1]) for first in range(0, ranks, 2)]
    groups = {2: pairs[rank // 2], ranks: None}
    results: dict[str, Any] = {name: job.run(groups[job.ranks]) for name, job in JOBS.items()}
    results["merged-4"] = merged_by_hand(None)
    results["ops"] = warm_step_ops(None)
    results["refusals"] = refusals()
    torch.save(results, folder / f"{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
