#!/bin/sh
# Runs the tests of the Raspberry Pi's camera on the real Picamera2 before a simulated sensor:
# sh deploy/test-camera.sh [ARGUMENT-OF-PYTEST ...]
# CAMERA_SIM is the simulator's folder; docs/testing.md tells what that is. Without it the tests
# skip, and say so.
set -eu
cd "$(dirname "$0")/.."
simulator=${CAMERA_SIM:-../shared/camera-sim}
tests="tests/test_picamera.py tests/test_station_with_camera.py tests/test_cameras_agree.py"

if [ -x "$simulator/enter" ]; then
    "$simulator/enter" python -m pip install --quiet --disable-pip-version-check --editable '.[test]' >&2
    # shellcheck disable=SC2086 # a list of words
    exec "$simulator/enter" python -m pytest $tests "$@"
fi
echo "inspectd: no camera simulator in $simulator (docs/testing.md tells how to build one)" >&2
sh deploy/prepare.sh test
# shellcheck disable=SC2086 # a list of words
exec .venv/bin/python -m pytest $tests "$@"
