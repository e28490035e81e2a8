# SPDX-License-Identifier: MIT
"""`hipdecode build`: compiles ahead of time, into the cache or a relocatable folder."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from hipdecode import budgets, registry
from hipdecode import target as targets
from hipdecode.cli.report import facts_table, report_console
from hipdecode.errors import BudgetError
from hipdecode.facts import KernelFacts, read_facts
from hipdecode.jit import BuildResult, binding, build_kernels, prebuilt, recipe, selection


@click.command()
@click.argument("names", nargs=-1)
@click.option("--module", "more", multiple=True, help="As a name given in place; may be repeated.")
@click.option(
    "--target",
    "target_names",
    multiple=True,
    help="Target, default this machine's; may be repeated.",
)
@click.option("--all", "everything", is_flag=True, help="Every kernel of the registry.")
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    help="Also write a relocatable folder for HIPDECODE_PREBUILT.",
)
@click.option("--jobs", type=click.IntRange(1), help="Compilers at once. [cores]")
@click.option("--report", is_flag=True, help="Print the facts of every code object (GPUs).")
@click.option("--check", is_flag=True, help="Fail where one exceeds configs/budgets.json (GPUs).")
def command(
    names: tuple[str, ...],
    more: tuple[str, ...],
    target_names: tuple[str, ...],
    everything: bool,
    out: Path | None,
    jobs: int | None,
    report: bool,
    check: bool,
) -> None:
    """Compile kernels ahead of time.

    NAMES are modules, such as mla_plan, or kernels, such as
    mla_decode_hk/576-512-bf16-bf16-128. Without any: those that the named models and the dispatch
    tables call for, and the torch binding.
    """
    console = Console()
    modules = names + more
    jobs = jobs or len(os.sched_getaffinity(0))
    chosen = [targets.resolve(name) for name in target_names or (None,)]
    results: dict[str, list[BuildResult]] = {}
    for target in chosen:
        if modules:
            kernels = selection.named_kernels(target, modules)
        elif everything:
            kernels = selection.all_kernels(target)
        else:
            kernels = selection.default_kernels(target)
        results[target.artefact] = _build(console, target.artefact, kernels, jobs)
    if report or check:
        _report(console, results, print_all=report, check=check)
    if out or not modules:
        start = time.perf_counter()
        library = binding.ensure_binding()
        console.print(f"torch binding: {time.perf_counter() - start:.1f} s, {library}")
        if out:
            _write(out, results, library)
            console.print(f"wrote {out}; use it with HIPDECODE_PREBUILT={out}")


def _build(console: Console, target: str, names: Sequence[str], jobs: int) -> list[BuildResult]:
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
    )  # fmt: skip
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task(target, total=len(names))

        def done(result: BuildResult) -> None:
            progress.update(task, advance=1, description=f"{target} {result.name}")

        start = time.perf_counter()
        results = build_kernels(target, names, jobs=jobs, done=done)
        wall = time.perf_counter() - start
    console.print(_table(target, results))
    console.print(f"{target}: {len(results)} kernels in {wall:.1f} s, {jobs} compilers at once")
    return results


def _table(target: str, results: Sequence[BuildResult]) -> Table:
    table = Table("module", "kernels", "compiled", "seconds", title=target)
    for module in dict.fromkeys(result.name.partition("/")[0] for result in results):
        mine = [result for result in results if result.name.partition("/")[0] == module]
        seconds = sum(result.seconds for result in mine)
        compiled = sum(result.built for result in mine)
        table.add_row(module, str(len(mine)), str(compiled), f"{seconds:.1f}")
    return table


def _report(
    console: Console, results: dict[str, list[BuildResult]], *, print_all: bool, check: bool
) -> None:
    """Prints what the code objects say about themselves, and holds it against the budgets."""
    found: list[KernelFacts] = []
    for target, built in results.items():

        def read(result: BuildResult, target: str = target) -> KernelFacts:
            return read_facts(result.file.path, result.name, target, result.file.symbol)

        with ThreadPoolExecutor(max_workers=len(os.sched_getaffinity(0))) as pool:
            mine = sorted(pool.map(read, built), key=lambda kernel: kernel.name)
        if print_all:
            report_console().print(facts_table(target, mine))
        found += mine
    if check:
        over = budgets.overruns(found, budgets.load(budgets.budgets_path()))
        if over:
            raise BudgetError("\n  ".join(["budgets exceeded:", *map(str, over)]))
        console.print(f"{len(found)} kernels are within {budgets.budgets_path().name}")


def _write(out: Path, results: dict[str, list[BuildResult]], library: Path) -> None:
    host = binding.recipe()
    kernels = {
        target: {r.name: (r.file.path, _source_key(r.name, target)) for r in built}
        for target, built in results.items()
    }
    prebuilt.write(
        out,
        abi_version=host.abi_version,
        kernels=kernels,
        binding=(library, host.source_key),
    )


def _source_key(name: str, target: str) -> str:
    return recipe(registry.default().kernel(name), target).source_key
