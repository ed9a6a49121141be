#!/usr/bin/env bash
# Measures the example servers under guidellm: a mixed engine against separate prefill and decode workers
# (tests/servers/load.py). Writes into target/load. Installs guidellm into a virtual environment once; with PyTorch that is several
# GB. Not part of the tests.
#     tools/load.sh [SECONDS]     SECONDS of each of the 12 runs; SERVER=go|cpp
set -euo pipefail
. "$(dirname "$0")/lib.sh"

server=${SERVER:-go}
binary=$PWD/build/examples/$server-server/$server-server
[ -x "$binary" ] || die "tools/load.sh: $binary is not there. Run: make $server-server"
venv=target/guidellm
need_venv "$venv" guidellm==0.8.1
mkdir -p target/load
export "CLEAVE_${server^^}_SERVER=$binary"
PYTHONDONTWRITEBYTECODE=1 python3 tests/servers/load.py "$venv/bin/guidellm" target/load/serving "$@"
