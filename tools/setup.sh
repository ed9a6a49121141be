#!/usr/bin/env bash
# Installs what building cleave needs and this machine lacks: a C and a C++ compiler, make, CMake, pkg-config, Rust.
# For Debian and Ubuntu. If nothing is missing, does nothing and uses no network. Without the right to install packages it
# says what to run, and fails. --check only looks. --all adds what the C++ tests, the servers in examples/ and their
# clients need: GoogleTest, cpp-httplib, nlohmann/json, OpenSSL, gRPC, ZeroMQ, Go, Python with venv, a browser.
set -euo pipefail
. "$(dirname "$0")/lib.sh"

rust_min=1.89
cmake_min=3.16
go_min=1.24
check= all=
for option in "$@"; do
    case $option in
    --check) check=1 ;;
    --all) all=1 ;;
    *) bad_option "$option" "--check or --all" ;;
    esac
done
PATH=$PATH:${CARGO_HOME:-$HOME/.cargo}/bin

rust_is_good() {
    command -v cargo >/dev/null && at_least "$(version_of rustc --version || echo 0)" "$rust_min"
}
missing_packages() {
    command -v cc >/dev/null || echo gcc
    command -v c++ >/dev/null || echo g++
    # Slim images have compilers without the headers of the C library.
    echo '#include <stdio.h>' | cc -E - >/dev/null 2>&1 || echo libc6-dev
    command -v make >/dev/null || echo make
    at_least "$(version_of cmake --version)" "$cmake_min" || echo cmake
    command -v pkg-config >/dev/null || echo pkg-config
    command -v readelf >/dev/null || echo binutils
    [ -z "$all" ] || missing_packages_for_all
}
go_is_good() { at_least "$(version_of go version || echo 0)" "$go_min"; }
missing_packages_for_all() {
    has_header gtest/gtest.h || echo libgtest-dev
    has_header httplib.h || echo libcpp-httplib-dev
    has_header nlohmann/json.hpp || echo nlohmann-json3-dev
    has_header openssl/hmac.h || echo libssl-dev
    has_header grpcpp/grpcpp.h || echo libgrpc++-dev
    has_header google/protobuf/message.h || echo libprotobuf-dev
    command -v protoc >/dev/null || echo protobuf-compiler
    command -v grpc_cpp_plugin >/dev/null || echo protobuf-compiler-grpc
    has_header zmq.h || echo libzmq3-dev
    has_header zmq_addon.hpp || echo cppzmq-dev
    python3 -c 'import venv, ensurepip' 2>/dev/null || echo python3-venv
    command -v curl >/dev/null || echo curl
    command -v chromium >/dev/null || command -v google-chrome >/dev/null || echo chromium
    # Older distributions have only an older Go, which does not help.
    go_is_good || ! at_least "$(apt-cache policy golang-go 2>/dev/null | sed -n 's/.*Candidate: [0-9]*:*\([0-9.]*\).*/\1/p')" "$go_min" || echo golang-go
}
has_header() { echo "#include <$1>" | c++ -x c++ -E - >/dev/null 2>&1; }

packages=$(missing_packages | sort -u | tr '\n' ' ')
packages=${packages% }
need_rust=
rust_is_good || need_rust=1
[ -n "$packages$need_rust" ] || exit 0
# Only examples/handoff.sh --netns needs iproute2, and that test is skipped without it: it is installed along with others only.
command -v ip >/dev/null || [ -x /usr/sbin/ip ] || packages="${packages:+$packages }iproute2"

if ! command -v apt-get >/dev/null; then
    echo "cleave needs: ${packages:+$packages }${need_rust:+and rustc $rust_min or later with cargo}" >&2
    die "This is not Debian or Ubuntu: install them with this system's package manager, then run this again."
fi

# The commands to run, in order.
commands=()
# apt-cache also knows names that other packages merely mention; only one with a candidate can be installed.
has_rustup_package() { apt-cache policy rustup 2>/dev/null | grep -qE 'Candidate: [0-9]'; }
plan() {
    commands=()
    local wanted=$packages
    if [ -n "$need_rust" ] && ! command -v rustup >/dev/null && has_rustup_package; then
        wanted="${wanted:+$wanted }rustup"
    fi
    if [ -n "$wanted" ]; then
        commands+=("$apt_update" "$apt_install $wanted")
    fi
    if [ -n "$need_rust" ]; then
        if command -v rustup >/dev/null || has_rustup_package; then
            commands+=("rustup toolchain install stable --profile minimal --component rustfmt --component clippy" "rustup default stable")
        else
            commands+=("")
        fi
    fi
}
show_plan() {
    local command
    for command in "${commands[@]}"; do
        if [ -n "$command" ]; then
            echo "    $command" >&2
        else
            echo "    # This distribution has no rustup package. Install rustc $rust_min or later as https://rustup.rs says:" >&2
            echo "    curl --proto '=https' --tlsv1.2 -sSf https://sh.rustup.rs | sh -s -- -y --profile minimal --component rustfmt --component clippy" >&2
        fi
    done
}

plan
if [ -n "$check" ]; then
    echo "missing: ${packages}${need_rust:+ rustc >= $rust_min}" >&2
    show_plan
    exit 1
fi
if ! may_install; then
    echo "cleave needs packages that are not installed, and this user may not install any. Run:" >&2
    show_plan
    exit 1
fi
# Before its first apt-get update a machine knows no packages, rustup included.
if [ -n "$need_rust" ] && ! command -v rustup >/dev/null && ! has_rustup_package; then
    $apt_update
    plan
fi
for command in "${commands[@]}"; do
    if [ -z "$command" ]; then
        echo "Everything else is installed; Rust is not. Run:" >&2
        commands=("")
        show_plan
        exit 1
    fi
    echo "+ $command"
    # shellcheck disable=SC2086
    $command
done
hash -r

packages=$(missing_packages | sort -u | tr '\n' ' ')
[ -z "$packages" ] || die "still missing or too old: $packages"
rust_is_good || die "'rustc' is version $(version_of rustc --version), $rust_min or later is needed: check PATH and 'rustup default'"
