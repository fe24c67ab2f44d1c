# Writes what arrives into a .part from a block on; renames it once its sha256 is right.
file=$1 size=$2 sum=$3 block=$4
export LC_ALL=C
mkdir -p "${file%/*}" || exit
# At its own place, so that a writer of an earlier, dropped link can do no harm.
if ! said=$(dd of="$file.part" bs=65536 seek="$block" conv=notrunc 2>&1); then
    rm -f "$file.part"
    echo "failed $said"
    exit
fi
have=$(wc -c <"$file.part")
if [ "$have" -lt "$size" ]; then
    echo short
elif found=$(sha256sum <"$file.part") && [ "${found%% *}" = "$sum" ]; then
    # The writer of an earlier, dropped link may have seen it whole a moment before.
    if said=$(mv "$file.part" "$file" 2>&1) || [ -f "$file" ]; then
        echo whole
    else
        echo "failed $said"
    fi
else
    rm -f "$file.part"
    echo differs
fi
