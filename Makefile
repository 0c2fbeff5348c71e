# `make demo` and `make test` do everything on a fresh machine that has git, make and a Python >= 3.11.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed

.PHONY: setup demo test lint format bench lock clean

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt | $(BIN)/uv
	$(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python --constraint constraints.txt --editable '.[test,lint]'
	@touch $@

$(BIN)/uv:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "rdcache needs Python 3.11 or newer; '$(PYTHON)' is $$($(PYTHON) --version 2>&1). Try: make $(MAKECMDGOALS) PYTHON=python3.12" >&2; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@test -x $(BIN)/uv || $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt uv

demo: setup
	$(BIN)/rdcache demo

# Three processes on two cores, since many tests wait, for servers that hang or for a disk; a thread
# each, in whatever they start as well.
test: export OMP_NUM_THREADS = 1
test: setup
	$(BIN)/python -m pytest -n 3 --dist worksteal

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The short forms of what docs/performance.md has; `python -m benchmarks.NAME` runs one in full.
bench: setup
	$(BIN)/uv pip install --quiet --python $(BIN)/python --constraint constraints.txt --editable '.[bench]'
	for name in read write extract inputs epoch two_phase scale; do \
	  $(BIN)/python -m benchmarks.$$name --short || exit 1; done

# Newest versions that satisfy pyproject.toml, for every platform and Python we support. Needs no
# setup: the old pins may not go with what pyproject.toml asks for now.
lock: $(BIN)/uv
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --upgrade --no-header --no-annotate \
	  --extra test --extra lint --extra bench --no-emit-index-url pyproject.toml --output-file constraints.txt
	@$(BIN)/python -c "from importlib.metadata import version; print('uv==' + version('uv'))" >> constraints.txt

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache
