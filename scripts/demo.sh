#!/usr/bin/env bash
# The four verbs on a small trained model: check a strategy, build its plan, look at it, run it.
#
# The queries, keys and values in data/minidit were recorded from ten consecutive steps of one layer.

set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/setup.sh

omni=${CARGO_TARGET_DIR:-target}/release/omni
out=${CARGO_TARGET_DIR:-target}/demo
strategy=examples/strategies/flashomni.omni
recording=data/minidit/qkv_64_layer3.safetensors
plan=$out/plan.safetensors

say() { printf '\n\033[1m$ %s\033[0m\n' "$*"; "$@"; }

cargo build --release --bin omni
mkdir -p "$out"
say "$omni" check "$strategy"
say "$omni" build "$strategy" -o "$plan"
say "$omni" show "$plan"
say "$omni" run "$plan" "$recording"
