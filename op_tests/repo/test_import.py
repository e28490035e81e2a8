# SPDX-License-Identifier: MIT
"""Importing hipdecode is quick and does nothing but import."""

import json
import os
import subprocess
import sys
from pathlib import Path

PYTHON_DIR = Path(__file__).parents[2] / "python"
BUDGET_S = 0.5

IMPORT_TIME = """
import time, torch
start = time.perf_counter()
from hipdecode import *
print(time.perf_counter() - start)
"""

# The audit hook sees what Python code does to the outside: writes, processes, sockets, libraries.
SIDE_EFFECTS = """
import json, os, sys, torch
seen = []
before, folder = dict(os.environ), set(os.listdir("."))
LOUD = {"subprocess.Popen", "os.system", "os.exec", "os.fork", "os.posix_spawn", "os.mkdir",
        "os.rename", "os.remove", "os.rmdir", "os.putenv", "os.unsetenv", "os.chmod", "os.symlink",
        "socket.connect", "socket.bind"}
def hook(event, args):
    writes = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_TRUNC
    if event in LOUD or (event == "open" and isinstance(args[2], int) and args[2] & writes):
        seen.append(f"{event}{args}")
sys.addaudithook(hook)
from hipdecode import *
loud = list(seen)
print(json.dumps({"events": loud, "environ": dict(os.environ) != before,
                  "files": sorted(set(os.listdir(".")) - folder),
                  "cuda": torch.cuda.is_initialized()}))
"""


def run_python(code: str, folder: Path) -> str:
    """Runs `code` in a fresh interpreter that sees this checkout and writes no bytecode."""
    env = {
        **os.environ,
        "PYTHONPATH": str(PYTHON_DIR),
        "PYTHONDONTWRITEBYTECODE": "1",
        "HIPDECODE_CACHE_DIR": str(folder / "cache"),
    }
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1]


def test_import_is_under_half_a_second_beyond_torch(tmp_path: Path) -> None:
    # The least of three: the machine may be busy, the import is not slower for it.
    seconds = min(float(run_python(IMPORT_TIME, tmp_path)) for _ in range(3))
    assert seconds < BUDGET_S


def test_import_has_no_side_effect(tmp_path: Path) -> None:
    seen = json.loads(run_python(SIDE_EFFECTS, tmp_path))
    assert seen == {"events": [], "environ": False, "files": [], "cuda": False}
