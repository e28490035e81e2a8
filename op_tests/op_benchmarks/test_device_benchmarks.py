# SPDX-License-Identifier: MIT
"""Benchmarks of a GPU, without one: adaptors of its peers, columns, tables, plots, absent peers."""

from __future__ import annotations

import csv
import math
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
from click.testing import CliRunner
from torch import Tensor

from hipdecode import target
from hipdecode.cli import bench
from hipdecode.errors import BadArgument
from hipdecode.testing import bench_plot, bench_table, device_clock, timing
from hipdecode.testing.bench_case import DecodeCase, Peer
from hipdecode.testing.bench_report import Oracle, write_csv
from hipdecode.testing.bench_run import Plan, Roof, time_case
from hipdecode.testing.gpu_peers import FlashInfer, FlashMla, SglangTriton, TorchGathered, gpu_peers
from hipdecode.testing.peers import Hipdecode


def attend(q: Tensor, keys: Tensor, scale: float, dim_v: int = 512) -> Tensor:
    """One query row [nhead, width] over [tokens, width] keys."""
    p = torch.softmax(q.double() @ keys.double().T * scale, -1)
    return (p @ keys.double()[:, :dim_v]).to(q.dtype)


class FakeFlashInfer:
    """The wrapper's interface on plain attention; what `plan` is given decides what `run` does."""

    def __init__(self, scratch: Tensor, backend: str) -> None:
        assert scratch.dtype == torch.int8
        assert backend == "fa3"

    def plan(self, qo, kv, indices, lens, nhead, dim_v, dim_pe, page, causal, scale, *_) -> None:
        assert (dim_v, dim_pe) == (512, 64)
        self.walk = [
            (row, indices[kv[b] : kv[b + 1]].long(), int(lens[b]) - (qo[b + 1] - row - 1) * causal)
            for b in range(len(lens))
            for row in range(qo[b], qo[b + 1])
        ]
        self.scale = scale

    def run(self, q_nope, q_pe, ckv, kpe, *, out, ckv_scale=1.0, kpe_scale=1.0) -> None:
        pool = torch.cat([ckv.float(), kpe.float()], -1)
        q = torch.cat([q_nope, q_pe], -1)
        for row, pages, count in self.walk:
            out[row] = attend(q[row], pool[pages].flatten(0, 1)[:count], self.scale)


def fake_flash_mla(q, pool, table, lens, dim_v, schedule, *, softmax_scale, causal):
    assert schedule == "schedule"
    out = q.new_empty(*q.shape[:3], dim_v)
    for b in range(q.shape[0]):
        keys = pool[table[b].long()].flatten(0, 2)
        for i in range(q.shape[1]):
            count = int(lens[b]) - (q.shape[1] - 1 - i if causal else 0)
            out[b, i] = attend(q[b, i], keys[:count], softmax_scale)
    return out, None


def fake_sglang(q, keys, values, out, indptr, indices, mid, lse, counts, most, scale, *_, has_mla):
    assert has_mla
    assert mid.shape[2] == lse.shape[2] == most == counts[0]
    for row in range(q.shape[0]):
        mine = indices[indptr[row] : indptr[row + 1]].long()
        out[row] = attend(q[row], keys[mine, 0].float(), scale, values.shape[-1])


FLASHINFER = SimpleNamespace(
    __version__="9", mla=SimpleNamespace(BatchMLAPagedAttentionWrapper=FakeFlashInfer)
)
FLASHMLA = SimpleNamespace(
    flash_mla_with_kvcache=fake_flash_mla, get_mla_metadata=lambda: ("schedule", None)
)
PEERS = [
    TorchGathered(),
    FlashInfer(FLASHINFER, "fa3"),  # type: ignore[arg-type]
    FlashMla(FLASHMLA),  # type: ignore[arg-type]
    SglangTriton(fake_sglang, "sglang 9"),
]


@pytest.mark.parametrize("kv_dtype", ["bf16", "fp8_e4m3fn"])
@pytest.mark.parametrize("q_len", [1, 3])
@pytest.mark.parametrize("peer", PEERS, ids=lambda peer: peer.name)
def test_adaptors_hand_over_the_same_tokens(
    peer: Peer, q_len: int, kv_dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    units = SimpleNamespace(multi_processor_count=132)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: units)
    case = DecodeCase.draw((200, 200), nhead=3, q_len=q_len, kv_dtype=kv_dtype, page_size=64)
    refused = peer.supports(case)
    if kv_dtype != "bf16" and isinstance(peer, FlashMla):
        assert refused == "no fp8"
        return
    assert refused is None
    assert Oracle(case).check(peer.prepare(case)(), "cpu-avx512bf16").max_err < 0.05


def test_adaptors_say_what_they_cannot_run() -> None:
    flashmla, torch_bmm = PEERS[2], PEERS[0]
    assert flashmla.supports(DecodeCase.draw((9,), nhead=2, page_size=16)) == "pages of 64 only"
    assert torch_bmm.supports(DecodeCase.draw((9, 8), nhead=2)) == "contexts of several lengths"
    narrow = DecodeCase.draw((9,), nhead=2, head_dims=(96, 64))
    assert all(peer.supports(narrow) for peer in PEERS[1:])
    fp8_q = DecodeCase.draw((9,), nhead=2, q_dtype="fp8_e4m3fn", kv_dtype="fp8_e4m3fn")
    assert PEERS[1].supports(fp8_q) == "fp8_e4m3fn q beside fp8_e4m3fn KV"


def test_absent_and_broken_peers_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "flash_mla.py").write_text("raise RuntimeError('built for another GPU')\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(sys.modules, "flashinfer", None)
    sglang = ModuleType("sglang")
    monkeypatch.setitem(sys.modules, "sglang", sglang)
    found, absent = gpu_peers()
    assert [peer.name for peer in found] == ["torch_bmm"]
    assert absent["flash_mla"] == "built for another GPU"
    assert set(absent) == {"flashinfer", "flash_mla", "sglang"}


class FakeDevice:
    """A device's clock on a CPU: contender n takes n * 10 us."""

    name = "device"

    def __init__(self) -> None:
        self.ready_calls = 0

    def ready(self, thunk: timing.Thunk) -> timing.Thunk:
        self.ready_calls += 1
        number = self.ready_calls
        return lambda: number

    def start(self, thunk: timing.Thunk) -> Callable[[], float]:
        return lambda: 0.01 * float(str(thunk()))


ROOF = Roof(gflops=1e3, source="none", read_gbs=100.0, empty_us=4.0)


def device_rows(peers: tuple[Peer, ...] = (TorchGathered(),)) -> list[dict[str, object]]:
    plan = Plan(
        ours=(Hipdecode(), Hipdecode("hipdecode_hk", "hk", 3)), peers=peers,
        target=target.current(), rounds=5, warmup=1, budget_s=1.0, cold=False, clock=FakeDevice(),
        machine=timing.Machine.here(), roof=ROOF,
    )  # fmt: skip
    return time_case(DecodeCase.draw((700,) * 3, nhead=16, page_size=64), plan)


def test_device_rows_hold_us_limit_route_and_version() -> None:
    ours, forced, peer = device_rows()
    assert [row["us_p50"] for row in (ours, forced, peer)] == ["10.00", "20.00", "30.00"]
    assert forced["route"] == "hk/3"
    assert str(peer["version"]).startswith("torch ")
    work = 2 * 16 * 2100 * (576 + 512) / 1e9 / 1e3 * 1e6
    assert float(str(ours["limit_us"])) == pytest.approx(work, abs=0.01)  # above its 24.2 us of KV
    assert float(str(ours["over_limit"])) == pytest.approx(10 / work, abs=1e-3)
    assert (ours["read_gbs"], ours["empty_us"], ours["cold"]) == ("100", "4.00", True)
    assert float(str(peer["ratio"])) == 3


def test_bench_leaves_out_a_peer_that_fails_in_any_way(capsys: pytest.CaptureFixture[str]) -> None:
    def fail(*_: object, **__: object) -> None:
        raise AssertionError("needs another GPU\nmore")

    broken = FlashMla(SimpleNamespace(get_mla_metadata=fail))  # type: ignore[arg-type]
    assert len(device_rows((broken,))) == 2
    assert "left out: flashmla (needs another GPU)" in capsys.readouterr().err


def test_a_slow_contender_leaves_the_others_their_rounds() -> None:
    clock = FakeDevice()
    thunks = {name: [clock.ready(lambda: None)] for name in ("fast", "slow")}
    clock.start = lambda thunk: lambda: 1.0 if thunk() == 1 else 200.0  # type: ignore[method-assign,assignment]
    times = timing.measure(thunks, rounds=30, budget_s=1.0, clock=clock)
    assert (len(times["fast"].ms), len(times["slow"].ms)) == (30, 3)
    assert times["slow"].ratio_to(times["fast"]) == 200


@pytest.fixture
def results(tmp_path: Path) -> Path:
    path = tmp_path / "device.csv"
    write_csv(path, device_rows())
    return path


def test_device_table_shows_the_nearest_peer(results: Path) -> None:
    lines = bench_table.draw(results)
    assert lines[-1] == "| 16 | 1 | 3 x 700 | 10.0 | 73.1 | 3.00 x torch_bmm* |"
    assert "Peers: torch " in lines[1]
    assert bench_table.draw(results, nhead=(32,))[3:] == ["| nhead | q_len | batch x context |",
                                                         "|---:|---:|---:|"]  # fmt: skip


def test_bench_table_draws_the_marked_blocks_of_a_page_anew(results: Path) -> None:
    page = results.parent / "page.md"
    mark = "<!-- hipdecode bench table device.csv --nhead 16 --q-len 1,2 -->"
    page.write_text(f"before\n{mark}\nold\n<!-- table:end -->\nafter\n")
    for _ in range(2):
        ran = CliRunner().invoke(bench.command, ["table", "--update", str(page)])
        assert ran.exit_code == 0, ran.output
    text = page.read_text()
    assert text.startswith(f"before\n{mark}\n")
    assert text.endswith("3.00 x torch_bmm* |\n<!-- table:end -->\nafter\n")
    assert "old" not in text


def test_bench_table_wants_a_file_or_a_page() -> None:
    with pytest.raises(BadArgument, match="a CSV file or --update PAGE"):
        CliRunner().invoke(bench.command, ["table"], catch_exceptions=False)


def test_device_times_are_drawn_beside_the_limit(results: Path, tmp_path: Path) -> None:
    (panel,) = bench_plot.read_device(results).values()
    assert panel == {"3 x 700": {"limit": 73.11, "hipdecode": 10, "torch": 30}}
    pytest.importorskip("matplotlib", reason="a machine with matplotlib draws the plot")
    png = tmp_path / "device.png"
    drawn = CliRunner().invoke(bench.command, ["plot", str(results), "--out", str(png)])
    assert drawn.exit_code == 0, drawn.output
    assert png.read_bytes().startswith(b"\x89PNG")


def test_bench_writes_the_cases_before_the_one_that_ends_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, out = device_rows(), tmp_path / "cut.csv"
    left = [rows]

    def time_or_die(*_: object) -> list[dict[str, object]]:
        if not left:
            raise RuntimeError("the device is gone")
        return left.pop()

    monkeypatch.setattr(bench, "time_case", time_or_die)
    with pytest.raises(RuntimeError, match="gone"):
        CliRunner().invoke(
            bench.command, ["--peak-gflops", "1", "--csv", str(out)], catch_exceptions=False
        )
    with out.open(newline="") as file:
        assert len(list(csv.DictReader(file))) == len(rows)


@pytest.mark.gpu
def test_device_clock_replays_what_the_call_launched() -> None:
    if not torch.cuda.is_available():
        pytest.skip("a machine with a GPU times on its own clock")
    clock = device_clock.DeviceClock()
    counter = torch.zeros(1, device="cuda")
    ready = clock.ready(lambda: counter.add_(1))
    before = float(counter)
    took = timing.measure({"add": [ready]}, rounds=4, warmup=2, clock=clock)["add"]
    assert float(counter) == before + 6
    assert took.clock == "device"
    assert all(math.isfinite(ms) and 0 < ms < 10 for ms in took.ms)
