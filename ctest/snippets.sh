#!/bin/sh
# snippets.sh CC CXX SOURCE LIBDIR WORK: the C, C++ and Go code in the documents compiles without a warning and calls
# only functions that the library has. Snippets are put into a function; snippets.h, snippets.hpp and snippets.go
# declare the names they use. Whole programs are also linked and run: each answers a question with the tiny model.
set -eu
cc=$1 cxx=$2 source=$3 lib=$4 work=$5
model=$source/models/tiny
question="the red box holds a key. the blue jar holds a coin. what does the red box hold?"
answer="a key."
rm -rf "$work"
mkdir -p "$work"
cd "$work"
LD_LIBRARY_PATH=$lib
export LD_LIBRARY_PATH

# Every block becomes NAME-LINE.LANGUAGE, and NAME-LINE.LANGUAGE.origin holds its position in the document.
for document in "$source"/README.md "$source"/docs/*.md "$source"/bindings/*/README.md; do
    [ -e "$document" ] || continue
    name=$(echo "${document#"$source"/}" | tr '/' '_')
    awk -v name="${name%.md}" -v path="$document" '
        /^```(c|cpp|go)$/ { language = substr($0, 4); file = name "-" NR "." language; print NR + 1 " " path > (file ".origin")
                            printf "" > file; inside = 1; next }
        /^```/ { if (inside) { close(file); close(file ".origin") } inside = 0; next }
        inside { print > file }
    ' "$document"
done
ls README-*.c >/dev/null 2>&1 || { echo "no C in README.md"; exit 1; }

fail() { echo "$(sed 's/\([0-9]*\) \(.*\)/\2:\1/' "$1.origin"): $2"; exit 1; }

runs() { # runs FILE PROGRAM: a whole program gives the answer
    got=$("$2" "$model" "$question") || fail "$1" "the program failed"
    case $got in *"$answer"*) ;; *) fail "$1" "expected \"$answer\" of the program, found \"$got\"" ;; esac
}

native() { # native FILE EXTENSION PREAMBLE DECLARATION COMPILER...: a piece of C or C++
    file=$1 extension=$2 preamble=$3 declaration=$4
    shift 4
    line=$(sed 's/\([0-9]*\) \(.*\)/#line \1 "\2"/' "$file.origin")
    if grep -q 'int main(' "$file"; then
        { echo "$line" && cat "$file"; } >"$file.whole.$extension"
        "$@" "$file.whole.$extension" -L"$lib" -lcleave -o "$file.program"
        runs "$file" "./$file.program"
        return
    fi
    { printf '#include "%s"\n%s\n{\n%s\n' "$preamble" "$declaration" "$line" && cat "$file" && echo '}'; } >"$file.piece.$extension"
    "$@" -Wno-unused-variable -c "$file.piece.$extension" -o "$file.o"
    # Symbols outside the harness and the standard library must be in the library: checked by name.
    for symbol in $(nm -u "$file.o" | awk '{print $NF}' | grep '^cleave_'); do
        nm -D --defined-only "$lib/libcleave.so" | grep -q " $symbol\$" || fail "$file" "no $symbol in libcleave.so"
    done
}

count=0
for file in *-*.c; do
    native "$file" c snippets.h 'void snippet(void);
void snippet(void)' "$cc" -std=c99 -pedantic -Wall -Wextra -Werror -I"$source/include" -I"$source/ctest"
    count=$((count + 1))
done
for file in *-*.cpp; do
    [ -e "$file" ] || break
    native "$file" cpp snippets.hpp 'void snippet();
void snippet()' "$cxx" -std=c++17 -pedantic -Wall -Wextra -Werror -I"$source/include" -I"$source/bindings/cpp" -I"$source/ctest"
    count=$((count + 1))
done

go_minor=$(go version 2>/dev/null | sed -n 's/.*go1\.\([0-9]*\).*/\1/p')
if [ "${go_minor:-0}" -lt 24 ]; then
    echo "$count pieces of C and C++ in the documents are right; those of Go were skipped: no go 1.24 or later"
    exit 0
fi
mkdir pkgconfig
cat >pkgconfig/cleave.pc <<END
Name: cleave
Description: the library of this build
Version: 0
Cflags: -I$source/include
Libs: -L$lib -lcleave
END
PKG_CONFIG_PATH=$work/pkgconfig
GOFLAGS=-mod=mod
GOPROXY=off
export PKG_CONFIG_PATH GOFLAGS GOPROXY
printf 'module snippets\n\ngo 1.24\n\nrequire cleave/go v0.0.0\n\nreplace cleave/go => %s\n' "$source/bindings/go" >go.mod
for file in *-*.go; do
    [ -e "$file" ] || break
    dir=${file%.go}
    mkdir "$dir"
    line=$(sed 's/\([0-9]*\) \(.*\)/\/\/line \2:\1/' "$file.origin")
    if grep -q '^package main' "$file"; then
        { echo "$line" && cat "$file"; } >"$dir/main.go"
    else
        # A file imports the packages that it names.
        {
            echo 'package main'
            for package in context errors fmt io iter log net/http os time cleave/go; do
                name=${package##*/}
                [ "$package" = cleave/go ] && name=cleave
                ! grep -qE "(^|[^.[:alnum:]])$name\.[A-Z]" "$file" || echo "import $name \"$package\""
            done
            echo 'func snippet() error {'
            echo "$line"
            cat "$file"
            echo 'return nil }'
        } >"$dir/main.go"
        cp "$source/ctest/snippets.go" "$dir/around.go"
    fi
    go vet "./$dir"
    go build -o "$dir/program" "./$dir"
    [ -e "$dir/around.go" ] || runs "$file" "./$dir/program"
    rm "$file"
    count=$((count + 1))
done
echo "$count pieces of C, C++ and Go in the documents are right"
