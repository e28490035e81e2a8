# SPDX-License-Identifier: MIT
"""The benchmark scripts run from a checkout, stay within their bounds and write what they print."""

import csv
import importlib.util
import math
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from click.testing import CliRunner, Result

from hipdecode import settings, target
from hipdecode.cli import bench
from hipdecode.errors import BadArgument
from hipdecode.testing import bench_plot, timing
from hipdecode.testing.bench_case import DecodeCase, Peer
from hipdecode.testing.bench_report import Oracle
from hipdecode.testing.bench_run import Plan, Roof, time_case
from hipdecode.testing.peers import BlockTableKernel, Hipdecode, TokenPoolKernel, load_peer
from hipdecode.testing.torch_peers import torch_peers

HIP = Path(__file__).parent / "hip"
BOUNDS = ("--max-kv-tokens", "2000")


def load_script(name: str) -> ModuleType:
    path = next(Path(__file__).parent.rglob(f"{name}.py"))
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def run_script(name: str, *options: str) -> Result:
    # In this process: importing torch once more takes longer than the benchmark.
    return CliRunner().invoke(load_script(name).main, options)


def read_rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_bench_mla_reduce_micro_writes_its_columns(tmp_path: Path) -> None:
    out = tmp_path / "reduce.csv"
    bounds = ("--tokens", "3", "--batches", "2,4", "--vecs", "1,4", "--kv-len", "300")
    few = ("--iters", "3", "--warmup", "1", "--rotate", "2", "--csv", str(out))
    ran = run_script("bench_mla_reduce_micro", *bounds, *few)
    assert ran.exit_code == 0, ran.output
    rows = read_rows(out)
    assert list(rows[0])[:7] == ["T", "kernel", "tiles", "us", "GB/s", "vs_stock", "%peak"]
    assert rows[0]["kernel"] == "stock"
    assert rows[0]["vs_stock"] == "1.00"
    assert all(row["commit"] and float(row["us"]) > 0 for row in rows)


@pytest.mark.parametrize("form", ["v32", "v4"])
def test_bench_sparse_mla_decode_writes_ratio_machine_and_commit(form: str, tmp_path: Path) -> None:
    out = tmp_path / "sparse.csv"
    options = ("--format", form, "--nhead", "4,20", "--topk", "100", "--tokens", "2", "--sink")
    bounds = ("--pool-tokens", "1000", "--iters", "3", "--budget-s", "1")
    ran = run_script("bench_sparse_mla_decode", *options, *bounds, "--csv", str(out))
    assert ran.exit_code == 0, ran.output
    rows = read_rows(out)
    assert [(row["format"], row["nhead"]) for row in rows] == [(form, "4"), (form, "20")]
    for row in rows:
        assert float(row["ratio"]) > 0
        assert row["machine"]
        assert row["commit"]


def test_bench_host_overhead_times_every_call_beside_torch(tmp_path: Path) -> None:
    out, threads = tmp_path / "overhead.csv", torch.get_num_threads()
    try:
        ran = run_script("bench_host_overhead", "--count", "20", "--csv", str(out))
    finally:
        torch.set_num_threads(threads)
    assert ran.exit_code == 0, ran.output
    rows = {row["call"]: float(row["p50_us"]) for row in read_rows(out)}
    assert {"torch.add", "mla_decode, plan", "mla_decode, persistent"} < rows.keys()
    assert all(us > 0 for us in rows.values())


def test_bench_hk_mla_decode_writes_gain_machine_and_commit(tmp_path: Path) -> None:
    out = tmp_path / "grid.csv"
    options = ("--batch-sizes", "1,3", "--ctx-lens", "21,512,1200", "--warmup", "1", "--iters", "3")
    ran = run_script("bench_hk_mla_decode", *options, *BOUNDS, "--csv", str(out))
    assert ran.exit_code == 0, ran.output
    rows = read_rows(out)
    assert [(row["batch"], row["ctx"]) for row in rows] == [
        ("1", "21"), ("1", "512"), ("1", "1200"), ("3", "21"), ("3", "512"),
    ]  # fmt: skip
    for row in rows:
        gain = 100 * (1 - float(row["hk_us"]) / float(row["persistent_us"]))
        assert math.isclose(gain, float(row["gain_pct"]), abs_tol=0.05)
        assert row["machine"]
        assert row["commit"]
        assert re.match(r"\d{4}-\d\d-\d\dT", row["date"])
    assert "skipped, above --max-kv-tokens 2000: 3x1200" in ran.stdout


@pytest.mark.parametrize(
    ("text", "batches"),
    [
        ("t_s,batch,kv_lens\n30,3,100 2 31\n60,1,64\n", [("3", "45"), ("1", "64")]),
        ("context_tokens,generated_tokens\n70,1\n70,2\n", [("2", "70"), ("1", "70")]),
    ],
    ids=["kv_lens", "context_tokens"],
)
def test_bench_hk_mla_decode_draws_ragged_batches_from_a_trace(
    tmp_path: Path, text: str, batches: list[tuple[str, str]]
) -> None:
    trace, out = tmp_path / "trace.csv", tmp_path / "out.csv"
    trace.write_text(text)
    options = ("--trace", str(trace), "--batch-sizes", "2,1", "--iters", "3", "--csv", str(out))
    ran = run_script("bench_hk_mla_decode", *options, *BOUNDS)
    assert ran.exit_code == 0, ran.output
    assert [(row["batch"], row["ctx"]) for row in read_rows(out)] == batches


def test_bench_hk_mla_decode_refuses_a_trace_without_lengths(tmp_path: Path) -> None:
    trace = tmp_path / "trace.csv"
    trace.write_text("tokens\n70\n")
    ran = run_script("bench_hk_mla_decode", "--trace", str(trace))
    assert ran.exit_code != 0
    assert isinstance(ran.exception, BadArgument)
    assert "expected a column kv_lens or context_tokens" in str(ran.exception)


def test_compare_hk_mla_h32_reference_holds_the_bounds(tmp_path: Path) -> None:
    out = tmp_path / "distances.csv"
    script = str(HIP / "compare_hk_mla_h32_reference.py")
    options = ("--shapes", "1x512,2x2048", *BOUNDS, "--csv", str(out))
    # As a user starts it, away from the checkout and without PYTHONPATH.
    ran = subprocess.run(
        [sys.executable, "-P", script, *options],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=settings.child_environment(PYTHONPATH="", HIPDECODE_TARGET="cpu"),
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    (row,) = read_rows(out)
    assert (row["batch"], row["ctx"], row["total_kv"]) == ("1", "512", "512")
    assert float(row["hk_persistent_cosine_distance"]) <= 0.0018
    assert float(row["hk_reference_cosine_distance"]) <= 0.000135
    assert "skipped" in ran.stdout


def test_bench_times_both_routes_beside_peers_and_plots_them(tmp_path: Path) -> None:
    out, png = tmp_path / "bench.csv", tmp_path / "bench.png"
    options = ["--shapes", "1x64,1x300", "--routes", "hk,persistent", "--peers", "--iters", "3"]
    options += ["--peak-gflops", "100", "--csv", str(out)]
    ran = CliRunner().invoke(bench.command, options)
    assert ran.exit_code == 0, ran.output
    rows = read_rows(out)
    names = {row["contender"] for row in rows}
    assert {"hipdecode_hk", "hipdecode_persistent", "torch_fp32", "sdpa_bf16_rows"} <= names
    assert all(float(row["ratio"]) == 1 for row in rows if row["contender"] == "hipdecode_hk")
    pytest.importorskip("matplotlib", reason="a machine with matplotlib draws the plot")
    drawn = CliRunner().invoke(bench.command, ["plot", str(out), "--out", str(png)])
    assert drawn.exit_code == 0, drawn.output
    assert png.read_bytes().startswith(b"\x89PNG")


def test_bench_draws_the_contexts_of_a_trace(tmp_path: Path) -> None:
    out, trace = tmp_path / "bench.csv", tmp_path / "trace.csv"
    trace.write_text("context_tokens\n20\n300\n77\n")
    options = ["--trace", str(trace), "--batches", "2,5", "--iters", "3", "--peak-gflops", "100"]
    ran = CliRunner().invoke(bench.command, [*options, "--csv", str(out)])
    assert ran.exit_code == 0, ran.output
    rows = read_rows(out)
    assert [row["batch"] for row in rows] == ["2", "5"]
    assert all(20 <= int(row["context"]) <= int(row["context_max"]) <= 300 for row in rows)


KV_DTYPES_OF_PEERS = [
    pytest.param(peer, kv_dtype, id=f"{peer.name}-{kv_dtype}")
    for peer in torch_peers()
    for kv_dtype in ("bf16", "fp8_e4m3fn", "fp8_e4m3fnuz")
    if kv_dtype != "bf16" or "_bits" not in peer.name  # that form widens fp8, nothing else
]


@pytest.mark.parametrize(("peer", "kv_dtype"), KV_DTYPES_OF_PEERS)
@pytest.mark.parametrize("q_len", [1, 4])
def test_torch_peers_agree_with_the_oracle(peer: Peer, q_len: int, kv_dtype: str) -> None:
    # 1025 tokens: a chunked form must not cut the causal tail.
    case = DecodeCase.draw((1025, 5), nhead=3, q_len=q_len, kv_dtype=kv_dtype, page_size=16)
    assert peer.supports(case) is None
    checked = Oracle(case).check(peer.prepare(case)(), "cpu-avx512bf16")
    assert checked.max_err < 0.05


@pytest.mark.parametrize("q_len", [1, 4])
@pytest.mark.parametrize("form", [BlockTableKernel, TokenPoolKernel])
def test_engine_adaptors_hand_over_the_same_tokens(form: type, q_len: int) -> None:
    case = DecodeCase.draw((70, 33), nhead=2, q_len=q_len, page_size=4)
    seen: dict[str, list[list[float]]] = {}

    def record_blocks(out, query, cache, scale, table, lens) -> None:
        tokens = cache[table.long()].flatten(1, 2)[..., 0]
        seen["keys"] = [row[:n].tolist() for row, n in zip(tokens, lens.tolist(), strict=True)]

    def record_pool(
        query, keys, values, out, k, v, loc, partial, table, which, lens, *rest
    ) -> None:
        tokens = keys[table.long(), 0, 0]
        seen["keys"] = [row[:n].tolist() for row, n in zip(tokens, lens.tolist(), strict=True)]

    form(record_blocks if form is BlockTableKernel else record_pool).prepare(case)()
    pool = case.inputs["kv_buffer"].view(-1, 576)[:, 0]
    want = [
        pool[case.slots(b)][: case.spec.kv_lens[b] - q_len + 1 + i].tolist()
        for b in range(case.batch)
        for i in range(q_len)
    ]
    assert seen["keys"] == want


@pytest.mark.parametrize("spec", ["torch", "a=b", "=m:f", "a=m:"])
def test_load_peer_refuses_other_forms(spec: str) -> None:
    with pytest.raises(BadArgument, match="expected name=module:function"):
        load_peer(spec)


def test_load_peer_names_what_cannot_be_imported() -> None:
    with pytest.raises(BadArgument, match="put its folder on PYTHONPATH"):
        load_peer("a=no_such_module:f")


def test_bench_leaves_out_a_peer_that_refuses_the_cpu(capsys: pytest.CaptureFixture[str]) -> None:
    def refuse(*_: object) -> None:
        raise RuntimeError("needs AMX\nmore")

    plan = Plan(
        ours=(Hipdecode(),), peers=(BlockTableKernel(refuse),), target=target.current(), rounds=1,
        warmup=0, budget_s=1.0, cold=True, clock=timing.HostClock.here(),
        machine=timing.Machine.here(), roof=Roof(1.0, "none"),
    )  # fmt: skip
    rows = time_case(DecodeCase.draw((70,), nhead=2), plan)
    assert [row["contender"] for row in rows] == ["hipdecode"]
    assert "left out: vllm (needs AMX)" in capsys.readouterr().err


def test_measure_interleaves_and_cuts_rounds_to_the_budget() -> None:
    order: list[str] = []
    thunks = {name: [lambda name=name: order.append(name)] for name in "abc"}
    times = timing.measure(thunks, rounds=60, warmup=1)
    rounds = ["".join(order[at : at + 3]) for at in range(3, len(order), 3)]
    assert len(rounds) == 60
    assert all(sorted(one) == ["a", "b", "c"] for one in rounds)
    assert all(sum(pair in one for one in rounds) > 8 for pair in ("ab", "ba", "ac", "ca"))
    assert all(len(one.ms) == 60 for one in times.values())
    cut = timing.measure({"a": [lambda: sum(range(100_000))]}, rounds=10_000, budget_s=0.05)
    assert 3 <= len(cut["a"].ms) < 1000


def test_timing_compares_rounds_not_medians() -> None:
    ours = timing.Timing((1.0, 10.0, 2.0), "cpu")
    theirs = timing.Timing((2.0, 20.0, 4.0), "cpu")
    assert theirs.ratio_to(ours) == 2.0
    assert (ours.p50, ours.best, ours.quantile(0.5)) == (2.0, 1.0, 2.0)


def test_peers_are_drawn_by_their_fastest_form(tmp_path: Path) -> None:
    source = tmp_path / "peers.csv"
    head = "q_dtype,kv_dtype,nhead,q_len,batch,context,contender,gflops,ms_p50\n"
    lines = [f"bf16,bf16,16,1,1,512,{name}\n" for name in ("hipdecode,9,1", "torch_a,5,1")]
    source.write_text(head + "".join(lines) + "bf16,bf16,16,1,1,512,sdpa_rows,7,1\n")
    bars = bench_plot.read_peers(source)
    assert bars == {"bf16/bf16, q_len 1": {"nhead 16\n1 x 512": {"hipdecode": 9, "torch": 7}}}
    pytest.importorskip("matplotlib", reason="a machine with matplotlib draws the plot")
    drawn = CliRunner().invoke(bench.command, ["plot", str(source), "--out", str(tmp_path / "p")])
    assert drawn.exit_code == 0, drawn.output
    assert (tmp_path / "p").read_bytes().startswith(b"\x89PNG")


def test_gain_is_positive_where_hk_is_faster() -> None:
    curve = {64: {"hk": 1.0, "persistent": 2.0}, 256: {"hk": 3.0, "persistent": 2.0}}
    assert bench_plot.gains(curve) == {64: 50.0, 256: -50.0}


def test_bench_pa_mtp_writes_ratios_kernels_machine_and_commit(tmp_path: Path) -> None:
    out = tmp_path / "pa.csv"
    options = ("--gqa", "8,10", "--mtp", "2", "--ctx", "130", "--batch", "1", "--kv", "fp8")
    ran = run_script("bench_pa_mtp", *options, "--iters", "3", "--budget-s", "1", "--csv", str(out))
    assert ran.exit_code == 0, ran.output
    rows = read_rows(out)
    assert [(row["gqa"], row["mtp"], row["ctx"]) for row in rows] == [
        ("8", "2", "130"), ("10", "2", "130"),
    ]  # fmt: skip
    for row in rows:
        assert float(row["ratio"]) > 0
        assert "block16" in row["kernels"]
        assert row["machine"]
        assert row["commit"]
