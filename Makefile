# make demo | make test | make test-long | make lint : set up .venv, then run the main job | the tests that take moments
# each | the others (tutorials, studies, samplers, sizes of tests) | all other checks.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
DATA   ?=

.PHONY: demo test test-long lint clean

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

# One thread: on problems as small as these, threads that wait for each other cost more than they bring.
demo: $(VENV)/.installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pyrosplice.demo --output demo $(if $(DATA),--data $(DATA))

# Tests that stand together stay together, and share what their modules fit; the worker that ends first takes the rest.
test: $(VENV)/.installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal -m "not slow"

test-long: $(VENV)/.installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal -m slow

lint: $(VENV)/.installed
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy
	PYTHONPATH=. $(BIN)/lint-imports --no-cache
	$(BIN)/python tools/check_structure.py

clean:
	rm -rf $(VENV) demo build dist .pytest_cache .mypy_cache .ruff_cache
