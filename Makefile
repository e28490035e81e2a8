# SPDX-License-Identifier: MIT
# Every target works from a fresh clone with Python >= 3.11, a C++20 compiler and a package index.
# It uses the active virtual environment, or makes .venv; the stamp files in it make the second
# run instant. TORCH=... names another PyTorch, e.g. TORCH='torch==2.10.*'.

PYTHON ?= $(firstword $(foreach p,python3.11 python3 python3.12 python3.13,\
  $(if $(shell $(p) -c 'import sys; print("ok" if sys.version_info >= (3, 11) else "")' 2>/dev/null),$(p))))
TORCH ?= torch==2.13.0
TARGET ?= cpu
PYTEST_ARGS ?=

VENV := $(or $(VIRTUAL_ENV),$(CURDIR)/.venv)
PY := $(VENV)/bin/python
PIP := $(PY) -m pip install --disable-pip-version-check -qq
# Names the checkout too: an environment shared by two checkouts serves the one installed last.
STAMP := $(VENV)/.hipdecode-$(shell echo '$(CURDIR)' | cksum | cut -d' ' -f1)

SIM_TARGETS ?= gfx950 gfx942

# Their wheels name PyTorch releases for GPUs, and not the same: installed without what they name.
CLIENTS ?= sglang==0.5.23 vllm==0.33.0

.PHONY: demo test test-clients test-sim lint bench asan tsan aarch64 sanitize-gpu clean install build
.DEFAULT_GOAL := demo

demo: install  ## a small MLA model decodes on hipdecode, checked against eager PyTorch
	$(PY) -m hipdecode.cli demo

test: build  ## the suite without slow, GPU and long simulator tests
	$(PY) -m pytest op_tests -m "not slow and not gpu and not sim" $(PYTEST_ARGS)

test-clients: $(STAMP)-clients  ## layers of SGLang, transformers and vLLM on hipdecode, each in a process of its own
	for client in sglang transformers vllm; do \
	  $(PY) -m pytest op_tests/clients/test_$${client}*.py --target $(TARGET) $(PYTEST_ARGS) || exit 1; \
	done

test-sim: install  ## the kernel suite through the code objects of gfx950 and gfx942, simulated: minutes
	for arch in $(SIM_TARGETS); do \
	  $(PY) -m hipdecode.cli build --target $$arch --all && \
	  HIPDECODE_SIM_COMPUTE_UNITS=4 $(PY) -m pytest op_tests/test_tiny.py op_tests/kernels op_tests/torch \
	    --target sim:$$arch -m "not slow and not gpu" $(PYTEST_ARGS) || exit 1; \
	done
	$(PY) -m pytest op_tests/sim -m sim

build: install  ## every registered kernel, in parallel, so that tests do not wait for compilers
	$(PY) -m hipdecode.cli build --target $(TARGET) --all

lint: $(STAMP)-dev  ## style and types, nothing is rewritten
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy
	git ls-files 'csrc/*.h' 'csrc/*.cpp' 'op_tests/*.h' 'op_tests/*.cpp' | xargs $(VENV)/bin/clang-format --dry-run -Werror

bench: install  ## hipdecode beside its peers; every line says how to repeat it
	$(PY) -m hipdecode.cli bench --target $(TARGET)

asan: install  ## address and undefined-behaviour sanitizers
	$(PY) op_tests/sanitize/run.py --asan

tsan: install  ## thread sanitizer
	$(PY) op_tests/sanitize/run.py --tsan

aarch64: install  ## the kernels of cpu-generic, cross-compiled and emulated
	$(PY) op_tests/sanitize/run.py --aarch64

sanitize-gpu: install  ## memcheck and initcheck of the sm_90 kernels, on a Hopper GPU
	$(PY) op_tests/sanitize/gpu.py

install: $(STAMP)-run

# A PyTorch that is already there stays, also one of the system Python (a ROCm or CUDA image).
$(PY):
	@test -n "$(PYTHON)" || { echo "python: expected 3.11 or newer, got none; do install one or pass PYTHON="; exit 1; }
	$(PYTHON) -m venv $(shell $(PYTHON) -c 'import torch' 2>/dev/null && echo --system-site-packages) $(VENV)

$(STAMP)-run: pyproject.toml setup.py | $(PY)
	@echo "installing into $(VENV)"
	$(PIP) 'setuptools>=77' wheel
	$(PY) -c 'from torch.torch_version import TorchVersion, __version__ as v; assert TorchVersion(v) >= "2.10"' \
	  2>/dev/null || $(PIP) $(TORCH)
	$(PIP) --no-build-isolation -e '.[test,demo]'
	rm -f $(VENV)/.hipdecode-*
	touch $@

$(STAMP)-clients: $(STAMP)-run
	$(PIP) --no-build-isolation -e '.[test,demo,clients]'
	$(PIP) --no-deps $(CLIENTS)
	touch $@

$(STAMP)-dev: $(STAMP)-run
	$(PIP) --no-build-isolation -e '.[dev]'
	touch $@

clean:  ## build outputs of the checkout; the kernel cache is `hipdecode doctor`'s
	rm -rf build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis python/hipdecode.egg-info
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
