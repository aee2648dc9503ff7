# make train [ARGS="--optimizer Adam"]   set up .venv where needed, then run the main job
# make test  [ARGS="-k parity"]          the tests
# make commands                          what README, docs/ and --help say to type, each line really run
# make coverage                          the same, and which lines and branches no test runs
# make check                             format, lint, types and the direction of imports
# make bench-comparison                  what a comparison costs beside the same trainings one after another
# make bench-tables                      what ten million rows cost, in time beside a bare loop and in memory
# make bench-faults                      what 200 kills of real trainings leave
# make bench-checkpoints                 what checkpoints cost beside the same fit without
# make bench-scaling                     what Dask's workers gain and cost beside one process
# make bench-requests                    what thousands of random requests end with
# make bench                             what a run costs beside a bare script, and what the gate finds and costs
SHELL := /bin/bash
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready

.PHONY: train test commands coverage check bench bench-comparison bench-tables bench-faults bench-checkpoints bench-requests bench-scaling
train: $(READY)
	@$(BIN)/python flows/train_flow.py $(ARGS)

test: $(READY)
	$(BIN)/pytest -n 2 --dist worksteal $(ARGS)

coverage: $(READY)
	$(BIN)/pytest -n 2 --dist worksteal --cov --cov-report=term-missing $(ARGS)

commands: $(READY)
	PYTHONPATH="$(CURDIR):$(CURDIR)/tests" $(BIN)/python tests/run_commands.py

check: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(READY)
	$(BIN)/python benchmarks/overhead.py $(ARGS)
	$(BIN)/python benchmarks/gate.py

bench-comparison: $(READY)
	$(BIN)/python benchmarks/comparison.py $(ARGS)

bench-tables: $(READY)
	$(BIN)/python benchmarks/tables.py $(ARGS)

bench-faults: $(READY)
	$(BIN)/python benchmarks/faults.py --kills 200 $(ARGS)

bench-checkpoints: $(READY)
	$(BIN)/python benchmarks/checkpoints.py $(ARGS)

bench-requests: $(READY)
	$(BIN)/python benchmarks/wrong_requests.py --cases 5000 $(ARGS)

bench-scaling: $(READY)
	$(BIN)/python benchmarks/scaling.py $(ARGS)

# Installed anew only when what is to be installed has changed.
$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "fourfold needs Python 3.11 or newer; name one: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 2; }
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[dev]"
	@touch $@
