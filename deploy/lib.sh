# shellcheck shell=sh
# What the scripts in this folder have in common. They read it with `.`; it does nothing by itself.

# shellcheck disable=SC2034  # used by those who read this
supported_python='import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))'

say() { printf 'inspectd: %s\n' "$*" >&2; }
fail() { say "$*"; exit 1; }

# absolute PATH
absolute() {
    case $1 in
    /*) printf '%s\n' "$1" ;;
    *) printf '%s\n' "$PWD/$1" ;;
    esac
}

# Python looks for modules in the working directory first, where anybody may have laid some; paths
# must be absolute before.
from_root() {
    cd /
    unset PYTHONPATH PYTHONHOME
}

# settings_say RELEASE FILE WHAT: one value, as this release reads a station file: what this is an
# attribute of its settings, such as station.station.
settings_say() {
    runuser -u inspectd -- "$1/bin/python" -P -c '
import operator, pathlib, sys
from inspectd import config, errors
try:
    settings, _ = config.load_to_run(pathlib.Path(sys.argv[1]))
except errors.SettingsError as error:
    sys.exit(str(error))
print(operator.attrgetter(sys.argv[2])(settings))
' "$2" "$3"
}

# Until this script ends; systemd takes care that the folder is there.
only_one() {
    exec 9>/run/inspectd-install.lock
    flock -n 9 || fail "an installation or removal of inspectd is at work; try again when it is done"
}

# units_in FOLDER...: the names of the units there, some of them perhaps in several.
units_in() {
    for folder; do
        for unit in "$folder"/*.service; do
            [ ! -e "$unit" ] || basename "$unit"
        done
    done | sort -u
}

as_root() {
    if [ "$(id -u)" = 0 ]; then "$@"; else sudo "$@"; fi
}

# apt_get ARGUMENT...: it asks nothing and says little.
apt_get() {
    as_root env DEBIAN_FRONTEND=noninteractive apt-get -qq "$@" </dev/null >&2
}

# copy_source CHECKOUT DEST: what the wheel is made of. A build in the checkout itself would leave
# folders there, and take over modules that were deleted since the last one.
copy_source() {
    for part in pyproject.toml README.md LICENSE inspectd config systemd deploy docs; do
        if [ -e "$1/$part" ]; then cp -R "$1/$part" "$2/"; fi
    done
    find "$2" -name __pycache__ -type d -prune -exec rm -rf {} +
}

# build_wheel PYTHON SOURCE DEST: from a copy that may be written to.
build_wheel() {
    "$1" -m pip wheel --quiet --disable-pip-version-check --no-deps --wheel-dir "$3" "$2"
}

# write_constraints FILE: for the Picamera2 of Debian 12, whose parts were built against numpy 1.
# OpenCV demands numpy 2 from 4.12 on.
write_constraints() {
    printf '%s\n' 'numpy<2' 'opencv-python-headless<4.12' >"$1"
}
