#!/usr/bin/env bash
# Puts everything that `make gpu-check` needs on a machine with a GPU into build/gpu-check (or DIR): programs with embedded
# kernels, the tiny model, the tests' models, scripts. Run `./gpu-check.sh` there; it needs neither Rust nor nvcc nor a network.
#   gpu-check-pack.sh [DIR]
set -euo pipefail
. "$(dirname "$0")/lib.sh"
export LC_ALL=C
pack=${1:-build/gpu-check}
max_bytes=$((60 << 20))

tools/kernels.sh
export CLEAVE_REQUIRE_KERNELS=1
mkdir -p "$(dirname "$pack")"
log=$(mktemp)
trap 'rm -f "$log"' EXIT
cargo test --locked --release --no-run --bench gpu --test cuda --message-format=json-render-diagnostics >"$log"
program() { # program TARGET: the executable that cargo built for it
    sed -n 's/.*"executable":"\([^"]*\/'"$1"'-[0-9a-f]*\)".*/\1/p' "$log" | tail -n 1
}

rm -rf "$pack"
mkdir -p "$pack/models" "$pack/tests"
strip -o "$pack/gpu-check" "$(program gpu)"
strip -o "$pack/cuda-tests" "$(program cuda)"
cp -r models/tiny "$pack/models/"
cp -r tests/fixtures "$pack/tests/"
cp tools/gpu-check.sh tools/gpu-peer.py docs/performance-gpu.md "$pack/"
git describe --always --dirty >"$pack/commit" 2>/dev/null || echo unknown >"$pack/commit"

bytes=$(find "$pack" -type f -printf '%s\n' | awk '{sum += $1} END {print sum}')
printf 'gpu-check: %d.%d MiB in %s\n' $((bytes >> 20)) $(((bytes & 0xfffff) * 10 >> 20)) "$pack"
[ "$bytes" -le $max_bytes ] || die "gpu-check: more than $((max_bytes >> 20)) MiB"
