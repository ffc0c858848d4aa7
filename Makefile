# Each target sets up what it needs, once, in a virtual environment of its own.
# Any Python from 3.11 on will do: make test PYTHON=python3.12

PYTHON ?= python3
VENV ?= .venv
IN_VENV := $(VENV)/bin/python
INSTALLED := $(VENV)/.installed-
OPTIONS ?=

# Most of the time of the tests goes into compiling what then runs once. These flags halve
# it: XLA's older emitters of code for CPUs, and LLVM without its passes.
WITH_LITTLE_EFFORT := --xla_cpu_use_fusion_emitters=false \
	--xla_cpu_parallel_codegen_split_count=1 --xla_backend_optimization_level=0 \
	--xla_llvm_disable_expensive_passes=true
TESTS := $(IN_VENV) -m pytest -n 2 --dist worksteal $(OPTIONS)
# OPTIONS may select tests of one kind only, and pytest fails where it finds none.
OR_NONE := $(if $(OPTIONS),|| [ $$? -eq 5 ])

.NOTPARALLEL:
.PHONY: help demo test test-optimized test-unoptimized docs lint notebooks benchmark clean

help:
	@echo "make demo       train with and without clipping, and draw what clipping did"
	@echo "make test       run the tests"
	@echo "make docs       build the documentation"
	@echo "make lint       check style and types"
	@echo "make notebooks  run the notebooks"
	@echo "make benchmark  measure speed"
	@echo "make clean      remove everything that the above have made"

demo: $(INSTALLED)demos
	$(VENV)/bin/clipjax compare --out demo $(OPTIONS)
	@echo "The report is demo/report.html: open it in a browser."

test: test-optimized test-unoptimized

test-optimized: $(INSTALLED)demos-test
	$(TESTS) -m optimized $(OR_NONE)

test-unoptimized: $(INSTALLED)demos-test
	XLA_FLAGS="$$XLA_FLAGS $(WITH_LITTLE_EFFORT)" $(TESTS) -m "not optimized" $(OR_NONE)

docs: $(INSTALLED)demos-docs
	$(IN_VENV) -m sphinx --fail-on-warning --keep-going --quiet docs docs/_build/html
	@echo "The first page is docs/_build/html/index.html."

lint: $(INSTALLED)demos-test-bench-docs-lint
	$(IN_VENV) -m ruff check .
	$(IN_VENV) -m ruff format --check .
	$(IN_VENV) -m pyright --pythonpath $(IN_VENV)

notebooks: $(INSTALLED)demos-test
	$(IN_VENV) -m pytest --nbmake notebooks $(OPTIONS)

# Each command fails where a gate is missed; the others run all the same.
benchmark: $(INSTALLED)bench
	@status=0; for name in compile step train_step; do \
		$(IN_VENV) -m benchmarks.$$name || status=1; \
	done; exit $$status

clean:
	rm -rf $(VENV) demo dist docs/_build .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# .installed-demos-test marks that the extras "demos" and "test" are in place.
comma := ,
$(INSTALLED)%: pyproject.toml $(VENV)/.created
	@echo "Installing clipjax[$(subst -,$(comma),$*)] in $(VENV)"
	@$(IN_VENV) -m pip --disable-pip-version-check install --quiet \
		--editable ".[$(subst -,$(comma),$*)]"
	@touch $@

$(VENV)/.created:
	@version=$$($(PYTHON) -c 'import sys; print(*sys.version_info[:3], sep=".")' \
			2>/dev/null) || { \
		echo "clipjax needs Python 3.11 or later, and $(PYTHON) does not run:" \
			"name one with PYTHON=..." >&2; exit 1; }; \
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "clipjax needs Python 3.11 or later, and $(PYTHON) is $$version:" \
			"name another with PYTHON=..." >&2; exit 1; }
	@$(PYTHON) -m venv --clear $(VENV) || { \
		echo "$(PYTHON) cannot make a virtual environment:" \
			"install its venv module, or name another with PYTHON=..." >&2; exit 1; }
	@touch $@
