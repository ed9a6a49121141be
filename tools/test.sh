#!/usr/bin/env bash
# Everything that CI runs, in the order in which it fails fastest; every part runs, and the end says how they went.
set -uo pipefail
cd "$(dirname "$0")/.."
log=$(mktemp -d)
trap 'rm -rf "$log"' EXIT
failed=()
summary=()

part() { # part NAME COMMAND...
    local name=$1 start=$SECONDS status=ok
    shift
    echo
    echo "=== $name: $*"
    "$@" 2>&1 | tee "$log/$name"
    if [ "${PIPESTATUS[0]}" -ne 0 ]; then
        status=FAILED
        failed+=("$name")
    fi
    summary+=("$(printf '%-12s %-7s %4d s  %s' "$name" "$status" "$((SECONDS - start))" "$(totals "$name")")")
}

totals() {
    case $1 in
    rust | shuttle | simulator) awk '/^test result:/ {p += $4; f += $6; i += $8} END {printf "%d passed, %d failed, %d ignored", p, f, i}' "$log/$1" ;;
    servers | kernels) tail -n 1 "$log/$1" ;;
    ctest) awk '/tests passed/ {print} /Not Run|Skipped/ {s++} END {if (s) printf "(%d lines about skipped tests)", s}' "$log/ctest" | tr '\n' ' ' ;;
    esac
}

# What only some parts need, which are skipped without it: no reason to fail where there is no network.
optional() { # optional NAME WHAT-IS-SKIPPED COMMAND...
    local name=$1 skipped=$2 start=$SECONDS status=ok note=
    shift 2
    echo
    echo "=== $name: $*"
    "$@" 2>&1 | tee "$log/$name"
    if [ "${PIPESTATUS[0]}" -ne 0 ]; then
        status=ABSENT
        note="SKIPPED: $skipped ($(tail -n 1 "$log/$name"))"
    fi
    summary+=("$(printf '%-12s %-7s %4d s  %s' "$name" "$status" "$((SECONDS - start))" "$note")")
    [ $status = ok ]
}

part format make --no-print-directory fmt
part clippy make --no-print-directory lint
optional nixl tests/nixl.rs tools/nixl.sh
if optional nvcc 'the check of the compiled kernels' tools/kernels.sh --install; then
    part kernels tools/kernels.sh --check
fi
part simulator cargo test --locked -p simulated-kernels -p simulated-cuda -p simulated-cublaslt
# --no-fail-fast: one broken test does not hide another.
part rust cargo test --locked --features failpoints,fuzzing --no-fail-fast
# Schedules of the lease and ownership code: a build of its own, because its locks are a model checker's.
part shuttle cargo test --locked --features failpoints,fuzzing,shuttle --lib kv::tests::shuttle
part build make --no-print-directory build
part ctest make --no-print-directory ctest
if [ "$(go version 2>/dev/null | sed -n 's/.*go1\.\([0-9]*\).*/\1/p')" -ge 24 ] 2>/dev/null; then
    part go make --no-print-directory go
    part go-server make --no-print-directory go-server
else
    summary+=("$(printf '%-12s %-7s %4d s  %s' go ABSENT 0 'SKIPPED: bindings/go and examples/go-server (go 1.24 or later is not there)')")
fi
part servers tools/servers.sh

echo
echo "=== totals ($SECONDS s)"
printf '%s\n' "${summary[@]}"
if [ ${#failed[@]} -gt 0 ]; then
    echo "FAILED: ${failed[*]}"
    exit 1
fi
echo "all passed"
