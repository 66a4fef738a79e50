#!/usr/bin/env bash
# Installs what `chaos compare` runs beside Trilithon: etcd, HAProxy, PgBouncer, and Patroni in a Python environment of its own.
#
#   etcd, haproxy   Debian's (Ubuntu's) packages; the services that come with them are stopped and disabled
#   pgbouncer       the system's package where it is 1.21 or newer; otherwise Debian 13's source package, built into DIR/bin. Older ones
#                   lose the prepared statements of clients in transaction mode, which would count against the peer for no good reason
#   patroni         from PyPI, with psycopg, in DIR/venv, at the versions below
#
# DIR is /opt/chaos-peers, or what CHAOS_PEERS names; Postgres's user must be able to read it. Whatever is there already stays, so
# a second run changes nothing. To undo it: remove DIR, and the packages etcd-server and haproxy.
set -euo pipefail

DIR="${CHAOS_PEERS:-/opt/chaos-peers}"
# The newest that the comparison in docs/CHAOS.md was made with.
PATRONI=4.1.5
PSYCOPG=3.3.9
PGBOUNCER_LEAST=1.21
# Whose sources are built where the system's PgBouncer is too old.
SOURCE_RELEASE=trixie

say() { echo "peers: $*"; }
have() { command -v "$1" >/dev/null 2>&1; }
as_root() { if [ "$(id -u)" -eq 0 ]; then "$@"; else sudo --non-interactive "$@"; fi; }
apt() { as_root env DEBIAN_FRONTEND=noninteractive apt-get -y -q -o DPkg::Lock::Timeout=300 -o Dpkg::Use-Pty=0 "$@" </dev/null; }

have apt-get || {
  say "this script knows Debian and Ubuntu only. Elsewhere install etcd 3.4 or newer, HAProxy 2.6 or newer, PgBouncer 1.21 or newer, and" >&2
  say "\`pip install 'patroni[etcd3]==$PATRONI' 'psycopg[binary]==$PSYCOPG'\` into a venv at $DIR/venv" >&2
  exit 1
}

install_packages() {
  local missing=() package
  for package in "$@"; do
    dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || missing+=("$package")
  done
  [ "${#missing[@]}" -eq 0 ] && return 0
  say "installing ${missing[*]}"
  apt update >/dev/null || say "apt-get update failed; trying with the package lists there are" >&2
  apt install --no-install-recommends "${missing[@]}"
  # Worlds start their own; a service of this machine is for whoever wants one.
  [ -d /run/systemd/system ] || return 0
  case " ${missing[*]} " in *" etcd-server "*) as_root systemctl disable -q --now etcd ;; esac
  case " ${missing[*]} " in *" haproxy "*) as_root systemctl disable -q --now haproxy ;; esac
}

# `PgBouncer 1.24.1` → 1.24.1
version_of() { "$1" --version 2>/dev/null | sed -nE '1s/^[^0-9]*([0-9.]+).*/\1/p'; }
new_enough() { [ -x "$1" ] && printf '%s\n%s\n' "$PGBOUNCER_LEAST" "$(version_of "$1")" | sort -V -C; }

# With package lists of its own: the system's stay as they are.
fetch_sources() {
  local lists="$1/lists"
  mkdir -p "$lists/partial"
  echo "deb-src [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] http://deb.debian.org/debian $SOURCE_RELEASE main" >"$1/sources.list"
  local own=(-q -o "Dir::Etc::sourcelist=$1/sources.list" -o Dir::Etc::sourceparts=- -o "Dir::State::lists=$lists" -o Dir::Cache::pkgcache= -o Dir::Cache::srcpkgcache=)
  apt-get update "${own[@]}" >/dev/null
  (cd "$1" && apt-get source "${own[@]}" --download-only pgbouncer >/dev/null)
  tar -xzf "$1"/pgbouncer_*.orig.tar.gz -C "$1"
}

build_pgbouncer() {
  install_packages gcc make pkg-config libevent-dev libssl-dev dpkg-dev debian-archive-keyring
  local work
  work="$(mktemp -d)"
  say "building PgBouncer from the sources of Debian's $SOURCE_RELEASE"
  fetch_sources "$work"
  (cd "$work"/pgbouncer-*/ && ./configure --prefix="$DIR" >"$work/log" 2>&1 && make -j "$(nproc)" pgbouncer >>"$work/log" 2>&1) ||
    { tail -20 "$work/log" >&2; say "PgBouncer does not build; the log is $work/log" >&2; exit 1; }
  as_root install -D "$work"/pgbouncer-*/pgbouncer "$DIR/bin/pgbouncer"
  rm -rf "$work"
}

install_patroni() {
  [ "$("$DIR/venv/bin/patroni" --version 2>/dev/null)" = "patroni $PATRONI" ] && return 0
  # The system's Python: one below somebody's home could not be read by Postgres's user.
  install_packages python3-venv
  say "installing Patroni $PATRONI into $DIR/venv"
  as_root /usr/bin/python3 -m venv "$DIR/venv"
  as_root "$DIR/venv/bin/pip" install -q --disable-pip-version-check "patroni[etcd3]==$PATRONI" "psycopg[binary]==$PSYCOPG"
}

install_packages etcd-server haproxy
as_root mkdir -p "$DIR"
install_patroni
if ! new_enough "$DIR/bin/pgbouncer" && ! new_enough /usr/sbin/pgbouncer; then
  build_pgbouncer
fi
pgbouncer="$DIR/bin/pgbouncer"
[ -x "$pgbouncer" ] || pgbouncer=/usr/sbin/pgbouncer
say "etcd $(etcd --version | sed -nE 's/^etcd Version: //p'), HAProxy $(/usr/sbin/haproxy -v | sed -nE '1s/^[^0-9]*([^ ]+).*/\1/p')," \
  "PgBouncer $(version_of "$pgbouncer"), $("$DIR/venv/bin/patroni" --version)"
