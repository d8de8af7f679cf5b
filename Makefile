# make demo   the whole road on one machine, some minutes; look at runs/demo/report.html afterwards
# make test   the checks and, beside them, the tests, but for the long ones
# make test-all   with the long ones: the road stopped in every step, everything happening to one training, autoscaling
# make test-cluster   the page of clusters tried on three hosts, one cut off and one killed: root on Linux
# make evaluate   measure the shipped models again and compare with docs/results.md
# make docs   the documentation site, in build/site
# All make the virtual environment first. Needed: make, Python 3.11 with venv.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
export PATH := $(abspath $(BIN)):$(PATH)

# Two processes share the test files: most tests wait more than they compute. The files that take longest come first.
LONGEST := tests/cluster/test_submission.py tests/failures tests/train/test_worker.py tests/test_workers_without_sources.py \
  tests/train/deepspeed/test_state.py tests/cluster/test_autoscaling.py

# What `make evaluate` runs its jobs with
SHIPPED := --recipe shipped --run.storage $(abspath runs) --data.path $(abspath runs/shipped-videos)

.PHONY: demo test test-all test-cluster evaluate docs check format clean

demo: $(VENV)/installed
	@$(BIN)/python jobs/demo.py $(if $(VIDEOS),--videos "$(VIDEOS)") $(ARGS)

evaluate: $(VENV)/installed
	$(BIN)/python jobs/make_videos.py --folder runs/shipped-videos --videos 96 --seed 3 --test-share 0.5
	$(BIN)/python jobs/cache_latents.py $(SHIPPED)
	$(BIN)/python jobs/sample.py $(SHIPPED) $(ARGS)
	$(BIN)/python jobs/evaluate.py $(SHIPPED) $(ARGS)

PYTEST := $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

# The checks run beside the tests, which wait more than they compute; what they print comes at the end, if they fail
BESIDE_CHECKS = mkdir -p build; $(MAKE) --no-print-directory check > build/check.log 2>&1 & checks=$$!; \
	$(1); tests=$$?; wait $$checks || { cat build/check.log; echo "make: a check failed, see above"; exit 1; }; exit $$tests

test: $(VENV)/installed
	@$(call BESIDE_CHECKS,$(PYTEST) -m "not long" $(or $(ARGS),$(LONGEST) tests))

test-all: $(VENV)/installed
	@$(call BESIDE_CHECKS,$(PYTEST) $(or $(ARGS),$(LONGEST) tests))

test-cluster: $(VENV)/installed
	@$(BIN)/python tests/cluster/three_hosts.py $(ARGS)

docs: $(VENV)/installed
	$(BIN)/python docs/build_site.py

check: docs
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# torch first: DeepSpeed builds against the torch that it finds, and nothing after may replace it
$(VENV)/installed: requirements.lock pyproject.toml setup.py
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' || \
	  { echo "make: Python 3.11 is needed, $(PYTHON) is $$($(PYTHON) --version); try: make PYTHON=python3.11 $(MAKECMDGOALS)"; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c requirements.lock torch setuptools wheel ninja
	$(BIN)/python -m pip install --quiet --no-build-isolation -r requirements.lock
	$(BIN)/python -m pip install --quiet --no-build-isolation --no-deps -e .
	@touch $@

clean:
	rm -rf $(VENV) *.egg-info
