#!/bin/sh
# Installs inspectd as a service, or upgrades it: sh deploy/install.sh --help
#
# A release is a folder of its own, /opt/inspectd/releases/VERSION-STAMP, one virtual environment
# with all that belongs to it; /opt/inspectd/current names the one in force. STAMP follows from what
# the release is made of, so that a second run finds it there and changes nothing.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
root=$(dirname "$here")
# shellcheck source=deploy/lib.sh
. "$here/lib.sh"

OPT=/opt/inspectd
ETC=/etc/inspectd
STATE=/var/lib/inspectd
CACHE=/var/cache/inspectd
UNITS=/etc/systemd/system
COMMAND=/usr/local/bin/inspectd
USER_NAME=inspectd
NEEDED_MB=900  # a release has 500; while it is made, its wheels 150
START_S=300    # what a start may take, its kernels cold
STAYS_S=3      # a service that is READY and then falls over is not up

usage() {
    cat <<'END'
Usage: sh deploy/install.sh [OPTION]...

Installs inspectd on Raspberry Pi OS or Debian, 64 bit, bookworm or trixie; as root, from a checkout
or from a folder that deploy/wheels.sh made. What is there already is left as it is; settings are
never overwritten.

  --instance NAME  the service to set up, inspectd@NAME with /etc/inspectd/NAME.yaml;
                   "default" if absent
  --station NAME   the station's name in its example settings, if they are not there yet
  --mosquitto      install the MQTT broker Mosquitto on this machine as well, with TLS and passwords
  --upgrade        replace the installed release; if the new one refuses the settings or does not
                   start, the old one is put back
  --wheel FILE     install this wheel of inspectd
  --wheels DIR     take everything from this folder, nothing from a package index: see wheels.sh
  --no-start       enable the service, but do not start it
  --help           print this

Exit status: 0 all is well; 1 it is not, and standard error tells why; 2 the command line is wrong.
END
}

wrong() { say "$*; see --help"; exit 2; }
step() { printf '%s\n' "$*"; }
changed() { something_changed=yes; step "$*"; }

# quietly COMMAND...: what it prints is shown only if it fails.
quietly() {
    "$@" >"$work/output" 2>&1 </dev/null || {
        tail -n 25 "$work/output" | sed 's/^/    /' >&2
        return 1
    }
}

as_user() { runuser -u "$USER_NAME" -- env NUMBA_CACHE_DIR="$CACHE/kernels" "$@"; }

# ---- What is refused, before anything is touched -------------------------------------------------

read_arguments() {
    instance=default station='' wheel='' wheels='' mosquitto='' upgrade='' start=yes
    while [ $# -gt 0 ]; do
        case $1 in
        --help) usage; exit 0 ;;
        --mosquitto) mosquitto=yes ;;
        --upgrade) upgrade=yes ;;
        --no-start) start='' ;;
        --instance | --station | --wheel | --wheels)
            if [ $# -lt 2 ] || [ -z "$2" ]; then wrong "$1 needs a value"; fi
            case $1 in
            --instance) instance=$2 ;;
            --station) station=$2 ;;
            --wheel) wheel=$2 ;;
            --wheels) wheels=$2 ;;
            esac
            shift
            ;;
        *) wrong "there is no option $1" ;;
        esac
        shift
    done
    case $instance in
    *[!A-Za-z0-9_-]* | -*) wrong "--instance $instance: letters, digits, - and _ only" ;;
    esac
    case $station in
    *[!A-Za-z0-9_-]*) wrong "--station $station: letters, digits, - and _ only" ;;
    esac
}

refuse_machine() {
    [ "$(id -u)" = 0 ] || fail "this must be run as root: sudo sh $0"
    command -v apt-get >/dev/null ||
        fail "this is neither Debian nor Raspberry Pi OS: there is no apt-get"
    architecture=$(dpkg --print-architecture)
    case $architecture in
    arm64 | amd64) ;;
    *) fail "this system is $architecture; inspectd needs a 64-bit one (arm64 or amd64). On a" \
        "Raspberry Pi, write Raspberry Pi OS (64-bit) on the card: a 64-bit kernel alone is not" \
        "enough" ;;
    esac
    python=$(command -v /usr/bin/python3) || fail "there is no Python: apt-get install python3"
    "$python" -c "$supported_python" || fail "this system has $("$python" --version); inspectd" \
        "needs Python 3.11 to 3.13, as in Debian 12 (bookworm) and 13 (trixie)"
    [ -d /run/systemd/system ] || fail "systemd does not run here, and inspectd is a service of it"
    place=$OPT
    while [ ! -d "$place" ]; do place=$(dirname "$place"); done
    free=$(df -Pm "$place" | awk 'NR == 2 {print $4}')
    [ "$free" -ge "$NEEDED_MB" ] || { [ -e "$OPT/current" ] && [ -z "$upgrade" ]; } ||
        fail "there are $free MB free where $place lies; $NEEDED_MB MB are needed"
}

# The wheel to install, if there is one; else the checkout.
find_source() {
    if [ -n "$wheels" ]; then
        [ -d "$wheels" ] || fail "--wheels $wheels: there is no such folder"
        wheels=$(cd "$wheels" && pwd)
    fi
    if [ -z "$wheel" ]; then
        if [ -n "$wheels" ]; then place=$wheels; else place=$root; fi
        # Of two, one would be a guess.
        set -- "$place"/inspectd-*.whl
        [ $# = 1 ] || fail "$place has more than one wheel of inspectd; name one with --wheel"
        if [ -f "$1" ]; then wheel=$1; fi
    fi
    if [ -n "$wheel" ]; then
        [ -f "$wheel" ] || fail "--wheel $wheel: there is no such file"
        case $wheel in
        *inspectd-*.whl) wheel=$(cd "$(dirname "$wheel")" && pwd)/$(basename "$wheel") ;;
        *) fail "--wheel $wheel is not a wheel of inspectd: inspectd-VERSION-py3-none-any.whl" ;;
        esac
    elif [ -n "$wheels" ]; then
        fail "$wheels has no wheel of inspectd: fill it with deploy/wheels.sh"
    else
        [ -f "$root/pyproject.toml" ] || fail "there is neither a checkout nor a wheel in $root"
    fi
}

# Pip's own means, so that its settings hold: index, proxy, certificates. Debian can lack ensurepip;
# then apt-get, which has to fetch it, is the first to notice that there is no network.
refuse_without_index() {
    [ -z "$wheels" ] || return 0
    "$python" -c 'import ensurepip, venv' 2>/dev/null || return 0
    make_tools
    quietly "$tools" -m pip download --disable-pip-version-check --no-deps --no-cache-dir \
        --retries 1 --timeout 20 --dest "$work/probe" paho-mqtt ||
        fail "no package index can be reached (above), and there is no --wheels. Without a" \
            "network: make a folder with deploy/wheels.sh on another machine. Nothing was changed"
}

make_tools() {
    tools=$work/tools/bin/python
    [ -x "$tools" ] || quietly "$python" -m venv "$work/tools" ||
        fail "$python cannot make environments"
}

# ---- Packages of Debian --------------------------------------------------------------------------

is_installed() {
    dpkg-query -W -f '${db:Status-Abbrev}' "$1" 2>/dev/null | grep -q '^.i'
}

# candidate PACKAGE: the version that apt would install; nothing if it knows none.
candidate() {
    apt-cache policy "$1" 2>/dev/null | sed -n 's/^  Candidate: //p' | grep -v '^(none)$' || true
}

# is_worth_it PACKAGE: gpiozero before 2 does not know how to watch edges by lgpio.
is_worth_it() {
    offered=$(candidate "$1")
    [ -n "$offered" ] || return 1
    [ "$1" != python3-gpiozero ] || dpkg --compare-versions "$offered" ge 2
}

has_package_lists() { ls /var/lib/apt/lists/*Packages* >/dev/null 2>&1; }

install_packages() {
    required=python3-venv
    if [ -n "$mosquitto" ]; then required="$required mosquitto mosquitto-clients openssl"; fi
    missing=''
    for package in $required; do is_installed "$package" || missing="$missing $package"; done
    if [ -z "$wheels" ] && { [ -n "$missing" ] || ! has_package_lists; }; then
        step "asking Debian's servers for their packages"
        quietly apt_get update || fail "apt-get update failed; is there a network?"
    fi
    for package in $missing; do
        install_package "$package" || fail "$package could not be installed"
    done
    # For the cameras and pins of a Raspberry Pi: where apt does not know them, there are none.
    for package in python3-picamera2 python3-gpiozero python3-lgpio; do
        is_installed "$package" && continue
        is_worth_it "$package" || continue
        if ! install_package "$package"; then
            [ -n "$wheels" ] || fail "$package could not be installed"
            step "going on without $package: cameras or pins of the Raspberry Pi will not work"
        fi
    done
}

install_package() {
    changed "installing the Debian package $1"
    quietly apt_get install --no-install-recommends -y "$1"
}

# ---- The release ---------------------------------------------------------------------------------

# What a release is made of tells its name.
name_release() {
    if [ -n "$wheel" ]; then
        version=$(basename "$wheel" | cut -d- -f2)
        content=$(sha256sum <"$wheel")
    else
        mkdir -p "$work/source"
        copy_source "$root" "$work/source"
        version=$(sed -n 's/^__version__ = "\(.*\)"$/\1/p' "$work/source/inspectd/__init__.py")
        content=$(cd "$work/source" && find . -type f -exec sha256sum {} + | LC_ALL=C sort -k 2)
    fi
    : >"$work/constraints.txt"
    if system_has_numpy_1; then write_constraints "$work/constraints.txt"; fi
    if [ -n "$wheels" ]; then content="$content $(cd "$wheels" && echo ./*.whl)"; fi
    stamp=$({
        echo "$content"
        "$python" -c 'import sys; print(sys.version_info[:2])'
        cat "$work/constraints.txt"
    } | sha256sum | cut -c 1-12)
    release=$OPT/releases/$version-$stamp
}

# Picamera2 hands its frames over as numpy's arrays, and its parts are compiled against the system's
# numpy: within one process there can be only one.
system_has_numpy_1() {
    is_installed python3-picamera2 &&
        "$python" -c 'import numpy, sys; sys.exit(numpy.__version__[:2] != "1.")' 2>/dev/null
}

make_release() {
    if [ -e "$release/complete" ]; then
        step "release $(basename "$release") is there already"
        return
    fi
    unfinished=$release
    rm -rf "$release"
    mkdir -p "$release/tmp"
    changed "making release $(basename "$release") (a few minutes)"
    export TMPDIR="$release/tmp"  # /tmp may be small, and lie in memory
    if [ -z "$wheel" ]; then
        make_tools
        quietly build_wheel "$tools" "$work/source" "$work" || fail "the wheel could not be built"
        wheel=$(echo "$work"/inspectd-*.whl)
    fi
    quietly "$python" -m venv --system-site-packages "$release" ||
        fail "$python cannot make environments"
    set --
    if [ -n "$wheels" ]; then set -- --no-index --find-links "$wheels"; fi
    # --ignore-installed: all of it, lest an upgrade or removal of Debian's packages change it. What
    # comes from Debian is Picamera2, gpiozero and lgpio.
    quietly "$release/bin/python" -m pip install --disable-pip-version-check --no-cache-dir \
        --no-warn-script-location --ignore-installed --only-binary=:all: \
        --constraint "$work/constraints.txt" "$@" "$wheel" ||
        fail "what inspectd needs could not be installed. Nothing was changed"
    unset TMPDIR
    rm -rf "$release/tmp"
    try_imports
    touch "$release/complete"
}

# All libraries in one process, as in the service, passing an array to what was compiled by Debian.
try_imports() {
    quietly "$release/bin/python" -c '
import importlib.util
import cv2, numba, numpy, inspectd
cv2.blur(numpy.zeros((8, 8, 3), numpy.uint8), (3, 3))
if importlib.util.find_spec("picamera2"):
    import picamera2, simplejpeg
    simplejpeg.encode_jpeg(numpy.zeros((8, 8, 3), numpy.uint8))
' || fail "the libraries do not work together on this system. Nothing was changed"
}

# ---- User, folders, settings, units --------------------------------------------------------------

make_user() {
    if ! getent passwd "$USER_NAME" >/dev/null; then
        changed "making the user $USER_NAME"
        quietly useradd --system --user-group --home-dir "$STATE" --no-create-home \
            --shell /usr/sbin/nologin "$USER_NAME" || fail "the user could not be made"
    fi
    for group in video gpio; do
        getent group "$group" >/dev/null || quietly groupadd --system "$group"
        if ! id -nG "$USER_NAME" | tr ' ' '\n' | grep -qx "$group"; then
            changed "adding $USER_NAME to the group $group"
            quietly usermod --append --groups "$group" "$USER_NAME"
        fi
    done
}

# folder PATH MODE OWNER
folder() {
    [ "$(stat -c '%a %U' "$1" 2>/dev/null)" != "$2 $3" ] || return 0
    changed "folder $1"
    install -d -m "0$2" -o "$3" -g "$3" "$1"
}

make_folders() {
    folder "$ETC" 755 root
    folder "$ETC/credentials" 700 root
    folder "$STATE" 755 "$USER_NAME"
    folder "$CACHE" 755 "$USER_NAME"
    folder "$CACHE/kernels" 755 "$USER_NAME"
}

# example_station RELEASE BROKER: its example of a station file, as it is installed here; BROKER is
# not empty where one is set up on this machine.
example_station() {
    sed "s/^station: .*/station: $station/" "$1/share/inspectd/config/inspectd.yaml" |
        if [ -z "$2" ]; then
            cat
        else
            sed -e 's/^#mqtt:/mqtt:/' -e 's/^#  host: .*/  host: localhost/' \
                -e "s|^#  port: .*|  port: 8883\\
  username: $station\\
  password_file: /run/credentials/inspectd@$instance.service/mqtt-password\\
  tls:\\
    ca: ca.pem|"
        fi
}

# fits_new_broker FILE: an example that nobody has edited yet, to be made to fit the broker.
fits_new_broker() {
    [ -n "$mosquitto" ] || return 1
    example_station "$release" '' | cmp -s - "$1"
}

# The broker has a user for each station, by its name.
name_station() {
    file=$ETC/$instance.yaml
    if [ -e "$file" ]; then
        station=$(sed -n 's/^station: *\([A-Za-z0-9_-]*\).*/\1/p' "$file")
    elif [ -z "$station" ] && [ "$instance" = default ]; then
        station=$(sed -n 's/^station: //p' "$release/share/inspectd/config/inspectd.yaml")
    elif [ -z "$station" ]; then
        station=$instance
    fi
}

install_settings() {
    if [ ! -d "$ETC/programs" ]; then
        changed "example programs in $ETC/programs"
        cp -R "$release/share/inspectd/config/programs" "$ETC/programs"
        chmod 755 "$ETC/programs"
        chmod 644 "$ETC"/programs/*.yaml
    fi
    if [ -e "$file" ]; then
        if ! fits_new_broker "$file"; then
            step "settings $file are kept as they are"
            return
        fi
        restart=yes  # systemd hands it the password at the start
    fi
    changed "example settings $file"
    first_steps=yes
    example_station "$release" "$mosquitto" >"$work/station.yaml"
    install -m 644 "$work/station.yaml" "$file"
}

# show_new_examples OLD NEW: as dpkg does, beside what the user has, and only if they changed.
show_new_examples() {
    examples=share/inspectd/config
    for example in "$2/$examples"/programs/*.yaml "$2/$examples/inspectd.yaml"; do
        name=${example#"$2/$examples/"}
        if cmp -s "$1/$examples/$name" "$example"; then continue; fi
        if [ "$name" = inspectd.yaml ]; then name=default.yaml; fi
        install -m 644 "$example" "$ETC/$name.new"
        changed "the example for $name has changed: see $ETC/$name.new; yours is kept as it is"
    done
}

# install_units RELEASE
install_units() {
    units_changed=''
    for unit in "$1"/share/inspectd/systemd/*.service; do
        name=$(basename "$unit")
        if cmp -s "$unit" "$UNITS/$name"; then continue; fi
        changed "unit $name"
        install -m 644 "$unit" "$UNITS/$name"
        units_changed=yes
    done
    # Those that only another release had.
    for unit in "$UNITS"/inspectd*.service; do
        if [ ! -L "$unit" ] && [ -e "$unit" ] &&
            [ ! -e "$1/share/inspectd/systemd/$(basename "$unit")" ]; then
            changed "unit $(basename "$unit") is gone"
            rm -f "$unit"
            units_changed=yes
        fi
    done
    if [ -n "$units_changed" ]; then quietly systemctl daemon-reload; fi
}

set_up_mosquitto() {
    [ -n "$mosquitto" ] || return 0
    step "setting up Mosquitto for the station $station"
    sh "$here/mosquitto/setup.sh" --station "$station" --instance "$instance" ||
        fail "Mosquitto could not be set up"
}

# point_to RELEASE: without a moment in which there is no current one.
point_to() {
    ln -sfn "$1" "$OPT/current.new"
    mv -T "$OPT/current.new" "$OPT/current"
}

link_command() {
    [ "$(readlink "$COMMAND")" != "$OPT/current/bin/inspectd" ] || return 0
    changed "command $COMMAND"
    mkdir -p "$(dirname "$COMMAND")"
    ln -sfn "$OPT/current/bin/inspectd" "$COMMAND"
}

warm_up() {
    [ ! -e "$release/warm" ] || return 0
    changed "compiling the kernels (a minute on a Raspberry Pi)"
    quietly as_user "$release/bin/inspectd" warmup || fail "the kernels could not be compiled"
    touch "$release/warm"
}

# ---- Services ------------------------------------------------------------------------------------

running_instances() {
    systemctl list-units --plain --no-legend --state=active,reloading 'inspectd@*.service' |
        awk '{print $1}'
}

# bring_up UNIT: restarted, READY, and still so a moment later; else its last words.
bring_up() {
    since=$(date +%s)
    systemctl reset-failed "$1" 2>/dev/null || true
    if timeout "$START_S" systemctl restart "$1" 2>/dev/null </dev/null; then
        process=$(systemctl show -P MainPID "$1")
        sleep "$STAYS_S"
        if systemctl -q is-active "$1" && [ "$(systemctl show -P MainPID "$1")" = "$process" ]; then
            return 0
        fi
    fi
    say "$1 does not come up; its log:"
    journalctl --sync || :  # else the last lines, where the error stands, may be missing
    journalctl -u "$1" --since "@$since" --no-pager -o cat -n 30 | sed 's/^/    /' >&2
    return 1
}

start_instance() {
    unit=inspectd@$instance.service
    if ! systemctl -q is-enabled "$unit" 2>/dev/null; then
        changed "enabling $unit: it starts with the machine"
        quietly systemctl enable "$unit" || fail "$unit could not be enabled"
    fi
    [ -n "$start" ] || return 0
    if systemctl -q is-active "$unit" && [ -z "$restart" ]; then
        step "$unit runs"
        return
    fi
    changed "starting $unit"
    bring_up "$unit" || fail "everything is installed; start it when the cause is gone:" \
        "systemctl restart $unit"
    step "$unit is READY"
}

# ---- Upgrade -------------------------------------------------------------------------------------

# While this script ends: by itself, by an error or by a signal.
finish() {
    status=$?
    trap - EXIT INT TERM HUP
    set +e
    if [ -n "$switched" ]; then go_back; fi
    if [ -n "$unfinished" ]; then remove_release "$unfinished"; fi
    rm -rf "$work"
    exit "$status"
}

go_back() {
    say "going back to $(basename "$previous")"
    point_to "$previous"
    install_units "$previous" >&2
    for unit in $running; do
        if bring_up "$unit"; then
            say "$unit is READY again, with $(basename "$previous")"
        else
            say "$unit does not run: look at   journalctl -u $unit   and   inspectd doctor"
        fi
    done
    status=1
}

check_settings() {
    for file in "$ETC"/*.yaml; do
        [ -e "$file" ] || continue
        if ! quietly as_user "$release/bin/inspectd" check -c "$file"; then
            fail "the new release refuses $file (above); the old one goes on. Mend it, then run" \
                "this again"
        fi
        step "the new release accepts $file"
    done
}

upgrade_release() {
    step "upgrading from $(basename "$previous")"
    check_settings
    warm_up
    running=$(running_instances)
    switched=yes
    point_to "$release"
    install_units "$release"
    for unit in $running; do
        changed "restarting $unit"
        bring_up "$unit" || fail "the new release does not start"
        step "$unit is READY"
    done
    switched='' unfinished=''
    show_new_examples "$previous" "$release"
    forget_all_but "$release" "$previous"
}

# forget_all_but RELEASE RELEASE
forget_all_but() {
    for old in "$OPT"/releases/*; do
        if [ "$old" = "$1" ] || [ "$old" = "$2" ]; then continue; fi
        changed "removing the release $(basename "$old")"
        remove_release "$old"
    done
}

# remove_release RELEASE: with its compiled kernels, which Numba keeps by the path of the source.
remove_release() {
    find "$1" -path '*/site-packages/inspectd*' -type d ! -name __pycache__ |
        while read -r folder; do
            digest=$(printf %s "$folder" | sha1sum | cut -c 1-40)
            rm -rf "$CACHE/kernels/$(basename "$folder")_$digest"
        done
    rm -rf "$1"
}

# ---- All of it -----------------------------------------------------------------------------------

only_one() {
    exec 9>/run/inspectd-install.lock
    flock -n 9 || fail "another installation is at work"
}

read_arguments "$@"
refuse_machine
find_source
work=$(mktemp -d)
chmod 755 "$work"
something_changed='' first_steps='' restart='' unfinished='' switched='' running=''
trap finish EXIT
trap 'say interrupted; exit 130' INT
trap 'say interrupted; exit 143' TERM HUP
only_one
refuse_without_index
previous=$(readlink "$OPT/current" || true)
install_packages
name_release
if [ -n "$previous" ] && [ "$previous" != "$release" ] && [ -z "$upgrade" ]; then
    fail "$(basename "$previous") is installed; to replace it by $(basename "$release")," \
        "add --upgrade"
fi
make_release
make_user
make_folders
if [ -n "$previous" ] && [ "$previous" != "$release" ]; then
    upgrade_release
else
    warm_up
    point_to "$release"
    unfinished=''
    install_units "$release"
fi
link_command
name_station
set_up_mosquitto
install_settings
start_instance

if [ -z "$something_changed" ]; then
    step "nothing changed: $(basename "$release") is installed"
    exit 0
fi
step "inspectd doctor says:"
as_user "$COMMAND" doctor -c "$file" 2>&1 | sed 's/^/    /' || true
step "$(basename "$release") is installed"
if [ -n "$first_steps" ]; then
    cat <<END
What to do next:
  1. Edit $file: the station's name, camera, trigger and broker.
     A saved file is taken over at once if it is right; what is wrong is named by
       inspectd check -c $file
  2. Put a good part before the camera, and mount and focus it:
       sudo -u $USER_NAME inspectd focus -c $file
  3. Teach ten good parts:
       sudo -u $USER_NAME inspectd teach PROGRAM --frames 10 -c $file
  4. Watch it:
       systemctl status inspectd@$instance
       journalctl -f -u inspectd@$instance
END
fi
