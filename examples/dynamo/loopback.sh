# shellcheck shell=bash
# Sourced by worker.sh and frontend.sh: one machine, files instead of etcd and NATS, loopback addresses. What is set already
# stays. For several machines see docs/dynamo.md.

# Discovery and the secret of the KV caches.
export CLEAVE_DYNAMO_DIR=${CLEAVE_DYNAMO_DIR:-${TMPDIR:-/tmp}/cleave-dynamo-$(id -u)}
mkdir -p -m 700 "$CLEAVE_DYNAMO_DIR"
[ -O "$CLEAVE_DYNAMO_DIR" ] || { echo "$CLEAVE_DYNAMO_DIR belongs to another user: set CLEAVE_DYNAMO_DIR" >&2; return 1; }
export DYN_DISCOVERY_BACKEND=${DYN_DISCOVERY_BACKEND:-file} DYN_FILE_KV=${DYN_FILE_KV:-$CLEAVE_DYNAMO_DIR/discovery}
export DYN_REQUEST_PLANE=${DYN_REQUEST_PLANE:-tcp} DYN_EVENT_PLANE=${DYN_EVENT_PLANE:-zmq}
export DYN_TCP_RPC_HOST=${DYN_TCP_RPC_HOST:-127.0.0.1} DYN_TCP_RESPONSE_STREAM_HOST=${DYN_TCP_RESPONSE_STREAM_HOST:-127.0.0.1}
export DYN_HTTP_HOST=${DYN_HTTP_HOST:-127.0.0.1}
export DYN_SYSTEM_HOST=${DYN_SYSTEM_HOST:-127.0.0.1} DYN_EVENT_PLANE_HOST=${DYN_EVENT_PLANE_HOST:-127.0.0.1}
export HF_HUB_OFFLINE=${HF_HUB_OFFLINE:-1}
# A sidecar that is told to end cuts off its streams after this time, and clients take the rest for the whole. The engine beside it, told
# at the same time, ends them before (--drain, 10 s) in a way that the frontend continues elsewhere.
export DYN_GRACEFUL_SHUTDOWN_GRACE_PERIOD_SECS=${DYN_GRACEFUL_SHUTDOWN_GRACE_PERIOD_SECS:-15} DYN_PREFILL_DRAIN_TIMEOUT_S=${DYN_PREFILL_DRAIN_TIMEOUT_S:-1}
PYTHON=${PYTHON:-target/dynamo/bin/python}

if [ -n "${KV_SECRET:-}" ]; then
    [ -s "$KV_SECRET" ] || { echo "KV_SECRET=$KV_SECRET: no such file, or it is empty" >&2; return 1; }
else
    KV_SECRET=$CLEAVE_DYNAMO_DIR/kv.secret
    if [ ! -s "$KV_SECRET" ]; then # the first worker links it into place, so that no other reads half of it
        (umask 077 && head -c 32 /dev/urandom >"$KV_SECRET.$$")
        ln "$KV_SECRET.$$" "$KV_SECRET" 2>/dev/null || [ -s "$KV_SECRET" ] || { echo "$KV_SECRET: cannot be written" >&2; return 1; }
        rm -f "$KV_SECRET.$$"
    fi
fi
