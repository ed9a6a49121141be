#!/bin/sh
# snippets.sh CC SOURCE LIBDIR WORK: every block of C in the documents compiles without a warning, and calls functions that
# the library has.
set -eu
cc=$1 source=$2 lib=$3 work=$4
rm -rf "$work"
mkdir -p "$work"
cd "$work"
count=0
for document in README.md docs/handing-over.md; do
    name=$(basename "$document" .md)
    # A block becomes NAME-LINE.c; #line makes the compiler name the document.
    awk -v name="$name" -v path="$source/$document" '
        /^```c$/ { file = name "-" NR ".c"; print "#include \"snippets.h\"\nvoid snippet(void);\nvoid snippet(void)\n{" > file
                   print "#line " NR + 1 " \"" path "\"" > file; inside = 1; next }
        /^```/ && inside { print "}" > file; close(file); inside = 0; next }
        inside { print > file }
    ' "$source/$document"
    ls "$name"-*.c >/dev/null 2>&1 || { echo "no C in $document"; exit 1; }
done
for file in ./*-*.c; do
    "$cc" -std=c99 -pedantic -Wall -Wextra -Werror -Wno-unused-variable -I"$source/include" -I"$source/ctest" -c "$file" -o "${file%.c}.o"
    # What it needs beside the harness and the C library has to be in the library: checked by name.
    for symbol in $(nm -u "${file%.c}.o" | awk '{print $NF}' | grep '^cleave_'); do
        nm -D --defined-only "$lib/libcleave.so" | grep -q " $symbol\$" || { echo "$file: no $symbol in libcleave.so"; exit 1; }
    done
    count=$((count + 1))
done
echo "$count pieces of C in the documents are right"
