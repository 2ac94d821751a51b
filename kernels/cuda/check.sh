#!/usr/bin/env bash
# Checks and times the kernels on a real card and prints one table. Needs a card of compute capability 8.0
# or later and driver 580 or later; to build, cargo and a C compiler.
#
#   kernels/cuda/check.sh            builds into target/card, then runs
#   kernels/cuda/check.sh --build    builds only: the folder can be taken to a machine without cargo
#   kernels/cuda/check.sh --run      runs what was built
#   kernels/cuda/check.sh --full     runs each kernel test under compute-sanitizer too; takes hours
#
# A run ends within CLOISTER_CARD_SECONDS (540): a step that would start later, or is cut off, is told in
# the table. CLOISTER_CARD_SHAPES (1b,8b,70b) are the shapes of the roofline, CLOISTER_CARD_FOLDER
# (target/card) is where programs lie. Logs and the roofline, as text and JSON, are left in its folder
# `results`. Exit code: 0 if nothing failed, 1 otherwise; what was not run is no failure, and is named.
#
# Taken if they are there: compute-sanitizer, llama-bench (llama.cpp), each from PATH.
set -euo pipefail
cd "$(dirname "$0")/../.."
folder=${CLOISTER_CARD_FOLDER:-$PWD/target/card}
mode=${1:-}
case "$mode" in "" | --build | --run | --full) ;; *) sed -n '2,17s/^# \?//p' "$0" >&2; exit 2 ;; esac

# Copies a program that cargo built, as cargo names it.
take() { # NAME OF THE COPY, cargo arguments
    local name=$1
    shift
    rm -f "$folder/$name"
    cargo "$@" --message-format=json-render-diagnostics |
        sed -n 's/.*"executable":"\([^"]*\)".*/\1/p' | tail -1 | xargs -I{} cp {} "$folder/$name"
    [ -x "$folder/$name" ] || { echo "cargo built no $name" >&2; exit 1; }
}

build() {
    mkdir -p "$folder"
    # The driver is loaded at run time, which a static program cannot do.
    export RUSTFLAGS="-C target-feature=-crt-static" CARGO_TARGET_DIR=target/cuda-card
    for program in cuda_run cuda_check cuda_roofline; do
        take $program build --release -p kernels --features cuda --example $program
    done
    take kernel_tests test --no-run --release -p kernels --test cuda
    take cloister build --release --features cuda --bin cloister
    if [ -d tests/gpu ]; then take engine_tests test --no-run --release --features cuda --test gpu; fi
}

results=$folder/results
names=() outcomes=() times=()
told() { names+=("$1"); outcomes+=("$2"); times+=("${3:--}"); }

# Runs a step if there is time for it: NAME, the seconds that it takes at least and may take at most, the
# command.
step() {
    local name=$1 least=$2 most=$3 start=$SECONDS left=$((limit - SECONDS)) code=0
    shift 3
    if [ $left -lt "$least" ]; then
        told "$name" "not run: $left s left"
        return 0
    fi
    printf '== %s\n' "$name"
    [ $left -lt "$most" ] || left=$most
    timeout -k 5 "$left" "$@" >"$results/$name.log" 2>&1 || code=$?
    case $code in
    0) told "$name" ok $((SECONDS - start)) ;;
    124 | 137) told "$name" "not finished: cut off" $((SECONDS - start)) ;;
    *)
        told "$name" "FAILED ($code)" $((SECONDS - start))
        tail -15 "$results/$name.log"
        ;;
    esac
}

models() {
    local shape help
    [ -x "$folder/cloister" ] || { told models "not run: cloister was not built"; return; }
    help=$("$folder/cloister" bench --help)
    for shape in 8b 1b; do
        local model=$results/$shape.gguf
        step "model-$shape" 20 120 "$folder/cloister" model synth --shape $shape --out "$model" --force
        [ -s "$model" ] || continue
        if [[ $help == *--gpu-layers* ]]; then
            local bench=("$folder/cloister" bench "$model" --gpu-layers -1)
            step "$shape-one-and-prompt" 20 90 "${bench[@]}" --prompt 2048 --depth 128 --batch 1 --warm 0
            step "$shape-64-at-2000" 20 90 "${bench[@]}" --only decode --depth 2000 --batch 64
        else
            told "$shape-end-to-end" "not run: cloister bench has no --gpu-layers"
        fi
        if command -v llama-bench >/dev/null; then
            step "$shape-llama.cpp" 20 60 llama-bench -m "$model" -ngl 99 -p 2048 -n 128
        else
            told "$shape-llama.cpp" "not run: no llama-bench in PATH"
        fi
        rm -f "$model"
    done
}

run() {
    # The stand-in's strictness, the mutants and the faults belong to the emulation.
    local tests=("$folder/kernel_tests" --skip mutants --skip driver --skip faults --skip roofline --skip check_script)
    local sanitizer=(compute-sanitizer --error-exitcode 9 --tool)
    local seconds=${CLOISTER_CARD_SECONDS:-540} most
    limit=$((SECONDS + seconds)) most=$((seconds / 3))
    mkdir -p "$results"
    rm -f "$results"/*
    step cards 5 30 "$folder/cuda_run" --devices
    step graphs-and-pinned 5 30 "$folder/cuda_check"
    step kernels 30 "$most" env CLOISTER_CUDA="$folder/cuda_run" "${tests[@]}"
    step roofline 30 "$most" sh -c '"$1" --shape "$3" --json >"$2/roofline.json" && "$1" --shape "$3"' - \
        "$folder/cuda_roofline" "$results" "${CLOISTER_CARD_SHAPES:-1b,8b,70b}"
    for tool in memcheck racecheck initcheck synccheck; do
        if command -v compute-sanitizer >/dev/null; then
            step $tool-every-part 15 60 "${sanitizer[@]}" $tool "$folder/cuda_roofline" --shape tiny
            step $tool-graphs 15 60 "${sanitizer[@]}" $tool "$folder/cuda_check"
        else
            told $tool "not run: no compute-sanitizer in PATH"
        fi
    done
    if [ -x "$folder/engine_tests" ]; then
        # What a card gives is rounded up, and the folder need not lie where it was built.
        step golden 30 90 env CLOISTER_CARD=1 "$folder/engine_tests" --test-threads 1 \
            --skip a_card_gives_what_was_planned --skip program
    else
        told golden "not run: no forward pass on the card was built"
    fi
    models
    step kernels-in-graphs 30 "$most" env CLOISTER_CUDA="$folder/cuda_run" CLOISTER_CUDA_GRAPH=1 "${tests[@]}"
}

# Each kernel test under each tool.
full() {
    for tool in memcheck racecheck initcheck synccheck; do
        printf '#!/bin/sh\nexec compute-sanitizer --tool %s --error-exitcode 9 --log-file %s %s "$@"\n' \
            $tool "$results/$tool-tests.txt" "$folder/cuda_run" >"$results/$tool.sh"
        chmod +x "$results/$tool.sh"
        step "$tool-tests" 60 86400 env CLOISTER_CUDA="$results/$tool.sh" "$folder/kernel_tests" \
            --skip mutants --skip driver --skip faults --skip roofline --skip check_script
    done
}

[ "$mode" = --run ] || build
[ "$mode" != --build ] || exit 0
[ "$mode" != --full ] || export CLOISTER_CARD_SECONDS=${CLOISTER_CARD_SECONDS:-86400}
run
[ "$mode" != --full ] || full
echo
for log in "$results"/cards.log "$results"/roofline.log; do [ ! -s "$log" ] || cat "$log"; done
for log in "$results"/*-one-and-prompt.log "$results"/*-64-at-2000.log "$results"/*-llama.cpp.log; do
    [ ! -s "$log" ] || { printf '\n-- %s\n' "$(basename "$log" .log)"; grep -v '^$' "$log"; }
done
echo
printf '%-28s %8s  %s\n' step seconds outcome
failed=0
for i in "${!names[@]}"; do
    printf '%-28s %8s  %s\n' "${names[i]}" "${times[i]}" "${outcomes[i]}"
    case ${outcomes[i]} in FAILED*) failed=1 ;; esac
done
exit $failed
