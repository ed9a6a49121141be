#!/usr/bin/env bash
# Runs every fuzz target for FUZZ_SECONDS under AddressSanitizer. Findings stay in fuzz/artifacts.
set -euo pipefail
. "$(dirname "$0")/lib.sh"
seconds=${FUZZ_SECONDS:-60}

missing=()
cargo +nightly --version >/dev/null 2>&1 || missing+=("a nightly toolchain: rustup toolchain install nightly")
cargo fuzz --version >/dev/null 2>&1 || missing+=("cargo-fuzz: cargo install cargo-fuzz")
[ ${#missing[@]} -eq 0 ] || die "$(printf 'make fuzz needs %s\n' "${missing[@]}")"

CLEAVE_FUZZ_SEEDS=$PWD/fuzz/corpus cargo test --locked --features failpoints,fuzzing --test fuzz_bounded seeds_for_cargo_fuzz
# Nobody else can use sanitized builds, so they get a directory of their own.
export CARGO_TARGET_DIR=$PWD/fuzz/target
failed=()
for target in $(cargo +nightly fuzz list); do
    echo "=== $target, $seconds s"
    cargo +nightly fuzz run "$target" -- -max_total_time="$seconds" -max_len=65536 -rss_limit_mb=2048 -print_final_stats=1 || failed+=("$target")
done
[ ${#failed[@]} -eq 0 ] || die "FAILED: ${failed[*]} (see fuzz/artifacts)"
