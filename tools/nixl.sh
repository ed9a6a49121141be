#!/usr/bin/env bash
# Puts NIXL (the wheel that src/sys/nixl was tested with, about 57 MB) into target/nixl, where tests/nixl.rs looks for it. If it
# is there already, does nothing and uses no network. Needs python3 with pip, and installs them with apt-get if it may.
set -euo pipefail
. "$(dirname "$0")/lib.sh"

package=nixl-cu13
version=1.5.1
target=target/nixl
stamp=$target/.cleave-$package-$version

[ ! -e "$stamp" ] || exit 0
# Its dependencies, numpy and CUDA, are for its Python side; only its libraries are used here.
install_wheels "NIXL ($package==$version)" "$target" "$package==$version"
touch "$stamp"
echo "installed $package $version in $target"
