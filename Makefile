PYTHON ?= python3
BIN := .venv/bin

.PHONY: run test chaos churn fuzz lint format bench bench-quick clean

# A pushd to try: it brings its own broker, so that nothing else has to be installed.
run: .venv/installed
	$(BIN)/twistd -n pushd --port 8888 --channel updates --redis embedded

# The pure and core floors: their tests take every branch.
FLOORS := pushd/session.py,pushd/reports.py,pushd/identity.py,pushd/rate.py,pushd/resume.py,pushd/channels.py,pushd/clock.py,pushd/commands.py,pushd/events.py,pushd/positions.py,pushd/permissions.py,pushd/subscription.py,pushd/hub.py,pushd/chunks.py,pushd/tokens.py,pushd/log.py,pushd/encoders.py,pushd/settings.py,pushd/redis_urls.py,pushd/metrics.py,pushd/patterns.py,pushd/sockets.py,pushd/message.py,pushd/errors.py

# Two files at a time: most tests wait more than they work.
test: .venv/tested
	$(BIN)/python -m pytest -n 2 --dist loadfile --cov --cov-report= $(ARGS)
	$(BIN)/coverage report
	$(BIN)/coverage report --fail-under=100 --include=$(FLOORS)

# What make test does with 100 schedules of harm between pushd and Redis, with others or more of them.
SEEDS := 0:1000
chaos: .venv/tested
	$(BIN)/python -m pytest tests/integration/test_chaos.py --chaos-seeds=$(SEEDS)

# What make test does with fewer: clients that come and go while messages pass, and count what they get.
CLIENTS := 1000
MESSAGES := 100000
SECONDS := 60
churn: .venv/tested
	$(BIN)/python -m pytest tests/integration/test_churn.py -s --churn=$(CLIENTS):$(MESSAGES):$(SECONDS)

# What make test does for seconds, led by coverage: what strangers send the control listener, and nobody should.
RUNS := 100000
fuzz: .venv/fuzzed
	$(BIN)/python -m tests.fuzz_control -runs=$(RUNS)

lint: .venv/linted
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

# All systems side by side: half an hour. Writes bench/RESULTS.md and the plots.
bench: .venv/benched build/bench/load build/bench/floor
	$(BIN)/python -m bench $(ARGS)

# Two minutes, to the terminal.
bench-quick: .venv/benched build/bench/load build/bench/floor
	$(BIN)/python -m bench --quick $(ARGS)

format: .venv/linted
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf .venv build dist *.egg-info twisted/plugins/dropin.cache

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/installed: .venv/bin/python setup.cfg pyproject.toml
	$(BIN)/pip install --quiet --disable-pip-version-check --editable .
	touch $@

.venv/tested: .venv/installed
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[test]'
	touch $@

.venv/benched: .venv/installed
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[bench]'
	touch $@

.venv/fuzzed: .venv/tested
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[fuzz]'
	touch $@

.venv/linted: .venv/tested .venv/benched
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[test,lint]'
	touch $@

build/bench/%: bench/%.c
	@command -v $(CC) >/dev/null || { echo "$(CC) is missing: the benchmark needs a C compiler (apt-get install gcc)"; exit 1; }
	mkdir -p build/bench
	$(CC) -O2 -Wall -Wextra -o $@ $<
