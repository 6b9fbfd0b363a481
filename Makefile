# What a person does with pllm. `make serve` and `make test` need Python 3.11 or later, g++ and make, nothing else.
# Where packages come from is the environment's to say: pip reads its own PIP_* variables and configuration.

# Python 3.11 first, then 3.12, then whatever python3 is; one that does not start, or is too old, is passed over.
PYTHON ?= $(shell for python in python3.11 python3.12 python3; do \
	$$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$python && break; done)
BIN := .venv/bin
STAMP := .venv/.installed
# From the repository's root, build/ and kernels/ would shadow the PyPI packages of the same names.
PYTEST := PYTHONSAFEPATH=1 $(BIN)/pytest

HOST ?= 127.0.0.1
PORT ?= 8000

.PHONY: help venv serve test nightly lint typecheck contracts bench clean

help:
	@echo 'make serve      build the quickstart model where needed, and serve it on $(HOST):$(PORT)'
	@echo 'make test       the tests (make nightly: the slow ones)'
	@echo 'make lint       ruff; make typecheck: mypy --strict; make contracts: who may import whom'
	@echo 'make bench      measure the CPU kernels'
	@echo 'make clean      remove caches and what was built; keeps .venv'

venv: $(STAMP)

$(STAMP): pyproject.toml
	@test -n "$(PYTHON)" || { echo 'pllm needs Python 3.11 or later: install it, or name one with make PYTHON=...' >&2; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --editable '.[build,test]'
	@touch $@

serve: venv
	$(BIN)/pllm build recipes/quickstart.toml --output artifacts/quickstart
	exec $(BIN)/pllm run artifacts/quickstart --host $(HOST) --port $(PORT)

test: venv
	$(PYTEST)

nightly: venv
	$(PYTEST) -m 'nightly and not gpu'

lint: venv
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

typecheck: venv
	$(BIN)/mypy -p pllm

contracts: venv
	$(BIN)/lint-imports

bench: venv
	PYTHONSAFEPATH=1 $(BIN)/python tests/perf/bench_kernels.py

clean:
	rm -rf .scratch .mypy_cache .ruff_cache .pytest_cache .hypothesis .benchmarks .import_linter_cache
	find artifacts -mindepth 1 -maxdepth 1 ! -name README.md -exec rm -rf {} +
	find . -path ./.venv -prune -o -name __pycache__ -type d -exec rm -rf {} +
