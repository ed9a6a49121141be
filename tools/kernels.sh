#!/usr/bin/env bash
# Compiles kernels/*.cu with the flags in kernels/nvcc.flags into target/kernels (or CLEAVE_KERNELS_DIR), where
# kernels/build.rs looks for the results: for each source a fatbin, the names of its kernels (.entries), the output of ptxas
# (.log) and the text it was compiled from (.inputs). Recompiles only what changed. Needs no GPU.
# Uses the nvcc of CLEAVE_NVCC, of PATH, of CUDA_HOME, or of the wheels in target/cuda. If there is none, installs those wheels
# (280 MB).
#   --check       also checks each kernel: no spills, no stack, registers that suit its number of threads, tensor cores where
#                 they are intended; prints a table
#   --no-install  exits with status 3 instead of installing nvcc
#   --install     only makes sure that nvcc is there
#   --unchanged   only tells by its status whether the sources are those named in kernels/checked, which were last compiled and
#                 checked for all architectures
# CLEAVE_KERNEL_ARCHS ("90 100") limits the architectures in kernels/nvcc.flags to these, without PTX.
set -euo pipefail
. "$(dirname "$0")/lib.sh"
export LC_ALL=C

check= install=1 only_install= only_compare=
for option in "$@"; do
    case $option in
    --check) check=1 ;;
    --no-install) install= ;;
    --install) only_install=1 ;;
    --unchanged) only_compare=1 ;;
    *) bad_option "$option" "--check, --no-install, --install or --unchanged" ;;
    esac
done
out=${CLEAVE_KERNELS_DIR:-target/kernels}
wheels=target/cuda
min_nvcc=12.8 # the first with compute capability 10.0
max_bytes=$((60 << 20)) # limit for all fatbins: the size of a package

# One hash over all that nvcc sees.
sources_hash() { cat kernels/nvcc.flags kernels/*.cu kernels/include/*.cuh | sha256sum | cut -d ' ' -f 1; }
if [ -n "$only_compare" ]; then
    [ "$(sources_hash)" = "$(cat kernels/checked 2>/dev/null)" ]
    exit
fi

# ---- nvcc ----

nvcc_version() { "$1" --version 2>/dev/null | sed -n 's/.*, release \([0-9.]*\),.*/\1/p'; }
is_good() { # is_good NVCC
    local version
    version=$(nvcc_version "$1") && [ -n "$version" ] && at_least "$version" $min_nvcc
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
    # Wheels of other versions do not count.
    cmp -s tools/kernels-requirements.txt $wheels/requirements.txt && is_good $wheels/nvidia/cu13/bin/nvcc &&
        echo "$PWD/$wheels/nvidia/cu13/bin/nvcc"
}

if ! nvcc=$(find_nvcc); then
    [ -n "$install" ] || exit 3
    [ -z "${CLEAVE_NVCC:-}" ] || die "CLEAVE_NVCC=$CLEAVE_NVCC is not nvcc $min_nvcc or later"
    install_wheels "nvcc (tools/kernels-requirements.txt)" $wheels -r tools/kernels-requirements.txt
    cp tools/kernels-requirements.txt $wheels/requirements.txt
    echo "installed nvcc in $wheels"
    nvcc=$(find_nvcc) || die "the nvcc in $wheels does not run"
fi
[ -z "$only_install" ] || exit 0

# ---- compile ----

# A source and the files that it includes, directly or not.
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
# The text that decides whether a result is fresh. kernels/build.rs writes the same one, except for the first line.
inputs() { # inputs FILE
    echo "nvcc $(nvcc_version "$nvcc")${CLEAVE_KERNEL_ARCHS:+ for $CLEAVE_KERNEL_ARCHS}"
    closure "$1" | xargs cat kernels/nvcc.flags
}
compile() { # compile NAME
    local name=$1 new=$out/$1.new
    # One process compiles for all architectures, because several of these run at once.
    if ! "$nvcc" -fatbin -optf "$flags" -Xptxas -v -o "$new.fatbin" "kernels/$name.cu" >"$new.log" 2>&1; then
        cat "$new.log" >&2
        return 1
    fi
    grep -E '(warning|error)' "$new.log" >&2 || true
    sed -n "s/.*Compiling entry function '\([^']*\)' for .*/\1/p" "$new.log" | sort -u >"$new.entries"
    inputs "kernels/$name.cu" >"$new.inputs"
    rm -f "$out/$name.inputs" # written last, removed first
    for part in fatbin log entries inputs; do
        mv "$new.$part" "$out/$name.$part"
    done
    echo "compiled $name"
}
flags=$out/nvcc.flags
export -f compile inputs closure nvcc_version
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
rm -f "$out"/*.new.* # left by a run that failed
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

# Prints the findings of ptxas as lines "ARCH KERNEL STACK SPILLED REGISTERS".
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
# Prints kernels with a launch bound as lines "KERNEL THREADS".
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
