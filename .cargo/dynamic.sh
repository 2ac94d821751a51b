#!/bin/sh
# Links programs dynamically, which those need that load a card's driver as they run. Cargo calls it in place of
# rustc, for the packages of this workspace alone:
#
#     RUSTC_WORKSPACE_WRAPPER=$PWD/.cargo/dynamic.sh cargo build --release --features cuda --bin cloister-worker-gpu
#
# The dependencies are those of the static programs. RUSTFLAGS would have them compiled again, and what is given to
# `cargo rustc` does nothing: to rustc one +crt-static of config.toml outweighs any -crt-static.
for word; do
    shift
    [ "$word" != target-feature=+crt-static ] || word=target-feature=-crt-static
    set -- "$@" "$word"
done
exec "$@"
