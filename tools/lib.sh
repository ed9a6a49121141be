# shellcheck shell=bash
# Shared by the scripts in this directory, which source it first. The root of the repository becomes the working directory.

cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1

die() { # die TEXT: ends the script and says why
    echo "$*" >&2
    exit 1
}
bad_option() { # bad_option OPTION EXPECTED
    echo "$0: $1: expected $2" >&2
    exit 2
}

at_least() { # at_least FOUND WANTED: whether version FOUND is WANTED or later
    [ "$(printf '%s\n%s\n' "$2" "$1" | sort -V | head -n 1)" = "$2" ]
}
version_of() { # version_of COMMAND...: the first number with a dot that the command prints
    "$@" 2>/dev/null | grep -oE '[0-9]+(\.[0-9]+)+' | head -n 1 || true
}

# Prefix of a command that needs root.
as_root=
[ "$(id -u)" -eq 0 ] || as_root="sudo "

may_install() { # whether this user may install packages without being asked for a password
    command -v apt-get >/dev/null && { [ -z "$as_root" ] || { command -v sudo >/dev/null && sudo -n true 2>/dev/null; }; }
}

# The commands that install packages, for messages as well as to be run.
apt_update="${as_root}apt-get update"
apt_install="${as_root}env DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends"

has_pip() { python3 -m pip --version >/dev/null 2>&1; }
need_pip() { # need_pip WHAT-FOR: installs python3 with pip if it is missing
    ! has_pip || return 0
    may_install || die "$1 needs python3 with pip, and this user may not install them. Run:
    apt-get install -y --no-install-recommends python3 python3-pip"
    $apt_update
    $apt_install python3 python3-pip
    has_pip || die "python3 still has no pip"
}

install_wheels() { # install_wheels NAME DIRECTORY PIP-ARGUMENT...: only wheels, without what they depend on
    local name=$1 directory=$2
    shift 2
    need_pip "$name"
    # An interrupted installation leaves nothing that looks complete.
    rm -rf "$directory.new"
    mkdir -p "$(dirname "$directory")"
    if ! python3 -m pip install --quiet --disable-pip-version-check --root-user-action=ignore --no-deps --no-compile \
        --only-binary :all: --target "$directory.new" "$@"; then
        rm -rf "$directory.new"
        die "$name cannot be installed: no network, or no wheel for this Python or machine"
    fi
    rm -rf "$directory"
    mv "$directory.new" "$directory"
}

need_venv() { # need_venv DIRECTORY PIP-ARGUMENT...: a virtual environment with these packages, made once
    local directory=$1 stamp
    shift
    stamp=$directory/.$({ echo "$*" && cat /dev/null $(for argument in "$@"; do [ ! -f "$argument" ] || echo "$argument"; done); } | sha256sum | cut -c 1-16)
    [ ! -e "$stamp" ] || return 0
    rm -rf "$directory"
    python3 -m venv "$directory" || die "python3 with venv is needed: apt-get install python3-venv"
    "$directory/bin/pip" install --quiet --disable-pip-version-check "$@"
    touch "$stamp"
}
