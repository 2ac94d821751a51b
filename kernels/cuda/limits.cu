// What a card can do at all, for measurements beside which those of other kernels stand: reads of its
// memory, products of bytes on its tensor cores, fused steps of floats. No model runs these.
#include "common.cuh"

namespace limits {

constexpr int THREADS = 256;
// Reads that a thread has under way, and sums that do not wait for each other.
constexpr int READS = 4, CHAINS = 8;

struct ReadShared {
    uint32_t words[THREADS / 32];
};

DEVICE uint32_t folded(const uint4& four) { return four.x ^ four.y ^ four.z ^ four.w; }

// Reads `pieces` of 16 bytes; out[block] = the exclusive or of the words that it read.
// Grid: any, 256 threads.
KERNEL(256, 6, limit_read, const uint4* from, size_t pieces, uint32_t* out) {
    SHARED(ReadShared, shared);
    size_t step = size_t(gridDim.x) * THREADS, i = size_t(blockIdx.x) * THREADS + threadIdx.x;
    uint32_t words = 0;
    for (; i + (READS - 1) * step < pieces; i += READS * step) {
        uint4 read[READS];
#pragma unroll
        for (int k = 0; k < READS; k++) read[k] = from[i + k * step];
#pragma unroll
        for (int k = 0; k < READS; k++) words ^= folded(read[k]);
    }
    for (; i < pieces; i += step) words ^= folded(from[i]);
    for (int mask = 16; mask > 0; mask /= 2) words ^= __shfl_xor_sync(ALL_LANES, words, mask);
    if (threadIdx.x % 32 == 0) shared.words[threadIdx.x / 32] = words;
    __syncthreads();
    if (threadIdx.x != 0) return;
    for (int warp = 1; warp < THREADS / 32; warp++) words ^= shared.words[warp];
    out[blockIdx.x] = words;
}

// Each warp makes `rounds` times 8 products `[16 x 32] * [32 x 8]` of bytes, all from registers: 32,768
// multiply-adds a round. Bytes of a column of `a`, and of a row of `b`, are the same; so are all sums.
// out[thread] = the sum of its sums. Grid: any, 256 threads.
KERNEL(256, 2, limit_int8, int rounds, int* out) {
    uint32_t group = threadIdx.x % 4 + 1;
    uint32_t a[4], b[2];
#pragma unroll
    for (int i = 0; i < 4; i++) a[i] = 0x9E3779B9u * (group + i / 2 * 4);
#pragma unroll
    for (int i = 0; i < 2; i++) b[i] = 0x85EBCA6Bu * (group + i * 4);
    int sums[CHAINS][4] = {};
#pragma unroll 4
    for (int round = 0; round < rounds; round++) {
#pragma unroll
        for (int chain = 0; chain < CHAINS; chain++) mma_32(sums[chain], a, b[0], b[1]);
    }
    int sum = 0;
#pragma unroll
    for (int i = 0; i < CHAINS * 4; i++) sum += sums[i / 4][i % 4];
    out[size_t(blockIdx.x) * THREADS + threadIdx.x] = sum;
}

// Each thread makes `rounds` times 8 fused steps `x = x * factor + k`; out[thread] = the sum of its x.
// Grid: any, 256 threads.
KERNEL(256, 4, limit_float, int rounds, float factor, float* out) {
    float x[CHAINS] = {};
#pragma unroll 4
    for (int round = 0; round < rounds; round++) {
#pragma unroll
        for (int chain = 0; chain < CHAINS; chain++) x[chain] = fmaf(x[chain], factor, float(chain + 1));
    }
    float sum = 0;
#pragma unroll
    for (int chain = 0; chain < CHAINS; chain++) sum += x[chain];
    out[size_t(blockIdx.x) * THREADS + threadIdx.x] = sum;
}

}  // namespace limits
