# SPDX-License-Identifier: MIT
"""One process that uses several CPU targets, one after the other: their kernels share nothing."""

from __future__ import annotations

import subprocess
import sys

import pytest

from hipdecode import settings, target

DECODES = """
import sys, torch, hipdecode
from hipdecode import ops
from hipdecode.testing.calls import Checker
from hipdecode.testing.cases import Case

case = Case(q_lens=(1, 2), kv_lens=(200, 65), page_size=16)
for name in sys.argv[1:]:
    ops.use_target(name)
    Checker(name, torch.device("cpu"))(case, "hk-3")
"""


def test_kernels_of_several_cpu_targets_are_right_in_one_process() -> None:
    names = target.runnable()
    if len(names) < 2:
        pytest.skip("targets: a machine with AVX2 runs it")
    order = (names[-1], names[0], names[-1], *names)  # the plainest first, and again
    command = [sys.executable, "-c", DECODES, *order]
    environment = settings.child_environment(PYTHONPATH=":".join(sys.path))
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
