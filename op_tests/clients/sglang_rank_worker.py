# SPDX-License-Identifier: MIT
"""What one of several ranks that share keys does: `python sglang_rank_worker.py RANK RANKS FOLDER`.

Queries of all ranks are gathered, decoded and merged by SGLang's own functions over its own groups,
as its DeepSeek models do under --dcp-size. Its Triton kernels run in Triton's interpreter.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from sglang_engine import HEAD_DIM_QK, HEAD_DIM_V, NAME, Engine, ForwardMode, indexable
from torch import Tensor

# isort: split
from sglang.srt.distributed.parallel_state import (
    GroupCoordinator,
    init_distributed_environment,
)
from sglang.srt.layers.dcp import (
    all_gather_q_for_mla_decode,
    cp_lse_ag_out_rs_mla,
    dcp_a2a_lse_reduce,
)
from sglang.srt.models.deepseek_common.attention_forward_methods import forward_mla
from sglang.srt.models.deepseek_common.utils import FORWARD_ABSORB_CORE_ATTENTION_BACKENDS
from sglang.srt.runtime_context import get_parallel

from hipdecode.integrations.sglang.pack_triton import pack as pack_on_gpu
from hipdecode.integrations.sglang.rows_triton import take
from hipdecode.integrations.sglang.steps import Buffers, Deal, pack

CONTEXT = 160


@dataclass(frozen=True)
class Job:
    """One step; kv_lens count the new tokens."""

    kv_lens: tuple[int, ...]
    drafts: int = 0
    page_size: int = 1
    fp8: bool = False
    k_scale: float | None = None
    a2a: bool = False


JOBS = {
    "decode": Job((33, 1, 2, 130)),
    "pages": Job((1, 31, 32, 33, 129), page_size=16),
    "fp8": Job((65, 3), page_size=16, fp8=True, k_scale=0.0625),
    "all to all": Job((40, 1), a2a=True),
    "verification": Job((3, 37, 100), drafts=3),
    "verification of pages": Job((4, 7, 65, 128), drafts=4, page_size=16, fp8=True),
}
HEADS = 4  # of a rank


class CpuGroup(GroupCoordinator):
    """SGLang's group; it registers these two for GPUs alone."""

    def reduce_scatter_tensor(self, output: Tensor, input: Tensor) -> Tensor:
        """See GroupCoordinator."""
        dist.reduce_scatter_tensor(output, input, group=self.device_group)
        return output

    def all_to_all_single(self, output: Tensor, input: Tensor) -> None:
        """See GroupCoordinator."""
        dist.all_to_all_single(output, input, group=self.device_group)


class SharedEngine(Engine):
    """An engine that holds the tokens of one rank; the ranks draw the same numbers."""

    def serve(self, kv_lens: tuple[int, ...]) -> Tensor:
        """As of one rank, in slots that count the rows of all ranks."""
        ranks, rank = get_parallel().attn_dcp_size, get_parallel().attn_dcp_rank
        table = self.runner.req_to_token_pool.req_to_token
        wide = self.page_size * ranks
        rows = 1 + torch.randperm(table.shape[0] - 1, generator=self.generator)[: len(kv_lens)]
        pages = 1 + torch.randperm(
            self.cache.shape[0] // self.page_size - 1, generator=self.generator
        )
        free = iter(pages.tolist())
        table.fill_(-1)
        self.keys = []
        for row, kv_len in zip(rows.tolist(), kv_lens, strict=True):
            begins = torch.tensor(list(itertools.islice(free, -(-kv_len // wide))))
            slots = (begins[:, None] * wide + torch.arange(wide)).flatten()[:kv_len]
            table[row, :kv_len] = slots.to(table)
            scale = self.layer.k_scale_float or 1.0
            latents = (self.normal(kv_len, 1, HEAD_DIM_QK) / scale).to(self.cache.dtype)
            own = slots % ranks == rank
            places = (slots[own] // ranks).to(self.device)
            indexable(self.cache)[places] = indexable(latents)[own.to(self.device)]
            self.keys.append(latents)
        return rows.to(self.device)

    def remember(self, k: Tensor, q_len: int) -> None:
        """The new tokens, for the answer over all ranks."""
        rows = (k / (self.layer.k_scale_float or 1.0)).to(self.cache.dtype)
        for keys, new in zip(self.keys, rows.split(q_len), strict=True):
            indexable(keys)[-q_len:] = indexable(new)


def decode(
    job: Job, device: torch.device, gather: Callable[..., tuple[Tensor, Tensor]]
) -> dict[str, Any]:
    """One step over this rank's keys; `gather` makes q of all ranks' heads of this rank's parts."""
    parallel, q_len = get_parallel(), job.drafts or 1
    engine = SharedEngine(
        device,
        batch=len(job.kv_lens),
        context=CONTEXT,
        nhead=HEADS,
        page_size=job.page_size,
        drafts=job.drafts,
        fp8=job.fp8,
        k_scale=job.k_scale,
        prompts="flashinfer",
    )
    layer = type(engine.layer)(
        HEADS * parallel.attn_dcp_size, HEAD_DIM_QK, engine.layer.scaling, 1, 0,
        v_head_dim=HEAD_DIM_V,
    )  # fmt: skip
    layer.k_scale, layer.k_scale_float = engine.layer.k_scale, engine.layer.k_scale_float
    rows = engine.serve(job.kv_lens)
    mode = ForwardMode.TARGET_VERIFY if job.drafts else ForwardMode.DECODE
    batch = engine.batch(mode, job.kv_lens, rows, q_len)
    count = len(job.kv_lens) * q_len
    k = engine.normal(count, 1, HEAD_DIM_QK)
    whole = engine.normal(count, HEADS * parallel.attn_dcp_size, HEAD_DIM_QK)
    engine.remember(k, q_len)
    sizes = (HEAD_DIM_V, HEAD_DIM_QK - HEAD_DIM_V)
    q_nope, q_rope = gather(*(part.contiguous() for part in whole.split(sizes, -1)))
    k_nope, k_rope = k.split(sizes, -1)
    engine.backend.init_forward_metadata(batch)
    with engine.served_by(engine.backend):
        o, lse = layer(q_nope, k_nope, k_nope, batch, q_rope=q_rope, k_rope=k_rope)
    return {
        "q": whole, "keys": [indexable(keys) for keys in engine.keys], "dtype": engine.cache.dtype,
        "scaling": layer.scaling, "part": (o.view(count, -1, HEAD_DIM_V), lse),
    }  # fmt: skip


def own_heads(*parts: Tensor) -> tuple[Tensor, Tensor]:
    """As the model: each rank has its heads, and SGLang gathers them."""
    first = HEADS * get_parallel().attn_dcp_rank
    return all_gather_q_for_mla_decode(*(part.narrow(1, first, HEADS) for part in parts))


def run(job: Job) -> dict[str, Any]:
    """A step of the model on this rank."""
    result = decode(job, torch.device("cpu"), own_heads)
    o, lse = (part.clone() for part in result["part"])
    return {**result, "out": merged(o, lse, job.a2a)}


def merged(o: Tensor, lse: Tensor, a2a: bool) -> Tensor:
    """The end of SGLang's `forward_absorb_core`."""
    group = get_parallel().dcp_group
    natural = forward_mla.is_mla_dcp_lse_base_on_e(NAME)
    if a2a:
        return dcp_a2a_lse_reduce(o, lse, group, is_lse_base_on_e=natural, comm_backend="a2a")
    return cp_lse_ag_out_rs_mla(o, lse, group, is_lse_base_on_e=natural).transpose(0, 1)


def check_page_lists(device: torch.device, page_size: int, ranks: int) -> None:
    """Lengths and pages that the kernel writes, for every rank, against plain torch."""
    generator = torch.Generator().manual_seed(page_size * ranks)
    lengths = torch.tensor([0, 1, 2, 33, 700, 64, 5])
    wide = page_size * ranks
    pages = 1 + torch.randperm(99 * 700, generator=generator)[: 9 * 800].view(9, 800)
    table = (pages[:, :, None] * wide + torch.arange(wide)).flatten(1)[:, :720].int()
    rows = torch.randperm(9, generator=generator)[: len(lengths)]
    for rank, less in itertools.product(range(ranks), (None, lengths.clamp(max=2))):
        steps = []
        for where, write in ((torch.device("cpu"), pack), (device, pack_on_gpu)):
            buffers = Buffers(len(lengths), 1500, [3], where)
            given = [t if t is None else t.to(where) for t in (table, rows, lengths, less)]
            step = buffers.step(len(lengths), 3, None)
            write(*given[:3], 3, given[3], Deal(page_size, ranks, rank), step)
            steps.append(step)
        for name in ("kv_indptr", "kv_last_page_lens", "g_kv_indptr", "kv_indices"):
            assert torch.equal(getattr(steps[0], name), getattr(steps[1], name).cpu()), name


def check_new_tokens(device: torch.device, fp8: bool, ranks: int) -> None:
    """Queries that the kernel joins and latents that it stores, against plain torch."""
    generator = torch.Generator().manual_seed(ranks)
    rows, nhead, capacity = 5, 6, 40
    dtype = torch.float8_e4m3fn if fp8 else torch.bfloat16
    q = torch.randn(nhead, rows, 576, generator=generator).bfloat16().transpose(0, 1)
    # the interpreter does not round to fp8 as GPUs do: values that need no rounding
    k = torch.randn(rows, 1, 576, generator=generator).to(dtype).bfloat16() / (2 if fp8 else 1)
    slots = torch.tensor([7, 0, capacity * ranks, 8, 3])
    scale = torch.tensor(0.5) if fp8 else None
    for rank in range(ranks):
        want = torch.zeros(capacity, 1, 576, dtype=dtype)
        got = want.clone().to(device)
        for row in (0, 3, 4):
            if slots[row] % ranks == rank:
                new = (k[row] * 2 if fp8 else k[row]).to(dtype)
                indexable(want)[slots[row] // ranks] = indexable(new)
        parts = [part.to(device) for part in (*q.split((512, 64), -1), *k.split((512, 64), -1))]
        parts[0] = parts[0].transpose(0, 1).contiguous().transpose(0, 1)  # as a batched product
        more = (None if scale is None else scale.to(device), slots.to(device), got)
        joined = take(*parts, *more, Deal(1, ranks, rank))
        assert torch.equal(joined.cpu(), q)
        assert torch.equal(indexable(got).cpu(), indexable(want))


def main(rank: int, ranks: int, folder: Path) -> None:
    """Runs all jobs."""
    init_distributed_environment(
        ranks, rank, f"file://{folder / 'meet'}", local_rank=rank, backend="gloo"
    )
    group = CpuGroup(
        [list(range(ranks))], rank, "gloo", False, False, False, False, False, False,
        group_name="dcp",
    )  # fmt: skip
    shared = {"dcp_size": ranks, "attn_dcp_size": ranks, "dcp_rank": rank, "attn_dcp_rank": rank}
    with get_parallel().override(dcp_enabled=True, dcp_group=group, **shared):
        results = {name: run(job) for name, job in JOBS.items()}
        assert FORWARD_ABSORB_CORE_ATTENTION_BACKENDS.count(NAME) == 1
        for page_size, count in itertools.product((1, 16), (1, 2, 3)):
            check_page_lists(torch.device("cpu"), page_size, count)
            check_new_tokens(torch.device("cpu"), page_size > 1, count)
        assert not forward_mla.is_mla_dcp_lse_base_on_e("flashinfer")
    torch.save(results, folder / f"{rank}.pt")


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
