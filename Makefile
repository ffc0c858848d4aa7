# Each target sets up what it needs, once, in a virtual environment of its own.
# Any Python from 3.11 on will do: make test PYTHON=python3.12

PYTHON ?= python3
VENV ?= .venv
IN_VENV := $(VENV)/bin/python
INSTALLED := $(VENV)/.installed-
OPTIONS ?=
TABLE ?=
PEERS ?=

.NOTPARALLEL:
.PHONY: help demo test docs looks lint notebooks bench bench-check dist clean

help:
	@echo "make demo         train with and without clipping, and draw what clipping did"
	@echo "make test         run the tests"
	@echo "make docs         build the documentation"
	@echo "make looks        open the documentation and a report in a browser, and check them"
	@echo "make lint         check style and types"
	@echo "make notebooks    run the notebooks"
	@echo "make bench        measure speed: all of benchmarks/RESULTS.md, or TABLE=NAME"
	@echo "make bench-check  compare what programs cost with the committed counts"
	@echo "make dist         build wheel and sdist, and try them in an empty environment"
	@echo "make clean        remove everything that the above have made"

demo: $(INSTALLED)demos
	$(VENV)/bin/clipjax compare --out demo $(OPTIONS)
	@echo "The report is demo/report.html: open it in a browser."

test: $(INSTALLED)demos-test
	$(IN_VENV) -m pytest -n 2 --dist worksteal --durations 15 $(OPTIONS)

docs: $(INSTALLED)demos-docs
	$(IN_VENV) -m sphinx --fail-on-warning --keep-going --quiet docs docs/_build/html
	@echo "The first page is docs/_build/html/index.html."

# Of `make demo`, where there is one; else the tests make a short comparison.
looks: $(INSTALLED)demos-test-docs-browser docs
	$(if $(wildcard demo/report.html),CLIPJAX_REPORT=demo) \
		$(IN_VENV) -m pytest tests/browser $(OPTIONS)

lint: $(INSTALLED)demos-test-bench-docs-lint
	$(IN_VENV) -m ruff check .
	$(IN_VENV) -m ruff format --check .
	$(IN_VENV) -m pyright --pythonpath $(IN_VENV)

notebooks: $(INSTALLED)demos-test
	$(IN_VENV) -m pytest --nbmake notebooks $(OPTIONS)

# PEERS=yes also installs PyTorch and Opacus, to compare with them.
bench: $(INSTALLED)bench$(if $(PEERS),-peers)
	$(IN_VENV) -m benchmarks $(TABLE) $(OPTIONS)

bench-check: $(INSTALLED)bench
	$(IN_VENV) -m benchmarks.check $(OPTIONS)

dist: $(INSTALLED)dist
	rm -rf dist
	$(IN_VENV) -m build --outdir dist .
	$(IN_VENV) -m twine check --strict dist/*
	$(IN_VENV) .ci/check_packages.py dist

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
