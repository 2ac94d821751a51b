// Small things that every kernel uses: exponentials, sums over a warp, bytes read as numbers.
#pragma once
#include "prim.cuh"

constexpr unsigned ALL_LANES = 0xFFFFFFFF;
// Columns that share an activation scale.
constexpr int BLOCK_LEN = 32;
// Columns that are summed up by themselves: see `README.md`, "The order of a sum".
constexpr int SEGMENT_LEN = 128;
constexpr int SEGMENT_BLOCKS = SEGMENT_LEN / BLOCK_LEN;
// 1.5 * 2^23: adding it rounds to an integer, which the low byte then holds.
constexpr float ROUND = 12582912.0f;

// One block of 32 activations beside its bytes: `x = scale * quant`.
struct alignas(8) BlockScale {
    float scale;
    // The sum of the first 16 quants in the low half, of the others in the high half.
    int sums;
};

DEVICE int first_sum(BlockScale s) { return int(int16_t(s.sums & 0xFFFF)); }
DEVICE int second_sum(BlockScale s) { return s.sums >> 16; }
DEVICE int whole_sum(BlockScale s) { return first_sum(s) + second_sum(s); }

DEVICE float larger(float a, float b) { return a > b ? a : b; }

// `e^x` as on the CPU (`kernels/src/ops/lanes.rs`): 0 below -87, `e^88` above 88, NaN for NaN.
DEVICE float exponential(float x) {
    float low = x < -87.0f ? -87.0f : x;
    float held = low > 88.0f ? 88.0f : low;
    float shifted = fmaf(held, 1.44269504f, ROUND);
    float n = shifted - ROUND;
    float r = fmaf(n, 2.1219444e-4f, fmaf(n, -0.693359375f, held));
    float p = 1.9875691e-4f;
    p = fmaf(p, r, 1.3982e-3f);
    p = fmaf(p, r, 8.333452e-3f);
    p = fmaf(p, r, 4.1665796e-2f);
    p = fmaf(p, r, 1.6666665e-1f);
    p = fmaf(p, r, 0.5f);
    float value = fmaf(p, r * r, r) + 1.0f;
    float power = float_of((bits_of(shifted) << 23) + 0x3F800000);
    float result = value * power;
    return x < -87.0f ? 0.0f : result;
}

// The sum over a warp, the same in every lane.
DEVICE float warp_sum(float x) {
    for (int mask = 16; mask > 0; mask /= 2) x += __shfl_xor_sync(ALL_LANES, x, mask);
    return x;
}

DEVICE float warp_max(float x) {
    for (int mask = 16; mask > 0; mask /= 2) x = larger(__shfl_xor_sync(ALL_LANES, x, mask), x);
    return x;
}

DEVICE uint32_t word(const uint4& four, int i) {
    return i == 0 ? four.x : i == 1 ? four.y : i == 2 ? four.z : four.w;
}

template <class T>
DEVICE T load(const void* from) {
    return *reinterpret_cast<const T*>(from);
}

// A 16-bit or 32-bit number at a place that is aligned to nothing or to two bytes.
DEVICE uint32_t u16_at(const uint8_t* bytes, int at) { return bytes[at] | bytes[at + 1] << 8; }
DEVICE uint32_t u32_at(const uint8_t* bytes, int at) {
    return u16_at(bytes, at) | u16_at(bytes, at + 2) << 16;
}
DEVICE float half_at(const uint8_t* bytes, int at) {
    return half_to_float(uint16_t(u16_at(bytes, at)));
}
