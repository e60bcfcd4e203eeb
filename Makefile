# Everything runs in .venv/, which the first command that needs it creates.
# A stamp is written after an installation has succeeded, so that the next run starts at once
# and an interrupted one starts over.

PYTHON ?= python3
PYTEST_ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
CREATED := $(VENV)/.created
RUNTIME := $(VENV)/.installed
DEVELOPMENT := $(VENV)/.installed-development

# Hides TensorFlow's C++ notes on the processor; its errors are still shown.
export TF_CPP_MIN_LOG_LEVEL ?= 2
export PIP_DISABLE_PIP_VERSION_CHECK = 1

# Runs in any Python, including unsupported ones.
define CHECK_PYTHON
import sys
if not (3, 10) <= sys.version_info[:2] < (3, 14):
    sys.exit("amaml-tf needs Python 3.10 to 3.13 and '$(PYTHON)' is %d.%d: name another, as in "
             "'make PYTHON=python3.12 $(firstword $(MAKECMDGOALS))'." % sys.version_info[:2])
try:
    import ensurepip, venv
except ImportError:
    sys.exit("'$(PYTHON)' cannot make virtual environments: install its 'venv' module "
             "(on Debian and Ubuntu: apt install python%d.%d-venv)." % sys.version_info[:2])
endef
export CHECK_PYTHON

.DEFAULT_GOAL := help
.PHONY: help quickstart test test-long check coverage mutation fuzz soak audit lock format clean

help: ## list these commands
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' Makefile
	@echo "PYTHON=python3.12 chooses the interpreter of a new .venv/, PYTEST_ARGS='-k adjoint' the tests."

quickstart: $(RUNTIME) ## set up and meta-learn a small example, with a picture and an export
	@$(BIN)/python -m amaml_tf.quickstart

# A TensorFlow process takes about 1 GB, so there are at most four, however many cores there are.
PYTEST := $(BIN)/python -m pytest --numprocesses=auto --maxprocesses=4 --dist=worksteal

test: $(DEVELOPMENT) ## set up and run the tests but the long ones, in nine minutes on two cores
	@$(PYTEST) -m "not long" $(PYTEST_ARGS)

test-long: $(DEVELOPMENT) ## set up and run the long tests
	@$(PYTEST) -m long $(PYTEST_ARGS)

check: $(DEVELOPMENT) ## check formatting, lint, types and structure, changing nothing
	@$(BIN)/ruff format --check
	@$(BIN)/ruff check
	@$(BIN)/mypy
	@$(BIN)/python tests/house/rules.py

coverage: $(DEVELOPMENT) ## run all tests and print the branch coverage of the package
	@$(BIN)/coverage erase
	@$(PYTEST) --cov --cov-report=term-missing:skip-covered $(PYTEST_ARGS)

mutation: $(DEVELOPMENT) ## put mistakes into the numerics, one at a time, and count those that tests find
	@PYTHONPATH=tests:tests/tasks $(BIN)/python tests/faults/mutation.py $(MUTATION_ARGS)

soak: $(DEVELOPMENT) ## kill, stop and starve runs for hours, damage checkpoints, and print a table
	@$(BIN)/python tests/faults/soak.py $(SOAK_ARGS)
	@AMAML_EXAMPLES=1000 $(BIN)/python -m pytest -q tests/flow/test_any_shape.py

fuzz: $(DEVELOPMENT) ## damage files and flags at random, 10,000 of each kind, and print a table (half an hour)
	@PYTHONPATH=tests:tests/tasks $(BIN)/python tests/faults/fuzz_readers.py --inputs=10000
	@PYTHONPATH=tests:tests/tasks $(BIN)/python tests/faults/fuzz_flags.py --sets=2700

audit: $(DEVELOPMENT) ## check the licences of dependencies, and the locked versions for known vulnerabilities
	@$(BIN)/python tests/house/licences.py
	@$(BIN)/python -m pip install --quiet pip-audit
	@$(BIN)/python -m pip_audit --requirement requirements.lock --no-deps --disable-pip

lock: $(DEVELOPMENT) ## write the installed versions to requirements.lock
	@{ echo "# The versions that CI tests with, for Python 3.11 on Linux. \`make lock\` writes them again."; \
	    $(BIN)/python -m pip freeze --exclude-editable; } > requirements.lock

format: $(DEVELOPMENT) ## format, and mend the lint that mends itself
	@$(BIN)/ruff format
	@$(BIN)/ruff check --fix

clean: ## remove .venv/, caches and built packages
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(CREATED):
	@command -v $(PYTHON) >/dev/null || { echo "No '$(PYTHON)' here: install Python 3.10 to 3.13," \
	    "or name one, as in 'make PYTHON=/path/to/python3.12'." >&2; exit 1; }
	@$(PYTHON) -c "$$CHECK_PYTHON"
	@echo "Creating $(VENV)/ ..."
	@$(PYTHON) -m venv --clear $(VENV)
	@touch $@

$(RUNTIME): $(CREATED) setup.cfg pyproject.toml
	@echo "Installing amaml-tf into $(VENV)/ (a few minutes; TensorFlow is about 600 MB) ..."
	@$(BIN)/python -m pip install --quiet --editable .
	@touch $@

$(DEVELOPMENT): $(RUNTIME)
	@echo "Installing the tools for tests and checks into $(VENV)/ ..."
	@$(BIN)/python -m pip install --quiet --editable '.[test,dev]'
	@touch $@
