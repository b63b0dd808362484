# Commands on a fresh machine; README.md, docs/annotate.md and CONTRIBUTING.md have the plain ones that they stand for.
PYTHON ?= python3
VENV ?= .venv
RUN := $(VENV)/bin/python
# MONAI Label has an environment of its own, which the tests use too.
export LABEL_VENV ?= .venv-label
LABEL_RUN := $(LABEL_VENV)/bin/python
# Threads that wait sleep: see PASSIVE in bundle/breast_ultrasound/cli.py
export OMP_WAIT_POLICY ?= PASSIVE
export KMP_BLOCKTIME ?= 0

# major.minor of an interpreter; nothing where there is none
VERSION = "$(1)" -c 'import sys; print(*sys.version_info[:2], sep=".")' 2>/dev/null
# An environment of another Python than the one that is asked for by name is made again.
ifeq ($(origin PYTHON),command line)
OTHERS := $(foreach folder,$(VENV) $(LABEL_VENV),$(if $(filter-out $(shell $(call VERSION,$(PYTHON))),\
	$(shell $(call VERSION,$(folder)/bin/python))),$(folder)/installed))
.PHONY: $(OTHERS)
endif

.PHONY: help demo annotate label_environment test quick_test audit package wheel export requirements clean

help:
	@echo "make demo [BUSI=DIR]         try everything once, on phantoms or on BUSI"
	@echo "make annotate STUDIES=DIR    outline lesions in the images of a folder, in the browser"
	@echo "make label_environment       only what the line above needs; the tests need it too"
	@echo "make test                    all tests: about 40 minutes on two cores, and a second environment of 2 GB"
	@echo "make quick_test              the tests that run no whole commands"
	@echo "make audit                   ask the advisory databases about the pinned packages"
	@echo "make export [DATA=PREPARED]  predictor.onnx and the network alone; with a prepared folder INT8 too"
	@echo "make package, make wheel     the bundle as a zip; as a package for pip"
	@echo "make requirements            requirements*.txt from pyproject.toml, at the versions that are installed"
	@echo "make clean                   remove the environments and the demo"
	@echo "Another interpreter: make ... PYTHON=python3.12. The first of them installs 2 GB into $(VENV)."

# An environment in $(1), anew where it is of another Python; one line where the interpreter does not fit.
define environment
	@"$(PYTHON)" -c 'import sys; v = sys.version_info; sys.exit(0 if (3, 11) <= v < (3, 14) else \
	"Python 3.11, 3.12 or 3.13 is needed, $(PYTHON) is %d.%d; name another: make ... PYTHON=python3.12" % v[:2])'
	"$(PYTHON)" -m venv $(if $(filter $(shell $(call VERSION,$(PYTHON))),$(shell $(call VERSION,$(1)/bin/python))),,--clear) "$(1)"
endef

$(VENV)/installed: requirements.txt
	$(call environment,$(VENV))
	"$(RUN)" -m pip install -r requirements.txt
	cp requirements.txt "$@"

$(LABEL_VENV)/installed: requirements-label.txt requirements-label-no-deps.txt
	$(call environment,$(LABEL_VENV))
	"$(LABEL_RUN)" -m pip install -r requirements-label.txt
	"$(LABEL_RUN)" -m pip install --no-deps -r requirements-label-no-deps.txt
	cat requirements-label.txt requirements-label-no-deps.txt > "$@"

label_environment: $(LABEL_VENV)/installed

demo: $(VENV)/installed
	"$(RUN)" scripts/demo.py $(if $(BUSI),--source "$(BUSI)" --epochs 8)

annotate: $(LABEL_VENV)/installed
	"$(LABEL_RUN)" label_app/start.py --studies "$(STUDIES)" $(if $(PORT),--port "$(PORT)")

test: $(VENV)/installed
	@echo "All tests: about 40 minutes on two cores. Those that run no whole commands: make quick_test"
	"$(RUN)" -m pytest

quick_test: $(VENV)/installed
	"$(RUN)" -m pytest -m "not slow"

audit: $(VENV)/installed
	"$(RUN)" -m pip_audit --no-deps --disable-pip --progress-spinner off \
		-r requirements.txt -r requirements-label.txt

package: $(VENV)/installed
	"$(RUN)" scripts/package_bundle.py

wheel: $(VENV)/installed
	"$(RUN)" -m pip wheel --no-deps --wheel-dir dist .

export: $(VENV)/installed
	"$(RUN)" scripts/export.py $(if $(DATA),--dataset_dir "$(DATA)")

requirements: $(VENV)/installed $(LABEL_VENV)/installed
	"$(RUN)" scripts/tools/pins.py dev > requirements.new && mv requirements.new requirements.txt
	"$(LABEL_RUN)" scripts/tools/pins.py label > requirements.new && mv requirements.new requirements-label.txt
	touch $^

clean:
	rm -rf "$(VENV)" "$(LABEL_VENV)" runs/demo .pytest_cache
