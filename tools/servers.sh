#!/usr/bin/env bash
# Runs tests/servers: real clients (the official openai package, a browser, raw sockets) against the example servers, in
# every language whose server could be built. Takes what pytest takes, paths last. The clients come by name and version from the
# package index into target/clients, once.
set -euo pipefail
cd "$(dirname "$0")/.."

venv=target/clients
stamp=$venv/.$(sha256sum tests/servers/requirements.txt | cut -c 1-16)
if [ ! -e "$stamp" ]; then
    rm -rf "$venv"
    python3 -m venv "$venv" || { echo "python3 with venv is needed: apt-get install python3-venv" >&2; exit 1; }
    "$venv/bin/pip" install --quiet --disable-pip-version-check --only-binary :all: -r tests/servers/requirements.txt
    touch "$stamp"
fi

for server in go cpp; do
    binary=$PWD/build/examples/$server-server/$server-server
    if [ -x "$binary" ]; then
        export "CLEAVE_${server^^}_SERVER=$binary"
    else
        echo "SKIPPED: the $server server, which was not built" >&2
    fi
done
# A CUDA driver that simulates its device.
if cargo build --quiet --locked -p simulated-cuda; then
    export CLEAVE_SIMULATED_CUDA=$PWD/target/debug
else
    echo "SKIPPED: workers on a simulated device, whose driver could not be built" >&2
fi
[ $# -gt 0 ] && [ -e "${!#}" ] || set -- "$@" tests/servers
PYTHONDONTWRITEBYTECODE=1 "$venv/bin/python" -m pytest --tb=short "$@"
