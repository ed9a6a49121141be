#!/usr/bin/env bash
# worker.sh ROLE MODEL GRPC-PORT [OPTION...]: an engine and Dynamo's sidecar beside it. ROLE is mixed, prefill or decode.
# OPTIONs are the server's. SERVER is the server to start (build/examples/go-server/go-server), KV_LISTEN the HOST:PORT
# where workers on other machines fetch KV. If one of the two ends, so does the other.
set -euo pipefail
[ $# -ge 3 ] || { sed -n '2,4s/^# //p' "$0" >&2; exit 2; }
role=$1 model=$2 port=$3
shift 3
. "$(dirname "$0")/loopback.sh"
server=${SERVER:-build/examples/go-server/go-server}

options=(--role "$role" --grpc "127.0.0.1:$port" --listen 127.0.0.1:0 --model "$model")
[[ $server == *cpp-server ]] || options+=(--isolate)
[ "$role" = mixed ] || options+=(--secret-file "$KV_SECRET")
[ "$role" != prefill ] || [ -z "${KV_LISTEN:-}" ] || options+=(--kv-listen "$KV_LISTEN")
sidecar=(--grpc-endpoint "127.0.0.1:$port")
case $role in
mixed) ;;
prefill) sidecar+=(--component prefill --disaggregation-mode prefill) ;;
decode) sidecar+=(--disaggregation-mode decode) ;;
*) echo "worker.sh: $role: expected mixed, prefill or decode" >&2; exit 2 ;;
esac

# Both at once: see loopback.sh.
finish() {
    trap - EXIT INT TERM
    # shellcheck disable=SC2046 # a word for each process
    kill $(jobs -p) 2>/dev/null || true
    wait || true
}
trap finish EXIT
trap 'exit 0' INT TERM
"$server" "${options[@]}" "$@" &
"$PYTHON" -m dynamo.vllm.sidecar "${sidecar[@]}" &
wait -n
