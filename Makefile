# make demo | test-fast | test | test-full | test-gpu | check | test-oldest     (PYTHON=python3.12 make demo: another Python)
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
DEMO_CFG := configs/demo/simmim_pretrain__swin_tiny__shapes64.yaml

.PHONY: demo test test-fast test-full test-gpu check test-oldest clean

demo: $(VENV)/.installed
	$(BIN)/python main_simmim.py --cfg $(DEMO_CFG)
	$(BIN)/python -m tools.reconstruct --cfg $(DEMO_CFG) --picture demo.png

# Two at a time: most tests wait for processes of one thread.
test: $(VENV)/.installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadgroup

# What starts no process and takes no more than two seconds.
test-fast: $(VENV)/.installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadgroup -m "not full_size and not gpu and not slow"

# What has a size, at published size: a few GB of memory and 10 GB of disk for some minutes.
test-full: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -m full_size --durations=0

# What only a GPU can show; without one it says so. SIMMIM_TEST_DEVICE=cpu runs the rest on the CPU.
test-gpu: $(VENV)/.installed-dev
	@$(BIN)/python -m tests.gpu

check: $(VENV)/.installed-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/python -m tests.support.docs_code .docs-code
	$(BIN)/ruff format --check .docs-code/*.py
	$(BIN)/ruff check .docs-code/*.py
	$(BIN)/mypy . .docs-code/*.py

# The lower bounds of requirements.txt, as exact versions, in an environment of their own.
test-oldest:
	$(PYTHON) -m venv .venv-oldest
	sed 's/>=/==/' requirements.txt > .venv-oldest/requirements.txt
	.venv-oldest/bin/pip install --quiet -r .venv-oldest/requirements.txt -r requirements-study.txt 'pytest>=8.0' 'onnx>=1.16' 'transformers>=4.56'
	.venv-oldest/bin/python -m pytest

$(VENV)/.installed: requirements.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "Python >= 3.10 is needed, this is " + sys.version)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet -r requirements.txt
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed requirements-dev.txt requirements-study.txt
	$(BIN)/pip install --quiet -r requirements-dev.txt
	touch $@

clean:
	rm -rf $(VENV) .venv-oldest .docs-code .mypy_cache .ruff_cache .pytest_cache
