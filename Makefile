# The executable theory of diffusion transformers.
#
# Every target works on a fresh clone with nothing but Python 3.11-3.13, make and git: it creates
# .venv and installs what it needs, once. pip reads its own variables; on Linux without a GPU,
# PIP_EXTRA_INDEX_URL pointing at a CPU wheel index saves gigabytes (see README.md).

VENV      := .venv
PY        := $(VENV)/bin/python
INSTALLED := $(VENV)/.installed
PAGES     := $(VENV)/.installed-pages
COURSE    := .venv-coursework
GRADER    := $(COURSE)/.installed
HTML      := _build/html
NOTEBOOKS  = $(wildcard book/*.ipynb)
PORT      ?= 8000

# One thread a process: the test workers already fill the cores, and sums stay reproducible.
export OMP_NUM_THREADS ?= 1
export MKL_NUM_THREADS ?= 1
export PYTHONDONTWRITEBYTECODE := 1
# Committed outputs say at which scale and on what they were made.
export GPTHEORY_SCALE ?= quick
export GPTHEORY_DEVICE ?= cpu

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.NOTPARALLEL:
.PHONY: help book pdf serve test lint unit test-devices test-notebooks test-portable notebooks \
        format ledger bench check-pages check-colab coursework check-coursework clean distclean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-17s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

# ---- set-up ---------------------------------------------------------------------------------

$(INSTALLED): requirements.txt pyproject.toml
	@python=$$(tools/find_python.sh) && { test -x $(PY) || "$$python" -m venv $(VENV); }
	$(PY) -m pip install --quiet --disable-pip-version-check -r requirements.txt
	$(PY) -m pip install --quiet --disable-pip-version-check --no-deps -e .
	@touch $@

$(PAGES): tools/requirements-pages.txt $(INSTALLED)
	$(PY) -m pip install --quiet --disable-pip-version-check -r $<
	@touch $@

# The grader pins packages of its own, so it has its own environment. That one reads the packages
# of .venv too (torch is not installed twice) and this package from src/; the kernel is its own.
$(GRADER): coursework/requirements.txt $(INSTALLED)
	@test -x $(COURSE)/bin/python || $(PY) -m venv $(COURSE)
	@site='import sysconfig; print(sysconfig.get_path("purelib"))'; \
	    { $(PY) -c "$$site"; echo "$(CURDIR)/src"; } > "$$($(COURSE)/bin/python -c "$$site")/book.pth"
	$(COURSE)/bin/python -m pip install --quiet --disable-pip-version-check -r $<
	$(COURSE)/bin/python -m ipykernel install --sys-prefix >/dev/null
	@touch $@

# ---- the book -------------------------------------------------------------------------------

book: $(INSTALLED) ## build the book into _build/html (every warning is an error)
	@# an incremental build forgets the warnings of unchanged pages, and old pages stay
	@test ! -d _build || find _build -mindepth 1 -maxdepth 1 ! -name coursework -exec rm -rf {} +
	$(VENV)/bin/jupyter-book build . -W --keep-going -n --builder html
	@echo
	@echo "The book:  $(HTML)/index.html"
	@echo "Serve it:  $(PY) -m http.server --directory $(HTML) --bind 127.0.0.1 $(PORT)"

pdf: $(PAGES) ## print the built book into _build/book.pdf (run `make book` first)
	$(PY) tools/book_pdf.py $(BOOK_PDF)

serve: book ## build the book and serve it on http://127.0.0.1:8000
	$(PY) -m http.server --directory $(HTML) --bind 127.0.0.1 $(PORT)

notebooks: $(INSTALLED) ## execute every notebook in place, measure it, put it in normal form
	$(PY) tools/execute_notebooks.py $(NOTEBOOKS)

ledger: $(INSTALLED) ## rewrite the pages of statements and of assumptions from book/*.toml and the markers
	$(PY) tools/ledger.py

# ---- tests ----------------------------------------------------------------------------------

test: lint unit test-devices test-notebooks ## everything that must hold: lint, normal form, ledger, tests, notebooks

lint: $(INSTALLED) ## style, formatting, notebooks in normal form, generated pages up to date
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(PY) tools/normalise_notebooks.py --check
	$(PY) tools/house.py --check
	$(PY) tools/ledger.py --check
	$(PY) tools/status.py --check
	$(PY) tools/chapter_map.py --check
	$(PY) tools/cover.py --check
	$(PY) tools/peers_page.py --check

unit: $(INSTALLED) ## the tests of the package, the tools and the book's hygiene
	$(PY) -m pytest tests -n 2

test-devices: $(INSTALLED) ## the device cases and the whole API on an accelerator that is not there
	PYTHONPATH=tests $(PY) -m pytest tests -p pretend_device -k "gpu or pretend"

test-notebooks: $(INSTALLED) ## execute every notebook and compare with the committed outputs
	$(PY) -m pytest --nbval --nbval-current-env --nbval-cell-timeout=600 \
	    --nbval-sanitize-with tools/nbval_sanitise.cfg -n 2 --dist loadfile $(NOTEBOOKS)

test-portable: $(INSTALLED) ## what rounding could fail, computed as other processors do (PORTABLE=avx2 ...)
	$(PY) tools/portable.py $(PORTABLE)

format: $(INSTALLED) ## format the code and the notebooks, fix what ruff can fix
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .
	$(PY) tools/normalise_notebooks.py

bench: $(INSTALLED) ## side-by-side timings against named peers
	$(PY) -m benchmarks $(BENCH)

check-pages: $(PAGES) ## check every built page in headless Chromium (run `make book` first)
	$(PY) tools/check_pages.py $(CHECK_PAGES)

check-colab: $(INSTALLED) ## run the notebooks where torch is installed and the package is not
	$(PY) tools/check_colab.py $(CHECK_COLAB)

# ---- the classroom --------------------------------------------------------------------------

coursework: $(GRADER) ## make the student and autograder versions of the problem sets
	$(COURSE)/bin/python tools/build_coursework.py

check-coursework: coursework ## prove that the problem sets grade as planned
	$(COURSE)/bin/python tools/check_coursework.py

# ---- cleaning -------------------------------------------------------------------------------

clean: ## remove what was built, keep the environment
	rm -rf _build .pytest_cache .ruff_cache book/.ruff_cache .hypothesis .coverage
	find src tests tools book benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +

distclean: clean ## remove the environment too
	rm -rf $(VENV) $(COURSE) src/*.egg-info
