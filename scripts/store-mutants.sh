#!/usr/bin/env bash
# Seeded bugs of the consensus store, which no run from outside shows in minutes: the store's own tests must fail with each of them, and
# pass without. Called by `make chaos-mutants`.
set -euo pipefail
cd "$(dirname "$0")/.."

tests() { TRILITHON_BUG="$1" cargo test --locked --lib --features bugs -- consensus::store; }

tests "" >/dev/null || { echo "store-mutants: the store's tests fail without a bug" >&2; exit 1; }
for bug in vote-forgotten log-not-synced; do
  said=$(tests "$bug" 2>&1) && { echo "store-mutants: nobody caught $bug" >&2; exit 1; }
  grep -q "^test result: FAILED" <<<"$said" || { echo "$said" >&2; exit 1; }
  echo "store-mutants: $bug was caught by $(sed -nE 's/^test (.*) \.\.\. FAILED$/\1/p' <<<"$said" | paste -sd ' ')"
done
