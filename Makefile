# What a person does with pllm. `make serve` and `make test` need Python 3.11 or later, g++ and make, nothing else.
# Where packages come from is the environment's to say: pip reads its own PIP_* variables and configuration.

# Python 3.11 first, then 3.12, then whatever python3 is; one that does not start, or is too old, is passed over.
PYTHON ?= $(shell for python in python3.11 python3.12 python3; do \
	$$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$python && break; done)
BIN := .venv/bin
STAMP := .venv/.installed
# From the repository's root, build/ and kernels/ would shadow the PyPI packages of the same names.
PYTEST := PYTHONSAFEPATH=1 $(BIN)/pytest

# What the machines with a GPU have. It installs and runs without one too, and must work like the other set.
PYTHON312 ?= python3.12
GPU_SET := torch==2.11.0 transformers==5.17.0 triton==3.6.0
GPU_SET_ENV := .venv-gpu-set
GPU_SET_ARTIFACT := artifacts/quickstart-gpu-set

# The other side of make bench-peers: transformers is in .venv; llama.cpp is compiled, in ten minutes, for this machine.
# PRECISION is of the weights, or of the arithmetic where that is float32.
PRECISION ?= float32
PEERS_RECIPE := recipes/qwen3-0.6b-random.toml
PEERS_ARTIFACT := artifacts/qwen3-0.6b-random
PEERS_FORMS_float32 := bf16 float32
PEERS_FORMS_int8 := int8
PEERS_FORMS_int4 := int4
PEERS_FORMS = $(PEERS_FORMS_$(PRECISION))
# A narrow KV cache beside narrow weights; no longer a sequence than the peers are given room for.
PEERS_SET_int8 := --set quantization.kv=int8 --set engine.max_model_len=512
PEERS_SET_int4 := $(PEERS_SET_int8)
PEERS_FLAGS ?=
SERVER_FLAGS ?=
LLAMA_ENV := .venv-peers/llama-cpp
LLAMA_SET := llama-cpp-python gguf
OPENVINO_ENV := .venv-peers/openvino
OPENVINO_SET := openvino-genai optimum-intel[openvino] torch==2.13.0
CTRANSLATE2_ENV := .venv-peers/ctranslate2
CTRANSLATE2_SET := ctranslate2 transformers torch==2.13.0

HOST ?= 127.0.0.1
PORT ?= 8000

# A part of gpu-check, the seconds it has, and where its results go.
PART ?= kernels
BUDGET ?= 520
OUTPUT ?= .scratch/gpu-check
GPU_FLAGS ?=

.PHONY: help venv serve test nightly smoke-gpu-set lint typecheck contracts bench bench-edge bench-server bench-peers bench-peers-install gate counts counts-pin cuda-table gpu-check clean

help:
	@echo 'make serve      build the quickstart model where needed, and serve it on $(HOST):$(PORT)'
	@echo 'make test       the tests (make nightly: the slow ones; make smoke-gpu-set: with the software of GPU machines, 5 GB)'
	@echo 'make lint       ruff; make typecheck: mypy --strict; make contracts: who may import whom'
	@echo 'make gate       whether this tree is slower, larger or later than the pinned base: ten minutes or so'
	@echo 'make counts     what has no noise, compared with its pins; make counts-pin: writes them'
	@echo 'make bench      measure the CPU kernels; make bench-edge: what the server costs, without a model'
	@echo 'make bench-server the server beside the library on one artifact'
	@echo 'make bench-peers pllm beside transformers and others, an hour or two'
	@echo 'make cuda-table the CUDA kernels'"'"' registers, shared memory and spills, without a GPU'
	@echo 'make gpu-check  on a machine with a GPU: PART=kernels|engine|0.6b|1b|8b|throughput|peers, with PYTHON=python3'
	@echo 'make clean      remove caches and what was built; keeps environments'

venv: $(STAMP)

$(STAMP): pyproject.toml
	@test -n "$(PYTHON)" || { echo 'pllm needs Python 3.11 or later: install it, or name one with make PYTHON=...' >&2; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --editable '.[build,test]'
	@touch $@

serve: venv
	$(BIN)/pllm build recipes/quickstart.toml --output artifacts/quickstart
	exec $(BIN)/pllm run artifacts/quickstart --host $(HOST) --port $(PORT)

# The benchmarks in tests/perf run once each, untimed: times are for pytest tests/perf --benchmark-only.
test: venv
	$(PYTEST) --benchmark-disable

nightly: venv
	$(PYTEST) --benchmark-disable -m 'nightly and not gpu'

# Beside .venv and its artifact, which stay as they are.
smoke-gpu-set: $(GPU_SET_ENV)/.installed
	$(GPU_SET_ENV)/bin/pllm build recipes/quickstart.toml --output $(GPU_SET_ARTIFACT)
	$(GPU_SET_ENV)/bin/pllm verify $(GPU_SET_ARTIFACT)
	PYTHONSAFEPATH=1 PLLM_TEST_ARTIFACT="$(CURDIR)/$(GPU_SET_ARTIFACT)" $(GPU_SET_ENV)/bin/pytest --benchmark-disable

$(GPU_SET_ENV)/.installed: pyproject.toml Makefile
	test -x $(GPU_SET_ENV)/bin/python || $(PYTHON312) -m venv $(GPU_SET_ENV)
	$(GPU_SET_ENV)/bin/pip install --quiet $(GPU_SET) --editable '.[build,test]'
	@touch $@

# Kernels, calls, allocations, imports, sizes, tokens: compared exactly with what is pinned, for each kind of device.
PINS := tests/perf/pins
COUNTED := artifacts/quickstart
CUDA_COUNTS := .scratch/counts-cuda.json

counts: venv
	@mkdir -p $(dir $(CUDA_COUNTS))
	$(BIN)/pllm build recipes/quickstart.toml --output $(COUNTED)
	$(BIN)/python -P -m pllm.runtime.gate.pins $(PINS)/cpu.toml $(COUNTED) $(UPDATE)
	$(BIN)/python -P -m pllm.build.count_cuda recipes/quickstart >$(CUDA_COUNTS)
	$(BIN)/python -P -m pllm.runtime.gate.pins $(PINS)/cuda.toml - $(UPDATE) <$(CUDA_COUNTS)

counts-pin:
	@$(MAKE) --no-print-directory counts UPDATE=--update

lint: venv
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

typecheck: venv
	$(BIN)/mypy -p pllm

contracts: venv
	$(BIN)/lint-imports

bench: venv
	PYTHONSAFEPATH=1 $(BIN)/python tests/perf/bench_kernels.py

# This tree beside the commit that is pinned, each built and run by its own code; reports in .scratch/gate/, and in the
# history that pllm report draws.
GATE_FLAGS ?= --seconds 420
gate: venv
	@mkdir -p .scratch/gate; rm -f .scratch/gate/gate.json
	$(BIN)/pllm gate --pin tests/perf/gate.toml --work .scratch/gate --json .scratch/gate/gate.json \
		--markdown .scratch/gate/gate.md --html .scratch/gate/gate.html $(GATE_FLAGS); code=$$?; \
		test $$code = 3 || test ! -f .scratch/gate/gate.json || $(BIN)/pllm report .scratch/gate/gate.json >/dev/null; exit $$code

# What one API process streams when the model costs nothing.
bench-edge: venv
	PYTHONSAFEPATH=1 PYTHONPATH=tests/perf $(BIN)/python -m edge

# The server's tokens a second over the library's, in one run.
bench-server: venv
	$(BIN)/pllm build $(PEERS_RECIPE) --output $(PEERS_ARTIFACT)
	PYTHONSAFEPATH=1 PYTHONPATH=tests/perf $(BIN)/python -m edge.against_library --artifact $(PEERS_ARTIFACT) \
		$(SERVER_FLAGS)

bench-peers: venv
	for form in $(PEERS_FORMS); do $(BIN)/pllm build $(PEERS_RECIPE) --set quantization.weights=$$form \
		$(PEERS_SET_$(PRECISION)) --output $(PEERS_ARTIFACT)-$$form || exit; done
	PYTHONSAFEPATH=1 PYTHONPATH=tests/perf $(BIN)/python -m peers --checkpoint $(PEERS_RECIPE) --precision $(PRECISION) \
		$(foreach form,$(PEERS_FORMS),--artifact 'pllm $(form)=$(PEERS_ARTIFACT)-$(form)') $(PEERS_FLAGS)

bench-peers-install: $(LLAMA_ENV)/.installed $(OPENVINO_ENV)/.installed $(CTRANSLATE2_ENV)/.installed

$(LLAMA_ENV)/.installed: PACKAGES = $(LLAMA_SET)
$(OPENVINO_ENV)/.installed: PACKAGES = $(OPENVINO_SET)
# PyPI's wheel of it wants torch's CUDA build; text needs none.
$(OPENVINO_ENV)/.installed: UNWANTED = torchvision
$(CTRANSLATE2_ENV)/.installed: PACKAGES = $(CTRANSLATE2_SET)

.venv-peers/%/.installed:
	test -x $(@D)/bin/python || $(PYTHON) -m venv $(@D)
	CMAKE_ARGS='-DGGML_NATIVE=ON' $(@D)/bin/pip install --quiet $(PACKAGES)
	$(if $(UNWANTED),$(@D)/bin/pip uninstall --quiet --yes $(UNWANTED))
	$(@D)/bin/pip install --quiet --no-deps --editable .
	@touch $@

# The Triton kernels' registers, shared memory and spills, compiled for every architecture: no GPU needed.
cuda-table: venv
	$(BIN)/python -P -m pllm.kernels.cuda.resources

# On a machine with a GPU: installs nothing, uses PYTHON as it is. The link keeps build/ and kernels/ off the path.
gpu-check:
	@mkdir -p .scratch/path && ln -sfn '$(CURDIR)/pllm' .scratch/path/pllm
	PYTHONPATH="$(CURDIR)/.scratch/path$${PYTHONPATH:+:$$PYTHONPATH}" $(PYTHON) tests/perf/gpu/check.py $(PART) \
		--seconds $(BUDGET) --output '$(OUTPUT)' $(GPU_FLAGS)

clean:
	rm -rf .scratch .mypy_cache .ruff_cache .pytest_cache .hypothesis .benchmarks .import_linter_cache
	find artifacts -mindepth 1 -maxdepth 1 ! -name README.md -exec rm -rf {} +
	find . -path './.venv*' -prune -o -name __pycache__ -type d -exec rm -rf {} +
