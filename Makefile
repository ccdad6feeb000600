# Everything a person types. `make` alone lists it.
SHELL := /bin/bash
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
ARGS ?=
KILLS ?= 25
HOURS ?= 2

.PHONY: help
help:  ## Show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'
	@echo "  ARGS='key=value …' is handed to the command, e.g. make pretrain ARGS='trainer.max_epochs=5'"

.PHONY: setup
setup: $(STAMP)  ## Make .venv with the locked dependencies and the package

$(STAMP): requirements.lock setup.cfg pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	  { echo "$(PYTHON) is $$($(PYTHON) --version 2>&1), Python 3.10 or newer is needed: make $(MAKECMDGOALS) PYTHON=python3.11" >&2; exit 2; }
	@$(PYTHON) -m venv $(VENV) || \
	  { echo "$(PYTHON) cannot make a virtual environment; on Debian and Ubuntu: apt install python3-venv" >&2; exit 2; }
	@$(BIN)/python -m pip install --quiet uv
	$(BIN)/uv pip install --quiet --python $(BIN)/python --requirement requirements.lock
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --editable .
	@touch $@

.PHONY: doctor
doctor: $(STAMP)  ## Is this machine fit for a run? Each line is ok, or says how to mend it
	$(BIN)/python src/doctor.py $(ARGS)

.PHONY: pretrain
pretrain: $(STAMP)  ## Pre-train: your data/vggsound, or without it a demo that makes its own data
	$(BIN)/python src/train.py experiment=pretrain_vggsound $(ARGS)

.PHONY: probe
probe: $(STAMP)  ## Linear probe of what was pre-trained: your data/vggsound, or without it a demo
	$(BIN)/python src/train.py experiment=vggsound_linear_probe $(ARGS)

.PHONY: finetune
finetune: $(STAMP)  ## Fine-tune a classifier: your data/vggsound, or without it a demo that makes its own data
	$(BIN)/python src/train.py experiment=vggsound_finetune $(ARGS)

.PHONY: separate
separate: $(STAMP)  ## Separate sounds: your data/music, or without it a demo that makes its own data
	$(BIN)/python src/train.py experiment=music_separation $(ARGS)

.PHONY: segment
segment: $(STAMP)  ## Mark what sounds: your data/avsbench, or without it a demo that makes its own data
	$(BIN)/python src/train.py experiment=avsbench_s4 $(ARGS)

.PHONY: datasets
datasets:  ## How to get VGGSound, AudioSet, MUSIC, AVSBench: lists, folder trees, counts, download
	@awk '/^## /{on = /^## The datasets/} on' README.md

.PHONY: benchmark
benchmark: $(STAMP)  ## Reading clips; the network: ARGS='benchmark=model reference=true'; the loop: ARGS=benchmark=step
	$(BIN)/python src/benchmark.py $(ARGS)

.PHONY: tensorboard
tensorboard: $(STAMP)  ## Watch every run at http://localhost:6006
	$(BIN)/tensorboard --logdir logs --host localhost $(ARGS)

.PHONY: test
test: $(STAMP)  ## Quick tests, minutes on two cores
	$(BIN)/python -m pytest -n 2 $(ARGS)

.PHONY: test-full
test-full: $(STAMP)  ## Every test, the long ones too
	$(BIN)/python -m pytest -m "full or not full" $(ARGS)

.PHONY: chaos
chaos: $(STAMP)  ## Kill a run KILLS times at random moments: does it end as an undisturbed one?
	$(BIN)/python tests/chaos.py --kills $(KILLS) $(ARGS)

.PHONY: soak
soak: $(STAMP)  ## Watch memory and open files of HOURS of demo training
	$(BIN)/python tests/soak.py $(HOURS) $(ARGS)

.PHONY: lint
lint: $(STAMP)  ## Style, types, and who imports whom
	$(BIN)/ruff check src tests notebooks
	$(BIN)/ruff format --check src tests notebooks
	$(BIN)/mypy
	PYTHONPATH=src $(BIN)/lint-imports

.PHONY: format
format: $(STAMP)  ## Rewrite the code in the house style
	$(BIN)/ruff check --fix src tests notebooks
	$(BIN)/ruff format src tests notebooks

.PHONY: lock
lock: $(STAMP)  ## Resolve setup.cfg anew into requirements.lock
	$(BIN)/uv pip compile --quiet --universal --python-version 3.10 --extra dev --no-header --upgrade \
	  --output-file requirements.lock setup.cfg

.PHONY: clean
clean:  ## Remove .venv, caches and the demo data; runs under logs stay
	rm -rf $(VENV) data/demo .pytest_cache .mypy_cache .ruff_cache .import_linter_cache src/*.egg-info
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +
