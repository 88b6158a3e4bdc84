# Thin calls of ops/bootstrap.py, which also works where make is missing.
# `make test ARGS="-k lease"` passes words on.
PYTHON ?= python3
TARGETS = demo demo-real test test-quick check bench bench-store bench-runtime bench-queue test-faults test-sglang test-openai test-finetune test-tamper test-containers fuzz audit paper-table finetune self-improve docs stack up down doctor install

.PHONY: help $(TARGETS)

help:
	@$(PYTHON) ops/bootstrap.py help

fuzz: override ARGS += $(if $(SECONDS),--seconds $(SECONDS))
$(TARGETS):
	@$(PYTHON) ops/bootstrap.py $@ $(ARGS)
