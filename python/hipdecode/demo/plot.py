# SPDX-License-Identifier: MIT
"""The demo's picture: bits per byte as bars, microseconds by context as lines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure

from hipdecode.demo.timings import CallTime


def draw(bits: Mapping[str, float], times: Sequence[CallTime], out: Path) -> None:
    """Writes a PNG.

    Args:
        bits: name of the attention to bits per byte on held-out text.
        times: of the attention call.
        out: the file to write.
    """
    batches = sorted({time.batch for time in times})
    figure = Figure(figsize=(4 + 4.5 * len(batches), 4.2), layout="constrained")
    axes = figure.subplots(1, 1 + len(batches), squeeze=False)[0]
    bars = axes[0].bar(list(bits), list(bits.values()), color=["C7", "C0", "C1"])
    axes[0].bar_label(bars, fmt="%.4f")
    axes[0].set(title="held-out text", ylabel="bits per byte")
    axes[0].margins(y=0.12)
    for axis, batch in zip(axes[1:], batches, strict=True):
        for index, kv_dtype in enumerate(dict.fromkeys(time.kv_dtype for time in times)):
            line = [time for time in times if (time.batch, time.kv_dtype) == (batch, kv_dtype)]
            contexts, color = [time.kv_len for time in line], f"C{index}"
            axis.plot(contexts, [time.us for time in line], "o-", color=color, label=kv_dtype)
            axis.plot(contexts, [time.torch_us for time in line], "o--", color=color)
        axis.set(
            title=f"attention call, batch {batch}",
            xlabel="context, tokens",
            ylabel="us",
            xscale="log",
            yscale="log",
        )
        contexts = sorted({time.kv_len for time in times})
        axis.set_xticks(contexts, [str(kv_len) for kv_len in contexts])
        axis.minorticks_off()
        axis.grid(alpha=0.3)
        axis.legend(title="hipdecode solid, torch dashed", fontsize="small")
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, format="png", dpi=130)
