#!/usr/bin/env bash
# Runs tests/dynamo: NVIDIA Dynamo and vLLM's router, as released, over the example servers that were built.
#
#     tools/dynamo.sh [PYTEST-ARGUMENT...]
#     tools/dynamo.sh --install   installs what is needed into target/dynamo: once, some hundred MB
#     tools/dynamo.sh --overhead [SECONDS] [tiny|slow]   measures what Dynamo costs (tests/dynamo/overhead.py)
set -euo pipefail
. "$(dirname "$0")/lib.sh"

venv=target/dynamo
download_etcd() {
    rm -rf target/etcd.new
    mkdir -p target/etcd.new
    (cd target/etcd.new && apt-get download -qq etcd-server && dpkg -x etcd-server_*.deb .) 2>/dev/null
}
need_etcd() { # Dynamo's planner needs it; unpacked from Debian's package, not installed
    ! command -v etcd >/dev/null && [ ! -x target/etcd/usr/bin/etcd ] || return 0
    # A bare machine may not know its packages yet.
    if download_etcd || { may_install && $apt_update >/dev/null 2>&1 && download_etcd; }; then
        rm -rf target/etcd
        mv target/etcd.new target/etcd
    else
        echo "SKIPPED: the supervisor under Dynamo's planner, without etcd (apt-get install etcd-server)" >&2
    fi
}
if [ "${1:-}" = --install ]; then
    at_least "$(version_of python3 --version)" 3.11 || die "python3 is older than 3.11"
    need_venv "$venv" --only-binary :all: --no-deps -r tests/dynamo/requirements.txt
    need_etcd
    exit
fi
"$0" --install

binary=$PWD/build/examples/go-server/go-server
[ -x "$binary" ] || die "the Go server was not built: make go-server"
export CLEAVE_GO_SERVER=$binary CLEAVE_SUPERVISOR=$PWD/build/examples/go-server/supervisor
cpp=$PWD/build/examples/cpp-server/cpp-server
if [ ! -x "$cpp" ] || "$cpp" --model / --grpc 127.0.0.1:0 2>&1 | grep -q 'built without gRPC'; then
    echo "SKIPPED: workers in C++, whose server was not built with gRPC" >&2
else
    export CLEAVE_CPP_SERVER=$cpp
fi
if [ "${1:-}" = --overhead ]; then
    shift
    PYTHONPATH=tests/dynamo:tests/servers PYTHONDONTWRITEBYTECODE=1 exec "$venv/bin/python" tests/dynamo/overhead.py "$@"
fi
last=${!#}
[ $# -gt 0 ] && [ -e "${last%%::*}" ] || set -- "$@" tests/dynamo
PYTHONDONTWRITEBYTECODE=1 "$venv/bin/python" -m pytest --tb=short "$@"
