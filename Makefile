# make run    set up .venv and serve the starter model on http://127.0.0.1:8080
# make test   set up .venv and run the whole gate (scripts/check)
# make exl2-deps   fetch what the exllamav2 engine's tests need on a CPU (torch's CPU build, 1 GB on disk)
# make node-deps   fetch OpenAI's Node SDK where npm is, for one test that is skipped without it
#
# Both need Python 3.11 or newer with venv and pip, and nothing else. PYTHON=... names another interpreter,
# ARGS=... is passed on to `nenya serve`.

PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11 python3.14; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && echo $$p && break; done)
BIN := .venv/bin
ARGS ?=

.PHONY: run test fix node-deps langchain-deps exl2-deps clean

run: .venv/.run
	@$(BIN)/nenya serve $(ARGS)

test: .venv/.dev
	@scripts/check

fix: .venv/.dev
	@$(BIN)/ruff check --fix --quiet . ; $(BIN)/ruff format .

node-deps:
	@if command -v npm >/dev/null 2>&1; then cd tests/node && npm ci --silent --ignore-scripts --no-audit --no-fund; \
	else echo "No npm here: the test of OpenAI's Node SDK will be skipped."; fi

langchain-deps: .venv/.dev
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes --upgrade --target .langchain \
	  -r scripts/lock/langchain.txt

exl2-deps: .venv/.dev
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes --no-deps --upgrade --target .exl2 \
	  -r scripts/lock/exl2.txt -r scripts/lock/torch.txt

clean:
	rm -rf .venv .langchain .exl2 .mypy_cache .ruff_cache .pytest_cache .import_linter_cache

.venv/.made:
	@test -n "$(PYTHON)" || { echo "Nenya needs Python 3.11 or newer on the PATH (or PYTHON=/path/to/python)."; exit 1; }
	@echo "Making .venv with $$($(PYTHON) --version) ..."
	@$(PYTHON) -m venv .venv || { echo "On Debian and Ubuntu: apt install python3-venv"; rm -rf .venv; exit 1; }
	@touch $@

.venv/.run: .venv/.made scripts/lock/run.txt pyproject.toml
	@echo "Installing what the router needs ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r scripts/lock/run.txt
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@$(BIN)/python -m compileall -q router engines benchmarks
	@touch $@

.venv/.dev: .venv/.run scripts/lock/dev.txt
	@echo "Installing what the tests need ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r scripts/lock/dev.txt
	@touch $@
