# `make run` trains a first network, `make test` checks everything. Both set up .venv by
# themselves; they need Python 3.11, 3.12 or 3.13 with its venv module, and a network the first time.
#
#   make run          train on the JapaneseVowels data, default settings
#   make test         ruff, mypy, import-linter, pytest
#   make docs-check   run the examples of README.md, docs/ and the docstrings
#   make format       let ruff rewrite the sources
#   make clean        remove .venv and the caches
#
# PYTHON=... names the interpreter, WORKERS=... the number of test processes.

VENV := .venv
BIN := $(VENV)/bin
# Written at the very end of the set-up, and holding the folder it was made for. So an environment
# that was interrupted, or came along with a copied checkout, does not count as installed.
STAMP := $(VENV)/.installed
WORKERS ?= 2
PYTHONS := $(or $(PYTHON),python3.11 python3.12 python3.13 python3)
IN_RANGE := import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))

READY := $(shell $(BIN)/python -c '$(IN_RANGE)' 2>/dev/null && cat $(STAMP) 2>/dev/null)
ifneq ($(READY),$(CURDIR))
$(STAMP): FORCE
endif

.DEFAULT_GOAL := test
.PHONY: FORCE run test format docs-check clean
FORCE:

run: $(STAMP)
	$(BIN)/cellwright train japanese-vowels

# Every step runs, so that one call shows all there is to mend; pytest comes last.
test: $(STAMP)
	@failed=; \
	step() { name=$$1; shift; echo "== $$name"; "$$@" || failed="$$failed $$name"; }; \
	step ruff-check $(BIN)/ruff check; \
	step ruff-format $(BIN)/ruff format --check --output-format concise; \
	step mypy $(BIN)/mypy; \
	step import-linter $(BIN)/lint-imports --no-logo; \
	if [ -n "$$failed" ]; then echo "make test: failed before the tests:$$failed"; fi; \
	step pytest $(BIN)/pytest -n $(WORKERS); \
	if [ -n "$$failed" ]; then echo "make test: failed:$$failed" >&2; exit 1; fi

format: $(STAMP)
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

docs-check: $(STAMP)
	$(BIN)/pytest tests/test_house.py -k examples

clean:
	rm -rf $(VENV) build dist .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	find src tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +

# A finished environment is brought up to date; any other is made from nothing.
$(STAMP): pyproject.toml constraints.txt
	@set -e; \
	if [ "$(READY)" != "$(CURDIR)" ]; then \
	    python=; \
	    for candidate in $(PYTHONS); do \
	        if "$$candidate" -c '$(IN_RANGE)' >/dev/null 2>&1; then python=$$candidate; break; fi; \
	    done; \
	    if [ -z "$$python" ]; then \
	        echo "cellwright needs Python 3.11, 3.12 or 3.13 with its venv module (on Debian and" >&2; \
	        echo "Ubuntu: the package python3-venv). None of these is: $(PYTHONS)" >&2; \
	        echo "Name one with: make PYTHON=/path/to/python3.12" >&2; \
	        exit 1; \
	    fi; \
	    echo "Setting up $(VENV) with $$("$$python" --version). The first time takes some minutes."; \
	    "$$python" -m venv --clear $(VENV); \
	else \
	    echo "Bringing $(VENV) up to date."; \
	fi; \
	rm -f $(STAMP); \
	$(BIN)/python -m pip install -qq --disable-pip-version-check \
	    -c constraints.txt -e '.[all,dev]'; \
	echo "$(CURDIR)" > $(STAMP)
