# make demo | test | test-all | coverage | lint | docs | docs-check | bench | clean
# The first of them makes .venv; it is made again when pyproject.toml or constraints.txt changes.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV   ?= .venv
DEMO   ?= demo-report
PIP    := $(VENV)/bin/python -m pip --disable-pip-version-check install --quiet -c constraints.txt
OMP_NUM_THREADS ?= $(shell nproc 2>/dev/null || sysctl -n hw.ncpu 2>/dev/null || echo 2)
export OMP_NUM_THREADS
export PIP_ROOT_USER_ACTION := ignore
# Each process of the tests computes in one thread. A file's tests stay in one process, where they share what they made.
PYTEST := $(VENV)/bin/pytest --numprocesses=2 --dist=loadfile --no-loadscope-reorder

.PHONY: demo test test-all coverage lint docs docs-check bench clean
.DEFAULT_GOAL := demo

demo: $(VENV)/.demo ## compress the built-in network, and say where the report is
	@if [ -f "$(DEMO)/result.json" ]; then rm -r "$(DEMO)"; fi
	$(VENV)/bin/microtome demo -o "$(DEMO)"
	@echo "Open $(abspath $(DEMO))/report.html in a browser."

test: $(VENV)/.dev ## the tests that are worth running at each edit
	$(PYTEST) -m "not slow"

test-all: $(VENV)/.dev ## all tests
	$(PYTEST) --durations=25

coverage: $(VENV)/.dev ## all tests, and which lines they reach: takes twice as long
	$(PYTEST) --cov --cov-fail-under=97

lint: $(VENV)/.dev ## style, types, and who imports whom
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports

docs: $(VENV)/.dev ## the documentation, into site/
	NO_MKDOCS_2_WARNING=1 $(VENV)/bin/mkdocs build --strict --quiet

docs-check: $(VENV)/.dev ## every path, name and option in the documentation exists
	$(VENV)/bin/python docs/check_names.py

bench: $(VENV)/.dev ## time the built-in network, compressed and not
	$(VENV)/bin/microtome bench microtome.demo.network:demo_network --input-shape 1,192,192

clean: ## everything that the targets above made, but for $(VENV)
	rm -rf build dist site htmlcov .coverage .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	@if [ -f "$(DEMO)/result.json" ]; then rm -r "$(DEMO)"; fi

$(VENV)/bin/python:
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "microtome needs Python 3.11 or newer; name it with: make PYTHON=/path/to/python3"; exit 1; }
	"$(PYTHON)" -m venv $(VENV)

$(VENV)/.demo: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(PIP) -e '.[torch,openvino]'
	@touch $@

$(VENV)/.dev: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(PIP) -e '.[dev]'
	@touch $(VENV)/.demo $@
