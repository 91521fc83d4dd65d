# Two commands do everything, set-up included: `make tune` and `make test`.

SHELL := /bin/bash
.SHELLFLAGS := -o pipefail -c

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# What the machine code of the GPU kernels was counted with; a CUDA build of torch brings its own.
TRITON ?= triton==3.6.0
# Of pip's output the name of each package, and the step that takes longest.
BRIEFLY := awk '/^Collecting/ { sub(/[^A-Za-z0-9._-].*/, "", $$2); print "  " $$2 } \
	/^Installing collected/ { print "  installing all of them" } { fflush() }'
ARGS ?=
# Processes that the tests share: one more than two CPUs, since many tests wait for a process of their own. Threads that
# wait must not spin: they would take the CPUs of the other processes.
JOBS ?= 3

.PHONY: tune test test-timing test-arm fuzz check lint types docs wheel clean

tune: $(VENV)/.ready
	$(BIN)/python -m scanlab tune $(ARGS)

test: $(VENV)/.ready
	OMP_WAIT_POLICY=passive $(BIN)/python -m pytest -n $(JOBS) --dist worksteal -m "not timing" $(ARGS)

# Tests that read a clock and need a quiet machine, one at a time.
test-timing: $(VENV)/.ready
	$(BIN)/python -m pytest -m timing $(ARGS)

# The wheel for Linux on Arm, on an emulated processor; needs Debian's qemu-user and g++-aarch64-linux-gnu.
test-arm: $(VENV)/.ready
	$(BIN)/python tests/arm/emulate.py

# Random calls of every op for some minutes; with SANITIZE=1 under AddressSanitizer and UBSan, and the core of the scan
# under ThreadSanitizer.
MINUTES ?= 5
SANITIZE ?=
fuzz: $(VENV)/.ready
	PYTHONPATH=tests OMP_WAIT_POLICY=passive $(BIN)/python -m fuzz.campaign --minutes $(MINUTES) $(if $(SANITIZE),--sanitize) $(ARGS)
	$(if $(SANITIZE),$(BIN)/python tests/kernels/selective_scan/native_core/verify.py thread)

# The documentation site, in build/site; links and references are checked.
docs: $(VENV)/.ready
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build

# The wheel that brings its kernels, in dist/, checked with auditwheel.
wheel: $(VENV)/.ready
	$(BIN)/python kernels/wheel.py

check: lint types test

lint: $(VENV)/.ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	git ls-files '*.h' '*.cpp' | xargs $(BIN)/clang-format --dry-run -Werror

types: $(VENV)/.ready
	$(BIN)/mypy scanlab kernels/scanlab_kernels
	$(BIN)/mypy --config-file tests/mypy.ini tests

$(VENV)/.ready: pyproject.toml constraints.txt
	@echo "Setting up $(VENV), once, with the packages of constraints.txt: about a minute with pip's cache, and the download."
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --progress-bar off --no-compile -c constraints.txt -e '.[dev]' | $(BRIEFLY)
	@case $$(uname) in Linux) $(BIN)/python -c 'import triton' 2>/dev/null || $(BIN)/python -m pip install --quiet '$(TRITON)' ;; esac
	@touch $@
	@echo "Set-up done. The C++ kernels are compiled at their first use, which takes a minute or two."

clean:
	rm -rf build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
