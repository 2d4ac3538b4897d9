# Two commands: `make demo` and `make test`. Each works alone in a fresh clone; the second run installs nothing.
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed

.PHONY: demo test check lint audit fuzz mutants clean

demo: $(INSTALLED)  ## one digital patient through the whole path; results in out/demo
	$(BIN)/medk2n demo --out out/demo --overwrite

test: $(INSTALLED)  ## the whole test suite
	$(BIN)/python -m pytest $(TESTS)

check: lint  ## what to run before every commit: lint, types, fast tests
	$(BIN)/python -m pytest -m "not slow"

mutants: $(INSTALLED)  ## faults that a person might make, one by one: does the suite notice?
	$(BIN)/python tests/mutants/run.py

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

audit: $(INSTALLED)  ## known vulnerabilities of what is pinned; needs a network, and fails where one could not be looked up
	$(BIN)/python -m pip install --disable-pip-version-check "pip-audit>=2.10"
	$(BIN)/pip-audit --strict --no-deps --disable-pip --requirement constraints.txt

fuzz: $(INSTALLED)  ## five minutes of the DICOM readers under atheris (Linux, macOS); what it finds lies in out/fuzz
	$(BIN)/python -m pip install --disable-pip-version-check --constraint constraints.txt --editable ".[dev,fuzz]"
	mkdir -p out/fuzz/corpus
	cd out/fuzz && ../../$(BIN)/python ../../recipes/fuzz_dicom.py --corpus corpus

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "medk2n needs Python 3.11 or newer; try: make PYTHON=python3.11 $(MAKECMDGOALS)" >&2; exit 2; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --disable-pip-version-check --constraint constraints.txt --editable ".[dev]"
	touch $@

clean:
	rm -rf .venv out .pytest_cache .mypy_cache .ruff_cache .hypothesis
