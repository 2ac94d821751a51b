#!/usr/bin/env bash
# Compiles the kernels into kernels.fatbin and writes MANIFEST: what it was made from, and how.
#
#   kernels/cuda/build.sh           builds both, in place
#   kernels/cuda/build.sh --check   builds aside and compares every byte
#
# The compiler comes from PyPI, pinned by compiler.txt, into target/cuda-compiler; it needs pip and g++.
# The same sources give the same bytes: paths are relative. A kernel that spills registers is an error.
set -euo pipefail
cd "$(dirname "$0")"
[ $# = 0 ] || [ "$*" = --check ] || { sed -n '2,9s/^# \?//p' "$0" >&2; exit 2; }

# Machine code for compute capability 8.0, 8.6, 8.9, 9.0; for others, PTX that the driver compiles.
flags=(-std=c++17 -O3 -fmad=false --threads 2 -fatbin --compress-mode=size)
for arch in 80 86 89 90a; do flags+=(-gencode "arch=compute_$arch,code=sm_$arch"); done
flags+=(-gencode arch=compute_80,code=compute_80)

compiler=../../target/cuda-compiler/$(sha256sum <compiler.txt | cut -c1-16)
if [ ! -x "$compiler/nvidia/cu13/bin/nvcc" ]; then
    "${CLOISTER_PYTHON:-python3}" -m pip install -q --disable-pip-version-check --no-deps \
        --require-hashes --only-binary :all: --target "$compiler" -r compiler.txt
fi
target=.
[ $# = 0 ] || target=$(mktemp -d)
log=$(mktemp)
"$compiler/nvidia/cu13/bin/nvcc" "${flags[@]}" -Xptxas -v -o "$target/kernels.fatbin" kernels.cu \
    2>"$log" || { cat "$log" >&2; exit 1; }
if grep -E 'warning|[1-9][0-9]* bytes spill' "$log" >&2; then
    echo "a kernel spills registers, or the compiler warns: see above" >&2
    exit 1
fi
{
    echo "compiler: $(grep -o 'nvidia-cuda-nvcc==[0-9.]*' compiler.txt)"
    echo "flags: ${flags[*]}"
    sha256sum -- *.cu *.cuh compiler.txt
    (cd "$target" && sha256sum kernels.fatbin)
} >"$target/MANIFEST"
if [ $# = 1 ]; then
    for file in MANIFEST kernels.fatbin; do
        cmp "$file" "$target/$file" || { echo "$file is not what the sources give: run $0" >&2; exit 1; }
    done
    rm -r "$target"
fi
rm "$log"
