# The two commands are `make demo` and `make test`; each does its whole set-up.
# ARGS is passed on: make demo ARGS="--parts 10", make test ARGS="-k heatmap".

DATA ?= ../shared/data
ARGS ?=
PYTHON ?= python3
export PYTHON

.PHONY: help demo test evaluate bench clean

help:
	@echo 'make demo      see it work: parts judged, with a broker of its own and a simulated camera'
	@echo 'make test      run the tests'
	@echo 'make bench     what an inspection costs'
	@echo 'make evaluate  measure on labelled photographs: make evaluate DATA=DIR ARGS=--json'
	@echo 'make clean     remove what these commands made here'

demo:
	@sh deploy/prepare.sh
	@exec .venv/bin/inspectd demo $(ARGS)

test:
	@sh deploy/prepare.sh test
	@exec .venv/bin/python -m pytest $(ARGS)

bench:
	@sh deploy/prepare.sh
	@exec .venv/bin/inspectd bench $(ARGS)

evaluate:
	@sh deploy/prepare.sh
	@exec .venv/bin/inspectd evaluate $(DATA) $(ARGS)

clean:
	rm -rf .venv demo-output inspectd-heatmaps build *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
