# The commands; `make` alone lists them.
SHELL := /bin/bash
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
ARGS ?=
LOGS ?= logs
TASKS := pretrain classify separate segment retrieve
KILLS ?= 25
HOURS ?= 2

# make takes key=value for a variable of its own, which nothing would read; UPPER=1 goes to the environment.
STRAY := $(filter-out task SHELL -% %_proxy,$(foreach name,$(.VARIABLES),$(if \
  $(filter command,$(firstword $(origin $(name)))),$(name))))
STRAY := $(if $(STRAY),$(firstword $(shell printf '%s\n' $(STRAY) | grep '[a-z]')))
$(if $(STRAY),$(error $(STRAY)= is no variable of this Makefile: settings go into ARGS, e.g. \
  make pretrain ARGS='$(STRAY)=$($(STRAY))'))

.PHONY: help
help:
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'
	@echo "  python src/predict.py --help: a trained network on any video"
	@echo "for work on the project:"
	@grep -hE '^[a-z-]+:.*#- ' $(MAKEFILE_LIST) | awk -F ':.*#- ' '{printf "  make %-15s %s\n", $$1, $$2}'
	@echo "  ARGS='key=value …' goes to it: make pretrain ARGS='trainer.max_epochs=5'"

.PHONY: setup
setup: $(STAMP)  ## Install the packages in .venv (the others do it, too)

$(STAMP): requirements.lock setup.cfg pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	  { echo "$(PYTHON) is $$($(PYTHON) --version 2>&1), Python 3.10 or newer is needed: make $(MAKECMDGOALS) PYTHON=python3.11" >&2; exit 2; }
	@$(PYTHON) -m venv $(VENV) || \
	  { echo "$(PYTHON) cannot create a virtual environment; on Debian and Ubuntu: apt install python3-venv" >&2; exit 2; }
	@$(BIN)/python -m pip install --quiet uv
	@echo "installing the packages of requirements.lock in $(VENV): 5 GB, some minutes …"
	@$(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python --requirement requirements.lock
	@$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --editable .
	@touch $@

.PHONY: doctor
doctor: $(STAMP)  ## Check this machine: each line says ok, or what to fix
	$(BIN)/python src/doctor.py $(ARGS)

.PHONY: pretrain
pretrain: $(STAMP)  ## Pre-train on data/vggsound, or on generated demo data
	$(BIN)/python src/train.py experiment=pretrain_vggsound $(ARGS)

.PHONY: probe
probe: $(STAMP)  ## Linear probe of the pre-trained encoder, on the same data
	$(BIN)/python src/train.py experiment=vggsound_linear_probe $(ARGS)

.PHONY: finetune
finetune: $(STAMP)  ## Fine-tune a classifier, on the same data
	$(BIN)/python src/train.py experiment=vggsound_finetune $(ARGS)

.PHONY: semantics
semantics: $(STAMP)  ## Report what image, audio and fusion tokens know; trains nothing
	$(BIN)/python src/train.py experiment=vggsound_semantics $(ARGS)

.PHONY: separate
separate: $(STAMP)  ## Train separation on data/music, or on demo data
	$(BIN)/python src/train.py experiment=music_separation $(ARGS)

.PHONY: segment
segment: $(STAMP)  ## Train segmentation on data/avsbench, or on demo data
	$(BIN)/python src/train.py experiment=avsbench_s4 $(ARGS)

.PHONY: retrieve
retrieve: $(STAMP)  ## Learn to find images by audio and audio by images, on the same data
	$(BIN)/python src/train.py experiment=vggsound_retrieval $(ARGS)

.PHONY: datasets
datasets:  ## Show docs/datasets.md: lists, layouts, counts, download
	@cat docs/datasets.md

.PHONY: study
study: $(STAMP)  ## A first look at an open question, by many runs (ARGS=study=…)
	$(BIN)/python src/study.py study=fusion_depth study.seeds=1 study.quick=true $(ARGS)

.PHONY: benchmark
benchmark: $(STAMP)  ## Measure reading; ARGS=benchmark=model (or step): others
	$(BIN)/python src/benchmark.py $(ARGS)

.PHONY: readme-picture
readme-picture: $(STAMP)  #- Draw the README's picture from trained demos (2 minutes)
	$(BIN)/python notebooks/readme_picture.py $(ARGS)

.PHONY: demo-table
demo-table: $(STAMP)  #- All demos, three seeds: docs/results.md (2 hours)
	$(BIN)/python src/study.py study=demos $(ARGS)

# TensorBoard follows links, so that logs/<task>/latest would show a run twice: it gets a folder of links without it.
# (Its --logdir_spec would do, but for the projector, which then finds nothing.)
.PHONY: tensorboard
tensorboard: $(STAMP)  ## Show all runs at localhost:6006; task=pretrain: of one task
	@test -z "$(filter-out $(TASKS),$(task))" || { echo "task=$(task): expected one of $(TASKS)" >&2; exit 2; }
	@mkdir -p "$(LOGS)" $(VENV)/runs/$(or $(task),all)
	@logs=$$(cd "$(LOGS)" && pwd) && cd $(VENV)/runs/$(or $(task),all) && for task in $(or $(task),$(TASKS)); do \
	  ln -sfn "$$logs/$$task/runs" $$task && ln -sfn "$$logs/$$task/evals" $${task}_evals; done
	$(BIN)/tensorboard --logdir $(VENV)/runs/$(or $(task),all) --host localhost $(ARGS)

.PHONY: notebook
notebook: $(STAMP)  #- Run the notebook and store its outputs
	DEEPAVFUSION_PLAYERS=no $(BIN)/jupyter execute --inplace notebooks/01_data.ipynb

# Tests start many processes: what those import is compiled once, also where the environment says otherwise.
.PHONY: test
test: $(STAMP)  #- Run the quick tests, minutes on two cores
	PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest -n 2 --dist loadfile --durations=25 $(ARGS)

.PHONY: test-full
test-full: $(STAMP)  #- Run every test, including the long ones
	$(BIN)/python -m pytest -m "full or not full" $(ARGS)

.PHONY: chaos
chaos: $(STAMP)  #- Kill a run KILLS times, compare it with a whole one
	$(BIN)/python tests/chaos.py --kills $(KILLS) $(ARGS)

.PHONY: test-cluster
test-cluster: $(STAMP)  #- Run docs/scaling.md on a real SLURM; as root, in a container
	PATH="$(CURDIR)/$(BIN):$$PATH" tests/cluster/slurm.sh $(ARGS)

.PHONY: hostile-table
hostile-table: $(STAMP)  #- Memory and time of hostile files, into docs/reliability.md
	$(BIN)/python tests/hostile_table.py

.PHONY: soak
soak: $(STAMP)  #- Watch memory and open files during HOURS of training
	$(BIN)/python tests/soak.py $(HOURS) $(ARGS)

.PHONY: lint
lint: $(STAMP)  #- Check style, types and imports
	$(BIN)/ruff check src tests notebooks hubconf.py
	$(BIN)/ruff format --check src tests notebooks hubconf.py
	$(BIN)/mypy
	PYTHONPATH=src $(BIN)/lint-imports

.PHONY: format
format: $(STAMP)  #- Format the code
	$(BIN)/ruff check --fix src tests notebooks hubconf.py
	$(BIN)/ruff format src tests notebooks hubconf.py

.PHONY: lock
lock: $(STAMP)  #- Resolve the dependencies into requirements.lock
	$(BIN)/uv pip compile --quiet --universal --python-version 3.10 --extra dev --no-header --upgrade \
	  --output-file requirements.lock setup.cfg

.PHONY: clean
clean:  #- Remove .venv, caches, demo data; keep logs/
	rm -rf $(VENV) build dist data/demo .pytest_cache .mypy_cache .ruff_cache .import_linter_cache src/*.egg-info
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +
