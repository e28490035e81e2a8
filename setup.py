# SPDX-License-Identifier: MIT
"""Wheel contents that pyproject.toml cannot say: the torch binding, csrc/ and configs/."""

import shutil
import sys
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent
# As in python/hipdecode/jit/binding.py; the version is torch 2.10, the oldest that is served.
COMPILE_FLAGS = [
    "-std=c++20", "-O2", "-g0", "-fvisibility=hidden", "-Wall", "-Wextra",
    "-DTORCH_TARGET_VERSION=0x020a000000000000ULL",
]  # fmt: skip


class BuildPyWithSources(build_py):
    """Puts csrc/ and configs/ into hipdecode/share, where an installed wheel reads them."""

    def run(self) -> None:
        """Copies the Python files, then (outside editable installs) the two data folders."""
        super().run()
        if self.editable_mode:
            return
        for folder in ("csrc", "configs"):
            target = Path(self.build_lib) / "hipdecode" / "share" / folder
            shutil.copytree(ROOT / folder, target, dirs_exist_ok=True)


def main() -> None:
    """Builds `hipdecode._C` into a wheel where torch is importable, else leaves it to first use."""
    cmdclass: dict[str, type] = {"build_py": BuildPyWithSources}
    extensions = []
    # An editable install takes the binding from the JIT cache, keyed by content: never stale.
    if "editable_wheel" in sys.argv:
        print("hipdecode: editable install, the torch binding is built on first use")
    else:
        try:
            from torch.utils.cpp_extension import BuildExtension, CppExtension
        except ImportError:
            print("hipdecode: no torch at build time, the torch binding is built on first use")
        else:
            sources = sorted((ROOT / "csrc" / "runtime").glob("*.cpp"))
            sources += sorted((ROOT / "csrc" / "torch").glob("*.cpp"))
            extensions.append(
                CppExtension(
                    "hipdecode._C",
                    [str(path.relative_to(ROOT)) for path in sources],
                    include_dirs=[str(ROOT / "csrc")],
                    extra_compile_args=COMPILE_FLAGS,
                    extra_link_args=["-ldl"],
                    py_limited_api=True,
                )
            )
            cmdclass["build_ext"] = BuildExtension.with_options(use_ninja=False)
    setup(
        ext_modules=extensions,
        cmdclass=cmdclass,
        options={"bdist_wheel": {"py_limited_api": "cp311"}} if extensions else {},
    )


if __name__ == "__main__":
    main()
