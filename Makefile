# Potluck: `make demo` to see it, `make test` to check it.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.ONESHELL:

# One build directory for the demo, the tests and the benches; one that outlives the checkout, where there is one.
CACHE := $(HOME)/.cache/potluck
ifndef CARGO_TARGET_DIR
ifneq ($(wildcard $(CACHE)/target/.),)
export CARGO_TARGET_DIR := $(CACHE)/target
else
export CARGO_TARGET_DIR := $(CURDIR)/target
endif
endif
export POTLUCK_TEST_MODEL ?= $(CACHE)/models/SmolLM2-135M-Instruct.Q4_1.gguf
export PATH := $(PATH):$(HOME)/.cargo/bin
POTLUCK := $(CARGO_TARGET_DIR)/debug/potluck
PROMPT ?= Explain in two sentences why the sky is blue.
PEERS ?= 3
PREFIX ?= $(HOME)/.local
ARGS ?=
SEED ?=
SEEDS ?= 10000
OTHER ?=
TEST ?=
TARGET ?= frame
FUZZ_SECONDS ?= 60

.PHONY: help setup model clients demo install fmt lint test sim fuzz prove-streams prove-pull prove-nat prove-inversion prove-codecs prove-privacy prove-attacks prove-roaming prove-recovery prove-owner prove-soak prove-upgrade prove-fuzz prove-sim bench-security bench bench-wan report-wan snapshots

help: ## What there is to make
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

setup: ## Install what a fresh machine lacks
	@scripts/setup

model: setup ## Fetch the small model of the demo and the tests, once
	@scripts/fetch-model

clients: ## Fetch the official clients that the gateway's tests ask through, once
	@scripts/fetch-clients

demo: ## A streamed answer through three peer processes, the route shown
	@scripts/setup --without-tests
	scripts/fetch-model
	cargo build --locked --package potluck
	"$(POTLUCK)" run --model "$(POTLUCK_TEST_MODEL)" --peers $(PEERS) --max-tokens 128 --route "$(PROMPT)"

install: ## Put `potluck` into PREFIX/bin (default: ~/.local)
	@scripts/setup --without-tests
	cargo build --locked --package potluck
	install -D -m 755 "$(POTLUCK)" "$(PREFIX)/bin/potluck"
	echo "$(PREFIX)/bin/potluck"

fmt: ## Format the code
	@cargo fmt --all

lint: ## Formatting and lints
	@cargo fmt --all --check
	cargo clippy --locked --workspace --features potluck-bench/undefended --all-targets -- --deny warnings
	# As it ships: what tests switch off is no part of it.
	cargo clippy --locked --package potluck -- --deny warnings

test: model clients lint ## Everything that CI checks
	@cargo nextest run --locked --workspace --no-fail-fast
	cargo test --locked --workspace --doc --quiet

sim: ## The simulator: make sim [SEEDS=10000] [SEED=0x5eed] [KIND=weather] [SCENARIO=run.json]
	@cargo run --locked --quiet --package potluck-sim -- $(if $(SEEDS),--seeds $(SEEDS)) $(if $(SEED),--seed $(SEED)) $(if $(KIND),--kind $(KIND)) $(if $(SCENARIO),--scenario $(SCENARIO))

fuzz: ## Fuzz a decoder: make fuzz [TARGET=frame] [FUZZ_SECONDS=60]
	@command -v cargo-fuzz >/dev/null || cargo install --locked cargo-fuzz
	cd fuzz && RUSTC_BOOTSTRAP=1 cargo fuzz run --sanitizer none $(if $(filter engine_%,$(TARGET)),--features engine) $(TARGET) -- -max_total_time=$(FUZZ_SECONDS)

prove-streams: model ## Two minutes of 16 streams beside clients that misbehave; writes bench/results/streams.json
	@POTLUCK_PROVE_SECONDS=120 POTLUCK_COMMIT="$$(git rev-parse --short HEAD)" cargo nextest run --locked --workspace --test suite --no-capture streams::

prove-pull: model ## How much of a link a pull from three peers fills (root); writes bench/results/pull.json
	@POTLUCK_PROVE_PULL=1 POTLUCK_COMMIT="$$(git rev-parse --short HEAD)" cargo nextest run --locked --workspace --test suite --no-capture -E 'test(fills_the_link)'

prove-nat: setup ## Every pair of kinds of NAT, direct or relayed (root, some minutes); writes bench/results/nat-matrix.json
	@POTLUCK_PROVE_NAT=1 POTLUCK_COMMIT="$$(git rev-parse --short HEAD)" cargo nextest run --locked --package potluck-net --test nat_matrix --no-capture prove_every_pair

prove-inversion: model ## How much of a prompt is read back from hidden states, at each depth; writes bench/results/inversion.json
	@cargo build --locked --workspace --example inversion
	"$(CARGO_TARGET_DIR)/debug/examples/inversion" "$(POTLUCK_TEST_MODEL)" bench/results/inversion.json

prove-codecs: model ## What each codec changes of a model: make prove-codecs [MODELS="A.gguf B.gguf"]; writes bench/results/codecs.json
	@bench/codecs

prove-privacy: model ## What each privacy setting costs, side by side; writes bench/results/privacy.json
	@bench/privacy

prove-roaming: model ## Answers whose relay, path and network change under way (root); writes bench/results/roaming.json
	@POTLUCK_PROVE_ROAMING="$(CURDIR)/bench/results/roaming.json" POTLUCK_COMMIT="$$(git rev-parse --short HEAD)" cargo nextest run --locked --workspace --test suite --no-capture --test-threads 1 roaming::

prove-recovery: model ## Two hundred answers whose peers are killed, frozen, cut off (root; some 50 minutes); writes bench/results/recovery.json
	@bench/recovery

prove-owner: model ## Twenty times an owner takes a machine on which a session is under way; writes bench/results/owner.json
	@POTLUCK_PROVE_OWNER="$(CURDIR)/bench/results/owner.json" POTLUCK_COMMIT="$$(git rev-parse --short HEAD)" cargo nextest run --locked --workspace --test suite --no-capture --profile prove -E 'test(hands_its_sessions_over)'

prove-soak: model ## An hour in which something happens to a peer every 20 seconds (root); writes bench/results/soak.json
	@POTLUCK_PROVE_SOAK="$(CURDIR)/bench/results/soak.json" POTLUCK_COMMIT="$$(git rev-parse --short HEAD)" cargo nextest run --locked --workspace --test suite --no-capture --profile prove -E 'test(an_hour_of_failures)'

prove-upgrade: model ## A swarm of this version and another: make prove-upgrade [OTHER=commit]
	@OTHER="$(OTHER)" bench/upgrade

prove-fuzz: ## Each decoder of what others send, ten million inputs (cargo-fuzz; some 45 minutes); writes bench/results/fuzz.json
	@bench/fuzz

prove-sim: ## A hundred thousand simulated swarms, and whether planted bugs are found in them; writes bench/results/sim.json
	@bench/sim

prove-attacks: ## Every scripted attack with its defence and without; writes bench/results/attacks.json
	@POTLUCK_PROVE_ATTACKS="$(CURDIR)/bench/results/attacks.json" POTLUCK_COMMIT="$$(git rev-parse --short HEAD)" cargo nextest run --locked --workspace --test attacks --no-capture -E 'test(prove_every_attack)'

bench-security: model ## What security costs, against peers that do without it; writes bench/results/security.json
	@cargo build --locked --package potluck
	cargo run --locked --package potluck-bench --features undefended -- --potluck "$(POTLUCK)" --only security --out bench/results/security.json

bench: model ## Ratios against llama.cpp, side by side; writes bench/results/
	@bench/run

bench-wan: model ## Against llama.cpp RPC over emulated wide-area lines (root): make bench-wan [ARGS="--quick --only plain"]; writes bench/results/wan.json
	@bench/run-wan $(ARGS)

report-wan: ## Plots and tables out of bench/results/wan.json, into docs/
	@cargo build --locked --workspace --bins
	"$(CARGO_TARGET_DIR)/debug/potluck-bench" wan-report

snapshots: ## Accept what the command line and the goldens say now
	@TRYCMD=overwrite INSTA_UPDATE=always cargo nextest run --locked --workspace
