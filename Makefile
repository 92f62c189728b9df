# Two commands: `make lab` opens the lab, `make test` checks everything.
# The first run installs into .venv/ and takes minutes; later ones start
# immediately. To use another Python: make lab PYTHON=python3.12

SHELL := /bin/sh
NEW_ENOUGH := import sys; sys.exit(sys.version_info < (3, 11))
usable = $(shell $(1) -c '$(NEW_ENOUGH)' 2>/dev/null && echo $(1))
# a Python is looked for once, and only when something has to be installed
PYTHON ?= $(eval PYTHON := $(or $(call usable,python3),\
  $(call usable,python3.13),$(call usable,python3.12),\
  $(call usable,python3.11)))$(PYTHON)
CPU_TORCH := https://download.pytorch.org/whl/cpu
AS_ROOT := $(if $(filter 0,$(shell id -u)),--allow-root)
# .venv/ stores the paths of this folder and of its Python; both may change
FITS = .venv/bin/python -c '$(NEW_ENOUGH)' 2>/dev/null \
  && grep -qF "$$(pwd -P)/.venv/bin/" .venv/bin/pip || { \
  echo ".venv/ belongs to another folder, or its Python is too old or gone;" \
    "remove it with make clean, then try again"; exit 1; }

.PHONY: lab test figures clean

lab: .venv/.ready
	@$(FITS)
	.venv/bin/jupyter lab --ip=localhost $(AS_ROOT) \
	  --LabApp.default_url=/lab/tree/notebooks/00-start-here.ipynb

test: .venv/.ready
	@$(FITS)
	OMP_NUM_THREADS=1 .venv/bin/python -m pytest

# run every notebook and store its pictures and its checked numbers
figures: .venv/.ready
	OMP_NUM_THREADS=1 .venv/bin/lab render

clean:
	rm -rf .venv

.venv/.ready: pyproject.toml constraints.txt
	@test -n "$(PYTHON)" && $(PYTHON) -c '$(NEW_ENOUGH)' || { \
	  echo "Routing Lab needs Python 3.11 or newer but found" \
	    "$$($(or $(PYTHON),python3) -V 2>&1); install one from python.org" \
	    "or name it: make lab PYTHON=/path/to/python3.12"; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	  echo "This Python comes without venv; on Debian and Ubuntu:" \
	    "sudo apt install python3-venv"; exit 1; }
	@test ! -e .venv/bin/pip || { $(FITS); }
	@echo "Installing into .venv/ (some 2 GB, once; 5 to 15 minutes)"
	$(PYTHON) -m venv .venv
	@# on Linux, PyPI's torch brings 3 GB for NVIDIA GPUs; without such a GPU,
	@# install the CPU build, if its index can be reached
	@if [ "$$(uname)" = Linux ] && [ ! -e /proc/driver/nvidia ] \
	  && ! command -v nvidia-smi >/dev/null \
	  && .venv/bin/python -c 'from urllib.request import urlopen; \
	    urlopen("$(CPU_TORCH)/torch/", timeout=5)' 2>/dev/null; then \
	  .venv/bin/pip install torch -c constraints.txt \
	    --extra-index-url $(CPU_TORCH) || true; fi
	.venv/bin/pip install -e '.[lab,test]' -c constraints.txt
	@# JupyterLab's news pop-up covers the lower right corner of the first
	@# notebook
	.venv/bin/jupyter labextension disable --level=sys_prefix \
	  "@jupyterlab/apputils-extension:announcements" 2>/dev/null
	@touch .venv/.ready
