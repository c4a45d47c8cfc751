# Everything below needs only python3 (3.11 or newer) and make. Nothing but packages is downloaded.
PYTHON ?= python3
UV_VERSION := 0.13.9
STAMP := .venv/.ready

# Wheels kept in a folder (pip's PIP_FIND_LINKS, such as a CPU build of torch) are used by uv, too.
empty :=
space := $(empty) $(empty)
comma := ,
export UV_FIND_LINKS ?= $(subst $(space),$(comma),$(strip $(PIP_FIND_LINKS)))

# Threads that wait without spinning leave the cores to whatever else runs.
quickstart test check: export OMP_WAIT_POLICY ?= passive
# Bytecode is kept, whatever the environment says: without it each process compiles torch and diffusers again.
quickstart test check: export PYTHONDONTWRITEBYTECODE :=

.PHONY: help setup quickstart test check docs lock
help:
	@echo "make setup       create .venv with the locked versions and the command .venv/bin/ardistill"
	@echo "make quickstart  record, distil, compare and export on the embedded teacher (10 minutes, 2 cores)"
	@echo "make test        all tests"
	@echo "make check       ruff, mypy, import-linter and the fast tests"
	@echo "make docs        build the documentation into docs/_build"
	@echo "make lock        fit requirements.lock to pyproject.toml (LOCK_FLAGS=--upgrade: newest versions)"
	@echo ""
	@echo "Each does its own set-up. On Linux torch comes as the CUDA build (several GB);"
	@echo "UV_TORCH_BACKEND=cpu make setup takes the small CPU build from torch's own package index instead."
	@echo "PYTHON=python3.13 make setup takes another Python."

setup: $(STAMP)

$(STAMP): pyproject.toml requirements.lock
	@$(PYTHON) -c 'import sys; sys.exit("ardistill needs Python 3.11 or newer, this is " + sys.version.split()[0] + \
	": try make PYTHON=python3.13" if sys.version_info < (3, 11) else 0)'
	@echo "Setting up .venv (once; minutes where torch has to be downloaded)"
	@if uv --version >/dev/null 2>&1; then UV=uv; uv venv -q --allow-existing --python $(PYTHON) .venv; \
	else UV=.venv/bin/uv; $(PYTHON) -m venv .venv && .venv/bin/python -m pip install -q uv==$(UV_VERSION); fi && \
	$$UV pip install -q --python .venv/bin/python -r requirements.lock && \
	$$UV pip install -q --python .venv/bin/python --no-deps --group inception -e .
	@touch $(STAMP)

quickstart: setup
	.venv/bin/ardistill quickstart

# A worker a core, each with one thread and whole files of tests, as these share what they make; tests/conftest.py puts
# those that take long first.
test: export OMP_NUM_THREADS ?= 1
test: setup
	.venv/bin/python -m pytest -n auto --dist loadfile --no-loadscope-reorder

check: export OMP_NUM_THREADS ?= 1
check: setup
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
	.venv/bin/lint-imports
	.venv/bin/python -m pytest -m "not slow" -n auto --dist loadfile

DOCS_STAMP := .venv/.docs-ready

$(DOCS_STAMP): $(STAMP) docs/requirements.lock
	@if uv --version >/dev/null 2>&1; then UV=uv; else UV=.venv/bin/uv; fi; \
	$$UV pip install -q --python .venv/bin/python -r docs/requirements.lock
	@touch $(DOCS_STAMP)

# -W: a warning ends the build.
docs: $(DOCS_STAMP)
	.venv/bin/python -m sphinx -q -W --keep-going -b html docs docs/_build

# One version of each package for every Python. What only torch's CUDA build needs is left to torch's metadata, which
# pins it, so that the same lock serves the CPU build.
lock: setup
	if uv --version >/dev/null 2>&1; then UV=uv; else UV=.venv/bin/uv; fi; \
	$$UV pip compile -q $(LOCK_FLAGS) --python .venv/bin/python --group dev --no-header --no-annotate --no-emit-index-url \
	  --no-emit-find-links --no-strip-extras pyproject.toml -o requirements.lock && \
	sed -i -e '/^nvidia-/d' -e '/^triton=/d' -e '/^cuda-/d' -e 's/^\(torch==[0-9.]*\)+.*/\1/' requirements.lock && \
	$$UV pip compile -q $(LOCK_FLAGS) --python .venv/bin/python --group docs -c requirements.lock --no-header --no-annotate \
	  --no-emit-index-url --no-emit-find-links -o docs/requirements.lock
