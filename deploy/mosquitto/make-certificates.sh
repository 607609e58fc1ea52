#!/bin/sh
# An authority of one's own, and the certificates that it signs: for the broker, and for clients
# where the broker demands one.
set -eu
umask 077

usage() {
    cat <<'END'
usage: sh make-certificates.sh [OPTION]... COMMAND
  authority           make the authority: ca.pem, and its key in authority/
  broker HOST...      make broker.crt and broker.key for these host names and addresses
  client NAME         make clients/NAME.crt and clients/NAME.key
  renew [HOST...]     sign the broker's certificate anew, for the names that it has, or for these
  renew-client NAME   sign the client's certificate anew
  names               the broker certificate's names, one a line
  show                who the certificates are for, and how long they last
options
  --directory DIR     where they all lie (default /etc/mosquitto/inspectd)
  --days N            how long they are valid (default 3650; the authority 7300)
  --key ec|rsa        kind of a new key (default ec: P-256; rsa: 3072 bits, for old PLCs)
  --owner USER        who may read broker.key (default: mosquitto if root runs this)
Nothing is ever overwritten but by renew, which keeps the old certificate as FILE.old. Keys are only
readable by their owner.
END
}

say() { printf 'make-certificates: %s\n' "$*" >&2; }
fail() { say "$*"; exit 1; }

directory=/etc/mosquitto/inspectd
days=
kind=ec
owner=
[ "$(id -u)" != 0 ] || owner=mosquitto
while [ $# -gt 0 ]; do
    case $1 in
        --directory | --days | --key | --owner)
            [ $# -ge 2 ] || fail "$1 needs a value"
            case $1 in
                --directory) directory=$2 ;;
                --days) days=$2 ;;
                --key) kind=$2 ;;
                --owner) owner=$2 ;;
            esac
            shift 2
            ;;
        -h | --help) usage; exit 0 ;;
        -*) fail "there is no option $1; see --help" ;;
        *) break ;;
    esac
done
case $days in *[!0-9]* | 0*) fail "--days $days: write a whole number of days, 1 or more" ;; esac
case $kind in ec | rsa) ;; *) fail "--key $kind: write ec or rsa" ;; esac
command -v openssl >/dev/null || fail "openssl is not installed; as root: apt-get install openssl"
[ -z "$owner" ] || id "$owner" >/dev/null 2>&1 ||
    fail "there is no user $owner; install Mosquitto first: apt-get install mosquitto"

authority=$directory/authority
ca=$directory/ca.pem

refuse_existing() {
    for file; do
        [ ! -e "$file" ] || fail "$file is there already; to sign a certificate anew: renew"
    done
}

need_authority() {
    for file in "$ca" "$authority/ca.key"; do
        [ -e "$file" ] || fail "there is no $file; make it: make-certificates.sh authority"
    done
    openssl x509 -in "$ca" -noout -checkend 0 >/dev/null ||
        fail "the authority $ca has expired; make a new one in another folder, and give its" \
            "ca.pem to every station and client"
}

check_name() {
    case $1 in
        '' | -* | *[!A-Za-z0-9_.-]*) fail "'$1' is no name: letters, digits, '.', '-' and '_'" ;;
    esac
    [ "${#1}" -le 64 ] || fail "'$1' is too long; a certificate has room for 64 characters"
}

# subject_names HOST... prints DNS:broker.plant,IP:10.0.0.5
subject_names() {
    names=
    for host; do
        case $host in
            '' | -* | .* | *[!A-Za-z0-9.:_-]*)
                fail "'$host' is neither a host name nor an address"
                ;;
            *:*) name=IP:$host ;;
            *[!0-9.]*) name=DNS:$host ;;
            *) name=IP:$host ;;
        esac
        case $names, in *,$name,*) ;; *) names=$names,$name ;; esac
    done
    printf '%s' "${names#,}"
}

make_key() {
    case $kind in
        ec) set -- "$1" -algorithm EC -pkeyopt ec_paramgen_curve:P-256 ;;
        rsa) set -- "$1" -algorithm RSA -pkeyopt rsa_keygen_bits:3072 ;;
    esac
    key=$1
    shift
    openssl genpkey -quiet "$@" -out "$key.half" || fail "openssl could not make the key $key"
    mv "$key.half" "$key"
}

# write_settings COMMON_NAME SUBJECT_NAMES prints openssl's settings.
# They begin long ago, for a Raspberry Pi without network time comes up with an old date.
# Extensions as RFC 5280 wants them: strict clients refuse a certificate without.
write_settings() {
    cat <<END
[ca]
default_ca = own
[own]
database = $authority/index.txt
new_certs_dir = $authority/issued
certificate = $ca
private_key = $authority/ca.key
rand_serial = yes
unique_subject = no
default_md = sha256
default_startdate = 20200101000000Z
policy = any
[any]
organizationName = optional
commonName = supplied
[req]
prompt = no
distinguished_name = subject
[subject]
O = inspectd
CN = $1
[authority]
basicConstraints = critical, CA:TRUE, pathlen:0
keyUsage = critical, keyCertSign, cRLSign
subjectKeyIdentifier = hash
[broker]
basicConstraints = critical, CA:FALSE
keyUsage = critical, digitalSignature, keyEncipherment
extendedKeyUsage = serverAuth
subjectKeyIdentifier = hash
authorityKeyIdentifier = keyid
subjectAltName = ${2:-DNS:unused}
[client]
basicConstraints = critical, CA:FALSE
keyUsage = critical, digitalSignature
extendedKeyUsage = clientAuth
subjectKeyIdentifier = hash
authorityKeyIdentifier = keyid
END
}

scratch=
trap '[ -z "$scratch" ] || rm -rf "$scratch"' EXIT
trap 'exit 1' HUP INT TERM

# ends_within CERTIFICATE DAYS
ends_within() { ! openssl x509 -in "$1" -noout -checkend $(($2 * 86400)) >/dev/null; }

# end CERTIFICATE, in words
end() { openssl x509 -in "$1" -noout -enddate | sed 's/^notAfter=//'; }

# sign SECTION COMMON_NAME SUBJECT_NAMES KEY OUT [--selfsign]
sign() {
    scratch=$(mktemp -d "$directory/.signing-XXXXXX")
    write_settings "$2" "$3" >"$scratch/settings"
    openssl req -new -config "$scratch/settings" -key "$4" -out "$scratch/request" ||
        fail "openssl could not use the key $4"
    # Never longer than the authority itself.
    lasting=${days:-3650}
    if [ "$1" != authority ] && ends_within "$ca" "$lasting"; then
        set -- "$@" -enddate "$(authority_end)"
        say "valid no longer than the authority, until $(end "$ca")"
    else
        set -- "$@" -days "$lasting"
    fi
    out=$5
    section=$1
    shift 5
    openssl ca -batch -notext -config "$scratch/settings" -extensions "$section" \
        -in "$scratch/request" -out "$scratch/certificate" "$@" 2>"$scratch/said" ||
        fail "openssl could not sign: $(cat "$scratch/said")"
    mv "$scratch/certificate" "$out"
    rm -rf "$scratch"
    scratch=
}

# The authority's end in the form YYYYMMDDHHMMSSZ.
authority_end() {
    date -u -d "$(end "$ca")" +%Y%m%d%H%M%SZ
}

publish() {
    chmod 644 "$1"
}

own() {
    chmod 600 "$1"
    [ -z "$owner" ] || chown "$owner:" "$1"
}

make_authority() {
    refuse_existing "$ca"
    mkdir -p "$directory" "$authority/issued"
    # Open to the broker, which gives up root; what is secret in it has modes of its own.
    chmod 755 "$directory"
    : >>"$authority/index.txt"
    # A key alone: an attempt was cut short, or the certificate is lost. Made anew from the same
    # key, it is as good as the old one.
    [ -e "$authority/ca.key" ] || make_key "$authority/ca.key"
    days=${days:-7300}
    sign authority "inspectd authority of $(hostname)" '' "$authority/ca.key" "$ca" -selfsign
    publish "$ca"
    say "made the authority $ca; whoever connects needs this file. Keep $authority secret and safe"
}

# Both before either: a key without a certificate would be left over.
make_broker() {
    [ $# -gt 0 ] || fail "broker needs a host name or address by which clients reach it"
    need_authority
    refuse_existing "$directory/broker.crt" "$directory/broker.key"
    names=$(subject_names "$@")
    make_key "$directory/.broker.key"
    sign broker "$(short_name "$1")" "$names" "$directory/.broker.key" "$directory/.broker.crt"
    mv "$directory/.broker.key" "$directory/broker.key"
    mv "$directory/.broker.crt" "$directory/broker.crt"
    own "$directory/broker.key"
    publish "$directory/broker.crt"
    say "made $directory/broker.crt for $*"
}

# A common name has room for 64 characters; clients look at the subject names alone.
short_name() { printf '%.64s' "$1"; }

make_client() {
    check_name "${1:-}"
    need_authority
    mkdir -p "$directory/clients"
    stem=$directory/clients/$1
    refuse_existing "$stem.crt" "$stem.key"
    make_key "$stem.key.new"
    sign client "$1" '' "$stem.key.new" "$stem.crt"
    mv "$stem.key.new" "$stem.key"
    publish "$stem.crt"
    say "made $stem.crt and $stem.key; the client needs both"
}

# present_names CERTIFICATE prints its host names and addresses, one a line.
present_names() {
    openssl x509 -in "$1" -noout -ext subjectAltName |
        sed -n 's/^ *//; /DNS:\|IP Address:/{s/, /\n/g; s/DNS://g; s/IP Address://g; p}'
}

# replace CERTIFICATE by CERTIFICATE.new, keeping the old one; never is there none.
replace() {
    publish "$1.new"
    cp -p "$1" "$1.old"
    mv "$1.new" "$1"
    say "signed $1 anew, valid until $(end "$1"); the one before is $1.old"
}

renew_broker() {
    need_authority
    for file in "$directory/broker.crt" "$directory/broker.key"; do
        [ -e "$file" ] || fail "there is no $file to renew; make it by: broker HOST..."
    done
    # shellcheck disable=SC2046  # names hold no spaces
    [ $# -gt 0 ] || set -- $(present_names "$directory/broker.crt")
    names=$(subject_names "$@")
    sign broker "$(short_name "$1")" "$names" "$directory/broker.key" "$directory/broker.crt.new"
    replace "$directory/broker.crt"
    say "it is for $*. Mosquitto takes it with: systemctl reload mosquitto"
}

renew_client() {
    check_name "${1:-}"
    need_authority
    stem=$directory/clients/$1
    for file in "$stem.crt" "$stem.key"; do
        [ -e "$file" ] || fail "there is no $file to renew; make it by: client NAME"
    done
    sign client "$1" '' "$stem.key" "$stem.crt.new"
    replace "$stem.crt"
}

show() {
    for file in "$ca" "$directory/broker.crt" "$directory"/clients/*.crt; do
        [ -e "$file" ] || continue
        printf '%s\n' "$file"
        openssl x509 -in "$file" -noout -subject -enddate -ext subjectAltName 2>/dev/null |
            sed 's/^ */    /'
    done
}

command=${1:-}
[ $# -eq 0 ] || shift
case $command in
    authority) make_authority ;;
    broker) make_broker "$@" ;;
    client) make_client "$@" ;;
    renew) renew_broker "$@" ;;
    renew-client) renew_client "$@" ;;
    names) present_names "$directory/broker.crt" ;;
    show) show ;;
    *) usage >&2; exit 2 ;;
esac
