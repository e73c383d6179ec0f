# Every command sets itself up. `make help` lists them.
PYTHON ?= python3
PROFILE ?= demo
SPLIT ?=
SEED ?= 0
JOBS ?= 1
SHELL := /bin/bash
BIN := .venv/bin
STAGES := 01_data 02_pseudo_labeler 03_pseudo_labels 04_warmup 05_finetune
TABLES := 11_table1_quality_gap 12_table2_warmup_data 13_table3_warmup_epochs 14_table4_epoch_grid \
  15_table5_labeler_strength 16_table6_augmentation 17_table7_scale 18_shift 19_table9_initialization
# Progress bars and messages of the stages go to the notebooks' stderr and are shown as they come.
PAPERMILL = $(BIN)/papermill --no-progress-bar --log-level WARNING --kernel python3 --stderr-file >(cat >&2)
# The kernel warns about plain TCP at each start; it listens on this machine only.
HUSH = 2> >(grep --line-buffered -v 'Kernel is running over TCP' >&2)

help:  ## list the commands
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 14

# One stamp per environment, renewed when its requirements change. A half-made .venv has no stamp and is completed.
.venv/ready: requirements.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or newer is needed, $(PYTHON) is $$($(PYTHON) --version); choose another with make PYTHON=..."; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@echo "installing requirements.txt into .venv: about 6 GB, a few minutes"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	@touch $@

.venv/ready-dev: requirements-dev.txt .venv/ready
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	@touch $@

# An empty SPLIT is the profile's own.
CHAIN = --profile $(PROFILE) $(if $(SPLIT),--split $(SPLIT)) --seed $(SEED)
SPLIT_PARAMETER = $(if $(SPLIT),-p split $(SPLIT))
DONE = runs/notebooks/$(PROFILE)-$(or $(SPLIT),default)-$(SEED)

demo: .venv/ready  ## all stages on the embedded scenes, about twenty minutes on two cores (PROFILE, SPLIT, SEED)
	@mkdir -p $(DONE) && $(BIN)/cassl chain $(CHAIN) || exit 1; \
	for name in $(STAGES); do \
	  test -e $(DONE)/$$name.ipynb && continue; \
	  echo "== $$name, over the finished runs"; \
	  $(PAPERMILL) notebooks/$$name.ipynb $(DONE)/.$$name.ipynb -p profile $(PROFILE) $(SPLIT_PARAMETER) -p seed $(SEED) \
	    $(HUSH) && mv $(DONE)/.$$name.ipynb $(DONE)/$$name.ipynb || exit 1; \
	done; \
	$(BIN)/cassl summary $(CHAIN); echo "executed notebooks: $(DONE)"

# Two processes of one thread, each with whole files: a file's tests share fixtures, a notebook's cells their kernel.
PARALLEL = -n 2 --dist loadfile

test: .venv/ready-dev  ## ruff, pytest, and nbval over the notebooks at the smoke profile
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pytest $(PARALLEL) -m "not alone"
	$(BIN)/pytest -m alone
	store=$$(mktemp -d) && trap 'rm -rf "$$store"' EXIT && \
	  OMP_NUM_THREADS=1 CASSL_PROFILE=smoke CASSL_RUNS=$$store/runs CASSL_DATASETS=$$store/datasets \
	  $(BIN)/pytest $(PARALLEL) --nbval-lax --nbval-current-env --nbval-cell-timeout=300 \
	  --nbval-sanitize-with tests/nbval_sanitize.cfg notebooks

CASES ?= 5000

fuzz: .venv/ready-dev  ## damaged inputs of every kind, many more than in make test (CASES of each)
	OMP_NUM_THREADS=1 CASSL_FUZZ_CASES=$(CASES) $(BIN)/pytest $(PARALLEL) tests/fuzz

tables: .venv/ready  ## all table notebooks in order, with HTML copies in runs/notebooks (PROFILE, SEED, JOBS)
	@mkdir -p runs/notebooks/tables-$(PROFILE); failed=0; \
	for name in $(TABLES); do \
	  echo "== $$name"; out=runs/notebooks/tables-$(PROFILE)/$$name; \
	  $(PAPERMILL) notebooks/$$name.ipynb $$out.ipynb -p profile $(PROFILE) -p seed $(SEED) -p jobs $(JOBS) \
	    $(HUSH) || failed=1; \
	  $(BIN)/jupyter nbconvert --log-level ERROR --to html $$out.ipynb || failed=1; \
	done; exit $$failed

bench: .venv/ready  ## seconds and memory of the detector beside the public CondInst (BENCH="--device cuda --sizes 800x1333")
	$(BIN)/cassl bench $(BENCH)

lab: .venv/ready  ## open JupyterLab on the notebooks
	$(BIN)/jupyter lab notebooks

# Stored with results of the demo profile: the chain over its finished runs in runs/, the tables with recorded numbers.
notebooks: .venv/ready-dev  ## execute all in place at the demo profile (seed 0); the tables show what is recorded
	@$(BIN)/cassl chain --profile demo --seed 0 && \
	for file in notebooks/*.ipynb; do echo "== $$file"; case $$file in \
	  notebooks/1*) more="-p recorded True -p seeds 3" ;; *) more="" ;; esac; \
	  CASSL_PROFILE=demo $(PAPERMILL) $$file $$file $$more $(HUSH) || exit 1; done && \
	$(BIN)/python tests/notebooks/clean_notebooks.py notebooks/*.ipynb

report: .venv/ready  ## regenerate report, README tables, HTML, CSVs and figures from reports/results/
	$(BIN)/cassl report

clean-runs:  ## delete every run, checkpoint and result
	rm -rf runs

.PHONY: help demo test fuzz tables report bench lab notebooks clean-runs
.DEFAULT_GOAL := help
