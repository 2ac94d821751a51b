#!/usr/bin/env bash
# Runs every kernel test on a real card, through its driver, and then under compute-sanitizer where that
# is installed. Needs a card of compute capability 8.0 or later, driver 580 or later, cargo and g++.
#
#   kernels/cuda/check.sh
set -euo pipefail
cd "$(dirname "$0")/../.."

# The driver is loaded at run time, which a static program cannot do.
RUSTFLAGS="-C target-feature=-crt-static" cargo build --quiet -p kernels --features cuda \
    --example cuda_run --target-dir target/cuda-card
client=$(find "$PWD/target/cuda-card" -path '*/debug/examples/cuda_run' -print -quit)
"$client" --devices

# The stand-in's strictness and the mutants belong to the emulation.
run=(cargo test -p kernels --test cuda -- --skip mutants --skip driver)
CLOISTER_CUDA=$client "${run[@]}"
if ! command -v compute-sanitizer >/dev/null; then
    echo "compute-sanitizer is not installed: memory and races were not checked on the card"
    exit 0
fi
for tool in memcheck racecheck initcheck synccheck; do
    echo "== $tool"
    wrapper=$(mktemp)
    printf '#!/bin/sh\nexec compute-sanitizer --tool %s --error-exitcode 9 --log-file %s.log %s "$@"\n' \
        "$tool" "$wrapper" "$client" >"$wrapper"
    chmod +x "$wrapper"
    CLOISTER_CUDA=$wrapper "${run[@]}" || { cat "$wrapper.log"; exit 1; }
    rm -f "$wrapper" "$wrapper.log"
done
