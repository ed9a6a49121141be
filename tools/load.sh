#!/usr/bin/env bash
# Measures the example servers under guidellm, mixed against prefill and decode apart (tests/servers/load.py), into
# target/load. Installs guidellm into a virtual environment once: several GB, as it brings PyTorch. No test.
#     tools/load.sh [SECONDS]     of each of the 12 runs; SERVER=go|cpp
set -euo pipefail
cd "$(dirname "$0")/.."

venv=target/guidellm
if [ ! -x "$venv/bin/guidellm" ]; then
    python3 -m venv "$venv"
    "$venv/bin/pip" install --quiet --disable-pip-version-check guidellm==0.8.1
fi
mkdir -p target/load
server=${SERVER:-go}
export "CLEAVE_${server^^}_SERVER=$PWD/build/examples/$server-server/$server-server"
PYTHONDONTWRITEBYTECODE=1 python3 tests/servers/load.py "$venv/bin/guidellm" target/load/serving "$@"
