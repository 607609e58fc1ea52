#!/bin/sh
# Fetches everything for an installation without a network: sh deploy/wheels.sh --help
set -eu
here=$(cd "$(dirname "$0")" && pwd)
checkout=$(dirname "$here")
# shellcheck source=deploy/lib.sh
. "$here/lib.sh"

usage() {
    cat <<'END'
Usage: sh deploy/wheels.sh DEST [--python VERSION]... [--machine MACHINE]...

Builds inspectd's wheel from this checkout and puts it, the wheels of all it needs, and the folder
deploy/ into DEST. Carry DEST to the station, and there, as root:

    sh DEST/deploy/install.sh --wheels DEST

  --python VERSION    for this Python: 3.11 (Debian 12, bookworm) or 3.13 (Debian 13, trixie);
                      both if absent
  --machine MACHINE   aarch64 (Raspberry Pi) or x86_64; both if absent
  --help              print this

It needs a network, Python 3.11 to 3.13 with venv, and no root.
END
}

destination='' pythons='' machines=''
while [ $# -gt 0 ]; do
    case $1 in
    --help) usage; exit 0 ;;
    --python | --machine)
        [ $# -ge 2 ] || fail "$1 needs a value; see --help"
        case $1=$2 in
        --python=3.11 | --python=3.12 | --python=3.13) pythons="$pythons $2" ;;
        --machine=aarch64 | --machine=x86_64) machines="$machines $2" ;;
        *) fail "there are no wheels for $1 $2; see --help" ;;
        esac
        shift
        ;;
    -*) fail "there is no option $1; see --help" ;;
    *)
        [ -z "$destination" ] || fail "one folder, not two: $destination and $1; see --help"
        destination=$(absolute "$1")
        ;;
    esac
    shift
done
[ -n "$destination" ] || { usage >&2; exit 2; }
[ -f "$checkout/pyproject.toml" ] || fail "this works only in a checkout of inspectd"
python=${PYTHON:-python3}
case $python in */*) python=$(absolute "$python") ;; esac
from_root
"$python" -c "$supported_python" || fail "$("$python" --version) is not supported: 3.11 to 3.13"

mkdir -p "$destination"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

"$python" -m venv "$work/tools" || fail "$python cannot make virtual environments: install its venv"
tools=$work/tools/bin/python
mkdir "$work/source"
copy_source "$checkout" "$work/source"
rm -f "$destination"/inspectd-*.whl  # one of an earlier build may have a higher version
build_wheel "$tools" "$work/source" "$destination" || fail "the wheel could not be built"
wheel=$(echo "$destination"/inspectd-*.whl)
say "built $(basename "$wheel")"
write_constraints "$work/numpy-1.txt"
: >"$work/none.txt"

# fetch PYTHON MACHINE CONSTRAINTS
fetch() {
    # A wheel's name carries the oldest C library that it runs on; Debian 12 has 2.36.
    set -- "$1" "$2" "$3" "manylinux2014_$2"
    minor=17
    while [ "$minor" -le 36 ]; do
        set -- "$@" "manylinux_2_${minor}_$2"
        minor=$((minor + 1))
    done
    version=$1 machine=$2 constraints=$3
    shift 3
    for platform; do
        shift
        set -- "$@" --platform "$platform"
    done
    "$tools" -m pip download --quiet --disable-pip-version-check --only-binary=:all: \
        --python-version "$version" "$@" --constraint "$work/$constraints.txt" \
        --dest "$destination" "$wheel" ||
        fail "not everything is to be had for Python $version on $machine"
}

for version in ${pythons:-3.11 3.13}; do
    for machine in ${machines:-aarch64 x86_64}; do
        say "fetching what it needs for Python $version on $machine"
        fetch "$version" "$machine" none
        # Debian 12 with its own Picamera2; later ones have numpy 2.
        [ "$version" != 3.11 ] || fetch "$version" "$machine" numpy-1
    done
done
rm -rf "$destination/deploy"
cp -R "$here" "$destination/deploy"
say "$(find "$destination" -name '*.whl' | wc -l) wheels in $destination," \
    "$(du -sm "$destination" | cut -f1) MB; on the station, as root:" \
    "sh DEST/deploy/install.sh --wheels DEST"
