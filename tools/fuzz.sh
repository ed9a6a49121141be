#!/usr/bin/env bash
# Every fuzz target for FUZZ_SECONDS each under AddressSanitizer. What is found stays in fuzz/artifacts.
set -euo pipefail
cd "$(dirname "$0")/.."
seconds=${FUZZ_SECONDS:-60}

missing=()
cargo +nightly --version >/dev/null 2>&1 || missing+=("a nightly toolchain: rustup toolchain install nightly")
cargo fuzz --version >/dev/null 2>&1 || missing+=("cargo-fuzz: cargo install cargo-fuzz")
if [ ${#missing[@]} -gt 0 ]; then
    printf 'make fuzz needs %s\n' "${missing[@]}" >&2
    exit 1
fi

CLEAVE_FUZZ_SEEDS=$PWD/fuzz/corpus cargo test --locked --features failpoints,fuzzing --test fuzz_bounded seeds_for_cargo_fuzz
# Sanitized builds are of no use to others: a directory of their own.
export CARGO_TARGET_DIR=$PWD/fuzz/target
failed=()
for target in $(cargo +nightly fuzz list); do
    echo "=== $target, $seconds s"
    cargo +nightly fuzz run "$target" -- -max_total_time="$seconds" -max_len=65536 -rss_limit_mb=2048 -print_final_stats=1 || failed+=("$target")
done
if [ ${#failed[@]} -gt 0 ]; then
    echo "FAILED: ${failed[*]} (see fuzz/artifacts)"
    exit 1
fi
