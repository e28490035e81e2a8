# SPDX-License-Identifier: MIT
"""The paged cache of compressed latents that the demo's model writes and hipdecode reads."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hipdecode.errors import BadArgument
from hipdecode.integrations.transformers.layers import FP8_DTYPES, fp8_limits, put, quantised


@dataclass(frozen=True, slots=True)
class Step:
    """One decode step of the whole batch; every layer of the model uses the same one.

    Attributes:
        q_len: new tokens of each request.
        kv_len: tokens of each request, the new ones included.
        slots: [batch * q_len] int64, rows of the flattened buffer that the new tokens go to.
        qo_indptr: [batch + 1] int32, query rows of each request.
        kv_indptr: [batch + 1] int32, pages of each request.
        kv_indices: [pages in use] int32, page ids.
        kv_last_page_lens: [batch] int32, tokens in each last page.
    """

    q_len: int
    kv_len: int
    slots: Tensor
    qo_indptr: Tensor
    kv_indptr: Tensor
    kv_indices: Tensor
    kv_last_page_lens: Tensor


class PagedLatentCache:
    """Latents of equally long requests in pages of random order, one buffer per layer.

    Attributes:
        buffers: per layer, [num_pages, page_size, 1, head_dim_qk] in the cache's dtype.
        kv_scales: per layer, [1] fp32 that dequantises an fp8 buffer; None for other dtypes.
        device: where everything lies.
        kv_len: tokens of each request so far.
        step: what the current step writes and reads.
        steps: how often each (q_len, kv_len) was begun.
    """

    def __init__(
        self,
        *,
        layers: int,
        batch: int,
        capacity: int,
        head_dim_qk: int,
        dtype: torch.dtype,
        page_size: int = 64,
        kv_scales: Sequence[float] | None = None,
        seed: int = 0,
        device: torch.device | str = "cpu",
    ) -> None:
        """Allocates the buffers, filled with NaN: whatever reads an unwritten token shows it.

        Args:
            layers: buffers to make.
            batch: requests.
            capacity: tokens of each request at most.
            head_dim_qk: columns of a token.
            dtype: bf16 or fp8.
            page_size: tokens of a page.
            kv_scales: one per layer, for fp8 only.
            seed: of the order of the pages.
            device: where everything lies.

        Raises:
            BadArgument: fp8 without scales, or scales for another dtype.
        """
        if (kv_scales is not None) != (dtype in FP8_DTYPES):
            raise BadArgument(f"kv_scales: expected them for fp8 alone, got dtype {dtype}")
        pages = -(-capacity // page_size)
        shape = (batch * pages, page_size, 1, head_dim_qk)
        self.device = torch.device(device)
        self.buffers = [
            torch.full(shape, torch.nan, device=device).to(dtype) for _ in range(layers)
        ]
        self.kv_scales = [
            None if kv_scales is None else torch.tensor([kv_scales[layer]], device=device)
            for layer in range(layers)
        ]
        self._limits = fp8_limits(dtype, device)
        order = torch.randperm(batch * pages, generator=torch.Generator().manual_seed(seed))
        self._pages = order.to(torch.int32).view(batch, pages).to(device)
        self._page_size = page_size
        self.kv_len = 0
        self.step: Step | None = None
        self.steps: Counter[tuple[int, int]] = Counter()

    @property
    def batch(self) -> int:
        """Requests."""
        return self._pages.shape[0]

    @property
    def pages(self) -> Tensor:
        """[batch, pages] int32, page ids in the order of each request's tokens."""
        return self._pages

    @property
    def capacity(self) -> int:
        """Tokens of each request at most."""
        return self._pages.shape[1] * self._page_size

    @property
    def page_size(self) -> int:
        """Tokens of a page."""
        return self._page_size

    def begin(self, q_len: int) -> Step:
        """Makes room for `q_len` more tokens of every request and the tables of this step.

        Raises:
            BadArgument: the tokens do not fit.
        """
        batch, kv_len = self.batch, self.kv_len + q_len
        if kv_len > self.capacity:
            raise BadArgument(
                f"cache: expected at most {self.capacity} tokens, got {kv_len}; ask for fewer"
            )
        positions = torch.arange(self.kv_len, kv_len, device=self.device)
        rows = self._pages[:, positions // self._page_size].long() * self._page_size
        pages = -(-kv_len // self._page_size)
        requests = torch.arange(batch + 1, dtype=torch.int32, device=self.device)
        last = kv_len - (pages - 1) * self._page_size
        self.kv_len = kv_len
        self.steps[q_len, kv_len] += 1
        self.step = Step(
            q_len=q_len,
            kv_len=kv_len,
            slots=(rows + positions % self._page_size).flatten(),
            qo_indptr=requests * q_len,
            kv_indptr=requests * pages,
            kv_indices=self._pages[:, :pages].flatten().contiguous(),
            kv_last_page_lens=torch.full((batch,), last, dtype=torch.int32, device=self.device),
        )
        return self.step

    def write(self, layer: int, latents: Tensor, step: Step) -> None:
        """Stores the new tokens' latents [batch * q_len, head_dim_qk] fp32 of one layer."""
        buffer = self.buffers[layer]
        rows = quantised(latents, buffer.dtype, self.kv_scales[layer], self._limits)
        put(buffer.view(-1, buffer.shape[-1]), (step.slots,), rows)

    def calibrate(self, dtype: torch.dtype) -> list[float]:
        """Scales, one per layer, that fit an fp8 cache to four times the largest latent here.

        Other text has larger latents than a prompt, and fp8 loses nothing by the headroom.
        """
        limit = torch.finfo(dtype).max
        return [
            4 * buffer.float().nan_to_num().abs().max().item() / limit for buffer in self.buffers
        ]
