# Starts a command once, however often it is asked to, and waits a while for its result.
supervisor=$1 root=$2 job=$2/jobs/$3 deadline=$4
shift 4
boot=$(cat /proc/sys/kernel/random/boot_id 2>/dev/null)

# Numbers of processes begin anew with each boot.
lives() { [ "${1#*.}" = "$boot" ] && kill -0 "${1%%.*}" 2>/dev/null; }

export EDGEBUILD_ROOT="$root"
if [ "$1" = python ]; then
    shift
    # What `edgebuild device setup` has installed.
    [ -d "$root/site" ] && export PYTHONPATH="$root/site${PYTHONPATH:+:$PYTHONPATH}"
    python=$(command -v python3 || command -v python) || { echo no-python; exit; }
    set -- "$python" "$@"
fi
command -v "$1" >/dev/null || { echo no-program; exit; }

mkdir -p "$root/jobs" || exit
# Making the folder is the lock: who asks again after a dropped link only waits.
if mkdir "$job" 2>/dev/null; then
    setsid sh -c "$supervisor" edgebuild "$root" "$job" "$deadline" "$@" \
        </dev/null >/dev/null 2>&1 &
fi

for pause in 0.05 0.1 0.1 0.2 0.2 0.5 0.5 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1; do
    [ -e "$job/result" ] && break
    [ -d "$job" ] || break
    [ -s "$job/process" ] && ! lives "$(cat "$job/process")" && break
    # Some know whole seconds only.
    sleep "$pause" 2>/dev/null || sleep 1
done

if [ -e "$job/result" ]; then
    echo "$(cat "$job/result")" $(wc -c <"$job/out") $(wc -c <"$job/err")
    cat "$job/out" "$job/err"
elif [ -s "$job/process" ] && lives "$(cat "$job/process")"; then
    echo running
else
    echo lost
fi
