#!/usr/bin/env bash
# frontend.sh [OPTION...]: Dynamo's OpenAI-compatible frontend at port 8000 (DYN_HTTP_PORT). OPTIONs are those of dynamo.frontend:
# --migration-limit 3 lets requests survive workers, --router-mode kv sends prompts to workers that have their beginning cached.
set -euo pipefail
. "$(dirname "$0")/loopback.sh"
exec "$PYTHON" -m dynamo.frontend "$@"
