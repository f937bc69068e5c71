# The one definition of each check; scripts/test.sh and pre-commit call these targets.
# PY is an environment with the [dev] extra: scripts/test.sh makes this one.
PY ?= .venv-test/bin/python
# The environment that `golden` needs has the reference implementation: PyTorch and openai-whisper.
GOLDEN_PY ?= python3
GOLDEN_ARGS ?= --model tiny.en=models/tiny.en --model base=models/base
BENCH_ARGS ?=

FUZZ ?= 1000000

.DEFAULT_GOAL := help
.PHONY: help fmt lint type test test-fast kernels wheels engines docs site walk golden bench fuzz constraints constraints-check

help: ## lists the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/\1|\2/p' Makefile | while IFS='|' read -r target text; do \
	    printf '%-18s %s\n' "$$target" "$$text"; done

fmt: ## formats, and fixes what ruff can fix
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

lint: ## ruff, and the import layers
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -c 'import sys; from importlinter.cli import lint_imports_command; sys.exit(lint_imports_command())'

type: ## mypy, strict
	$(PY) -m mypy

test: ## everything that must pass (scripts/test.sh)
	scripts/test.sh

test-fast: ## the tests without real models and package installs
	$(PY) -m pytest -m "not slow"

kernels: ## compiles the C kernels beside their sources
	$(PY) hatch_build.py

wheels: ## builds the wheels of every platform into dist/
	$(PY) scripts/build_wheels.py

engines: ## builds the engines of engines/engines.toml
	$(PY) scripts/build_engines.py

docs: ## writes what is generated in docs/
	$(PY) scripts/make_options_doc.py
	$(PY) scripts/make_errors_doc.py
	$(PY) scripts/gpu/unrun.py
	$(PY) scripts/make_terminal_picture.py

site: ## builds the documentation into build/site
	$(PY) scripts/make_site.py

walk: ## walks through README.md and docs/index.md in a fresh clone
	$(PY) scripts/walk.py

golden: ## makes the goldens of whole transcripts with openai-whisper
	PYTHONPATH=. $(GOLDEN_PY) tools/goldens/make_golden.py $(GOLDEN_ARGS)

bench: ## compares with other systems (docs/benchmarks.md)
	$(PY) benchmarks/compare_peers.py $(BENCH_ARGS)

fuzz: ## FUZZ damaged inputs of each kind (CI tries 10,000)
	WHISPER_OPT_FUZZ=$(FUZZ) $(PY) -m pytest -m fuzz

constraints: ## resolves constraints/ again for every Python found
	$(PY) scripts/make_constraints.py

constraints-check: ## checks that constraints/ cover the dependencies
	$(PY) scripts/make_constraints.py --check
