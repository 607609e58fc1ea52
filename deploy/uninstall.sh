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
references, journals and pictures in /var/lib/inspectd, and the user inspectd, whose they are. So do
Debian's packages and the broker.

  --purge  remove these settings, references, journals, pictures and the user, too
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

if [ -n "$purge" ] && [ -t 0 ] && [ -d /var/lib/inspectd ]; then
    printf 'All references, journals and pictures in /var/lib/inspectd (%s) will be lost.\n' \
        "$(du -sh /var/lib/inspectd | cut -f1)"
    printf 'Type "yes" to go on: '
    read -r answer
    [ "$answer" = yes ] || fail "nothing was removed"
fi

# remove PATH...: those that exist.
something_removed=''
remove() {
    for path; do
        if [ -e "$path" ] || [ -L "$path" ]; then
            printf 'removing %s\n' "$path"
            rm -rf "$path"
            something_removed=yes
        fi
    done
}

if [ -d /run/systemd/system ]; then
    for unit in $(systemctl list-units --plain --no-legend \
        --state=active,reloading,activating,deactivating 'inspectd@*' 'inspectd-*' |
        awk '{print $1}'); do
        printf 'stopping %s\n' "$unit"
        systemctl stop "$unit"
    done
fi
# As systemctl disable, also for an instance whose unit is gone.
remove /etc/systemd/system/*.wants/inspectd@*.service /etc/systemd/system/*.wants/inspectd-*.service
remove /etc/systemd/system/inspectd*.service
if [ -d /run/systemd/system ]; then
    systemctl daemon-reload
    systemctl reset-failed 'inspectd@*' 'inspectd-*'
fi
if [ "$(readlink /usr/local/bin/inspectd)" = /opt/inspectd/current/bin/inspectd ]; then
    remove /usr/local/bin/inspectd
fi
remove /opt/inspectd /var/cache/inspectd
if [ -n "$purge" ]; then
    remove /etc/inspectd /var/lib/inspectd /etc/systemd/system/inspectd*.service.d
    if getent passwd inspectd >/dev/null; then
        printf 'removing the user inspectd\n'
        userdel inspectd
        something_removed=yes
    fi
fi
if [ -z "$something_removed" ]; then
    echo "nothing to remove: inspectd is not installed"
elif [ -z "$purge" ]; then
    echo "inspectd is removed; /etc/inspectd, /var/lib/inspectd and the user inspectd are kept"
else
    echo "inspectd is removed, with its settings, references, journals and pictures"
fi
