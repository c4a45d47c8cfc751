# Everything below needs only python3 (3.11 or newer) and make. Nothing but packages is downloaded.
# UV_TORCH_BACKEND=cpu make setup   takes torch's small CPU build where its own package index can be reached.
PYTHON ?= python3
export UV_FIND_LINKS ?= $(PIP_FIND_LINKS)
STAMP := .venv/.ready

.PHONY: help setup quickstart test check lock
help:
	@echo "make setup       create .venv with the locked versions and the command .venv/bin/ardistill"
	@echo "make quickstart  record, distil, compare and export on the embedded teacher (10 minutes, 2 cores)"
	@echo "make test        all tests"
	@echo "make check       ruff, mypy, import-linter and the fast tests"
	@echo "make lock        renew requirements.lock"

setup: $(STAMP)

$(STAMP): pyproject.toml requirements.lock
	@if command -v uv >/dev/null; then uv venv -q --allow-existing --python $(PYTHON) .venv; \
	else $(PYTHON) -m venv .venv && .venv/bin/python -m pip install -q uv==0.13.9; fi
	@UV=$$(command -v uv || echo .venv/bin/uv); \
	$$UV pip install -q --python .venv/bin/python -r requirements.lock && \
	$$UV pip install -q --python .venv/bin/python --no-deps -e .
	@touch $(STAMP)

quickstart: setup
	.venv/bin/ardistill quickstart

test: setup
	.venv/bin/python -m pytest

check: setup
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
	.venv/bin/lint-imports
	.venv/bin/python -m pytest -m "not slow"

# nvidia-* and triton are left to torch's own metadata, which pins them: the CPU build does not need them.
lock: setup
	UV=$$(command -v uv || echo .venv/bin/uv); \
	$$UV pip compile -q --python .venv/bin/python --group dev --no-header --no-annotate --no-emit-index-url \
	  --no-emit-find-links --no-strip-extras pyproject.toml -o requirements.lock && \
	sed -i -e '/^nvidia-/d' -e '/^triton=/d' -e '/^cuda-/d' -e 's/^\(torch==[0-9.]*\)+.*/\1/' requirements.lock
