# SPDX-License-Identifier: MIT
"""What the benchmarks time, and the interface of whatever can be timed on it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from hipdecode.support import check_supported
from hipdecode.testing.cases import Case, MlaInputs, make_inputs


@dataclass(frozen=True, slots=True)
class DecodeCase:
    """A case of uniform q_len with its tensors, and the sizes that numbers are given in.

    Attributes:
        spec: what was asked for; its kv_lens are host integers.
        inputs: the keyword arguments of `hipdecode.mla_decode`.
    """

    spec: Case
    inputs: MlaInputs

    @staticmethod
    def draw(
        kv_lens: Sequence[int],
        *,
        nhead: int,
        q_len: int = 1,
        q_dtype: str = "bf16",
        kv_dtype: str = "bf16",
        page_size: int = 1,
        head_dims: tuple[int, int] = (576, 512),
        seed: int = 0,
        device: str = "cpu",
    ) -> DecodeCase:
        """Draws q, kv ~ N(0, 1), fp8 by a plain cast, pages in random order, causal.

        Args:
            kv_lens: tokens of each request, q_len or more.
            nhead: query heads.
            q_len: query tokens of each request.
            q_dtype: a name of `cases.DTYPES`.
            kv_dtype: likewise.
            page_size: tokens of a page.
            head_dims: (head_dim_qk, head_dim_v).
            seed: of the generator.
            device: where the tensors are drawn and stay; the numbers differ from one to another.

        Raises:
            UnsupportedShape: no kernel of the package takes it.
        """
        check_supported(
            nhead=nhead,
            q_len=q_len,
            dtypes=(q_dtype, kv_dtype),
            head_dims=head_dims,
            page_size=page_size,
        )
        spec = Case(
            nhead=nhead,
            q_lens=(q_len,) * len(kv_lens),
            kv_lens=tuple(kv_lens),
            page_size=page_size,
            q_dtype=q_dtype,
            kv_dtype=kv_dtype,
            head_dim_qk=head_dims[0],
            head_dim_v=head_dims[1],
            poison=False,
            seed=seed,
        )
        with torch.device(device):
            return DecodeCase(spec, make_inputs(spec))

    @property
    def device(self) -> torch.device:
        """Where the tensors live."""
        return self.inputs["q"].device

    @property
    def batch(self) -> int:
        """Requests."""
        return len(self.spec.kv_lens)

    @property
    def q_len(self) -> int:
        """Query tokens of each request."""
        return self.spec.q_lens[0]

    @property
    def tokens(self) -> int:
        """KV tokens of all requests."""
        return sum(self.spec.kv_lens)

    @property
    def scale(self) -> float:
        """Factor on the logits."""
        return self.inputs["sm_scale"] or self.spec.head_dim_qk**-0.5

    @property
    def flops(self) -> float:
        """Matrix work of the call; masked positions of a causal tail count as work."""
        rows = self.spec.nhead * self.q_len
        return 2.0 * rows * self.tokens * (self.spec.head_dim_qk + self.spec.head_dim_v)

    @property
    def kv_bytes(self) -> int:
        """KV bytes that have to be read."""
        return self.tokens * self.spec.head_dim_qk * self.inputs["kv_buffer"].element_size()

    def twin(self) -> DecodeCase:
        """The same case on buffers of its own, for cold caches."""
        inputs = self.inputs.copy()
        inputs["q"], inputs["kv_buffer"] = inputs["q"].clone(), inputs["kv_buffer"].clone()
        return DecodeCase(self.spec, inputs)

    def slots(self, request: int) -> Tensor:
        """[kv_len] int64: rows of the flattened cache that hold the request's tokens, in order."""
        first, last = self.inputs["kv_indptr"][request : request + 2].tolist()
        pages = self.inputs["kv_indices"][first:last].long()
        within = torch.arange(self.spec.page_size, device=self.device)
        rows = pages[:, None] * self.spec.page_size + within
        return rows.flatten()[: self.spec.kv_lens[request]]

    def pick(self, requests: Sequence[int]) -> MlaInputs:
        """The inputs of a few of the requests, on the same KV pool."""
        inputs = self.inputs.copy()
        indptr = self.inputs["kv_indptr"].tolist()
        pages = [self.inputs["kv_indices"][indptr[b] : indptr[b + 1]] for b in requests]
        counts = torch.tensor([0, *(page.numel() for page in pages)], device=self.device)
        starts = torch.arange(len(requests) + 1, dtype=torch.int32, device=self.device)
        last = self.inputs["kv_last_page_lens"]
        inputs["q"] = self.inputs["q"][self.rows_of(requests)]
        inputs["qo_indptr"] = starts * self.q_len
        inputs["kv_indptr"] = counts.cumsum(0).to(torch.int32)
        inputs["kv_indices"] = torch.cat(pages)
        inputs["kv_last_page_lens"] = None if last is None else last[list(requests)]
        return inputs

    def rows_of(self, requests: Sequence[int]) -> Tensor:
        """The output rows of a few of the requests, int64."""
        first = torch.tensor(requests, device=self.device)[:, None] * self.q_len
        return (first + torch.arange(self.q_len, device=self.device)).flatten()

    def new_output(self) -> Tensor:
        """A [batch * q_len, nhead, head_dim_v] in the output dtype, NaN until it is written."""
        rows = self.batch * self.q_len
        shape = (rows, self.spec.nhead, self.spec.head_dim_v)
        return torch.full(shape, torch.nan, dtype=self.spec.out_dtype, device=self.device)


class Peer(Protocol):
    """Something that computes a DecodeCase."""

    @property
    def name(self) -> str:
        """Its name in tables and CSV files."""
        ...

    def supports(self, case: DecodeCase) -> str | None:
        """None, or why it cannot run the case."""
        ...

    def prepare(self, case: DecodeCase) -> Callable[[], Tensor]:
        """A thunk that returns the output [batch * q_len, nhead, head_dim_v]."""
        ...
