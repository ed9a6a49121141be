#!/usr/bin/env bash
# Runs tests/servers: real clients (the official openai package, a browser, raw sockets) against the example servers that were
# built. Takes pytest's arguments, paths last. The clients are installed into target/clients once.
set -euo pipefail
. "$(dirname "$0")/lib.sh"

venv=target/clients
need_venv "$venv" --only-binary :all: -r tests/servers/requirements.txt

for server in go cpp; do
    binary=$PWD/build/examples/$server-server/$server-server
    if [ -x "$binary" ]; then
        export "CLEAVE_${server^^}_SERVER=$binary"
    else
        echo "SKIPPED: the $server server, which was not built" >&2
    fi
done
if [ -n "${CLEAVE_CPP_SERVER:-}" ] && "$CLEAVE_CPP_SERVER" --model / --grpc 127.0.0.1:0 2>&1 | grep -q 'built without gRPC'; then
    echo "SKIPPED: gRPC of the cpp server, which was built without it" >&2
fi
# A CUDA driver that simulates a device.
if cargo build --quiet --locked -p simulated-cuda; then
    export CLEAVE_SIMULATED_CUDA=$PWD/target/debug
else
    echo "SKIPPED: workers on a simulated device, whose driver could not be built" >&2
fi
last=${!#}
[ $# -gt 0 ] && [ -e "${last%%::*}" ] || set -- "$@" tests/servers
PYTHONDONTWRITEBYTECODE=1 "$venv/bin/python" -m pytest --tb=short "$@"
