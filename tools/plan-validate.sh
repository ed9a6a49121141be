#!/usr/bin/env bash
# Compares the predictions of cleave-plan with the example servers under guidellm (tests/servers/plan_validate.py). Needs a
# machine with nothing else to do. Installs guidellm into a virtual environment once; with PyTorch that is several GB. Not part of
# the tests. Writes into target/load; fails if a median is off by more than 15 %.
#     tools/plan-validate.sh [SECONDS]     SECONDS of each of the 6 runs; SERVER=go|cpp
set -euo pipefail
. "$(dirname "$0")/lib.sh"

venv=target/guidellm
need_venv "$venv" guidellm==0.8.1
server=${SERVER:-go}
binary=$PWD/build/examples/$server-server/$server-server
[ -x "$binary" ] || die "$binary is missing: run make $server-server first"
cargo build --quiet --locked --release -p cleave-plan
mkdir -p target/load
export "CLEAVE_${server^^}_SERVER=$binary"
PYTHONDONTWRITEBYTECODE=1 python3 tests/servers/plan_validate.py target/release/cleave-plan "$venv/bin/guidellm" target/load/plan "$@"
