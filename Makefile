# Thin calls of ops/bootstrap.py, which also works where make is missing.
# `make test ARGS="-k lease"` hands words on.
PYTHON ?= python3

.PHONY: help demo test check bench bench-store bench-runtime bench-queue test-faults test-sglang test-tamper paper-table up down doctor install

help:
	@$(PYTHON) ops/bootstrap.py help

demo test check bench bench-store bench-runtime bench-queue test-faults test-sglang test-tamper paper-table up down doctor install:
	@$(PYTHON) ops/bootstrap.py $@ $(ARGS)
