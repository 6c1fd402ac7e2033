# One command per thing that a person does with this tree; `make` lists them.
# Recipes only: what the build consists of is in packaging/setup.sh.

PYTHON_IN_TREE := .venv/bin/python -I
ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help build demo test softroce test-rdma check bench dist dist-zipapp dist-binary sbom deb man completion clean distclean

help: ## list these targets
	@awk -F ':.*## ' '/^[a-z][a-z-]*:.*## / { printf "make %-12s%s\n", $$1, $$2 }' Makefile
	@echo
	@echo 'ARGS=... goes to pytest (test) and to the benchmarks (bench);'
	@echo 'PYTHON=... names the Python (3.10 or newer) that .venv is made from.'

build: ## set up everything: system packages, .venv, native modules, functions/
	@packaging/setup.sh

demo: build ## the whole path on this machine: lease, invoke, result, and how long each took
	@./rfaas.py demo

test: build ## run the tests; installs what they run besides (packaging/container-engines.sh)
	@packaging/container-engines.sh
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

dist: dist-zipapp dist-binary ## both one-file programs, in dist/, the same bytes each time; ROOT=DIR

dist-zipapp: build ## dist/rfaas, for nodes with Python: each of those here; PYTHONS=... names them
	@$(if $(ROOT),RFAAS_SYSROOT=$(abspath $(ROOT))) $(PYTHON_IN_TREE) packaging/build_zipapp.py $(PYTHONS)
	@$(PYTHON_IN_TREE) packaging/sbom.py dist/rfaas

dist-binary: build ## dist/rfaas-linux-x86_64, for nodes without; ROOT=DIR: in an older Debian there
	@$(PYTHON_IN_TREE) packaging/build_binary.py \
	    $(if $(ROOT),--root $(ROOT) --python /opt/python/bin/python3)
	@$(PYTHON_IN_TREE) packaging/sbom.py dist/rfaas-linux-x86_64

sbom: ## what each program in dist/ carries, as CycloneDX JSON beside it
	@$(PYTHON_IN_TREE) packaging/sbom.py $(wildcard dist/rfaas dist/rfaas-linux-x86_64)

deb: dist-zipapp ## a Debian package of dist/rfaas with units, manual and completion
	@$(PYTHON_IN_TREE) packaging/build_deb.py

man: build ## the manual, from the command line's parser: build/man
	@$(PYTHON_IN_TREE) packaging/build_man.py build/man

completion: build ## the shells' completion, as `rfaas completion` prints it: build/completion
	@mkdir -p build/completion
	@./rfaas.py completion bash >build/completion/rfaas.bash
	@./rfaas.py completion zsh >build/completion/_rfaas
	@./rfaas.py completion fish >build/completion/rfaas.fish

clean: ## remove what was built, but for .venv
	rm -rf build dist rfaas.egg-info rfaas/*/*.so functions/*.so demo-output
	rm -rf .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +

distclean: clean ## remove .venv as well
	rm -rf .venv
