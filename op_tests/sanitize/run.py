# SPDX-License-Identifier: MIT
"""Runs the CPU kernels on their own, without torch: under sanitizers, or emulated.

`run.py --asan` (with UBSan) and `run.py --tsan` use every CPU target that this machine executes;
`run.py --aarch64` needs aarch64-linux-gnu-g++ and qemu-aarch64 (Debian: g++-aarch64-linux-gnu,
qemu-user).
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

from hipdecode import registry, target

ROOT = Path(__file__).resolve().parents[2]
PROGRAMS = ("decode_threads", "sparse_threads", "paged_threads")
SANITIZERS = {
    "asan": ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"],
    "tsan": ["-fsanitize=thread"],
}


def run(target_name: str, extra: list[str], *, compiler: str = "g++", runner: str = "") -> bool:
    """Builds and runs the programs for one CPU target; returns whether all was well."""
    kernel = registry.default().kernel("mla_reduce")
    flags = [f for f in registry.default().flags(kernel, target_name).flags if f != "-shared"]
    # -O2 keeps line numbers honest; g++ 12 warns of its own AVX-512 headers
    flags += ["-O2", "-g", "-pthread", "-Wno-maybe-uninitialized", f"-I{ROOT / 'csrc'}", *extra]
    good = True
    with tempfile.TemporaryDirectory() as folder:
        for name in PROGRAMS:
            program = str(Path(folder) / name)
            source = str(Path(__file__).with_name(f"{name}.cpp"))
            subprocess.run([compiler, *flags, source, "-o", program], check=True)
            command = [runner, program] if runner else [program]
            good &= subprocess.run(command, check=False).returncode == 0
    return good


def main() -> int:
    """Runs what the command line asks for; returns the number of runs that failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name in (*SANITIZERS, "aarch64"):
        parser.add_argument(f"--{name}", action="store_true")
    parser.add_argument("--target", action="append", help="default: all that run here")
    arguments = parser.parse_args()
    good = []
    for sanitizer, flags in SANITIZERS.items():
        if getattr(arguments, sanitizer):
            for name in arguments.target or target.runnable():
                print(f"{sanitizer} {name}", flush=True)
                good.append(run(name, flags))
    if arguments.aarch64:
        print("aarch64, emulated", flush=True)
        cross = "aarch64-linux-gnu-g++"
        good.append(run("cpu-generic", ["-static"], compiler=cross, runner="qemu-aarch64"))
    return len(good) - sum(good)


if __name__ == "__main__":
    sys.exit(main())
