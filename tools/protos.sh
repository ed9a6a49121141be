#!/usr/bin/env bash
# Generates the Go code of examples/proto anew. Installs protoc and its plugins into target/protos once.
#
#     tools/protos.sh            rewrites examples/go-server/internal/pb
#     tools/protos.sh --check    fails if that would change it
#     tools/protos.sh --install  only installs
set -euo pipefail
. "$(dirname "$0")/lib.sh"

case $* in
    "" | --check | --install) ;;
    *) bad_option "$*" "--check, --install or nothing" ;;
esac

tools=$PWD/target/protos
need_venv "$tools/venv" --only-binary :all: grpcio-tools==1.85.1
plugins=$tools/plugins-1.36.11-1.6.2
[ -x "$plugins/protoc-gen-go" ] || GOBIN=$plugins go install google.golang.org/protobuf/cmd/protoc-gen-go@v1.36.11
[ -x "$plugins/protoc-gen-go-grpc" ] || GOBIN=$plugins go install google.golang.org/grpc/cmd/protoc-gen-go-grpc@v1.6.2
[ "${1:-}" != --install ] || exit 0

pb=examples/go-server/internal/pb
out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT

generate() { # generate DIRECTORY PACKAGE FILE...: FILE is relative to DIRECTORY
    local directory=$1 package=$2 options=paths=source_relative file
    shift 2
    for file in "$@"; do
        options+=,M$file=cleave/examples/go-server/internal/pb/$package
    done
    mkdir -p "$out/$package" "$out/raw"
    PATH=$plugins:$PATH "$tools/venv/bin/python" -m grpc_tools.protoc -I "$directory" \
        --go_out="$out/raw" --go_opt="$options" --go-grpc_out="$out/raw" --go-grpc_opt="$options" "$@"
    find "$out/raw" -name '*.go' -exec mv {} "$out/$package" \;
    rm -rf "$out/raw"
}
files() { (cd "$1" && find "$2" -name '*.proto' | sed 's,^\./,,' | sort); }

# The files below vllm are named without that prefix, as in the crate.
mapfile -t vllm < <(files examples/proto/vllm .)
mapfile -t openengine < <(files examples/proto openengine)
mapfile -t cleave < <(files examples/proto cleave)
generate examples/proto/vllm vllm "${vllm[@]}"
generate examples/proto openengine "${openengine[@]}"
generate examples/proto worker "${cleave[@]}"

if [ "${1:-}" = --check ]; then
    diff -r "$out" "$pb" || die "$pb is not what tools/protos.sh generates from examples/proto"
else
    rm -rf "$pb"
    mkdir -p "$pb"
    cp -r "$out"/. "$pb"
fi
