# One command per thing that a person does with this tree; `make` lists them.
# Recipes only: what the build consists of is in packaging/setup.sh.

PYTHON_IN_TREE := .venv/bin/python -I
ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help build demo test softroce test-rdma check bench man completion clean distclean

help: ## list these targets
	@awk -F ':.*## ' '/^[a-z][a-z-]*:.*## / { printf "make %-12s%s\n", $$1, $$2 }' Makefile
	@echo
	@echo 'ARGS=... goes to pytest (test) and to the benchmarks (bench);'
	@echo 'PYTHON=... names the Python (3.10 or newer) that .venv is made from.'

build: ## set up everything: system packages, .venv, native modules, functions/
	@packaging/setup.sh

demo: build ## the whole path on this machine: lease, invoke, result, and how long each took
	@./rfaas.py demo

test: build ## run the tests
	@$(PYTHON_IN_TREE) -m pytest $(ARGS)

softroce: ## build the guest that has RDMA devices, once (ten minutes; packaging/softroce)
	@packaging/softroce/build-kernel

test-rdma: build ## run the RDMA tests in that guest, or here: ARGS='--rdma-device NAME'
	@packaging/softroce/test $(ARGS)

check: build man ## all that CI checks beside the tests: format, lint, types, warnings, rules
	$(PYTHON_IN_TREE) -m ruff format --check
	$(PYTHON_IN_TREE) -m ruff check
	$(PYTHON_IN_TREE) -m mypy
	RFAAS_WERROR=1 $(PYTHON_IN_TREE) setup.py -q build_ext --force --parallel 2 \
	    --build-lib build/check/lib --build-temp build/check/temp
	$(MAKE) --no-print-directory -C functions CFLAGS='-O3 -Werror' \
	    LIBRARY='$(CURDIR)/build/check/libfunctions.so'
	$(PYTHON_IN_TREE) -m pytest -q tests/test_project.py

bench: build ## measure everything (minutes); docs/benchmarks.md says what the figures mean
	@for what in hot warm cold throughput payload; do ./rfaas.py bench $$what $(ARGS) || exit; done

man: build ## build/man/rfaas.1 from the command line's parser
	@mkdir -p build/man
	@$(PYTHON_IN_TREE) -c 'from argparse_manpage.cli import main; main()' \
	    --module rfaas.cli --function build_parser --prog rfaas --manual-title rFaaS \
	    --project-name rfaas --version "$$($(PYTHON_IN_TREE) -c 'import rfaas; print(rfaas.__version__)')" \
	    --description 'elastic remote cores at network speed' --output build/man/rfaas.1

completion: build ## shell completion from the same parser: build/completion
	@mkdir -p build/completion
	@$(PYTHON_IN_TREE) -m shtab --error-unimportable --prog rfaas --shell bash \
	    --output build/completion/rfaas.bash rfaas.cli.build_parser
	@$(PYTHON_IN_TREE) -m shtab --error-unimportable --prog rfaas --shell zsh \
	    --output build/completion/_rfaas rfaas.cli.build_parser

clean: ## remove what was built, but for .venv
	rm -rf build dist rfaas.egg-info rfaas/*/*.so functions/*.so demo-output
	rm -rf .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +

distclean: clean ## remove .venv as well
	rm -rf .venv
