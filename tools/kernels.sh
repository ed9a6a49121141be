#!/usr/bin/env bash
# Compiles kernels/*.cu with the flags in kernels/nvcc.flags into target/kernels (or CLEAVE_KERNELS_DIR), where
# kernels/build.rs looks for them: a fatbin for each, with the names of its kernels (.entries), what ptxas said of them
# (.log) and what it was made of (.inputs). What was made of the same is left alone. Needs no GPU.
# nvcc is CLEAVE_NVCC, that of PATH, that of CUDA_HOME, or of the wheels in target/cuda, which are installed there, 280 MB,
# where there is no other.
#   --check       then looks at each kernel: no spills and stacks, registers that suit its threads, tensor cores where
#                 they are meant; prints a table
#   --no-install  ends with status 3 where nvcc would have to be installed
#   --install     only sees to it that nvcc is there
#   --unchanged   only says by its status whether the sources are those that kernels/checked names: the last ones that were
#                 compiled and checked for all architectures
# CLEAVE_KERNEL_ARCHS ("90 100") compiles for these of the architectures in kernels/nvcc.flags only, without PTX.
set -euo pipefail
cd "$(dirname "$0")/.."
export LC_ALL=C

check= install=1 only_install= only_compare=
for option in "$@"; do
    case $option in
    --check) check=1 ;;
    --no-install) install= ;;
    --install) only_install=1 ;;
    --unchanged) only_compare=1 ;;
    *) echo "$0: $option: expected --check, --no-install, --install or --unchanged" >&2 && exit 2 ;;
    esac
done
out=${CLEAVE_KERNELS_DIR:-target/kernels}
wheels=target/cuda
min_nvcc=12.8 # the first that knows compute capability 10.0
max_bytes=$((60 << 20)) # of all fatbins: what a package holds

# One hash over all that nvcc sees.
sources_hash() { cat kernels/nvcc.flags kernels/*.cu kernels/include/*.cuh | sha256sum | cut -d ' ' -f 1; }
if [ -n "$only_compare" ]; then
    [ "$(sources_hash)" = "$(cat kernels/checked 2>/dev/null)" ]
    exit
fi

# ---- nvcc ----

version_of() { "$1" --version 2>/dev/null | sed -n 's/.*, release \([0-9.]*\),.*/\1/p'; }
is_good() { # is_good NVCC
    local version
    version=$(version_of "$1") && [ -n "$version" ] && [ "$(printf '%s\n%s\n' $min_nvcc "$version" | sort -V | head -n 1)" = $min_nvcc ]
}
find_nvcc() {
    if [ -n "${CLEAVE_NVCC:-}" ]; then
        is_good "$CLEAVE_NVCC" || return 1
        echo "$CLEAVE_NVCC"
        return
    fi
    local nvcc
    for nvcc in "$(command -v nvcc || true)" ${CUDA_HOME:+"$CUDA_HOME/bin/nvcc"}; do
        if [ -n "$nvcc" ] && is_good "$nvcc"; then
            echo "$nvcc"
            return
        fi
    done
    # Other wheels than these are none.
    cmp -s tools/kernels-requirements.txt $wheels/requirements.txt && is_good $wheels/nvidia/cu13/bin/nvcc &&
        echo "$PWD/$wheels/nvidia/cu13/bin/nvcc"
}

has_pip() { python3 -m pip --version >/dev/null 2>&1; }
install_pip() {
    local as_root=
    [ "$(id -u)" -eq 0 ] || as_root=sudo
    if ! command -v apt-get >/dev/null || { [ -n "$as_root" ] && ! sudo -n true 2>/dev/null; }; then
        echo "nvcc needs python3 with pip, and this user may not install them. Run:" >&2
        echo "    apt-get install -y --no-install-recommends python3 python3-pip" >&2
        return 1
    fi
    $as_root apt-get update
    $as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends python3 python3-pip
}
install_nvcc() {
    has_pip || install_pip || return 1
    # Beside its place first: what is interrupted leaves nothing that looks complete.
    rm -rf $wheels.new
    mkdir -p "$(dirname $wheels)"
    if ! python3 -m pip install --quiet --disable-pip-version-check --root-user-action=ignore --no-deps --no-compile \
        --only-binary :all: --target $wheels.new -r tools/kernels-requirements.txt; then
        rm -rf $wheels.new
        echo "the wheels of tools/kernels-requirements.txt cannot be installed: no network, or none for this machine" >&2
        return 1
    fi
    cp tools/kernels-requirements.txt $wheels.new/requirements.txt
    rm -rf $wheels
    mv $wheels.new $wheels
    echo "installed nvcc in $wheels"
}

if ! nvcc=$(find_nvcc); then
    if [ -n "${CLEAVE_NVCC:-}" ]; then
        [ -n "$install" ] || exit 3
        echo "CLEAVE_NVCC=$CLEAVE_NVCC is not nvcc $min_nvcc or later" >&2
        exit 1
    fi
    [ -n "$install" ] || exit 3
    install_nvcc
    nvcc=$(find_nvcc) || { echo "the nvcc in $wheels does not run" >&2 && exit 1; }
fi
[ -z "$only_install" ] || exit 0

# ---- compile ----

# The sources that a source is made of, itself among them; without the simulator's, which nvcc never sees.
closure() { # closure FILE
    local -A seen=()
    local queue=("$1") file next
    while [ ${#queue[@]} -gt 0 ]; do
        file=${queue[0]} queue=("${queue[@]:1}")
        [ -z "${seen[$file]:-}" ] || continue
        seen[$file]=1
        while read -r next; do
            queue+=("$(dirname "$file")/$next")
        done < <(sed -n 's/^#include "\([^"]*\)".*/\1/p' "$file")
    done
    printf '%s\n' "${!seen[@]}" | sort
}
# kernels/build.rs writes the same text but for the first line: what is there is fresh if it is equal.
inputs() { # inputs FILE
    echo "nvcc $(version_of "$nvcc")${CLEAVE_KERNEL_ARCHS:+ for $CLEAVE_KERNEL_ARCHS}"
    closure "$1" | xargs cat kernels/nvcc.flags
}
compile() { # compile NAME
    local name=$1 new=$out/$1.new
    # -gencode and all: one process for all architectures, since two of these run.
    if ! "$nvcc" -fatbin -optf "$flags" -Xptxas -v -o "$new.fatbin" "kernels/$name.cu" >"$new.log" 2>&1; then
        cat "$new.log" >&2
        return 1
    fi
    grep -E '(warning|error)' "$new.log" >&2 || true
    sed -n "s/.*Compiling entry function '\([^']*\)' for .*/\1/p" "$new.log" | sort -u >"$new.entries"
    inputs "kernels/$name.cu" >"$new.inputs"
    rm -f "$out/$name.inputs" # last to come, first to go
    for part in fatbin log entries inputs; do
        mv "$new.$part" "$out/$name.$part"
    done
    echo "compiled $name"
}
flags=$out/nvcc.flags
export -f compile inputs closure version_of
export out nvcc flags

mkdir -p "$out"
exec 9>"$out/lock"
flock 9
if [ -n "${CLEAVE_KERNEL_ARCHS:-}" ]; then
    { grep -v '^-gencode' kernels/nvcc.flags && for arch in $CLEAVE_KERNEL_ARCHS; do grep -x -- "-gencode=.*,code=sm_$arch" kernels/nvcc.flags; done; } >"$flags" ||
        { echo "CLEAVE_KERNEL_ARCHS=$CLEAVE_KERNEL_ARCHS: not all of them are in kernels/nvcc.flags" >&2 && exit 2; }
else
    cp kernels/nvcc.flags "$flags"
fi
rm -f "$out"/*.new.* # of a run that failed
sources=(kernels/*.cu)
stale=()
for source in "${sources[@]}"; do
    name=$(basename "$source" .cu)
    [ -e "$out/$name.fatbin" ] && inputs "$source" | cmp -s - "$out/$name.inputs" || stale+=("$name")
done
for old in "$out"/*.fatbin; do
    name=$(basename "$old" .fatbin)
    if [ "$name" != '*' ] && [ ! -e "kernels/$name.cu" ]; then
        rm -f "$out/$name".{fatbin,log,entries,inputs}
        stale+=("")
    fi
done
if [ ${#stale[@]} -gt 0 ]; then
    status=0
    printf '%s\n' "${stale[@]}" | sed '/^$/d' | xargs -r -P "${JOBS:-2}" -I{} bash -c 'compile {}' || status=1
    touch "$out/stamp" # what kernels/build.rs watches
    [ $status -eq 0 ] || { echo "kernels: not all compile" >&2 && exit 1; }
fi
bytes=$(cat "$out"/*.fatbin | wc -c)
total=$(printf 'kernels: %d files, %d compiled, %d.%02d MiB in %s' ${#sources[@]} "$(printf '%s\n' "${stale[@]}" | grep -c . || true)" \
    $((bytes >> 20)) $(((bytes & 0xfffff) * 100 >> 20)) "$out")
[ -n "$check" ] || { echo "$total" && exit 0; }

# ---- check ----

# Kernels that need a stack or spill, and why: a line "NAME REASON".
allowed_stack=''
tool() { # tool NAME: beside nvcc, or in PATH
    if [ -x "$(dirname "$nvcc")/$1" ]; then
        echo "$(dirname "$nvcc")/$1"
    else
        command -v "$1" || { echo "--check needs $1" >&2 && return 1; }
    fi
}
cuobjdump=$(tool cuobjdump)
PATH=$(dirname "$(tool nvdisasm)"):$PATH # which cuobjdump calls
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
errors=$scratch/errors
: >"$errors"
wrong() { echo "WRONG: $*" >>"$errors"; }

# What ptxas said: lines "ARCH KERNEL STACK SPILLED REGISTERS".
resources() { # resources LOG
    awk -F"'" '
        /Compiling entry function/ { kernel = $2; arch = $4; stack = spilled = 0 }
        / bytes stack frame, / {
            split($0, n, " ")
            if (n[1] > stack) stack = n[1]
            if (n[5] + n[9] > spilled) spilled = n[5] + n[9]
        }
        /: Used [0-9]+ registers/ { sub(/.*: Used /, ""); sub(/ .*/, ""); print arch, kernel, stack, spilled, $0 }' "$1"
}
# Of those with a launch bound: lines "KERNEL THREADS".
bounds() { # bounds CUBIN
    "$cuobjdump" -elf "$1" | awk '
        /^\.nv\.info\./ { kernel = substr($1, 10) }
        /EIATTR_MAX_THREADS/ { getline; getline; print kernel, $2, $3, $4 }' | while read -r kernel x y z; do
        echo "$kernel $((x * y * z))"
    done
}

printf '%-24s %-8s %8s %10s %10s %12s\n' file arch kernels registers "with mma" bytes
for source in "${sources[@]}"; do
    name=$(basename "$source" .cu)
    cubins=$scratch/$name
    mkdir "$cubins"
    (cd "$cubins" && "$cuobjdump" -xelf all "$OLDPWD/$out/$name.fatbin" >/dev/null)
    resources "$out/$name.log" >"$cubins/resources"
    ! grep -q warning "$out/$name.log" || wrong "$name: $(grep -m 1 warning "$out/$name.log")"
    wanted=$(sed -n 's/^-gencode=.*code=\(sm_[0-9a-z]*\)$/\1/p' "$flags")
    for arch in $wanted; do
        cubin=$(echo "$cubins"/*."$arch".cubin)
        [ -e "$cubin" ] || { wrong "$name: nothing for $arch" && continue; }
        declare -A threads=()
        while read -r kernel n; do threads[$kernel]=$n; done < <(bounds "$cubin")
        count=0 most=0
        while read -r _ kernel stack spilled registers; do
            count=$((count + 1))
            [ "$registers" -le $most ] || most=$registers
            if [ $((stack + spilled)) -gt 0 ] && ! grep -q "^$kernel " <<<"$allowed_stack"; then
                wrong "$kernel for $arch: a stack of $stack bytes, $spilled bytes of spills"
            fi
            if [ "$registers" -gt 255 ] || [ "$registers" -gt $((65536 / ${threads[$kernel]:-256})) ]; then
                wrong "$kernel for $arch: $registers registers for ${threads[$kernel]:-256} threads"
            fi
        done < <(grep "^$arch " "$cubins/resources")
        unset threads
        [ $count -eq "$(wc -l <"$out/$name.entries")" ] || wrong "$name for $arch: $count kernels"
        mma=-
        case $name in
        gemm* | attention_prefill*)
            mma=$("$cuobjdump" -sass "$cubin" | awk '/Function : / { kernel = $3 } /HG?MMA/ { with[kernel] } END { print length(with) }')
            [ "$mma" -gt 0 ] || wrong "$name for $arch: no tensor cores"
            ;;
        esac
        printf '%-24s %-8s %8d %10d %10s %12d\n' "$name" "$arch" $count $most "$mma" "$(stat -c %s "$cubin")"
    done
    printf '%-24s %-8s %8d %10s %10s %12d\n' "$name" fatbin "$(wc -l <"$out/$name.entries")" "" "" "$(stat -c %s "$out/$name.fatbin")"
done
[ "$bytes" -le $max_bytes ] || wrong "fatbins of $bytes bytes, more than $max_bytes"
cat "$errors"
echo "$total$([ -s "$errors" ] && echo ", $(wc -l <"$errors") WRONG")"
[ ! -s "$errors" ] || exit 1
[ -n "${CLEAVE_KERNEL_ARCHS:-}" ] || sources_hash >kernels/checked
