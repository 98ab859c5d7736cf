# Everything a fresh machine needs is Python 3.10+ and this file.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test test-all lint audit torture clean

# The whole job on synthetic data: manifests, training, evaluation. Nothing is downloaded.
demo: .venv/installed
	$(BIN)/bus-smp demo

# Every promise in its short form. Two processes: a training in a test uses one core.
test: .venv/installed
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "not slow"

# The long forms too.
test-all: .venv/installed
	$(BIN)/python -m pytest -n 2 --dist worksteal

lint: .venv/installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[dev]"
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Known faults in the code's patterns (bandit) and in its requirements (pip-audit, which needs the network).
audit: .venv/installed
	$(BIN)/python -m pip install --quiet "bandit[toml]>=1.8" "pip-audit>=2.9"
	$(BIN)/bandit -q -c pyproject.toml -r bus_smp
	$(BIN)/pip-audit --skip-editable

# 20 minutes of kills, full disks and damaged files.
torture: .venv/installed
	$(BIN)/python tests/torture/kills.py --kills 24 --folder outputs/torture/kills
	$(BIN)/python -m pytest tests/test_preflight.py tests/test_torture.py
	$(BIN)/python tests/torture/fuzz.py --seconds 300 --keep outputs/torture/fuzz

# Made again when the requirements change. A failed install leaves no stamp, so it is tried again.
.venv/installed: setup.cfg setup.py pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[test]"
	touch $@

clean:
	rm -rf .venv outputs/demo
