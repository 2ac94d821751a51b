// What lies between the products: sums with the residual, RMS norms, gates, activations as bytes.
//
//   norm(x) = x / sqrt(mean(x^2) + epsilon) * weight
//
// A block of 32 values becomes bytes exactly as on the CPU (`kernels/src/quantize.rs`): `scale` is the
// largest magnitude / 127, rounded up to 16 significant bits; a magnitude below 1e-30 is zero, one of
// 1e30 or more, or a NaN, makes the scale NaN.
#include "common.cuh"

namespace norms {

constexpr int THREADS = 256;
constexpr int WARPS = THREADS / 32;

struct NormShared {
    float sums[WARPS];
};

// The sum over the block, the same in every thread; `sums` is used again after the next barrier.
DEVICE float block_sum(float x, float (&sums)[WARPS]) {
    x = warp_sum(x);
    if (threadIdx.x % 32 == 0) sums[threadIdx.x / 32] = x;
    __syncthreads();
    float sum = 0;
    for (int i = 0; i < WARPS; i++) sum += sums[i];
    __syncthreads();
    return sum;
}

// `1 / sqrt(mean(x^2) + epsilon)` of a row.
DEVICE float inverse_root(const float* x, int cols, float epsilon, NormShared& shared) {
    float squares = 0;
    for (int i = threadIdx.x; i < cols; i += THREADS) squares = fmaf(x[i], x[i], squares);
    float mean = block_sum(squares, shared.sums) / float(cols);
    return 1.0f / sqrtf(mean + epsilon);
}

// Writes a warp's 32 values as bytes, a value a lane.
DEVICE void quantize_block(float x, int8_t* quants, BlockScale* scale) {
    int lane = threadIdx.x % 32;
    uint32_t largest = bits_of(x) & 0x7FFFFFFF;
    for (int mask = 16; mask > 0; mask /= 2) {
        uint32_t other = __shfl_xor_sync(ALL_LANES, largest, mask);
        largest = other > largest ? other : largest;
    }
    float magnitude = float_of(largest);
    float rounded = float_of((bits_of(magnitude / 127.0f) + 0xFF) & ~0xFFu);
    bool is_told = magnitude >= 1e-30f && magnitude < 1e30f;
    float inverse = is_told ? 1.0f / rounded : 0.0f;
    float untold = magnitude < 1e-30f ? 0.0f : float_of(0x7FC00000);
    int quant = int(int8_t(bits_of(x * inverse + ROUND)));
    quants[lane] = int8_t(quant);
    int sum = quant;
    for (int mask = 8; mask > 0; mask /= 2) sum += __shfl_xor_sync(ALL_LANES, sum, mask);
    int second = __shfl_sync(ALL_LANES, sum, 16);
    if (lane == 0) *scale = BlockScale{is_told ? rounded : untold, (sum & 0xFFFF) | second * 65536};
}

// Where a result goes: as floats, as bytes, or both; null for what is not wanted.
struct Out {
    float* floats;
    int8_t* quants;
    BlockScale* scales;
};

// Writes columns `i` of a row from all lanes of a warp; with bytes, `cols` is whole blocks.
DEVICE void write(const Out& out, int row, int i, int cols, float value) {
    if (out.floats) out.floats[size_t(row) * cols + i] = value;
    if (out.quants) {
        int lane = threadIdx.x % 32;
        size_t at = size_t(row) * cols + (i - lane);
        quantize_block(value, out.quants + at, out.scales + at / BLOCK_LEN);
    }
}

// x[r] += delta[r], which is normalised first if it has a weight; out[i] = norm(x[r]), r = rows[i].
//
// Shapes: x, delta `[tokens][cols]`; out `[grid][cols]`. `delta`, `delta_weight` and `rows` may be
// null: nothing is added, it is added as it is, r = i. Grid: (rows of out), 256 threads.
KERNEL(256, 4, add_norm, float* x, const float* delta, const float* delta_weight, const float* weight,
       float epsilon, int cols, const int* rows, Out out) {
    SHARED(NormShared, shared);
    size_t row = rows ? rows[blockIdx.x] : blockIdx.x;
    float* here = x + row * cols;
    if (delta) {
        const float* added = delta + row * cols;
        float scale = delta_weight ? inverse_root(added, cols, epsilon, shared) : 0.0f;
        for (int i = threadIdx.x; i < cols; i += THREADS) {
            here[i] += delta_weight ? added[i] * scale * delta_weight[i] : added[i];
        }
    }
    float scale = inverse_root(here, cols, epsilon, shared);
    for (int i = threadIdx.x; i < cols; i += THREADS) {
        write(out, blockIdx.x, i, cols, here[i] * scale * weight[i]);
    }
}

// out = x, `[tokens][cols]`. Grid: (cols / 256, tokens), 256 threads.
KERNEL(256, 4, quantize, const float* x, int cols, Out out) {
    int i = blockIdx.x * THREADS + threadIdx.x;
    if (i < cols) write(out, blockIdx.y, i, cols, x[size_t(blockIdx.y) * cols + i]);
}

// out = activation(gate) * up, all `[tokens][cols]`. `kind` 0: `x / (1 + e^-x)`; 1: GELU, as
// `kernels/src/ops/gate.rs` writes it. Grid: (cols / 256, tokens), 256 threads.
KERNEL(256, 4, gate, const float* gates, const float* up, int kind, int cols, Out out) {
    int i = blockIdx.x * THREADS + threadIdx.x;
    if (i >= cols) return;
    size_t at = size_t(blockIdx.y) * cols + i;
    float x = gates[at];
    float y = kind == 0 ? x : 1.595769f * fmaf(0.044715f * x * x, x, x);
    write(out, blockIdx.y, i, cols, x / (1.0f + exponential(-y)) * up[at]);
}

}  // namespace norms
