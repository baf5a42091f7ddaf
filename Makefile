# `make demo` shows a fleet being deployed, `make test` tests everything. `make` lists the rest.

CARGO ?= cargo
PREFIX ?= /usr/local
export CARGO_TERM_PROGRESS_WHEN ?= auto
# Scenarios wait for processes most of the time: more of them at once than there are cores.
export RUST_TEST_THREADS ?= 6

.DEFAULT_GOAL := help
.PHONY: help setup build demo test test-newer-nix lint nix-test bench soak fuzz install clean

help: ## This list
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: ## Install what demo and test need besides Rust, where that may be done
	@tests/setup.sh

build: ## Build all programs for development
	$(CARGO) build --workspace --locked

demo: setup build ## Watch a fleet being deployed on this machine (KEEP=1 keeps its folder)
	@$(CARGO) run --quiet --locked --bin hoist-demo

test: setup lint nix-test ## Formatting, clippy, unit, property, simulation and scenario tests
	$(CARGO) test --workspace --locked --no-fail-fast
	@CARGO="$(CARGO)" tests/newer-nix.sh

test-newer-nix: setup build ## The tests that need a Nix once more, with Nix 2.26 (part of test; needs root)
	@CARGO="$(CARGO)" tests/newer-nix.sh

lint: ## Formatting and clippy, with warnings as errors
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets --locked -- --deny warnings

nix-test: ## Parse and evaluate flake, packages and modules
	@for file in flake.nix $$(find nix -name '*.nix'); do nix-instantiate --parse $$file > /dev/null || exit 1; done
	nix-instantiate --store dummy:// --eval --strict nix/tests

bench: setup ## Measure against mosquitto and print the tables (optimised build; BENCH='--only curve': 1,000 to 50,000 agents)
	$(CARGO) build --release --workspace --locked
	@$(CARGO) run --quiet --release --locked --bin hoist-bench -- $(BENCH)

soak: setup ## Deploy 1,000 times with things going wrong; kill the broker 100 times, connect 25,000 times
	$(CARGO) build --workspace --locked
	@$(CARGO) run --quiet --locked --bin hoist-soak
	HOIST_BROKER_KILLS=100 $(CARGO) test --locked --package hoist-broker --test broker -- killed_again
	HOIST_BROKER_ROUNDS=1000 $(CARGO) test --locked --package hoist-broker --test broker -- --nocapture soak::

fuzz: ## Feed the broker what a fuzzer makes of coverage, SECONDS_EACH (60) for each of five targets
	@fuzz/run.sh $(or $(SECONDS_EACH),60)

install: ## Build optimised programs and install them under PREFIX (/usr/local)
	$(CARGO) build --release --locked --package hoist-certs --package hoist-broker --package hoist-agent --package hoist-publisher
	install -d $(DESTDIR)$(PREFIX)/bin
	install -m 755 target/release/hoist target/release/hoist-agent target/release/hoist-broker target/release/hoist-certs $(DESTDIR)$(PREFIX)/bin/
	for program in hoist hoist-agent hoist-broker hoist-certs; do target/release/$$program man $(DESTDIR)$(PREFIX)/share/man/man1 || exit 1; done
	install -d $(DESTDIR)$(PREFIX)/share/bash-completion/completions $(DESTDIR)$(PREFIX)/share/zsh/site-functions $(DESTDIR)$(PREFIX)/share/fish/vendor_completions.d
	target/release/hoist completions bash > $(DESTDIR)$(PREFIX)/share/bash-completion/completions/hoist
	target/release/hoist completions zsh > $(DESTDIR)$(PREFIX)/share/zsh/site-functions/_hoist
	target/release/hoist completions fish > $(DESTDIR)$(PREFIX)/share/fish/vendor_completions.d/hoist.fish

clean: ## Remove what was built
	$(CARGO) clean
