# On a fresh machine with python3 (>= 3.11), gcc and make, `make demo` and `make test` are the only two commands:
# every verb first makes .venv and installs the package into it, and again after pyproject.toml or a C source changed.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

PYTHON ?= python3
ARGS ?=
VENV := .venv
PY := $(VENV)/bin/python
STAMP := $(VENV)/.installed
BUILT_FROM := pyproject.toml setup.py $(wildcard edgeml_ipc/transports/*.c edgeml_ipc/transports/*.h \
	edgeml_ipc/codec/*.c edgeml_ipc/codec/*.h edgeml_ipc/data/*.c edgeml_ipc/data/*.h transports/*.c transports/*.h)
LINTED := edgeml_ipc tests benchmarks examples setup.py

# Heavy libraries that only some tests read data sets with have environments of their own, made by uv, which keeps what it downloads.
EXTRAS_datasets := rlds,minari,lerobot,gym
EXTRAS_lerobot := lerobot,gym
BESIDE_lerobot := lerobot==0.4.4
HEAVY_TESTS := env CUDA_VISIBLE_DEVICES= TF_CPP_MIN_LOG_LEVEL=2 HF_HUB_OFFLINE=1

.PHONY: help demo test test-system test-datasets test-lerobot check test-c test-rows models bench venv clean

help:  ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-13s %s\n", $$1, $$2 }' Makefile
	@echo '  ARGS="..." is handed on, e.g. make demo ARGS="--transport tcp", make test ARGS="-x tests/codec"'

demo: $(STAMP)  ## two actors and a learner in separate processes learn Pendulum; one actor is killed on the way
	@$(PY) -m edgeml_ipc demo $(ARGS)

test: $(STAMP)  ## the tests (pytest)
	@$(PY) -m pytest $(ARGS)

test-system: $(STAMP)  ## what needs chromium, and root with iproute2: a page in a browser, a slow link between namespaces
	@$(PY) -m pytest tests/system $(ARGS)

test-datasets: .venv-datasets/.installed  ## RLDS and Minari data sets, read back by their libraries (the first time: 2.5 GB)
	@$(HEAVY_TESTS) .venv-datasets/bin/python -m pytest tests/datasets --ignore tests/datasets/lerobot $(ARGS)

test-lerobot: .venv-lerobot/.installed  ## LeRobot data sets, read back by LeRobot, which brings torch (the first time: 8 GB)
	@$(HEAVY_TESTS) .venv-lerobot/bin/python -m pytest tests/datasets/lerobot $(ARGS)

check: $(STAMP)  ## lint, format, strict types, layering
	$(PY) -m ruff check $(LINTED)
	$(PY) -m ruff format --check $(LINTED)
	$(PY) -m mypy
	$(PY) -m pytest -q tests/meta/test_layering.py

test-c:  ## the C core under ThreadSanitizer, AddressSanitizer and UBSan; weakened builds must be caught
	@transports/tests/run.sh $(ARGS)

test-rows: $(STAMP)  ## the C halves of the replay buffer and of the codec under AddressSanitizer and UBSan
	@tests/sanitized.sh "$(CURDIR)/$(PY)"

models:  ## the Spin models of park/wake and newest-wins: they hold, and fail without each ordering (needs spin)
	@transports/models/run.sh

bench: $(STAMP)  ## floors, peers and ours, in one run (ARGS="--quick")
	@$(PY) -m benchmarks $(ARGS)

venv: $(STAMP)  ## only make .venv

clean:  ## remove what was built; .venv stays
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis $(STAMP) edgeml_ipc/*/*.so
	find edgeml_ipc tests benchmarks examples transports -name __pycache__ -type d -prune -exec rm -rf {} +

$(STAMP): $(BUILT_FROM)
	@if [ ! -x $(PY) ]; then \
		$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
			echo 'make: $(PYTHON) is missing or older than 3.11; name another one: make PYTHON=python3.12 ...' >&2; exit 1; }; \
		$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
			echo 'make: $(PYTHON) cannot make virtual environments; on Debian and Ubuntu: apt-get install python3-venv' >&2; \
			exit 1; }; \
		echo 'making $(VENV) ...'; \
		$(PYTHON) -m venv $(VENV); \
	fi
	@echo 'installing edgeml_ipc and what it needs into $(VENV) (the first time: some minutes, about 1 GB) ...'
	@PIP_DISABLE_PIP_VERSION_CHECK=1 $(PY) -m pip install --progress-bar off --editable '.[dev,rl,mujoco,dm-env,video,compress,plot,tensorboard]' 2>&1 \
		| awk '/^(Collecting|Processing) / { sub(".*/", "", $$2); print "  " $$2; fflush() } /^Installing collected/ { print "  unpacking ..."; fflush() } \
			/ERROR|^error/ { bad = 1 } /does not provide the extra/ { bad = unknown = 1 } bad { print; fflush() } END { exit unknown }'
	@$(PY) -c 'import edgeml_ipc.transports._core' 2>/dev/null || \
		echo 'NOTE: the shared-memory core was not built (is there a C compiler?); `auto` addresses will use tcp' >&2
	@touch $@

.venv-%/.installed: $(BUILT_FROM)
	@echo 'installing what the tests of data sets need into .venv-$* ...'
	@$(PYTHON) -m venv .venv-$*
	@.venv-$*/bin/python -m pip install --quiet --disable-pip-version-check uv
	@.venv-$*/bin/uv pip install --quiet --python .venv-$*/bin/python --editable '.[$(EXTRAS_$*)]' $(BESIDE_$*) \
		pytest pytest-timeout hypothesis psutil
	@touch $@
