# Targets make their own virtual environment in .venv and install what they need; plain `make` lists them.
# PYTHON=python3.12 chooses another interpreter (3.11 or later) for a new .venv.

PYTHON ?=
BENCH  ?=
VENV   := .venv
BIN    := $(VENV)/bin
STAMPS := $(VENV)/.stamps
PIP     = $(BIN)/python -m pip install -q --disable-pip-version-check
PYTEST  = $(BIN)/python -m pytest

.DEFAULT_GOAL := help
.NOTPARALLEL:
.DELETE_ON_ERROR:
.PHONY: help demo drill run bench test test-slow test-all check clean

help: ## list the targets
	@echo 'usage: make TARGET [PYTHON=python3.11]'
	@echo
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-10s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

demo: $(STAMPS)/run ## the whole story: start a cluster, store a site twice, load it, print the analysis; ends by itself
	@$(BIN)/python -m loadgen demo

drill: $(STAMPS)/run ## kill a web server under load and check what was promised; FAULT=hang and others
	@$(BIN)/python -m loadgen drill --fault $(or $(FAULT),kill)

# exec: signals reach the supervisor itself, and a clean stop is exit status 0, so make has nothing to add.
run: $(STAMPS)/run ## a cluster with the example site, for browsers on port 8080; until Ctrl-C, pages in ./dws-data
	@exec $(BIN)/python run_cluster.py --webservers 4 --data ./dws-data --site examples/site --http-port 8080

# Status 1 is a figure that was missed, 3 a peer that is missing, 4 a machine too busy to believe anything.
bench: $(STAMPS)/bench ## speed beside SeaweedFS, nginx and the bare limits; a quarter of an hour; BENCH='--growth' for half an hour
	@$(BIN)/python -m loadgen bench --json bench.json --html bench.html $(BENCH)

test: $(STAMPS)/test ## the fast tests, on two processes
	@$(PYTEST) -m 'not slow' -n 2

# Status 5 is pytest's "no tests collected".
test-slow: $(STAMPS)/test ## the slow tests, one at a time; they need chromium, chromium-driver, curl and wget
	@$(PYTEST) -m slow || { status=$$?; [ $$status -eq 5 ] && echo 'no slow tests'; }

test-all: test test-slow ## test, then test-slow

check: $(STAMPS)/check ## ruff on everything; mypy --strict on patterns/ and dws/
	@$(BIN)/ruff check .
	@$(BIN)/mypy --strict patterns dws

clean: ## remove .venv, caches and build products; the pages in dws-data stay
	rm -rf $(VENV) build dist bench.json bench.html *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . \( -path ./.git -o -path ./dws-data \) -prune -o -type d -name __pycache__ -exec rm -rf {} +

# One stamp for each set of packages; a change of pyproject.toml installs them again.

$(STAMPS)/venv:
	@set -e; \
	suits() { "$$1" -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; }; \
	python='$(PYTHON)'; \
	if [ -n "$$python" ]; then \
	    suits "$$python" || { echo "PYTHON=$$python is not a Python 3.11 or later" \
	        'that runs here and can make virtual environments' >&2; exit 1; }; \
	else \
	    for candidate in python3.11 python3; do \
	        if suits $$candidate; then python=$$candidate; break; fi; \
	    done; \
	    [ -n "$$python" ] || { echo 'found neither python3.11 nor a python3 of at least 3.11 that can make' \
	        'virtual environments; install one (Debian: apt install python3 python3-venv)' \
	        'or say make PYTHON=/path/to/python' >&2; exit 1; }; \
	fi; \
	echo "making $(VENV) with $$("$$python" --version)"; \
	"$$python" -m venv --clear $(VENV); \
	mkdir -p $(STAMPS); touch $@

$(STAMPS)/run: $(STAMPS)/venv pyproject.toml
	@echo 'installing the project into $(VENV)'
	@$(PIP) -e '.[http]'
	@touch $@

$(STAMPS)/test: $(STAMPS)/venv pyproject.toml
	@echo 'installing the project and what its tests need into $(VENV)'
	@$(PIP) -e '.[test]'
	@touch $@ $(STAMPS)/run

$(STAMPS)/bench: $(STAMPS)/venv pyproject.toml
	@echo 'installing the project and what it is compared with into $(VENV)'
	@$(PIP) -e '.[bench]'
	@touch $@ $(STAMPS)/run

$(STAMPS)/check: $(STAMPS)/venv pyproject.toml
	@echo 'installing the project and what its checks need into $(VENV)'
	@$(PIP) -e '.[check]'
	@touch $@ $(STAMPS)/run
