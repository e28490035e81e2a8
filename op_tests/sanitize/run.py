# SPDX-License-Identifier: MIT
"""Runs the CPU kernels under sanitizers: `run.py --asan` (with UBSan) or `run.py --tsan`."""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

from hipdecode import registry, target

ROOT = Path(__file__).resolve().parents[2]
SANITIZERS = {
    "asan": ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"],
    "tsan": ["-fsanitize=thread"],
}


def run(sanitizer: str, target_name: str) -> int:
    """Builds and runs decode_threads.cpp for one CPU target; returns its exit status."""
    kernel = registry.default().kernel("mla_reduce")
    flags = [f for f in registry.default().flags(kernel, target_name).flags if f != "-shared"]
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder) / "decode_threads"
        source = Path(__file__).with_name("decode_threads.cpp")
        # -O2 from here on keeps line numbers honest; fp contraction and the ISA stay as shipped
        # and g++ 12 warns of its own intrinsics headers
        command = [
            "g++",
            *flags,
            "-g",
            "-O2",
            "-Wno-maybe-uninitialized",
            *SANITIZERS[sanitizer],
            "-pthread",
        ]
        command += [f"-I{ROOT / 'csrc'}", str(source), "-o", str(program)]
        subprocess.run(command, check=True)
        return subprocess.run([str(program)], check=False).returncode


def main() -> int:
    """Runs the chosen sanitizers for every CPU target that this machine executes."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name in SANITIZERS:
        parser.add_argument(f"--{name}", action="store_true")
    parser.add_argument("--target", action="append", help="default: all that run here")
    arguments = parser.parse_args()
    failures = 0
    for sanitizer in SANITIZERS:
        if not getattr(arguments, sanitizer):
            continue
        for name in arguments.target or target.runnable():
            print(f"{sanitizer} {name}", flush=True)
            failures += run(sanitizer, name) != 0
    return failures


if __name__ == "__main__":
    sys.exit(main())
