# Two commands on a fresh machine: `make demo` and `make test`. README.md has the plain commands that they stand for.
PYTHON ?= python3
VENV ?= .venv
RUN := $(VENV)/bin/python

.PHONY: demo test clean

$(VENV)/installed: requirements.txt
	$(PYTHON) -m venv "$(VENV)"
	"$(RUN)" -m pip install -r requirements.txt
	cp requirements.txt "$@"

demo: $(VENV)/installed
	"$(RUN)" scripts/demo.py $(if $(BUSI),--busi "$(BUSI)" --epochs 8)

test: $(VENV)/installed
	"$(RUN)" -m pytest

clean:
	rm -rf "$(VENV)" runs/demo .pytest_cache
