# `make` lists what there is. Each target prepares the machine by itself (scripts/setup.sh) and asks nothing.
SHELL := bash
.DEFAULT_GOAL := help
export PATH := $(HOME)/.cargo/bin:$(PATH)

# Extra arguments of `trilithon demo`, as in: make demo ARGS="--wan-ms 30"
ARGS ?=
# Length of `make sim`, in simulated hours.
HOURS ?= 20000
# First seed of `make sim-release`: what a campaign that was stopped names as its next one.
FIRST ?= 1
# Runs of each scenario in `make bench`.
RUNS ?= 20
# Versions of PostgreSQL for `make test-versions`.
VERSIONS ?= 16 18

.PHONY: help setup demo test lint fix bench chaos-setup chaos chaos-mutants compare docs sim sim-release mutants test-versions

help: ## this list
	@awk 'BEGIN {FS = ":.*## "} /^[a-z-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: ## install what is missing (Debian, Ubuntu), or say what to install
	@bash scripts/setup.sh

demo: setup ## three datacenters on this machine, until Ctrl-C
	cargo build --release --locked --bin trilithon
	@"$${CARGO_TARGET_DIR:-target}/release/trilithon" demo $(ARGS)

test: setup ## every test
	cargo test --workspace --locked -- --skip failover:: --skip world::tests::
	cargo test --workspace --locked --test it failover:: -- --test-threads=1

lint: setup ## format, clippy, documentation, licences and duplicates (with cargo-deny where it is installed)
	cargo fmt --all --check
	cargo clippy --workspace --all-targets --locked -- -D warnings
	bash -n scripts/*.sh .ci/run
	@if cargo deny --version >/dev/null 2>&1; then cargo deny --locked check licenses bans sources; \
	  else echo "lint: cargo-deny is not installed (cargo install cargo-deny --locked): licences and duplicates were not checked"; fi

fix: setup ## what lint finds and a machine can mend
	cargo clippy --workspace --all-targets --locked --fix --allow-dirty --allow-staged
	cargo fmt --all

bench: setup ## failover times, idle memory and CPU, time to start (RUNS=20)
	TRILITHON_BENCH_RUNS=$(RUNS) cargo bench --locked --bench failover

chaos-setup: setup
	@bash scripts/setup.sh chaos

chaos: chaos-setup ## the black-box fault harness (ARGS="run --minutes 5 --seed 1"); needs root, TUN, FUSE and cgroup2
	cargo test --locked --package chaos world::tests::
	cargo build --release --locked --workspace
	target/release/chaos $(or $(ARGS),run)

chaos-mutants: chaos-setup ## seeded bugs in the real program, which the harness must catch (ARGS="--only skip-seal"); as root
	cargo build --release --locked --package chaos
	cargo build --release --locked --features bugs --bin trilithon --target-dir target/bugs
	target/release/chaos mutants --binary target/bugs/release/trilithon $(ARGS)
	bash scripts/store-mutants.sh

compare: chaos-setup ## Trilithon, Patroni tuned and Patroni by default under the same faults, half an hour; installs the peers (scripts/peers.sh)
	bash scripts/peers.sh
	cargo build --release --locked --workspace
	target/release/chaos compare $(ARGS)

docs: setup ## the documentation of the code, in target/doc
	RUSTDOCFLAGS="-D warnings -A rustdoc::private_intra_doc_links" cargo doc --workspace --no-deps --locked --document-private-items

sim: setup ## the simulator for longer (HOURS=20000)
	TRILITHON_SIM_HOURS=$(HOURS) cargo test --workspace --locked --test it sim::run -- --nocapture

sim-release: HOURS = 1000000
sim-release: setup ## before a release: the models in wider bounds, a million simulated hours (HOURS=1000000 FIRST=1)
	TRILITHON_SIM_FIRST=$(FIRST) TRILITHON_CAMPAIGN_HOURS=$(HOURS) TRILITHON_MODELS=large \
	  cargo test --release --workspace --locked --test it -- --nocapture models:: sim::campaign

mutants: setup ## seeded bugs, and how soon the suite catches each
	cargo test --workspace --locked --test it sim::mutants -- --nocapture

test-versions: setup ## tests against other versions of PostgreSQL (VERSIONS="16 18")
	bash scripts/test-versions.sh $(VERSIONS)
