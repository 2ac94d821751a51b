// The embedding row of a token, without an address that depends on the token.
//
// `embed_scan` reads the whole table and keeps, with masks, the bytes of each token's tile (16 rows; of
// formats without tiles, as many rows as are a multiple of 16 bytes). `embed_rows` picks the row out of
// the tile in the same way and writes its weights. What is read and written when depends on the number
// of tokens only.
#include "formats.cuh"

namespace embed {

// Tokens that a pass over the table serves.
constexpr int TOKENS = 8;

// All ones if equal, else 0.
DEVICE uint32_t mask_of(uint32_t a, uint32_t b) {
    uint32_t difference = a ^ b;
    return ((difference | (0 - difference)) >> 31) - 1;
}

// found[t] |= the tile `tokens[t] >> shift` of the table; `found`, `[n][tile_size]`, starts as zeros.
//
// `size` is that of the table; both sizes are multiples of 16; `2^shift` rows are a tile.
// Grid: (tile_size / (128 * 16), as many parts of the table as wanted, n / 8), 128 threads.
KERNEL(128, 4, embed_scan, const uint8_t* table, size_t size, size_t tile_size, int shift,
       const uint32_t* tokens, int n, uint32_t* found) {
    size_t at = (size_t(blockIdx.x) * 128 + threadIdx.x) * 16;
    if (at >= tile_size) return;
    int first = blockIdx.z * TOKENS;
    uint32_t wanted[TOKENS];
    uint4 kept[TOKENS] = {};
#pragma unroll
    for (int t = 0; t < TOKENS; t++) wanted[t] = tokens[first + t < n ? first + t : n - 1] >> shift;
    for (size_t tile = blockIdx.y; tile * tile_size + at < size; tile += gridDim.y) {
        uint4 bytes = load<uint4>(table + tile * tile_size + at);
#pragma unroll
        for (int t = 0; t < TOKENS; t++) {
            uint32_t mask = mask_of(wanted[t], uint32_t(tile));
            kept[t].x |= bytes.x & mask;
            kept[t].y |= bytes.y & mask;
            kept[t].z |= bytes.z & mask;
            kept[t].w |= bytes.w & mask;
        }
    }
#pragma unroll
    for (int t = 0; t < TOKENS; t++) {
        if (first + t >= n) continue;
        uint32_t* to = found + ((first + t) * tile_size + at) / 4;
        for (int i = 0; i < 4; i++) atomicOr(to + i, word(kept[t], i));
    }
}

// One of `rows` items, `stride` bytes apart; all are read.
template <class T>
DEVICE T pick(const uint8_t* from, size_t stride, int rows, uint32_t row) {
    uint32_t picked = 0;
    for (int i = 0; i < rows; i++) picked |= load<T>(from + i * stride) & mask_of(i, row);
    return T(picked);
}

// The scale (or minimum) of a row: a half, times a byte where there are sub-blocks.
template <class F>
DEVICE float picked_scale(const uint8_t* scales, uint32_t row, int sub) {
    float d = half_to_float(pick<uint16_t>(scales, 2, TILE_ROWS, row));
    if (!F::IS_SUPER) return d;
    uint8_t byte = pick<uint8_t>(scales + (F::KIND == Scales::SuperMin ? 64 : 32) + sub * 16, 1, TILE_ROWS, row);
    return d * (F::KIND == Scales::SuperMin ? float(byte) : float(int8_t(byte)));
}

template <class F>
DEVICE float picked_minimum(const uint8_t* scales, uint32_t row, int sub) {
    float d = half_to_float(pick<uint16_t>(scales + 32, 2, TILE_ROWS, row));
    return F::IS_SUPER ? -(d * float(pick<uint8_t>(scales + 192 + sub * 16, 1, TILE_ROWS, row))) : d;
}

// Four columns of a row of a tile in an integer format.
template <class F>
DEVICE void int_columns(const uint8_t* bytes, int cols, uint32_t row, int column, float (&out)[4]) {
    Tile tile = tile_of<F>(bytes, cols, 0);
    size_t block = column / BLOCK_LEN;
    int group = column % BLOCK_LEN / 4;
    const uint8_t* low = tile.low + block * F::LOW_STEP + (F::BITS == 8 ? group : group / 2) * LINE;
    const uint8_t* high = tile.high + block * F::HIGH_STEP + (F::BITS == 6 ? group / 4 : 0) * LINE;
    uint32_t high_bits = F::HIGH_STEP ? pick<uint32_t>(high, 4, TILE_ROWS, row) : 0;
    uint32_t quants = quad<F>(pick<uint32_t>(low, 4, TILE_ROWS, row), high_bits, group);
    const uint8_t* scales = tile.scales + size_t(column / F::SCALE_LEN) * F::SCALE_STEP;
    int sub = column % F::SCALE_LEN / (F::KIND == Scales::SuperPlain ? 16 : BLOCK_LEN);
    float scale = picked_scale<F>(scales, row, sub);
    for (int i = 0; i < 4; i++) {
        out[i] = scale * float(int(int8_t(quants >> 8 * i)) - F::ZERO);
        if (F::HAS_MIN) out[i] += picked_minimum<F>(scales, row, sub);
    }
}

DEVICE float float_column(int type, const uint8_t* tile, uint32_t row, size_t column) {
    if (type == TYPE_F32) return float_of(pick<uint32_t>(tile + column * TILE_ROWS * 4, 4, TILE_ROWS, row));
    uint16_t bits = pick<uint16_t>(tile + column * TILE_ROWS * 2, 2, TILE_ROWS, row);
    return type == TYPE_F16 ? half_to_float(bits) : float_of(uint32_t(bits) << 16);
}

// Columns of a block of threads: whole blocks of every format.
constexpr int COLUMNS = 256;

struct EmbedShared {
    // The blocks of the row, picked out.
    uint8_t bytes[COLUMNS];
};

// The columns of a format without tiles.
DEVICE void row_columns(int type, const uint8_t* tile, int cols, int rows, uint32_t row, float scale,
                        EmbedShared& shared, float* out) {
    Layout layout = layout_of(type);
    int first = blockIdx.x * COLUMNS, len = cols - first < COLUMNS ? cols - first : COLUMNS;
    size_t row_size = size_t(cols / layout.len) * layout.size;
    const uint8_t* from = tile + size_t(first / layout.len) * layout.size;
    for (int i = threadIdx.x; i < len / layout.len * layout.size; i += 64) {
        shared.bytes[i] = pick<uint8_t>(from + i, row_size, rows, row);
    }
    __syncthreads();
    int column = threadIdx.x * 8;
    if (column >= len) return;
    Eight weights;
    decode(type, shared.bytes + column / layout.len * layout.size, column % layout.len / 8, weights);
    for (int i = 0; i < 8; i++) out[first + column + i] = weights[i] * scale;
}

// out[t] = the row `tokens[t]` times `scale`, `[n][cols]`; `found` as `embed_scan` leaves it.
// Grid: (cols / 256, n), 64 threads.
KERNEL(64, 8, embed_rows, int type, const uint8_t* found, size_t tile_size, int shift, int cols,
       const uint32_t* tokens, float scale, float* out) {
    SHARED(EmbedShared, shared);
    const uint8_t* tile = found + blockIdx.y * tile_size;
    uint32_t row = tokens[blockIdx.y] & ((1u << shift) - 1);
    float* to = out + size_t(blockIdx.y) * cols;
    int column = blockIdx.x * COLUMNS + threadIdx.x * 4;
    if (type == TYPE_F32 || type == TYPE_F16 || type == TYPE_BF16) {
        for (int i = column; i < column + 4 && i < cols; i++) to[i] = float_column(type, tile, row, i) * scale;
        return;
    }
    bool is_int = false;
    float values[4];
    with_form(type, [&](auto form) {
        is_int = true;
        if (column < cols) int_columns<decltype(form)>(tile, cols, row, column, values);
    });
    if (!is_int) return row_columns(type, tile, cols, 1 << shift, row, scale, shared, to);
    for (int i = 0; i < 4 && column < cols; i++) to[column + i] = values[i] * scale;
}

}  // namespace embed
