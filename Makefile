# make demo · make test · make test-all · make check · make faults · make bench: each sets up all that it needs.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet --constraint constraints.txt

.PHONY: demo test test-all check faults bench clean
.DELETE_ON_ERROR:

# Train the demo model under ROOT with its dashboard beside it: make demo DEMO_ARGS="--steps 200 --no-open"
demo: $(VENV)/.demo
	$(BIN)/root-dash demo $(DEMO_ARGS)

# What every change has to pass, on up to four cores; TEST_ARGS narrows it: make test TEST_ARGS="-n 0 -k orthogonalize"
PARALLEL := -n logical --maxprocesses 4 --dist loadfile
test: $(VENV)/.develop
	@$(BIN)/python -m tests.browser.chromium
	$(BIN)/python -m pytest -m "not long" $(PARALLEL) $(TEST_ARGS)

# The long tests too, and the PostgreSQL tests once more on the oldest version that we claim, if it is installed
test-all: $(VENV)/.develop
	@$(BIN)/python -m tests.browser.chromium
	$(BIN)/python -m pytest $(PARALLEL) $(TEST_ARGS)
	$(BIN)/python -m pytest -m postgresql --postgres 15 $(TEST_ARGS)

check: $(VENV)/.develop
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# What `make test` does a few times: 200 trainers and 200 servers are killed; a quarter of an hour
faults: $(VENV)/.develop
	KILLS=200 $(BIN)/python -m pytest --capture=no tests/faults/test_kill.py

bench: $(VENV)/.develop
	@for script in $(filter-out benchmarks/timing.py benchmarks/naive_root.py,$(wildcard benchmarks/*.py)); do echo "== $$script"; $(BIN)/python $$script || exit 1; done
	@echo "== benchmarks.health"; $(BIN)/python -m benchmarks.health

clean:
	rm -rf $(VENV) build dist *.egg-info

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "root-dash needs Python 3.11 or newer; name one: make PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.demo: $(BIN)/python pyproject.toml constraints.txt
	@echo "installing root-dash into $(VENV) (once; torch is large)"
	@$(PIP) --editable ".[torch]"
	@touch $@

$(VENV)/.develop: $(VENV)/.demo
	@echo "installing the test and check tools into $(VENV) (once)"
	@$(PIP) --editable ".[torch,test,check]"
	@touch $@
