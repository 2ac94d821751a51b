// The pages of the cache as kernels read them, and where a token stands.
#pragma once
#include "common.cuh"

// Positions of a page.
constexpr int PAGE_LEN = 32;
constexpr int HEAD_DIM_MAX = 256;

// Where the page list of a token's sequence starts in the tables, and its position.
struct Place {
    int table, position;
};

// One KV head of a page: keys `[head_dim][32]`, values `[32][head_dim]`, each exactly as a 32-bit float.
struct PageF32 {
    const float* items;
    DEVICE_MEMBER static PageF32 of(const void* pages, const uint16_t*, size_t head, int dim) {
        return {static_cast<const float*>(pages) + head * 2 * PAGE_LEN * dim};
    }
    DEVICE_MEMBER float key(int, int d, int slot) const { return items[d * PAGE_LEN + slot]; }
    DEVICE_MEMBER float value(int dim, int slot, int d) const { return items[(PAGE_LEN + slot) * dim + d]; }
};

struct PageF16 {
    const uint16_t* items;
    DEVICE_MEMBER static PageF16 of(const void* pages, const uint16_t*, size_t head, int dim) {
        return {static_cast<const uint16_t*>(pages) + head * 2 * PAGE_LEN * dim};
    }
    DEVICE_MEMBER float key(int, int d, int slot) const { return half_to_float(items[d * PAGE_LEN + slot]); }
    DEVICE_MEMBER float value(int dim, int slot, int d) const {
        return half_to_float(items[(PAGE_LEN + slot) * dim + d]);
    }
};

struct PageQ8 {
    const int8_t* items;
    const uint16_t* scales;
    DEVICE_MEMBER static PageQ8 of(const void* pages, const uint16_t* scales, size_t head, int dim) {
        return {static_cast<const int8_t*>(pages) + head * 2 * PAGE_LEN * dim, scales + head * 2 * dim};
    }
    DEVICE_MEMBER float key(int, int d, int slot) const {
        return float(items[d * PAGE_LEN + slot]) * half_to_float(scales[d / 32 * PAGE_LEN + slot]);
    }
    DEVICE_MEMBER float value(int dim, int slot, int d) const {
        float scale = half_to_float(scales[dim + d / 32 * PAGE_LEN + slot]);
        return float(items[(PAGE_LEN + slot) * dim + d]) * scale;
    }
};
