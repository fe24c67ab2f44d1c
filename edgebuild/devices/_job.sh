# Runs one command at a time, under a deadline; its result appears whole or not at all.
root=$1 lock=$1/lock job=$2 deadline=$3
shift 3
child='' watch=''
boot=$(cat /proc/sys/kernel/random/boot_id 2>/dev/null)
me=$$.$boot

finish() {
    [ -e "$job/out" ] || : >"$job/out"
    [ -e "$job/err" ] || : >"$job/err"
    echo "$1" >"$job/result.part" && mv "$job/result.part" "$job/result"
}

# The group of a process that has just been forked is not yet its own.
end() { kill -9 "-$1" 2>/dev/null || kill -9 "$1" 2>/dev/null; }

leave() {
    [ -z "$watch" ] || end "$watch"
    # Also what the command started and left behind.
    [ -z "$child" ] || end "$child"
    wait
    [ "$(readlink "$lock")" != "$me" ] || rm -f "$lock"
}

lives() { [ "${1#*.}" = "$boot" ] && kill -0 "${1%%.*}" 2>/dev/null; }

trap 'leave; exit' TERM
echo "$me" >"$job/process"

# Two measurements at once would measure each other.
waited=0
until ln -s "$me" "$lock" 2>/dev/null; do
    holder=$(readlink "$lock")
    if [ -n "$holder" ] && ! lives "$holder"; then
        [ "$(readlink "$lock")" != "$holder" ] || rm -f "$lock"
    elif [ $waited -ge "$deadline" ]; then
        finish busy
        exit
    else
        sleep 1
        waited=$((waited + 1))
    fi
done

setsid "$@" </dev/null >"$job/out" 2>"$job/err" &
child=$!
setsid sh -c 'sleep "$1"; : >"$2"; kill -9 "-$3"' edgebuild "$deadline" "$job/late" "$child" &
watch=$!
wait $child
code=$?
leave
if [ -e "$job/late" ]; then finish late; else finish "$code"; fi
