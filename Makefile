# Everything a fresh machine needs is Python 3.10+ and this file.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test lint audit torture clean

# The whole job on synthetic data: manifests, training, evaluation. Nothing is opened or downloaded.
demo: .venv/installed
	$(BIN)/bus-smp demo

test: .venv/installed
	$(BIN)/python -m pytest

lint: .venv/installed
	$(BIN)/python -m pip install --quiet "ruff>=0.6"
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# Known faults of the code's patterns and of what it requires; the second needs the network.
audit: .venv/installed
	$(BIN)/python -m pip install --quiet "bandit[toml]>=1.8" "pip-audit>=2.9"
	$(BIN)/bandit -q -c pyproject.toml -r bus_smp
	$(BIN)/pip-audit --skip-editable

# 20 minutes of kills, full disks and damaged files.
torture: .venv/installed
	$(BIN)/python tests/torture/kills.py --kills 24 --folder outputs/torture/kills
	BUS_SMP_TORTURE=1 $(BIN)/python -m pytest tests/test_obstacles.py
	$(BIN)/python tests/torture/fuzz.py --seconds 300 --keep outputs/torture/fuzz

# Made again when the requirements change; a failed install leaves no stamp and is tried again.
.venv/installed: setup.cfg setup.py pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[test]"
	touch $@

clean:
	rm -rf .venv outputs/demo
