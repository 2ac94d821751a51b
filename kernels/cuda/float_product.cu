// Products with matrices in all other formats: 32-bit activations against the exact weights.
//
//   sum = fma(weight, x, sum)      columns of a segment of 128 in order, then segments in order
//
// F32, F16 and BF16 lie in tiles of 16 rows for each column; every other format keeps its rows as
// files have them. For prompts too: there is no tensor-core product for these formats.
#include "formats.cuh"

namespace float_product {

constexpr int FLOAT_THREADS = 128;
// Segments that a block works on at a time: a thread takes a row of one.
constexpr int FLOAT_SEGMENTS = FLOAT_THREADS / TILE_ROWS;

template <int N>
struct FloatShared {
    // `[segment][token][row]`
    float parts[FLOAT_SEGMENTS][N][TILE_ROWS];
};

// Activations: `[tokens][cols]`.
struct Floats {
    const float* x;
    int cols, tokens;
};

DEVICE bool is_tiled(int type) { return type == TYPE_F32 || type == TYPE_F16 || type == TYPE_BF16; }

// The weight of a row of a tile in a column; `bytes` are those of the tile.
DEVICE float tiled_weight(int type, const uint8_t* bytes, size_t column, int row) {
    size_t at = column * TILE_ROWS + row;
    if (type == TYPE_F32) return load<float>(bytes + at * 4);
    uint16_t bits = load<uint16_t>(bytes + at * 2);
    return type == TYPE_F16 ? half_to_float(bits) : float_of(uint32_t(bits) << 16);
}

DEVICE size_t tiled_size(int type, int cols) {
    return whole_lines(size_t(cols) * TILE_ROWS * (type == TYPE_F32 ? 4 : 2));
}

template <int N>
DEVICE void add_weight(float weight, const Floats& x, int token, int column, float (&sums)[N]) {
#pragma unroll
    for (int n = 0; n < N; n++) {
        int of = token + n < x.tokens ? token + n : x.tokens - 1;
        sums[n] = fmaf(weight, x.x[size_t(of) * x.cols + column], sums[n]);
    }
}

// Sums up a segment of a row for each token.
template <int N>
DEVICE void add_float_segment(const Matrix& matrix, int row, int segment, const Floats& x, int token,
                              float (&sums)[N]) {
    int first = segment * SEGMENT_LEN;
    int end = first + SEGMENT_LEN < x.cols ? first + SEGMENT_LEN : x.cols;
    if (is_tiled(matrix.type)) {
        const uint8_t* tile = matrix.bytes + row / TILE_ROWS * tiled_size(matrix.type, x.cols);
        for (int column = first; column < end; column++) {
            float weight = tiled_weight(matrix.type, tile, column, row % TILE_ROWS);
            add_weight<N>(weight, x, token, column, sums);
        }
        return;
    }
    Layout layout = layout_of(matrix.type);
    const uint8_t* bytes = matrix.bytes + size_t(row) * (x.cols / layout.len) * layout.size;
    for (int column = first; column < end; column += 8) {
        Eight weights;
        const uint8_t* block = bytes + size_t(column / layout.len) * layout.size;
        decode(matrix.type, block, column % layout.len / 8, weights);
#pragma unroll
        for (int i = 0; i < 8; i++) add_weight<N>(weights[i], x, token, column + i, sums);
    }
}

template <int N>
DEVICE void multiply_floats(const Matrix& matrix, const Floats& x, FloatShared<N>& shared) {
    int thread = threadIdx.x, row = thread % TILE_ROWS, slot = thread / TILE_ROWS;
    int at = blockIdx.x * TILE_ROWS + row, token = blockIdx.y * N;
    int segments = (x.cols + SEGMENT_LEN - 1) / SEGMENT_LEN;
    float total = 0;
    for (int start = 0; start < segments; start += FLOAT_SEGMENTS) {
        int here = segments - start < FLOAT_SEGMENTS ? segments - start : FLOAT_SEGMENTS;
        if (slot < here && at < matrix.rows) {
            float sums[N] = {};
            add_float_segment<N>(matrix, at, start + slot, x, token, sums);
#pragma unroll
            for (int n = 0; n < N; n++) shared.parts[slot][n][row] = sums[n];
        }
        __syncthreads();
        // Slot `n` adds up token `n`.
        if (slot < N && at < matrix.rows) {
            for (int i = 0; i < here; i++) total += shared.parts[i][slot][row];
        }
        __syncthreads();
    }
    if (slot >= N || token + slot >= x.tokens || at >= matrix.rows) return;
    if (matrix.bias) total += matrix.bias[at];
    matrix.out[size_t(token + slot) * matrix.rows + at] = total;
}

// Grid: (tiles of 16 rows, tokens / N), 128 threads.
#define FLOAT_PRODUCT(N)                                                                            \
    KERNEL(128, 4, float_product_##N, Matrix matrix, const float* x, int cols, int tokens) {        \
        SHARED(FloatShared<N>, shared);                                                             \
        multiply_floats<N>(matrix, Floats{x, cols, tokens}, shared);                                \
    }
FLOAT_PRODUCT(1)
FLOAT_PRODUCT(8)

}  // namespace float_product
