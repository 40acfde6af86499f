# Everything runs in a virtual environment in .venv, made on first use from requirements/cpu.txt or gpu.txt.
PYTHON ?= python3
BIN := .venv/bin
TORCH := torch==2.13.0+cpu
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu
UV := uv==0.13.8
# The build that .venv holds; another one that is asked for replaces it.
HELD := $(shell cat .venv/.done 2>/dev/null)
ACCELERATOR ?= $(or $(HELD),cpu)
EXPERIMENT ?= micro
ARGS ?=
export HF_HUB_DISABLE_TELEMETRY = 1
# Some machines never write bytecode (PYTHONDONTWRITEBYTECODE): there every start would compile all of vLLM.
export UV_COMPILE_BYTECODE = 1

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  %-12s  %s\n", $$1, $$2}' $(MAKEFILE_LIST)

ifeq ($(filter cpu gpu,$(ACCELERATOR)),)
$(error ACCELERATOR=$(ACCELERATOR): expected cpu or gpu)
endif

setup: .venv/.done ## make .venv: CPU torch, vLLM's CPU build and the rest of the lock; ACCELERATOR=gpu for CUDA builds; BUNDLE=FOLDER without a network
ifneq ($(ACCELERATOR),$(HELD))
.venv/.done: OTHER_BUILD
endif
# A machine without a network installs from the folder that `make bundle` wrote.
ifdef BUNDLE
FROM_BUNDLE := --no-index --find-links .bundle/wheels
ifndef SETUP_LOCKED
.venv/.done: | open-bundle
endif
endif
open-bundle:
	@$(PYTHON) -m pipeline.bundle '$(BUNDLE)'
ifndef SETUP_LOCKED
# One at a time. The inner make looks at .venv anew, so the one that waited finds it done.
.venv/.done: requirements/$(ACCELERATOR).txt pyproject.toml
	@flock -n .venv.lock true || echo "waiting for another make that sets up .venv"
	@flock .venv.lock $(MAKE) --no-print-directory SETUP_LOCKED=1 $@
else
.venv/.done: requirements/$(ACCELERATOR).txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info[:2] >= (3, 11) else "error: Python 3.11 or newer is needed, found " + sys.version.split()[0] + "; run make PYTHON=python3.11")'
	$(PYTHON) -m venv $(if $(filter-out $(HELD),$(ACCELERATOR)),--clear) .venv
	$(BIN)/pip install -q --disable-pip-version-check $(FROM_BUNDLE) '$(UV)'
ifeq ($(ACCELERATOR)$(BUNDLE),cpu)
	@echo "installing $(TORCH): a wheel that pip is configured to find, else from PyTorch's CPU index"
	@$(BIN)/pip install -q --disable-pip-version-check --no-deps '$(TORCH)' 2>/dev/null \
	  || $(BIN)/pip install --disable-pip-version-check --no-deps --index-url $(TORCH_INDEX) '$(TORCH)'
endif
ifneq ($(BUNDLE),)
	$(if $(filter cpu,$(ACCELERATOR)),$(BIN)/pip install -q --disable-pip-version-check --no-deps $(FROM_BUNDLE) '$(TORCH)')
endif
	$(BIN)/uv pip install $(if $(filter cpu,$(ACCELERATOR)),-q) --python $(BIN)/python --no-deps -r requirements/$(ACCELERATOR).txt $(FROM_BUNDLE)
	$(BIN)/uv pip install -q --python $(BIN)/python --no-deps --no-build-isolation -e .
	$(BIN)/python -m pipeline.engine.alias
	@echo $(ACCELERATOR) > $@
endif

demo: .venv/.done ## the paper's grid on the embedded family, on the CPU, in minutes
	$(BIN)/python -m pipeline experiment=micro $(ARGS)

plan: .venv/.done ## print the cells of an experiment, what is done and what is left: make plan ARGS="experiment=paper"
	@$(BIN)/python -m pipeline plan $(ARGS)

doctor: .venv/.done ## check this machine before a long run: make doctor ARGS="experiment=paper"
	@$(BIN)/python -m pipeline doctor $(ARGS)

show-prompt: .venv/.done ## print what the model is asked: make show-prompt ARGS="experiment=micro task=gsm8k condition=vector_think document=3"
	@$(BIN)/python -m pipeline prompt $(ARGS)

ask: .venv/.done ## ask a model under several conditions: make ask ARGS="experiment=micro task=gsm8k document=3 alpha=[-1,0,1]"
	@$(BIN)/python -m pipeline ask $(ARGS)

playground: .venv/.done ## the same on a local page, with a slider for the scaling coefficient: make playground EXPERIMENT=micro
	@$(BIN)/python -m pipeline playground experiment=$(EXPERIMENT) $(ARGS)

# Asked before anything is installed: the GPU, unless the run is to go without one here.
GPU_BUILD = $(if $(filter engine=cpu engine.device=cpu,$(ARGS)),,ACCELERATOR=gpu)
NEEDS_GPU = $(if $(filter engine=cpu engine.device=cpu launcher.address=%,$(ARGS)),,@ls /dev/nvidia[0-9]* >/dev/null 2>&1 || test -e /dev/kfd || test -e /dev/dxg \
  || { echo 'error: no GPU on this machine; run `make demo` here, or add ARGS="engine=cpu" to run on the CPU' >&2; exit 2; })
# And what CUDA needs of this machine, before 10 GB of it are downloaded; an older Python is refused by `setup`.
FITS_CUDA = $(if $(filter engine=cpu engine.device=cpu launcher.address=%,$(ARGS))$(filter gpu,$(HELD)),,@! $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
  || $(PYTHON) -m pipeline.commands.doctor_cuda)

reproduce: ## the paper's experiment on Qwen2.5 (needs a GPU)
	$(NEEDS_GPU)
	$(FITS_CUDA)
	@$(MAKE) --no-print-directory .venv/.done $(GPU_BUILD)
	@$(BIN)/python -m pipeline doctor experiment=paper $(ARGS)
	$(BIN)/python -m pipeline experiment=paper $(ARGS)

authors: ## the authors' public triples, their numbers beside ours (needs a GPU): make authors ARGS="families=[qwen_gsm8k_1p5b]"
	$(NEEDS_GPU)
	$(FITS_CUDA)
	@$(MAKE) --no-print-directory .venv/.done $(GPU_BUILD)
	@$(BIN)/python -m pipeline doctor experiment=authors $(ARGS)
	$(BIN)/python -m pipeline experiment=authors $(ARGS)

SWEPT = $(or $(patsubst experiment=%,%,$(filter experiment=%,$(ARGS))),paper)
sweep: ## the sweep of the scaling coefficient alone (needs a GPU)
	$(NEEDS_GPU)
	$(FITS_CUDA)
	@$(MAKE) --no-print-directory .venv/.done $(GPU_BUILD)
	@$(BIN)/python -m pipeline doctor experiment=paper $(ARGS)
	$(BIN)/python -m pipeline experiment=paper name=$(SWEPT)_sweep conditions=sweep $(ARGS)

apply: .venv/.done ## write a steered checkpoint, and push it: make apply ARGS="experiment=micro alpha=0.5 push=me/name dry_run=true"
	$(BIN)/python -m pipeline apply $(ARGS)

dashboard: .venv/.done ## make the W&B workspace of what has been logged: make dashboard ARGS="experiment=paper dry_run=true"
	@$(BIN)/python -m pipeline dashboard $(ARGS)

OUT ?= bundle
# Wheels of the build that runs there: CUDA's, unless the run is to go without a GPU.
WHEELS ?= $(if $(filter engine=cpu engine.device=cpu experiment=micro%,$(ARGS)),cpu,gpu)
PIP_WHEEL = $(BIN)/pip wheel -q --disable-pip-version-check --no-deps --wheel-dir $(OUT)/wheels
bundle: .venv/.done ## gather wheels, models and data for a machine without a network: make bundle ARGS="experiment=paper part_gb=4"
	@$(BIN)/python -m pipeline config $(filter-out part_gb=%,$(ARGS)) >/dev/null  # a mistake in ARGS is told before the downloads
	$(PIP_WHEEL) '$(UV)' -r requirements/$(WHEELS).txt
ifeq ($(WHEELS),cpu)
	@$(PIP_WHEEL) '$(TORCH)' 2>/dev/null || $(PIP_WHEEL) --index-url $(TORCH_INDEX) '$(TORCH)'
endif
	$(BIN)/python -m pipeline bundle out=$(OUT) $(ARGS)

tables: .venv/.done ## render tables and figures again from the records: make tables ARGS="experiment=micro"
	$(BIN)/python -m pipeline 'stages=[render]' $(ARGS)

compare: .venv/.done ## set two runs side by side: make compare A=results/runs/a.json B=results/runs/b.json
	@$(BIN)/python -m pipeline compare $(A) $(B) $(ARGS)

parity: .venv/.done ## our scores beside the stock lm_eval command's: make parity ARGS="model=FOLDER data=FOLDER"
	$(BIN)/python -m benchmarks.parity $(ARGS)

donors: .venv/.done ## train donors by a recipe of conf/recipe: make donors EXPERIMENT=micro
	$(BIN)/python -m pipeline donors recipe=$(EXPERIMENT) $(ARGS)

SEEDS = 0 1 2 3 4
families: .venv/.done ## train the micro family from five seeds, two at a time, and test the claim on them
	@$(BIN)/python -m pipeline config experiment=micro_seeds $(ARGS) >/dev/null  # a mistake in ARGS is told before the training
	$(MAKE) -j2 --no-print-directory $(SEEDS:%=family-%)
	$(BIN)/python -m pipeline experiment=micro_seeds $(ARGS)

family-%: .venv/.done
	OMP_NUM_THREADS=1 $(BIN)/python -m pipeline donors recipe=micro out=results/donors/micro-$* seed=$*

bench: .venv/.done .bench/mergekit ## measure every claim of speed, both sides in one run (25 GB of disk, half an hour)
	$(BIN)/python -m benchmarks.throughput
	$(BIN)/python -m benchmarks.sweep
	$(BIN)/python benchmarks/apply.py --dir .bench/apply --repeats 2 --mergekit .bench/mergekit

.bench/mergekit:
	$(BIN)/pip install -q --no-deps --target $@ mergekit==0.1.5 immutables==0.21 sentencepiece==0.2.3

# Tests run in three processes, whole files in each: on two cores one works while another waits. An engine takes up to 2 GB.
WORKERS ?= 3
# Bytecode of the project and its tests is written, whatever the machine says: each process would compile all of it anew.
PYTEST := PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest
test: lint ## lint, types and tests; WORKERS=5 for more processes than three, ARGS="-k name" for a part
	$(PYTEST) -n $(WORKERS) --dist loadfile --no-loadscope-reorder -m "not slow and not kill" $(ARGS)

test-slow: .venv/.done ## the slow tier of the tests
	$(PYTEST) -m slow $(ARGS)

test-kill: .venv/.done ## kill runs 51 times, at random moments of every stage, and compare with an undisturbed one (half an hour)
	$(PYTEST) -s tests/test_kill.py $(ARGS)

fuzz: .venv/.done ## feed every parser of ours with spoilt input, ten minutes each: FUZZ_SECONDS=60 for less
	FUZZ_SECONDS=$(or $(FUZZ_SECONDS),600) $(PYTEST) tests/test_fuzz.py tests/test_fuzz_inputs.py $(ARGS)

lint: .venv/.done ## ruff and mypy alone
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy --num-workers $(WORKERS)

format: .venv/.done ## sort the imports and format the code, as lint asks for
	$(BIN)/ruff check --fix --select I .
	$(BIN)/ruff format .

# CUDA's first: it pins more. The CPU's is held to it, so that every package of both has one version.
LOCK = $(BIN)/uv pip compile pyproject.toml --python-version 3.11 --no-header --no-annotate -q \
  $(foreach extra,train cluster dashboard dev,--extra $(extra))
lock: .venv/.done ## resolve requirements/gpu.txt and cpu.txt again: from metadata alone, a minute
	$(LOCK) requirements/gpu.in --extra gpu -o requirements/gpu.txt
	$(LOCK) requirements/cpu.in --extra cpu -c requirements/gpu.txt --override requirements/overrides.txt \
	  --find-links $(or $(FIND_LINKS),$(TORCH_INDEX)/torch) --no-emit-package torch -o requirements/cpu.txt

clean: ## remove results, caches and the virtual environment
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache results/cells results/runs results/vectors results/data results/wandb

.PHONY: OTHER_BUILD open-bundle help setup bundle demo plan doctor show-prompt ask playground reproduce authors sweep apply dashboard tables compare parity donors families bench test test-slow test-kill fuzz lint format lock clean
