#!/usr/bin/env bash
# The verbs on a small trained model: check a strategy, build its plan, look at its mask, run it.
#
# The queries, keys and values in data/minidit were recorded from ten consecutive steps of one layer.

set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/setup.sh

target=${CARGO_TARGET_DIR:-target}
strategy=examples/strategies/flashomni.omni
recording=data/minidit/qkv_64_layer3.safetensors
plan=$target/demo/flashomni.safetensors

say() {
    printf '\n\033[1m$ omni %s\033[0m\n' "$*"
    "$target/release/omni" "$@"
}

cargo build --release --locked --bin omni
mkdir -p "$target/demo"
say check "$strategy"
say build "$strategy" --strategy flashomni --model minidit_64 -o "$plan"
say show "$plan" --qkv "$recording" --step 12 --head 0..2
say show "$plan" --qkv "$recording" --step 12 -o "$target/demo/mask.png"
say run "$plan" --qkv "$recording"
