# Commands on a fresh machine; README.md, docs/annotate.md and CONTRIBUTING.md have the plain ones that they stand for.
PYTHON ?= python3
VENV ?= .venv
DATA ?= runs/busi
RUN := $(VENV)/bin/python
# MONAI Label has an environment of its own, which the tests use too.
export LABEL_VENV ?= .venv-label
LABEL_RUN := $(LABEL_VENV)/bin/python

.PHONY: demo annotate label_environment test package export clean

$(VENV)/installed: requirements.txt
	$(PYTHON) -m venv "$(VENV)"
	"$(RUN)" -m pip install -r requirements.txt
	cp requirements.txt "$@"

$(LABEL_VENV)/installed: requirements-label.txt requirements-label-no-deps.txt
	$(PYTHON) -m venv "$(LABEL_VENV)"
	"$(LABEL_RUN)" -m pip install -r requirements-label.txt
	"$(LABEL_RUN)" -m pip install --no-deps -r requirements-label-no-deps.txt
	cat requirements-label.txt requirements-label-no-deps.txt > "$@"

label_environment: $(LABEL_VENV)/installed

demo: $(VENV)/installed
	"$(RUN)" scripts/demo.py $(if $(BUSI),--source "$(BUSI)" --epochs 8)

annotate: $(LABEL_VENV)/installed
	"$(LABEL_RUN)" label_app/start.py --studies "$(STUDIES)" $(if $(PORT),--port "$(PORT)")

test: $(VENV)/installed
	"$(RUN)" -m pytest

package: $(VENV)/installed
	"$(RUN)" scripts/package_bundle.py

export: $(VENV)/installed
	"$(RUN)" scripts/export.py --dataset_dir "$(DATA)"

clean:
	rm -rf "$(VENV)" "$(LABEL_VENV)" runs/demo .pytest_cache
