# `make test` or `make demo` on a fresh checkout: builds .venv when pyproject.toml is newer than the stamp, then works.
# Needs python 3.11 or newer; another one: make test PYTHON=python3.12. More flags: make demo ARGS=--competitor
PYTHON ?= python3
ARGS ?=
BIN := .venv/bin
STAMP := .venv/.installed

.PHONY: test demo gpu lint clean

test: $(STAMP)
	$(BIN)/pytest $(ARGS)

demo: $(STAMP)
	$(BIN)/polyrhythm demo $(ARGS)

# Needs a GPU; with no network, and torch and diffusers already there: python -m benchmarks.gpu
gpu: $(STAMP)
	$(BIN)/python -m benchmarks.gpu $(ARGS)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/mypy

$(STAMP): pyproject.toml
	@echo "setting up .venv (a minute or two)" >&2
	test -x $(BIN)/pip || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q -e '.[dev]'
	@touch $@

# Leaves .venv: remove that by hand to start over.
clean:
	rm -rf build dist demo-out out .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -path ./.venv -prune -o -name __pycache__ -type d -exec rm -rf {} +
