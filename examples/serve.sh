#!/usr/bin/env bash
# serve.sh SERVER MODEL [PORT]: runs one prefill worker, two decode workers and a front on this machine, until Ctrl-C.
# SERVER is the go-server or the cpp-server. Prints a curl command to paste, and the address of the web page.
set -euo pipefail
server=$1 model=$2 port=${3:-8000}
page=$(dirname "$0")/web/index.html
[ -f "$model/config.json" ] || { echo "$model: no model directory" >&2; exit 1; }

work=$(mktemp -d)
pids=()
finish() {
    trap - EXIT INT TERM
    kill "${pids[@]}" 2>/dev/null || true
    wait 2>/dev/null || true
    rm -rf "$work"
}
trap finish EXIT
trap 'exit 0' INT TERM

# The secret lets workers import each other's KV, so only this user may read it.
(umask 077 && head -c 32 /dev/urandom >"$work/secret")

start() { # start NAME OPTIONS...: in the background; sets `url` once it listens
    local name=$1 waited=0
    shift
    : >"$work/$name.out" # before the loop below reads it
    "$server" "$@" >"$work/$name.out" 2>"$work/$name.log" &
    pids+=($!)
    until url=$(sed -n 's/^listening on //p' "$work/$name.out") && [ -n "$url" ]; do
        if ! kill -0 "${pids[-1]}" 2>/dev/null || [ $((waited += 1)) -gt 600 ]; then
            echo "$name did not start:" >&2
            tail -n 5 "$work/$name.log" >&2
            exit 1
        fi
        sleep 0.1
    done
}

threads=$(($(nproc) > 3 ? $(nproc) / 3 : 1))
worker=(--model "$model" --listen 127.0.0.1:0 --secret-file "$work/secret" --threads "$threads")
start front --role front --listen "127.0.0.1:$port" --workers-listen 127.0.0.1:0 --secret-file "$work/secret" --page "$page"
front=$url
inside=$(sed -n 's/^workers join at //p' "$work/front.out")
start prefill --role prefill --front "$inside" "${worker[@]}"
start decode-1 --role decode --front "$inside" "${worker[@]}"
start decode-2 --role decode --front "$inside" "${worker[@]}"
# Waits until the front knows all workers, and each decode worker can import.
for _ in $(seq 100); do
    [ "$(curl -s "$front/workers" | grep -oE '"paired": ?\{"http' | wc -l)" -ge 2 ] && break
    sleep 0.1
done

cat <<END
one front, one prefill worker and two decode workers serve $model

  page      $front/
  try it    curl -N $front/v1/chat/completions -d '{"model": "$(basename "$model")", "stream": true, "temperature": 0, "messages": [{"role": "user", "content": "the red box holds a key. the blue jar holds a coin. what does the blue jar hold?"}]}'
  workers   curl $front/workers
  logs      $work
  Ctrl-C ends it; kill -9 ${pids[2]} takes a decode worker away while it streams
END
wait
