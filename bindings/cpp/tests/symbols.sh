#!/bin/sh
# symbols.sh FUNCTIONS HEADER WRAPPER: every function that the C HEADER declares is called by the headers in WRAPPER. FUNCTIONS is
# ctest/functions.sh.
set -eu
functions=$1 header=$2 headers=$3
missing=0 count=0
for symbol in $(sh "$functions" "$header"); do
    count=$((count + 1))
    # Comments do not count.
    cat "$headers"/*.hpp | sed 's,//.*,,' | grep -Eq "(^|[^a-zA-Z0-9_])$symbol([^a-zA-Z0-9_]|\$)" || {
        echo "the wrapper does not use $symbol"
        missing=1
    }
done
[ "$count" -gt 0 ] || { echo "no functions in $header"; exit 1; }
[ "$missing" -eq 0 ] && echo "the wrapper uses all $count functions"
