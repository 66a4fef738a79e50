#!/usr/bin/env bash
# Makes this machine able to build and test Trilithon. `make demo` and `make test` call it first; with the word `chaos`, as `make chaos`
# does, it sees to the programs that build the worlds too.
#
# On Debian and Ubuntu it installs what is missing (PostgreSQL server, C compiler, make, pkg-config) without asking anything;
# with everything in place it changes nothing and returns at once. Elsewhere it says what to install.
# It never installs Rust by itself: a toolchain belongs to the person, so it says where to get one.
set -euo pipefail

missing=()
purpose=${1:-}

have() { command -v "$1" >/dev/null 2>&1; }

# The oldest PostgreSQL that Trilithon runs is 15.
find_postgres() {
  local dir
  for dir in "${TRILITHON_POSTGRES__BIN_DIR:-}" /usr/lib/postgresql/*/bin /usr/pgsql-*/bin /usr/local/pgsql/bin /opt/homebrew/opt/postgresql@*/bin; do
    [ -x "$dir/postgres" ] && [ -x "$dir/pg_rewind" ] && [ -x "$dir/pg_basebackup" ] && [ "$(major "$dir/postgres")" -ge 15 ] && return 0
  done
  have postgres && have pg_rewind && have pg_basebackup && [ "$(major postgres)" -ge 15 ]
}

# `postgres (PostgreSQL) 15.18 (Debian …)` → 15
major() { "$1" --version 2>/dev/null | sed -nE 's/^[^0-9]*([0-9]+).*/\1/p' | grep . || echo 0; }

as_root() {
  if [ "$(id -u)" -eq 0 ]; then "$@"; else sudo --non-interactive "$@"; fi
}

can_become_root() { [ "$(id -u)" -eq 0 ] || { have sudo && sudo --non-interactive true 2>/dev/null; }; }

look() {
  missing=()
  find_postgres || missing+=(postgresql)
  { have cc || have gcc; } || missing+=(gcc libc6-dev)
  have make || missing+=(make)
  have pkg-config || missing+=(pkg-config)
  have git || missing+=(git)
  if [ "$purpose" = chaos ]; then
    # Debian has them in sbin, which not every path names.
    PATH="$PATH:/usr/sbin:/sbin" have ip || missing+=(iproute2)
    PATH="$PATH:/usr/sbin:/sbin" have mkfs.ext4 || missing+=(e2fsprogs)
  fi
  [ -e /etc/ssl/certs/ca-certificates.crt ] || [ ! -e /etc/debian_version ] || missing+=(ca-certificates)
}

install_packages() {
  export DEBIAN_FRONTEND=noninteractive
  local options=(-y -q --no-install-recommends -o DPkg::Lock::Timeout=300 -o Dpkg::Use-Pty=0)
  case " ${missing[*]} " in
  *" postgresql "*)
    # Debian's package would start a server of its own on port 5432; Trilithon starts its own.
    if [ ! -e /etc/postgresql-common ]; then
      as_root mkdir -p /etc/postgresql-common/createcluster.d
      echo "create_main_cluster = false" | as_root tee /etc/postgresql-common/createcluster.d/trilithon.conf >/dev/null
    fi
    ;;
  esac
  echo "setup: installing ${missing[*]}"
  as_root apt-get update -q </dev/null >/dev/null || echo "setup: apt-get update failed; trying with the package lists there are" >&2
  as_root env DEBIAN_FRONTEND=noninteractive apt-get install "${options[@]}" "${missing[@]}" </dev/null
}

# Older releases (Ubuntu 22.04, Debian 11) carry a PostgreSQL older than 15: the PostgreSQL project's own packages then.
install_newer_postgres() {
  echo "setup: this release's PostgreSQL is older than 15; installing 17 from apt.postgresql.org"
  as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends postgresql-common ca-certificates </dev/null
  as_root /usr/share/postgresql-common/pgdg/apt.postgresql.org.sh -y </dev/null
  as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends postgresql-17 </dev/null
}

explain() {
  cat >&2 <<TXT
setup: this machine lacks: ${missing[*]}
Install PostgreSQL 15 to 18 (server, pg_basebackup, pg_rewind), a C compiler, make, pkg-config and git, for example
  Debian, Ubuntu:  apt-get install postgresql gcc libc6-dev make pkg-config git
  Fedora, RHEL:    dnf install postgresql-server postgresql-contrib gcc make pkgconf git
  Arch:            pacman -S postgresql gcc make pkgconf git
  macOS:           brew install postgresql@17 pkg-config git
A PostgreSQL that is somewhere else is named with TRILITHON_POSTGRES__BIN_DIR=/path/to/bin.
TXT
}

look
if [ "${#missing[@]}" -gt 0 ]; then
  if have apt-get && can_become_root; then
    install_packages
    look
    if [ "${missing[*]}" = postgresql ]; then
      install_newer_postgres || true
      look
    fi
  elif have apt-get; then
    echo "setup: needs root to install ${missing[*]}: run \`sudo scripts/setup.sh\` once" >&2
    exit 1
  fi
  if [ "${#missing[@]}" -gt 0 ]; then
    explain
    exit 1
  fi
fi

if ! have cargo && [ ! -x "$HOME/.cargo/bin/cargo" ]; then
  cat >&2 <<'TXT'
setup: cargo is missing. Get Rust from https://rustup.rs:
  curl --proto '=https' --tlsv1.2 -sSf https://sh.rustup.rs | sh -s -- -y --profile minimal
and run this again. The version that is needed (rust-toolchain.toml) is then fetched by itself.
TXT
  exit 1
fi
