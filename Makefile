# Each target works as the first command in a fresh clone: it makes .venv, installs the package there, then runs.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
TRAINERS := .venv-trainers
TRAINERS_STAMP := $(TRAINERS)/.installed
OUTSIDE := .venv-outside
OUTSIDE_STAMP := $(OUTSIDE)/.installed

.PHONY: help run test test-trainers trainers test-outside lint types docs bench evidence format clean

help:
	@echo "make run     the demo: make data, pack, train with and without mixing, write multimix_demo/"
	@echo "make test    the test suite"
	@echo "make test-trainers  tests with Lightning, Accelerate, transformers, Ray; they go into .venv-trainers"
	@echo "make test-outside  tests against torchvision, timm, Kornia, composer, ART; they go into .venv-outside (5 GB)"
	@echo "make lint    ruff: rules and format"
	@echo "make types   mypy"
	@echo "make docs    the documentation, into build/docs"
	@echo "make bench   the benchmarks of bench/"
	@echo "make evidence  the studies of pipelines/evidence on a CPU, into build/evidence; SHARDS=FOLDER: on your images"
	@echo "make format  let ruff repair what it can"
	@echo "make clean   remove .venv, caches and the demo's output"
	@echo "PYTHON=python3.12 make ... chooses the interpreter for .venv (3.10 or newer)"

run: $(STAMP)
	$(BIN)/multimix-pipe demo --out multimix_demo

test: $(STAMP)
	$(BIN)/python -m pytest -q --numprocesses auto --maxprocesses 4 --dist loadfile --durations=10

test-trainers: trainers
	OMP_NUM_THREADS=1 $(TRAINERS)/bin/python -m pytest -c tests/trainers/pytest.ini -q --durations=5 tests/trainers

trainers: $(TRAINERS_STAMP)

test-outside: $(OUTSIDE_STAMP)
	OMP_NUM_THREADS=1 $(OUTSIDE)/bin/python -m pytest -q -rs tests/test_outside.py tests/test_evaluation.py -k "outside or maintained"

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMP)
	$(BIN)/mypy

docs: $(STAMP)
	$(BIN)/python -m sphinx -W --keep-going -q -b html docs build/docs
	@echo "written: build/docs/index.html"

bench: $(STAMP)
	$(BIN)/python bench/run.py

evidence: $(STAMP)
	$(BIN)/python pipelines/evidence/gradient_variance.py $(SHARDS) --out build/evidence
	$(BIN)/python pipelines/evidence/two_moons.py --data moons --out build/evidence
	$(BIN)/python pipelines/evidence/two_moons.py --data spirals --out build/evidence

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) $(TRAINERS) $(OUTSIDE) build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache multimix_demo

# A virtual environment that lacks pip is one that an earlier run left half made: it is made anew.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	  { echo "multimix_pipe needs Python 3.10 or newer; $(PYTHON) is older or missing: make PYTHON=python3.12 ..." >&2; exit 1; }
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV) || \
	  { echo "$(PYTHON) -m venv failed: install the venv module (Debian, Ubuntu: apt install python3-venv)" >&2; exit 1; }
	$(BIN)/python -m pip install --disable-pip-version-check -q -c constraints.txt -e ".[dali,fast,plot,dev,docs]"
	@touch $@

$(TRAINERS_STAMP): pyproject.toml constraints.txt tests/trainers/requirements.txt
	$(PYTHON) -m venv --clear $(TRAINERS)
	$(TRAINERS)/bin/python -m pip install --disable-pip-version-check --no-compile -q -c constraints.txt -e . \
	  -r tests/trainers/requirements.txt
	@touch $@

# composer asks for a torch of 2025; its functions work with this one, but pip must not be asked.
$(OUTSIDE_STAMP): pyproject.toml constraints.txt tests/outside.txt
	$(PYTHON) -m venv --clear $(OUTSIDE)
	$(OUTSIDE)/bin/python -m pip install --disable-pip-version-check --no-compile -q -c constraints.txt -e . -r tests/outside.txt
	$(OUTSIDE)/bin/python -m pip install --disable-pip-version-check --no-compile -q --no-deps mosaicml==0.32.1
	@touch $@
