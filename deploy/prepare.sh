#!/bin/sh
# Makes .venv with inspectd in it, for `make demo` and `make test`, from a bare Debian or any Linux
# with Python: sh deploy/prepare.sh [EXTRA]
# What is missing of Debian's packages is installed by name; each one is said before.
set -eu
cd "$(dirname "$0")/.."
extra=${1:-}
python=${PYTHON:-python3}

# shellcheck source=deploy/lib.sh
. deploy/lib.sh

# install_package PACKAGE WHY WITHOUT_APT
install_package() {
    command -v apt-get >/dev/null || fail "$3"
    [ "$(id -u)" = 0 ] || command -v sudo >/dev/null ||
        fail "the Debian package $1 is needed ($2); as root: apt-get install $1"
    say "installing the Debian package $1: $2"
    apt_get update
    apt_get install --no-install-recommends -y "$1"
}

command -v "$python" >/dev/null || fail "there is no $python here; install Python 3.11, 3.12 or 3.13"
"$python" -c "$supported_python" ||
    fail "$("$python" --version) is not supported; name another one, such as: make PYTHON=python3.12"

# Debian ships Python without the means to make environments.
if ! "$python" -c 'import venv, ensurepip' 2>/dev/null; then
    install_package python3-venv "to make a virtual environment" \
        "$python cannot make virtual environments: install its venv module"
fi

if ! PATH="$PATH:/usr/sbin:/usr/local/sbin" command -v mosquitto >/dev/null; then
    if [ -d /run/systemd/system ]; then
        say "note: the package mosquitto starts a broker of its own on this machine, on port 1883;" \
            "to stop it: systemctl disable --now mosquitto"
    fi
    install_package mosquitto "the MQTT broker; a private one on a free port is started from it" \
        "there is no mosquitto and no apt-get: install the MQTT broker Mosquitto by your system's means"
fi

# An environment that another Python made, or that was moved, is made anew.
if ! .venv/bin/python -c "$supported_python" 2>/dev/null; then
    say "making the virtual environment .venv"
    rm -rf .venv
    "$python" -m venv .venv >&2
fi

stamp=".venv/prepared-${extra:-plain}"
# shellcheck disable=SC3013  # POSIX has no -nt; every shell has
if [ ! -e "$stamp" ] || [ pyproject.toml -nt "$stamp" ] || [ deploy/prepare.sh -nt "$stamp" ]; then
    say "installing inspectd and what it needs into .venv (a few minutes the first time)"
    .venv/bin/python -m pip install --quiet --disable-pip-version-check --editable ".${extra:+[$extra]}" >&2
    touch "$stamp"
fi
