# make demo       the main job on the embedded default (DEMO_SECONDS=N ends it by itself)
# make test       every test, unit to lab            make test-all   the server-less ones on each Python there is
# make test-long  the same with each test's long form, and those that take long for the little they add: some hours
# make check      ruff, mypy, import-linter, lengths make format     ruff's formatting and fixes
# make chaos      whatever link of the chain killed at random for CHAOS_SECONDS (120), every sample counted afterwards; then
#                 CHAOS_NIGHTS (200) nights of a simulated fleet in which everything is killed, from CHAOS_SEED (1) on
# make lab        the main job on two real libvirt hosts (LAB_KEEP=1 keeps them; make lab-down removes them;
#                 LAB_PLAN=three: three hosts with eight guests)
# make bench      every figure of docs/performance.md, as one JSON document (BENCH="KEY…" some of them)
# make fuzz       a minute with each parser of what comes from outside (FUZZ="TARGET…", FUZZ_SECONDS=N)
# make docs       the manual's generated pages       make dashboards the dashboards' JSON
.PHONY: demo test test-long test-all check bench fuzz chaos lab lab-down format docs dashboards
SHELL := /bin/bash
BIN := .venv/bin

demo:
	@deploy/bootstrap.sh run
	@exec $(BIN)/virtpilot demo $(if $(DEMO_SECONDS),--seconds $(DEMO_SECONDS)) $(DEMO_ARGS)

test:
	@deploy/bootstrap.sh full
	@exec $(BIN)/python -m deploy.testing $(TEST_ARGS)

test-long:
	@deploy/bootstrap.sh full
	@VIRTPILOT_THOROUGH=1 exec $(BIN)/python -m deploy.testing $(TEST_ARGS)

test-all:
	@exec deploy/test-all.sh $(TEST_ARGS)

chaos:
	@deploy/bootstrap.sh full
	@CHAOS_SECONDS=$(or $(CHAOS_SECONDS),120) $(BIN)/python -m pytest tests/carry/test_faults_chaos.py $(TEST_ARGS)
	@CHAOS_NIGHTS=$(or $(CHAOS_NIGHTS),200) CHAOS_SEED=$(or $(CHAOS_SEED),1) \
	  exec $(BIN)/python -m pytest tests/chaos --timeout=3600 $(TEST_ARGS)

check:
	@deploy/bootstrap.sh dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python deploy/check_lengths.py

format:
	@deploy/bootstrap.sh dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

lab:
	@deploy/bootstrap.sh full
	@exec $(BIN)/python -m deploy.lab run $(if $(LAB_KEEP),--keep) $(if $(LAB_PLAN),--plan $(LAB_PLAN))

lab-down:
	@deploy/bootstrap.sh full
	@exec $(BIN)/python -m deploy.lab down

bench:
	@deploy/bootstrap.sh bench
	@exec $(BIN)/python -m bench $(BENCH)

fuzz:
	@deploy/bootstrap.sh fuzz
	@for target in $(or $(FUZZ),$(notdir $(wildcard tests/fuzz/corpus/*))); do \
	  $(BIN)/python -m tests.fuzz $$target $(or $(FUZZ_SECONDS),60) || exit 1; done

dashboards:
	@deploy/bootstrap.sh dev
	$(BIN)/python -m virtpilot.grafana grafana/json

docs:
	@deploy/bootstrap.sh dev
	$(BIN)/python -m virtpilot.pipeline.reference docs
	$(BIN)/python -m deploy.config
	$(BIN)/python -m deploy.stores
