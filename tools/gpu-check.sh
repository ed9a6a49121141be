#!/usr/bin/env bash
# Checks and measures the CUDA backend on device 0 with the files beside this script (tools/gpu-check-pack.sh): the kernels
# under compute-sanitizer if it is installed, the kernels against the CPU, whole models against the CPU, a handoff between
# two processes, speed. A part that fails does not stop the parts after it. The output is also in OUT/log.txt, the figures
# are in OUT/results.json. Stands alone, without tools/lib.sh: it runs where there is no repository.
#   gpu-check.sh [--out DIR] [--dir DIR] [--only PART,PART...] [--quick] [--seconds N] [-- ARGUMENTS OF bench]
# Parts: sanitizer, kernels, equality, processes, bench. --dir: where models are written, 20 GB. --seconds: limit for all parts.
# Status 0 if all is well, 1 if a part failed, 4 without a device. A missed target is not a failure.
set -uo pipefail
here=$(cd "$(dirname "$0")" && pwd)
started=$SECONDS
out=$here/out dir= only= quick= seconds=560
while [ $# -gt 0 ]; do
    case $1 in
    --out) out=$2 && shift ;;
    --dir) dir=$2 && shift ;;
    --only) only=$2 && shift ;;
    --seconds) seconds=$2 && shift ;;
    --quick) quick=--quick ;;
    --) shift && break ;;
    *) echo "$0: $1: unknown" >&2 && exit 2 ;;
    esac
    shift
done
[ -x "$here/gpu-check" ] || { echo "$0: run it in the folder that tools/gpu-check-pack.sh made" >&2 && exit 2; }
mkdir -p "$out" || exit 2
out=$(cd "$out" && pwd)
made=
if [ -z "$dir" ]; then
    # Memory is faster than disk, if there is enough of it.
    free=$(df -k --output=avail /dev/shm 2>/dev/null | tail -n 1)
    base=${TMPDIR:-/tmp}
    [ "${free:-0}" -lt $((40 << 20)) ] || base=/dev/shm
    dir=$(mktemp -d "$base/gpu-check.XXXXXX") || exit 2
    made=$dir
fi
trap '[ -z "$made" ] || rm -rf "$made"' EXIT
cd "$here" || exit 2
exec > >(tee "$out/log.txt") 2>&1
echo "gpu-check of $(cat commit 2>/dev/null || echo unknown) on $(uname -n), $(date -u '+%Y-%m-%d %H:%M') UTC"
if command -v nvidia-smi >/dev/null; then
    nvidia-smi --query-gpu=name,driver_version,memory.total,clocks.max.sm,power.limit --format=csv || true
else
    echo "no nvidia-smi"
fi
summary=() failed=

wanted() { [ -z "$only" ] || [[ ,$only, = *,$1,* ]]; }
left() { echo $((seconds - (SECONDS - started))); }
part() { # part NAME SECONDS COMMAND...
    local name=$1 limit=$2 begun=$SECONDS status=ok code
    shift 2
    wanted "$name" || return 0
    echo
    echo "=== $name: $*"
    [ "$limit" -le "$(left)" ] || limit=$(left)
    if [ "$limit" -le 0 ]; then
        code=124
    else
        timeout --kill-after=10 "$limit" "$@"
        code=$?
    fi
    case $code in
    0) ;;
    124 | 137) status="FAILED (out of time)" failed=1 ;;
    *) status="FAILED (status $code)" failed=1 ;;
    esac
    summary+=("$(printf '%-10s %4d s  %s' "$name" $((SECONDS - begun)) "$status")")
}

./gpu-check kernels --small embed
code=$?
if [ $code -eq 4 ]; then
    echo "gpu-check: there is no CUDA device here" >&2
    exit 4
fi
sanitizer=$(command -v compute-sanitizer || ls /usr/local/cuda*/bin/compute-sanitizer 2>/dev/null | head -n 1)
if ! wanted sanitizer; then
    :
elif [ -n "$sanitizer" ]; then
    part sanitizer 90 "$sanitizer" --tool memcheck --error-exitcode 9 ./gpu-check kernels --small
else
    summary+=("$(printf '%-10s %4d s  %s' sanitizer 0 'SKIPPED: no compute-sanitizer')")
fi
part kernels 150 ./gpu-check kernels
export CLEAVE_GPU=1 CLEAVE_ROOT=$here
part equality 90 ./cuda-tests --test-threads=4 generation:: handoff:: models::
part processes 60 ./gpu-check processes --model models/tiny
bench=$(($(left) - 25))
[ $bench -le 500 ] || bench=500
# The benchmark ends itself 15 seconds after its limit if something hangs, and prints the table so far.
part bench $((bench + 20)) ./gpu-check bench $quick --dir "$dir" --json "$out/results.json" --peer ./gpu-peer.py \
    --seconds $bench "$@"

echo
echo "=== summary ($((SECONDS - started)) s)"
printf '%s\n' "${summary[@]}"
if [ -n "$failed" ]; then
    echo "gpu-check: FAILED"
    exit 1
fi
echo "gpu-check: all is well"
