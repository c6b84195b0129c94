# make run    execute all notebooks and print the comparison   (TIER=embedded|laptop|hub|synthetic make run chooses the models)
# make test   run every test, and every notebook as a test
# make lab    open JupyterLab on the notebooks
# make clean  delete .venv (your results stay)
#
# For those who work on the course (CONTRIBUTING.md):
# make check      lint, layout, saved outputs, badges: fit to commit?        make format mends what can be mended
# make test-fast  the tests that take a few minutes together                 (make test runs all)
# make notebooks  every notebook as a test, on the embedded models
# make links      ask every address that a page names; needs the network
# make badges     write the course's address on GitHub, that of origin, into badges, links and set-up cells   (REPOSITORY=owner/name for another)
# make exercises  write the exercise notebooks from notebooks/exercises/source; solved ones for teachers into notebooks/exercises/solutions
# make platforms  fetch today's package lists of Colab and Kaggle into platforms/   (PLATFORM=colab for one)
# make replica LIST=platforms/colab.txt [PYTHON_VERSION=3.13]   run every notebook in an environment built from a platform's pip freeze
# make t4         compile, without a GPU, what the course would compile on a T4   (T4_PYTHON=environment/bin/python with CUDA's torch)
# make gpu        on a machine with a CUDA GPU: all tests that need one, and a run of the four steps to contribute   (WHEELS=folder: offline)
# make static     look up every call of torch and transformers in the installed versions
# make data       build the small models in data/ again from their seed
# make picture    draw the README's picture again from its recorded rows
# make book       the course as a site to read, with what your run printed and drew: book/index.html in the results folder
# make prose      a report on the notebooks' English: long sentences, rare words
# make wall CLASS=folder   all ledgers of a class on one page   (HIDE_NAMES=1: with numbers in place of names)
# make slides     a deck of slides of each notebook, with the outputs of your last make run
# make stick FOLDER=folder   the course with all packages, for a room without a network, tried at once   (STICK="--lean": docs/teaching/plan-b.md)
# make before DATE=2026-12-05   what is to be done before a workshop, and what is done
# Without make (Windows): docs/windows.md

PYTHON ?= python3
BIN := .venv/bin
CHECK ?= .venv/check
ALONE := tests/test_busy.py tests/test_verdicts.py
SLOW := article_stack data_build hub laptop quantise real_model serving stick tools_gpu verdicts

.PHONY: run test test-fast notebooks lab data picture badges exercises check format links platforms replica t4 gpu static book prose wall slides stick before clean

run: .venv/ready
	@$(BIN)/python -m tools.run

# The notebooks and what measures beside other programs of its own have the machine to themselves; all other tests run three at a time
# (some of them wait most of the time), with threads that sleep while they wait: those of two processes that spin take three times as long.
SIDE_BY_SIDE := OMP_WAIT_POLICY=PASSIVE OPENBLAS_NUM_THREADS=1 $(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder
NBMAKE := --nbmake --nbmake-timeout=900

test: .venv/tools .venv/book
	@TEST_RESULTS="$$(mktemp -d)"; export TEST_RESULTS; \
	$(BIN)/python -m pytest -v $(NBMAKE) notebooks/*.ipynb $(ALONE); measured=$$?; \
	$(SIDE_BY_SIDE) -v $(NBMAKE) $(ALONE:%=--ignore=%) notebooks/teaching tests && exit $$measured

test-fast: .venv/tools .venv/book
	@$(SIDE_BY_SIDE) -q $(SLOW:%=--ignore=tests/test_%.py) tests

notebooks: .venv/tools
	@TIER=embedded RESULTS_DIR="$$(mktemp -d)" $(BIN)/python -m pytest -v $(NBMAKE) notebooks

lab: .venv/lab
	@$(BIN)/jupyter lab --notebook-dir=notebooks

data: .venv/ready
	@$(BIN)/python -m data.build

picture: .venv/ready
	@$(BIN)/python -m tools.picture

book: .venv/book
	@$(BIN)/python -m tools.book

prose: .venv/prose
	@$(BIN)/python -m tools.prose

wall: .venv/ready
	@HIDE_NAMES="$(HIDE_NAMES)" $(BIN)/python -m tools.wall "$(CLASS)"

slides: .venv/slides
	@$(BIN)/python -m tools.slides

stick: .venv/tools
	@$(BIN)/python -m tools.stick "$(FOLDER)" $(STICK)

before: .venv/ready
	@$(BIN)/python -m tools.before "$(DATE)"

badges: $(CHECK)/ready
	@$(CHECK)/bin/python -m tools.badges $(REPOSITORY)

exercises: $(CHECK)/ready
	@$(CHECK)/bin/python -m tools.exercises

check: $(CHECK)/ready
	@$(CHECK)/bin/python -m tools.check

format: $(CHECK)/ready
	@$(CHECK)/bin/python -m tools.check --fix

links: $(CHECK)/ready
	@$(CHECK)/bin/python -m tools.links

platforms: $(CHECK)/ready
	@$(CHECK)/bin/python -m tools.platforms $(PLATFORM)

replica: .venv/tools
	@$(BIN)/python -m tools.replica $(LIST) $(if $(PYTHON_VERSION),--python $(PYTHON_VERSION)) $(if $(FOLDER),--folder $(FOLDER))

t4: .venv/tools
	@$(BIN)/python -m tools.t4 $(if $(T4_PYTHON),--python $(T4_PYTHON)) $(if $(CAPABILITY),--capability $(CAPABILITY))

gpu:
	@$(PYTHON) -m tools.gpu $(if $(WHEELS),--wheels $(WHEELS))

static: .venv/ready
	@$(or $(PYTHON_OF),$(BIN)/python) -m tools.static

.venv/ready: requirements.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 11) <= v <= (3, 13) else "This course needs Python 3.11, 3.12 or 3.13, and $(PYTHON) is %d.%d: name another one, e.g. make run PYTHON=python3.12" % v)'
	@echo "Setting up .venv (once; it takes a few minutes) ..."
	@$(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	@touch $@

# What notebooks 11 to 16 would add by themselves, so that the tests do not depend on their order.
.venv/tools: requirements/llamacpp.txt requirements/onnx.txt requirements/serving.txt requirements/formats.txt requirements/uv.txt .venv/ready
	@echo "Adding the tools of notebooks 11 to 16 (once) ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps $(foreach file,$(filter requirements/%,$^),-r $(file))
	@touch $@

# What a target adds for itself: .venv/lab, .venv/slides, .venv/book, .venv/prose
.venv/%: requirements/%.txt .venv/ready
	@echo "Adding requirements/$*.txt (once) ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -r $<
	@touch $@

# An environment of its own, without torch: a check answers within seconds.
$(CHECK)/ready: requirements/check.txt
	@$(PYTHON) -m venv $(CHECK)
	@$(CHECK)/bin/python -m pip install --quiet --disable-pip-version-check -r requirements/check.txt
	@touch $@

clean:
	rm -rf .venv
