# Two commands from a fresh machine: `make demo` and `make test`. Both set up .venv first.
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python -W ignore
DEMO := output/group_conditional_detr_shapes

.PHONY: env demo test test-fast lint docs clean

env: $(VENV)/.current

$(VENV)/.current: setup.py tools/make_env.sh requirements/constraints.txt requirements/detectron2.txt
	tools/make_env.sh "$(PYTHON)" $(VENV)
	touch $@

demo: env  ## trains on generated images, evaluates, draws; minutes on a CPU
	$(RUN) train_net.py --config-file configs/quick_start/group_conditional_detr_shapes.yaml \
	  --resume OUTPUT_DIR $(DEMO)

test: env  ## the whole suite, two tests at a time
	OMP_NUM_THREADS=1 $(RUN) -m pytest -n 2 --maxschedchunk 6 tests

test-fast: env  ## without the tests that train
	OMP_NUM_THREADS=1 $(RUN) -m pytest -n 2 --maxschedchunk 6 tests -m "not slow"

lint: env
	$(VENV)/bin/python -m ruff check .
	$(VENV)/bin/python -m ruff format --check .
	$(VENV)/bin/python -m mypy

docs: env  ## the documentation as a site in site/; a warning, such as a broken link, is an error
	NO_MKDOCS_2_WARNING=1 $(RUN) -m mkdocs build --strict

clean:
	rm -rf site output datasets/shapes .pytest_cache .ruff_cache
