# Everything installs into .venv from pyproject.toml and the exact releases in constraints.txt. Byte
# code is left to the first import: of twenty thousand files few are imported, and to compile them
# all takes as long as to fetch them. That import must be allowed to keep it, or else each of the
# many processes compiles all that it imports anew.
unexport PYTHONDONTWRITEBYTECODE
PYTHON ?= python3.11
BIN := .venv/bin
INSTALL := $(BIN)/pip install --quiet --disable-pip-version-check --no-compile
INSTALLED := .venv/installed

.PHONY: demo test test-devices lint bench bench-search bench-predictor bench-llm clean

demo: $(INSTALLED)
	$(BIN)/edgebuild build benchmarks/solar_cells.py -t robot-raspberry-pi-5 -o dist/solar-cells

# Each worker computes on one core: threads of two workers would only wait for each other.
test: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist worksteal

# Fetches an sshd, an adbd, what runs ARM64 programs and a compiler for them first; `make test` then
# runs these tests as well.
test-devices: $(INSTALLED)
	$(BIN)/python tests/devices/parts.py
	$(BIN)/python -m edgebuild.arm64
	$(INSTALL) --constraint constraints.txt --editable '.[native]'
	$(BIN)/pytest -rs tests/devices tests/contracts/test_devices.py \
		tests/bundles/test_arm_proof.py tests/bundles/test_native.py

lint: $(INSTALLED)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(INSTALLED)
	$(BIN)/edgebuild build benchmarks/solar_cells.py -t host -o dist/solar-cells-host
	$(BIN)/python benchmarks/readme_table.py dist/solar-cells-host

# Hours on two cores; goes on where it was cut off. EDGEBUILD_DATA names the folder of the
# data that no package ships; workloads without their data are left out.
bench-search: $(INSTALLED)
	$(BIN)/python benchmarks/search/compare.py
	$(BIN)/python benchmarks/search/recovery.py

# Three quarters of an hour and forty gigabytes of disk; for two of its four tasks Gemma-3-270M.
# Peers come from PyPI and npm on first use, into the user's cache.
bench-llm: $(INSTALLED)
	$(BIN)/python benchmarks/language_models/llm_comparison.py

# A quarter of an hour on a machine that does nothing else: it probes this machine, and measures
# networks on it.
bench-predictor: $(INSTALLED)
	$(BIN)/python benchmarks/predictor.py

clean:
	rm -rf .venv dist

$(INSTALLED): pyproject.toml constraints.txt benchmarks/files.txt
	$(PYTHON) -m venv .venv
	$(INSTALL) --constraint constraints.txt --editable '.[benchmarks,hf,test,train]'
	$(INSTALL) --no-deps --requirement benchmarks/files.txt
	touch $@
