#!/bin/sh
# package.sh CMAKE BUILD SOURCE WORK [TARGET]: installs, moves the installation, and builds and runs consumers of it.
# They use C and C++ with find_package and with pkg-config, both also static, and the sources with add_subdirectory.
set -eu
cmake=$1 build=$2 source=$3 work=$4 target=${5:-$2/cargo}
unset LD_LIBRARY_PATH CMAKE_PREFIX_PATH PKG_CONFIG_PATH || true

step() { echo "--- $*"; }

rm -rf "$work"
mkdir -p "$work"
step install and move
"$cmake" --install "$build" --prefix "$work/first" >"$work/install.log"
mv "$work/first" "$work/moved"
prefix=$work/moved
version=$(sed -n 's/^version = "\(.*\)"/\1/p' "$source/Cargo.toml" | head -n 1)
libdir=$(dirname "$(find "$prefix" -name libcleave.a)")
for file in "$libdir/libcleave.so.$version" "$libdir/cmake/cleave/cleaveConfig.cmake" \
    "$libdir/cmake/cleave/cleaveConfigVersion.cmake" "$libdir/pkgconfig/cleave.pc" "$prefix/include/cleave/cleave.h" \
    "$prefix/include/cleave/cleave.hpp"; do
    [ -f "$file" ] || { echo "not installed: $file"; exit 1; }
done
[ "$(readlink "$libdir/libcleave.so")" = "libcleave.so.${version%%.*}" ]
[ "$(readlink "$libdir/libcleave.so.${version%%.*}")" = "libcleave.so.$version" ]
cmp "$source/include/cleave/cleave.h" "$prefix/include/cleave/cleave.h"
for header in "$source"/bindings/cpp/cleave/*.hpp; do
    cmp "$header" "$prefix/include/cleave/$(basename "$header")"
done

step no build paths in what is installed
for path in "$build" "$source" "$work" "$target" "${CARGO_HOME:-$HOME/.cargo}"; do
    if grep -rlF "$path" "$prefix"; then
        echo "these name $path"
        exit 1
    fi
done

step find_package: C and C++, shared and static
"$cmake" -S "$source/ctest/consumer" -B "$work/cmake" -DCMAKE_PREFIX_PATH="$prefix" -DCMAKE_BUILD_TYPE=Release >"$work/cmake.log"
"$cmake" --build "$work/cmake" >>"$work/cmake.log"
for program in consumer_c consumer_cpp consumer_static consumer_wrapper_cpp consumer_wrapper_cpp_static; do
    "$work/cmake/$program" "$version"
done
for program in consumer_static consumer_wrapper_cpp_static; do
    if ldd "$work/cmake/$program" | grep -q libcleave; then
        echo "$program needs libcleave.so"
        exit 1
    fi
done
if "$cmake" -S "$source/ctest/consumer" -B "$work/newer" -DCMAKE_PREFIX_PATH="$prefix" -DWANTED=99.0 >"$work/newer.log" 2>&1; then
    echo "find_package took $version for 99.0"
    exit 1
fi

step pkg-config: shared
PKG_CONFIG_PATH=$libdir/pkgconfig
export PKG_CONFIG_PATH
[ "$(pkg-config --modversion cleave)" = "$version" ]
# shellcheck disable=SC2046
${CC:-cc} -std=c99 -Wall -Werror "$source/ctest/consumer/consumer.c" $(pkg-config --cflags --libs cleave) -o "$work/pc"
LD_LIBRARY_PATH=$libdir "$work/pc" "$version"
# shellcheck disable=SC2046
${CXX:-c++} -std=c++17 -Wall -Werror "$source/ctest/consumer/wrapper.cpp" $(pkg-config --cflags --libs cleave) -o "$work/pc_wrapper"
LD_LIBRARY_PATH=$libdir "$work/pc_wrapper" "$version"

step pkg-config: static
mkdir "$work/static"
cp -R "$prefix/." "$work/static"
find "$work/static" -name 'libcleave.so*' -delete
PKG_CONFIG_PATH=$work/static/${libdir#"$prefix"/}/pkgconfig
# shellcheck disable=SC2046
${CC:-cc} -std=c99 -Wall -Werror "$source/ctest/consumer/consumer.c" $(pkg-config --static --cflags --libs cleave) -o "$work/pc_static"
"$work/pc_static" "$version"
# shellcheck disable=SC2046
${CXX:-c++} -std=c++17 -Wall -Werror "$source/ctest/consumer/wrapper.cpp" $(pkg-config --static --cflags --libs cleave) -o "$work/pc_wrapper_static"
"$work/pc_wrapper_static" "$version"

step add_subdirectory
"$cmake" -S "$source/ctest/subproject" -B "$work/sub" -DCLEAVE_SOURCE="$source" -DCLEAVE_CARGO_TARGET_DIR="$target" >"$work/sub.log"
"$cmake" --build "$work/sub" >>"$work/sub.log" 2>&1 || { tail -n 20 "$work/sub.log"; exit 1; }
"$work/sub/consumer" "$version"
"$work/sub/consumer_wrapper" "$version"
step all consumers ran
