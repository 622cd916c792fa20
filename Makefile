# Each stage is a target that calls one verb of vidgraph. `make help` lists the targets.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready

MANIFEST ?=
CACHE    ?= caches/default
RUNS     ?= runs
RECIPE   ?=
RUN      ?=
VIDEOS   ?=
STUDY    ?=
DEMO     ?= demo
CLIP     ?=
IN       ?= .
KIND     ?= folder
CLUSTER  :=
BUDGET   ?= 120
TESTERS  ?= auto
ISA      ?= AVX2
# ACCEPT=yes: clips that cannot be read end no target. ACCEPT=FILE: the clips of this list alone.
ACCEPT   ?=
ARGS     ?=

# A cache for targets that otherwise take the run's own.
OWN_CACHE = $(if $(filter-out default undefined file,$(origin CACHE)),--cache $(call name,CACHE))

# make expands the variables that it exports to commands. A name may hold dollar signs, so these are
# not exported.
unexport MANIFEST CACHE RUNS RUN RECIPE STUDY DEMO ACCEPT VIDEOS CLIP IN OWN_CACHE

# $(call name,VARIABLE): the value, quoted for the shell. It may hold blanks, quotes, dollar signs.
name = '$(subst ','\'',$(value $(1)))'
# $(call given,VARIABLE): the same, and an error if the variable is empty.
given = $(if $(value $(1)),$(call name,$(1)),$(error expected $(1), for example: make $@ $(1)=...; `make help` lists the variables))

accept = $(if $(value ACCEPT),--accept-failures$(if $(filter-out yes,$(value ACCEPT)),=$(call name,ACCEPT)))

.DEFAULT_GOAL := help
.PHONY: help setup demo manifest check plan extract graphs verify repair train evaluate predict \
  show ls ablate finetune report reproduce-rstg reproduce-dyreg test test-slow test-cpus lint \
  format bench clean

help: ## print this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-15s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo
	@echo 'defaults: PYTHON=$(PYTHON) VENV=$(VENV) CACHE=caches/default RUNS=runs DEMO=demo KIND=folder IN=.'
	@echo '          BUDGET=120 (minutes) TESTERS=auto (one per core) ISA=AVX2'

setup: $(READY) ## make .venv with everything that the project needs (the other targets do it when needed)

$(READY): setup.cfg pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "vidgraph needs Python 3.10 or newer, this is " + sys.version.split()[0] + "; say make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	@touch $@

demo: $(READY) ## run all stages on generated digit videos: DEMO=folder ARGS=...
	$(BIN)/vidgraph demo --out $(call name,DEMO) $(ARGS)

manifest: $(READY) ## list videos in a manifest: KIND=folder MANIFEST=out.csv ARGS="FOLDER ..."
	$(BIN)/vidgraph manifest $(KIND) --out $(call given,MANIFEST) $(ARGS)

check: $(READY) ## decode a few frames of every clip: MANIFEST=... ARGS=...
	$(BIN)/vidgraph check --manifest $(call given,MANIFEST) $(ARGS)

plan: $(READY) ## estimate what an extraction takes: MANIFEST=... CACHE=... ARGS="extract's options"
	$(BIN)/vidgraph plan --manifest $(call given,MANIFEST) --cache $(call name,CACHE) $(ARGS)

extract: $(READY) ## stage one, features and boxes: MANIFEST=... CACHE=... ACCEPT=yes CLUSTER="--dask 4" ARGS=...
	$(BIN)/vidgraph extract --manifest $(call given,MANIFEST) --cache $(call name,CACHE) $(accept) $(CLUSTER) $(ARGS)

graphs: $(READY) ## stage two, graphs between boxes: CACHE=... CLUSTER="--dask 4" ARGS=...
	$(BIN)/vidgraph graphs --cache $(call name,CACHE) $(CLUSTER) $(ARGS)

verify: $(READY) ## check a cache: CACHE=... ARGS=...
	$(BIN)/vidgraph verify --cache $(call name,CACHE) $(ARGS)

repair: $(READY) ## extract bad shards and failed clips again: CACHE=... ARGS=...
	$(BIN)/vidgraph repair --cache $(call name,CACHE) $(ARGS)

train: $(READY) ## stage three, train a head: RECIPE=... CACHE=... RUNS=... ARGS=...
	$(BIN)/vidgraph train $(call given,RECIPE) --cache $(call name,CACHE) --runs $(call name,RUNS) $(ARGS)

evaluate: $(READY) ## evaluate a trained head: RUN=folder CACHE="the run's own" ARGS=...
	$(BIN)/vidgraph evaluate $(call given,RUN) $(OWN_CACHE) $(ARGS)

predict: $(READY) ## ask a trained head about new videos: RUN=folder VIDEOS="a file or folder" ARGS=...
	$(BIN)/vidgraph predict $(call given,RUN) $(call given,VIDEOS) $(ARGS)

show: $(READY) ## draw a clip of a cache: CLIP=id CACHE=... ARGS="--run RUN --out clip.png"
	$(BIN)/vidgraph show $(call given,CLIP) --cache $(call name,CACHE) $(ARGS)

ls: $(READY) ## list the caches and runs below a folder: IN=folder
	$(BIN)/vidgraph ls $(call name,IN) $(ARGS)

ablate: $(READY) ## train a grid of heads and options: STUDY=... CACHE=... RUNS=... CLUSTER="--dask 4" ARGS=...
	$(BIN)/vidgraph ablate $(call given,STUDY) --cache $(call name,CACHE) --runs $(call name,RUNS) $(CLUSTER) $(ARGS)

finetune: $(READY) ## train end to end: RECIPE=... CACHE=... RUNS=... ARGS=...
	$(BIN)/vidgraph finetune $(call given,RECIPE) --cache $(call name,CACHE) --runs $(call name,RUNS) $(ARGS)

report: $(READY) ## write run folders as one page: RUNS="runs/*" ARGS=...
	$(BIN)/vidgraph report $(RUNS) $(ARGS)

reproduce-rstg: $(READY) ## train RSTG's Table 1 on generated digits: BUDGET=minutes ARGS=...
	$(BIN)/vidgraph reproduce rstg --budget $(BUDGET) $(ARGS)

reproduce-dyreg: $(READY) ## train DyReg-GNN's Tables 5 and 6 on generated digits: BUDGET=minutes ARGS=...
	$(BIN)/vidgraph reproduce dyreg --budget $(BUDGET) $(ARGS)

# One process per core, each with one thread. The tests of a file run in one process, because they
# share fixtures. TESTERS=0 runs all tests in one process.
test test-slow test-cpus: export OMP_NUM_THREADS ?= 1
# A test that kills its process has failed, and the other tests continue: tests/support/crashes.py.
PYTEST := $(BIN)/python -m pytest -q -n $(TESTERS) --maxprocesses 8 --dist loadfile --max-worker-restart 20

test: $(READY) ## run the tests that every change must pass: TESTERS=processes ARGS=...
	$(PYTEST) -m "not slow" $(ARGS)

test-slow: $(READY) ## run all tests, including the slow ones: TESTERS=processes ARGS=...
	$(PYTEST) $(ARGS)

# The tests of code that computes with torch. Figures may depend neither on the instructions of the
# CPU nor on the number of threads.
NUMERIC := parity heads/interface heads/papers heads/zoo heads/finetuning heads/reproduction \
  heads/training/test_learner.py heads/training/test_train.py pipeline/backbones pipeline/networks \
  pipeline/proposals pipeline/regions pipeline/stages/test_extract.py test_made_before_rooms.py

test-cpus: $(READY) ## run the numeric tests, by default as on a CPU with AVX2 alone: ISA=AVX2 OMP_NUM_THREADS=1 ARGS=...
	$(if $(ISA),ONEDNN_MAX_CPU_ISA=$(ISA) ATEN_CPU_CAPABILITY=avx2) $(PYTEST) -m "not slow" $(ARGS) $(NUMERIC:%=tests/%)

lint: $(READY) ## check style with ruff (linter and formatter)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(READY) ## let ruff rewrite what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(READY) ## run every benchmark; each prints a table: ARGS=...
	@for script in benchmarks/[a-z]*.py; do echo "== $$script"; $(BIN)/python $$script $(ARGS) || exit 1; done

clean: ## remove what the targets made, except .venv and caches
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +
