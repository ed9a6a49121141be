#!/bin/sh
# abi.sh LIBDIR HEADER SONAME: the libraries export exactly the functions that the header declares, under the right name.
set -eu
lib=$1 header=$2 soname=$3
here=$(dirname "$0")
status=0
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

nm -D --defined-only "$lib/libcleave.so" | awk '{print $3}' | LC_ALL=C sort >"$work/found"
if ! sh "$here/functions.sh" "$header" | diff - "$work/found"; then
    echo "libcleave.so exports other symbols than $header declares (<: not exported, >: not declared)"
    status=1
fi
dynamic=$(readelf -d "$lib/libcleave.so")
case $dynamic in *"[$soname]"*) ;; *) echo "SONAME is not $soname"; status=1 ;; esac
case $dynamic in *NODELETE*) ;; *) echo "not linked with -z nodelete"; status=1 ;; esac
case $dynamic in *RUNPATH* | *RPATH* | *TEXTREL*) echo "RPATH, RUNPATH or TEXTREL"; status=1 ;; esac

# The libraries must not need anything except libc and the compiler's own runtime, because a program would notice only
# at load time.
needed=$(echo "$dynamic" | sed -n 's/.*(NEEDED).*\[\(.*\)\]/\1/p' | grep -vE '^(libc|libm|libgcc_s|ld-linux[a-z0-9-]*|libpthread|libdl|librt)\.so' || true)
if [ -n "$needed" ]; then
    echo "libcleave.so needs $needed"
    status=1
fi

# libcleave.a has no symbol of the project or of C code that a linker could confuse with one of the host's. Rust's own
# symbols are mangled, weak, or begin with rust_ or two underscores. ring prefixes its symbols with its name and exact
# version: a host that has the same symbol has the same code.
nm -g --defined-only "$lib/libcleave.a" 2>/dev/null | awk 'NF == 3 && $2 !~ /[WVu]/ {print $3}' |
    grep -vE '^(_?cleave_|_ZN|_R|rust_|__|ring_core_[0-9]+_[0-9]+_[0-9]+_+|DW\.ref|anon\.)' | LC_ALL=C sort -u >"$work/static" || true
if [ -s "$work/static" ]; then
    echo "libcleave.a exports unmangled symbols beside cleave_*:"
    cat "$work/static"
    status=1
fi
exit $status
