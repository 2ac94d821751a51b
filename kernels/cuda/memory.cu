// Erasing: memory that is given back is zeroed first.
#include "common.cuh"

namespace memory {

// Zeroes `pieces` of 16 bytes. Grid: any, 256 threads.
KERNEL(256, 4, zero, uint4* to, size_t pieces) {
    size_t step = size_t(gridDim.x) * 256;
    for (size_t i = size_t(blockIdx.x) * 256 + threadIdx.x; i < pieces; i += step) to[i] = uint4{0, 0, 0, 0};
}

// Zeroes pages in every layer: page `pages[y]` of layer `z`, `pieces` of 16 bytes each; layers are
// `layer_pieces` apart. Grid: (any, pages, layers), 256 threads.
KERNEL(256, 4, zero_pages, uint4* to, size_t layer_pieces, size_t pieces, const uint32_t* pages) {
    uint4* page = to + blockIdx.z * layer_pieces + pages[blockIdx.y] * pieces;
    for (size_t i = size_t(blockIdx.x) * 256 + threadIdx.x; i < pieces; i += size_t(gridDim.x) * 256) {
        page[i] = uint4{0, 0, 0, 0};
    }
}

}  // namespace memory
