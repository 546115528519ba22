# Each target sets up what it needs in .venv (the peers of `make bench` in .venv-bench), and nothing twice: what
# was done is stamped, and done again only when what it was made from has changed.
#
#   make demo     the main job on real input         make bench   us against the best alternatives
#   make test     the Rust and the Python tests      make docs    the site, into site/
#   make lint     every check that runs no code      make wheel   the wheels, into dist/
#   make format   what lint would ask for            make constraints   constraints.txt anew
#
#   make test ARGS="tests/special -k ratio"          other Python tests than all the fast ones
#   make demo PYTHON=/path/to/python3.12             another interpreter

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.PHONY: help need demo test rust-test lint format docs wheel bench constraints clean

VENV := .venv
BIN := $(VENV)/bin
# uv where it is installed, else put into the environment by pip.
UV := $(shell command -v uv || echo $(BIN)/uv)
ARGS ?=
export UV_CONSTRAINT := constraints.txt
export VIRTUAL_ENV := $(abspath $(VENV))

RUST := Cargo.toml Cargo.lock $(shell find rust cuda -type f -not -path '*/target/*' 2>/dev/null)
VERSIONS := pyproject.toml constraints.txt
# `$(INSTALL) FLAGS`: what pyproject.toml lists, at the versions of constraints.txt.
INSTALL := $(UV) pip install --quiet -r pyproject.toml

help:
	@sed -n '/^$$/q; s/^# \{0,1\}//p' Makefile

need:
	@tools/need >/dev/null

# ---------------------------------------------------------------------------------------------------- targets

demo: need $(VENV)/.stamp-demo $(VENV)/.stamp-extension
	@$(BIN)/mercer tour $(ARGS)

test: need rust-test $(VENV)/.stamp-test $(VENV)/.stamp-extension
	$(BIN)/python -m pytest $(ARGS)

rust-test: need
	@if cargo nextest --version >/dev/null 2>&1; \
	then set -x; cargo nextest run --workspace --no-tests pass; cargo test --quiet --workspace --doc; \
	else set -x; cargo test --workspace; fi

lint: need $(VENV)/.stamp-lint
	cargo fmt --all --check
	cargo clippy --workspace --all-targets --quiet -- -D warnings
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	PYTHONPATH=python $(BIN)/lint-imports

format: need $(VENV)/.stamp-lint
	cargo fmt --all
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

docs: need $(VENV)/.stamp-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo "wrote site/index.html"

wheel: need $(VENV)/.stamp-build
	PATH="$(abspath $(BIN)):$$PATH" tools/wheels dist

bench: need $(VENV)/.stamp-extension .venv-bench/.stamp
	PYTHONPATH=python .venv-bench/bin/python benches/run.py $(ARGS)

constraints: $(VENV)/.stamp-venv
	env -u UV_CONSTRAINT $(UV) pip compile pyproject.toml --all-extras --group build --group test --group lint \
	  --group docs --group bench --universal --python-version 3.11 --prerelease disallow \
	  --no-header --no-annotate --upgrade --quiet --output-file constraints.txt

clean:
	rm -rf .venv .venv-bench* target dist site

# ------------------------------------------------------------------------------------------------ environments

$(VENV)/.stamp-venv:
	@echo "mercer: making $(VENV)"
	@python=$$(tools/need) && if command -v uv >/dev/null; \
	then uv venv --quiet --allow-existing --python "$$python" $(VENV); \
	else "$$python" -m venv $(VENV) && $(BIN)/python -m pip install --quiet --disable-pip-version-check uv; fi
	@touch $@

$(VENV)/.stamp-build: $(VENV)/.stamp-venv $(VERSIONS)
	@$(INSTALL) --group build
	@touch $@

$(VENV)/.stamp-extension: $(VENV)/.stamp-build $(RUST)
	@echo "mercer: building the extension"
	@$(BIN)/maturin develop --release --uv --quiet
	@touch $@

$(VENV)/.stamp-demo: $(VENV)/.stamp-venv $(VERSIONS)
	@echo "mercer: installing what the demo needs (PyTorch is large)"
	@$(INSTALL) --extra demo
	@touch $@

$(VENV)/.stamp-test: $(VENV)/.stamp-venv $(VERSIONS)
	@echo "mercer: installing what the tests need (PyTorch is large)"
	@$(INSTALL) --extra demo --extra train --group test
	@touch $@

$(VENV)/.stamp-lint: $(VENV)/.stamp-venv $(VERSIONS)
	@$(INSTALL) --group lint
	@touch $@

$(VENV)/.stamp-docs: $(VENV)/.stamp-venv $(VERSIONS)
	@$(INSTALL) --group docs
	@touch $@

.venv-bench/.stamp: $(VENV)/.stamp-venv $(VERSIONS)
	@echo "mercer: installing the peers into .venv-bench"
	@$(UV) venv --quiet --allow-existing --python $(BIN)/python .venv-bench
	@VIRTUAL_ENV=$(abspath .venv-bench) $(INSTALL) --group bench
	@touch $@
