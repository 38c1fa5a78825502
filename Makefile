# Everything this project runs. Virtual environments live in .venvs/, one for each Python.

# CPython 3.10 or newer, oldest first. Looked for once, when first needed; or name them:
#   make test PYTHONS="3.11 3.12"
PYTHONS = $(eval PYTHONS := $$(shell scripts/pythons 2>/dev/null | cut -d' ' -f1))$(PYTHONS)
OLDEST = $(firstword $(PYTHONS))
NEWEST = $(lastword $(PYTHONS))
WORKERS = 4  # of pytest; each has servers of its own, and most of the time waits for them
TESTED = $(sort $(OLDEST) $(NEWEST))
BIN = .venvs/$(NEWEST)/bin

.PHONY: help test check lint types walls docs format matrix accounting web-servers compat demo bench \
	venvs system clean

help:  ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-11s %s\n", $$1, $$2 }' Makefile

# The slowest run on the newest Python only: the matrix of drivers (by `make matrix` on both) and the
# frameworks' own tests (by `make compat`).
test: venvs  ## Run all tests, on the oldest and the newest Python here
	rm -f .coverage
	@for python in $(TESTED); do \
		echo "== Python $$python"; \
		test $$python = $(NEWEST) && some= || \
			some="--ignore=tests/servers/test_matrix.py --ignore=tests/compat --ignore=tests/benchmarks"; \
		.venvs/$$python/bin/python -m pytest -n $(WORKERS) --dist loadscope --cov --cov-append \
			$$some || exit; \
	done

check: lint types walls docs  ## Run the linters, the type checker, the import walls, build the docs

lint: venvs
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: venvs
	$(BIN)/mypy

walls: venvs
	$(BIN)/lint-imports

docs: venvs  ## Build the documentation into docs/_build
	$(BIN)/sphinx-build -W --keep-going -q docs docs/_build

format: venvs  ## Format the code and fix what the linter can fix
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

matrix: venvs  ## Write docs/reference/drivers.md anew
	@for python in $(TESTED); do \
		.venvs/$$python/bin/python -m pytest tests/servers/test_matrix.py --write-matrix || exit; \
	done

accounting: venvs  ## Write docs/reference/accounting.md anew: every adapter for 20 seconds
	$(BIN)/python -m pytest tests/adapters -k Accounting --accounting

web-servers: venvs  ## Write docs/reference/web-servers.md anew
	$(BIN)/python -m pytest tests/web -k test_page --write-web-servers

compat: venvs  ## Write docs/reference/compatibility.md anew: all of the frameworks' own tests
	@for python in $(TESTED); do \
		.venvs/$$python/bin/python -m pytest tests/compat --compat || exit; \
	done

demo: .venvs/demo/.ready  ## Run the example app through a database outage
	.venvs/demo/bin/python -m example_app drill

bench: venvs  ## Write docs/reference/benchmarks.md anew: half an hour, on a machine that does nothing else
	$(BIN)/python -m benchmarks stress --write docs/reference/benchmarks.md

venvs: system  ## Create or update the virtual environments
	@$(MAKE) --silent --jobs=2 $(TESTED:%=.venvs/%/.ready)

system:
	@scripts/system-packages

clean:  ## Remove the virtual environments and everything else that was made
	rm -rf .venvs .coverage .hypothesis .*_cache dist docs/_build
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +

# A virtual environment is ready when its stamp is newer than pyproject.toml.
# $(call venv,the Python,the extra)
define venv
	@echo "Installing into $(@D)"
	@python=$$(scripts/pythons $(1)) && "$$python" -m venv $(@D)
	@$(@D)/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[$(2)]'
	@touch $@
endef

.venvs/demo/.ready: pyproject.toml
	$(call venv,$(NEWEST),example)

.venvs/%/.ready: pyproject.toml
	$(call venv,$*,dev)
