#!/bin/sh
# Runs a prefill worker and a decode worker as two processes that share one model. The decode worker sends prompts, and the KV
# comes back over shared memory. At the end a single process answers the same prompts, and the answers are compared.
#
#     handoff.sh [--bin DIRECTORY] [--model DIRECTORY] [--netns] [PROMPT...]
#
# --netns puts each process into its own network namespace, as if on two machines: the KV then comes over encrypted TCP.
# It needs root and cleans up after itself. Without the permission it prints a message and exits with 77.
set -eu
bin=build/examples model=models/tiny netns=
while [ $# -gt 0 ]; do
    case $1 in
    --bin) bin=$2 && shift 2 ;;
    --model) model=$2 && shift 2 ;;
    --netns) netns=1 && shift ;;
    *) break ;;
    esac
done
if [ $# -eq 0 ]; then
    set -- "the red box holds a key. the blue jar holds a coin. what does the red box hold?" \
        "anna lives in paris. the old farmer walks to the river. he sees a small boat and smiles. tom likes the colour green. it rains all day. the green bag holds a shell. he goes to the market and laughs. the red bag holds a feather. then he goes home. where does anna live?" \
        "the gold tin holds a watch. kate likes the colour silver. the little farmer walks to the hill. jack lives in london. he sees a white duck and is surprised. ben lives in sydney. the gray case holds a nail. rosa lives in moscow. what does the gray case hold?"
fi

work=$(mktemp -d)
prefill=
a=cleave-$$-a b=cleave-$$-b
cleanup() {
    trap '' INT TERM HUP
    if [ -n "$prefill" ]; then
        kill -9 "$prefill" 2>/dev/null || true
        wait "$prefill" 2>/dev/null || true
    fi
    if [ -n "$netns" ]; then
        for name in "$a" "$b"; do # the pair of interfaces goes with either
            ip netns pids "$name" 2>/dev/null | xargs -r kill -9 2>/dev/null || true
            ip netns delete "$name" 2>/dev/null || true
        done
    fi
    rm -rf "$work"
}
trap cleanup EXIT
trap 'exit 1' INT TERM HUP

rpc=$work/rpc
set_a='' set_b='' listen=''
if [ -n "$netns" ]; then
    if ! command -v ip >/dev/null || ! ip netns add "$a" 2>"$work/why"; then
        echo "skipped: no network namespaces here: $(cat "$work/why" 2>/dev/null || echo "ip is not installed (iproute2)")"
        netns=
        exit 77
    fi
    ip netns add "$b"
    ip link add "cv$$a" netns "$a" type veth peer name "cv$$b" netns "$b"
    for side in a:192.0.2.1 b:192.0.2.2; do
        name=cleave-$$-${side%%:*}
        ip -n "$name" address add "${side#*:}/24" dev "cv$$${side%%:*}"
        ip -n "$name" link set lo up
        ip -n "$name" link set "cv$$${side%%:*}" up
    done
    set_a="ip netns exec $a" set_b="ip netns exec $b"
    rpc=192.0.2.1:7701 listen="--kv-listen 192.0.2.1:0"
fi

echo "--- prefill_worker $model"
# shellcheck disable=SC2086
$set_a "$bin/prefill_worker" "$model" --rpc "$rpc" --secret-file "$work/secret" --step-tokens 32 $listen >"$work/prefill" 2>&1 &
prefill=$!
for _ in $(seq 1200); do
    grep -q "^waiting for" "$work/prefill" && break
    kill -0 "$prefill" 2>/dev/null || { cat "$work/prefill" && exit 1; }
    sleep 0.1
done

echo "--- decode_worker $model"
printf '%s\n' "$@"
echo
# shellcheck disable=SC2086
printf '%s\n' "$@" | $set_b "$bin/decode_worker" "$model" --rpc "$rpc" --secret-file "$work/secret" >"$work/answers" 2>"$work/report" ||
    { cat "$work/report" "$work/prefill" && exit 1; }
cat "$work/answers"
echo
cat "$work/report"

echo "--- prefill_worker said"
kill "$prefill"
wait "$prefill" || { echo "the prefill worker ended with an error" && exit 1; }
prefill=
cat "$work/prefill"

echo "--- one process on its own"
for prompt in "$@"; do
    "$bin/disagg" "$model" --prompt "$prompt" | sed -n 's/^answer  //p'
done >"$work/wanted"
if ! diff "$work/wanted" "$work/answers"; then
    echo "THE ANSWERS DIFFER"
    exit 1
fi
echo "the answers are equal"
