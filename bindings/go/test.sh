#!/bin/sh
# Runs every test of the Go package against an installed libcleave. Needs Go 1.24 or later, a C compiler and pkg-config,
# and no network.
#
#     bindings/go/test.sh PREFIX MODEL_DIRECTORY      PREFIX as of `make install`; its lib directory is looked for
set -eu

if [ $# -ne 2 ]; then
    sed -n '2,5s/^# \{0,1\}//p' "$0" >&2
    exit 2
fi
prefix=$(cd "$1" && pwd)
CLEAVE_TEST_MODEL=$(cd "$2" && pwd)
proxy=$(go env GOPROXY)
pc=$(find "$prefix" -name cleave.pc -path '*/pkgconfig/*' | head -n 1)
if [ -z "$pc" ]; then
    echo "test.sh: no pkgconfig/cleave.pc below $prefix" >&2
    exit 1
fi
PKG_CONFIG_PATH=$(dirname "$pc")
LD_LIBRARY_PATH=$(dirname "$PKG_CONFIG_PATH")${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
export CLEAVE_TEST_MODEL PKG_CONFIG_PATH LD_LIBRARY_PATH GOPROXY=off GOTOOLCHAIN=local GOWORK=off
cd "$(dirname "$0")"

# Number of times that each configuration runs. Raise it to look for a race, which may show only after many runs.
effort=${CLEAVE_TEST_EFFORT:-1}

step() {
    echo "== $*"
    "$@"
}

unformatted=$(gofmt -l .)
if [ -n "$unformatted" ]; then
    echo "not as gofmt has it: $unformatted" >&2
    exit 1
fi
step go vet ./...
if command -v staticcheck >/dev/null; then
    step staticcheck ./...
fi
step go test -race -count="$effort" ./...
step env GOEXPERIMENT=cgocheck2 go test -count="$effort" ./...
step env GOGC=1 go test -count="$effort" ./...
# The archive is linked: the program must not need a shared library.
step env -u LD_LIBRARY_PATH go test -count=1 -tags cleave_static ./...
step go test -run '^$' -bench . -benchtime 1x .

# The collector is a module of its own because it has dependencies. They come from Go's module cache or the network.
cd prometheus
if GOPROXY=$proxy go mod download; then
    step go vet ./...
    step go test -race ./...
else
    echo "prometheus: skipped, its dependencies cannot be had" >&2
fi
