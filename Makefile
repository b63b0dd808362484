# Commands on a fresh machine; README.md has the plain ones that they stand for.
PYTHON ?= python3
VENV ?= .venv
DATA ?= runs/busi
RUN := $(VENV)/bin/python

.PHONY: demo test package export clean

$(VENV)/installed: requirements.txt
	$(PYTHON) -m venv "$(VENV)"
	"$(RUN)" -m pip install -r requirements.txt
	cp requirements.txt "$@"

demo: $(VENV)/installed
	"$(RUN)" scripts/demo.py $(if $(BUSI),--busi "$(BUSI)" --epochs 8)

test: $(VENV)/installed
	"$(RUN)" -m pytest

package: $(VENV)/installed
	"$(RUN)" scripts/package_bundle.py

export: $(VENV)/installed
	"$(RUN)" scripts/export.py --dataset_dir "$(DATA)"

clean:
	rm -rf "$(VENV)" runs/demo .pytest_cache
