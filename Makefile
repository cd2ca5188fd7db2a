# make demo   the main job: the sample app without and with backpressure in a 256 MB limit, under the same burst
# make test   every test that needs neither Docker nor a second kernel
# make servers   what clients see on each of the servers, written to docs/servers.md; make coverage: with branches
# make lint   ruff, mypy, the import contract
# make arena  the overload benchmark, in under 15 minutes; make arena-full: everything, and the fixed limits swept anew
# make soak   ten minutes at twice what fits; make guard-cost: allocations with and without the guard
# make bench  what the middleware costs, beside others: docs/cost.md; make instructions: that it costs no more than before

PYTHON ?= python3
BIN := .venv/bin
SOURCES := pyproject.toml setup.py $(wildcard resource_monitor/_native/*.[ch] resource_monitor/_native/turn/*.[ch] resource_monitor/_native/build.py)

.DELETE_ON_ERROR:
.PHONY: demo test servers coverage lint arena arena-full soak guard-cost bench instructions clean

demo: .venv/installed-demo
	$(BIN)/python examples/demo.py $(ARGS)

test: .venv/installed-dev
	$(BIN)/pytest $(ARGS)

servers: .venv/installed-dev
	$(BIN)/pytest -q tests/servers --table docs/servers.md $(ARGS)

coverage: .venv/installed-dev
	$(BIN)/pytest --cov --cov-report=term-missing:skip-covered $(ARGS)

lint: .venv/installed-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

arena: .venv/installed-dev
	$(BIN)/python -m benchmarks.overload --seconds 8 --json report/arena.jsonl $(ARGS)

arena-full: .venv/installed-dev
	$(BIN)/python -m benchmarks.overload --sweep --scenarios all
	$(BIN)/python -m benchmarks.overload --strategies all --scenarios all --seeds 1,2,3 --json report/arena-full.jsonl --resume --docs $(ARGS)
	$(BIN)/python -m benchmarks.overload.judge report/arena-full.jsonl

soak: .venv/installed-dev
	$(BIN)/python -m benchmarks.overload.soak $(ARGS)

guard-cost: .venv/installed-dev
	$(BIN)/python -m benchmarks.guard_cost $(ARGS)

bench: .venv/installed-dev
	$(BIN)/python -m benchmarks.cost --json report/cost.json --docs $(ARGS)
	$(BIN)/python -m benchmarks.cost.judge report/cost.json

instructions: .venv/installed-dev
	$(BIN)/python -m benchmarks.cost.instructions $(ARGS)

clean:
	rm -rf .venv build dist report *.egg-info resource_monitor/_native/*.so resource_monitor/_native/_probe.c

.venv/bin/pip:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; set PYTHON=.")'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --upgrade pip

.venv/installed-demo: .venv/bin/pip $(SOURCES)
	$(BIN)/pip install --quiet --editable '.[demo]'
	touch $@

.venv/installed-dev: .venv/bin/pip $(SOURCES)
	$(BIN)/pip install --quiet --editable '.[demo]' --group dev --group bench
	touch $@
