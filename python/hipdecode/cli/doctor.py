# SPDX-License-Identifier: MIT
"""`hipdecode doctor`: what was found on this machine, and whether it decodes right."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import platform
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import click
import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Table

import hipdecode
from hipdecode import ops, paths, registry, settings
from hipdecode import target as targets
from hipdecode.cli.report import print_in_depth, report_console
from hipdecode.dispatch import load_table
from hipdecode.errors import HipdecodeError, ToolchainError
from hipdecode.facts import read_facts
from hipdecode.jit import binding, cache, ensure_kernel, keys, prebuilt, toolchain
from hipdecode.paged_route import load_paged_table
from hipdecode.reduce_route import load_reduce_table
from hipdecode.sparse_route import load_sparse_table
from hipdecode.testing.calls import Checker
from hipdecode.testing.cases import Case

# Small enough for a second, and still: two requests of unlike lengths, splits, a partial page.
_CASE = Case(nhead=16, q_lens=(1, 2), kv_lens=(200, 65), page_size=16)
_CALLS = ("hk-1", "hk-2", "persistent")


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report.

    Attributes:
        subject: what was looked at.
        ok: False where something has to be done.
        text: what was found, or the whole error.
    """

    subject: str
    ok: bool
    text: str


@click.command()
@click.option("--target", "target_name", help="Target to check, default this machine's.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.option(
    "--prune",
    is_flag=False,
    flag_value="leftovers",
    type=click.Choice(["leftovers", "all"]),
    help="Only clean the cache folder: leftovers of failed and killed builds, or all of it.",
)
@click.option("--kernel", help="Only show the facts of one code object, e.g. mla_reduce (GPUs).")
def command(target_name: str | None, as_json: bool, prune: str | None, kernel: str | None) -> None:
    """Show what was found on this machine and check one decode per route against fp64.

    The exit status is 1 where anything failed.
    """
    if kernel:
        arch = targets.resolve(target_name).artefact
        built = ensure_kernel(arch, kernel)
        facts = read_facts(built.path, registry.default().kernel(kernel).name, arch, built.symbol)
        print_in_depth(report_console(), facts)
        return
    if prune:
        gone = cache.prune(paths.cache_dir(), everything=prune == "all")
        click.echo(
            f"{paths.cache_dir()}: removed {gone.entries} entries and {gone.leftovers} leftovers, "
            f"{_mib(gone.bytes)}"
        )
        return
    checks = list(_checks(target_name))
    found = list(_found(target_name))  # after the checks: they fill cache and workspace
    failed = [finding.subject for finding in (*found, *checks) if not finding.ok]
    if as_json:
        report = {
            "ok": not failed,
            "found": [dataclasses.asdict(finding) for finding in found],
            "checks": [dataclasses.asdict(finding) for finding in checks],
        }
        click.echo(json.dumps(report, indent=2))
    else:
        console = Console()
        _print(console, "found", found)
        _print(console, f"checked against fp64 ({_CASE})", checks)
        console.print(f"failed: {', '.join(failed)}" if failed else "everything works")
    sys.exit(1 if failed else 0)


def _found(target_name: str | None) -> Iterator[Finding]:
    looks: dict[str, Callable[[], str]] = {
        "hipdecode": lambda: f"{hipdecode.__version__} in {paths.package_dir()}",
        "python": lambda: f"{platform.python_version()} on {platform.platform()}",
        "torch": lambda: f"{torch.__version__}, {torch.get_num_threads()} threads",
        "target": lambda: _target(target_name),
        "instructions": _instructions,
        "GPUs": _gpus,
        "compiler": _compiler,
        "GPU compilers": _gpu_compilers,
        "registry": _registry,
        "tables": lambda: _tables(target_name),
        "settings": _settings,
        "cache": _cache,
        "prebuilt": _prebuilt,
        "binding": lambda: str(binding.ensure_binding()),
        "workspace": lambda: f"{_mib(hipdecode.workspace_bytes())} held by this process",
    }
    for subject, look in looks.items():
        yield _finding(subject, look)


def _checks(target_name: str | None) -> Iterator[Finding]:
    def decode(call: str) -> str:
        target = targets.resolve(target_name)
        ops.use_target(target.name)
        with contextlib.redirect_stdout(io.StringIO()):
            Checker(target.name, torch.device(target.device_type))(_CASE, call)
        return "within tolerance"

    for call in _CALLS:
        start = time.perf_counter()
        finding = _finding(f"mla_decode {call}", lambda call=call: decode(call))  # type: ignore[misc]
        seconds = time.perf_counter() - start
        text = f"{finding.text} ({seconds:.1f} s)" if finding.ok else finding.text
        yield dataclasses.replace(finding, text=text)


def _finding(subject: str, look: Callable[[], str]) -> Finding:
    try:
        return Finding(subject, True, look())
    except (HipdecodeError, AssertionError, OSError, RuntimeError) as error:
        return Finding(subject, False, f"{type(error).__name__}: {error}")


def _target(name: str | None) -> str:
    target = targets.resolve(name)
    return (
        f"{target.name} ({target.compute_units()} compute units, tables of {target.family}); "
        f"this machine runs {', '.join(targets.all_runnable())}"
    )


def _instructions() -> str:
    shown = ("avx2", "fma", "avx512", "amx")
    flags = sorted(flag for flag in targets.cpu_flags() if flag.startswith(shown))
    return f"{platform.machine()}: {' '.join(flags) or 'no flags known'}"


def _compiler() -> str:
    try:
        compiler = toolchain.find()
    except ToolchainError as error:
        if paths.prebuilt_dir() is None:
            raise
        return f"none needed, kernels are prebuilt ({error})"
    return f"{compiler.title} for {compiler.machine}, started as {' '.join(compiler.command)}"


def _gpus() -> str:
    held = (f"cuda:{i} {gpu.arch}, {gpu.compute_units} compute units" for i, gpu in
            enumerate(targets.gpus()))  # fmt: skip
    return "; ".join(held) or "none that torch sees"


def _gpu_compilers() -> str:
    """Compilers of code objects; a machine without them runs what is prebuilt."""
    found = []
    for kind in toolchain.TOOLCHAINS:
        if kind != "cxx":
            with contextlib.suppress(ToolchainError):
                found.append(f"{kind}: {toolchain.find(kind).title}")
    return "; ".join(found) or "none"


def _registry() -> str:
    held = registry.default()
    held.validate()
    kernels = sum(len(list(module.kernels())) for module in held.modules.values())
    return f"{len(held.modules)} modules, {kernels} kernels for {', '.join(held.targets)}"


def _tables(name: str | None) -> str:
    family = targets.resolve(name).family
    found = []
    for table in (load_table(family), load_sparse_table(family), load_paged_table(family)):
        held = table.rows_by_key
        found.append(f"{sum(map(len, held.values()))} rows for {len(held)} shapes in {table.label}")
    reduce = load_reduce_table(family)
    return "; ".join((*found, f"{len(reduce.rows)} rows in {reduce.label}"))


def _settings() -> str:
    now, plain = settings.current(), settings.Settings()
    names = (field.name for field in dataclasses.fields(now))
    given = [f"{n}={getattr(now, n)}" for n in names if getattr(now, n) != getattr(plain, n)]
    return ", ".join(given) or "all at their defaults"


def _cache() -> str:
    root = paths.cache_dir()
    usage = cache.usage(root)
    leftovers = f", {usage.leftovers} leftovers (see --prune)" if usage.leftovers else ""
    return f"{root}: {usage.entries} entries, {_mib(usage.bytes)}{leftovers}"


def _prebuilt() -> str:
    folder = paths.prebuilt_dir()
    if folder is None:
        return "none: kernels are compiled on first use"
    manifest = prebuilt.read_manifest(folder)
    abi = keys.source_tree(paths.csrc_dir()).abi_version()
    prebuilt.check_abi(folder, manifest, abi)
    held = (f"{len(kernels)} kernels for {name}" for name, kernels in manifest["kernels"].items())
    return f"{folder}: {', '.join(held)}, ABI version {abi}"


def _mib(size: int) -> str:
    return f"{size / 2**20:.1f} MiB"


def _print(console: Console, title: str, findings: list[Finding]) -> None:
    table = Table("what", "", title=title, title_justify="left")
    table.add_column("result", overflow="fold")
    for finding in findings:
        state = "[green]ok[/]" if finding.ok else "[red]failed[/]"
        table.add_row(finding.subject, state, escape(finding.text))
    console.print(table)
