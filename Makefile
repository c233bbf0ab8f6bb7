# Two commands do everything: `make demo` and `make test`. Both set up .venv first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
OLDEST := .venv-oldest
DOCS := .venv-docs
DEMO ?= demo
# by uv where it can be had, with what pip was told on this machine
INSTALL = $(BIN)/python tools/install/install.py
# what touches the libraries most, without the longest and three whose bounds on rounding were measured on today's kernels
FAST := $(addprefix tests/,adapters backbones diffusion manifests cli/test_main.py) \
	--ignore tests/diffusion/test_reference_parity.py --ignore tests/diffusion/test_sampling.py \
	-k "not rows_with_different_adapters and not rows_in_the_order and not returns_to_the_input"

.PHONY: demo test test-oldest lint format wheel docs clean

demo: $(VENV)/.installed
	$(BIN)/diffstyler demo --output_dir $(DEMO)

test: $(VENV)/.installed-dev lint
	$(BIN)/python -m pytest

# the oldest libraries that pyproject.toml names, without any extra; what these warn of was mended in newer ones
test-oldest: $(OLDEST)/.installed
	$(OLDEST)/bin/python -m pytest -o filterwarnings=default $(FAST)

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports

format: $(VENV)/.installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

wheel: $(VENV)/.installed-dev
	$(BIN)/python -m build --wheel

# the pages are made from the sources as they are: nothing of the package is installed or run
docs:
	test -x $(DOCS)/bin/python || $(PYTHON) -m venv $(DOCS)
	$(DOCS)/bin/python -m pip install --quiet 'mkdocs>=1.6,<2' 'mkdocs-material>=9.6' 'mkdocstrings[python]>=1'
	NO_MKDOCS_2_WARNING=1 $(DOCS)/bin/mkdocs build --strict

$(VENV)/.installed: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "diffstyler needs Python 3.10 or newer: make PYTHON=python3.12")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(INSTALL) --editable '.[all]'
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(INSTALL) --editable '.[all,dev]'
	touch $@

$(OLDEST)/.installed: $(VENV)/.installed-dev
	$(BIN)/uv venv --quiet --clear --python $(BIN)/python $(OLDEST)
	$(INSTALL) --python $(OLDEST)/bin/python --resolution lowest-direct --editable .
	$(OLDEST)/bin/python -c 'import diffstyler; from diffstyler import LoRAFinetuner, Stylizer, fit, stylize'
	$(INSTALL) --python $(OLDEST)/bin/python --editable '.[test]'
	touch $@

clean:
	rm -rf $(VENV) $(OLDEST) $(DOCS) $(DEMO) dist build
