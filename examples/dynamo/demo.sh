#!/usr/bin/env bash
# demo.sh [MODEL]: a prefill worker, a decode worker and Dynamo's frontend on this machine; asks them a question, prints the answer
# with what every part did, and ends them. With KEEP=1 they run until Ctrl-C.
set -euo pipefail
here=$(dirname "$0") model=${1:-models/tiny}
work=$(mktemp -d)
export CLEAVE_DYNAMO_DIR=$work/state DYN_HTTP_PORT=${DYN_HTTP_PORT:-8000} DYN_LOGGING_DISABLE_ANSI_COLORS=1
export DYN_GRACEFUL_SHUTDOWN_GRACE_PERIOD_SECS=1 # there are no streams that it would cut off
url=http://127.0.0.1:$DYN_HTTP_PORT
pids=()
finish() {
    status=$?
    trap - EXIT INT TERM
    kill "${pids[@]}" 2>/dev/null || true
    wait 2>/dev/null || true
    rm -rf "$work"
    exit $status
}
trap finish EXIT
trap 'exit 0' INT TERM

free_port() { python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'; }
run() { # run NAME COMMAND...: in the background, with a log
    echo "+ ${*:2} &"
    "${@:2}" >"$work/$1.log" 2>&1 &
    pids+=($!)
}
run prefill "$here/worker.sh" prefill "$model" "$(free_port)"
run decode "$here/worker.sh" decode "$model" "$(free_port)"
run frontend "$here/frontend.sh" --migration-limit 3

body='{"model": "'$(basename "$model")'", "temperature": 0, "messages": [{"role": "user", "content": "the red box holds a key. the blue jar holds a coin. what does the blue jar hold?"}]}'
waited=0
until answer=$(curl -sf "$url/v1/chat/completions" -H 'Content-Type: application/json' -d "$body"); do
    for i in "${!pids[@]}"; do
        kill -0 "${pids[$i]}" 2>/dev/null || { tail -n 20 "$work"/*.log >&2; exit 1; }
    done
    [ $((waited += 1)) -lt 600 ] || { tail -n 20 "$work"/*.log >&2; exit 1; }
    sleep 0.2
done
echo "+ curl $url/v1/chat/completions -H 'Content-Type: application/json' -d '$body'"
echo "$answer"
for role in prefill decode; do
    http=$(sed -n 's/^listening on //p' "$work/$role.log")
    curl -sf "$http/metrics" | awk -v role=$role '/^cleave_(prompt_tokens|generation_tokens|kv_imports)_total/ {sub(/\{.*\}/, "", $1); n[$1] += $2}
        END {printf "%s worker: %d prompt tokens computed, %d tokens generated, %d prompts imported\n", role, n["cleave_prompt_tokens_total"], n["cleave_generation_tokens_total"], n["cleave_kv_imports_total"]}'
done
if [ "${KEEP:-}" = 1 ]; then
    echo "logs in $work; Ctrl-C ends it"
    wait
fi
