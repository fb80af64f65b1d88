# Two commands set up everything themselves on a machine with Python 3.11 or newer:
#   make demo   meta-train on simulated robots, and draw how the policy adapts to unseen tasks
#   make test   all tests, with the linters
# The versions come from constraints.txt. On Linux the default torch brings CUDA along; the smaller
# build for CPUs: PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu make demo

EXTRAS ?= dev,video,onnx
WORKERS ?= 2
VENV := .venv
INSTALLED := $(VENV)/.installed-$(EXTRAS)
CANDIDATES := $(PYTHON) python3.11 python3.12 python3.13 python3.14 python3 python

.PHONY: demo test install clean

demo: install
	$(VENV)/bin/python -m metarl.experiments.demo

# One thread a worker: the tests are many and small, and the workers already fill the cores.
test: install
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest -n $(WORKERS)

install: $(INSTALLED)

$(INSTALLED): pyproject.toml constraints.txt | $(VENV)/bin/python
	$(VENV)/bin/python -m pip install --constraint constraints.txt --editable '.[$(EXTRAS)]'
	@touch $@

$(VENV)/bin/python:
	@for python in $(CANDIDATES); do \
	  if $$python -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' \
	      >/dev/null 2>&1; then \
	    echo "Setting up $(VENV) with $$python"; exec $$python -m venv $(VENV); \
	  fi; \
	done; \
	echo "metarl needs Python 3.11 or newer with the venv module; none of these is one:" \
	  "$(CANDIDATES). Install it, or name it: make PYTHON=/path/to/python3.11" >&2; exit 2

clean:
	rm -rf $(VENV) build dist *.egg-info .coverage .hypothesis .mypy_cache .pytest_cache .ruff_cache
