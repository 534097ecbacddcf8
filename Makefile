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
	@echo "make evidence  all studies of pipelines/evidence on a CPU, many hours, into build/evidence; DATA=FOLDER: on your images"
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

# DATA is a folder with shards in train/ and test/ (CIFAR-10), as multimix-pipe pack writes; without it, images are generated. What a
# script has finished in build/evidence, it does not do again.
EVIDENCE := build/evidence
STUDIES := pipelines/evidence
evidence: $(STAMP)
	$(BIN)/python $(STUDIES)/gradient_variance.py $(DATA:%=%/train) --out $(EVIDENCE)
	$(BIN)/python $(STUDIES)/gradient_variance.py $(DATA:%=%/train) --alpha 0.2 --out $(EVIDENCE)/alpha0.2
	$(BIN)/python $(STUDIES)/gradient_variance.py $(DATA:%=%/train) --crops --ks 1 2 5 --out $(EVIDENCE)/crops
	for data in moons spirals; do for alpha in 1 0.2; do \
	  $(BIN)/python $(STUDIES)/two_moons.py --data $$data --alpha $$alpha --out $(EVIDENCE) || exit; done; done
	$(BIN)/python $(STUDIES)/time_to_accuracy.py $(DATA:%=%/train) --out $(EVIDENCE)
	$(BIN)/python -m pip install --disable-pip-version-check -q scikit-learn
	test -d $(EVIDENCE)/digits-shards || { $(BIN)/python $(STUDIES)/digits.py $(EVIDENCE)/digits && \
	  $(BIN)/multimix-pipe pack $(EVIDENCE)/digits $(EVIDENCE)/digits-shards; }
	$(BIN)/python $(STUDIES)/study.py --size digits --data $(EVIDENCE)/digits-shards --out $(EVIDENCE)/study-digits
	$(BIN)/python $(STUDIES)/study.py --size digits --report --out $(EVIDENCE)/study-digits
ifdef DATA
	$(BIN)/python $(STUDIES)/study.py --data $(DATA) --out $(EVIDENCE)/study-small
	$(BIN)/python $(STUDIES)/study.py --report --out $(EVIDENCE)/study-small
else
	@echo "left out: the study on photos, which needs 10,120 training images; run make evidence DATA=FOLDER"
endif

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
