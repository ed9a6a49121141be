#!/bin/sh
# headers.sh CXX SOURCE WORK: every header of the wrapper compiles by itself. All of them together compile in every
# standard from C++17 on that the compiler supports, with and without exceptions, and without a warning.
set -eu
cxx=$1 source=$2 work=$3
mkdir -p "$work"
count=0
compile() { # compile HEADER OPTIONS...
    echo "#include <cleave/$1>" >"$work/header.cpp"
    shift
    "$cxx" "$@" -Wall -Wextra -Wpedantic -Wconversion -Wshadow -Werror -fsyntax-only -I"$source/bindings/cpp" \
        -I"$source/include" "$work/header.cpp"
    count=$((count + 1))
}
for header in "$source"/bindings/cpp/cleave/*.hpp; do
    compile "$(basename "$header")" -std=c++17
done
echo 'int main() {}' >"$work/empty.cpp"
for standard in c++17 c++20 c++23; do
    if "$cxx" -std=$standard -fsyntax-only "$work/empty.cpp" 2>/dev/null; then
        compile cleave.hpp -std=$standard
        compile cleave.hpp -std=$standard -fno-exceptions -fno-rtti
        compile cleave.hpp -std=$standard -DCLEAVE_EXCEPTIONS
    fi
done
echo "$count compilations"
