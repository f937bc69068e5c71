# The one definition of each check; scripts/test.sh and pre-commit call these targets.
# PY is an environment with the [dev] extra: scripts/test.sh makes this one.
PY ?= .venv-test/bin/python
# The environment that `golden` needs has the reference implementation: PyTorch and openai-whisper.
GOLDEN_PY ?= python3
GOLDEN_ARGS ?= --model tiny.en=models/tiny.en --model base=models/base
BENCH_ARGS ?=

.PHONY: fmt lint type test golden bench constraints constraints-check

fmt:
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

lint:
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -c 'import sys; from importlinter.cli import lint_imports_command; sys.exit(lint_imports_command())'

type:
	$(PY) -m mypy

test:
	scripts/test.sh

golden:
	PYTHONPATH=. $(GOLDEN_PY) tools/goldens/make_golden.py $(GOLDEN_ARGS)

bench:
	$(PY) benchmarks/compare_peers.py $(BENCH_ARGS)

constraints:
	$(PY) scripts/make_constraints.py

constraints-check:
	$(PY) scripts/make_constraints.py --check
