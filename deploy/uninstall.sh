#!/bin/sh
# Takes inspectd off this machine: sh deploy/uninstall.sh --help
set -eu
here=$(cd "$(dirname "$0")" && pwd)
# shellcheck source=deploy/lib.sh
. "$here/lib.sh"

usage() {
    cat <<'END'
Usage: sh deploy/uninstall.sh [--purge]

Stops inspectd and removes it; as root. What is yours stays: the settings in /etc/inspectd, the
references, journals and pictures in /var/lib/inspectd, the user inspectd, whose they are, and units
of your own. So do Debian's packages and the broker.

  --purge  remove these settings, references, journals, pictures and the user, too; but not what
           storage.directory keeps elsewhere, which is named, nor a user that install.sh did not make
  --help   print this
END
}

purge=''
while [ $# -gt 0 ]; do
    case $1 in
    --help) usage; exit 0 ;;
    --purge) purge=yes ;;
    *) say "there is no option $1; see --help"; exit 2 ;;
    esac
    shift
done
[ "$(id -u)" = 0 ] || fail "this must be run as root: sudo sh $0"
from_root
only_one

if [ -n "$purge" ] && [ -t 0 ] && [ -d /var/lib/inspectd ]; then
    printf 'All references, journals and pictures in /var/lib/inspectd (%s) will be lost.\n' \
        "$(du -sh /var/lib/inspectd | cut -f1)"
    printf 'Type "yes" to go on: '
    read -r answer
    [ "$answer" = yes ] || fail "nothing was removed"
fi

# remove PATH...: those that exist. What cannot be removed is told at the end, and keeps nothing else
# from being removed.
something_removed='' left=''
remove() {
    for path; do
        if [ ! -e "$path" ] && [ ! -L "$path" ]; then continue; fi
        something_removed=yes
        if [ -L "$path" ] && [ -d "$path" ]; then kept="$kept $(readlink -f "$path")"; fi
        if [ ! -L "$path" ] && mountpoint -q "$path"; then
            printf 'emptying %s, where something is mounted\n' "$path"
            find "$path" -xdev -mindepth 1 -delete || left="$left $path"
        else
            printf 'removing %s\n' "$path"
            rm -rf "$path" || left="$left $path"
        fi
    done
}

# The folders of stations that lie elsewhere, as long as there is an inspectd to ask.
stored_elsewhere() {
    [ -x /opt/inspectd/current/bin/python ] || return 0
    for file in /etc/inspectd/*.yaml; do
        [ -e "$file" ] || continue
        folder=$(settings_say /opt/inspectd/current "$file" directory 2>/dev/null) ||
            folder="(the storage.directory of $file, which cannot be read)"
        case $folder in
        /var/lib/inspectd/* | /etc/inspectd/*) ;;
        *) printf ' %s' "$folder" ;;
        esac
    done
}

# stop_units PATTERN...
stop_units() {
    for unit in $(systemctl list-units --plain --no-legend \
        --state=active,reloading,activating,deactivating "$@" | awk '{print $1}'); do
        printf 'stopping %s\n' "$unit"
        systemctl stop "$unit" || fail "$unit could not be stopped (above); nothing was removed"
    done
}

# The user that install.sh makes, and no login of a person's of the same name.
is_own_user() {
    getent passwd inspectd | awk -F: '$3 >= 1000 || $6 != "/var/lib/inspectd" {exit 1}'
}

remove_user() {
    getent passwd inspectd >/dev/null || return 0
    if ! is_own_user; then
        echo "the user inspectd is kept: it is not the one that install.sh makes"
        return
    fi
    printf 'removing the user inspectd\n'
    userdel inspectd || left="$left the user inspectd"
    something_removed=yes
}

kept=$(stored_elsewhere)
# Others are the user's, whatever they are called.
own=$(units_in /opt/inspectd/releases/*/share/inspectd/systemd "$here/../systemd")
# shellcheck disable=SC2086  # a list
[ ! -d /run/systemd/system ] || stop_units 'inspectd@*' $own
# As systemctl disable, also for an instance whose unit is gone.
remove /etc/systemd/system/*.wants/inspectd@*.service
for name in $own; do remove /etc/systemd/system/*.wants/"$name" /etc/systemd/system/"$name"; done
if [ -d /run/systemd/system ]; then
    systemctl daemon-reload
    systemctl reset-failed 'inspectd@*'
    # One that had not failed is not known any more.
    for name in $own; do systemctl reset-failed "$name" 2>/dev/null || true; done
fi
if [ "$(readlink /usr/local/bin/inspectd)" = /opt/inspectd/current/bin/inspectd ]; then
    remove /usr/local/bin/inspectd
fi
remove /opt/inspectd /var/cache/inspectd
if [ -n "$purge" ]; then
    remove /etc/inspectd /var/lib/inspectd /etc/systemd/system/inspectd@*.service.d
    for name in $own; do remove "/etc/systemd/system/$name.d"; done
    remove_user
fi
if [ -z "$something_removed" ]; then
    echo "nothing to remove: inspectd is not installed"
elif [ -z "$purge" ]; then
    echo "inspectd is removed; /etc/inspectd, /var/lib/inspectd and the user inspectd are kept"
else
    echo "inspectd is removed, with its settings, references, journals and pictures"
    [ -z "$kept" ] || echo "kept, for it lies elsewhere:$kept"
fi
[ -z "$left" ] || fail "could not be removed:$left"
