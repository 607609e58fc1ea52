#!/bin/sh
# Makes this machine's Mosquitto the broker of inspectd's stations: TLS, passwords, access list.
# It may be run again at any time: it changes only what is missing or has changed.
set -eu
umask 077

usage() {
    cat <<'END'
usage: sh deploy/mosquitto/setup.sh [OPTION]...; without any, it looks after what there is
  --station NAME       the station on this machine (the name in its station file)
  --instance NAME      of inspectd@NAME.service that runs it (default: default)
  --host NAME          host name or address by which others reach this broker; may be repeated.
                       localhost, this machine's name and name.local are always in its certificate
  --add-station NAME   a station on another machine; may be repeated
  --home-assistant     a user for Home Assistant
  --new-password USER  a new password for this user; may be repeated. That of a station on this
                       machine together with its --station and --instance
  --port PORT          where it listens (default 8883)
  --bind ADDRESS       listen on this address of the machine only; any: on all
  --check              change nothing; see whether the broker works as it should
  --root DIR           all files below DIR, no service restarted: to try it out
END
}

say() { printf 'inspectd: %s\n' "$*" >&2; }
fail() { say "$*"; exit 1; }

check_word() {
    case $1 in *[!A-Za-z0-9_-]*) fail "'$1': only letters, digits, '-' and '_' are allowed" ;; esac
}

check_station() {
    check_word "$1"
    case $1 in
        scada | homeassistant) fail "'$1' is a user of its own; name the station otherwise" ;;
    esac
}

check_host() {
    case $1 in *[!A-Za-z0-9.:_-]*) fail "'$1' is neither a host name nor an address" ;; esac
}

here=$(cd "$(dirname "$0")" && pwd)
station='' instance=default hosts='' added='' renewed='' home_assistant='' port='' bind='' root=''
check_only=''
while [ $# -gt 0 ]; do
    case $1 in
        --home-assistant) home_assistant=yes; shift; continue ;;
        --check) check_only=yes; shift; continue ;;
        -h | --help) usage; exit 0 ;;
        --station | --instance | --host | --add-station | --new-password) ;;
        --port | --bind | --root) ;;
        *) fail "there is no option $1; see --help" ;;
    esac
    [ -n "${2:-}" ] || fail "$1 needs a value"
    case $1 in
        --station | --add-station) check_station "$2" ;;
        --instance | --new-password) check_word "$2" ;;
        --host | --bind) check_host "$2" ;;
    esac
    case $1 in
        --station) station=$2 ;;
        --instance) instance=$2 ;;
        --host) hosts="$hosts $2" ;;
        --add-station) added="$added $2" ;;
        --new-password) renewed="$renewed $2" ;;
        --port) port=$2 ;;
        --bind) bind=$2 ;;
        --root) root=${2%/} ;;
    esac
    shift 2
done

case $port in *[!0-9]* | 0*) fail "--port $port: a number from 1 to 65535" ;; esac
case $root in
    *[!A-Za-z0-9/._-]* | [!/]*) fail "--root $root: an absolute path of plain characters" ;;
esac
[ -n "$root" ] || [ "$(id -u)" = 0 ] || fail "this needs root: sudo sh $0 ..."

PATH=$PATH:/usr/sbin:/usr/local/sbin
for program in mosquitto mosquitto_passwd mosquitto_pub openssl; do
    command -v "$program" >/dev/null || fail "there is no $program; as root:" \
        "apt-get install --no-install-recommends mosquitto mosquitto-clients openssl"
done
owner=
if [ "$(id -u)" = 0 ]; then
    id mosquitto >/dev/null 2>&1 || fail "there is no user mosquitto; reinstall the package"
    owner=mosquitto
fi

broker=$root/etc/mosquitto/inspectd
settings=$root/etc/mosquitto/conf.d/inspectd.conf
passwords=$broker/passwords
if [ -z "$station$added" ] && [ ! -e "$settings" ]; then
    usage >&2
    fail "there is no broker set up here yet: begin with --station NAME or --add-station NAME"
fi
own_certificate=$broker/clients/check
credentials=$root/etc/inspectd/credentials
station_password=$credentials/$instance.mqtt-password
stations=$broker/stations
changed=
restart_needed=

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
trap 'exit 1' HUP INT TERM

# For the broker, which gives up root before it reads them.
give() {
    chmod 600 "$1"
    [ -z "$owner" ] || chown "$owner:" "$1"
}

# ---- certificates --------------------------------------------------------------------------------

certificates() {
    sh "$here/make-certificates.sh" --directory "$broker" "$@"
}

# One that IT has put there is left alone, but for a word on what it lacks.
is_ours() { [ -e "$broker/authority/ca.key" ]; }

has_name() {
    case $1 in
        *:*) kind=-checkip ;;
        *[!0-9.]*) kind=-checkhost ;;
        *) kind=-checkip ;;
    esac
    openssl x509 -in "$broker/broker.crt" -noout "$kind" "$1" | grep -q 'does match'
}

demands_certificates() { [ -e "$settings" ] && grep -q '^require_certificate true' "$settings"; }

set_up_certificates() {
    machine=$(hostname)
    # shellcheck disable=SC2086  # a list
    set -- localhost 127.0.0.1 ::1 "$machine" "$machine.local" $hosts
    case $bind in '' | any) ;; *) set -- "$@" "$bind" ;; esac
    [ -e "$broker/ca.pem" ] || certificates authority
    if demands_certificates && is_ours && [ ! -e "$own_certificate.crt" ]; then
        certificates client check
    fi
    if [ ! -e "$broker/broker.crt" ]; then
        certificates broker "$@"
        changed=yes
        return
    fi
    missing=
    for name; do has_name "$name" || missing="$missing $name"; done
    if ! is_ours; then
        [ -z "$missing" ] || say "note: $broker/broker.crt is not valid for$missing"
        return
    fi
    if [ -n "$missing" ]; then
        # shellcheck disable=SC2046,SC2086  # lists
        certificates renew $(certificates names) $missing
        changed=yes
    elif ! openssl x509 -in "$broker/broker.crt" -noout -checkend $((30 * 86400)) >/dev/null; then
        certificates renew
        changed=yes
    fi
}

# ---- users ---------------------------------------------------------------------------------------

is_user() { [ -e "$passwords" ] && grep -q "^$1:" "$passwords"; }

make_password() {
    mkdir -p "$(dirname "$1")"
    openssl rand -hex 24 >"$1.new"
    mv "$1.new" "$1"
}

# Neither on a command line nor in the environment, where others could read it.
add_user() {
    printf '%s:%s\n' "$1" "$(cat "$2")" >"$scratch/user"
    mosquitto_passwd -U "$scratch/user" >/dev/null ||
        fail "mosquitto_passwd could not make the user $1"
    [ ! -e "$passwords" ] || grep -v "^$1:" "$passwords" >"$scratch/passwords" || :
    cat "$scratch/user" >>"$scratch/passwords"
    mv "$scratch/passwords" "$passwords.new"
    give "$passwords.new"
    mv "$passwords.new" "$passwords"
    changed=yes
}

is_renewed() { case " $renewed " in *" $1 "*) ;; *) return 1 ;; esac; }

# user NAME FILE: who has a password keeps it; FILE may have been carried away since.
user() {
    if is_renewed "$1"; then rm -f "$2"; elif is_user "$1"; then return 0; fi
    [ -s "$2" ] || make_password "$2"
    add_user "$1" "$2"
    say "the password of user $1 lies in $2"
}

# The station on this machine has what lies in its file, wherever that comes from, such as a backup:
# the broker follows. What it has followed already, $stations/INSTANCE tells: the station's name, and
# a sum of its password and of the hash made of it.
set_up_station() {
    mkdir -p "$credentials" "$stations"
    # Without this file the service cannot have it, and nobody else does.
    if [ ! -s "$station_password" ] || is_renewed "$station"; then
        make_password "$station_password"
    fi
    if [ -e "$stations/$instance" ] && followed | cmp -s - "$stations/$instance"; then return; fi
    add_user "$station" "$station_password"
    followed >"$stations/$instance.new"
    mv "$stations/$instance.new" "$stations/$instance"
    say "the password of user $station lies in $station_password"
}

followed() {
    printf '%s\n' "$station"
    { grep -s "^$station:" "$passwords" || :; cat "$station_password"; } | sha256sum
}

# instances: of the stations on this machine whose passwords are there.
instances() {
    for record in "$stations"/*; do
        name=${record##*/}
        [ ! -e "$credentials/$name.mqtt-password" ] || printf '%s\n' "$name"
    done
}

station_of() { sed -n 1p "$stations/$1"; }

# For the password that a service has must be the one that it is given at its next start.
refuse_another_file() {
    for here_runs in $(instances); do
        name=$(station_of "$here_runs")
        [ "$name $here_runs" != "$station $instance" ] || continue
        whose="$name is the station of inspectd@$here_runs on this machine, which has its password"
        whose="$whose from $credentials/$here_runs.mqtt-password"
        ! is_renewed "$name" || fail "$whose: $(new_password "$name" "$here_runs")"
        [ "$name" != "$station" ] ||
            fail "$whose: write --instance $here_runs, or remove that file if it is out of use"
    done
}

# new_password NAME INSTANCE: how a station on this machine gets one.
new_password() {
    echo "setup.sh --station $1 --instance $2 --new-password $1, then systemctl restart inspectd@$2"
}

set_up_users() {
    mkdir -p "$broker/credentials"
    [ -z "$station" ] || set_up_station
    user scada "$broker/credentials/scada"
    [ -z "$home_assistant" ] || user homeassistant "$broker/credentials/homeassistant"
    for name in $added; do user "$name" "$broker/credentials/$name"; done
    done_above="$station scada ${home_assistant:+homeassistant} $added"
    for name in $renewed; do
        case " $done_above " in *" $name "*) continue ;; esac
        is_user "$name" || fail "--new-password $name: there is no such user in $passwords"
        user "$name" "$broker/credentials/$name"
    done
    give "$passwords"
}

# ---- configuration -------------------------------------------------------------------------------

# install_made NEW FILE: puts NEW in place; an edited one is kept beside it.
install_made() {
    name=$(basename "$2")
    if [ -e "$2" ] && cmp -s "$1" "$2"; then return; fi
    if [ -e "$2" ] && ! cmp -s "$2" "$broker/made/$name"; then
        cp "$2" "$broker/$name.edited"
        say "$2 had been edited: it is made anew, and the edited one is $broker/$name.edited"
    fi
    mkdir -p "$broker/made"
    cp "$1" "$broker/made/$name"
    cp "$1" "$2.new"
    changed=yes
    case $2 in "$settings") chmod 644 "$2.new"; restart_needed=yes ;; *) give "$2.new" ;; esac
    mv "$2.new" "$2"
}

make_access_list() {
    cat "$here/access-list"
    printf '\n# ---- The stations, one by one\n'
    cut -d: -f1 "$passwords" | while read -r name; do
        case $name in scada | homeassistant) continue ;; esac
        cat <<END
user $name
topic write homeassistant/device/inspectd_$name/config
topic read homeassistant/status
topic read spBv1.0/STATE/+
END
    done
    [ ! -e "$broker/access-list.local" ] || cat "$broker/access-list.local"
}

make_settings() {
    before=
    [ ! -e "$settings" ] || before=$(sed -n 's/^listener //p' "$settings")
    [ -n "$port" ] || port=${before%% *}
    case $before in *' '*) [ -n "$bind" ] || bind=${before#* } ;; esac
    [ "$bind" != any ] || bind=
    set -- -e "s|^listener .*|listener ${port:-8883}${bind:+ $bind}|" \
        -e "s|/etc/mosquitto/inspectd/|$broker/|"
    ! demands_certificates || set -- "$@" -e 's|^#\(cafile \)|\1|; s|^#\(require_certificate \)|\1|'
    sed "$@" "$here/inspectd.conf"
}

set_up_configuration() {
    make_access_list >"$scratch/access-list"
    install_made "$scratch/access-list" "$broker/access-list"
    [ ! -e "$settings" ] || cp "$settings" "$scratch/before"
    make_settings >"$scratch/settings"
    install_made "$scratch/settings" "$settings"
    [ -z "$station" ] || install_authority
}

install_authority() {
    ca=$root/etc/inspectd/ca.pem
    if [ -e "$ca" ] && cmp -s "$broker/ca.pem" "$ca"; then return; fi
    if [ -e "$ca" ]; then
        cp "$ca" "$ca.old"
        say "$ca was that of another authority: it is $ca.old now"
    fi
    cp "$broker/ca.pem" "$ca.new"
    chmod 644 "$ca.new"
    mv "$ca.new" "$ca"
}

# ---- the broker ----------------------------------------------------------------------------------

apply() {
    if [ ! -d /run/systemd/system ]; then
        say "no systemd runs here: start Mosquitto yourself, and try it by: setup.sh --check"
        exit 0
    fi
    systemctl --quiet enable mosquitto
    if [ -n "$restart_needed" ] || ! systemctl --quiet is-active mosquitto; then
        systemctl restart mosquitto || take_back
    elif [ -n "$changed" ]; then
        # Connections stay.
        systemctl reload mosquitto
    fi
}

take_back() {
    journalctl --no-pager --lines 20 --unit mosquitto >&2 || :
    # Those before may be the same, or never have worked either.
    if [ -e "$scratch/before" ] && ! cmp -s "$scratch/before" "$settings"; then
        cp "$settings" "$scratch/refused"
        replace_settings "$scratch/before"
        ! systemctl restart mosquitto ||
            fail "Mosquitto does not start with the new $settings: the old one is in force again"
        replace_settings "$scratch/refused"
    fi
    fail "Mosquitto does not start with $settings; its words are above, and in" \
        "/var/log/mosquitto/mosquitto.log. Another file in /etc/mosquitto may set the same key"
}

replace_settings() {
    cp "$1" "$settings"
    cp "$1" "$broker/made/inspectd.conf"
}

# attempt USER FILE: one message, over TLS; says what is in the way. Host names are checked in the
# certificate itself, since this machine may go by another one.
attempt() {
    : >"$scratch/mosquitto_pub"
    [ -z "$1" ] || printf -- '-u %s\n-P %s\n' "$1" "$(cat "$2")" >"$scratch/mosquitto_pub"
    set -- -t "inspectd/${1:-nobody}/doctor" -n
    ! demands_certificates || set -- "$@" --cert "$own_certificate.crt" --key "$own_certificate.key"
    XDG_CONFIG_HOME=$scratch mosquitto_pub -V 5 -h "$address" -p "$listening" --insecure \
        --cafile "$broker/ca.pem" -q 1 "$@" 2>&1
}

first_line() { printf '%s\n' "$1" | sed -n 1p; }

# let_in USER FILE REMEDY: after a change the broker may just be starting, or reading its files anew:
# ten seconds.
let_in() {
    tries=0
    patience=20
    [ -z "$check_only" ] || patience=1
    until said=$(attempt "$1" "$2"); do
        tries=$((tries + 1))
        [ "$tries" -lt "$patience" ] ||
            fail "$where does not let in user $1 ($(first_line "$said"))." \
                "If the password is wrong: $3"
        sleep 0.5
    done
}

# try_user NAME FILE INSTANCE: of the station on this machine that it is; empty for anybody else.
try_user() {
    if [ ! -s "$2" ]; then
        say "note: there is no $2; user $1 is not tried"
    elif [ -n "$3" ]; then
        let_in "$1" "$2" "$(new_password "$1" "$3")"
    else
        let_in "$1" "$2" "setup.sh --new-password $1"
    fi
}

check() {
    before=$(sed -n 's/^listener //p' "$settings")
    listening=${before%% *}
    address=127.0.0.1
    case $before in *' '*) address=${before#* } ;; esac
    where="the broker on $address:$listening"
    for each in $(instances); do
        [ -z "$station" ] || [ "$each" != "$instance" ] || continue
        try_user "$(station_of "$each")" "$credentials/$each.mqtt-password" "$each"
    done
    [ -z "$station" ] || try_user "$station" "$station_password" "$instance"
    try_user scada "$broker/credentials/scada" ''
    if said=$(attempt '' ''); then
        fail "$where lets in anyone without a password: another file in" \
            "/etc/mosquitto allows it (allow_anonymous, per_listener_settings)"
    fi
    case $said in
        *[Nn]'ot authori'[sz]ed*) ;;
        *) fail "$where does not work: $(first_line "$said")" ;;
    esac
    say "$where lets in its users over TLS, and nobody without a password"
}

# ---- what next -----------------------------------------------------------------------------------

service_runs() {
    case $(systemctl show -P ActiveState "inspectd@$instance" 2>/dev/null) in
        '' | inactive | failed) return 1 ;;
    esac
}

tell() {
    if [ -n "$station" ]; then
        cat <<END
The station file of $station needs:
  mqtt:
    host: localhost
    port: ${port:-8883}
    username: $station
    password_file: \$CREDENTIALS_DIRECTORY/mqtt-password
    tls: {ca: /etc/inspectd/ca.pem}
END
        ! service_runs || echo "then systemctl restart inspectd@$instance:" \
            "it is given its password at the start only"
    fi
    for name in $added; do
        cat <<END
The machine of $name needs
  $broker/credentials/$name as /etc/inspectd/credentials/default.mqtt-password
  $broker/ca.pem as /etc/inspectd/ca.pem
END
    done
    cat <<END
SCADA: user scada, port ${port:-8883}, TLS with the authority $broker/ca.pem;
  its password lies in $broker/credentials/scada
END
}

if [ -z "$check_only" ]; then
    refuse_another_file
    (umask 022 && mkdir -p "$broker" "$(dirname "$settings")" "$root/etc/inspectd")
    set_up_certificates
    set_up_users
    set_up_configuration
    [ -z "$changed" ] || sync -f "$broker" "$root/etc/inspectd"
    [ -n "$root" ] || apply
fi
if [ -n "$check_only" ]; then
    check
else
    [ -n "$root" ] || check
    tell
fi
