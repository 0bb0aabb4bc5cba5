# One definition of every check: a developer, the pre-commit hook and .ci/run all come through here.
# `make demo` and `make test` need Python 3.11 or newer and make, nothing else; the first run fills .venv.

.DEFAULT_GOAL := help
.PHONY: help venv demo test coverage lint type docs bench chaos clean

VENV := .venv
BIN := $(VENV)/bin
PY := $(BIN)/python
STAMP := $(VENV)/.installed
ARGS ?=
# Most tests wait for processes more than they compute; the tests of a file share servers, and stay together. They come in
# pytest's order, which has the longest files first and ends with the short unit tests.
TOGETHER ?= -n 3 --dist loadfile --no-loadscope-reorder

help: ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-8s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

venv: $(STAMP) ## .venv with forebay[all] and the developers' tools, pinned by constraints.txt

demo: $(STAMP) ## the main job on real data, from nothing to a result table
	@$(BIN)/forebay demo $(ARGS)

test: $(STAMP) ## the whole suite; make test ARGS="-k lease -x" for less, TOGETHER= for one test at a time
	@$(PY) -m pytest $(TOGETHER) $(ARGS)

coverage: $(STAMP) ## the whole suite again, and how much of the code it runs; a floor holds it
	@$(PY) -m coverage erase
	@$(PY) -m coverage run -m pytest $(TOGETHER) $(ARGS)
	@$(PY) -m coverage combine -q
	@$(PY) -m coverage report

lint: $(STAMP) ## style, formatting, and who may import whom
	@echo "==> ruff check"
	@$(PY) -m ruff check .
	@echo "==> ruff format --check"
	@$(PY) -m ruff format --check .
	@echo "==> lint-imports"
	@$(BIN)/lint-imports

type: $(STAMP) ## mypy, strict; the public interface too, as a user's code sees it
	@echo "==> mypy"
	@$(PY) -m mypy
	@if ls tests/typing/*.py >/dev/null 2>&1; then echo "==> mypy tests/typing" && $(PY) -m mypy tests/typing; fi

docs: $(STAMP) ## the site, in build/site; a link that leads nowhere ends it
	@$(PY) docs/site.py

bench: $(STAMP) ## Forebay against a bare torch loop and plain Celery
	@$(PY) -m bench $(ARGS)

chaos: $(STAMP) ## kill, freeze and empty everything while jobs run, then count what was lost
	@PYTHONPATH=tests $(PY) -m chaos $(ARGS)

clean: ## build output and caches; .venv and .forebay stay
	@rm -rf build dist src/*.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis .coverage .coverage.* htmlcov
	@find . -name __pycache__ -type d -not -path './$(VENV)/*' -prune -exec rm -rf {} +

# Set PYTHON to choose the interpreter. pip is upgraded first: older ones do not know --group.
$(STAMP): pyproject.toml constraints.txt
	@set -eu; python=; bare=; \
	for candidate in $(PYTHON) python3.13 python3.12 python3.11 python3; do \
		$$candidate -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 || continue; \
		if $$candidate -c 'import ensurepip, venv' >/dev/null 2>&1; then python=$$candidate; break; fi; \
		bare=$${bare:-$$candidate}; \
	done; \
	if [ -z "$$python" ] && [ -n "$$bare" ]; then \
		echo "make: $$bare cannot make virtual environments: ensurepip or venv is missing." >&2; \
		echo "make: on Debian and Ubuntu, install the package python3-venv." >&2; exit 1; \
	elif [ -z "$$python" ]; then \
		echo "make: Forebay needs Python 3.11 or newer, and neither python3.13, python3.12, python3.11 nor python3 is one." >&2; \
		echo "make: install one, or name it: make PYTHON=/path/to/python3.12 …" >&2; exit 1; \
	fi; \
	echo "==> $(VENV) with $$($$python --version)"; \
	$(PY) -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 || $$python -m venv --clear $(VENV); \
	echo "==> pip"; \
	$(PY) -m pip install -qq --disable-pip-version-check -c constraints.txt 'pip>=25.1'; \
	echo "==> forebay[all] and the developers' tools (a first time downloads PyTorch and takes some minutes)"; \
	$(PY) -m pip install -qq -c constraints.txt -e '.[all]' --group dev; \
	touch $@
