# `make demo` and `make test` work in a fresh clone: they make their own .venv, install what they need, and run.
# Needed beforehand: make, Python 3.11 or newer with its venv module. No compiler, no GPU.
#
#   make demo      nodules in a synthetic chest CT; results in demo/
#   make test      lint, types, layer rules, then all tests
#   make lint      only the first part of that
#   make bench     ratios of speed and memory, printed as tables
#   make figures   the pictures of the README
#   make clean     remove .venv and demo/
#
# Variables, e.g. `make test PYTHON=python3.12`:
#   PYTHON       interpreter for .venv (default: the first on the path that is new enough)
#   TORCH_INDEX  package index that PyTorch alone is taken from, e.g. https://download.pytorch.org/whl/cu126
#                (default: the one that pip uses where a GPU or a CPU build is found, else PyTorch's own CPU builds)

SHELL := /bin/bash
VENV := .venv
PIP := $(VENV)/bin/python -m pip --disable-pip-version-check
PYTHON ?= $(firstword $(foreach name,python3 python3.13 python3.12 python3.11 python3.14,$(shell \
	$(name) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $(name))))
TORCH_INDEX ?=
CPU_INDEX := https://download.pytorch.org/whl/cpu

.PHONY: demo test lint bench figures clean
.DELETE_ON_ERROR:

demo: $(VENV)/.ready
	$(VENV)/bin/genseg demo -o demo

test: lint
	$(VENV)/bin/python -m pytest -q

lint: $(VENV)/.ready-test
	$(VENV)/bin/ruff check .
	PYTHONPATH=GenSegExtension $(VENV)/bin/lint-imports --no-logo
	$(VENV)/bin/mypy

bench: $(VENV)/.ready-test
	set -e; for script in Testing/benchmarks/bench_*.py; do $(VENV)/bin/python "$$script"; done

figures: $(VENV)/.ready
	$(VENV)/bin/genseg demo -o demo
	mkdir -p Resources/Screenshots
	cp demo/overlay.png Resources/Screenshots/nodules-demo.png

clean:
	rm -rf $(VENV) demo

# What the demo needs. The stamps make a second run quick; they are renewed when the versions asked for change.
$(VENV)/.ready: pyproject.toml constraints.txt
	@if [ -z "$(PYTHON)" ]; then echo "GenSeg needs Python 3.11 or newer; name it: make PYTHON=/path/to/python3" >&2; exit 1; fi
	@echo "Setting up $(VENV); the first time this takes some minutes."
	@$(VENV)/bin/python -c "" 2>/dev/null || $(PYTHON) -m venv --clear $(VENV) || { \
		echo "$(PYTHON) could not make $(VENV); on Debian and Ubuntu install the package python3-venv" >&2; exit 1; }
	@$(install-torch)
	$(PIP) install -q -c constraints.txt -e .
	@touch $@

# What the tests need besides.
$(VENV)/.ready-test: $(VENV)/.ready
	$(PIP) install -q -c constraints.txt -e ".[all,test]"
	@touch $@

# PyTorch goes first and on its own: on Linux its usual build brings gigabytes of CUDA, useless without a GPU. So where
# there is no GPU and pip would not find a CPU build by itself, ask PyTorch's own index; where that cannot be reached,
# the next step installs the usual build, which runs on the CPU too.
define install-torch
constraint="-c constraints.txt torch"; \
if [ -n "$(TORCH_INDEX)" ]; then \
	$(PIP) install --no-deps --index-url "$(TORCH_INDEX)" $$constraint; \
elif [ "$$(uname -s)" = Linux ] && ! $(VENV)/bin/python -c "import torch" 2>/dev/null && ! nvidia-smi -L >/dev/null 2>&1 \
	&& ! $(PIP) install -q --dry-run --no-deps --report - $$constraint 2>/dev/null | grep -q '+cpu'; then \
	$(PIP) install --no-deps --timeout 15 --retries 1 --index-url $(CPU_INDEX) $$constraint \
		|| echo "PyTorch's index of CPU builds cannot be reached; installing the usual, larger build."; \
fi
endef
