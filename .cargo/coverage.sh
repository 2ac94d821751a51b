#!/bin/sh
# Compiles with the coverage that LLVM's fuzzer follows. Cargo calls it in place of rustc, for the packages of this
# workspace alone or for all:
#
#     RUSTC_WORKSPACE_WRAPPER=$PWD/.cargo/coverage.sh cargo build -p cloister-fuzz
#
# Linked dynamically, without which the fuzzer's own runtime does not start. For what runs while cargo builds, it
# names no target: that stays as it is, since only a fuzz target is linked with the fuzzer.
case " $* " in
*" --target "*)
    exec "$(dirname "$0")/dynamic.sh" "$@" --cfg fuzzing -Cpasses=sancov-module \
        -Cllvm-args=-sanitizer-coverage-level=4 -Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
        -Cllvm-args=-sanitizer-coverage-pc-table -Cllvm-args=-sanitizer-coverage-trace-compares
    ;;
*) exec "$@" ;;
esac
