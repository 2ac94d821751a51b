#!/usr/bin/env bash
# Fuzzes each parser of hostile bytes for some seconds, as many at once as there are processors, and fails if
# there is a fault.
#
#     run.sh [--quick] SECONDS [TARGET...]
#
# Works on the stable toolchain: LLVM's coverage is asked for by its own flags. It guides the fuzzer through the
# dependencies too; with --quick, which takes the dependencies as `cargo test` has compiled them, through our
# own packages alone. Starts from the seeds that are checked in (tests/fuzz/seeds); what it finds on top is kept
# in target/fuzz. A fault's input is written to target/fuzz/faults: it becomes a seed. Needs a C++ compiler.
set -euo pipefail
cd "$(dirname "$0")"
root=$(realpath ../..)
folder=$root/target/fuzz
host=$(rustc -vV | sed -n 's/^host: //p')
mkdir -p "$folder/faults"
# The kernels too with every check that finds a fault, and quick to compile.
build=(cargo build --quiet --locked -p cloister-fuzz --target "$host" --target-dir "$folder/build"
    --config profile.dev.package.kernels.opt-level=1
    --config profile.dev.package.kernels.overflow-checks=true
    --config profile.dev.package.kernels.debug-assertions=true)
if [ "$1" = --quick ]; then
    shift
    export RUSTC_WORKSPACE_WRAPPER=$root/.cargo/coverage.sh
    build+=(--config "build.build-dir=\"$root/target\"")
else
    export RUSTC_WRAPPER=$root/.cargo/coverage.sh
fi
seconds=$1
shift
"${build[@]}"
targets=("$@")
[ ${#targets[@]} -gt 0 ] || for file in targets/*.rs; do targets+=("$(basename "$file" .rs)"); done

# One target.
fuzz() {
    target=$1
    mkdir -p "$folder/corpus/$target" "seeds/$target"
    dictionary=()
    [ -f "seeds/$target.dict" ] && dictionary=("-dict=seeds/$target.dict")
    log=$folder/$target.log
    # A parser that takes a second, or half a gigabyte, for 64 KiB is a fault too.
    "$folder/build/$host/debug/$target" "$folder/corpus/$target" "seeds/$target" "${dictionary[@]}" \
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
