# Everything sets itself up in .venv/; needed: Rust, Python >= 3.10, the package registries.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
SOURCES := $(shell find src Cargo.toml Cargo.lock pyproject.toml -type f)

.DEFAULT_GOAL := help
.PHONY: help demo test check docs wheel bench notebooks clean

help: ## Show this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12

$(VENV)/built: $(SOURCES) # an editable install: the tree itself imports
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	# Two at once: the one waits for the compiler, the other for the network.
	$(PIP) --no-deps --editable . & $(PIP) torch torchvision && wait $$!
	$(PIP) --editable '.[dev]'
	touch $@

demo: $(VENV)/built ## Select a quarter of real data and train on it (ARGS="--data fashion-mnist --data-root DIR")
	$(BIN)/python -m sage_torch demo $(ARGS)

test: $(VENV)/built ## Run all tests but the slow ones (ARGS="-m slow" for those)
	cargo test --release --no-default-features --quiet
	$(BIN)/python -m pytest -n logical --maxprocesses 8 \
		--dist loadscope --no-loadscope-reorder $(ARGS)

check: $(VENV)/built ## Formatting, lints, types, stubs, doctests: all that CI runs before the tests
	cargo fmt --check
	cargo clippy --release --all-targets --quiet -- -D warnings
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache
	$(BIN)/stubtest sage_torch._core
	$(BIN)/python -m pytest --doctest-modules sage_torch -q

docs: $(VENV)/built ## Build the documentation into site/; any warning is an error
	$(BIN)/zensical build --clean --strict

wheel: $(VENV)/built ## Build the wheel for Python 3.10 and later, any torch from 2.6 on, glibc 2.17
	PATH="$(CURDIR)/$(BIN):$$PATH" maturin build --quiet --release --zig --compatibility manylinux_2_17 --out dist

bench: $(VENV)/built ## Measure again: benchmarks/results/*.json and RESULTS.md
	$(PIP) 'cleanlab>=2.9' 'opacus>=1.5' 'timm>=1.0'
	for script in sketch rates selection memory indices recut duplicate_rows gradients derived_weights cost determinism; do \
		$(BIN)/python -m benchmarks.speed.$$script || exit; done
	for script in subset compression gate_power; do \
		$(BIN)/python -m benchmarks.quality.$$script || exit; done
	# These need SAGE_TORCH_DATA: the folder of the papers' data.
	$(BIN)/python -m benchmarks.speed.modes
	$(BIN)/python -m benchmarks.speed.stream
	$(BIN)/python -m benchmarks.speed.shards --data fashion-mnist
	$(BIN)/python -m benchmarks.quality.labels # goes on where it stopped
	$(BIN)/python -m benchmarks.quality.duplicates
	$(BIN)/python -m benchmarks.choices.consensus
	$(BIN)/python -m benchmarks.choices.sketch_size
	$(BIN)/python -m benchmarks.choices.sketch_rows # goes on where it stopped
	$(BIN)/python -m benchmarks.quality.quality # hours; goes on where it stopped
	$(BIN)/python -m benchmarks.results.page

notebooks: $(VENV)/built ## Execute the notebooks in place
	$(BIN)/jupyter-execute --inplace notebooks/*.ipynb

clean: ## Remove what was built
	rm -rf $(VENV) .cache site target dist sage_torch/*.so
