# make demo | make test | make test-long | make lint : set up .venv, then run the main job | the tests that take moments
# each | the others (tutorials, studies, samplers, sizes of tests) | all other checks.
# make docs | make release : the site, in docs/_build/html | wheel and source in dist/, checked and tried where nothing else is.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
DATA   ?=

.PHONY: demo test test-long lint docs release clean

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

# One thread: on problems as small as these, threads that wait for each other cost more than they bring.
demo: $(VENV)/.installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pyrosplice demo --out demo --force $(if $(DATA),--data $(DATA))

# Tests that stand together stay together, and share what their modules fit; the worker that ends first takes the rest.
test: $(VENV)/.installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal -m "not slow"

test-long: $(VENV)/.installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal -m slow

lint: $(VENV)/.installed
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy
	PYTHONPATH=. $(BIN)/lint-imports --no-cache
	$(BIN)/python tools/check_structure.py

# No network is asked for anything; a warning is an error, and so is a link that leads nowhere.
docs: $(VENV)/.installed
	$(BIN)/python -m sphinx -W --keep-going -q -b html -d docs/_build/doctrees docs docs/_build/html
	$(BIN)/python tools/check_links.py docs/_build/html

# cffconvert wants an old jsonschema: the tools of a release have an environment of their own, and so has its first user
RELEASE := build/release
release:
	rm -rf dist $(RELEASE) && mkdir -p $(RELEASE)/elsewhere
	$(PYTHON) -m venv $(RELEASE)/tools
	$(RELEASE)/tools/bin/python -m pip install --quiet build cffconvert twine
	$(RELEASE)/tools/bin/cffconvert --validate -i CITATION.cff
	$(RELEASE)/tools/bin/python -m build --outdir dist .
	$(RELEASE)/tools/bin/twine check --strict dist/*
	$(PYTHON) -m venv $(RELEASE)/user
	$(RELEASE)/user/bin/python -m pip install --quiet --constraint constraints.txt torch
	$(RELEASE)/user/bin/python -m pip install --quiet --constraint constraints.txt "$$(ls dist/*.whl)[plot]"
	cd $(RELEASE)/elsewhere && OMP_NUM_THREADS=1 MPLBACKEND=Agg ../user/bin/python -I $(CURDIR)/tools/readme_cell.py $(CURDIR)

clean:
	rm -rf $(VENV) demo build dist docs/_build .pytest_cache .mypy_cache .ruff_cache
