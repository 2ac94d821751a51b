#!/usr/bin/env bash
# Fuzzes each parser of hostile bytes for some seconds, as many at once as there are processors, and fails if
# there is a fault.
#
#     run.sh SECONDS [TARGET...]
#
# Works on the stable toolchain: LLVM's coverage is asked for by its own flags. Starts from the seeds that
# are checked in (tests/fuzz/seeds); what it finds on top is kept in target/fuzz. A fault's input is written
# to target/fuzz/faults: it becomes a seed. Needs a C++ compiler.
set -euo pipefail
cd "$(dirname "$0")"
seconds=$1
shift
host=$(rustc -vV | sed -n 's/^host: //p')
folder=$PWD/../../target/fuzz
mkdir -p "$folder"
folder=$(realpath "$folder")
export RUSTFLAGS="--cfg fuzzing -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table
    -Cllvm-args=-sanitizer-coverage-trace-compares"
cargo build --quiet --release --locked --target "$host" --target-dir "$folder/build"
targets=("$@")
[ ${#targets[@]} -gt 0 ] || for file in targets/*.rs; do targets+=("$(basename "$file" .rs)"); done
mkdir -p "$folder/faults"

# One target.
fuzz() {
    target=$1
    mkdir -p "$folder/corpus/$target" "seeds/$target"
    dictionary=()
    [ -f "seeds/$target.dict" ] && dictionary=("-dict=seeds/$target.dict")
    log=$folder/$target.log
    # A parser that takes a second, or half a gigabyte, for 64 KiB is a fault too.
    "$folder/build/$host/release/$target" "$folder/corpus/$target" "seeds/$target" "${dictionary[@]}" \
        -max_total_time="$seconds" -max_len=65536 -timeout=5 -rss_limit_mb=512 -malloc_limit_mb=256 \
        -print_final_stats=1 -artifact_prefix="$folder/faults/$target-" >"$log" 2>&1 ||
        { tail -n 60 "$log"; echo "$target: a fault: see target/fuzz/faults"; return 1; }
    runs=$(sed -n 's/^stat::number_of_executed_units: //p' "$log")
    covered=$(grep -o 'cov: [0-9]*' "$log" | tail -n 1)
    echo "$target: $runs runs, ${covered:-cov: ?}, no fault"
}
export -f fuzz
export folder host seconds
printf '%s\0' "${targets[@]}" | xargs -0 -n 1 -P "$(nproc)" bash -euo pipefail -c 'fuzz "$1"' _
