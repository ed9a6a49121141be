#!/bin/sh
# handoff.sh EXAMPLES MODEL: runs prefill_worker and decode_worker as processes that are killed, stopped and restarted.
# The answers must always equal those of a single process.
set -eu
bin=$1 model=$2
work=$(mktemp -d)
pids=
cleanup() {
    for pid in $pids; do
        kill -9 "$pid" 2>/dev/null || true
    done
    rm -rf "$work"
}
trap cleanup EXIT
trap 'exit 1' INT TERM HUP
cd "$work"

fail() {
    echo "FAILED: $*"
    for file in prefill.log report*; do
        [ -f "$file" ] && echo "--- $file" && tail -n 12 "$file"
    done
    exit 1
}
step() { echo "--- $*"; }
until_there() { # until_there PATTERN FILE [COUNT]: waits for so many lines of that kind
    for _ in $(seq 2400); do
        [ "$(grep -c "$1" "$2" 2>/dev/null || true)" -ge "${3:-1}" ] && return 0
        sleep 0.05
    done
    fail "no \"$1\" in $2"
}
prefill() { # prefill OPTIONS...: starts a prefill worker
    "$bin/prefill_worker" "$model" --rpc "$work/rpc" --secret-file "$work/secret" --step-tokens 32 "$@" >prefill.log 2>&1 3>&- &
    prefill=$!
    pids="$pids $prefill"
    until_there "^waiting for" prefill.log
}
decode() { # decode NAME OPTIONS...: prompts on stdin, answers to NAME.out
    name=$1
    shift
    "$bin/decode_worker" "$model" --rpc "$work/rpc" --secret-file "$work/secret" "$@" >"$name.out" 2>"report.$name"
}
same() { # same NAME WANTED
    diff "$2" "$1.out" >"$1.diff" || fail "the answers of $1 are other ones: $(head -n 5 "$1.diff")"
}
says() { # says NAME PATTERN: in its report
    grep -q "$2" "report.$1" || fail "no \"$2\" in the report of $1"
}

# Questions that the model was not trained on, and long prompts whose answers have no meaning.
sed -n 's/^{"prompt": "\(.*\)", "answer": "\(.*\)", "facts".*/\1/p' "$model/recall_heldout.json" | head -n 30 >questions
sed -n 's/^{"prompt": "\(.*\)", "answer": "\(.*\)", "facts".*/ \2/p' "$model/recall_heldout.json" | head -n 30 >answers
[ "$(wc -l <questions)" -eq 30 ] || fail "questions"
sed -n 's/^{"prompt": "\(.*\)", "answer".*/\1/p' "$model/recall_heldout.json" |
    awk 'length($0) > 300 {if (++n % 2) a = $0; else print a " " $0}' | head -n 100 >long
echo "it rains all day. then he goes home. $(sed -n 24p questions)" >extra # neither short nor cached
[ "$(wc -l <long)" -ge 50 ] || fail "only $(wc -l <long) long prompts"

step "one process on its own"
head -c 32 /dev/urandom >secret
chmod 600 secret
decode mixed <questions
says mixed "cannot be reached\|No such file"
says mixed "^transport *none"
# Most first words are the right answer. A small model makes mistakes, but KV must never be wrong.
right=$(paste -d '|' answers mixed.out | awk -F '|' 'index($2, $1) == 1' | wc -l)
[ "$right" -ge 25 ] || fail "$right of 30 answers are right"
cp mixed.out wanted
decode mixed <long
cp mixed.out wanted.long
decode mixed <extra
cp mixed.out wanted.extra
rm secret

step "shared memory, and a secret file that the prefill worker makes"
decode early <questions && fail "without a secret file"
says early "start prefill_worker first"
prefill
[ "$(stat -c %a secret)" = 600 ] || fail "the secret file is readable"
decode shm --transport shm <questions
same shm wanted
says shm "^transport *shared memory at @cleave-"
says shm " 0 did not come; 0 requests were recomputed"
[ "$(grep -c "prefilled by the prefill worker" report.shm)" -ge 20 ] || fail "most prompts were prefilled here"

step "what cannot work is refused at the start, with a reason"
decode tcp --transport tcp <questions && fail "TCP without --kv-listen"
says tcp "UNSUPPORTED, reason 8"
head -c 32 /dev/zero | tr '\0' x >other
chmod 600 other
decode other --secret-file other <questions && fail "another secret"
says other "PERMISSION, reason 7"
chmod 640 other
decode other --secret-file other <questions && fail "a secret that others can read"
says other "chmod 600"

step "several decode workers at once"
for i in 1 2 3; do
    decode "many$i" --count 2 <questions &
    eval "many$i=\$!"
    pids="$pids $!"
done
awk '{print; print}' wanted >wanted.twice
for i in 1 2 3; do
    eval "wait \$many$i" || fail "decode worker $i"
    same "many$i" wanted.twice
done
kill "$prefill"
wait "$prefill" || fail "the prefill worker ended with $?"

step "TCP, and a prefill worker that ends by itself"
prefill --kv-listen 127.0.0.1:0 --count 1
head -n 5 long | decode tcp --transport tcp || fail "TCP"
head -n 5 wanted.long >wanted.five
same tcp wanted.five
says tcp "^transport *TCP at 127.0.0.1:"
wait "$prefill" || fail "the prefill worker ended with $?"

for how in KILL STOP; do
    step "a prefill worker that gets SIG$how in the middle, and comes back"
    prefill
    mkfifo prompts
    decode "$how" <prompts &
    decoder=$!
    pids="$pids $decoder"
    exec 3>prompts
    until_there "^paired" "report.$how"
    cat long >&3
    until_there . "$how.out" 3
    kill -"$how" "$prefill"
    # Outstanding tickets are now invalid, so their prompts are recomputed. One more prompt is answered without the
    # prefill worker.
    until_there . "$how.out" "$(wc -l <long)"
    cat extra >&3
    until_there . "$how.out" "$(($(wc -l <long) + 1))"
    says "$how" "is gone\|says nothing"
    # Starts another worker at the same place. After STOP this looks as if the first one had moved away.
    rm -f rpc
    stopped=$prefill
    prefill
    until_there "^paired" "report.$how" 2
    tail -n 3 questions >&3
    exec 3>&-
    wait "$decoder" || fail "the decode worker ended with $?"
    rm prompts
    { cat wanted.long wanted.extra && tail -n 3 wanted; } >"wanted.$how"
    same "$how" "wanted.$how"
    echo "$(grep -c "prefilled by" "report.$how") by the prefill workers, $(grep -c "there was no" "report.$how") here," \
        "$(grep -c "recomputed here, as" "report.$how") recomputed"
    [ "$(tail -n 12 "report.$how" | grep -c "prefilled by the prefill worker")" -ge 1 ] || fail "the second one was not used"
    kill -9 "$prefill" "$stopped" 2>/dev/null || true
    rm -f rpc
done
echo "all answers were those of one process"
