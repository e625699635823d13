# `make` lists the targets. Everything is installed into .venv, nothing else is touched.
PYTHON ?= python3
BIN := .venv/bin
RUNTIME := .venv/.runtime
DEV := .venv/.dev
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help install demo test lmms lmms-slice check format lint types layers build results clean

help: ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

$(BIN)/python:
	$(PYTHON) -m venv .venv

$(RUNTIME): pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable .
	@touch $@

$(DEV): pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@ $(RUNTIME)

install: $(DEV) ## install the package and all tools into .venv

demo: $(RUNTIME) ## ask the embedded model seven questions about a rendered video
	$(BIN)/videonsa demo

test: $(DEV) ## run the tests (CPU, two processes)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

lmms: $(DEV) ## run all of tests_lmms in lmms-eval's own environment, and keep the result
	scripts/lmms_eval_tests.sh

lmms-slice: $(DEV) ## prompts, hand-computed scores and every data set's fixtures with two methods
	scripts/lmms_eval_tests.sh -k 'not dense and not fastv' \
		tests_lmms/test_tasks_paper.py tests_lmms/test_tasks_field.py tests_lmms/test_all_fixtures.py

check: lint types layers lmms-slice test build ## all that CI runs

format: $(DEV) ## rewrite the code in the house format
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

lint: $(DEV)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: $(DEV)
	$(BIN)/mypy

layers: $(DEV)
	$(BIN)/lint-imports

build: $(DEV) ## build the wheel and try it outside the checkout
	rm -rf dist
	$(BIN)/python -m build --quiet --outdir dist
	$(BIN)/python scripts/check_wheel.py dist

results: $(RUNTIME) ## write docs/results.md and README's table of speeds from the committed JSON
	$(BIN)/python -m benchmarks.report benchmarks/results --out docs/results.md
	$(BIN)/python benchmarks/headline.py

clean: ## remove what was built; .venv stays
	rm -rf dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
