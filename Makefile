# `make demo` searches a cell, writes a report, and trains that cell and a random one; `make test` runs the tests. Each
# makes .venv first.
VENV := .venv
PYTHON := $(or $(shell command -v python3.11),$(shell command -v python3.12),$(shell command -v python3))
RUN := runs/demo

.PHONY: demo test lint bench gpu clean

demo: $(VENV)/.installed
	@if [ -e $(RUN) ]; then mv $(RUN) $(RUN)-before-$$(date -u +%Y%m%d-%H%M%S); fi
	$(VENV)/bin/msgdas search demo --out $(RUN)
	$(VENV)/bin/msgdas show $(RUN)
	$(VENV)/bin/msgdas train $(RUN) demo --out $(RUN)/trained
	$(VENV)/bin/msgdas train random:0 demo --out $(RUN)/trained-random
	@for run in trained trained-random; do $(VENV)/bin/msgdas eval $(RUN)/$$run | sed -n 1,2p; done

test: $(VENV)/.installed-test
	$(VENV)/bin/pytest -q -n auto --maxprocesses 8 -m 'not alone'
	$(VENV)/bin/pytest -q -m alone

# Lint, types and import contracts. mypy reads an installed copy: it cannot follow the editable install's hook.
lint: $(VENV)/.installed-test
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/lint-imports
	rm -rf build/typed && $(VENV)/bin/pip install -q --no-deps --target build/typed .
	cd build/typed && ../../$(VENV)/bin/mypy --config-file ../../pyproject.toml --namespace-packages --explicit-package-bases msgdas

bench: $(VENV)/.installed
	$(VENV)/bin/python -m msgdas.bench memory
	$(VENV)/bin/python -m msgdas.bench memory --imagenet --only "msg K=2, min"
	$(VENV)/bin/python -m msgdas.bench speed
	$(VENV)/bin/python -m msgdas.bench kernels
	$(VENV)/bin/python -m msgdas.bench recording

# On a machine with a GPU: every gate on compiled kernels, then timings, into bench/results. Exit code 8 without one.
gpu: $(VENV)/.installed-test
	$(VENV)/bin/python -m msgdas.bench gpu

$(VENV)/bin/pip:
	$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "msgdas needs Python 3.11 or newer; this is " + sys.version)'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml | $(VENV)/bin/pip
	$(VENV)/bin/pip install -q -e .
	@touch $@

$(VENV)/.installed-test: pyproject.toml | $(VENV)/bin/pip
	$(VENV)/bin/pip install -q -e '.[test]'
	@touch $@ $(VENV)/.installed

clean:
	rm -rf $(VENV) build
