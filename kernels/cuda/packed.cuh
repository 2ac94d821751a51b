// The integer formats of the packed layout, which `kernels/src/packed.rs` defines: tiles of 16 rows,
// each a plane of low bits, one of high bits and one of scales. `weight = scale * (byte - zero) +
// minimum`. The bytes on the card are those of the loader's image, unchanged.
#pragma once
#include "common.cuh"

constexpr int TILE_ROWS = 16;
// Bytes of a line: 16 rows of 4 columns.
constexpr int LINE = 64;

enum class Scales {
    // 32 columns: `scale: [f16; 16]`.
    Plain,
    // 32 columns: `scale: [f16; 16]`, `minimum: [f16; 16]`.
    Min,
    // 256 columns: `d: [f16; 16]`, `dmin: [f16; 16]`, `scale: [[u8; 16]; 8]`, `min: [[u8; 16]; 8]`.
    SuperMin,
    // 256 columns: `d: [f16; 16]`, `scale: [[i8; 16]; 16]`, one for 16 columns.
    SuperPlain,
};

template <int bits, int zero_byte, Scales kind>
struct IntForm {
    static constexpr int BITS = bits;
    // What is taken off a byte. Those of 8 bits become signed by flipping their top bit instead.
    static constexpr int ZERO = bits == 8 ? 0 : zero_byte;
    static constexpr Scales KIND = kind;
    static constexpr bool HAS_MIN = kind == Scales::Min || kind == Scales::SuperMin;
    static constexpr bool IS_SUPER = kind == Scales::SuperMin || kind == Scales::SuperPlain;
    // Bytes for 32 columns of a tile.
    static constexpr int LOW_STEP = bits == 8 ? 512 : 256;
    static constexpr int HIGH_STEP = bits == 5 ? 64 : bits == 6 ? 128 : 0;
    // Bytes of the scale plane, and the columns that they are for.
    static constexpr int SCALE_STEP = kind == Scales::Plain      ? 32
                                      : kind == Scales::Min      ? 64
                                      : kind == Scales::SuperMin ? 320
                                                                 : 288;
    static constexpr int SCALE_LEN = IS_SUPER ? 256 : BLOCK_LEN;
    // Bytes of the scale plane that a segment needs.
    static constexpr int SEGMENT_SCALES = IS_SUPER ? SCALE_STEP : SCALE_STEP * SEGMENT_BLOCKS;
};

using Q8_0 = IntForm<8, 128, Scales::Plain>;
using Q4_0 = IntForm<4, 8, Scales::Plain>;
using Q5_0 = IntForm<5, 16, Scales::Plain>;
using Q4_1 = IntForm<4, 0, Scales::Min>;
using Q5_1 = IntForm<5, 0, Scales::Min>;
using Q4_K = IntForm<4, 0, Scales::SuperMin>;
using Q5_K = IntForm<5, 0, Scales::SuperMin>;
using Q6_K = IntForm<6, 32, Scales::SuperPlain>;

// GGML's numbers of the formats.
enum Type {
    TYPE_F32 = 0, TYPE_F16 = 1, TYPE_Q4_0 = 2, TYPE_Q4_1 = 3, TYPE_Q5_0 = 6, TYPE_Q5_1 = 7,
    TYPE_Q8_0 = 8, TYPE_Q2_K = 10, TYPE_Q3_K = 11, TYPE_Q4_K = 12, TYPE_Q5_K = 13, TYPE_Q6_K = 14,
    TYPE_IQ2_XXS = 16, TYPE_IQ2_XS = 17, TYPE_IQ3_XXS = 18, TYPE_IQ1_S = 19, TYPE_IQ4_NL = 20,
    TYPE_IQ3_S = 21, TYPE_IQ2_S = 22, TYPE_IQ4_XS = 23, TYPE_IQ1_M = 29, TYPE_BF16 = 30,
    TYPE_TQ1_0 = 34, TYPE_TQ2_0 = 35, TYPE_MXFP4 = 39, TYPE_NVFP4 = 40,
};

// A matrix of a product: `out[token][row] = sum over columns + bias[row]`.
struct Matrix {
    // As packed.
    const uint8_t* bytes;
    // `[rows]`, or null.
    const float* bias;
    // `[tokens][rows]`
    float* out;
    int rows;
    // A `Type`.
    int type;
};

DEVICE size_t whole_lines(size_t size) { return (size + LINE - 1) / LINE * LINE; }

// Where the planes of a tile start.
struct Tile {
    const uint8_t *low, *high, *scales;
};

template <class F>
DEVICE Tile tile_of(const uint8_t* bytes, int cols, int tile) {
    size_t blocks = cols / BLOCK_LEN;
    size_t low = whole_lines(blocks * F::LOW_STEP), high = whole_lines(blocks * F::HIGH_STEP);
    size_t scales = whole_lines(size_t(cols / F::SCALE_LEN) * F::SCALE_STEP);
    const uint8_t* at = bytes + size_t(tile) * (low + high + scales);
    return {at, at + low, at + low + high};
}

// The signed bytes of four columns of a row: group `group` of the eight of a block. `low` is the
// word of its line, `high` that of the high bits' line.
template <class F>
DEVICE uint32_t quad(uint32_t low, uint32_t high, int group) {
    if (F::BITS == 8) return low ^ 0x80808080;
    uint32_t bytes = low >> group % 2 * 4 & 0x0F0F0F0F;
    if (F::BITS == 5) bytes |= (high >> group & 0x01010101) << 4;
    if (F::BITS == 6) bytes |= (high >> group % 4 * 2 & 0x03030303) << 4;
    return bytes;
}

// Scale and minimum of a row; `scales` are those of the block or of the 256 columns, `sub` counts
// the scales in them.
template <class F>
DEVICE float scale_of(const uint8_t* scales, int row, int sub) {
    float d = half_to_float(load<uint16_t>(scales + row * 2));
    if (F::KIND == Scales::SuperMin) return d * float(scales[64 + sub * 16 + row]);
    if (F::KIND == Scales::SuperPlain) return d * float(int8_t(scales[32 + sub * 16 + row]));
    return d;
}

template <class F>
DEVICE float minimum_of(const uint8_t* scales, int row, int sub) {
    float d = half_to_float(load<uint16_t>(scales + 32 + row * 2));
    if (F::KIND == Scales::SuperMin) return -(d * float(scales[192 + sub * 16 + row]));
    return d;
}

// Calls `body` with the form of a type; the caller gives integer types only.
template <class Body>
DEVICE void with_form(int type, Body body) {
    switch (type) {
        case TYPE_Q8_0: body(Q8_0{}); break;
        case TYPE_Q4_0: body(Q4_0{}); break;
        case TYPE_Q4_1: body(Q4_1{}); break;
        case TYPE_Q5_0: body(Q5_0{}); break;
        case TYPE_Q5_1: body(Q5_1{}); break;
        case TYPE_Q4_K: body(Q4_K{}); break;
        case TYPE_Q5_K: body(Q5_K{}); break;
        case TYPE_Q6_K: body(Q6_K{}); break;
    }
}
