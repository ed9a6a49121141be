#!/usr/bin/env bash
# Puts NIXL (the wheel that src/sys/nixl was tried with) into target/nixl, where tests/nixl.rs looks for it. About 57 MB;
# does nothing, and touches no network, where it is there. Needs python3 with pip, which it installs with apt-get where
# that is possible and allowed. Fails with a reason where the wheel cannot be had.
set -euo pipefail
cd "$(dirname "$0")/.."

package=nixl-cu13
version=1.5.1
target=target/nixl
stamp=$target/.cleave-$package-$version

[ ! -e "$stamp" ] || exit 0

has_pip() { python3 -m pip --version >/dev/null 2>&1; }
may_install() {
    command -v apt-get >/dev/null || return 1
    [ "$(id -u)" -eq 0 ] || { command -v sudo >/dev/null && sudo -n true 2>/dev/null; }
}
if ! has_pip; then
    as_root=
    [ "$(id -u)" -eq 0 ] || as_root=sudo
    if ! may_install; then
        echo "NIXL needs python3 with pip, and this user may not install them. Run:" >&2
        echo "    apt-get install -y --no-install-recommends python3 python3-pip" >&2
        exit 1
    fi
    $as_root apt-get update
    $as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends python3 python3-pip
    if ! has_pip; then
        echo "python3 still has no pip" >&2
        exit 1
    fi
fi

# Beside its place first: what is interrupted leaves nothing that looks complete.
fresh=$target.new
rm -rf "$fresh"
mkdir -p "$(dirname "$target")"
# --no-deps: numpy and CUDA are for its Python side, of which only the libraries are used here.
if ! python3 -m pip install --quiet --disable-pip-version-check --root-user-action=ignore --no-deps --no-compile \
    --only-binary :all: --target "$fresh" "$package==$version"; then
    rm -rf "$fresh"
    echo "$package==$version cannot be installed: no network, or no wheel for this Python or machine" >&2
    exit 1
fi
rm -rf "$target"
mv "$fresh" "$target"
touch "$stamp"
echo "installed $package $version in $target"
