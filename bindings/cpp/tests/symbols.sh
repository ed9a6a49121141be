#!/bin/sh
# symbols.sh SYMBOLS HEADERS: every function of the C API (SYMBOLS names them, one a line) is called by the wrapper.
set -eu
symbols=$1 headers=$2
missing=0 count=0
while read -r symbol; do
    count=$((count + 1))
    # Comments do not count.
    cat "$headers"/*.hpp | sed 's,//.*,,' | grep -Eq "(^|[^a-zA-Z0-9_])$symbol([^a-zA-Z0-9_]|\$)" || {
        echo "the wrapper does not use $symbol"
        missing=1
    }
done <"$symbols"
[ "$count" -gt 0 ] || { echo "no functions in $symbols"; exit 1; }
[ "$missing" -eq 0 ] && echo "the wrapper uses all $count functions"
