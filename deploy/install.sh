#!/bin/sh
# Installs inspectd as a service, or upgrades it: sh deploy/install.sh --help
#
# A release is a folder of its own, /opt/inspectd/releases/VERSION-STAMP, one virtual environment
# with all that belongs to it; /opt/inspectd/current names the one in force. STAMP follows from what
# the release is made of, so that a second run finds it there and changes nothing.
#
# /opt/inspectd/trial is there from the moment a release takes over until it has proved itself; a run
# that finds it mends what a power cut or a kill has left, and inspectd-trial.service runs it at the
# next start of the machine. /opt/inspectd/previous names the release before, which is kept.
set -eu
umask 022  # whatever root's own is: the service's user must read all of it
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
  --rollback       go back to the release before the installed one, under the same conditions
  --wheel FILE     install this wheel of inspectd
  --wheels DIR     take everything from this folder, nothing from a package index: see wheels.sh
  --no-start       neither enable nor start the service
  --finish         only prove a release whose change was interrupted, or go back to the one before;
                   after a power cut inspectd-trial.service does it
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

# put FILE PLACE: at one stroke, so that a power cut leaves the one before or this one.
put() {
    part=$(dirname "$2")/.$(basename "$2").part
    install -m 644 "$1" "$part"
    sync "$part"
    mv -T "$part" "$2"
}

# point LINK TARGET: without a moment in which there is none.
point() {
    ln -sfn "$2" "$1.new"
    mv -T "$1.new" "$1"
}

# For messages of failure, as long as only Debian's packages may have come.
unchanged() {
    if [ -z "$packages" ]; then
        echo "Nothing was changed"
    else
        echo "Of what this run did, Debian's$packages stay; nothing else was changed"
    fi
}

# ---- What is refused, before anything is touched -------------------------------------------------

read_arguments() {
    instance=default station='' wheel='' wheels='' mosquitto='' upgrade='' rollback='' start=yes
    finish_only=''
    given=$#
    while [ $# -gt 0 ]; do
        case $1 in
        --help) usage; exit 0 ;;
        --mosquitto) mosquitto=yes ;;
        --upgrade) upgrade=yes ;;
        --rollback) rollback=yes ;;
        --finish) finish_only=yes ;;
        --no-start) start='' ;;
        --instance | --station | --wheel | --wheels)
            if [ $# -lt 2 ] || [ -z "$2" ]; then wrong "$1 needs a value"; fi
            case $1 in
            --instance) instance=$2 ;;
            --station) station=$2 ;;
            --wheel) wheel=$(absolute "$2") ;;
            --wheels) wheels=$(absolute "$2") ;;
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
    if [ -n "$rollback" ] && [ "$given" != 1 ]; then wrong "--rollback stands alone"; fi
    if [ -n "$finish_only" ] && [ "$given" != 1 ]; then wrong "--finish stands alone"; fi
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
    disk=$OPT
    while [ ! -d "$disk" ]; do disk=$(dirname "$disk"); done
    [ -w "$disk" ] || fail "$disk cannot be written, for the file system is mounted read-only;" \
        "for as long as this takes: mount -o remount,rw /"
}

# An overlay is how a container has its root as well, and there it is as durable as the container.
warn_of_overlay() {
    [ "$(findmnt -no FSTYPE -T "$disk")" = overlay ] || return 0
    ! systemd-detect-virt -q --container || return 0
    say "$disk lies in an overlay: what is installed now is gone at the next start. Turn the overlay" \
        "off before (raspi-config, Performance Options), and on again afterwards"
}

refuse_foreign_command() {
    if [ ! -e "$COMMAND" ] && [ ! -L "$COMMAND" ]; then return; fi
    case $(readlink "$COMMAND") in
    "$OPT"/*) ;;
    *) fail "$COMMAND is there already, and was not made by this script: move it away, then run this" \
        "again" ;;
    esac
}

refuse_full_disk() {
    free=$(df -Pm "$disk" | awk 'NR == 2 {print $4}')
    [ "$free" -ge "$NEEDED_MB" ] ||
        fail "there are $free MB free where $disk lies; $NEEDED_MB MB are needed. $(unchanged)"
}

# The wheel to install, if there is one; else the checkout.
find_source() {
    if [ -n "$wheels" ]; then
        [ -d "$wheels" ] || fail "--wheels $wheels: there is no such folder"
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
        *inspectd-*.whl) ;;
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
    if [ -n "$wheels" ] || [ -e "$release/complete" ]; then return; fi
    "$python" -c 'import ensurepip, venv' 2>/dev/null || return 0
    make_tools
    quietly "$tools" -m pip download --disable-pip-version-check --no-deps --no-cache-dir \
        --retries 1 --timeout 20 --dest "$work/probe" paho-mqtt ||
        fail "no package index can be reached (above), and there is no --wheels. Without a" \
            "network: make a folder with deploy/wheels.sh on another machine. $(unchanged)"
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

# For the cameras and pins of a Raspberry Pi: where apt does not know them, there are none.
missing_optional() {
    for package in python3-picamera2 python3-gpiozero python3-lgpio; do
        if ! is_installed "$package" && is_worth_it "$package"; then echo "$package"; fi
    done
}

# Old lists name versions that the servers have no longer; without any, apt knows no package.
needs_lists() {
    [ -z "$missing$(missing_optional)" ] || return 0
    ! has_package_lists && [ ! -e "$release/complete" ]
}

install_packages() {
    required=python3-venv
    if [ -n "$mosquitto" ]; then required="$required mosquitto mosquitto-clients openssl"; fi
    missing=''
    for package in $required; do is_installed "$package" || missing="$missing $package"; done
    if [ -z "$wheels" ] && needs_lists; then
        step "asking Debian's servers for their packages"
        quietly apt_get update || fail "apt-get update failed; is there a network?"
    fi
    for package in $missing; do
        install_package "$package" || fail "$package could not be installed. $(unchanged)"
    done
    case "$missing " in
    *" mosquitto "*) step "Debian has started Mosquitto, for localhost only; its settings follow below" ;;
    esac
    for package in $(missing_optional); do
        if ! install_package "$package"; then
            [ -n "$wheels" ] || fail "$package could not be installed. $(unchanged)"
            step "going on without $package: cameras or pins of the Raspberry Pi will not work"
        fi
    done
}

install_package() {
    step "installing the Debian package $1"
    quietly apt_get install --no-install-recommends -y "$1" || return 1
    something_changed=yes
    packages="$packages $1"
}

# ---- The release ---------------------------------------------------------------------------------

# What a release is made of tells its name: the code, its version, and the rest.
read_source() {
    if [ -n "$wheel" ]; then
        version=$(basename "$wheel" | cut -d- -f2)
        content=$(sha256sum <"$wheel")
    else
        mkdir -p "$work/source"
        copy_source "$root" "$work/source"
        version=$(sed -n 's/^__version__ = "\(.*\)"$/\1/p' "$work/source/inspectd/__init__.py")
        content=$(cd "$work/source" && find . -type f -exec sha256sum {} + | LC_ALL=C sort -k 2)
    fi
    if [ -n "$wheels" ]; then content="$content $(cd "$wheels" && echo ./*.whl)"; fi
}

name_release() {
    : >"$work/constraints.txt"
    if system_has_numpy_1; then write_constraints "$work/constraints.txt"; fi
    stamp=$({
        echo "$content"
        "$python" -c 'import sys; print(sys.version_info[:2])'
        cat "$work/constraints.txt"
    } | sha256sum | cut -c 1-12)
    release=$OPT/releases/$version-$stamp
}

# Before Debian's packages are installed, and after: they may have changed the release's name.
refuse_release() {
    name_release
    if is_another && [ -z "$upgrade" ]; then
        fail "$(basename "$previous") is installed; to replace it by $(basename "$release")," \
            "add --upgrade. $(unchanged)"
    fi
    [ -e "$release/complete" ] || refuse_full_disk
}

is_another() { [ -n "$previous" ] && [ "$previous" != "$release" ]; }

# Picamera2 hands its frames over as numpy's arrays, and its parts are compiled against the system's
# numpy: within one process there can be only one.
system_has_numpy_1() {
    is_installed python3-picamera2 &&
        "$python" -c 'import numpy, sys; sys.exit(numpy.__version__[:2] != "1.")' 2>/dev/null
}

make_release() {
    folder "$OPT" 755 root
    folder "$OPT/releases" 755 root
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
        fail "what inspectd needs could not be installed. $(unchanged)"
    unset TMPDIR
    rm -rf "$release/tmp"
    try_imports
    sync -f "$release"
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
' || fail "the libraries do not work together on this system. $(unchanged)"
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

# folder PATH MODE OWNER: in a folder of root's, where nobody else can have laid a link.
folder() {
    [ "$(stat -c '%a %U' "$1" 2>/dev/null)" != "$2 $3" ] || return 0
    changed "folder $1"
    install -d -m "0$2" -o "$3" -g "$3" "$1"
}

# users_folder PATH MODE: in a folder of the user's, and so made by the user. Root would follow a
# link that lies there, and give away what it leads to.
users_folder() {
    [ ! -L "$1" ] || fail "$1 is a symbolic link, which inspectd never makes: find out who did, and" \
        "remove it"
    [ "$(stat -c '%a %U' "$1" 2>/dev/null)" != "$2 $USER_NAME" ] || return 0
    changed "folder $1"
    quietly as_user install -d -m "0$2" "$1" || fail "$1 could not be made by $USER_NAME (above)"
}

make_folders() {
    folder "$ETC" 755 root
    folder "$ETC/credentials" 700 root
    folder "$STATE" 755 "$USER_NAME"
    folder "$CACHE" 750 "$USER_NAME"  # as the units make it
    users_folder "$CACHE/kernels" 750
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
  password_file: \$CREDENTIALS_DIRECTORY/mqtt-password\\
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
        wanted=$station
        [ -n "$wanted$mosquitto" ] || return 0
        if ! station=$(settings_say "$release" "$file" station.station); then
            [ -z "$mosquitto" ] || fail "without the station's name its broker cannot be set up"
            station="not to be read (above)"
        fi
        [ -z "$wanted" ] || [ "$wanted" = "$station" ] ||
            say "--station $wanted changes nothing: $file is there, and its station is $station"
    elif [ -z "$station" ] && [ "$instance" = default ]; then
        station=$(sed -n 's/^station: //p' "$release/share/inspectd/config/inspectd.yaml")
    elif [ -z "$station" ]; then
        station=$instance
    fi
}

install_settings() {
    if [ ! -d "$ETC/programs" ]; then
        changed "example programs in $ETC/programs"
        part=$ETC/.programs.part
        rm -rf "$part"
        cp -R "$release/share/inspectd/config/programs" "$part"
        chmod 755 "$part"
        chmod 644 "$part"/*.yaml
        sync -f "$part"
        mv -T "$part" "$ETC/programs"
    fi
    if [ -e "$file" ]; then
        if ! fits_new_broker "$file"; then
            step "settings $file are kept as they are"
            return
        fi
        restart=yes
    else
        is_new=yes
    fi
    changed "example settings $file"
    first_steps=yes
    example_station "$release" "$mosquitto" >"$work/station.yaml"
    put "$work/station.yaml" "$file"
}

# show_new_examples OLD NEW: as dpkg does, beside what the user has, and only if they changed.
show_new_examples() {
    examples=share/inspectd/config
    for example in "$2/$examples"/programs/*.yaml "$2/$examples/inspectd.yaml"; do
        name=${example#"$2/$examples/"}
        if cmp -s "$1/$examples/$name" "$example"; then continue; fi
        if [ "$name" = inspectd.yaml ]; then name=default.yaml; fi
        put "$example" "$ETC/$name.new"
        if [ -e "$ETC/$name" ]; then
            changed "the example for $name has changed: see $ETC/$name.new; yours is kept as it is"
        else
            changed "there is a new example: see $ETC/$name.new"
        fi
    done
}

# install_units RELEASE: what only another release brings goes; all else that lies there is the user's,
# also where it is called inspectd-something.
install_units() {
    units_changed=''
    for unit in "$1"/share/inspectd/systemd/*.service; do
        name=$(basename "$unit")
        if cmp -s "$unit" "$UNITS/$name"; then continue; fi
        changed "unit $name"
        put "$unit" "$UNITS/$name"
        units_changed=yes
    done
    for name in $(units_in "$OPT"/releases/*/share/inspectd/systemd); do
        if [ -e "$1/share/inspectd/systemd/$name" ] || [ ! -e "$UNITS/$name" ]; then continue; fi
        changed "unit $name is gone"
        rm -f "$UNITS/$name" "$UNITS"/*.wants/"$name"
        units_changed=yes
    done
    if [ -n "$units_changed" ]; then
        sync -f "$UNITS"
        quietly systemctl daemon-reload
    fi
    for name in $(units_in "$1/share/inspectd/systemd"); do enable_unit "$name"; done
}

# enable_unit NAME: one that starts with the machine, whatever the instances do.
enable_unit() {
    case $1 in *@.service) return ;; esac
    grep -q '^WantedBy=' "$UNITS/$1" || return 0
    ! systemctl -q is-enabled "$1" || return 0
    changed "enabling $1"
    quietly systemctl enable "$1"
}

set_up_mosquitto() {
    [ -n "$mosquitto" ] || return 0
    step "setting up Mosquitto for the station $station"
    before=$(broker) secrets=$(secrets_of_instance)
    sh "$here/mosquitto/setup.sh" --station "$station" --instance "$instance" ||
        fail "Mosquitto could not be set up"
    [ "$(broker)" = "$before" ] || changed "Mosquitto was set up"
    [ "$(secrets_of_instance)" = "$secrets" ] || restart=yes  # systemd hands them over at the start
}

secrets_of_instance() {
    find "$ETC/credentials" -name "$instance.*" -exec sha256sum {} + | LC_ALL=C sort
}

# What setup.sh may change, to be compared.
broker() {
    find /etc/mosquitto "$ETC/credentials" "$ETC/ca.pem" -type f -exec sha256sum {} + 2>/dev/null |
        LC_ALL=C sort
    systemctl is-enabled mosquitto 2>/dev/null || true
    systemctl show -P MainPID mosquitto
}

# switch_to RELEASE: all of it is on the disk before, and the switch after.
switch_to() {
    sync -f "$OPT"
    point "$OPT/current" "$1"
    sync -f "$OPT"
}

link_command() {
    [ "$(readlink "$COMMAND")" != "$OPT/current/bin/inspectd" ] || return 0
    changed "command $COMMAND"
    mkdir -p "$(dirname "$COMMAND")"
    point "$COMMAND" "$OPT/current/bin/inspectd"
}

warm_up() {
    [ ! -e "$release/warm" ] || return 0
    changed "compiling the kernels (a minute on a Raspberry Pi)"
    quietly as_user "$release/bin/inspectd" warmup || fail "the kernels could not be compiled"
    sync -f "$CACHE"
    touch "$release/warm"
}

# ---- Services ------------------------------------------------------------------------------------

# instances STATES
instances() {
    systemctl list-units --plain --no-legend --state="$1" 'inspectd@*.service' | awk '{print $1}'
}

# Those that run, wait for something, or start with the machine.
used_instances() {
    {
        instances active,reloading,activating
        find "$UNITS" -path '*.wants/inspectd@*.service' -exec basename {} \;
    } | sort -u
}

state_of() { systemctl show -P ActiveState "$1"; }

# restart_waiting UNIT: one that need not come up, for it was not READY before: a camera is missing,
# or its settings are wrong.
restart_waiting() {
    changed "restarting $1"
    systemctl --no-block restart "$1" || true
    sleep "$STAYS_S"
    say "$1 was not READY before, and proves nothing; now: $(state_of "$1"):" \
        "$(systemctl show -P StatusText "$1")"
}

# bring_up UNIT: restarted, READY, and still so a moment later; else its last words.
bring_up() {
    since=$(date +%s)
    systemctl reset-failed "$1" 2>/dev/null || true
    step "waiting until $1 is READY, $((START_S / 60)) minutes at most"
    # --foreground: else it is in a group of its own, which Ctrl-C does not reach.
    if timeout --foreground "$START_S" systemctl restart "$1" 2>/dev/null </dev/null; then
        process=$(systemctl show -P MainPID "$1")
        sleep "$STAYS_S"
        if systemctl -q is-active "$1" && [ "$(systemctl show -P MainPID "$1")" = "$process" ]; then
            return 0
        fi
    fi
    say "$1 does not come up; its log:"
    journalctl --sync || :  # else the last lines, where the error stands, may be missing
    # Not -n, which gives the first lines since then with systemd 252.
    journalctl -u "$1" --since "@$since" --no-pager -o cat | tail -n 30 | sed 's/^/    /' >&2
    return 1
}

start_instance() {
    unit=inspectd@$instance.service
    if [ -z "$start" ]; then
        systemctl -q is-enabled "$unit" 2>/dev/null ||
            step "$unit is left as it is; to start it: systemctl enable --now $unit"
        [ -z "$restart" ] ||
            step "its new password is taken over when it starts: systemctl restart $unit"
        return 0
    fi
    was=$(state_of "$unit")
    if [ -n "$upgraded" ] && [ -z "$is_new" ] && [ "$was" = inactive ]; then
        step "$unit did not run, and is left so; to start it: systemctl start $unit"
        return
    fi
    if ! systemctl -q is-enabled "$unit" 2>/dev/null; then
        changed "enabling $unit: it starts with the machine"
        quietly systemctl enable "$unit" || fail "$unit could not be enabled"
    fi
    case $was=$restart in
    active= | reloading=) step "$unit runs" ;;
    activating=) step "$unit is not READY yet: $(systemctl show -P StatusText "$unit")" ;;
    activating=yes) restart_waiting "$unit" ;;
    *) start_now ;;
    esac
}

start_now() {
    changed "starting $unit"
    bring_up "$unit" || fail "everything is installed; start it when the cause is gone:" \
        "systemctl restart $unit"
    step "$unit is READY"
}

doctor() { as_user "$COMMAND" doctor -c "$file"; }

# ---- Upgrade -------------------------------------------------------------------------------------

# While this script ends: by itself, by an error or by a signal.
finish() {
    status=$?
    trap - EXIT
    trap '' INT TERM HUP PIPE  # a second Ctrl-C must not end the way back
    set +e
    if [ -n "$switched" ]; then
        go_back
        status=1
        if [ -n "$finish_only" ] && [ -z "$down" ]; then status=0; fi
    fi
    if [ -n "$unfinished" ]; then remove_release "$unfinished"; fi
    rm -rf "$work"
    exit "$status"
}

check_settings() {
    for unit in $(used_instances); do
        used=${unit#inspectd@} used=$ETC/${used%.service}.yaml
        if quietly as_user "$release/bin/inspectd" check --to-run -c "$used"; then
            step "$(basename "$release") accepts $used"
        elif [ "$(state_of "$unit")" = activating ]; then
            say "$(basename "$release") refuses $used (above); $unit is not READY as it is"
        else
            fail "$(basename "$release") refuses $used (above); $(basename "$previous") goes on." \
                "Mend it, or disable and stop $unit, then run this again"
        fi
    done
}

# From $previous to $release, which proves itself, or this script goes back as it ends.
replace_release() {
    ready=$(instances active,reloading)
    waiting=$(instances activating)
    {
        echo "release $previous"
        for unit in $ready; do echo "ready $unit"; done
        for unit in $waiting; do echo "waiting $unit"; done
    } >"$work/trial"
    put "$work/trial" "$OPT/trial"
    switched=yes
    switch_to "$release"
    install_units "$release"
    prove
    accept_release
}

# Only those that were READY before tell whether the release is any good.
prove() {
    for unit in $ready; do
        changed "restarting $unit"
        bring_up "$unit" || fail "$(basename "$release") does not start"
        step "$unit is READY"
    done
    for unit in $waiting; do restart_waiting "$unit"; done
    [ -n "$ready" ] ||
        say "nothing was READY that could prove $(basename "$release"); if it fails: --rollback"
    ! printf '%s\n' "$ready" "$waiting" | grep -qxF "inspectd@$instance.service" || restart=''
}

accept_release() {
    point "$OPT/previous" "$previous"
    end_trial
    switched='' unfinished='' upgraded=yes
    forget_all_but "$release" "$previous"
}

end_trial() {
    rm -f "$OPT/trial"
    sync -f "$OPT"
}

go_back() {
    say "going back to $(basename "$previous")"
    switch_to "$previous"
    install_units "$previous" >&2
    for unit in $ready; do
        if bring_up "$unit"; then
            say "$unit is READY again, with $(basename "$previous")"
        else
            say "$unit does not run: look at   journalctl -u $unit   and   inspectd doctor"
            down="$down $unit"
        fi
    done
    for unit in $waiting; do systemctl --no-block restart "$unit" || true; done
    end_trial
}

# What was interrupted so that nothing could go back: a power cut, a kill.
finish_interrupted() {
    [ -e "$OPT/trial" ] || return 0
    release=$(readlink "$OPT/current")
    previous=$(sed -n 's/^release //p' "$OPT/trial")
    ready=$(units_on_trial ready)
    waiting=$(units_on_trial waiting)
    quietly systemctl daemon-reload  # the units may have been put in place, and not been read
    [ -e "$previous/complete" ] || fail "$OPT/trial names a release that is not there, $previous:" \
        "remove that file, if $(basename "$release") works"
    if [ "$release" = "$previous" ]; then
        say "a change of the release was interrupted"
        go_back
        if [ -n "$finish_only" ] && [ -n "$down" ]; then exit 1; fi
        return
    fi
    say "the change from $(basename "$previous") to $(basename "$release") was interrupted before" \
        "it was proved: this is done now"
    switched=yes
    install_units "$release"
    prove
    accept_release
}

# units_on_trial KIND: without those that somebody has stopped since. While the machine starts, one
# may be yet to be started: then it has a job.
units_on_trial() {
    sed -n "s/^$1 //p" "$OPT/trial" | while read -r unit; do
        case $(state_of "$unit")=$(systemctl show -P Job "$unit") in
        inactive= | inactive=0) ;;
        *) echo "$unit" ;;
        esac
    done
}

roll_back() {
    [ -n "$previous" ] || fail "inspectd is not installed"
    release=$(readlink "$OPT/previous" || true)
    if ! is_another || [ ! -e "$release/complete" ]; then
        fail "there is no release before $(basename "$previous") to go back to"
    fi
    step "going from $(basename "$previous") back to $(basename "$release")"
    check_settings
    warm_up
    replace_release
    step "$(basename "$release") is in force"
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
    if [ -d "$CACHE/kernels" ]; then
        kernels_of "$1" | as_user xargs -r -d '\n' rm -rf || say "its compiled kernels are left"
    fi
    rm -rf "$1"
}

kernels_of() {
    find "$1" -path '*/site-packages/inspectd*' -type d ! -name __pycache__ |
        while read -r folder; do
            digest=$(printf %s "$folder" | sha1sum | cut -c 1-40)
            echo "$CACHE/kernels/$(basename "$folder")_$digest"
        done
}

# ---- All of it -----------------------------------------------------------------------------------

read_arguments "$@"
from_root
refuse_machine
work=$(mktemp -d)
chmod 755 "$work"
something_changed='' packages='' first_steps='' is_new='' restart=''
unfinished='' switched='' upgraded='' ready='' waiting='' down=''
trap finish EXIT
trap 'say interrupted; exit 130' INT
trap 'say interrupted; exit 143' TERM HUP
trap 'exit 141' PIPE  # who read what it says is gone
only_one
finish_interrupted
[ -z "$finish_only" ] || exit 0
previous=$(readlink "$OPT/current" || true)
if [ -n "$rollback" ]; then
    roll_back
    exit 0
fi
refuse_foreign_command
warn_of_overlay
find_source
read_source
refuse_release
refuse_without_index
install_packages
refuse_release
make_release
make_user
make_folders
if is_another; then
    step "upgrading from $(basename "$previous")"
    check_settings
    warm_up
else
    warm_up
    unfinished=''  # before: what is in force must not be taken away
    [ -n "$previous" ] || switch_to "$release"
    install_units "$release"
fi
name_station
set_up_mosquitto
install_settings
# Last, so that whatever the instances have to take over is part of the proof.
if is_another; then
    unfinished=$release  # goes, if it does not prove itself
    replace_release
    show_new_examples "$previous" "$release"
fi
link_command
start_instance
sync -f "$OPT" "$ETC" "$UNITS" "$COMMAND"

if [ -z "$something_changed" ]; then
    step "nothing changed: $(basename "$release") is installed"
    exit 0
fi
step "inspectd doctor says:"
doctor 2>&1 | sed 's/^/    /' || true
step "$(basename "$release") is installed"
if [ -n "$first_steps" ]; then
    cat <<END
What to do next:
  1. Edit $file: the station's name, camera, trigger and broker.
     Until then its camera is a simulated one, and its verdicts are of drawn parts, not of yours.
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
