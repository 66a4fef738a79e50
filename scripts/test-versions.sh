#!/usr/bin/env bash
# The tests that touch PostgreSQL, once for each version named: scripts/test-versions.sh 16 18
# On Debian and Ubuntu a version that is missing is installed from the PostgreSQL project's packages (apt.postgresql.org).
set -euo pipefail
cd "$(dirname "$0")/.."
export PATH="$HOME/.cargo/bin:$PATH"

as_root() { if [ "$(id -u)" -eq 0 ]; then "$@"; else sudo --non-interactive "$@"; fi; }

install() {
  command -v apt-get >/dev/null || { echo "test-versions: install PostgreSQL $1, or name its programs with PG_BIN_$1=/path/to/bin" >&2; exit 1; }
  export DEBIAN_FRONTEND=noninteractive
  if ! apt-cache show "postgresql-$1" >/dev/null 2>&1; then
    as_root apt-get install -y -q --no-install-recommends postgresql-common ca-certificates </dev/null
    as_root /usr/share/postgresql-common/pgdg/apt.postgresql.org.sh -y </dev/null
  fi
  as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends "postgresql-$1" </dev/null
}

for version in "$@"; do
  named="PG_BIN_$version"
  bin="${!named:-/usr/lib/postgresql/$version/bin}"
  [ -x "$bin/postgres" ] || install "$version"
  [ -x "$bin/postgres" ] || { echo "test-versions: no PostgreSQL $version in $bin" >&2; exit 1; }
  echo "== $("$bin/postgres" --version)"
  export TRILITHON_TEST_PG_BIN="$bin" TRILITHON_POSTGRES__BIN_DIR="$bin"
  cargo test --workspace --locked --test it postgres
  cargo test --workspace --locked --test it failover:: -- --test-threads=1
done
