.DEFAULT_GOAL := help
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
AUDIT := .venv-audit
COMPILE := uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --no-annotate

.PHONY: help setup demo test test-slow ranks faults attack lint format type bench scale sbom audit lock wheel clean

help: ## list these targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(STAMP) ## create .venv and install what requirements.lock pins, hashes checked

$(STAMP): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed; name it: make PYTHON=python3.12 ..."; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@echo "Installing what requirements.lock pins: about 6 GB, 3 to 6 minutes."
	$(BIN)/python -m pip install --quiet --require-hashes -r requirements.lock
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	@touch $@

demo: setup ## train on the generated dataset, and say what to look at
	@echo "A taste: 12 epochs, where the method asks for 50 (anomaly-lab train). About 3 minutes on two cores."
	$(BIN)/anomaly-lab train trainer.max_epochs=12

test: setup ## run the test suite
	$(BIN)/python -m pytest

test-slow: setup ## run the tests that take minutes
	$(BIN)/python -m pytest -m slow

lint: setup ## check style
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: setup ## mend style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

type: setup ## check types
	$(BIN)/mypy

ranks: setup ## train and score on one, two and three processes, and compare
	$(BIN)/python -m pytest -m "slow or not slow" tests/test_ranks.py tests/metrics/test_gather.py

faults: setup ## kill training and sweeps at random moments, fill the disk, and go on
	$(BIN)/python -m pytest -m "slow or not slow" tests/test_crashes.py

attack: setup ## files of strangers: attacks, and damage at random
	$(BIN)/python -m pytest -m "slow or not slow" tests/test_strangers.py tests/test_get_data.py tests/test_network.py

bench: setup ## compare with a hand-written training loop, side by side
	$(BIN)/python -m benchmarks

scale: setup ## the CPU time and memory of a million images and of ten thousand runs
	$(BIN)/python -m benchmarks.scale

sbom: $(AUDIT)/.installed ## the bill of materials of what requirements.lock pins: dist/sbom.json (CycloneDX)
	@mkdir -p dist
	$(AUDIT)/bin/python -W ignore -m cyclonedx_py requirements requirements.lock --pyproject pyproject.toml --mc-type library \
		--output-reproducible --output-format JSON --output-file dist/sbom.json

audit: $(AUDIT)/.installed ## known vulnerabilities of what requirements.lock pins (asks a server for them)
	$(AUDIT)/bin/pip-audit --requirement requirements.lock --require-hashes --disable-pip

$(AUDIT)/.installed: requirements-audit.lock
	$(PYTHON) -m venv $(AUDIT)
	$(AUDIT)/bin/python -m pip install --quiet --require-hashes -r requirements-audit.lock
	@touch $@

lock: ## write both lock files anew (needs uv)
	$(COMPILE) --extra dev --extra launchers --extra export --extra dashboards pyproject.toml -o requirements.lock
	$(COMPILE) --group audit -o requirements-audit.lock

wheel: setup ## build the wheel into dist/
	$(BIN)/python -m hatchling build -t wheel

clean: ## remove what was built, but not your runs
	rm -rf $(VENV) $(AUDIT) dist build .pytest_cache .mypy_cache .ruff_cache
