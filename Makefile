# Everything installs into .venv from pyproject.toml and the exact releases in constraints.txt.
PYTHON ?= python3.11
BIN := .venv/bin
INSTALLED := .venv/installed

.PHONY: demo test lint bench clean

demo: $(INSTALLED)
	$(BIN)/edgebuild build benchmarks/solar_cells.py -t robot-raspberry-pi-5 -o dist/solar-cells

test: $(INSTALLED)
	$(BIN)/pytest -n 2

lint: $(INSTALLED)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(INSTALLED)
	$(BIN)/edgebuild build benchmarks/solar_cells.py -t host -o dist/solar-cells-host
	$(BIN)/python benchmarks/readme_table.py dist/solar-cells-host

clean:
	rm -rf .venv dist

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt \
		--editable '.[benchmarks,hf,test]'
	touch $@
