# SPDX-License-Identifier: MIT
"""Runs a smoke set of the sm_90 kernels under compute-sanitizer: memcheck and initcheck.

`--tool racecheck` and `--tool synccheck` are there and cry wolf. Racecheck's model of an mbarrier
orders what the arriving thread itself wrote; zeros that the other lanes of a wave stored before
`__syncwarp` and the first lane's arrival count as racing with the reads behind the gate, though
release and acquire order them (PTX memory model, causality order). The same goes for blocks whose
waves have roles: a store, `bar.sync` among the 256 threads that compute, and a load are reported in
kernels that also fetch. Synccheck wants all threads of a block at one `bar.sync 0`: waves that
fetch meet those that compute from a statement of their own branch, which PTX allows from one warp
to another. Each report traced to its instructions on 2026-11-21 was one of these; another kind
deserves a look.

Needs a Hopper GPU and NVIDIA's compute-sanitizer (it comes with CUDA). The set has every route and
every kind of tile of dense and sparse MLA, of paged attention and of the merges, page tails and
requests without tokens; results are compared with the oracle in passing. Kernels are built before
the tools start: `run.py` does the same for the CPU.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "python"))

import hipdecode
from hipdecode import ops
from hipdecode.testing.calls import Checker
from hipdecode.testing.cases import Case
from hipdecode.testing.paged_cases import PagedCase, check_paged
from hipdecode.testing.sparse_cases import SparseCase, check_sparse

TARGET = "sm_90"
TOOLS = {
    "memcheck": ("--padding", "64"),  # so that a step over an allocation's end is seen
    "initcheck": (),
    "synccheck": (),
    "racecheck": ("--racecheck-report", "analysis"),
}
USUAL = ("memcheck", "initcheck")
FAILED = 9


def smoke_set(quick: bool) -> Iterator[tuple[Case, str]]:
    """Cases and calls: rows of 16, 32 and 64 in a tile, dtypes, pages, holes, padded requests."""
    lengths = {"q_lens": (1, 2, 0, 1), "kv_lens": (70, 0, 9, 331)}
    for kv_dtype in ("fp8_e4m3fn", "bf16"):
        for nhead in (8, 32, 64):
            case = Case(**lengths, nhead=nhead, kv_dtype=kv_dtype, page_size=16, tail="minus_one")
            for call in ("hk-1", "hk-3", "persistent"):
                yield case, call
    if not quick:
        for case in (
            Case(**lengths, nhead=128, q_dtype="fp8_e4m3fn", kv_dtype="fp8_e4m3fn", holes=3),
            Case(**lengths, nhead=16, q_dtype="fp16", kv_dtype="fp16", page_size=64),
        ):
            for call in ("hk-3", "persistent"):
                yield case, call


def sparse_smoke_set() -> Iterator[tuple[SparseCase, int]]:
    """Both caches with holes and empty lists, one block of heads and two, whole and in splits."""
    for nhead in (16, 128):
        for splits in (1, 3):
            yield SparseCase("v32", nhead, lens=(130, 0, 70), holes=7), splits
            v4 = SparseCase("v4", nhead, lens=(128, 0, 1), extra_lens=(300, 0, 5), sink="mixed")
            yield dataclasses.replace(v4, holes=5, layout="lengths"), splits


def paged_smoke_set() -> Iterator[tuple[PagedCase, int]]:
    """Rows of 16, 32 and 64 in a tile, both layouts of V, empty requests, whole and in splits."""
    for gqa, mtp, dims in ((8, 1, 5), (16, 2, 4), (16, 4, 5)):
        fp8 = PagedCase(lens=(250, 0, 33), mtp=mtp, gqa=gqa, value_dims=dims, holes=5)
        for case in (fp8, dataclasses.replace(fp8, kv_dtype="bf16", scales="none")):
            for splits in (1, 3):
                yield case, splits


def check_merge(splits: int, device: torch.device) -> None:
    """The stand-alone merge of pieces that all have keys, and a request without any."""
    kv_lens = (64 * splits, 5000, 0)
    lse = torch.randn(3 * splits, 16, dtype=torch.float64)
    partial = torch.randn(3 * splits, 16, 512, dtype=torch.float64)
    weights = lse.view(3, splits, 16, 1).softmax(1)
    want = (weights * partial.view(3, splits, 16, 512)).sum(1)
    want[2] = 0
    out = torch.full((3, 16, 512), float("nan"), dtype=torch.bfloat16, device=device)
    tokens = torch.tensor([0, *itertools.accumulate(kv_lens)], dtype=torch.int32, device=device)
    placed = (partial.float().to(device), lse.float().to(device))
    hipdecode.mla_decode_reduce(*placed, out, tokens, 3, min(splits, 2), 4, splits)
    torch.testing.assert_close(out.cpu().double(), want, atol=0.02, rtol=0.02)


def smoke(quick: bool) -> None:
    """Decodes the sets and compares every result with the oracle."""
    ops.load_binding()
    device = torch.device("cuda")
    check = Checker(TARGET, device)
    for case, call in smoke_set(quick):
        check(case, call)
    for sparse_case, splits in sparse_smoke_set():
        check_sparse(sparse_case, splits, TARGET, device)
    for paged_case, splits in paged_smoke_set():
        check_paged(paged_case, TARGET, device, num_splits=splits)
    for splits in (1, 4, 16):
        check_merge(splits, device)
    torch.cuda.synchronize()


def run(tool: str, quick: bool) -> bool:
    """One tool over the set; returns whether it found nothing."""
    options = ("--error-exitcode", str(FAILED), "--print-limit", "20", *TOOLS[tool])
    script = [sys.executable, str(Path(__file__).resolve()), "--smoke"]
    command = ["compute-sanitizer", "--tool", tool, *options, *script, *["--quick"] * quick]
    # torch's allocator would hide who owns what in blocks of its own
    environment = {**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1", "HIPDECODE_NO_BUILD": "1"}
    print(tool, flush=True)
    return subprocess.run(command, check=False, env=environment).returncode == 0


def main() -> int:
    """Runs what the command line asks for; returns the number of tools that found something."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tool", action="append", choices=TOOLS, help="default: all but racecheck")
    parser.add_argument("--quick", action="store_true", help="leave out the rarer dtypes")
    parser.add_argument("--smoke", action="store_true", help="only the set, under no tool")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        print(f"sanitize: expected a GPU, got none; run it on a machine with one ({TARGET})")
        return 1
    smoke(arguments.quick)
    if arguments.smoke:
        return 0
    return sum(not run(tool, arguments.quick) for tool in arguments.tool or USUAL)


if __name__ == "__main__":
    sys.exit(main())
