#!/usr/bin/env bash
# Everything that CI runs. Parts that do not need each other run side by side, in two lanes; every part runs whatever
# became of the others, prints its output in one piece when it is over, and the end says how all went and how long each took.
#
# CLEAVE_TEST_EFFORT (1) multiplies what sweeps cover: fuzzed inputs, handoffs under load, repetitions.
set -uo pipefail
cd "$(dirname "$0")/.."
log=$(mktemp -d)
trap 'rm -rf "$log"' EXIT
: >"$log/summary"

# The kernels are compiled for one architecture where their sources were checked for all of them before, and beside those of
# a build that is to be used.
export CLEAVE_KERNELS_DIR=target/kernels-test
if tools/kernels.sh --unchanged; then
    export CLEAVE_KERNEL_ARCHS=90
fi

# ---- parts ----

totals() { # totals NAME: what a part's own runner counted
    case $1 in
    sources | rust | shuttle | simulator | plan)
        awk '/^test result:/ {p += $4; f += $6; i += $8} END {printf "%d passed, %d failed, %d ignored", p, f, i}' "$log/$1" ;;
    servers | kernels | dynamo) tail -n 1 "$log/$1" ;;
    ctest) awk '/tests passed/ {print} /Not Run|Skipped/ {s++} END {if (s) printf "(%d lines about skipped tests)", s}' "$log/ctest" | tr '\n' ' ' ;;
    esac
}
finish() { # finish NAME STATUS SECONDS NOTE: its output, and its line in the summary
    (
        flock 9
        printf '\n=== %s: %s, %d s\n' "$1" "$2" "$3"
        cat "$log/$1"
        printf '%-13s %-7s %4d s  %s\n' "$1" "$2" "$3" "$4" >>"$log/summary"
    ) 9>"$log/lock"
}
part() { # part NAME COMMAND...
    local name=$1 start=$SECONDS status=ok
    shift
    "$@" >"$log/$name" 2>&1 </dev/null || status=FAILED
    finish "$name" $status $((SECONDS - start)) "$(totals "$name")"
    [ $status = ok ]
}
# A part without which others are skipped: no reason to fail where there is no network.
optional() { # optional NAME WHAT-IS-SKIPPED COMMAND...
    local name=$1 skipped=$2 start=$SECONDS status=ok note=
    shift 2
    "$@" >"$log/$name" 2>&1 </dev/null || { status=ABSENT note="SKIPPED: $skipped ($(tail -n 1 "$log/$name"))"; }
    finish "$name" $status $((SECONDS - start)) "$note"
    [ $status = ok ]
}
absent() { # absent NAME WHAT-IS-SKIPPED WHY
    : >"$log/$1"
    finish "$1" ABSENT 0 "SKIPPED: $2 ($3)"
}

# ---- lanes ----

# Downloads, and checks that need no build of the library.
prepare() {
    optional nixl tests/nixl.rs tools/nixl.sh
    if [ -n "${CI:-}" ]; then
        part dynamo-wheels tools/dynamo.sh --install && touch "$log/dynamo-is-there"
    else
        optional dynamo-wheels tests/dynamo tools/dynamo.sh --install && touch "$log/dynamo-is-there"
    fi
    if optional nvcc 'the check of the compiled kernels' tools/kernels.sh --install; then
        part kernels tools/kernels.sh --check
    fi
    if optional protoc 'the check of generated protocol code' tools/protos.sh --install; then
        part protos tools/protos.sh --check
    fi
}
quick() {
    part format make --no-print-directory fmt
    part sources cargo test --locked -p source-checks
}
# cargo's profile for tests.
rust() {
    # --no-fail-fast: one broken test does not hide another.
    part rust cargo test --locked --features failpoints,fuzzing --no-fail-fast
    part plan cargo test --locked -p cleave-plan --features cleave/failpoints,cleave/fuzzing
    part simulator cargo test --locked -p simulated-kernels -p simulated-cuda -p simulated-cublaslt
    # Schedules of the lease and ownership code: a build of its own, because its locks are a model checker's.
    part shuttle cargo test --locked --features failpoints,fuzzing,shuttle --lib kv::tests::shuttle
}
# The release build, and all that uses the library as its users do.
installed() {
    part build make --no-print-directory build || return
    local go=
    if [ "$(go version 2>/dev/null | sed -n 's/.*go1\.\([0-9]*\).*/\1/p')" -ge 24 ] 2>/dev/null; then
        part go-server make --no-print-directory go-server
        go=1
    fi
    part servers tools/servers.sh
    if [ -n "$go" ] && [ -e "$log/dynamo-is-there" ]; then
        part dynamo tools/dynamo.sh
    fi
    part ctest make --no-print-directory ctest
    if [ -n "$go" ]; then
        part go make --no-print-directory go
    else
        absent go 'bindings/go, examples/go-server and tests/dynamo' 'go 1.24 or later is not there'
    fi
}

prepare &
quick
wait
rust &
installed
part clippy make --no-print-directory lint
wait

echo
echo "=== totals ($SECONDS s)"
cat "$log/summary"
failed=$(awk '$2 == "FAILED" {print $1}' "$log/summary" | tr '\n' ' ')
if [ -n "$failed" ]; then
    echo "FAILED: $failed"
    exit 1
fi
echo "all passed"
