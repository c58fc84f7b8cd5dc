# Two commands on a fresh machine: `make demo` and `make test`. Each sets up what it needs and is quick the second time.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
# Quiet, but says what it is doing; pip's notices about itself are of no use here.
PIP    := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-warn-script-location
KERNEL_SOURCES := $(wildcard cpp/*.cpp cpp/*.h cpp/cuda/*) CMakeLists.txt pyproject.toml

.PHONY: demo test build lint bench clean
.DEFAULT_GOAL := demo

demo: build
	@$(BIN)/halocast demo

test: $(VENV)/.dev
	@$(BIN)/python -m pytest -q

build: $(VENV)/.built

lint: $(VENV)/.dev
	$(BIN)/ruff check src runtime simulator traces reports tests benchmarks scripts
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/ruff format --check src runtime simulator traces reports tests benchmarks scripts

bench: $(VENV)/.dev
	@$(BIN)/python -m benchmarks

$(VENV)/.torch:
	@echo "· making a virtual environment in $(VENV)"
	@$(PYTHON) -m venv $(VENV)
	@$(PIP) --upgrade pip
	@echo "· installing torch (the largest download; once)"
	@$(PIP) torch==2.13.0
	@touch $@

$(VENV)/.dependencies: $(VENV)/.torch pyproject.toml
	@echo "· installing the dependencies"
	@$(PIP) "scikit-build-core>=0.11" "pybind11>=3.0" "cmake>=3.25" ninja
	@$(BIN)/python scripts/requirements.py base serve > $(VENV)/requirements.txt
	@$(PIP) -r $(VENV)/requirements.txt
	@touch $@

$(VENV)/.built: $(VENV)/.dependencies $(KERNEL_SOURCES)
	@echo "· building the kernels (C++, and CUDA where nvcc is found; about a minute)"
	@$(PIP) --no-build-isolation --no-deps --editable .
	@touch $@

$(VENV)/.dev: $(VENV)/.built pyproject.toml
	@echo "· installing what the tests need"
	@$(BIN)/python scripts/requirements.py test dev > $(VENV)/requirements-dev.txt
	@$(PIP) -r $(VENV)/requirements-dev.txt
	@touch $@

clean:
	rm -rf build $(VENV)/.built .pytest_cache .mypy_cache .ruff_cache
