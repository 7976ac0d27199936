# Two commands: `make demo` and `make test`. Both set up the same environment in .venv first.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
EXTRAS ?= cpu,demo,plot,dev

.PHONY: demo test lint bench docs install clean
.DEFAULT_GOAL := help

help:
	@echo "make demo    raw logs -> trained model -> served scores, on real data, about five minutes"
	@echo "make test    the whole test suite"
	@echo "make lint    ruff and pyrefly"
	@echo "make bench   the short benchmarks: training and retrieval speed; JSON rows go to benchmarks/results/"
	@echo "make docs    the documentation site in site/"

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing into $(VENV) (torch, Ray, faiss and friends; once) ..."
	@$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[$(EXTRAS)]"
	@touch $@

demo: install
	$(BIN)/seminar demo

test: install
	$(BIN)/python -m pytest

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyrefly check

bench: install
	$(BIN)/python -m benchmarks.train --quick
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.gsu --quick

docs: install
	$(BIN)/mkdocs build --strict --quiet

clean:
	rm -rf runs site .pytest_cache .ruff_cache
