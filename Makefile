# The two commands are `make demo` and `make test`; each does its whole set-up.
# ARGS is passed on: make demo ARGS="--parts 10", make test ARGS="-k heatmap".

DATA ?= ../shared/data
CAMERA_SIM ?= ../shared/camera-sim
ARGS ?=
PYTHON ?= python3
export PYTHON CAMERA_SIM

.PHONY: help demo test test-camera test-system test-ansible test-arm64 test-soak evaluate bench clean

help:
	@echo 'make demo         see it work: parts judged, with a broker of its own and a simulated camera'
	@echo 'make test         run the tests'
	@echo 'make test-camera  run the tests of the Raspberry Pi camera, before a simulated sensor'
	@echo 'make test-system  the tests of the installation, in booted containers; needs root'
	@echo 'make test-ansible those of the Ansible role, likewise; needs root'
	@echo 'make test-arm64   install and judge on an emulated 64-bit Arm; needs root'
	@echo 'make test-soak    what is guaranteed, at full length (over an hour): make test-soak ARGS=chaos'
	@echo 'make bench        what an inspection costs'
	@echo 'make evaluate     measure on labelled photographs: make evaluate DATA=DIR ARGS=--json'
	@echo 'make clean        remove what these commands made here'

demo:
	@sh deploy/prepare.sh
	@exec .venv/bin/inspectd demo $(ARGS)

test:
	@sh deploy/prepare.sh test
	@exec .venv/bin/python -m pytest $(ARGS)

test-camera:
	@exec sh deploy/test-camera.sh $(ARGS)

# A test that installs takes longer than others before it is taken for one that hangs. In two
# processes, for the machines wait most of the time; one that ends is not begun again.
test-system:
	@sh deploy/prepare.sh test
	@exec .venv/bin/python -m pytest -o faulthandler_timeout=1800 -n 2 --dist loadscope --max-worker-restart 0 tests/system --ignore=tests/system/test_ansible.py $(ARGS)

test-ansible:
	@sh deploy/prepare.sh test
	@exec .venv/bin/python -m pytest -o faulthandler_timeout=1800 tests/system/test_ansible.py $(ARGS)

test-arm64:
	@sh deploy/prepare.sh test
	@exec .venv/bin/python -m pytest -o faulthandler_timeout=3600 tests/arm64 $(ARGS)

test-soak:
	@sh deploy/prepare.sh test
	@exec env PYTHONPATH=tests .venv/bin/python -m soak $(ARGS)

bench:
	@sh deploy/prepare.sh
	@exec .venv/bin/inspectd bench $(ARGS)

evaluate:
	@sh deploy/prepare.sh
	@exec .venv/bin/inspectd evaluate $(DATA) $(ARGS)

clean:
	rm -rf .venv demo-output inspectd-heatmaps build *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
