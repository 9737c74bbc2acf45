# Everything a developer does, by name. `make` alone lists the targets.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
setup := . scripts/setup.sh

.PHONY: help setup demo image frontier test lint docs bench fuzz clean

help: ## list the targets
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  make \1\t\2/p' Makefile

setup: ## find or install LLVM 22
	@scripts/setup.sh

demo: ## check, build, show and run a strategy on recorded tensors
	@scripts/demo.sh

image: ## make an image with a strategy and in full, in target/image.png
	@$(setup); cargo build --release --locked --quiet --bin omni; \
	"$${CARGO_TARGET_DIR:-target}/release/omni" sample examples/frontier.omni --strategy taylorseer_3 --prompt china -o target/image.png

frontier: ## make the images, plot and table of docs/quality.md anew, in docs/frontier (half an hour on two cores)
	@$(setup); cargo build --release --locked --quiet --bin omni; \
	"$${CARGO_TARGET_DIR:-target}/release/omni" eval examples/frontier.omni --size 128 --prompts china,coins -o target/frontier; \
	mkdir -p docs/frontier; cp target/frontier/{report.md,results.json,frontier.svg,frontier.png,sheet.png} docs/frontier/

test: ## all tests
	@$(setup); cargo test

lint: ## formatting and clippy, with and without LLVM
	@$(setup); cargo fmt --check; cargo clippy --all-targets -- -D warnings; \
	cargo clippy --no-default-features --all-targets -- -D warnings

docs: ## the library's documentation, in target/doc
	@$(setup); RUSTDOCFLAGS="-D warnings" cargo doc --no-deps

bench: ## benchmarks
	@$(setup); cargo bench

fuzz: ## fuzz parser, checker and plans, a minute each (needs a nightly toolchain and cargo-fuzz)
	@command -v cargo-fuzz >/dev/null || { echo "make fuzz: install cargo-fuzz first: cargo install cargo-fuzz" >&2; exit 2; }; \
	mkdir -p fuzz/corpus/parse fuzz/corpus/check fuzz/corpus/plan; \
	cp examples/strategies/*.omni tests/strategies/*.omni fuzz/corpus/parse; cp fuzz/corpus/parse/* fuzz/corpus/check; \
	cargo run --quiet --bin omni -- build examples/strategies/flashomni.omni --strategy flashomni --model minidit_64 -o fuzz/corpus/plan/flashomni; \
	for target in parse check plan; do \
		cargo +nightly fuzz run "$$target" -- -max_total_time=60 -dict=fuzz/omni.dict -timeout=20; \
	done

clean: ## remove what was built
	@cargo clean
